"""Frames that are scaled like decord's equal decord's, pixel for pixel, without decord."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from simple_multimodal.media import get_video_backend, index_video, sample_positions, with_index
from tests.media.media_files import write_media

SIZE = (224, 224)

LATE_FRAMES = {f"clip0{number}.mpg" for number in (39, 40, 41, 42, 45, 46, 47, 49)}
"""Clips whose first 12 frames decord skips: it begins to count at the thirteenth."""

OTHER_PIXELS = {"clip013.mp4": 8, "clip027.avi": 2, "clip052.mp4": 7, "clip066.avi": 1}
"""Clips in which a few pixels differ, and the largest difference; docs/alpro.md explains why."""


@pytest.fixture
def decord():
    """The decord package, which is not available on every machine."""
    return pytest.importorskip("decord", reason="needs decord, which has no wheels for this machine")


def write_noise(path: Path, width: int, height: int, pixel_format: str) -> Path:
    """Write three frames of coloured noise, fine and coarse, so that every sampling error shows."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.codec_context.thread_count = 1
        for _ in range(3):
            coarse = generator.integers(0, 128, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
            image = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
            image = image + generator.integers(0, 128, (height, width, 3), dtype=np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(video.encode(None))
    return path


def differences(decord, path: Path, positions: list[int], *, skipped: int = 0) -> np.ndarray:
    """Return our frames minus decord's, `(frames, 3, height, width)`; decord's first frame is our number `skipped`."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, width=SIZE[1], height=SIZE[0])
    expected = reader.get_batch(positions).asnumpy().transpose(0, 3, 1, 2)
    backend = get_video_backend("pyav", is_like_decord=True)
    own_positions = [position + skipped for position in positions]
    frames = with_index(path, lambda index: backend.frames(path, own_positions, index, SIZE))
    return frames.astype(int) - expected


@pytest.mark.parametrize(
    ("width", "height", "pixel_format"),
    [
        (320, 240, "yuv420p"),
        (160, 120, "yuv420p"),
        (224, 300, "yuv420p"),
        (448, 448, "yuv420p"),
        (224, 224, "yuv420p"),
        (320, 240, "yuvj420p"),
        (300, 224, "yuv422p"),
        (300, 224, "yuv444p"),
        (321, 241, "yuv444p"),
    ],
)
def test_pixels_of_every_format_are_equal(decord, tmp_path, width, height, pixel_format):
    path = write_noise(tmp_path / "noise.mp4", width, height, pixel_format)
    assert not differences(decord, path, [0, 1, 2]).any()


def test_all_rows_but_the_last_are_equal_if_the_height_stays(decord, tmp_path):
    path = write_noise(tmp_path / "noise.mp4", 300, SIZE[0], "yuv420p")
    assert not differences(decord, path, [0, 1, 2])[:, :, :-1].any()


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_pixels_of_rotated_files_are_equal(decord, shared_dir, turn):
    assert not differences(decord, shared_dir / f"data/media/decord/video_{turn}.mov", [0, 2]).any()


def test_pixels_of_real_clips_are_equal(decord, shared_dir):
    paths = sorted(shared_dir.glob("data/clips/videos/*"))
    equal = 0
    for path in paths:
        is_late = path.name in LATE_FRAMES
        largest = np.abs(differences(decord, path, [0, 1, 2, 3], skipped=12 if is_late else 0)).max()
        assert largest <= OTHER_PIXELS.get(path.name, 0), path.name
        equal += largest == 0 and not is_late
    assert len(paths) == 52 and equal >= 40


def test_frames_equal_those_of_a_full_decode(tmp_path):
    path = write_media(tmp_path / "numbered.mp4", num_frames=60)
    backend, index = get_video_backend("pyav", is_like_decord=True), index_video(path)
    assert index.table is not None
    positions = sample_positions(index, 8)
    whole = backend.frames(path, positions, replace(index, table=None), (32, 40))
    np.testing.assert_array_equal(backend.frames(path, positions, index, (32, 40)), whole)


def test_frames_that_are_not_scaled_are_unchanged(tmp_path):
    path = write_media(tmp_path / "numbered.mp4", num_frames=10)
    index = index_video(path)
    usual, like_decord = (get_video_backend("pyav", is_like_decord=choice) for choice in (False, True))
    np.testing.assert_array_equal(like_decord.frames(path, [4], index), usual.frames(path, [4], index))


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_other_backends_cannot_scale_like_decord(name):
    with pytest.raises(ValueError, match=f"the {name} backend cannot scale frames like decord; use the pyav backend"):
        get_video_backend(name, is_like_decord=True)
