"""Published towers: their tokens and embeddings equal those of the stock models on the same inputs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    ASTForAudioClassification,
    AutoTokenizer,
    BertConfig,
    ClapAudioModelWithProjection,
    ClapTextModelWithProjection,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PeAudioEncoder,
    PeAudioFrameLevelModel,
    PeVideoConfig,
    PreTrainedModel,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    ViTConfig,
    WhisperModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from simple_multimodal.models.base import mean_direction
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.encoders import Encoder, get_encoder_class
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.models.patches import normalize_pixels
from simple_multimodal.models.times import time_embedding
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from tests.closeness import assert_close

from .tiny_towers import (
    STOCK_MODELS,
    randomize,
    stock_pe_av,
    tiny_config,
    tiny_tokenizer,
    write_checkpoint,
)

TEXTS = ["a cat purrs", "two dogs bark at a cat", "rain"]
IMAGES = ("clip", "siglip", "siglip2")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Write a checkpoint of each kind."""
    kinds = (*STOCK_MODELS, "pe_audio", "pe_audio_video", "ast", "whisper", "timesformer")
    return {kind: write_checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


def load(folder: str, modality: str, *size: int) -> Encoder:
    """Load an encoder with all weights of a checkpoint; `size` is the processor's output size."""
    config = load_tower_config(folder, modality)
    encoder_class = get_encoder_class(config.model_type, modality)
    encoder = encoder_class(encoder_class.fit_config(config, *size)).eval()
    report = load_pretrained_tower(encoder, None, folder)
    assert report.new == [] and not [n for n in report.unused if "classifier" not in n], report.summary()
    return encoder


def load_text(folder: str, kind: str) -> Encoder:
    tokenizer = tiny_tokenizer(kind)
    return load(folder, "text", len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)


def text_inputs(kind: str) -> dict[str, torch.Tensor]:
    padding = "max_length" if kind.startswith("siglip") else True
    settings = {"padding": padding, "truncation": True, "return_tensors": "pt", "return_token_type_ids": False}
    return dict(tiny_tokenizer(kind)(TEXTS, **settings))


def stock_images(model: PreTrainedModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and embeddings of images `(num_images, 3, height, width)` by a stock model with two towers."""
    if model.config.model_type == "siglip2":
        patches = torch.stack([convert_image_to_patches(image, 8) for image in pixels])
        shape = torch.tensor([[pixels.shape[2] // 8, pixels.shape[3] // 8]]).expand(len(pixels), -1)
        outputs = model.get_image_features(patches, torch.ones(patches.shape[:2]), shape)
    else:
        outputs = model.get_image_features(pixels, interpolate_pos_encoding=True)
    return outputs.last_hidden_state, outputs.pooler_output


@pytest.mark.parametrize("kind", STOCK_MODELS)
@torch.no_grad()
def test_text_outputs_equal_those_of_the_stock_model(folders, kind):
    encoder, inputs = load_text(folders[kind], kind), text_inputs(kind)
    stock = STOCK_MODELS[kind].from_pretrained(folders[kind]).eval()
    output = encoder(inputs["input_ids"], inputs["attention_mask"])
    if kind.startswith("siglip"):
        del inputs["attention_mask"]  # its tokenizers on the hub make none: it was trained with padding
    expected = stock.get_text_features(**inputs)
    mask = output.mask[..., None]
    assert_close(output.tokens * mask, expected.last_hidden_state * mask)
    # CLAP's method normalises.
    close = F.normalize(output.embedding, dim=-1), F.normalize(expected.pooler_output, dim=-1)
    assert_close(*close)
    assert output.embedding.shape[1] == encoder.embedding_size(encoder.config) and output.seconds is None


@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
@pytest.mark.parametrize("kind", IMAGES)
@torch.no_grad()
def test_image_outputs_equal_those_of_the_stock_model(folders, kind, size):
    encoder = load(folders[kind], "video", 3, *size)
    stock = STOCK_MODELS[kind].from_pretrained(folders[kind]).eval()
    pixels = torch.randn(2, 3, 3, *size, generator=torch.Generator().manual_seed(1))
    seconds = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.5, 1.5]])
    output = encoder(pixels, seconds)
    tokens, embeddings = stock_images(stock, pixels.flatten(0, 1))
    assert_close(output.tokens, tokens.reshape(2, -1, 24))
    frames = F.normalize(embeddings, dim=-1).view(2, 3, -1)
    assert_close(output.embedding, frames.mean(dim=1))
    per_frame = tokens.shape[1]
    assert output.seconds.equal(seconds.repeat_interleave(per_frame, dim=1)) and output.mask.all()
    assert output.num_steps == 3 and per_frame == (size[0] // 8) * (size[1] // 8) + (kind == "clip")
    one = encoder(pixels[:, :1], seconds[:, :1])  # any number of frames
    assert_close(one.embedding, frames[:, 0])


def clap_windows(num_windows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return decibels of two audio clips: one fills all windows, the other 70 frames of the first."""
    values = torch.randn(2, 1, 8, num_windows * 101, generator=torch.Generator().manual_seed(2)) * 20 - 40
    mask = torch.arange(num_windows * 101)[None] < torch.tensor([[num_windows * 101], [70]])
    window, frame = torch.arange(num_windows)[:, None], torch.arange(101)
    seconds = (window * 1.0 + frame * 0.01).flatten().expand(2, -1)
    return values, mask, seconds


@torch.no_grad()
def test_audio_outputs_equal_those_of_the_stock_clap(folders):
    encoder = load(folders["clap"], "audio", 8, 101)
    stock = STOCK_MODELS["clap"].from_pretrained(folders["clap"]).eval()
    values, mask, seconds = clap_windows(2)
    output = encoder(values, mask, seconds)
    windows = values.view(2, 1, 8, 2, 101).permute(0, 3, 1, 4, 2).flatten(0, 1)
    expected = stock.get_audio_features(windows)
    tokens = expected.last_hidden_state.flatten(2).transpose(1, 2)  # (windows, tokens, 16)
    assert_close(output.tokens, tokens.reshape(2, -1, 16))
    embeddings = expected.pooler_output.view(2, 2, -1)  # unit length
    assert_close(output.embedding[0], embeddings[0].mean(dim=0))
    assert_close(output.embedding[1], embeddings[1, 0])  # its one window
    assert encoder.token_grid == (1, 16) and tokens.shape[1] == 16
    assert encoder.time_steps(32).tolist() == list(range(32))
    torch.testing.assert_close(output.seconds[0, :16], (torch.arange(16) + 0.4375) / 16, atol=0.01, rtol=0)
    assert output.seconds[0, 16] == output.seconds[0, 0] + 1
    assert output.mask[0].all() and output.mask[1].tolist() == [True] * 12 + [False] * 20  # 70 of 101 frames: 11.1
    alone = encoder(values[1:, ..., :101], mask[1:, :101], seconds[1:, :101])
    assert_close(alone.embedding[0], output.embedding[1])


def untrained_of(encoder: Encoder, folder: Path) -> set[str]:
    """Return the untrained parts of an encoder in a new model, after checking that a saved one has the same."""
    values = {f"{encoder.modality}_config": encoder.config, "crossformer_config": ViTConfig(**SIZES)}
    new = MultimodalForRetrieval(MultimodalConfig(**values, fusion_form="merge"))
    new.save_pretrained(folder)
    saved, info = MultimodalForRetrieval.from_pretrained(folder, output_loading_info=True)
    frozen, again = (
        {name for name, weight in model.named_parameters() if not weight.requires_grad} for model in (new, saved)
    )
    assert frozen == again and not info["missing_keys"]
    return {".".join(name.split(f"{encoder.modality}_encoder.", 1)[1].split(".")[:2]) for name in frozen}


@torch.no_grad()
def test_a_clap_that_fuses_parts_takes_windows_as_short_audio(tmp_path):
    config = tiny_config("clap")
    config.audio_config.enable_fusion, config.audio_config.fusion_type = True, "aff_2d"
    stock = randomize(STOCK_MODELS["clap"](config))
    stock.save_pretrained(tmp_path)
    encoder = load(str(tmp_path), "audio", 8, 101)
    values, mask, seconds = clap_windows(1)
    four = values.transpose(2, 3).expand(-1, 4, -1, -1)  # as the stock extractor prepares short audio
    expected = stock.get_audio_features(four, is_longer=torch.zeros(2, 1, dtype=torch.bool)).pooler_output
    embedding = F.normalize(encoder(values, mask, seconds).embedding, dim=-1)
    assert_close(embedding, expected)
    assert untrained_of(encoder, tmp_path / "model") == {"audio_encoder.patch_embed"}


def test_clap_keeps_its_batch_normalisation_statistics(folders):
    encoder = load(folders["clap"], "audio", 8, 101).train()
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    values, mask, seconds = clap_windows(1)
    both = encoder(values, mask, seconds).embedding
    both.sum().backward()
    torch.testing.assert_close(encoder(values[:1], mask[:1], seconds[:1]).embedding, both[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.named_buffers())
    assert encoder.audio_encoder.batch_norm.weight.grad.abs().sum() > 0 and encoder.training


@pytest.mark.parametrize(("bins", "frames"), [(16, 64), (26, 44)])
@torch.no_grad()
def test_ast_equals_the_stock_model(folders, bins, frames):
    config = load_tower_config(folders["ast"], "audio")
    encoder_class = get_encoder_class(config.model_type, "audio")
    encoder = encoder_class(encoder_class.fit_config(config, bins, frames)).eval()
    report = load_pretrained_tower(encoder, None, folders["ast"])
    assert report.new == [] and all(name.startswith("classifier.") for name in report.unused)
    values = torch.randn(2, 1, bins, 2 * frames, generator=torch.Generator().manual_seed(3))
    mask, seconds = torch.arange(2 * frames).expand(2, -1) < frames + 11, torch.arange(2.0 * frames).expand(2, -1)
    output = encoder(values, mask, seconds)
    time = (frames - 16) // 10 + 1
    height = (bins - 16) // 10 + 1
    assert output.tokens.shape == (2, 2 * height * time, 16)
    steps = encoder.time_steps(2 * height * time)
    assert steps.tolist() == [w * time + c for w in range(2) for _ in range(height) for c in range(time)]
    expected_seconds = [w * frames + 10 * c + 7.5 for w in range(2) for _ in range(height) for c in range(time)]
    assert output.seconds[0].tolist() == expected_seconds
    second = [True, True, *[False] * (time - 2)]  # 11 frames of the second window: of the first patch and the next
    assert output.mask[0].tolist() == [True] * (height * time) + second * height
    if (bins, frames) == (16, 64):
        assert report.converted == {}
        stock = ASTForAudioClassification.from_pretrained(folders["ast"]).eval().audio_spectrogram_transformer
        windows = values.view(2, bins, 2, frames).permute(0, 2, 3, 1).flatten(0, 1)
        tokens = stock(windows).last_hidden_state[:, 2:].reshape(2, -1, 16)
        assert_close(output.tokens, tokens)
    else:
        rule = "interpolated from 1x5 to 2x3 patches"
        assert report.converted == {"encoder.embeddings.position_embeddings": rule}


@pytest.mark.parametrize("frames", [100, 60])
@torch.no_grad()
def test_whisper_equals_the_stock_model(folders, frames):
    """A shorter window uses the first positions."""
    config = load_tower_config(folders["whisper"], "audio")
    encoder_class = get_encoder_class("whisper", "audio")
    encoder = encoder_class(encoder_class.fit_config(config, 8, frames)).eval()
    report = load_pretrained_tower(encoder, None, folders["whisper"])
    assert report.new == [] and report.unused == {}  # the decoder is not part of the tower
    rule = {} if frames == 100 else {"encoder.embed_positions.weight": "the first 30 of 50 positions"}
    assert report.converted == rule
    stock = WhisperModel.from_pretrained(folders["whisper"]).eval().encoder
    stock.config.max_source_positions = frames // 2
    stock.embed_positions = torch.nn.Embedding.from_pretrained(stock.embed_positions.weight[: frames // 2])

    values = torch.randn(2, 1, 8, 2 * frames, generator=torch.Generator().manual_seed(3))
    mask, seconds = torch.arange(2 * frames).expand(2, -1) < frames + 11, torch.arange(2.0 * frames).expand(2, -1)
    output = encoder(values, mask, seconds)
    windows = values.view(2, 8, 2, frames).transpose(1, 2).flatten(0, 1)
    tokens = stock(windows).last_hidden_state.reshape(2, -1, 16)
    assert_close(output.tokens, tokens)
    assert output.seconds[0].tolist() == [2.0 * n for n in range(frames)]  # the strided kernel's centre
    assert output.mask.sum(dim=1).tolist() == [frames // 2 + 6] * 2 and output.mask[0, : frames // 2 + 6].all()
    assert encoder.time_steps(frames).tolist() == list(range(frames)) and output.embedding is None


@pytest.mark.parametrize("kind", ["pe_audio", "pe_audio_video"])
@torch.no_grad()
def test_audio_and_text_outputs_equal_those_of_the_stock_pe_av(folders, kind, tmp_path):
    folder = folders[kind]
    stock = stock_pe_av(folder, "audio")
    encoder = load(folder, "audio", 40, 10)
    values = torch.randn(3, 1, 40, 20, generator=torch.Generator().manual_seed(7))
    mask, seconds = torch.arange(20) < torch.tensor([[20], [6], [0]]), torch.arange(20.0).expand(3, -1)
    output = encoder(values, mask, seconds)
    waveforms = values.transpose(2, 3).reshape(6, 1, 400)  # two windows of each
    padding_mask = mask.view(6, 10).repeat_interleave(40, dim=1)
    expected = stock.audio_encoder(waveforms[:3], padding_mask=padding_mask[:3])
    assert_close(output.tokens[0], expected.last_hidden_state[:2].flatten(0, 1))
    assert_close(output.tokens[1, :10], expected.last_hidden_state[2])
    embeddings = F.normalize(stock.audio_head(expected.pooler_output), dim=-1)
    assert_close(output.embedding[0], embeddings[:2].mean(dim=0))
    assert_close(output.embedding[1], embeddings[2])
    assert output.tokens.isfinite().all() and not output.embedding[2].any()  # windows of nothing but padding
    assert output.mask.equal(mask) and output.seconds.equal(seconds)
    assert encoder.time_steps(20).tolist() == list(range(20))
    assert untrained_of(encoder, tmp_path) == {"embedder.dac_encoder", "embedder.bottleneck"}

    inputs = text_inputs("pe_audio")
    texts = load_text(folder, "pe_audio")(**inputs)
    outputs = stock(**inputs, input_values=waveforms[:1])
    real = texts.mask
    assert_close(texts.tokens[real], outputs.text_outputs.hidden_states[-1][real])
    assert_close(texts.embedding, outputs.text_audio_embeds)
    foreign = load_pretrained_tower(load_text(folder, "pe_audio"), None, folder, same_vocabulary=False)
    assert foreign.unused == {"text_model.embeddings.tok_embeddings.weight": "belongs to another vocabulary"}


@pytest.mark.parametrize(("frames", "size"), [(4, 16), (6, 24)])
@torch.no_grad()
def test_timesformer_equals_the_stock_model(folders, frames, size):
    encoder = load(folders["timesformer"], "video", frames, size, size)
    config = encoder.config
    stock = TimesformerForVideoClassification.from_pretrained(folders["timesformer"]).eval()
    stock.timesformer.config.num_frames, stock.timesformer.config.image_size = frames, size  # which its layers read
    for layer in stock.timesformer.encoder.layer:
        layer.config = config
    pixels = torch.randn(2, frames, 3, size, size, generator=torch.Generator().manual_seed(4))
    output = encoder(pixels, torch.arange(float(frames)).expand(2, -1))
    expected = stock.timesformer(pixels).last_hidden_state[:, 1:]  # patch by patch, in each frame by frame
    patches = (size // 8) ** 2
    expected = expected.view(2, patches, frames, 16).transpose(1, 2).flatten(1, 2)
    assert_close(output.tokens, expected)
    assert output.seconds[0].tolist() == [float(t) for t in range(frames) for _ in range(patches)]
    assert encoder.time_steps(frames * patches).tolist() == [t for t in range(frames) for _ in range(patches)]


STAND_ALONE = [
    ("clip", "text", CLIPTextModelWithProjection),
    ("clip", "video", CLIPVisionModelWithProjection),
    ("siglip", "text", SiglipTextModel),
    ("siglip", "video", SiglipVisionModel),
    ("siglip2", "text", Siglip2TextModel),
    ("siglip2", "video", Siglip2VisionModel),
    ("clap", "text", ClapTextModelWithProjection),
    ("clap", "audio", ClapAudioModelWithProjection),
]


@pytest.mark.parametrize(("kind", "modality", "stock_class"), STAND_ALONE)
def test_checkpoints_of_one_tower_load(tmp_path, kind, modality, stock_class):
    sub_config = {"text": "text_config", "video": "vision_config", "audio": "audio_config"}[modality]
    stock = randomize(stock_class(getattr(tiny_config(kind), sub_config)))
    stock.save_pretrained(tmp_path)
    config = load_tower_config(str(tmp_path), modality)
    encoder = get_encoder_class(config.model_type, modality)(config)
    report = load_pretrained_tower(encoder, None, str(tmp_path))
    assert report.new == [] and report.unused == {} and report.converted == {} and report.logit_scale is None
    tensors = stock.state_dict()
    assert len(report.loaded) == len(tensors)
    for name, tensor in encoder.state_dict().items():
        assert any(torch.equal(tensor, other) for other in tensors.values() if other.shape == tensor.shape), name


@pytest.mark.parametrize("is_alone", [False, True])
@torch.no_grad()
def test_video_and_text_outputs_equal_those_of_the_stock_pe_av(folders, tmp_path, is_alone):
    """Load from a checkpoint with audio, or with only video and text; also from a saved model."""
    folder = folders["pe_audio_video"]
    stock = stock_pe_av(folder, "video")
    if is_alone:
        stock.save_pretrained(tmp_path)
        folder = str(tmp_path)
    encoder = load(folder, "video", 3, 16, 16)
    pixels = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    seconds = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.5, 1.0]])
    output = encoder(pixels, seconds)
    inputs = text_inputs("pe_audio_video")
    outputs = stock(**inputs, pixel_values_videos=normalize_pixels(pixels, (0.5,) * 3, (0.5,) * 3))
    assert_close(output.tokens, outputs.video_outputs.last_hidden_state)
    assert_close(output.embedding, outputs.video_embeds)
    assert output.mask.all() and output.mask.shape == (2, 3) and output.seconds.equal(seconds)
    assert encoder.time_steps(3).tolist() == [0, 1, 2]

    text_config = load_tower_config(folder, "text", ("text", "video"))
    text_class, tokenizer = get_encoder_class(text_config.model_type, "text"), tiny_tokenizer("pe_audio_video")
    fitted = text_class.fit_config(text_config, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    text_encoder = text_class(fitted).eval()
    assert load_pretrained_tower(text_encoder, None, folder).unused == {}
    texts = text_encoder(**inputs)
    assert_close(texts.embedding, outputs.text_video_embeds)

    values = {"text_config": fitted, "video_config": encoder.config, "crossformer_config": ViTConfig(**SIZES)}
    model = MultimodalForRetrieval(MultimodalConfig(**values))
    model.multimodal.encoder("video").load_state_dict(encoder.state_dict())
    model.save_pretrained(tmp_path / "saved")
    again = MultimodalForRetrieval.from_pretrained(tmp_path / "saved").multimodal.encoder("video").eval()
    again.image_mean = again.image_std = (0.5,) * 3
    assert torch.equal(again(pixels, seconds).embedding, output.embedding)


def test_pe_av_embeds_texts_for_the_modality_that_they_are_compared_with(folders):
    def compared_with(kind: str, *modalities: str) -> str:
        return load_tower_config(folders[kind], "text", modalities).compared_with

    assert compared_with("pe_audio_video") == compared_with("pe_audio", "text", "video") == "audio"
    assert compared_with("pe_audio_video", "text", "audio") == "audio"
    assert compared_with("pe_audio_video", "text", "audio", "video") == "audio"
    assert compared_with("pe_audio_video", "text", "video") == "video"


def test_a_checkpoint_of_another_kind_of_pe_av_is_refused(folders):
    config = load_tower_config(folders["pe_audio_video"], "text", ("text", "video"))
    encoder = get_encoder_class(config.model_type, "text")(config)
    with pytest.raises(ValueError, match="is 'pe_audio', but this text tower is for comparisons with video"):
        load_pretrained_tower(encoder, None, folders["pe_audio"])


def test_the_video_tower_of_pe_av_needs_timm(folders, monkeypatch):
    assert PeVideoConfig().video_config.vision_config.num_labels == 2  # why there is `prepare_images`
    monkeypatch.setattr("simple_multimodal.models.pe_av.is_timm_available", lambda: False)
    message = r"need.* the package timm: pip install 'simple-multimodal\[timm\]'"
    config = load_tower_config(folders["pe_audio_video"], "video")
    encoder_class = get_encoder_class(config.model_type, "video")
    with pytest.raises(ValueError, match=message):
        encoder_class.processor_values(config)  # the first call of a run
    with pytest.raises(ValueError, match=message):
        encoder_class(config)
    load(folders["pe_audio_video"], "audio", 40, 10)


def test_pe_av_trained_on_frames_only_provides_tokens(tmp_path):
    randomize(PeAudioFrameLevelModel(tiny_config("pe_audio"))).save_pretrained(tmp_path)
    for modality in ("text", "audio"):
        config = load_tower_config(str(tmp_path), modality)
        encoder = get_encoder_class(config.model_type, modality)(config)
        report = load_pretrained_tower(encoder, None, str(tmp_path))
        assert report.new == [] and encoder.embedding_size(config) is None
        head = {"text": "text_audio_head", "audio": "audio_head"}[modality]
        assert {name.split(".")[0] for name in report.unused} == {head}


def test_a_tower_of_pe_av_without_its_head_is_refused(tmp_path):
    PeAudioEncoder(tiny_config("pe_audio").audio_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only holds a 'pe_audio_encoder', without the head"):
        load(str(tmp_path), "audio", 40, 10)


def test_attention_equals_that_of_the_stock_class_and_checkpointing_reaches_every_layer(folders):
    stacks = {
        ("clip", "text"): lambda tower: tower.encoder.layers,
        ("clip", "video"): lambda tower: tower.encoder.layers,
        ("siglip", "text"): lambda tower: tower.encoder.layers,
        ("siglip2", "video"): lambda tower: tower.encoder.layers,
        ("clap", "text"): lambda tower: tower.encoder.layer,
        ("clap", "audio"): lambda tower: tower.audio_encoder.layers,
        ("ast", "audio"): lambda tower: tower.layers,
        ("pe_audio", "text"): lambda tower: tower.layers,
        ("pe_audio", "audio"): lambda tower: tower.layers,
        ("whisper", "audio"): lambda tower: tower.layers,
        ("timesformer", "video"): lambda tower: tower.encoder.layer,
        ("pe_audio_video", "video"): lambda tower: [
            *tower.layers,
            *tower.embedder.vision_model.timm_model.blocks,
        ],
    }
    for (kind, modality), layers in stacks.items():
        if modality == "text":
            encoder, inputs = load_text(folders[kind], kind), list(text_inputs(kind).values())
        elif modality == "video":
            encoder, inputs = (
                load(folders[kind], "video", 4, 16, 16),
                [torch.randn(1, 4, 3, 16, 16), torch.zeros(1, 4)],
            )
        elif kind == "clap":
            encoder, inputs = load(folders[kind], "audio", 8, 101), list(clap_windows(1))
        else:
            bins, frames = {"ast": (16, 64), "whisper": (8, 100), "pe_audio": (40, 10)}[kind]
            ones = torch.ones(1, frames, dtype=torch.bool)
            inputs = [torch.randn(1, 1, bins, frames), ones, ones.float()]
            encoder = load(folders[kind], "audio", bins, frames)
        attention = "eager" if kind in ("clap", "timesformer") else "sdpa"
        assert encoder.config._attn_implementation == attention, (kind, modality)
        config = MultimodalConfig(
            **{f"{modality}_config": encoder.config}, crossformer_config=ViTConfig(**SIZES), fusion_form="merge"
        )
        model = MultimodalForRetrieval(config).train()
        model.multimodal.encoder(modality).load_state_dict(encoder.state_dict())
        tower = model.multimodal.encoder(modality)
        tower(*inputs).tokens.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
        tower.zero_grad(set_to_none=True)
        model.activation_checkpointing_enable()
        calls = []
        for layer in layers(tower):
            inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
            inner.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        tower(*inputs).tokens.square().mean().backward()
        assert len(calls) == 2 * len(layers(tower)), (kind, modality)
        for name, parameter in tower.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[name])


def aligned_config(folders, kind: str, **changes) -> MultimodalConfig:
    """Return the config of a model with the two towers of a checkpoint."""
    tokenizer = tiny_tokenizer(kind)
    clip = "audio" if kind == "clap" else "video"
    text, other = load_tower_config(folders[kind], "text"), load_tower_config(folders[kind], clip)
    text_class, other_class = (get_encoder_class(c.model_type, m) for c, m in ((text, "text"), (other, clip)))
    values = {
        "text_config": text_class.fit_config(text, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id),
        f"{clip}_config": other_class.fit_config(other, *((8, 101) if clip == "audio" else (2, 16, 16))),
        "crossformer_config": ViTConfig(**SIZES),
        "contrastive_dim": text_class.embedding_size(text),
        "contrastive_form": text_class.contrastive_form,
        "clip_embedding": "mean",
        "mlm_loss_weight": 0.0,
        "mam_loss_weight": 0.0,
        "mvm_loss_weight": 0.0,
        "matching_loss_weight": 0.0,
    }
    return MultimodalConfig(**(values | changes))


def clip_batch(kind: str) -> dict[str, torch.Tensor]:
    if kind == "clap":
        values, mask, seconds = clap_windows(1)
        clip = {"audio_values": values, "audio_attention_mask": mask, "audio_seconds": seconds}
        return clip | {"audio_mask": torch.ones(2, dtype=torch.bool)}
    pixels = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    seconds = torch.tensor([[0.0, 1.0]] * 2)
    return {"pixel_values_videos": pixels, "video_seconds": seconds, "video_mask": torch.ones(2, dtype=torch.bool)}


@pytest.mark.parametrize("kind", STOCK_MODELS)
@torch.no_grad()
def test_logits_of_an_untrained_model_equal_the_stock_models(folders, kind, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    config = aligned_config(folders, kind, image_mean=mean, image_std=std)
    modalities = config.modalities
    model, reports = MultimodalForRetrieval.from_encoders(config, dict.fromkeys(modalities, folders[kind]))
    assert all(report.new == [] and report.unused == {} for report in reports)
    model.eval()
    batch, texts = clip_batch(kind), text_inputs(kind)
    clips, _ = model.encode_clip(batch)
    embeds, _ = model.encode_text(texts)

    stock = STOCK_MODELS[kind].from_pretrained(folders[kind]).eval()
    if kind.startswith("siglip"):
        texts = {"input_ids": texts["input_ids"]}
    expected_texts = F.normalize(stock.get_text_features(**texts).pooler_output, dim=-1)
    if kind == "clap":
        windows = batch["audio_values"].transpose(2, 3)
        expected_clips = stock.get_audio_features(windows).pooler_output
        scale, bias = stock.logit_scale_t.exp(), 0.0
    else:
        pixels = (batch["pixel_values_videos"] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
            3, 1, 1
        )
        frames = stock_images(stock, pixels.flatten(0, 1))[1]
        expected_clips = F.normalize(F.normalize(frames, dim=-1).view(2, 2, -1).mean(dim=1), dim=-1)
        scale, bias = stock.logit_scale.exp(), (0.0 if kind == "clip" else stock.logit_bias)
    expected = expected_texts @ expected_clips.T
    assert_close(embeds @ clips.T, expected)
    for objective in ("contrastive_ta" if kind == "clap" else "contrastive_tv", "contrastive_tav"):
        own_scale, own_bias = model.scale_and_bias(objective)
        own = own_scale * (embeds @ clips.T) + (0.0 if own_bias is None else own_bias)
        if kind == "clap":  # 4.7 is above the limit of softmax
            scale = torch.tensor(100.0)
        assert_close(own, expected * scale + bias, 1e-4)  # the scale multiplies errors of cosines
    other, _ = model.scale_and_bias("contrastive_av")
    assert float(other) == pytest.approx(1 / 0.07, rel=1e-4)

    model.save_pretrained(tmp_path)
    loaded = MultimodalForRetrieval.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode_clip(batch)[0], clips)
    assert torch.equal(loaded.scale_and_bias("contrastive_tav")[0], model.scale_and_bias("contrastive_tav")[0])


@torch.no_grad()
def test_the_mean_of_a_clip_is_over_the_modalities_that_it_has(folders):
    clap = load_tower_config(folders["clap"], "audio")
    config = aligned_config(folders, "clip", audio_config=get_encoder_class("clap", "audio").fit_config(clap, 8, 101))
    model = MultimodalForRetrieval(config).eval()
    values, mask, seconds = (value[:1].expand(2, *value.shape[1:]) for value in clap_windows(1))
    has = torch.tensor([True, False])
    audio = {"audio_values": values, "audio_attention_mask": mask & has[:, None], "audio_seconds": seconds}
    batch = {**clip_batch("clip"), **audio, "audio_mask": has}
    texts = {key: value[:2] for key, value in text_inputs("clip").items()}
    output = model.multimodal(**batch, **texts, text_mask=torch.ones(2, dtype=torch.bool))
    both = F.normalize(output.audio_embeds + output.video_embeds, dim=-1)
    torch.testing.assert_close(output.clip_embeds[0], both[0])
    torch.testing.assert_close(output.clip_embeds[1], output.video_embeds[1])
    torch.testing.assert_close(model.encode_clip(batch)[0], output.clip_embeds)


@torch.no_grad()
def test_tokens_of_a_frame_are_pooled_before_the_fusion(folders):
    model = MultimodalForRetrieval(aligned_config(folders, "clip", fusion_pool="time")).eval()
    batch = clip_batch("clip")
    output = model.multimodal.encode("video", batch)
    assert output.tokens.shape[1] == 2 * 5 and model.multimodal.enter_fusion("video", output).states.shape[1] == 2


def test_embeddings_are_projected_to_a_space_of_another_size(folders):
    config = aligned_config(folders, "clip", contrastive_dim=7, clip_embedding="fusion")
    model, _ = MultimodalForRetrieval.from_encoders(config, dict.fromkeys(["text", "video"], folders["clip"]))
    model.requires_grad_(False)
    assert model.multimodal.embedding_projections["text"].weight.shape == (7, 12)  # of the tower's embedding
    assert model.multimodal.embedding_projections["clip"].weight.shape == (7, 16)
    assert float(model.scale_and_bias("contrastive_tv")[0]) == pytest.approx(1 / 0.07, rel=1e-4)  # another space


@pytest.mark.parametrize("kind", IMAGES)
@torch.no_grad()
def test_a_frame_transformer_starts_as_the_mean_of_the_frames(folders, kind, tmp_path):
    batch = clip_batch(kind)
    models = []
    for layers in (0, 2):
        config = aligned_config(folders, kind, frame_pooling_layers=layers)
        model, reports = MultimodalForRetrieval.from_encoders(config, {"video": folders[kind]})
        new = {name.split(".")[1] for name in reports[0].new}
        assert new == ({"frame_transformer"} if layers else set())
        models.append(model.eval())
    mean, sequence = models
    tower = sequence.multimodal.encoder("video")
    assert torch.equal(sequence.multimodal.encode("video", batch).embedding, mean.multimodal.encode("video", batch)[4])

    # Once trained, it adds the output of its layers over embeddings and times to the embeddings.
    generator = torch.Generator().manual_seed(6)
    tower.frame_transformer.gate.normal_(generator=generator)
    pixels = normalize_pixels(batch["pixel_values_videos"], tower.image_mean, tower.image_std)
    frames = tower.encode_images(pixels.flatten(0, 1))[1].unflatten(0, (2, 2))
    size = frames.shape[-1]
    states = F.normalize(frames, dim=-1) * size**0.5 + time_embedding(batch["video_seconds"], size)
    for layer in tower.frame_transformer.layers:
        states = layer(states, attention_mask=None)
    expected = mean_direction(frames + tower.frame_transformer.gate * states)
    output = sequence.multimodal.encode("video", batch).embedding
    assert_close(output, expected)
    assert not torch.allclose(output, mean.multimodal.encode("video", batch).embedding, atol=1e-2)
    later = batch | {"video_seconds": batch["video_seconds"] * 3}
    assert not torch.allclose(sequence.multimodal.encode("video", later).embedding, output, atol=1e-3)
    single = {key: value[:, :1] for key, value in batch.items() if key != "video_mask"}  # any number of frames
    assert torch.isfinite(sequence.encode_clip(single | {"video_mask": batch["video_mask"]})[0]).all()

    # A row without video does not change others and is finite.
    lacking = {key: value.clone() for key, value in batch.items()}
    for value in lacking.values():
        value[1] = 0
    lacking_embeds = sequence.encode_clip(lacking)[0]
    torch.testing.assert_close(lacking_embeds[0], sequence.encode_clip(batch)[0][0])
    assert torch.isfinite(lacking_embeds).all()

    with pytest.raises(ValueError, match="There are no features of a"):
        sequence.tower_hash("video")
    sequence.save_pretrained(tmp_path)
    loaded = MultimodalForRetrieval.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode_clip(batch)[0], sequence.encode_clip(batch)[0])


def test_a_frame_transformer_learns(folders):
    """The gate learns at once, the layers as soon as it is open; with activation checkpointing, too."""
    model = MultimodalForRetrieval(aligned_config(folders, "siglip", frame_pooling_layers=1)).train()
    frames = model.multimodal.encoder("video").frame_transformer
    assert not frames.gate.any()
    for checkpoint in (False, True):
        if checkpoint:
            model.checkpoint_activations(["video"])
        model.encode_clip(clip_batch("siglip"))[0][:, 0].sum().backward()
        moved = {name for name, parameter in frames.named_parameters() if parameter.grad.any()}
        weights = {name for name, _ in frames.named_parameters() if name.endswith("weight")}
        assert moved == {"gate"} if not checkpoint else moved > weights
        frames.gate.data.fill_(0.5)
        model.zero_grad()


def headless(folders, **settings) -> Encoder:
    config = load_tower_config(folders["siglip"], "video")
    config.vision_use_head = False
    return get_encoder_class("siglip", "video")(config, **settings)


def test_mean_direction_weighs_unit_vectors():
    parts = torch.tensor([[[3.0, 0.0], [0.0, 0.5]], [[2.0, 0.0], [0.0, 1.0]]])
    assert mean_direction(parts).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert mean_direction(parts, torch.tensor([[3, 1], [0, 0]])).tolist() == [[0.75, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda f: MultimodalForPreTraining(aligned_config(f, "clip", mvm_loss_weight=0.5)),
            "mvm_loss_weight is 0.5.*no",
        ),
        (
            lambda f: MultimodalForRetrieval(
                aligned_config(f, "clip", video_config=VideoMAEConfig(**SIZES), frame_pooling_layers=2)
            ),
            "`frame_pooling_layers` is 2, but 'videomae' has no frame embeddings",
        ),
        (
            lambda f: MultimodalForRetrieval(aligned_config(f, "clap", frame_pooling_layers=2)),
            "`frame_pooling_layers` is 2, but there is no video tower",
        ),
        (
            lambda f: MultimodalForRetrieval(
                aligned_config(f, "clip", frame_pooling_layers=2, contrastive_loss_before_fusion=False)
            ),
            "`frame_pooling_layers` is 2, but `contrastive_loss_before_fusion` is False",
        ),
        (
            lambda f: headless(f, frame_pooling_layers=2),
            "`frame_pooling_layers` is 2, but this 'siglip_vision_model' has no head",
        ),
        (lambda f: load(f["clip"], "video", 3, 20, 16), "20 by 16 pixels.*patches of 8.*video_size"),
        (lambda f: load(f["timesformer"], "video", 4, 16, 24), "16 by 24 pixels.*square"),
        (lambda f: load(f["clap"], "audio", 16, 101), "16 mel bins by 101 frames.*8 by at most 128"),
        (lambda f: load(f["ast"], "audio", 8, 64), "8 mel bins by 64 frames.*patch of the audio tower is 16"),
        (
            lambda f: load(f["whisper"], "audio", 16, 100),
            "16 mel bins by 100.*8 by an even number, at most 100",
        ),
        (lambda f: load(f["whisper"], "audio", 8, 102), "8 mel bins by 102.*at most 100"),
        (lambda f: load(f["whisper"], "audio", 8, 51), "8 mel bins by 51.*even number"),
        (lambda f: load(f["whisper"], "audio", 8, 100).check_inputs(8, 50), "8 mel bins by 50.*8 by 100"),
        (
            lambda f: load(f["pe_audio"], "audio", 128, 10),
            "frames of 40 samples.*frames of 128 values.*num_mel_bins",
        ),
        (lambda f: load(f["pe_audio"], "audio", 40, 10).check_inputs(40, 20), "40 mel bins by 20.*40 by 10"),
        (lambda f: load(f["pe_audio_video"], "video", 3, 24, 24), "24 by 24 pixels.*16 by 16.*video_size"),
        (lambda f: load(f["clip"], "text", 20, 0, None), "token that ends a text.*tokenizer_name"),
        (lambda f: load(f["clap"], "text", 20, 0, 2), "padding token, number 1; that of the tokenizer is 0"),
        (lambda f: load_text(f["siglip"], "siglip").check_inputs(5), "`max_seq_length` is 5.*padded to 12.*Set"),
        (lambda f: load_text(f["clap"], "clap").check_inputs(13), "`max_seq_length` is 13.*positions for 12"),
        (lambda f: load(f["clap"], "audio", 8, 101).check_inputs(8, 51), "8 mel bins by 51.*8 by 101"),
        (lambda f: load_tower_config(f["clip"], "audio"), "no audio encoder for model_type 'clip'"),
        (
            lambda f: load_pretrained_tower(load_text(f["clip"], "clip"), None, f["siglip"]),
            "'siglip_text_model' model",
        ),
    ],
)
def test_errors_say_what_does_not_fit(folders, build, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build(folders)


def test_a_text_tower_of_another_model_works_with_any_clip_tower(folders):
    for kind in STOCK_MODELS:
        changes = {"text_config": BertConfig(**SIZES, vocab_size=40), "clip_embedding": "fusion"}
        model = MultimodalForRetrieval(aligned_config(folders, kind, **changes)).eval()
        clips, _ = model.encode_clip(clip_batch(kind))
        texts, _ = model.encode_text({"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2).long()})
        assert (texts @ clips.T).shape == (1, 2)


def test_tokenizers_of_checkpoints_are_saved_and_loaded_unchanged(folders):
    for kind in STOCK_MODELS:
        assert (
            AutoTokenizer.from_pretrained(folders[kind])("rain")["input_ids"]
            == tiny_tokenizer(kind)("rain")["input_ids"]
        )
