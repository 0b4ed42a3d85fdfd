"""Tests of the windows that cover a clip's audio, by front end and length."""

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ClapAudioConfig,
    ClapFeatureExtractor,
    PreTrainedConfig,
    ViTMAEConfig,
    WhisperConfig,
)
from transformers.models.pe_audio.configuration_pe_audio import PeAudioEncoderConfig

from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.processing import AudioFeatureExtractor
from simple_multimodal.processing.audio_windows import plan_windows, windows_with_audio

CLAP = ClapFeatureExtractor().to_dict()


def new_extractor(config: PreTrainedConfig, **values) -> AudioFeatureExtractor:
    """Make the feature extractor of a new model with this tower."""
    own = get_encoder_class(config.model_type, "audio").processor_values(config)
    return AudioFeatureExtractor.from_dict({**own, "max_windows": 6, "crop": "random", **values})


def noise(seconds: float, rate: int = 16000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32) * 0.1


@pytest.mark.parametrize(
    ("num_frames", "shortest", "expected"),
    [(0, 1, 1), (1, 1, 1), (1, 4, 1), (10, 4, 1), (11, 1, 2), (11, 4, 1), (13, 4, 1), (14, 4, 2)]
    + [(20, 4, 2), (23, 4, 2), (24, 4, 3), (1000, 1, 100), (1003, 4, 100), (1009, 10, 100), (1009, 30, 100)],
)
def test_a_remainder_gets_a_window_if_it_is_long_enough(num_frames, shortest, expected):
    assert plan_windows(num_frames, 10, min_window_frames=shortest) == (0, expected)


@pytest.mark.parametrize(("num_frames", "last"), [(31, 1), (35, 5), (300, 270)])
def test_a_crop_is_random_in_training_and_in_the_middle_otherwise(num_frames, last):
    settings = {"max_windows": 3, "min_window_frames": 1}
    assert plan_windows(num_frames, 10, **settings) == (0, 3)
    assert plan_windows(num_frames, 10, crop="random", **settings) == (last // 2, 3)
    generator = np.random.default_rng(0)
    plans = {plan_windows(num_frames, 10, crop="random", generator=generator, **settings) for _ in range(3000)}
    assert plans == {(first, 3) for first in range(last + 1)}


@pytest.mark.parametrize("num_frames", [0, 9, 30, 33])
def test_audio_that_is_not_too_long_is_not_cropped(num_frames):
    """A remainder that is too short for a window is not a reason to crop the start."""
    generator = np.random.default_rng(0)
    plan = plan_windows(num_frames, 10, min_window_frames=4, max_windows=3, crop="random", generator=generator)
    assert plan.first_frame == 0 and plan.num_windows == (1 if num_frames < 10 else 3)
    assert generator.random() == np.random.default_rng(0).random()  # the generator was not used


@pytest.mark.parametrize(
    ("config", "values", "rate", "window_seconds", "shortest_seconds"),
    [
        (ViTMAEConfig(), {}, 16000, 10.255, 0.16),  # 1,024 frames; the last one is 25 ms long
        (ViTMAEConfig(image_size=[128, 992], num_channels=1), {}, 16000, 9.935, 0.16),
        (ASTConfig(), {}, 16000, 10.255, 0.16),
        (ClapAudioConfig(), CLAP, 48000, 10.0, 0.32),
        (WhisperConfig(), {}, 16000, 30.0, 0.16),
        (PeAudioEncoderConfig(dac_config={"downsampling_ratios": [2, 8, 10, 12]}), {}, 48000, 10.0, 0.16),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_windows_of_new_models(config, values, rate, window_seconds, shortest_seconds):
    extractor = new_extractor(config, **values)
    assert extractor.sampling_rate == rate
    hop = extractor.hop_length / rate
    kaldi = 0.015 if extractor.front_end == "kaldi" else 0.0  # difference between the last frame and a hop
    for number in (1, 2, 6):
        end = number * (window_seconds - kaldi) + kaldi
        lengths = {
            end - hop: number,
            end: number,
            end + shortest_seconds - hop: number,
            end + shortest_seconds: min(number + 1, 6),
        }
        for seconds, expected in lengths.items():
            features = extractor.extract(noise(seconds, rate))
            assert len(features.seconds) == expected * extractor.num_frames, (seconds, expected)
    ten = extractor.extract(noise(10.05, rate))  # ten seconds and the padding of an audio encoder
    assert len(ten.seconds) == extractor.num_frames
    assert len(extractor.extract(noise(0.01, rate)).seconds) == extractor.num_frames


@pytest.mark.parametrize(("seconds", "before"), [(9.94, 1), (9.95, 2), (10.0, 2), (10.1, 2), (10.24, 2), (20.0, 3)])
def test_windows_of_an_earlier_saved_processor_are_unchanged(seconds, before):
    saved = AudioFeatureExtractor.from_dict({"feature_extractor_type": "AudioFeatureExtractor", "num_frames": 992})
    assert len(saved.extract(noise(seconds)).seconds) == before * 992
    new = new_extractor(ViTMAEConfig())
    assert len(new.extract(noise(seconds)).seconds) == (2 if seconds == 20.0 else 1) * 1024


@pytest.mark.parametrize(
    ("front_end", "settings"),
    [
        ("kaldi", {}),
        ("clap", {"padding": "repeatpad"}),
        ("whisper", {"padding": "pad"}),
        ("waveform", {"padding": "reflect", "num_mel_bins": 160}),
    ],
)
def test_a_crop_is_the_same_audio_at_its_true_times(front_end, settings):
    """A crop has the features of that part alone, with times from the start of the whole audio."""
    extractor = AudioFeatureExtractor(
        **{"num_mel_bins": 16, "front_end": front_end, "max_windows": 2, "crop": "random", "num_frames": 20} | settings
    )
    waveform = noise(1.0)
    per_window = 20 - (front_end == "clap")
    middle = extractor.extract(waveform)
    num_frames = 98 if front_end == "kaldi" else 100
    crops = [extractor.extract(waveform, np.random.default_rng(seed)) for seed in range(20)]
    firsts = {round(float(crop.seconds[0] - middle.seconds[0]) * 100) for crop in crops}
    spare = num_frames - 2 * per_window
    assert len(firsts) > 5 and min(firsts) >= -(spare // 2) and max(firsts) <= spare - spare // 2
    for crop, generator in [(middle, None), *((crops[seed], np.random.default_rng(seed)) for seed in range(5))]:
        first = spare // 2 if generator is None else int(generator.integers(spare + 1))
        alone = extractor.extract(
            waveform[first * 160 : first * 160 + 2 * per_window * 160 + 240 * (num_frames == 98)]
        )
        assert torch.equal(crop.values, alone.values)
        assert crop.values.shape[-1] == 40 and bool(crop.attention_mask.all())
        torch.testing.assert_close(crop.seconds, alone.seconds + first * 0.01)


def test_one_long_track_does_not_make_the_whole_batch_as_long():
    """31 tracks of ten seconds and one of 300 once took 992 windows, 93 of them with audio; now 192, with 37."""
    saved = AudioFeatureExtractor.from_dict({"feature_extractor_type": "AudioFeatureExtractor", "num_frames": 992})
    long = saved.extract(np.zeros(300 * 16000, np.float32))
    assert 32 * len(long.seconds) // 992 == 992
    new = new_extractor(ViTMAEConfig())
    short, long = (new.extract(np.zeros(seconds * 16000, np.float32)) for seconds in (10, 300))
    batch = new.collate([*[short] * 31, long])
    assert batch["audio_values"].shape == (32, 1, 128, 6 * 1024)
    windows, counts = windows_with_audio(batch["audio_attention_mask"], 1024)
    assert len(windows) == 37 and counts == (*[1] * 31, 6)
    assert windows.tolist() == [[row, 0] for row in range(31)] + [[31, window] for window in range(6)]


def test_a_batch_without_audio_has_one_window():
    windows, counts = windows_with_audio(torch.zeros(3, 20, dtype=torch.bool), 10)
    assert windows.tolist() == [[0, 0]] and counts == (0, 0, 0)
