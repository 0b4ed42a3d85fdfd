"""Skeletons of the known pose estimators: which points are shoulders and legs, and which carry signs."""

import functools
from typing import NamedTuple

import numpy as np

from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.pose import PoseComponent, PoseHeader


class Layout(NamedTuple):
    """
    Names of points of an estimator.

    Args:
        estimator (`str`): Its name, for messages.
        body (`str`): Component that has the shoulders, and by which the layout is recognised.
        shoulders (`tuple[str, str]`): Points that poses are normalised by.
        legs (`frozenset[str]`): Points from the hips down, which are hidden.
        others_with_legs (`tuple[str, ...]`): Other components with these points.
    """

    estimator: str
    body: str
    shoulders: tuple[str, str]
    legs: frozenset[str]
    others_with_legs: tuple[str, ...] = ()


class Selection(NamedTuple):
    """
    The points of a skeleton to use.

    Args:
        points (`np.ndarray` of shape `(num_points,)`): Their numbers in the file, `intp`.
        hidden (`np.ndarray` of shape `(num_points,)`): Which of them count as missing in all frames, `bool`.
        in_metres (`np.ndarray` of shape `(num_points,)`): Which of them are not in pixels, `bool`.
        shoulders (`np.ndarray` of shape `(2,)`): Numbers of both shoulders in the file, `intp`.
    """

    points: np.ndarray
    hidden: np.ndarray
    in_metres: np.ndarray
    shoulders: np.ndarray


def _both(*names: str) -> frozenset[str]:
    return frozenset(side + name for name in names for side in ("left_", "right_"))


_HOLISTIC_LEGS = frozenset(name.upper() for name in _both("hip", "knee", "ankle", "heel", "foot_index"))
_OPENPOSE_LEGS = frozenset(
    ["MidHip", *(side + name for side in "LR" for name in ("Hip", "Knee", "Ankle", "BigToe", "SmallToe", "Heel"))]
)
_COCO_LEGS = _both("hip", "knee", "ankle", "big_toe", "small_toe", "heel")
_COCO_SHOULDERS = ("right_shoulder", "left_shoulder")

WORLD = "POSE_WORLD_LANDMARKS"  # of MediaPipe Holistic: the body again, in metres

HOLISTIC = Layout(
    "MediaPipe Holistic", "POSE_LANDMARKS", ("RIGHT_SHOULDER", "LEFT_SHOULDER"), _HOLISTIC_LEGS, (WORLD,)
)
LAYOUTS = (
    HOLISTIC,
    Layout("OpenPose", "pose_keypoints_2d", ("RShoulder", "LShoulder"), _OPENPOSE_LEGS),
    Layout("COCO whole-body", "BODY", _COCO_SHOULDERS, _COCO_LEGS),
    Layout("AlphaPose 133", "BODY_133", _COCO_SHOULDERS, _COCO_LEGS),
    Layout("AlphaPose 136", "BODY_136", _COCO_SHOULDERS, _COCO_LEGS),
)
"""Layouts that can be normalised."""

_REDUCED_BODY = frozenset(name.upper() for name in _both("shoulder", "elbow", "wrist", "hip"))

# Points of MediaPipe's face mesh on the outlines of face, eyes, brows and lips.
# fmt: off
_FACE_OUTLINES = (
    0, 7, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80, 81, 82, 84, 87,
    88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158,
    159, 160, 161, 162, 163, 172, 173, 176, 178, 181, 185, 191, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283,
    284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338,
    356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400,
    402, 405, 409, 415, 454, 466,
)
# fmt: on


def select_points(header: PoseHeader, *, reduced: bool) -> Selection:
    """
    Choose the points of a file to use, by the names of its components and points.

    Args:
        header (`PoseHeader`): Header of the file.
        reduced (`bool`): For MediaPipe Holistic, whether to use only hands, arms, hips and the outlines of the face
            (178 points); otherwise, and for other estimators, all points are used.

    Returns:
        `Selection`: The points. The legs are hidden, but keep their places.

    Raises:
        MediaError: The estimator is unknown, or points that are needed have no place in the file.
    """
    try:
        return _select(header.components, reduced)
    except MediaError as error:
        raise MediaError(f"{header.path!r}: {error}") from None


@functools.lru_cache(maxsize=64)
def _select(components: tuple[PoseComponent, ...], reduced: bool) -> Selection:
    names = [component.name for component in components]
    layout = next((layout for layout in LAYOUTS if layout.body in names), None)
    if layout is None:
        known = ", ".join(f"{layout.body} ({layout.estimator})" for layout in LAYOUTS)
        raise MediaError(
            f"its components are {', '.join(names)[:200]}; to be normalised by the shoulders, a pose needs one of "
            f"{known}: estimate it with one of these, or save features of its frames as .npy"
        )
    keys = [(component.name, point) for component in components for point in component.points]
    places = {key: number for number, key in reversed(list(enumerate(keys)))}  # the first of equal names counts
    try:
        shoulders = [places[layout.body, point] for point in layout.shoulders]
    except KeyError as error:
        raise MediaError(f"its component {layout.body} lacks the point {error.args[0][1]}") from None
    if reduced and layout is HOLISTIC:
        keys = _reduced_holistic(components, places)
        points = [places[key] for key in keys]
    else:
        points = list(range(len(keys)))
    with_legs = (layout.body, *layout.others_with_legs)
    selection = Selection(
        np.array(points, dtype=np.intp),
        np.array([name in with_legs and point in layout.legs for name, point in keys]),
        np.array([name == WORLD for name, _ in keys]),
        np.array(shoulders, dtype=np.intp),
    )
    for array in selection:
        array.setflags(write=False)  # they are shared by all files of the layout
    return selection


def _reduced_holistic(
    components: tuple[PoseComponent, ...], places: dict[tuple[str, str], int]
) -> list[tuple[str, str]]:
    """Return component and name of the points that remain."""
    kept: list[tuple[str, str]] = []
    for component in components:
        points = component.points
        if component.name == WORLD:
            continue
        if component.name == HOLISTIC.body:
            points = tuple(point for point in points if point in _REDUCED_BODY)
        elif component.name == "FACE_LANDMARKS":
            points = tuple(str(number) for number in _FACE_OUTLINES)
        kept += [(component.name, point) for point in points]
    lacking = [point for name, point in kept if (name, point) not in places]
    if lacking:
        raise MediaError(
            f"its component FACE_LANDMARKS lacks the points {', '.join(lacking[:5])}; set `points` to 'all' to use "
            "the points that it has"
        )
    return kept
