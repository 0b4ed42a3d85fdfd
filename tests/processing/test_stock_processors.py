"""Our processors against the stock processors of towers with the same settings, on the same frames and audio."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    CLIPImageProcessor,
    PeAudioFeatureExtractor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_tower_config
from simple_multimodal.models.patches import normalize_pixels
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from tests.closeness import assert_close
from tests.models.tiny_towers import (
    AST_EXTRACTOR,
    CLAP_EXTRACTOR,
    PE_EXTRACTOR,
    WHISPER_EXTRACTOR,
    stock_processor,
    tiny_tokenizer,
    write_checkpoint,
)

IMAGES = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "clip_larger": CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "siglip": SiglipImageProcessor(size={"height": 32, "width": 32}),
    "siglip_bilinear": SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2, image_mean=[0.1, 0.2, 0.3]),
    "other_scale": SiglipImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
    "no_scale": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, do_rescale=False, image_std=[50.0] * 3),
    "no_deviation": SiglipImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
}
ONE_LEVEL = 1 + 1e-3


def smooth_frames(height: int, width: int) -> np.ndarray:
    """Make two frames of blurred noise, `(2, height, width, 3)`, with full blacks and whites."""
    noise = torch.rand(2, 3, height // 6 + 2, width // 6 + 2, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", [(40, 60), (90, 51), (32, 32), (21, 64)])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_within_one_level_of_the_stock_processors(tmp_path, name, shape):
    stock = IMAGES[name]
    stock.save_pretrained(tmp_path)
    processor = VideoClipProcessor.from_pretrained(tmp_path, num_frames=2)
    frames = smooth_frames(*shape)
    expected = stock(list(frames), return_tensors="pt")["pixel_values"]  # (2, 3, 32, 32)
    pixels = processor(frames, video_fps=1.0)["pixel_values_videos"]
    values = normalize_pixels(pixels, processor.image_mean, processor.image_std)[0]
    assert pixels.dtype == torch.uint8 and values.shape == expected.shape
    level = torch.tensor([1 / (255 * std) for std in processor.image_std]).view(3, 1, 1)
    differences = (values - expected).abs() / level
    assert differences.max() <= ONE_LEVEL  # both resize bytes; memory layouts may round one level apart
    assert differences.mean() < 0.05


def test_frames_give_the_patches_of_siglip_2(tmp_path):
    stock = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    stock.save_pretrained(tmp_path)
    assert VideoClipProcessor.from_pretrained(tmp_path).size == {"height": 32, "width": 32}
    for shape, size in (((48, 48), (32, 32)), ((45, 80), (24, 40))):  # one size for all clips of a run
        processor = VideoClipProcessor.from_pretrained(
            tmp_path, num_frames=2, size={"height": size[0], "width": size[1]}
        )
        frames = smooth_frames(*shape)
        expected = stock(list(frames), return_tensors="pt")
        assert expected["spatial_shapes"].tolist() == [[size[0] // 8, size[1] // 8]] * 2
        pixels = processor(frames, video_fps=1.0)["pixel_values_videos"]
        values = normalize_pixels(pixels, processor.image_mean, processor.image_std)[0]
        patches = values.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        difference = (patches - expected["pixel_values"][:, : patches.shape[1]]).abs() * 127.5
        assert difference.max() <= ONE_LEVEL


@pytest.mark.parametrize("shape", [(40, 60), (90, 51), (16, 16)])
def test_frames_are_within_one_level_of_the_stock_pe_av(tmp_path, shape):
    stock = stock_processor("pe_audio_video")
    stock.save_pretrained(tmp_path)
    processor = VideoClipProcessor.from_pretrained(tmp_path, num_frames=2)
    assert (processor.resize_mode, processor.resize_kernel) == ("squash", "antialias")
    frames = smooth_frames(*shape)
    expected = stock.video_processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")
    pixels = processor(frames, video_fps=1.0)["pixel_values_videos"]
    values = normalize_pixels(pixels, processor.image_mean, processor.image_std)
    assert (values - expected["pixel_values_videos"]).abs().max() <= ONE_LEVEL / 127.5


def test_image_settings_are_read_from_an_image_text_processor(tmp_path):
    stock_processor("clip").save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()  # nested in processor_config.json
    processor = VideoClipProcessor.from_pretrained(tmp_path, num_frames=3)
    assert (processor.size, processor.resize_kernel) == ({"height": 16, "width": 16}, "bicubic")
    processor.save_pretrained(tmp_path / "own")
    again = VideoClipProcessor.from_pretrained(tmp_path / "own")
    assert again.to_dict() == processor.to_dict() and again.scales_in_memory


def tones(seconds: float, rate: int) -> np.ndarray:
    """Make two tones with faint noise."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=len(times)) * 0.01
    return (0.4 * np.sin(2 * np.pi * 440 * times) + 0.2 * np.sin(2 * np.pi * 3000 * times) + noise).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_decibels_equal_those_of_clap(tmp_path, truncation, padding, seconds):
    stock = ClapFeatureExtractor(**CLAP_EXTRACTOR | {"truncation": truncation, "padding": padding})
    stock.save_pretrained(tmp_path)
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path)
    waveform = tones(seconds, 16000)
    features = extractor.extract(waveform)
    expected = stock(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]  # (1, 1 or 4, 101, 8)
    torch.testing.assert_close(features.values[0], expected[0, 0].T.float(), atol=1e-3, rtol=0)
    assert int(features.attention_mask.sum()) == (101 if seconds == 1.0 else round(seconds * 100))
    assert features.seconds[:3].tolist() == pytest.approx([0.0, 0.01, 0.02])
    extractor.save_pretrained(tmp_path / "own")
    again = AudioFeatureExtractor.from_pretrained(tmp_path / "own")
    assert torch.equal(again.extract(waveform).values, features.values)


def test_long_audio_for_clap_is_split_into_windows(tmp_path):
    ClapFeatureExtractor(**CLAP_EXTRACTOR).save_pretrained(tmp_path)
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path)
    waveform = tones(2.25, 16000)
    features = extractor.extract(waveform)
    assert features.values.shape == (1, 8, 3 * 101)
    for number in range(3):
        part = extractor.extract(waveform[number * 16000 : (number + 1) * 16000])
        window = slice(number * 101, (number + 1) * 101)
        assert torch.equal(features.values[..., window], part.values)
        assert torch.equal(features.attention_mask[window], part.attention_mask)
        torch.testing.assert_close(features.seconds[window], part.seconds + number)
    cropped = AudioFeatureExtractor.from_pretrained(tmp_path, max_windows=2).extract(waveform)
    assert torch.equal(cropped.values, features.values[..., :202])
    empty = extractor.extract(np.zeros(0, dtype=np.float32))
    assert empty.values.shape == (1, 8, 101) and not empty.attention_mask.any()


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}])
@pytest.mark.parametrize("seconds", [0.3, 0.66])
def test_log_mel_equals_that_of_ast(tmp_path, settings, seconds):
    stock = ASTFeatureExtractor(**AST_EXTRACTOR | settings)
    stock.save_pretrained(tmp_path)
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path)
    waveform = tones(seconds, 16000)
    features = extractor.extract(waveform)
    expected = stock(waveform, sampling_rate=16000, return_tensors="pt")["input_values"]  # (1, 64, 16)
    torch.testing.assert_close(features.values[0], expected[0].T, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("settings", [WHISPER_EXTRACTOR, {"feature_size": 80}, {"feature_size": 128}])
@pytest.mark.parametrize("seconds", [0.3, 0.55003, 1.0])
def test_log_mel_equals_that_of_whisper(tmp_path, settings, seconds):
    stock = WhisperFeatureExtractor(**settings)
    stock.save_pretrained(tmp_path)
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path)
    waveform = tones(seconds, 16000)
    features = extractor.extract(waveform)
    expected = stock(waveform, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    torch.testing.assert_close(features.values[0], expected["input_features"][0], atol=1e-4, rtol=0)
    assert features.attention_mask.tolist() == expected["attention_mask"][0].bool().tolist()
    assert features.seconds[:3].tolist() == pytest.approx([0.0, 0.01, 0.02])
    extractor.save_pretrained(tmp_path / "own")
    again = AudioFeatureExtractor.from_pretrained(tmp_path / "own")
    assert torch.equal(again.extract(waveform).values, features.values)


def test_long_audio_for_whisper_is_split_into_windows(tmp_path):
    """Each window equals the output of the stock extractor for that part alone, since it truncates long audio."""
    stock = WhisperFeatureExtractor(**WHISPER_EXTRACTOR)
    stock.save_pretrained(tmp_path)
    waveform = tones(2.25, 16000)
    features = AudioFeatureExtractor.from_pretrained(tmp_path).extract(waveform)
    parts = [waveform[:16000], waveform[16000:32000], waveform[32000:]]
    expected = stock(parts, sampling_rate=16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(features.values[0], expected.transpose(0, 1).flatten(1), atol=1e-4, rtol=0)
    assert features.attention_mask.sum() == 225 and features.seconds[100] == 1.0 and len(features.seconds) == 300


@pytest.mark.parametrize("length", [1, 40, 3999, 8000, 8001])
def test_waveforms_equal_those_of_pe_av(tmp_path, length):
    """Audio is mirrored up to a whole frame, then split into windows of one second, the last padded with silence."""
    stock = PeAudioFeatureExtractor(**PE_EXTRACTOR)
    stock_processor("pe_audio").save_pretrained(tmp_path)
    assert AudioFeatureExtractor.from_pretrained(tmp_path).num_frames == 2000  # 10 seconds
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path, num_frames=200)
    waveform = tones(2, 8000)[:length]
    features = extractor.extract(waveform)
    expected = stock(waveform, sampling_rate=8000, return_tensors="pt")["input_values"].flatten()
    samples = features.values[0].T.flatten()
    assert torch.equal(samples[: len(expected)], expected) and not samples[len(expected) :].any()
    assert features.attention_mask.sum() == len(expected) // 40 and len(features.seconds) % 200 == 0
    assert features.seconds[:2].tolist() == pytest.approx([0.0025, 0.0075])
    extractor.save_pretrained(tmp_path / "own")
    again = AudioFeatureExtractor.from_pretrained(tmp_path / "own")
    assert torch.equal(again.extract(waveform).values, features.values)
    cropped = AudioFeatureExtractor.from_pretrained(tmp_path, num_frames=200, max_windows=1).extract(waveform)
    assert torch.equal(cropped.values, features.values[..., :200])
    empty = extractor.extract(waveform[:0])
    assert empty.values.shape == (1, 40, 200) and not empty.attention_mask.any()


@pytest.mark.parametrize("kind", ["whisper", "pe_audio"])
def test_a_tower_without_a_checkpoint_has_the_front_end_of_its_kind(tmp_path, kind):
    write_checkpoint(tmp_path, kind)
    config = load_tower_config(str(tmp_path), "audio")
    values = get_encoder_class(config.model_type, "audio").processor_values(config)
    own, stock = AudioFeatureExtractor.from_dict(values), AudioFeatureExtractor.from_pretrained(tmp_path)
    assert (own.front_end, own.padding, own.num_mel_bins) == (stock.front_end, stock.padding, stock.num_mel_bins)
    if kind == "whisper":
        assert own.num_frames == stock.num_frames
        waveform = tones(0.3, 16000)
        assert torch.equal(own.extract(waveform).values, stock.extract(waveform).values)
    else:
        assert (own.sampling_rate, own.hop_length, own.num_frames) == (48000, 40, 250)


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}, {"sampling_rate": 8000}])
@pytest.mark.parametrize("seconds", [0.3, 0.50007, 1.0])
def test_waveforms_equal_those_of_wav2vec2(tmp_path, settings, seconds):
    """Except for samples after the last whole stride of the first convolution, which do not affect any tower."""
    stock = Wav2Vec2FeatureExtractor(**settings)
    stock.save_pretrained(tmp_path)
    rate = stock.sampling_rate
    extractor = AudioFeatureExtractor.from_pretrained(tmp_path, num_frames=rate // 10)
    waveform = tones(seconds, rate) + 0.5
    features = extractor.extract(waveform)
    expected = stock(waveform, sampling_rate=rate, return_tensors="pt")["input_values"][0]
    whole = len(waveform) // 5
    assert int(features.attention_mask.sum()) == whole
    samples = features.values[0].T.flatten()
    assert_close(samples[: whole * 5], expected[: whole * 5])
    assert not samples[whole * 5 :].any() and len(features.seconds) % (rate // 10) == 0
    extractor.save_pretrained(tmp_path / "own")
    again = AudioFeatureExtractor.from_pretrained(tmp_path / "own")
    assert torch.equal(again.extract(waveform).values, features.values)
    assert not extractor.extract(waveform[:4]).attention_mask.any()  # less than one stride does not count as audio


def test_frames_of_waveforms_are_those_of_the_tower(tmp_path):
    """The stride is in the config of the tower, not in the file of the feature extractor."""
    config = Wav2Vec2Config(conv_stride=(4, 2, 2, 2, 2, 2, 2))
    values = get_encoder_class("wav2vec2", "audio").processor_values(config)
    own = AudioFeatureExtractor.from_dict(values)
    assert (own.num_frames, own.min_window_frames) == (40000, 640)  # 10 and 0.16 seconds
    stock = Wav2Vec2FeatureExtractor(sampling_rate=8000).to_dict()
    extractor = AudioFeatureExtractor.from_dict(values | stock)
    assert (extractor.hop_length, extractor.num_mel_bins, extractor.sampling_rate) == (4, 4, 8000)


def test_unknown_front_ends_are_refused():
    with pytest.raises(ValueError, match="padding='repeat'.*for kaldi mean or zero"):
        AudioFeatureExtractor(padding="repeat")
    with pytest.raises(ValueError, match="front_end must be one of kaldi, clap, whisper"):
        AudioFeatureExtractor(front_end="wav2vec")
    with pytest.raises(ValueError, match="A frame of the waveform has 160 samples.*`num_mel_bins` is 128"):
        AudioFeatureExtractor(front_end="waveform", padding="reflect")
    with pytest.raises(ValueError, match="`do_normalize` is for front_end='waveform'"):
        AudioFeatureExtractor(do_normalize=True)
    with pytest.raises(ValueError, match="padding='mean'.*for whisper pad"):
        AudioFeatureExtractor(front_end="whisper")


def test_texts_are_padded_as_the_text_tower_requires(tmp_path):
    processor = MultimodalProcessor(tokenizer=tiny_tokenizer("siglip"), text_padding="max_length")
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["text_padding"] == "max_length"
    loaded = MultimodalProcessor.from_pretrained(tmp_path)
    assert loaded.tokenize(["rain"])["input_ids"].shape == (1, 12) == loaded(text=["rain"])["input_ids"].shape
    assert loaded.tokenize(["rain"], padding=True)["input_ids"].shape == (1, 2)
    assert MultimodalProcessor(tokenizer=tiny_tokenizer("siglip")).tokenize(["rain"])["input_ids"].shape == (1, 2)
