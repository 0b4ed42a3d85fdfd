"""Small media files for the tests of the data package."""

from pathlib import Path

import av
import numpy as np
import pytest


def write_video(path: Path, *, num_frames: int, seed: int, has_sound: bool, fps: int = 10) -> None:
    """A video of 48 x 32 pixels of changing grey, with noise as long as the picture if it `has_sound`."""
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if has_sound else None
        for number in range(num_frames):
            picture = np.full((32, 48, 3), 20 + 200 * number // num_frames, dtype=np.uint8)
            picture[8:24, 8:24] = generator.integers(0, 256, 3)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            sound = (0.1 * generator.standard_normal((1, 16000 * num_frames // fps))).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `sound{0,1,2}.mp4` (1, 2 and 3 seconds), a silent, a short, a broken and an empty video."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        write_video(folder / f"sound{number}.mp4", num_frames=10 * (number + 1), seed=number, has_sound=True)
    write_video(folder / "silent.mp4", num_frames=12, seed=7, has_sound=False)
    write_video(folder / "one_frame.mp4", num_frames=1, seed=8, has_sound=False)
    (folder / "broken.mp4").write_bytes((folder / "sound0.mp4").read_bytes()[:500])
    (folder / "empty.mp4").touch()
    (folder / "caption.txt").write_text("  a caption from a file\n", encoding="utf-8")
    return folder
