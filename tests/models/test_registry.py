"""Requirements of every encoder in the registry; a new adapter is tested once it is registered.

A tower is built small: common sizes of its config come from `SMALL`, others from `CONFIGS`. Its output is compared
with `pretrained_class` on the same inputs unless `OWN_TESTS` names the test that does so.
"""

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, BertConfig, PreTrainedConfig

from simple_multimodal.models.base import Encoder, TowerModel
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.encoders import ENCODERS
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.models.lora import add_lora, find_targets
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.training.learning_rates import number_layers, tower_layers

from .tiny_towers import tiny_config

SMALL = {
    "hidden_size": 16,
    "d_model": 16,
    "dim": 16,
    "intermediate_size": 24,
    "hidden_dim": 24,
    "encoder_ffn_dim": 24,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 2,
    "n_heads": 2,
    "encoder_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "projection_dim": 12,
    "projection_size": 16,
    "image_size": 16,
    "crop_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "frames_per_clip": 4,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
}
"""Sizes that have the same name in the configs of different towers."""

TIMM = {"architecture": "test_efficientnet", "num_labels": 3}
CONFIGS = {
    "clap_text_model": lambda: tiny_config("clap").text_config,
    "clap_audio_model": lambda: tiny_config("clap").audio_config,
    "pe_audio_encoder": lambda: tiny_config("pe_audio").audio_config,
    "pe_video_encoder": lambda: tiny_config("pe_audio_video").audio_video_config.video_config,
    "clip_text_model": lambda: tiny_config("clip").text_config,
    "siglip_text_model": lambda: tiny_config("siglip").text_config,
    "siglip2_text_model": lambda: tiny_config("siglip2").text_config,
    "siglip2_vision_model": lambda: tiny_config("siglip2").vision_config,
    "vit_mae": lambda: small_config("vit_mae", image_size=[8, 20], patch_size=4, num_channels=1, **DECODER),
    "videomae": lambda: small_config("videomae", use_mean_pooling=False, **DECODER),
    "audio-spectrogram-transformer": lambda: small_config(
        "audio-spectrogram-transformer", patch_size=16, num_mel_bins=16, max_length=64
    ),
    "whisper": lambda: small_config("whisper", num_mel_bins=8, max_source_positions=50, decoder_layers=1),
    "dinov3_convnext": lambda: small_config("dinov3_convnext", hidden_sizes=[8, 16], depths=[1, 2]),
    "timm_wrapper": lambda: CONFIG_MAPPING["timm_wrapper"](**TIMM),
    "dinov3_vit": lambda: small_config("dinov3_vit", num_register_tokens=2),
    "modernbert": lambda: small_config("modernbert", global_attn_every_n_layers=2, local_attention=4, **IDS),
}
"""Configs of towers for which the common sizes are not enough."""

DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
}

IDS = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}

OWN_TESTS = {
    **dict.fromkeys(("clip_text_model", "siglip_text_model", "siglip2_text_model", "clap_text_model"), "test_towers"),
    **dict.fromkeys(("siglip2_vision_model", "clap_audio_model", "whisper", "timesformer"), "test_towers"),
    **dict.fromkeys(("audio-spectrogram-transformer", "pe_audio_encoder", "pe_video_encoder"), "test_towers"),
    **dict.fromkeys(("vit_mae", "videomae"), "test_encoders"),
    "pose": "test_pose",
}
"""Towers whose tokens are not the stock model's `last_hidden_state` of the same inputs, one by one."""

WINDOW = 64
"""Frames of a window of audio, unless the config says otherwise."""


def small_config(model_type: str, **changes) -> PreTrainedConfig:
    """Return a config of small sizes without dropout."""
    config_class = CONFIG_MAPPING[model_type]
    values = config_class().to_dict()
    small = {name: value for name, value in SMALL.items() if name in values}
    still = {name: 0.0 for name, value in values.items() if "dropout" in name and isinstance(value, float)}
    return config_class(**(small | still | changes))


def encoder_keys() -> list[tuple[str, str]]:
    return sorted({(encoder.modality, encoder.model_type) for encoder in ENCODERS.values()})


@pytest.fixture(params=encoder_keys(), ids="-".join)
def key(request) -> tuple[str, str]:
    return request.param


def fitted_config(modality: str, model_type: str) -> PreTrainedConfig:
    encoder_class = ENCODERS[modality, model_type]
    config = CONFIGS[model_type]() if model_type in CONFIGS else small_config(model_type)
    if modality == "text":
        pad, end = config.to_dict().get("pad_token_id"), config.to_dict().get("eos_token_id")
        return encoder_class.fit_config(config, 40, pad, 39 if model_type == "clip_text_model" else end)
    if modality == "audio":
        return encoder_class.fit_config(config, *audio_window(encoder_class, config))
    if modality == "pose":
        return encoder_class.fit_config(config, 6)
    return encoder_class.fit_config(config, 4, 16, 16)


def audio_window(encoder_class: type[Encoder], config: PreTrainedConfig) -> tuple[int, int]:
    """Return bins and frames of a window that the tower takes."""
    own = {"vit_mae": (8, 20), "clap_audio_model": (8, 101), "whisper": (8, 100), "pe_audio_encoder": (40, 10)}
    if config.model_type in own:
        return own[config.model_type]
    return encoder_class.processor_values(config)["num_mel_bins"], WINDOW


def build_model(modality: str, model_type: str, **changes) -> MultimodalForRetrieval:
    """Build a model with this tower and a small text tower (a video tower for a text tower), with random weights."""
    torch.manual_seed(0)
    towers = {f"{modality}_config": fitted_config(modality, model_type)}
    if modality != "text":
        towers["text_config"] = BertConfig(**{n: v for n, v in SMALL.items() if n in BertConfig().to_dict()})
    else:
        towers["video_config"] = fitted_config("video", "clip_vision_model")
    values = {"crossformer_config": small_config("vit"), "contrastive_dim": 8, "fusion_form": "merge"}
    model = MultimodalForRetrieval(MultimodalConfig(**towers, **(values | changes)))
    randomize(model.towers[modality])
    return model


def randomize(tower: torch.nn.Module) -> None:
    """Give every part of a tower an effect: weights start small, biases and gates at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "dac_encoder" not in name:  # a codec with random weights of that size explodes
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in tower.named_buffers():
            if "running_" in name:
                buffer.uniform_(0.5, 1.5, generator=generator)


def tower_inputs(tower: Encoder) -> list[torch.Tensor]:
    """Return three rows for a tower; if rows have lengths, the second is shorter and the third shorter still."""
    generator, config = torch.Generator().manual_seed(2), tower.config
    if tower.modality == "text":
        length = config.max_position_embeddings if tower.padding == "max_length" else 9
        ids = torch.randint(5, 38, (3, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([[length], [6], [3]])
        ids[torch.arange(3), mask.sum(dim=1) - 1] = 39  # the token that ends a text
        pad = config.to_dict().get("pad_token_id")
        return [ids.masked_fill(~mask, 0 if pad is None else pad), mask.long()]
    if tower.modality == "audio":
        bins, frames = audio_window(type(tower), config)
        values = torch.randn(3, 1, bins, 2 * frames, generator=generator)
        mask = torch.arange(2 * frames) < torch.tensor([[2 * frames], [frames + frames // 2], [frames // 2]])
        seconds = torch.arange(2 * frames).expand(3, -1) * 0.01
        return [values * mask[:, None, None], mask, seconds * mask]
    if tower.modality == "pose":
        mask = torch.arange(9) < torch.tensor([[9], [6], [3]])
        return [torch.randn(3, 9, 6, generator=generator) * mask[..., None], mask, torch.arange(9) * 0.04 * mask]
    pixels = torch.randn(3, 4, 3, 16, 16, generator=generator)
    return [pixels, torch.arange(4.0).expand(3, -1) + torch.tensor([[0.0], [0.5], [2.0]])]


def stock_tokens(stock: torch.nn.Module, tower: Encoder, inputs: list[torch.Tensor], row: int) -> torch.Tensor:
    """Return the stock model's tokens `(num_tokens, hidden_size)` of one row alone, without its padding."""
    if tower.modality == "text":
        ids = inputs[0][row, inputs[1][row].bool()][None]
        return stock.base_model(ids).last_hidden_state[0]  # without the head of its masked objective
    if tower.modality == "audio":  # waveforms, window by window
        bins, frames = audio_window(type(tower), tower.config)
        windows = inputs[0][row, 0].T.unflatten(0, (-1, frames)).flatten(1)
        lengths = inputs[1][row].view(-1, frames).sum(dim=1) * bins
        parts = [window[:n] for window, n in zip(windows, lengths.tolist(), strict=True) if n]
        return torch.cat([stock(part[None]).last_hidden_state[0] for part in parts])
    if stock.main_input_name == "pixel_values_videos":
        return stock(inputs[0][row : row + 1]).last_hidden_state[0]
    states = stock(inputs[0][row]).last_hidden_state  # a frame is an image
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    return states.flatten(0, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compare relative to the largest value: kernels sum in another order for other shapes, off by a few bits."""
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


def assert_row(actual: torch.Tensor, expected: torch.Tensor, row: int) -> None:
    """Compare the tokens of a row in a batch with those of the row alone. Call it for row 0, the longest, first."""
    assert actual.shape == expected.shape, f"row {row}: {len(actual)} tokens in the batch, {len(expected)} alone"
    for token in range(len(expected)):
        difference = float((actual[token] - expected[token]).abs().max() / expected.abs().max())
        assert difference <= 1e-5, f"row {row}, token {token} differs by {difference:.1e} of the largest value: " + (
            "padding or another row reaches it, see docs/adding_encoders.md"
            if row
            else "not because of padding, which row 0 does not have"
        )


@torch.no_grad()
def test_tokens_equal_those_of_the_stock_model_for_each_row_alone(key, tmp_path):
    """Load all weights of a saved checkpoint; the rows of the batch are padded, those of the stock model are not."""
    modality, model_type = key
    if model_type in OWN_TESTS:
        pytest.skip(f"compared in {OWN_TESTS[model_type]}.py")
    encoder_class, config = ENCODERS[key], fitted_config(*key)
    torch.manual_seed(0)
    stock = encoder_class.pretrained_class(copy.deepcopy(config)).eval()
    randomize(stock)
    stock.save_pretrained(tmp_path)
    assert load_tower_config(str(tmp_path), modality).model_type == model_type
    tower = encoder_class(config).eval()
    report = load_pretrained_tower(tower, None, str(tmp_path))
    assert report.new == [], "parameters of the tower that it did not read: see other_names and pretrained_names"
    assert report.converted == {}
    heads = ("lm_head", "cls.", "vocab_", "classifier", "pooler", "head.")
    unused = [name for name in report.unused if not name.startswith(heads)]
    assert unused == [], "tensors of the checkpoint that find no place: see pretrained_names and other_names"
    inputs = tower_inputs(tower)
    output = tower(*inputs)
    for row in range(3):
        assert_row(output.tokens[row, output.mask[row]], stock_tokens(stock, tower, inputs, row), row)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(key):
    """Nor on how far the batch is padded, nor on empty windows; every value is finite."""
    tower = build_model(*key).towers[key[0]].eval()
    inputs = tower_inputs(tower)
    output = tower(*inputs)
    assert output.tokens.shape == (3, output.mask.shape[1], tower.hidden_size) and output.tokens.isfinite().all()
    for row in range(3):
        length = inputs[1].shape[1]
        if tower.modality == "text" and tower.padding == "longest":
            length = int(inputs[1][row].sum())
        if tower.modality == "audio":
            frames = length // 2
            length = frames * -(-int(inputs[1][row].sum()) // frames)
        alone = [value[row : row + 1] for value in inputs]
        if tower.modality == "text":
            alone = [value[:, :length] for value in alone]
        elif tower.modality == "audio":
            alone = [value[..., :length] for value in alone]
        elif tower.modality == "pose":
            alone = [value[:, : int(inputs[1][row].sum())] for value in alone]
        expected = tower(*alone)
        assert int(expected.mask.sum()) == int(output.mask[row].sum())
        assert_row(output.tokens[row, output.mask[row]], expected.tokens[0, expected.mask[0]], row)
        if output.embedding is not None:
            assert_close(output.embedding[row], expected.embedding[0])


@pytest.mark.parametrize(("row", "cause"), [(0, "not because of padding"), (2, "padding or another row reaches it")])
def test_a_wrong_token_is_named_with_its_row(row, cause):
    expected = torch.ones(4, 8)
    assert_row(expected.clone(), expected, row)
    for wrong in (1.5, float("nan")):
        actual = expected.clone()
        actual[3, 5] = wrong
        with pytest.raises(AssertionError, match=f"row {row}, token 3 differs by .*{cause}"):
            assert_row(actual, expected, row)


@torch.no_grad()
def test_tokens_of_one_step_have_the_same_time(key):
    """Later steps have later times; tokens of a text have none."""
    modality, _ = key
    tower = build_model(*key).towers[modality].eval()
    inputs = tower_inputs(tower)
    output = tower(*inputs)
    if modality == "text":
        assert output.seconds is None and output.mask.equal(inputs[1].bool())
        return
    if modality == "audio":
        assert tower.window_frames == audio_window(type(tower), tower.config)[1]
    num_tokens = output.tokens.shape[1]
    assert output.seconds.shape == output.mask.shape == (3, num_tokens) and output.mask.dtype == torch.bool
    steps = tower.time_steps(num_tokens) if output.num_steps is None else torch.arange(num_tokens) * output.num_steps
    steps = steps if output.num_steps is None else steps // num_tokens
    if tower.tokens_are_all:  # features do not hold the number of steps
        assert steps.equal(tower.time_steps(num_tokens))
    order = steps.argsort(stable=True)
    seconds, steps = output.seconds[0, order], steps[order]
    assert bool((seconds.diff() >= 0).all()) and bool((seconds.diff()[steps.diff() == 0] == 0).all())


@torch.no_grad()
def test_a_model_runs_an_audio_tower_on_windows_that_hold_audio(key):
    modality, _ = key
    if modality != "audio":
        pytest.skip("for audio towers only")
    model = build_model(*key).eval()
    tower = model.towers["audio"]
    values, mask, seconds = tower_inputs(tower)
    assert tower.window_frames == values.shape[-1] // 2
    held = mask.view(3, 2, -1).any(dim=2)
    batch = {"audio_values": values, "audio_attention_mask": mask, "audio_seconds": seconds}
    batch |= {"audio_mask": torch.ones(3, dtype=torch.bool), "audio_windows": held.nonzero()}
    output, expected = model.multimodal.encode("audio", batch), tower(values, mask, seconds)
    assert output.mask.equal(expected.mask) and int(held.sum()) == 5
    assert_close(output.tokens[output.mask], expected.tokens[expected.mask])
    if output.embedding is not None:
        assert_close(output.embedding, expected.embedding)


@torch.no_grad()
def weights_of(model):
    return list(model.state_dict().values())


def test_a_saved_tower_loads_unchanged(key, tmp_path):
    model = build_model(*key).eval()
    inputs = tower_inputs(model.towers[key[0]])
    model.save_pretrained(tmp_path)
    again, info = MultimodalForRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    output, expected = again.eval().towers[key[0]](*inputs), model.towers[key[0]](*inputs)
    assert_close(output.tokens, expected.tokens)  # weights at other addresses; some kernels round differently there
    assert output.mask.equal(expected.mask) and all(map(torch.equal, *map(weights_of, (again, model))))
    frozen, own = (
        {name for name, parameter in m.named_parameters() if not parameter.requires_grad} for m in (again, model)
    )
    assert frozen == own


def backward(tower: Encoder) -> dict[str, torch.Tensor]:
    """Return gradients of all outputs of a tower that a model uses."""
    tower.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    output = tower(*tower_inputs(tower))
    loss = (output.tokens * torch.randn(output.tokens.shape) * output.mask[..., None]).sum()
    if output.embedding is not None:
        loss = loss + (output.embedding * torch.randn(output.embedding.shape)).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


def test_every_parameter_is_trained_or_frozen_for_good(key):
    """Several processes would wait for the gradient of a parameter that gets none."""
    model = build_model(*key).train()
    tower = model.towers[key[0]]
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert trained
    without = sorted(trained - set(backward(tower)))
    assert without == [], "parameters without a gradient: name them in `untrained`, or build without the part"
    model.freeze([key[0]])
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_recomputed_activations_give_the_same_gradients(key):
    model = build_model(*key).train()
    tower = model.towers[key[0]]
    buffers = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    expected = backward(tower)
    model.checkpoint_activations([key[0]])
    tower.load_state_dict(buffers, strict=False)  # statistics of batch normalisation
    for name, gradient in backward(tower).items():
        assert_close(gradient, expected[name])


def test_each_parameter_belongs_to_one_layer(key):
    """It is in one layer, below all, or above all; the layers are in order."""
    tower = build_model(*key).towers[key[0]]
    layers, numbers = tower_layers(tower), number_layers(tower)
    assert len(layers) >= 2 and all(layers)
    assert set(numbers) == set(tower.parameters()) and len(numbers) == len(list(tower.parameters()))
    for number, layer in enumerate(layers, start=1):
        assert {numbers[parameter] for parameter in layer} == {number}
    assert set(numbers.values()) <= set(range(len(layers) + 2))


def test_adapters_affect_the_output_of_the_tower(key):
    """LoRA goes into the projections of attention, or into all linear layers if these have other names."""
    pytest.importorskip("peft")
    model: TowerModel = build_model(*key).train()
    linear = [type(module) for module in model.towers[key[0]].modules() if isinstance(module, torch.nn.Linear)]
    if not linear:
        with pytest.raises(ValueError, match="no attention projection of a known name"):
            find_targets(model, [key[0]])
        return
    try:
        find_targets(model, [key[0]])
        targets: list[str] = []
    except ValueError as error:
        assert "Name others in `lora_target_modules`; there are " in str(error)
        names = str(error).split("there are ")[1].removesuffix(".").split(", ")
        targets = sorted({name.rsplit(".", 1)[-1] for name in names})
    add_lora(model, rank=2, alpha=4, towers=[key[0]], target_modules=targets)
    tower = model.towers[key[0]]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    gradients = backward(tower)
    adapters = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
    assert adapters and all(".lora_" in name for name in adapters)
    assert [name for name in adapters if name not in gradients or not gradients[name].any()] == []


SMALL_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
SMALL_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}


@pytest.mark.parametrize(
    ("architecture", "settings", "num_tokens", "unused"),
    [
        ("test_resnet", {}, 1, set()),  # a feature map
        ("test_convnext", {}, 1, {"head.norm.weight", "head.norm.bias"}),  # its norm belongs to the head
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, 16, set()),  # a feature map with its channels last
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 24}, 5, set()),  # class token, patches
    ],
)
@torch.no_grad()
def test_timm_backbones_of_every_output_layout(architecture, settings, num_tokens, unused, tmp_path):
    encoder_class = ENCODERS["video", "timm_wrapper"]
    config = CONFIG_MAPPING["timm_wrapper"](architecture=architecture, num_labels=2, model_args=settings)
    size = 32
    config = encoder_class.fit_config(config, 3, size, size)
    tower = encoder_class(config).eval()
    names = {name.removeprefix("timm_model.") for name in tower.untrained}
    assert (config.tokens_per_frame, names) == (num_tokens, unused)
    pixels, seconds = torch.randn(2, 3, 3, size, size), torch.arange(3.0).expand(2, -1)
    output = tower(pixels, seconds)
    features = tower.timm_model.forward_features(pixels.flatten(0, 1))
    if features.ndim == 4 and architecture.startswith("swin"):
        features = features.permute(0, 3, 1, 2)
    if features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)
    assert torch.equal(output.tokens, features.reshape(2, 3 * num_tokens, -1))
    assert output.tokens.shape[2] == tower.hidden_size and output.seconds[0].equal(
        torch.arange(3.0).repeat_interleave(num_tokens)
    )
    assert len(tower.layer_parameters()) >= 2


def test_inputs_of_sizes_that_a_tower_does_not_take_are_refused():
    encoder_class = ENCODERS["video", "timm_wrapper"]
    config = CONFIG_MAPPING["timm_wrapper"](
        architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 1}
    )
    with pytest.raises(
        ValueError, match="frames of 16 by 16 pixels, which the video tower 'timm_wrapper'.*video_size"
    ):
        encoder_class.fit_config(config, 3, 16, 16)
    fitted = fitted_config("video", "timm_wrapper")
    with pytest.raises(ValueError, match="frames of 24 by 24 pixels, but the video tower takes 16 by 16"):
        encoder_class(fitted).check_inputs(4, 24, 24)
    with pytest.raises(ValueError, match="4 frames of 16 by 24 pixels.*squares of patches of 8.*groups of 2"):
        ENCODERS["video", "vjepa2"].fit_config(small_config("vjepa2"), 4, 16, 24)
    with pytest.raises(ValueError, match="takes waveforms in frames of 5 samples, at least 6 of them"):
        ENCODERS["audio", "hubert"].fit_config(small_config("hubert"), 5, 5)
    with pytest.raises(ValueError, match="'wav2vec2' has add_adapter"):
        ENCODERS["audio", "wav2vec2"].fit_config(small_config("wav2vec2", add_adapter=True), 5, 64)


def test_the_error_names_timm_if_it_is_not_installed(monkeypatch):
    config = CONFIG_MAPPING["timm_wrapper"](**TIMM)
    monkeypatch.setattr("simple_multimodal.models.video.timm.is_timm_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'simple-multimodal\[timm\]'"):
        ENCODERS["video", "timm_wrapper"].processor_values(config)


def test_images_are_scaled_as_a_timm_checkpoint_says():
    values = {"input_size": [3, 20, 20], "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    config = CONFIG_MAPPING["timm_wrapper"](**TIMM, pretrained_cfg=values | {"crop_pct": 0.8, "crop_mode": "center"})
    encoder_class = ENCODERS["video", "timm_wrapper"]
    expected = {"size": {"height": 20, "width": 20}, "short_side": 25, "resize_kernel": "antialias"}
    found = encoder_class.processor_values(config)
    assert found == found | expected | {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    config = CONFIG_MAPPING["timm_wrapper"](**TIMM, pretrained_cfg=values | {"crop_mode": "squash"})
    found = encoder_class.processor_values(config)
    assert found["resize_mode"] == "squash" and "short_side" not in found


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("stable", [False, True])
@torch.no_grad()
def test_waveform_tokens_equal_those_of_every_kind_of_wav2vec2(norm, stable):
    """Cover both normalisations of the convolutions, both orders of norm and layer, and every length of audio."""
    for model_type in ("wav2vec2", "hubert", "wavlm"):
        encoder_class = ENCODERS["audio", model_type]
        config = small_config(model_type, feat_extract_norm=norm, do_stable_layer_norm=stable)
        config = encoder_class.fit_config(config, 5, WINDOW)
        stock = encoder_class.pretrained_class(copy.deepcopy(config)).eval()
        randomize(stock)
        tower = encoder_class(config).eval()
        tower.load_state_dict(stock.state_dict())
        for length in (29, 30, 34, 49, 50, 319, 320):  # one token sees 30 samples, the next one 20 later
            waveform = torch.randn(1, length, generator=torch.Generator().manual_seed(length))
            whole = length // 5 * 5
            samples = torch.zeros(1, 5 * WINDOW)
            samples[:, :whole] = waveform[:, :whole]
            values = samples.view(1, 1, WINDOW, 5).transpose(2, 3)
            mask = torch.arange(WINDOW)[None] < whole // 5
            output = tower(values, mask, torch.arange(WINDOW)[None] * 5.0 + 2)
            if length < 30:
                assert not output.mask.any() and output.tokens.isfinite().all()
                continue
            assert_close(output.tokens[0, output.mask[0]], stock(waveform).last_hidden_state[0])
            assert output.seconds[0, :2].tolist() == [17, 37]  # the frames that contain the centre of each
