"""Files that were reported to be read wrongly, each with the correct result."""

import numpy as np
import pytest

from simple_multimodal.media import MediaError, get_video_backend, has_audio, index_video, read_audio, with_index


@pytest.fixture
def reported(shared_dir):
    return shared_dir / "data" / "reported"


def frequencies(waveform: np.ndarray) -> list[int]:
    """Return the frequency of the loudest tone of each whole second of a waveform at 16 kHz, in Hz."""
    seconds = waveform[: len(waveform) // 16000 * 16000].reshape(-1, 16000)
    return np.abs(np.fft.rfft(seconds * np.hanning(16000))).argmax(axis=1).tolist()


def test_a_transport_stream_has_the_same_audio_as_the_clip_in_mp4(reported):
    for name in ("camera.ts", "same.mp4"):
        path = reported / "transport_stream" / name
        assert has_audio(path) and index_video(path).tracks.audio.sampling_rate == 44100
        assert frequencies(read_audio(path, 16000)) == [440] * 4


def test_joined_recordings_follow_each_other(reported):
    path = reported / "clock_restarts" / "joined.mpg"
    index = index_video(path)
    assert (index.num_frames, index.duration_seconds) == (150, pytest.approx(6.0, abs=0.01))
    assert frequencies(read_audio(path, 16000)) == [440] * 3 + [1500] * 3
    assert frequencies(read_audio(path, 16000, start_seconds=2, end_seconds=3)) == [440]
    frames = get_video_backend("pyav").frames(path, [74, 75], index).astype(int)
    assert np.abs(frames[0] - frames[1]).mean() > 50  # the test card, and the fractal


def test_audio_that_ends_early_is_read_up_to_its_end(reported):
    path = reported / "sound_ends_early" / "clip.mp4"
    assert len(read_audio(path, 16000, end_seconds=1)) == 16000
    with pytest.raises(MediaError, match="no audio after 2"):
        read_audio(path, 16000, start_seconds=2, end_seconds=3)


def test_a_clip_with_an_edit_list_is_complete(reported, caplog):
    index = index_video(reported / "edit_list" / "cut_without_encoding.mp4")
    assert (index.num_frames, index.num_promised) == (67, 67) and not caplog.text


def test_two_video_tracks_are_read_sparsely(reported, caplog):
    path = reported / "two_pictures" / "slides_and_camera.mkv"
    frames = with_index(path, lambda index: get_video_backend("pyav").frames(path, [0, index.num_frames - 1], index))
    assert len(frames) == 2 and index_video(path).table is not None and not caplog.text
