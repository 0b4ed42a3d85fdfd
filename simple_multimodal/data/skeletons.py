"""Draw the skeleton of a row for people: points and limbs of its pose at a few moments."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from simple_multimodal.data.rows import Row
from simple_multimodal.media.frame_features import is_feature_file
from simple_multimodal.media.pose import Pose, PoseHeader, read_pose
from simple_multimodal.processing.pose_layouts import WORLD

HEIGHT = 240  # of a drawing, in pixels
MAX_WIDTH = 4 * HEIGHT
BACKGROUND = (24, 26, 30)
COLOURS = ((240, 240, 240), (150, 160, 175), (255, 140, 60), (70, 170, 255), (120, 220, 120))  # of components


class Skeletons(NamedTuple):
    """
    Drawings of a pose.

    Args:
        frames (`np.ndarray` of shape `(num_moments, height, width, 3)`): RGB images, `uint8`.
        seconds (`np.ndarray` of shape `(num_moments,)`): Time of each in the segment, in seconds.
        header (`PoseHeader`): Header of the file.
    """

    frames: np.ndarray
    seconds: np.ndarray
    header: PoseHeader


def draw_skeletons(row: Row, *, num_moments: int, person: int = 0) -> Skeletons | None:
    """
    Draw the pose of a row as it is in the file, before normalisation and augmentation.

    Args:
        row (`Row`): The row.
        num_moments (`int`): Number of evenly spaced frames of the segment to draw; fewer if it has fewer.
        person (`int`, *optional*, defaults to 0): Person to draw, counted from 0.

    Returns:
        [`Skeletons`]; `None` if the row has no pose, its pose is features (`.npy`), or the person is not in the file.

    Raises:
        MediaError: If the file cannot be read.
    """
    if row["pose"] is None or is_feature_file(row["pose"]):
        return None
    pose = read_pose(row["pose"], start_seconds=row["start_seconds"], end_seconds=row["end_seconds"])
    if person >= pose.header.num_people:
        return None
    places = np.linspace(0, len(pose.data) - 1, min(num_moments, len(pose.data))).astype(int)
    data, confidence = pose.data[places, person], pose.confidence[places, person]
    scale, size = _canvas(pose, person)
    frames = np.stack(
        [_draw(pose.header, *moment, scale, size) for moment in zip(data[..., :2], confidence, strict=True)]
    )
    return Skeletons(frames, np.maximum(places / pose.header.rate + pose.offset_seconds, 0.0), pose.header)


def _canvas(pose: Pose, person: int) -> tuple[tuple[float, float, float], tuple[int, int]]:
    """Return where the origin is and the size of a pixel, both in pixels of the video, and width and height of a
    drawing: the frame of the video or, if its size is unknown, all points."""
    left, top, width, height = 0.0, 0.0, float(pose.header.width), float(pose.header.height)
    if not (width and height):
        drawn = np.concatenate([np.full(n, in_pixels) for n, _, in_pixels in _components(pose.header)])
        points = pose.data[:, person, :, :2][(pose.confidence[:, person] != 0) & drawn].astype(np.float64)
        if len(points):
            (left, top), (width, height) = points.min(axis=0), np.ptp(points, axis=0)
    pixel = max(height / HEIGHT, width / MAX_WIDTH, 1e-6)
    return (left, top, pixel), (max(round(width / pixel), 1), max(round(height / pixel), 1))


def _components(header: PoseHeader) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yield number of points and limbs of each component, and whether it is in pixels."""
    for component in header.components:
        yield len(component.points), component.limbs, component.name != WORLD


def _draw(
    header: PoseHeader,
    points: np.ndarray,
    confidence: np.ndarray,
    scale: tuple[float, float, float],
    size: tuple[int, int],
) -> np.ndarray:
    """Draw the points `(num_points, 2)` of a frame, and the limbs between those that are there."""
    left, top, pixel = scale
    image = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    with np.errstate(invalid="ignore", over="ignore"):  # of missing points
        places = np.clip((points.astype(np.float64) - (left, top)) / pixel, -MAX_WIDTH, 2 * MAX_WIDTH)
    begin = 0
    for number, (count, limbs, in_pixels) in enumerate(_components(header)):
        own, is_there = places[begin : begin + count], confidence[begin : begin + count] != 0
        begin += count
        if not in_pixels:
            continue
        colour = COLOURS[number % len(COLOURS)]
        for first, last in limbs[is_there[limbs].all(axis=1)] if len(limbs) else ():
            draw.line([tuple(own[first]), tuple(own[last])], fill=colour)
        for x, y in own[is_there]:
            draw.rectangle([x - 1, y - 1, x + 1, y + 1], fill=colour)
    return np.asarray(image)
