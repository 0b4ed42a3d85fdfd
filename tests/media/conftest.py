"""Small media files shared by the tests of this folder."""

from pathlib import Path

import pytest

from tests.media.media_files import write_media


@pytest.fixture(scope="session")
def numbered_video(tmp_path_factory) -> Path:
    """An MP4 file with H.264 and B-frames: 60 numbered frames, 25 per second."""
    return write_media(tmp_path_factory.mktemp("media") / "numbered.mp4", num_frames=60)


@pytest.fixture(scope="session")
def video_with_audio(tmp_path_factory) -> Path:
    """2 seconds of numbered frames with a rising ramp as audio: the sample at `t` seconds is `t / 4`."""
    path = tmp_path_factory.mktemp("media") / "sounding.mkv"
    return write_media(path, num_frames=50, waveform=lambda times: times / 4, audio_seconds=2.0)
