"""Write many distinct videos, cut from real clips and encoded with x264's defaults, for `random_frames.py`.

python benchmarks/make_videos.py CLIPS_FOLDER OUT [--num_videos 200] [--num_frames 208]
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.media import index_video
from simple_multimodal.media.container import decode_frames, open_media, open_video_stream

WIDTH, HEIGHT = 480, 360
GROUP_SIZES = (30, 250)


def write(path: Path, frames: list[np.ndarray], group_size: int) -> None:
    """Encode frames (stacked yuv420p planes) in groups of `group_size`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": str(group_size)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, planes in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num_videos", type=int, default=200)
    parser.add_argument("--num_frames", type=int, default=208)
    options = parser.parse_args()
    sources = []
    for path in sorted(options.clips.iterdir()):
        with open_media(path) as container:
            stream = open_video_stream(container, index_video(path).stream, path)
            sources.append(
                [p.reformat(WIDTH, HEIGHT, "yuv420p").to_ndarray() for p in decode_frames(container, stream)]
            )
    for group_size in GROUP_SIZES:
        (options.out / f"groups_of_{group_size}").mkdir(parents=True, exist_ok=True)

    def make(number: int) -> None:
        generator = sample_generator(0, 0, str(number), "cuts")
        frames: list[np.ndarray] = []
        while len(frames) < options.num_frames:
            source = sources[generator.integers(len(sources))]
            length = min(int(generator.integers(40, 160)), len(source))
            start = int(generator.integers(len(source) - length + 1))
            frames += source[start : start + length]
        for group_size in GROUP_SIZES:
            path = options.out / f"groups_of_{group_size}" / f"{number:04}.mp4"
            if not path.exists():
                write(path.with_suffix(".part.mp4"), frames[: options.num_frames], group_size)
                path.with_suffix(".part.mp4").replace(path)

    with ThreadPoolExecutor(2) as pool:
        list(tqdm(pool.map(make, range(options.num_videos)), total=options.num_videos))


if __name__ == "__main__":
    main()
