"""Tests of reading audio: samples, time alignment, segments and limits."""

import wave
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest

from simple_multimodal.media import MediaError, audio, audio_index, has_audio, index_video, read_audio
from simple_multimodal.media.errors import NoAudioError
from simple_multimodal.media.index_cache import index_cache
from tests.media.media_files import write_media


def sine(times: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * times)


def ramp(times: np.ndarray) -> np.ndarray:
    return times / 4


def times_of(waveform: np.ndarray, sampling_rate: int = 16000) -> np.ndarray:
    return np.arange(len(waveform)) / sampling_rate


def test_samples_come_back_unchanged_at_their_own_rate(tmp_path):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=0.5)
    waveform = read_audio(path, 16000)
    assert waveform.dtype == np.float32 and waveform.shape == (8000,)
    np.testing.assert_allclose(waveform, sine(times_of(waveform)), atol=2**-15)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_has_full_scale_one(tmp_path, codec):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_codec=codec, audio_seconds=0.2)
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
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=1.0, audio_rate=audio_rate)
    waveform = read_audio(path, 16000)
    assert abs(len(waveform) - 16000) <= 1
    inner = slice(200, -200)  # the resampler has no samples beyond the ends
    np.testing.assert_allclose(waveform[inner], sine(times_of(waveform))[inner], atol=2e-3)


@pytest.mark.parametrize(
    ("suffix", "codec", "audio_rate"),
    [("flac", "flac", 16000), ("m4a", "aac", 16000), ("mp3", "libmp3lame", 16000), ("ogg", "libopus", 48000)],
)
def test_audio_files_of_common_codecs_are_read(tmp_path, suffix, codec, audio_rate):
    path = write_media(
        tmp_path / f"audio.{suffix}", waveform=sine, audio_codec=codec, audio_rate=audio_rate, audio_seconds=1.0
    )
    assert has_audio(path)
    waveform = read_audio(path, 16000)
    assert 15900 <= len(waveform) <= 17600  # some codecs pad the last block
    inner = slice(2000, 14000)
    error = waveform[inner] - sine(times_of(waveform))[inner]
    assert np.abs(error).max() < (1e-4 if codec == "flac" else 0.05)


def test_a_segment_starts_at_its_time(video_with_audio):
    for start, end in [(0.5, 1.0), (0.3333, 0.7777), (1.999, 2.5)]:
        waveform = read_audio(video_with_audio, 16000, start_seconds=start, end_seconds=end)
        first, stop = round(start * 16000), min(round(end * 16000), 32000)
        assert len(waveform) == stop - first
        np.testing.assert_allclose(waveform, ramp(np.arange(first, stop) / 16000), atol=2**-14)


@pytest.mark.parametrize("audio_rate", [16000, 44100])
def test_neighbouring_segments_make_up_the_whole(tmp_path, audio_rate):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=1.0, audio_rate=audio_rate)
    cuts = [0.0, 0.1, 0.33333, 0.5, 0.98765, None]
    pieces = [
        read_audio(path, 16000, start_seconds=a, end_seconds=b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), read_audio(path, 16000))


def test_silence_precedes_an_audio_track_that_starts_late(tmp_path):
    path = write_media(tmp_path / "late.mkv", num_frames=50, waveform=np.ones_like, audio_start=0.5, audio_seconds=1.0)
    waveform = read_audio(path, 16000)
    assert len(waveform) == 24000
    assert not waveform[:8000].any() and (waveform[8000:] > 0.99).all()
    assert not read_audio(path, 16000, start_seconds=0.1, end_seconds=0.3).any()


def test_time_runs_from_the_first_video_frame(tmp_path):
    path = write_media(
        tmp_path / "late_video.mkv",
        num_frames=25,
        ticks=list(range(10, 35)),  # the video starts at 0.4 s
        waveform=ramp,
        audio_seconds=2.0,
    )
    assert index_video(path).start_seconds == pytest.approx(0.4)
    waveform = read_audio(path, 16000)
    assert len(waveform) == 32000 - 6400
    np.testing.assert_allclose(waveform, ramp(0.4 + times_of(waveform)), atol=2**-13)


def test_a_gap_in_the_audio_is_silence_of_its_length(tmp_path):
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


def test_audio_that_ends_early_is_shorter_than_the_segment(video_with_audio):
    assert len(read_audio(video_with_audio, 16000, start_seconds=1.5, end_seconds=9.0)) == 8000
    with pytest.raises(MediaError, match="sounding.mkv.*no audio after 2.5 s.*ends at 2.000 s"):
        read_audio(video_with_audio, 16000, start_seconds=2.5, end_seconds=3.0)


def test_a_file_without_audio_is_refused(numbered_video):
    assert not has_audio(numbered_video)
    with pytest.raises(MediaError, match="numbered.mp4.*no audio track"):
        read_audio(numbered_video, 16000)


def test_an_audio_track_without_samples_is_refused(tmp_path):
    path = tmp_path / "nothing.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    with pytest.raises(MediaError, match="nothing.wav.*has no samples"):
        read_audio(path, 16000)


def test_non_finite_samples_are_refused(tmp_path):
    path = write_media(
        tmp_path / "nan.wav",
        waveform=lambda times: np.where(times < 0.05, 0.0, np.nan),
        audio_codec="pcm_f32le",
        audio_seconds=0.1,
    )
    with pytest.raises(MediaError, match="nan.wav.*not a number"):
        read_audio(path, 16000)
    assert not read_audio(path, 16000, end_seconds=0.05).any()


def test_audio_beyond_the_length_limits_is_refused(tmp_path, monkeypatch):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=1.0)
    monkeypatch.setattr(audio, "MAX_AUDIO_SAMPLES", 8000)
    with pytest.raises(MediaError, match="audio.wav.*longer than 8000 samples"):
        read_audio(path, 16000)
    assert len(read_audio(path, 16000, start_seconds=0.5)) == 8000
    monkeypatch.setattr(audio_index, "MAX_DECODED_AUDIO_SAMPLES", 10000)
    with pytest.raises(MediaError, match="more than 10000 audio samples"):
        read_audio(path, 16000, start_seconds=0.5)
    assert len(read_audio(path, 16000, end_seconds=0.25)) == 4000


@pytest.mark.parametrize("segment", [(-1.0, None), (0.5, 0.5), (0.50000001, 0.50000002)])
def test_invalid_segments_are_refused(video_with_audio, segment):
    with pytest.raises(ValueError, match="segment"):
        read_audio(video_with_audio, 16000, start_seconds=segment[0], end_seconds=segment[1])


def test_an_invalid_sampling_rate_is_refused(video_with_audio):
    with pytest.raises(ValueError, match="sampling_rate is 0"):
        read_audio(video_with_audio, 0)


def test_threads_read_the_same_audio_as_a_single_thread(video_with_audio):
    alone = read_audio(video_with_audio, 16000)
    with ThreadPoolExecutor(4) as pool:
        for waveform in pool.map(lambda _: read_audio(video_with_audio, 16000), range(12)):
            np.testing.assert_array_equal(waveform, alone)


# Real files


def test_audio_of_all_real_clips_is_as_long_as_the_video(shared_dir):
    paths = sorted((shared_dir / "data" / "clips" / "videos").iterdir())
    sounding = [path for path in paths if has_audio(path)]
    assert len(sounding) == 36

    def difference(path):
        return abs(len(read_audio(path, 16000)) / 16000 - index_video(path).duration_seconds)

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(difference, sounding)) < 0.15


def test_audio_is_in_sync_across_containers_of_one_clip(shared_dir):
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
def test_nonexistent_planes_are_not_read(layout, num_channels):
    frame = av.AudioFrame("fltp", layout, 64)
    for channel, plane in enumerate(frame.planes[:num_channels]):
        plane.update(np.full(plane.buffer_size // 4, channel, np.float32).tobytes())
    assert audio._mono([frame, frame]).tolist() == [(num_channels - 1) / 2] * 128


@pytest.mark.parametrize("rate, is_read", [(999, False), (1000, True), (1_000_000, True), (1_000_001, False)])
def test_implausible_sampling_rates_are_refused(tmp_path, rate, is_read):
    path = write_media(tmp_path / "audio.wav", waveform=np.sin, audio_seconds=0.1, audio_rate=rate)
    if is_read:
        assert len(read_audio(path, 16000)) == 1600
    else:
        with pytest.raises(MediaError, match=f"{rate} samples per second"):
            read_audio(path, 16000)


# Which tracks are read


LATE = {"num_frames": 75, "waveform": sine, "audio_start": 1.0, "audio_seconds": 1.5}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("late.ts", {"audio_codec": "aac"}),
        ("late.mts", {"audio_codec": "ac3", "audio_rate": 48000}),
        (
            "late.m2ts",
            {"codec": "mpeg2video", "codec_options": {"qscale": "2"}, "audio_codec": "mp2", "audio_rate": 44100},
        ),
        ("late.mpg", {"codec": "mpeg2video", "codec_options": {"qscale": "2"}, "audio_codec": "mp2"}),
        ("late.flv", {"audio_codec": "aac"}),
        ("late.mkv", {"audio_codec": "aac"}),
        ("late.mp4", {"audio_codec": "aac"}),
    ],
)
def test_an_audio_track_with_late_packets_is_read(tmp_path, name, settings):
    path = write_media(tmp_path / name, **LATE, **settings)
    assert has_audio(path)
    waveform = read_audio(path, 16000)
    assert len(waveform) / 16000 == pytest.approx(2.5, abs=0.15)
    assert np.abs(waveform[:15000]).max() < 0.01 and np.abs(waveform[20000:36000]).max() > 0.4
    tracks = index_video(path).tracks
    assert tracks.audio is not None


def test_audio_beyond_the_probed_range_is_read(tmp_path):
    settings = {"codec_options": {"g": "25", "crf": "30"}, "rate": 5, "audio_codec": "aac"}
    path = write_media(
        tmp_path / "late.ts", num_frames=60, waveform=sine, audio_start=9, audio_seconds=2.0, **settings
    )
    waveform = read_audio(path, 16000)
    assert not waveform[: 8 * 16000].any() and np.abs(waveform[10 * 16000 :]).max() > 0.4


# Late segments


@pytest.fixture
def seeks_early(monkeypatch):
    """Lower the limits so that segments of small files count as late."""
    monkeypatch.setattr(audio, "SEEK_SECONDS", 2.0)
    monkeypatch.setattr(audio_index, "ENTRY_SECONDS", 0.5)


def music(times: np.ndarray) -> np.ndarray:
    """Return changing tones with intermittent noise."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, len(times)) * (times % 1.1 > 0.6)
    return (0.3 * np.sin(2 * np.pi * (300 + 40 * np.sin(3 * times)) * times) + noise).astype(np.float32)


def by_seeking(path, monkeypatch, sampling_rate=16000, **segment) -> np.ndarray:
    """Read a segment of an indexed file, and check that it is not decoded from the start."""
    read_audio(path, sampling_rate, start_seconds=2.0, end_seconds=2.1)
    with monkeypatch.context() as patch:
        patch.delattr(audio, "timed_frames")
        return read_audio(path, sampling_rate, **segment)


SEGMENTS = [(2.0, 2.5), (3.3333, 4.4321), (5.5, None), (7.9, 12.0)]


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("music.wav", "pcm_s16le", 44100),
        ("music.aiff", "pcm_s16be", 44100),
        ("music.w64", "pcm_f32le", 48000),
        ("music.mov", "pcm_s16le", 44100),
        ("music.flac", "flac", 44100),
        ("music.mp3", "libmp3lame", 44100),
        ("music.m4a", "aac", 44100),
        ("music.aac", "aac", 44100),
        ("music.mka", "aac", 44100),
        ("music.flv", "aac", 44100),
        ("music.ts", "aac", 44100),
        ("music.m2ts", "mp2", 48000),
        ("music.avi", "libmp3lame", 44100),
        ("flac.mkv", "flac", 16000),
        ("flac.ogg", "flac", 22050),
        ("alac.m4a", "alac", 44100),
    ],
)
def test_a_late_segment_equals_decoding_from_the_start(tmp_path, monkeypatch, name, codec, rate):
    path = write_media(
        tmp_path / name,
        waveform=music,
        audio_codec=codec,
        audio_rate=rate,
        audio_seconds=8.0,
        audio_options={"aac_pns": "0"} if codec == "aac" else {},
    )
    whole = {sampling_rate: read_audio(path, sampling_rate) for sampling_rate in (16000, 48000)}
    monkeypatch.setattr(audio, "SEEK_SECONDS", 2.0)
    monkeypatch.setattr(audio_index, "ENTRY_SECONDS", 0.5)
    for sampling_rate, expected in whole.items():
        for start, end in SEGMENTS:
            waveform = by_seeking(path, monkeypatch, sampling_rate, start_seconds=start, end_seconds=end)
            stop = None if end is None else round(end * sampling_rate)
            np.testing.assert_array_equal(waveform, expected[round(start * sampling_rate) : stop])


@pytest.mark.parametrize(
    ("name", "codec"),
    [("noisy.m4a", "aac"), ("music.opus", "libopus"), ("music.webm", "libopus"), ("music.m2ts", "ac3")],
)
def test_a_late_segment_of_any_codec_is_the_same_every_time(tmp_path, monkeypatch, seeks_early, name, codec):
    path = write_media(tmp_path / name, waveform=music, audio_codec=codec, audio_rate=48000, audio_seconds=8.0)
    segment = {"start_seconds": 4.2, "end_seconds": 5.7}
    first = by_seeking(path, monkeypatch, **segment)
    second = by_seeking(path, monkeypatch, **segment)
    np.testing.assert_array_equal(first, second)
    monkeypatch.setattr(audio, "SEEK_SECONDS", 120.0)
    assert len(first) == 24000 and np.abs(first - read_audio(path, 16000, **segment)).max() < 0.3


def test_an_early_segment_is_decoded_from_the_start(tmp_path, monkeypatch):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=1.0)
    monkeypatch.delattr(audio, "frames_from")
    assert len(read_audio(path, 16000, start_seconds=0.5)) == 8000


def test_late_segments_keep_gaps_and_the_time_of_the_first_frame(tmp_path, monkeypatch):
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=5)
        video.width = video.height = 16
        stream = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        for number in range(40):
            image = av.VideoFrame(16, 16, "yuv420p")
            image.pts, image.time_base = number + 2, Fraction(1, 5)  # the video starts at 0.4 s
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        for block in [*range(35), *range(45, 80)]:  # of 0.1 s; one second is missing
            samples = np.random.default_rng(block).integers(-9999, 9999, (1, 4410)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, block * 4410, Fraction(1, 44100)
            container.mux(stream.encode(frame))
    whole = read_audio(path, 16000)
    assert not whole[round(3.15 * 16000) : round(4.05 * 16000)].any() and len(whole) == pytest.approx(
        7.6 * 16000, abs=2
    )
    monkeypatch.setattr(audio, "SEEK_SECONDS", 2.0)
    monkeypatch.setattr(audio_index, "ENTRY_SECONDS", 0.5)
    for start, end in [(2.2, 3.0), (2.9, 4.3), (3.3, 3.9), (3.3, 4.5), (6.0, None)]:
        waveform = by_seeking(path, monkeypatch, start_seconds=start, end_seconds=end)
        stop = None if end is None else round(end * 16000)
        np.testing.assert_array_equal(waveform, whole[round(start * 16000) : stop])


def test_the_index_of_an_audio_track_is_stored(tmp_path, monkeypatch, seeks_early):
    path = write_media(tmp_path / "audio.flac", waveform=music, audio_codec="flac", audio_seconds=6.0)
    first = read_audio(path, 16000, start_seconds=4.0, index_dir=tmp_path / "index")
    assert len(list((tmp_path / "index").rglob("*.audio.safetensors"))) == 1
    index_cache.audio_indices.clear()
    monkeypatch.delattr(audio, "build_audio_index")
    np.testing.assert_array_equal(read_audio(path, 16000, start_seconds=4.0, index_dir=tmp_path / "index"), first)


def test_a_file_is_decoded_from_the_start_if_seeking_misses_the_packet(tmp_path, monkeypatch, seeks_early, caplog):
    path = write_media(tmp_path / "audio.flac", waveform=music, audio_codec="flac", audio_seconds=6.0)
    expected = read_audio(path, 16000)[64000:]

    def lost(*_):
        raise audio_index.LostPlaceError
        yield

    monkeypatch.setattr(audio, "frames_from", lost)
    np.testing.assert_array_equal(read_audio(path, 16000, start_seconds=4.0), expected)
    assert "seeking does not find its audio" in caplog.text


@pytest.mark.parametrize("name", ["empty.mkv", "empty.mov"])
def test_a_late_segment_of_a_track_without_packets_is_refused(tmp_path, seeks_early, name):
    path = write_media(tmp_path / name, num_frames=9, waveform=sine, audio_seconds=0.0)
    with pytest.raises(NoAudioError, match="no audio"):
        read_audio(path, 16000, start_seconds=3.0)


def test_a_late_segment_after_the_end_is_refused(tmp_path, seeks_early):
    path = write_media(tmp_path / "audio.wav", waveform=sine, audio_seconds=4.0)
    with pytest.raises(NoAudioError, match="no audio after 4.5.* s; it ends at 4.000 s"):
        read_audio(path, 16000, start_seconds=4.5)
    assert len(read_audio(path, 16000, start_seconds=3.9999)) == 2
