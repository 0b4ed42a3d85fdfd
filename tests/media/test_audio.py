"""Tests of the sound reader: samples, time alignment, segments and limits."""

import wave
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from simple_multimodal.media import MediaError, audio, has_audio, index_video, read_audio
from tests.media.media_files import write_media


def sine(times: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * times)


def ramp(times: np.ndarray) -> np.ndarray:
    return times / 4


def times_of(waveform: np.ndarray, sampling_rate: int = 16000) -> np.ndarray:
    return np.arange(len(waveform)) / sampling_rate


def test_samples_come_back_unchanged_at_their_own_rate(tmp_path):
    path = write_media(tmp_path / "sound.wav", waveform=sine, audio_seconds=0.5)
    waveform = read_audio(path, 16000)
    assert waveform.dtype == np.float32 and waveform.shape == (8000,)
    np.testing.assert_allclose(waveform, sine(times_of(waveform)), atol=2**-15)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_has_full_scale_one(tmp_path, codec):
    path = write_media(tmp_path / "sound.wav", waveform=sine, audio_codec=codec, audio_seconds=0.2)
    waveform = read_audio(path, 16000)
    np.testing.assert_allclose(waveform, sine(times_of(waveform)), atol=2**-6 if codec == "pcm_u8" else 2**-14)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path):
    path = write_media(
        tmp_path / "stereo.wav",
        waveform=lambda times: np.stack([sine(times), 0.25 * np.ones_like(times)]),
        audio_seconds=0.2,
        layout="stereo",
    )
    waveform = read_audio(path, 16000)
    np.testing.assert_allclose(waveform, sine(times_of(waveform)) / 2 + 0.125, atol=2**-14)


@pytest.mark.parametrize("audio_rate", [8000, 44100, 48000])
def test_resampling_keeps_time_and_amplitude(tmp_path, audio_rate):
    path = write_media(tmp_path / "sound.wav", waveform=sine, audio_seconds=1.0, audio_rate=audio_rate)
    waveform = read_audio(path, 16000)
    assert abs(len(waveform) - 16000) <= 1
    inner = slice(200, -200)  # the resampler knows no sound beyond the ends
    np.testing.assert_allclose(waveform[inner], sine(times_of(waveform))[inner], atol=2e-3)


@pytest.mark.parametrize(
    ("suffix", "codec", "audio_rate"),
    [("flac", "flac", 16000), ("m4a", "aac", 16000), ("mp3", "libmp3lame", 16000), ("ogg", "libopus", 48000)],
)
def test_sound_files(tmp_path, suffix, codec, audio_rate):
    path = write_media(
        tmp_path / f"sound.{suffix}", waveform=sine, audio_codec=codec, audio_rate=audio_rate, audio_seconds=1.0
    )
    assert has_audio(path)
    waveform = read_audio(path, 16000)
    assert 15900 <= len(waveform) <= 17600  # some codecs pad the last block
    inner = slice(2000, 14000)
    error = waveform[inner] - sine(times_of(waveform))[inner]
    assert np.abs(error).max() < (1e-4 if codec == "flac" else 0.05)


def test_a_segment_starts_at_its_time(sounding_video):
    for start, end in [(0.5, 1.0), (0.3333, 0.7777), (1.999, 2.5)]:
        waveform = read_audio(sounding_video, 16000, start_seconds=start, end_seconds=end)
        first, stop = round(start * 16000), min(round(end * 16000), 32000)
        assert len(waveform) == stop - first
        np.testing.assert_allclose(waveform, ramp(np.arange(first, stop) / 16000), atol=2**-14)


@pytest.mark.parametrize("audio_rate", [16000, 44100])
def test_neighbouring_segments_make_up_the_whole(tmp_path, audio_rate):
    path = write_media(tmp_path / "sound.wav", waveform=sine, audio_seconds=1.0, audio_rate=audio_rate)
    cuts = [0.0, 0.1, 0.33333, 0.5, 0.98765, None]
    pieces = [
        read_audio(path, 16000, start_seconds=a, end_seconds=b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), read_audio(path, 16000))


def test_silence_before_a_sound_track_that_starts_late(tmp_path):
    path = write_media(tmp_path / "late.mkv", num_frames=50, waveform=np.ones_like, audio_start=0.5, audio_seconds=1.0)
    waveform = read_audio(path, 16000)
    assert len(waveform) == 24000
    assert not waveform[:8000].any() and (waveform[8000:] > 0.99).all()
    assert not read_audio(path, 16000, start_seconds=0.1, end_seconds=0.3).any()


def test_time_runs_from_the_first_video_frame(tmp_path):
    path = write_media(
        tmp_path / "late_video.mkv",
        num_frames=25,
        ticks=list(range(10, 35)),  # the picture starts at 0.4 s
        waveform=ramp,
        audio_seconds=2.0,
    )
    assert index_video(path).start_seconds == pytest.approx(0.4)
    waveform = read_audio(path, 16000)
    assert len(waveform) == 32000 - 6400
    np.testing.assert_allclose(waveform, ramp(0.4 + times_of(waveform)), atol=2**-13)


def test_a_gap_in_the_sound_is_silence_of_its_length(tmp_path):
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for block in [0, 1, 5, 6]:  # blocks of 0.1 s; 2 to 4 are missing
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 16384, dtype=np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, block * 1600
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    waveform = read_audio(path, 16000)
    expected = np.repeat([0.5, 0.5, 0, 0, 0, 0.5, 0.5], 1600)
    np.testing.assert_array_equal(waveform, expected.astype(np.float32))


def test_sound_that_ends_early_is_shorter_than_the_segment(sounding_video):
    assert len(read_audio(sounding_video, 16000, start_seconds=1.5, end_seconds=9.0)) == 8000
    with pytest.raises(MediaError, match="sounding.mkv.*no sound from 2.5 s.*ends at 2.000 s"):
        read_audio(sounding_video, 16000, start_seconds=2.5, end_seconds=3.0)


def test_a_file_without_sound(numbered_video):
    assert not has_audio(numbered_video)
    with pytest.raises(MediaError, match="numbered.mp4.*no sound track"):
        read_audio(numbered_video, 16000)


def test_a_sound_track_without_samples(tmp_path):
    path = tmp_path / "nothing.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    with pytest.raises(MediaError, match="nothing.wav.*holds no samples"):
        read_audio(path, 16000)


def test_samples_that_are_not_finite(tmp_path):
    path = write_media(
        tmp_path / "nan.wav",
        waveform=lambda times: np.where(times < 0.05, 0.0, np.nan),
        audio_codec="pcm_f32le",
        audio_seconds=0.1,
    )
    with pytest.raises(MediaError, match="nan.wav.*not a number"):
        read_audio(path, 16000)
    assert not read_audio(path, 16000, end_seconds=0.05).any()


def test_limits_on_length(tmp_path, monkeypatch):
    path = write_media(tmp_path / "sound.wav", waveform=sine, audio_seconds=1.0)
    monkeypatch.setattr(audio, "MAX_AUDIO_SAMPLES", 8000)
    with pytest.raises(MediaError, match="sound.wav.*longer than 8000 samples"):
        read_audio(path, 16000)
    assert len(read_audio(path, 16000, start_seconds=0.5)) == 8000
    monkeypatch.setattr(audio, "MAX_DECODED_AUDIO_SAMPLES", 10000)
    with pytest.raises(MediaError, match="more than 10000 sound samples"):
        read_audio(path, 16000, start_seconds=0.5)
    assert len(read_audio(path, 16000, end_seconds=0.25)) == 4000


@pytest.mark.parametrize("segment", [(-1.0, None), (0.5, 0.5), (0.50000001, 0.50000002)])
def test_segments_that_are_not_allowed(sounding_video, segment):
    with pytest.raises(ValueError, match="segment"):
        read_audio(sounding_video, 16000, start_seconds=segment[0], end_seconds=segment[1])


def test_a_sampling_rate_that_is_not_allowed(sounding_video):
    with pytest.raises(ValueError, match="sampling_rate is 0"):
        read_audio(sounding_video, 0)


def test_threads_read_what_one_thread_reads(sounding_video):
    alone = read_audio(sounding_video, 16000)
    with ThreadPoolExecutor(4) as pool:
        for waveform in pool.map(lambda _: read_audio(sounding_video, 16000), range(12)):
            np.testing.assert_array_equal(waveform, alone)


# Real files


def test_sound_of_all_real_clips(shared_dir):
    paths = sorted((shared_dir / "data" / "clips" / "videos").iterdir())
    sounding = [path for path in paths if has_audio(path)]
    assert len(sounding) == 36

    def difference(path):
        return abs(len(read_audio(path, 16000)) / 16000 - index_video(path).duration_seconds)

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(difference, sounding)) < 0.15


def test_containers_of_one_shot_are_in_step(shared_dir):
    folder = shared_dir / "data" / "media" / "derived"
    reference = read_audio(folder / "nasa_mjpeg_pcm.mov", 16000)[16000:64000]
    for name, tolerance in [
        ("nasa_h264_aac.mp4", 1),
        ("nasa_h264_ac3.ts", 160),
        ("nasa_vp9_opus.webm", 160),
        ("nasa_theora_vorbis.ogv", 160),
    ]:
        waveform = read_audio(folder / name, 16000)
        shifts = range(-400, 401)
        likeness = [float(reference @ waveform[16000 + shift : 64000 + shift]) for shift in shifts]
        assert abs(shifts[int(np.argmax(likeness))]) <= tolerance, name


@pytest.mark.parametrize("layout, num_channels", [("mono", 1), ("7.1", 8), ("22.2", 24)])
def test_planes_that_are_none_are_not_read(layout, num_channels):
    frame = av.AudioFrame("fltp", layout, 64)
    for channel, plane in enumerate(frame.planes[:num_channels]):
        plane.update(np.full(plane.buffer_size // 4, channel, np.float32).tobytes())
    assert audio._mono([frame, frame]).tolist() == [(num_channels - 1) / 2] * 128


@pytest.mark.parametrize("rate, is_read", [(999, False), (1000, True), (1_000_000, True), (1_000_001, False)])
def test_sampling_rates_that_no_sound_has_are_refused(tmp_path, rate, is_read):
    path = write_media(tmp_path / "sound.wav", waveform=np.sin, audio_seconds=0.1, audio_rate=rate)
    if is_read:
        assert len(read_audio(path, 16000)) == 1600
    else:
        with pytest.raises(MediaError, match=f"{rate} samples per second"):
            read_audio(path, 16000)
