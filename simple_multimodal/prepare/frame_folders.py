"""Make videos of clips that are published as folders of images, one image per frame."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from simple_multimodal.cores import available_cores
from simple_multimodal.data.roots import Roots
from simple_multimodal.media.errors import MediaError
from simple_multimodal.output_folder import is_full_disk, write_atomically
from simple_multimodal.prepare.settings import PackSettings
from simple_multimodal.progress import can_show_bars

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp"])

VIDEOS_FOLDER = "videos"
"""Folder next to the manifests with the videos that were made."""

PIXEL_FORMAT = "yuv420p"

CAMERA = "1"
"""Folder inside that of a clip that some copies of PHOENIX-2014T have."""


def find_frame_folders(folder: Path, wanted: set[str], *, follow_links: bool) -> dict[str, list[Path]]:
    """
    Find the folders of images of each clip: those with the name of the clip, wherever they are, or the folder `1`
    inside. Each is listed only until its first image.

    Args:
        folder (`Path`): Folder of the clips.
        wanted (`set[str]`): Names of the clips.
        follow_links (`bool`): Whether to follow links that lead out of the folder.
    """
    roots = Roots({"video": folder}, follow_links=follow_links)
    found: dict[str, list[Path]] = {}
    for place, folders, _ in os.walk(folder):
        folders.sort()
        for name in list(folders):
            clip = Path(place, name)
            if name in wanted and (own := next(filter(_has_images, (clip, clip / CAMERA)), None)) is not None:
                folders.remove(name)
                if roots.allows(own):
                    found.setdefault(name, []).append(own)
    return found


def _has_images(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


class MadeVideos(NamedTuple):
    """
    Videos that were made of folders of images.

    Args:
        files (`dict[str, str]`): The file of each clip, relative to the folder of the videos.
        errors (`list[str]`): What is wrong with each folder of which no video could be made.
        with_gaps (`list[str]`): Clips whose images lack numbers between the first and the last.
    """

    files: dict[str, str]
    errors: list[str]
    with_gaps: list[str]


def make_videos(
    folders: Mapping[str, Path], output_dir: Path, *, rate: float, num_threads: int | None = None
) -> MadeVideos:
    """
    Write a video of each folder of images, as `simple-multimodal pack` would: H.264 without audio, in which each frame
    can be decoded alone. A video that was made of images with the same names and sizes is kept.

    Args:
        folders (`Mapping[str, Path]`): Folder of each clip.
        output_dir (`Path`): Folder of the videos, named after the clips.
        rate (`float`): Frames per second.
        num_threads (`int`, *optional*): Number of videos to write at the same time; by default one per core.

    Returns:
        `MadeVideos`: The videos.

    Raises:
        OSError: The disk is full.
    """
    output_dir.mkdir(parents=True, exist_ok=True)

    def make(clip: str) -> bool | str:
        """Return whether images are missing, or what is wrong with the folder."""
        try:
            return _make_video(folders[clip], output_dir / f"{clip}.mp4", rate)
        except MediaError as error:
            return str(error)
        except (OSError, av.FFmpegError) as error:
            if is_full_disk(error):
                raise
            return f"{str(folders[clip])!r}: {error}"

    with ThreadPoolExecutor(num_threads or available_cores()) as pool:
        results = pool.map(make, folders)
        bar = tqdm(results, total=len(folders), desc="Writing videos", unit="clip", disable=not can_show_bars())
        made = dict(zip(folders, bar, strict=True))
    return MadeVideos(
        {clip: f"{clip}.mp4" for clip, result in made.items() if not isinstance(result, str)},
        [result for result in made.values() if isinstance(result, str)],
        [clip for clip, result in made.items() if result is True],
    )


def video_settings(rate: float) -> dict[str, Any]:
    """Return how videos are made, for `protocol.json`."""
    settings = PackSettings()
    return {
        "rate": rate,
        "codec": "h264",
        "pixel_format": PIXEL_FORMAT,
        "crf": settings.crf,
        "group_size": settings.group_size,
    }


def _make_video(folder: Path, target: Path, rate: float) -> bool:
    """Write the video of a folder, unless it exists, and return whether numbers are missing between its images."""
    names = in_order([entry.name for entry in os.scandir(folder) if _is_image(entry.name)])
    sizes = [(name, os.path.getsize(folder / name)) for name in names]
    made_of = hashlib.sha256(json.dumps([sizes, video_settings(rate)]).encode()).hexdigest()
    if not (target.is_file() and _comment(target) == made_of):
        with write_atomically(target) as temporary:
            _encode([folder / name for name in names], temporary, rate, made_of)
    first, last = (_numbers(name)[-1] for name in (names[0], names[-1]))
    return last - first >= len(names)


def in_order(names: Sequence[str]) -> list[str]:
    """
    Return names of images in the order of their numbers: `9.png` precedes `10.png`.

    Raises:
        MediaError: If a name has no number, **or** two have the same.
    """
    numbers: dict[tuple[int, ...], str] = {}
    for name in sorted(names):
        number = _numbers(name)
        if not number or number in numbers:
            other = f"the same number as {numbers[number]!r}" if number else "no number"
            raise MediaError(f"the image {name!r} has {other}, so that the order of the frames is unknown")
        numbers[number] = name
    return [numbers[number] for number in sorted(numbers)]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall("[0-9]+", Path(name).stem)))


def _encode(images: Sequence[Path], target: Path, rate: float, comment: str) -> None:
    settings = PackSettings()
    frame_rate = Fraction(rate).limit_denominator(1001)
    with av.open(str(target), "w", format="mp4") as output:
        output.metadata["comment"] = comment
        video = output.add_stream("libx264", rate=frame_rate, options=settings.x264_options)
        video.codec_context.thread_count = 1  # videos are written in parallel
        shape: tuple[int, ...] | None = None
        for path in images:
            pixels = _read_image(path)
            if shape is None:
                shape = pixels.shape
                video.height, video.width = (max(2 * round(length / 2), 2) for length in shape[:2])
                video.pix_fmt = PIXEL_FORMAT
            if pixels.shape != shape:
                raise MediaError(
                    f"{str(path)!r}: has {pixels.shape[1]}x{pixels.shape[0]} pixels, but the images before it have "
                    f"{shape[1]}x{shape[0]}"
                )
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            output.mux(video.encode(frame.reformat(video.width, video.height, PIXEL_FORMAT)))
        output.mux(video.encode(None))


def _read_image(path: Path) -> np.ndarray:
    """Return the pixels of an image, `uint8` of shape `(height, width, 3)`."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{str(path)!r}: is not an image that can be read: {error}") from error


def _comment(path: Path) -> str | None:
    try:
        with av.open(str(path)) as file:
            return file.metadata.get("comment")
    except av.FFmpegError:
        return None
