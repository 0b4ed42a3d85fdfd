"""Encoders and decoders compute the same as their stock models, and can be saved inside a composite model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    TimesformerConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from simple_multimodal.models.encoders import ENCODERS, EncoderOutput, get_encoder_class
from simple_multimodal.models.loading import load_config, load_pretrained_tower, load_tower_config
from simple_multimodal.models.patches import interpolate_grid, sinusoidal_grid, sinusoidal_sequence, visible_patches
from simple_multimodal.models.text.deberta_v2 import relative_positions
from tests.closeness import assert_close

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DECODER_SIZES = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
}
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NEWER_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}


def text_config(name: str, **changes) -> PreTrainedConfig:
    shared = SIZES | DROPOUT | {"vocab_size": 40, "max_position_embeddings": 32} | changes
    return BertConfig(**shared) if name == "bert" else DebertaV2Config(**shared)


def audio_config(**changes) -> ViTMAEConfig:
    values = SIZES | DECODER_SIZES | DROPOUT | {"patch_size": 4, "image_size": [8, 20], "num_channels": 1} | changes
    return ViTMAEConfig(**values)


def video_config(**changes) -> VideoMAEConfig:
    values = {"patch_size": 4, "image_size": [8, 12], "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
    return VideoMAEConfig(**(SIZES | DECODER_SIZES | DROPOUT | values | changes))


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Give every tensor random values: initial ones are so small, or zero, that errors would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def build_pair(config: PreTrainedConfig, modality: str):
    encoder_class = get_encoder_class(config.model_type, modality)
    return encoder_class(config).eval(), encoder_class.decoder_class(config).eval()


def exact_mask(rows: int, patches: int, masked: int) -> torch.Tensor:
    noise = torch.rand(rows, patches, generator=torch.Generator().manual_seed(1))
    return noise.argsort(dim=1).argsort(dim=1) < masked


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the masked positions row by row, the same number in each."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("bert", {}), ("deberta-v2", {}), ("deberta-v2", {"legacy": False}), ("deberta-v2", NEWER_DEBERTA)],
)
def test_text_matches_stock_masked_lm(tmp_path, name, changes):
    config = text_config(name, **changes)
    stock = randomize((BertForMaskedLM if name == "bert" else DebertaV2ForMaskedLM)(config))
    stock.save_pretrained(tmp_path)
    encoder, decoder = build_pair(config, "text")
    report = load_pretrained_tower(encoder, decoder, str(tmp_path))
    assert report.new == [] and report.unused == {} and report.converted == {}

    input_ids = torch.tensor([[2, 7, 9, 3], [2, 5, 3, 0]])
    attention_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        output = encoder(input_ids, attention_mask)
        logits = decoder(output.tokens, encoder.word_embeddings)
        expected = stock(input_ids, attention_mask=attention_mask).logits
    assert output.seconds is None
    assert output.mask.tolist() == [[True] * 4, [True, True, True, False]]
    real = attention_mask.bool()
    assert_close(logits[real], expected[real])


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_audio_matches_stock_vit_mae_on_a_square_rgb_image(tmp_path, norm_pix_loss):
    config = audio_config(image_size=16, num_channels=3, mask_ratio=0.75, norm_pix_loss=norm_pix_loss)
    stock = randomize(ViTMAEForPreTraining(config))
    stock.save_pretrained(tmp_path)
    encoder, decoder = build_pair(config, "audio")
    report = load_pretrained_tower(encoder, decoder, str(tmp_path))
    assert report.new == [] and report.unused == {} and report.converted == {}

    generator = torch.Generator().manual_seed(2)
    pixels, noise = torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 16, generator=generator)
    with torch.no_grad():
        expected = stock(pixels, noise=noise)
        patch_mask = expected.mask.bool()
        visible = encoder(pixels, torch.ones(2, 16, dtype=torch.bool), torch.zeros(2, 16), positions(patch_mask))
        predictions = decoder(visible, positions(patch_mask))
        targets = encoder.patch_targets(pixels, positions(patch_mask))
        loss = (predictions - targets).square().mean()
    assert predictions.shape == (2, 12, 48)
    assert_close(predictions, expected.logits[patch_mask].view(2, 12, 48))
    assert_close(loss, expected.loss)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("use_mean_pooling", [False, True])
def test_video_matches_stock_video_mae(tmp_path, norm_pix_loss, use_mean_pooling):
    config = video_config(norm_pix_loss=norm_pix_loss, use_mean_pooling=use_mean_pooling)
    stock = randomize(VideoMAEForPreTraining(config))
    stock.save_pretrained(tmp_path)
    encoder, decoder = build_pair(config, "video")
    report = load_pretrained_tower(encoder, decoder, str(tmp_path))
    assert report.new == [] and report.unused == {} and report.converted == {}

    pixels = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    patch_mask = exact_mask(rows=2, patches=12, masked=9)
    with torch.no_grad():
        expected = stock(pixels, bool_masked_pos=patch_mask)
        visible = encoder(pixels, torch.arange(4.0).expand(2, 4), positions(patch_mask))
        predictions = decoder(visible, positions(patch_mask))
        loss = (predictions - encoder.patch_targets(pixels, positions(patch_mask))).square().mean()
        all_tokens = encoder(pixels, torch.arange(4.0).expand(2, 4)).tokens
        expected_tokens = stock.videomae(pixels).last_hidden_state
    assert_close(predictions, expected.logits)
    assert_close(loss, expected.loss)
    assert_close(all_tokens, expected_tokens)


def test_video_normalises_uint8_pixels_like_the_processor():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    encoder = ENCODERS["video", "videomae"](video_config(), image_mean=mean, image_std=std).eval()
    pixels = torch.randint(0, 256, (2, 4, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    as_float = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    seconds, masked = torch.arange(4.0).expand(2, 4), positions(exact_mask(2, 12, 6))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels, seconds).tokens, encoder(as_float, seconds).tokens)
    plain = ENCODERS["video", "videomae"](video_config(norm_pix_loss=False), image_mean=mean, image_std=std)
    targets = plain.patch_targets(pixels, masked)
    torch.testing.assert_close(targets, plain.patch_targets(as_float, masked))


def test_video_token_times_are_means_of_their_frames():
    encoder = ENCODERS["video", "videomae"](video_config()).eval()
    pixels = torch.zeros(1, 4, 3, 8, 12, dtype=torch.uint8)
    masked = torch.tensor([[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        output = encoder(pixels, torch.tensor([[0.0, 1.0, 4.0, 8.0]]))
        visible = encoder(pixels, torch.tensor([[0.0, 1.0, 4.0, 8.0]]), masked)
    assert output.seconds.tolist() == [[0.5] * 6 + [6.0] * 6]
    assert visible.seconds.tolist() == [[0.5, 6.0]]
    assert output.mask.all() and output.mask.shape == (1, 12)


def test_audio_tokens_have_the_mask_and_times_of_their_windows():
    encoder = ENCODERS["audio", "vit_mae"](audio_config()).eval()  # windows of 8 bins by 20 frames: 2 x 5 patches
    values = torch.randn(2, 1, 8, 40, generator=torch.Generator().manual_seed(0))
    frames = torch.arange(40).expand(2, 40)
    attention_mask = frames < torch.tensor([[40], [29]])
    with torch.no_grad():
        both = encoder(values, attention_mask, frames * 0.5)
        second = encoder(values[:, :, :, 20:], attention_mask[:, 20:], frames[:, 20:] * 0.5)
    assert both.tokens.shape == (2, 20, 16) and both.class_tokens.shape == (2, 2, 16)
    assert_close(both.tokens[:, 10:], second.tokens)
    columns = [0.75, 2.75, 4.75, 6.75, 8.75]
    assert both.seconds[0].tolist() == columns * 2 + [10 + seconds for seconds in columns] * 2
    # frame 28 is the last real one: the third patch of the second window holds it and three padding frames
    assert both.mask[0].all()
    assert both.mask[1].tolist() == [True] * 10 + [True, True, True, False, False] * 2
    assert encoder.token_mask(attention_mask).equal(both.mask)


def test_audio_visible_tokens_follow_the_mask_of_each_window():
    config = audio_config()
    encoder, decoder = build_pair(config, "audio")
    values, frames = torch.randn(2, 1, 8, 40), torch.arange(40.0).expand(2, 40)
    patch_mask = torch.cat([exact_mask(2, 10, 3), exact_mask(2, 10, 3).flip(1)], dim=1)
    attention_mask = frames < 29
    with torch.no_grad():
        full = encoder(values, attention_mask, frames)
        visible = encoder(values, attention_mask, frames, positions(patch_mask))
        predictions = decoder(visible, positions(patch_mask))
    assert visible.tokens.shape == (2, 14, 16) and predictions.shape == (2, 6, 16)
    assert visible.seconds.equal(full.seconds[~patch_mask].view(2, 14))
    assert visible.mask.equal(full.mask[~patch_mask].view(2, 14))
    masked_only = torch.where(patch_mask.view(2, 2, 2, 5).permute(0, 2, 1, 3).reshape(2, 1, 2, 10), 1.0, 0.0)
    masked_only = masked_only.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():  # masked values do not reach the encoder
        changed = encoder(values + masked_only, attention_mask, frames, positions(patch_mask))
    assert changed.tokens.equal(visible.tokens)
    targets = encoder.patch_targets(torch.arange(320.0).view(1, 1, 8, 40), torch.tensor([[6, 16]]))
    assert targets[0, 0].tolist() == [160 + 4 + 40 * row + column for row in range(4) for column in range(4)]
    assert targets[0, 1].tolist() == [180 + 4 + 40 * row + column for row in range(4) for column in range(4)]


def test_sinusoidal_grid_encodes_columns_first():
    table = sinusoidal_grid(2, 3, 8)
    assert table.shape == (7, 8) and table[0].tolist() == [0.0] * 8
    last = torch.tensor([2.0, 0.02])  # row 1, column 2, frequencies 1 and 1 / 100
    expected = torch.cat([last.sin(), last.cos(), (last / 2).sin(), (last / 2).cos()])
    torch.testing.assert_close(table[-1], expected)


def test_sinusoidal_sequence_equals_the_table_of_stock_video_mae():
    stock = VideoMAEForPreTraining(video_config())
    torch.testing.assert_close(sinusoidal_sequence(12, 16)[None], stock.videomae.embeddings.position_embeddings)
    torch.testing.assert_close(sinusoidal_sequence(12, 12)[None], stock.position_embeddings)


def test_interpolation_is_linear_over_time_and_bicubic_over_space():
    ramp = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 1).reshape(24, 1)
    halved = interpolate_grid(ramp, (4, 2, 3), (2, 2, 3))
    assert halved.flatten().tolist() == [0.5] * 6 + [2.5] * 6
    columns = torch.arange(8.0).expand(4, 8).reshape(32, 1)  # bicubic: within 0.05 of a ramp inside
    doubled = interpolate_grid(columns, (1, 4, 8), (1, 4, 16)).view(4, 16)
    torch.testing.assert_close(doubled[:, 4:12], (torch.arange(4.0, 12.0) / 2 - 0.25).expand(4, 8), atol=0.05, rtol=0)


def test_visible_patches_are_the_unmasked_ones_in_order():
    masked = torch.tensor([[0, 3, 4], [1, 2, 5]])
    assert visible_patches(masked, 6).tolist() == [[1, 2, 5], [0, 3, 4]]


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (256, 64), (32, 128), (4, 9), (-1, 512), (0, 0)])
def test_relative_positions_are_those_of_stock_deberta(buckets, longest):
    for length in (1, 2, 33, 700):
        states = torch.zeros(1, length, 1)
        expected = build_relative_position(states, states, bucket_size=buckets, max_position=longest)
        assert torch.equal(relative_positions(length, buckets, longest), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ENCODERS["audio", "vit_mae"](audio_config(image_size=[8, 18])), "8 mel bins by 18 frames.*multiples"),
        (
            lambda: ENCODERS["video", "videomae"](video_config(num_frames=5)),
            "5 frames in groups of 2.*for example to 4",
        ),
        (lambda: ENCODERS["video", "videomae"](video_config(image_size=[8, 10])), "8 by 10 pixels in patches of 4"),
        (lambda: ENCODERS["video", "videomae"](video_config(num_channels=1)), "num_channels is 1. Set it to 3"),
        (
            lambda: ENCODERS["audio", "vit_mae"](audio_config()).check_inputs(8, 16),
            "8 mel bins by 16 .*takes 8 by 20.*Set",
        ),
        (
            lambda: ENCODERS["video", "videomae"](video_config()).check_inputs(8, 8, 12),
            "8 frames of 8 by 12.*takes 4 frames",
        ),
        (lambda: ENCODERS["text", "bert"](text_config("bert")).check_inputs(64), "`max_seq_length` is 64.*32 or less"),
        (lambda: get_encoder_class("xlnet", "text"), "'bert', .*'deberta-v2'.*models/text/.*encoders.py"),
        (lambda: get_encoder_class("bert", "video"), "no video encoder for model_type 'bert'; known are 'clip"),
        (lambda: load_tower_config(str(CONFIGS / "no_such.json"), "audio"), "audio config from .*no_such.json"),
        (lambda: load_tower_config(str(CONFIGS / "text/bert_config_tiny.json"), "audio"), "'bert'; .*'vit_mae'"),
        (
            lambda: load_config(str(CONFIGS / "text/bert_config_tiny.json"), ["vit"], "fusion"),
            "'bert'; allowed .*'vit'",
        ),
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build()


def test_config_without_a_type_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match="fusion config .* has no model_type. Add the name"):
        load_config(str(path), ["vit", "bert"], "fusion")


def test_forward_refuses_inputs_of_other_sizes():
    audio, video = ENCODERS["audio", "vit_mae"](audio_config()), ENCODERS["video", "videomae"](video_config())
    with pytest.raises(ValueError, match=r"shape \(1, 1, 8, 30\).*multiple of 20"):
        audio(torch.zeros(1, 1, 8, 30), torch.ones(1, 30, dtype=torch.bool), torch.zeros(1, 30))
    with pytest.raises(ValueError, match="6 frames of 8 by 12 pixels, but the video tower takes 4"):
        video(torch.zeros(1, 6, 3, 8, 12), torch.zeros(1, 6))


def test_relative_positions_have_no_length_limit():
    ENCODERS["text", "deberta-v2"](text_config("deberta-v2", **NEWER_DEBERTA)).check_inputs(64)


class CompositeConfig(PreTrainedConfig):
    model_type = "encoder_test_composite"
    sub_configs = {"text_config": AutoConfig, "audio_config": AutoConfig, "video_config": AutoConfig}
    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    video_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        for key in self.sub_configs:
            if isinstance(getattr(self, key), dict):
                setattr(self, key, AutoConfig.for_model(**getattr(self, key)))
        super().__post_init__(**kwargs)


class CompositeModel(PreTrainedModel):
    config_class = CompositeConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: CompositeConfig):
        super().__init__(config)
        for modality in ("text", "audio", "video"):
            tower_config = getattr(config, f"{modality}_config")
            encoder_class = get_encoder_class(tower_config.model_type, modality)
            setattr(self, f"{modality}_encoder", encoder_class(tower_config))
            setattr(self, f"{modality}_decoder", encoder_class.decoder_class(tower_config))
        self.post_init()

    def forward(self) -> list[torch.Tensor]:
        """Return tokens and predictions of all towers for one fixed input."""
        input_ids, ones = torch.tensor([[2, 5, 3]]), torch.ones(1, 20, dtype=torch.bool)
        text = self.text_encoder(input_ids, torch.ones_like(input_ids))
        audio_masked, video_masked = torch.arange(6)[None], torch.arange(9)[None]
        values = torch.linspace(-1, 1, 160).view(1, 1, 8, 20)
        audio = self.audio_encoder(values, ones, torch.zeros(1, 20), audio_masked)
        pixels = (torch.arange(4 * 3 * 96) % 256).to(torch.uint8).view(1, 4, 3, 8, 12)
        video = self.video_encoder(pixels, torch.zeros(1, 4), video_masked)
        return [
            self.text_decoder(text.tokens, self.text_encoder.word_embeddings),
            self.audio_decoder(audio, audio_masked),
            self.video_decoder(video, video_masked),
        ]


def composite_config(text: PreTrainedConfig) -> CompositeConfig:
    return CompositeConfig(
        text_config=text.to_dict(), audio_config=audio_config().to_dict(), video_config=video_config().to_dict()
    )


@pytest.mark.parametrize("text", ["bert", "deberta-v2"])
def test_composite_saves_and_loads_identically(tmp_path, text):
    torch.manual_seed(0)
    model = CompositeModel(composite_config(text_config(text))).eval()
    with torch.no_grad():  # a table as a conversion leaves it: not what the config alone would give
        model.video_encoder.embeddings.position_embeddings.mul_(0.5)
        model.audio_decoder.decoder_pos_embed.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded, info = CompositeModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    loaded.eval()
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, loaded_state[name]), name
        assert tensor.isfinite().all(), name
    for output, expected in zip(loaded(), model(), strict=True):
        assert torch.equal(output, expected) and output.isfinite().all()


def test_weights_missing_from_a_checkpoint_are_initialised(tmp_path):
    """`from_pretrained` builds on the meta device: tensors that a checkpoint lacks must be initialised."""
    torch.manual_seed(0)
    model = CompositeModel(composite_config(text_config("deberta-v2", **NEWER_DEBERTA)))
    kept = {name: tensor for name, tensor in model.state_dict().items() if "_decoder." not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded, info = CompositeModel.from_pretrained(tmp_path, output_loading_info=True)
    assert "audio_decoder.mask_token" in info["missing_keys"] and "text_decoder.bias" in info["missing_keys"]
    fresh = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.isfinite().all(), name
        is_table = name in ("audio_decoder.decoder_pos_embed", "video_decoder.position_embeddings")
        if name in kept or is_table or name.endswith("bias"):
            assert torch.equal(tensor, fresh[name]), name
        else:
            assert tensor.std() < 1.1 and tensor.abs().sum() > 0, name


def test_initial_values_follow_the_rules_of_each_tower():
    torch.manual_seed(0)
    model = CompositeModel(composite_config(text_config("bert", hidden_size=64, intermediate_size=256)))
    assert 0.018 < model.text_encoder.encoder.layer[0].intermediate.dense.weight.std() < 0.022
    assert model.text_encoder.embeddings.word_embeddings.weight[0].abs().sum() == 0  # the padding token
    kernel = model.audio_encoder.embeddings.patch_embeddings.projection.weight  # (16, 1, 4, 4)
    bound = (6 / (16 + 16)) ** 0.5  # Xavier over flattened patches
    assert 0.9 * bound < kernel.abs().max() <= bound
    assert model.audio_encoder.embeddings.cls_token.abs().sum() > 0
    assert torch.equal(model.audio_encoder.embeddings.position_embeddings[0], sinusoidal_grid(2, 5, 16))
    assert torch.equal(model.audio_decoder.decoder_pos_embed[0], sinusoidal_grid(2, 5, 12))
    assert torch.equal(model.video_encoder.embeddings.position_embeddings[0], sinusoidal_sequence(12, 16))
    assert model.video_decoder.mask_token.abs().sum() > 0
    assert all("position" not in name or "text" in name for name, _ in model.named_parameters())


def test_attention_is_chosen_per_tower_and_checkpointing_reaches_all_layers():
    model = CompositeModel(composite_config(text_config("deberta-v2", **NEWER_DEBERTA)))
    assert model.text_encoder.config._attn_implementation == "eager"
    assert model.audio_encoder.config._attn_implementation == "sdpa"
    assert model.video_decoder.decoder_layers[0].attention.attention.config._attn_implementation == "sdpa"
    assert "ViTMAELayer" in model._no_split_modules and "VideoMAELayer" in model._no_split_modules
    eager = CompositeModel._from_config(composite_config(text_config("bert")), attn_implementation="eager")
    assert eager.audio_encoder.config._attn_implementation == "eager"

    torch.manual_seed(0)
    model.train()
    plain = sum(output.square().mean() for output in model())
    plain.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    model.activation_checkpointing_enable()
    calls = []
    layers = (model.text_encoder.encoder.layer, model.audio_encoder.layers, model.video_encoder.encoder.layer)
    for stack in layers:
        stack[0].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    sum(output.square().mean() for output in model()).backward()
    assert len(calls) == 6  # each once forward and once backward
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_shipped_configs_build_and_run(size):
    torch.manual_seed(0)
    for path in ("text/bert", "text/debertv2"):
        config = load_tower_config(str(CONFIGS / f"{path}_config_{size}.json"), "text")
        encoder, decoder = build_pair(config, "text")
        encoder.check_inputs(512)
        output = encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64))
        assert decoder(output.tokens, encoder.word_embeddings).shape == (1, 3, config.vocab_size)
    audio, audio_decoder = build_pair(
        load_tower_config(str(CONFIGS / f"audio/mae_config_{size}.json"), "audio"), "audio"
    )
    audio.check_inputs(128, 1024)
    masked = positions(exact_mask(1, 512, 400))
    visible = audio(torch.zeros(1, 1, 128, 1024), torch.ones(1, 1024, dtype=torch.bool), torch.zeros(1, 1024), masked)
    assert audio_decoder(visible, masked).shape == (1, 400, 256)
    config = load_tower_config(str(CONFIGS / f"video/videomae_config_{size}.json"), "video")
    video, video_decoder = build_pair(config, "video")
    pixels = torch.zeros(1, config.num_frames, 3, config.image_size, config.image_size, dtype=torch.uint8)
    masked = positions(exact_mask(1, video.num_patches, video.num_patches * 3 // 4))
    visible = video(pixels, torch.zeros(1, config.num_frames), masked)
    assert isinstance(visible, EncoderOutput) and visible.tokens.shape[2] == video.hidden_size
    assert video_decoder(visible, masked).shape == (1, video.num_patches * 3 // 4, 1536)
    for name, model_type in (("vit", "vit"), ("bert", "bert")):
        fusion = load_config(str(CONFIGS / f"crossformer/{name}_config_{size}.json"), ["vit", "bert"], "fusion")
        assert fusion.model_type == model_type and fusion.hidden_size == config.hidden_size


def test_features_without_any_clip_have_a_time_step():
    """A batch in which no row has a video is one token long, whatever the tower."""
    tower = get_encoder_class("timesformer", "video")(
        TimesformerConfig(**SIZES, image_size=32, patch_size=16, num_frames=3),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    assert tower.time_steps(1).tolist() == [0]
    assert tower.time_steps(12).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "clip"])
@torch.no_grad()
def test_masks_hide_the_same_tokens_as_the_stock_masks(kind, attention):
    if kind == "bert":
        config, stock = text_config("bert", attn_implementation=attention), BertModel
    else:
        config = CLIPTextConfig(**SIZES, vocab_size=40, eos_token_id=7, attn_implementation=attention)
        stock = CLIPTextModel
    encoder = ENCODERS["text", config.model_type](config).eval()
    input_ids = torch.randint(8, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    for lengths in ([6, 6], [6, 4]):
        mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
        expected = stock.forward(encoder, input_ids, attention_mask=mask).last_hidden_state
        assert torch.equal(encoder(input_ids, mask).tokens, expected)
