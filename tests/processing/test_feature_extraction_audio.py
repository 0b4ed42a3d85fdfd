"""Tests of the log-mel feature extractor."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from simple_multimodal.processing import AudioFeatureExtractor


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / 16000)
    return (tone + 0.05 * generator.standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("num_mel_bins", [40, 128])
@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_features_equal_the_kaldi_filter_banks_of_torchaudio(num_mel_bins, gain):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    extractor = AudioFeatureExtractor(num_mel_bins=num_mel_bins, num_frames=100)
    waveform = gain * noise(16000 + 77)
    expected = kaldi.fbank(
        torch.from_numpy(waveform)[None], sample_frequency=16000, window_type="hanning", num_mel_bins=num_mel_bins
    )  # (num_frames, num_mel_bins)
    features = extractor.extract(waveform)
    assert int(features.attention_mask.sum()) == len(expected) == 98
    log_mel = features.values[0, :, :98].T * (2 * extractor.std) + extractor.mean
    # Natural log: 5e-4 is 0.05 % of a filter's energy; float32 sums in another order differ by less.
    torch.testing.assert_close(log_mel, expected, atol=5e-4, rtol=0)


def test_features_equal_those_of_the_audio_spectrogram_transformer():
    ast = pytest.importorskip("transformers").ASTFeatureExtractor(max_length=120)
    waveform = noise(16000)
    expected = ast(waveform, sampling_rate=16000, return_tensors="np")["input_values"][0]  # (120, 128)
    values = AudioFeatureExtractor(num_frames=120).extract(waveform).values[0].T.numpy()
    np.testing.assert_allclose(values[:98], expected[:98], atol=1e-4)


def test_audio_shorter_than_a_window_is_padded_and_masked():
    extractor = AudioFeatureExtractor(num_frames=50)
    features = extractor.extract(noise(1600))  # (1600 - 400) // 160 + 1 = 8 whole frames
    assert features.values.shape == (1, 128, 50)
    assert features.attention_mask.tolist() == [True] * 8 + [False] * 42
    assert torch.equal(features.values[..., 8:], torch.zeros(1, 128, 42))
    assert bool((features.values[..., :8] != 0).all())


@pytest.mark.parametrize(("num_samples", "num_real"), [(0, 0), (1, 1), (400, 1), (559, 1), (560, 2)])
def test_number_of_real_frames(num_samples, num_real):
    features = AudioFeatureExtractor(num_frames=4).extract(np.ones(num_samples, dtype=np.float32))
    assert int(features.attention_mask.sum()) == num_real
    assert features.values.shape == (1, 128, 4)


def test_seconds_are_the_frame_centres():
    seconds = AudioFeatureExtractor(num_frames=3).extract(noise(200)).seconds
    torch.testing.assert_close(seconds, torch.tensor([0.0125, 0.0225, 0.0325]))


def test_longer_audio_is_covered_by_consecutive_windows():
    extractor = AudioFeatureExtractor(num_frames=10)
    waveform = noise(400 + 160 * 24)  # 25 frames: three windows, the last with five
    features = extractor.extract(waveform)
    assert features.values.shape == (1, 128, 30)
    assert int(features.attention_mask.sum()) == 25
    whole = AudioFeatureExtractor(num_frames=25).extract(waveform)
    torch.testing.assert_close(features.values[..., :25], whole.values)
    torch.testing.assert_close(features.seconds[:25], whole.seconds)


def test_audio_of_exactly_one_window_has_one_window():
    extractor = AudioFeatureExtractor(num_frames=10)
    assert extractor.extract(noise(400 + 160 * 9)).values.shape[-1] == 10
    assert extractor.extract(noise(400 + 160 * 10)).values.shape[-1] == 20


def test_max_windows_keeps_the_first_windows():
    waveform = noise(8000)
    cropped = AudioFeatureExtractor(num_frames=10, max_windows=2).extract(waveform)
    whole = AudioFeatureExtractor(num_frames=10).extract(waveform)
    assert cropped.values.shape[-1] == 20 and whole.values.shape[-1] == 50
    assert torch.equal(cropped.values, whole.values[..., :20])
    assert bool(cropped.attention_mask.all())


def test_features_do_not_depend_on_threads_or_on_later_audio():
    extractor = AudioFeatureExtractor()
    waveform = noise(16000 * 11)
    reference = extractor.extract(waveform)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3, 8):
            torch.set_num_threads(num_threads)
            assert torch.equal(extractor.extract(waveform).values, reference.values)
    finally:
        torch.set_num_threads(threads)
    longer = extractor.extract(np.concatenate([waveform, noise(16000 * 12, seed=1)]))
    num_whole = int(reference.attention_mask.sum())
    assert torch.equal(longer.values[..., :num_whole], reference.values[..., :num_whole])


def test_filters_are_computed_once_per_instance(monkeypatch):
    extractor = AudioFeatureExtractor(num_frames=10)
    expected = extractor.extract(noise(2000)).values

    def fail(*args, **kwargs):
        raise AssertionError("filters were computed again")

    monkeypatch.setattr("simple_multimodal.processing.feature_extraction_audio.mel_filter_bank", fail)
    monkeypatch.setattr(torch, "hann_window", fail)
    assert torch.equal(extractor.extract(noise(2000)).values, expected)


def test_a_call_pads_the_batch_and_masks_missing_rows():
    extractor = AudioFeatureExtractor(num_frames=10)
    long, short = noise(4000), noise(800)
    batch = extractor([long, None, short], sampling_rate=16000)
    assert batch["audio_values"].shape == (3, 1, 128, 30)
    assert batch["audio_mask"].tolist() == [True, False, True]
    assert batch["audio_attention_mask"].sum(1).tolist() == [23, 0, 3]
    assert torch.equal(batch["audio_values"][2, ..., :10], extractor.extract(short).values)
    assert not batch["audio_values"][1].any() and not batch["audio_values"][2, ..., 10:].any()
    assert extractor(short, sampling_rate=16000)["audio_values"].shape == (1, 1, 128, 10)


def test_bad_input_is_refused():
    extractor = AudioFeatureExtractor(num_frames=10)
    with pytest.raises(ValueError, match=r"48000 Hz, but this extractor takes 16000 Hz"):
        extractor(noise(800), sampling_rate=48000)
    with pytest.raises(ValueError, match="not finite"):
        extractor.extract(np.array([0.0, np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match=r"mono, of shape \(num_samples,\), got shape \(2, 800\)"):
        extractor.extract(np.zeros((2, 800), dtype=np.float32))
    with pytest.raises(ValueError, match="f_max"):
        AudioFeatureExtractor(f_max=9000.0)


def test_save_and_load(tmp_path):
    extractor = AudioFeatureExtractor(sampling_rate=8000, num_mel_bins=32, num_frames=16, mean=-3.0, max_windows=2)
    extractor.save_pretrained(tmp_path)
    for loaded in (AudioFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert loaded.to_dict() == extractor.to_dict()
        assert torch.equal(loaded.extract(noise(4000)).values, extractor.extract(noise(4000)).values)


def test_the_configuration_of_the_audio_spectrogram_transformer_is_read(tmp_path):
    from transformers import ASTFeatureExtractor

    ASTFeatureExtractor(num_mel_bins=64, max_length=512, mean=-6.0, std=4.0).save_pretrained(tmp_path)
    loaded = AudioFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.num_mel_bins, loaded.num_frames, loaded.mean, loaded.std) == (64, 512, -6.0, 4.0)


def test_an_image_processor_next_to_audio_weights_means_defaults(tmp_path):
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert AudioFeatureExtractor.from_pretrained(tmp_path).to_dict() == AudioFeatureExtractor().to_dict()
