"""Tests of the timeline: missing and wrong time stamps, and recordings whose clock restarts."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.media import get_video_backend, index_video, read_audio
from simple_multimodal.media.clock import REORDER_FRAMES, find_runs, make_timeline
from simple_multimodal.media.index_cache import FrameIndexCache
from tests.media.media_files import read_number, write_media

STEP = Fraction(40)


def ticks_of(stamps: list[int | None], step: Fraction = STEP) -> list[int]:
    return make_timeline(stamps, step).ticks.tolist()


def test_times_are_sorted_and_counted_from_the_earliest():
    timeline = make_timeline([1, 4, 3, 5], Fraction(1))
    assert timeline.ticks.tolist() == [0, 2, 3, 4]
    assert (timeline.start, timeline.is_in_order, timeline.offsets) == (1, False, [0])


@pytest.mark.parametrize(
    ("stamps", "ticks"),
    [
        ([100, None, 180], [0, 40, 80]),
        ([None, None, 180, 220], [0, 40, 80, 120]),  # before the first known one
        ([100, 140, None, None], [0, 40, 80, 120]),
        ([None, None, None], [0, 40, 80]),
        ([-80, -40, 0, 40], [0, 40, 80, 120]),
        ([-80, None, 0, 40], [0, 40, 80, 120]),
    ],
)
def test_missing_and_negative_time_stamps_are_handled(stamps, ticks):
    assert ticks_of(stamps) == ticks


@pytest.mark.parametrize("wrong", [-(10**9), 0, 10**9])
@pytest.mark.parametrize("place", [20, 31])
def test_one_wrong_time_stamp_does_not_move_other_frames(wrong, place):
    stamps = list(range(1000, 3000, 40))
    expected = ticks_of(stamps)
    stamps[place] = wrong
    assert ticks_of(stamps) == expected


@pytest.mark.parametrize("first", [-5000, 0, 1000, 2200])
def test_time_continues_where_a_clock_restarts(first):
    first_recording, second = list(range(1000, 3000, 40)), list(range(first, first + 2000, 40))
    timeline = make_timeline(first_recording + second, STEP)
    assert timeline.ticks.tolist() == list(range(0, 4000, 40))
    assert timeline.run_starts == [0, 50] and timeline.offsets == [0, 3000 - first] and timeline.start == 1000
    assert not timeline.is_in_order


def test_reordering_is_not_a_restart():
    """Time stamps that go back by as many frames as a codec may reorder, and by one more."""
    for depth in (REORDER_FRAMES + 1, REORDER_FRAMES + 2):
        stamps = [*range(100), *range(100 - depth, 100 - depth + 40)]
        assert len(find_runs(list(stamps))) == (1 if depth == REORDER_FRAMES + 1 else 2)


def test_any_number_of_recordings_can_be_joined():
    stamps = [*range(50), *range(7, 40), *range(100)]
    assert ticks_of(stamps, Fraction(1)) == list(range(183))


def test_absurd_time_stamps_stay_in_range():
    stamps = [2**62, *range(40), -(2**62), *range(40, 80), 2**63 - 1]
    ticks = make_timeline(stamps, Fraction(1)).ticks
    assert (np.diff(ticks) >= 0).all() and ticks[0] == 0


# Files


MPEG2 = {"codec": "mpeg2video", "codec_options": {"qscale": "2", "g": "10", "bf": "2"}}
H264 = {"codec_options": {"g": "12", "bf": "2", "crf": "10"}}
MP2 = {"audio_codec": "mp2", "audio_rate": 44100}
AAC = {"audio_codec": "aac", "audio_rate": 44100}


def write_recording(path: Path, first_number: int, frequency: float, audio_seconds: float = 2.0, **settings) -> bytes:
    audio = {
        "waveform": lambda times: np.sin(2 * np.pi * frequency * times) / 2,
        "audio_seconds": audio_seconds,
        **{name: settings.pop(name) for name in ("audio_codec", "audio_rate")},
    }
    write_media(path, num_frames=50, first_number=first_number, **(audio if audio_seconds else {}), **settings)
    return path.read_bytes()


def join(path: Path, audio_seconds: tuple[float, ...], **settings) -> Path:
    """Write recordings of two seconds one after the other: frames 0 to 49 with 440 Hz, 50 to 99 with 880 Hz, ..."""
    recordings = [
        write_recording(path, 50 * number, 440 * 2**number, seconds, **settings)
        for number, seconds in enumerate(audio_seconds)
    ]
    path.write_bytes(b"".join(recordings))
    return path


def frequency_of(waveform: np.ndarray) -> float:
    """Return the frequency of the loudest tone of a waveform at 16 kHz; 0 for silence."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * 16000 / len(waveform)) if np.abs(waveform).max() > 0.1 else 0.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("joined.mpg", MPEG2 | MP2),
        ("joined.vob", MPEG2 | {"audio_codec": "ac3", "audio_rate": 48000}),
        ("joined.ts", H264 | AAC),
        ("joined.m2ts", MPEG2 | MP2),
        ("joined.mts", {"codec": "libx265", "codec_options": {"crf": "10", "x265-params": "log-level=none"}} | AAC),
    ],
)
@pytest.mark.parametrize("audio_seconds", [(2.0, 2.0), (1.0, 2.0), (3.0, 2.0), (2.0, 2.0, 2.0), (0.0, 2.0)])
def test_joined_recordings_follow_each_other(tmp_path, name, settings, audio_seconds):
    if audio_seconds[0] == 0.0 and name.endswith((".ts", ".m2ts", ".mts")):
        pytest.skip("the streams of a transport stream are listed in the first recording")
    path = join(tmp_path / name, audio_seconds, **settings)
    index = index_video(path)
    num_frames = 50 * len(audio_seconds)
    assert index.num_frames == num_frames and len(index.clock_runs) == len(audio_seconds) - 1
    np.testing.assert_allclose(index.seconds, np.arange(num_frames) / 25, atol=1e-3)
    assert index.duration_seconds == pytest.approx(num_frames / 25, abs=1e-3)
    frames = get_video_backend("pyav").frames(path, range(num_frames), index)
    assert [read_number(frame) for frame in frames] == list(range(num_frames))
    waveform = read_audio(path, 16000)
    assert len(waveform) / 16000 == pytest.approx(num_frames / 25, abs=0.1)
    for number, seconds in enumerate(audio_seconds):
        begin = 2 * number * 16000
        for second in range(2):
            middle = waveform[begin + second * 16000 + 3000 : begin + second * 16000 + 13000]
            expected = 440 * 2**number if second < seconds else 0
            assert frequency_of(middle) == pytest.approx(expected, abs=5), (number, second)
    segment = read_audio(path, 16000, start_seconds=2.5, end_seconds=3.5)
    np.testing.assert_array_equal(segment, waveform[40000:56000])


def test_the_index_of_a_joined_file_is_read_from_disk(tmp_path):
    path = join(tmp_path / "joined.mpg", (2.0, 2.0), **MPEG2, **MP2)
    built = FrameIndexCache(4).get(path, tmp_path / "index")
    stored = FrameIndexCache(4).get(path, tmp_path / "index")
    assert stored.clock_runs == built.clock_runs and len(stored.clock_runs) == 1
    assert stored.tracks == built.tracks


def test_audio_without_video_continues_where_its_clock_restarts(tmp_path):
    recordings = []
    for frequency in (440, 880):
        write_media(
            tmp_path / "one.ts",
            waveform=lambda times, frequency=frequency: np.sin(2 * np.pi * frequency * times) / 2,
            audio_seconds=2.0,
            audio_codec="mp2",
        )
        recordings.append((tmp_path / "one.ts").read_bytes())
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(recordings))
    waveform = read_audio(path, 16000)
    assert len(waveform) / 16000 == pytest.approx(4, abs=0.2)
    assert [frequency_of(waveform[begin : begin + 16000]) for begin in (8000, 40000)] == pytest.approx(
        [440, 880], abs=5
    )
