"""How a sentence of the signed toy world is performed: the points of the signer, as poses and as drawn frames."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simple_multimodal.defaults import Hand
from simple_multimodal.media.pose import PoseComponent
from simple_multimodal.prepare.toy.media import FRAME_SIZE, toy_generator
from simple_multimodal.prepare.toy.sentences import Sign

SIGN_RATE = 25  # frames per second, of poses and clips

# In widths of the shoulders from the middle between them: x outwards, to the side of the hand, and y downwards.
SPOT_CENTRES = {
    "face": (0.35, -0.65),
    "cheek": (0.9, -0.4),
    "side": (1.0, 0.3),
    "chest": (0.35, 0.3),
    "belly": (0.55, 0.9),
}
REST = (0.7, 1.35)
MOVEMENT_SIZE = 0.28  # from the centre of a movement to its ends
TRANSITION = 0.35  # share of the time of a sign in which the hand goes to it

PALM = 0.2  # from the wrist to the knuckles
FINGER = 0.34  # from the knuckles to the tip of a stretched finger
FINGER_ANGLES = np.radians([-75.0, -27.0, -5.0, 17.0, 40.0])  # thumb to little finger, from straight up
SHAPE_FINGERS = {  # which fingers are stretched
    "fist": (0, 0, 0, 0, 0),
    "thumb": (1, 0, 0, 0, 0),
    "point": (0, 1, 0, 0, 0),
    "fork": (0, 1, 1, 0, 0),
    "flat": (1, 1, 1, 1, 1),
}

_FINGER_NAMES = ("THUMB", "INDEX_FINGER", "MIDDLE_FINGER", "RING_FINGER", "PINKY")
_JOINTS = (("CMC", "MCP", "IP", "TIP"), *[("MCP", "PIP", "DIP", "TIP")] * 4)
_HAND_POINTS = (
    "WRIST",
    *(f"{finger}_{joint}" for finger, joints in zip(_FINGER_NAMES, _JOINTS, strict=True) for joint in joints),
)
_HAND_LIMBS = np.array([(0 if n % 4 == 1 else n - 1, n) for n in range(1, 21)], dtype=np.uint16)
_BODY_POINTS = tuple(f"{side}_{name}" for name in ("SHOULDER", "ELBOW", "WRIST") for side in ("LEFT", "RIGHT"))
_BODY_LIMBS = np.array([(0, 1), (0, 2), (1, 3), (2, 4), (3, 5)], dtype=np.uint16)
COMPONENTS = (
    PoseComponent("POSE_LANDMARKS", "XYC", _BODY_POINTS, _BODY_LIMBS),
    PoseComponent("LEFT_HAND_LANDMARKS", "XYC", _HAND_POINTS, _HAND_LIMBS),
    PoseComponent("RIGHT_HAND_LANDMARKS", "XYC", _HAND_POINTS, _HAND_LIMBS),
)
"""Skeleton of the poses: the 48 of MediaPipe Holistic's points that arms and hands have."""

SIDES: dict[Hand, int] = {"left": 1, "right": -1}  # x of the hand, seen by the camera
HAND_POINTS: dict[Hand, slice] = {"left": slice(6, 27), "right": slice(27, 48)}
ARM_POINTS: dict[Hand, list[int]] = {"left": [2, 4], "right": [3, 5]}  # elbow and wrist

GLOVES: dict[Hand, tuple[int, int, int]] = {"left": (60, 225, 235), "right": (250, 205, 40)}
FINGER_WIDTH = 2.2  # pixels
WINDOW = 30  # pixels around a hand that are drawn


@dataclass(frozen=True)
class Signer:
    """
    A person who signs, with habits. The processor of poses normalises those of the camera, but not the others.

    Args:
        name (`str`): Name, such as `"signer_00"`.
        pace (`float`): Share of a clip that a performance takes.
        x, y, size (`float`): Where the camera sees the middle of the shoulders, and their width, in pixels.
        reach (`float`): Size of movements and of the space in which they are made, as a factor.
        height (`float`): How far hands are held below their usual place, in widths of the shoulders.
        tilt (`float`): How far movements are turned, in radians.
        hand_size (`float`): Size of the hands, as a factor.
        bend (`float`): How far a stretched finger is bent, and a bent one stretched, as a share.
        fingers (`tuple[float, ...]`): How much further each of five fingers is stretched in all shapes, as a share.
        spread (`float`): Angles between fingers, as a factor.
        noise (`float`): Standard deviation of the points of a pose, in widths of the shoulders.
        clothes, backdrop (`tuple[float, ...]`): RGB colours.
    """

    name: str
    pace: float
    x: float
    y: float
    size: float
    reach: float
    height: float
    tilt: float
    hand_size: float
    bend: float
    fingers: tuple[float, ...]
    spread: float
    noise: float
    clothes: tuple[float, ...]
    backdrop: tuple[float, ...]


class Performance(NamedTuple):
    """
    What a signer shows in a clip.

    Args:
        points (`np.ndarray` of shape `(num_frames, 48, 2)`): Exact points of the skeleton, x and y in pixels.
        starts (`tuple[float, ...]`): When each sign begins, in frames.
    """

    points: np.ndarray
    starts: tuple[float, ...]


def draw_signer(name: str, *, variation: float, seed: int) -> Signer:
    """
    Draw the habits of a signer.

    Args:
        name (`str`): Name of the signer, which determines the habits together with the seed.
        variation (`float`): By how much signers differ, as a factor.
        seed (`int`): Seed of the world.
    """
    generator = toy_generator(seed, f"signer {name}")

    def differ(most: float) -> float:
        return float(generator.uniform(-most, most)) * variation

    return Signer(
        name,
        pace=float(generator.uniform(0.75, 0.95)),
        x=FRAME_SIZE / 2 + float(generator.uniform(-2, 2)),
        y=0.42 * FRAME_SIZE + float(generator.uniform(-2, 2)),
        size=float(generator.uniform(15.5, 18.0)),
        reach=1 + differ(0.08),
        height=differ(0.08),
        tilt=differ(0.12),
        hand_size=1 + differ(0.08),
        bend=0.1 * variation,
        fingers=tuple(differ(0.12) for _ in FINGER_ANGLES),
        spread=1 + differ(0.1),
        noise=float(generator.uniform(0.01, 0.02)),
        clothes=tuple(generator.uniform(30, 75, 3).tolist()),
        backdrop=tuple(generator.uniform(80, 125, 3).tolist()),
    )


def perform(signs: Sequence[Sign], signer: Signer, name: str, *, num_frames: int, seed: int) -> Performance:
    """
    Move the hands of a signer.

    Args:
        signs (`Sequence[Sign]`): The signs in their order; hands rest before and after them.
        signer (`Signer`): Who signs.
        name (`str`): Name of the clip, which determines speed, place, size and precision together with the seed.
        num_frames (`int`): Number of frames.
        seed (`int`): Seed of the world.
    """
    generator = toy_generator(seed, f"signing {name}")
    shares = generator.uniform(0.8, 1.2, len(signs))
    length = num_frames * min(signer.pace * generator.uniform(0.95, 1.05), 1.0)
    start = generator.uniform(0, num_frames - length)
    bounds = start + np.concatenate([[0], np.cumsum(shares)]) * length / shares.sum()
    camera = np.array([signer.x, signer.y]) + generator.uniform(-1.5, 1.5, 2)
    size = signer.size * generator.uniform(0.95, 1.05)
    misses = generator.normal(0, 0.04, (len(signs), 2))  # of the spot
    sizes = signer.reach * generator.uniform(0.9, 1.1, len(signs))  # of the movements
    rest = _Goal(np.array([REST[0], REST[1] + signer.height]), "still", 0.0, _stretched("fist", signer))
    shown = [
        _Goal(
            np.array(SPOT_CENTRES[sign.spot]) * signer.reach + [0, signer.height] + misses[n],
            sign.movement,
            MOVEMENT_SIZE * sizes[n],
            _stretched(sign.shape, signer),
        )
        for n, sign in enumerate(signs)
    ]
    mirrored = [goal if sign.is_two_handed else rest for goal, sign in zip(shown, signs, strict=True)]

    points = np.empty((num_frames, sum(len(component.points) for component in COMPONENTS), 2))
    points[:, :2] = shoulders = np.array([[0.5 * side, 0.0] for side in SIDES.values()])
    for number, (hand, side) in enumerate(SIDES.items()):
        goals = shown if hand == "right" else mirrored
        wrist, fingers = _followed([rest, *goals, rest], [0.0, *bounds, num_frames], signer)
        own = _hand_points(wrist, fingers, signer) * [side, 1]
        points[:, HAND_POINTS[hand]] = own
        elbow = (shoulders[number] + own[:, 0]) / 2 + [0.15 * side, 0.25]
        points[:, ARM_POINTS[hand]] = np.stack([elbow, own[:, 0]], axis=1)
    return Performance(points * size + camera, tuple(bounds[:-1].tolist()))


def estimate(
    performance: Performance, signer: Signer, name: str, *, hidden_hand: Hand | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return a pose of a performance as an estimator would find it: with noise, and without a hand in a few frames.

    Args:
        performance (`Performance`): The performance.
        signer (`Signer`): Who signs.
        name (`str`): Name of the clip.
        hidden_hand (`"left"` or `"right"`, *optional*): Hand that is missing in all frames, with its arm.
        seed (`int`): Seed of the world.

    Returns:
        `np.ndarray` of shape `(num_frames, 1, 48, 2)`: Coordinates in pixels, `float32`.
        `np.ndarray` of shape `(num_frames, 1, 48)`: Confidences, `float32`.
    """
    generator = toy_generator(seed, f"pose {name}")
    width = np.abs(performance.points[0, 0, 0] - performance.points[0, 1, 0])
    data = performance.points + generator.normal(0, signer.noise * width, performance.points.shape)
    confidence = generator.uniform(0.7, 1.0, data.shape[:2])
    for hand, own in HAND_POINTS.items():
        confidence[generator.random(len(data)) < 0.02, own] = 0
        if hand == hidden_hand:
            confidence[:, own] = 0
            confidence[:, ARM_POINTS[hand]] = 0
    data[confidence == 0] = 0
    return data[:, None].astype(np.float32), confidence[:, None].astype(np.float32)


def render_signing(
    performance: Performance, signer: Signer, name: str, *, hidden_hand: Hand | None, seed: int
) -> np.ndarray:
    """
    Draw a performance: a head, a body, and hands in gloves, the left one cyan and the right one yellow.

    Args:
        performance (`Performance`): The performance.
        signer (`Signer`): Who signs.
        name (`str`): Name of the clip.
        hidden_hand (`"left"` or `"right"`, *optional*): Hand that is not drawn.
        seed (`int`): Seed of the world.

    Returns:
        `np.ndarray` of dtype uint8 and shape `(num_frames, 64, 64, 3)`: RGB frames.
    """
    generator = toy_generator(seed, f"frames {name}")
    points = performance.points.astype(np.float32)
    (x, y), width = points[0, :2].mean(axis=0), points[0, 0, 0] - points[0, 1, 0]
    grid = np.arange(FRAME_SIZE, dtype=np.float32) + 0.5
    across, down = (grid[None, :] - x) / width, (grid[:, None] - y) / width
    image = np.empty((FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    image[:] = signer.backdrop
    image[(np.abs(across) < 0.55 + 0.1 * down) & (down > -0.1)] = signer.clothes
    image[np.hypot(across, down + 0.6) < 0.32] = (190, 150, 125)
    image += generator.normal(0, 3, (FRAME_SIZE, FRAME_SIZE, 1))
    frames = np.repeat(image[None], len(points), axis=0)
    for hand, own in HAND_POINTS.items():
        if hand != hidden_hand:
            _draw_hand(frames, points[:, own], GLOVES[hand])
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _draw_hand(frames: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw the fingers of a hand, as strokes from the wrist, into frames."""
    corners = np.rint(points.mean(axis=1) - WINDOW / 2).clip(0, FRAME_SIZE - WINDOW).astype(np.intp)
    columns, rows = (corners[:, axis, None] + np.arange(WINDOW) for axis in (0, 1))  # (frames, WINDOW)
    wrist, tips = points[:, :1], points[:, 4::4]
    vector = (tips - wrist)[..., None, None]  # (frames, 5, 2, 1, 1)
    dx = (columns + np.float32(0.5) - wrist[:, :, 0])[:, None, None, :]  # (frames, 1, 1, WINDOW)
    dy = (rows + np.float32(0.5) - wrist[:, :, 1])[:, None, :, None]
    along = dx * vector[:, :, 0] + dy * vector[:, :, 1]  # (frames, 5, WINDOW, WINDOW)
    along = np.clip(along / np.square(vector).sum(axis=2), 0, 1)
    distance = np.square(dx - along * vector[:, :, 0]) + np.square(dy - along * vector[:, :, 1])
    covered = np.clip(0.5 + FINGER_WIDTH / 2 - np.sqrt(distance.min(axis=1)), 0, 1)[..., None]
    place = np.arange(len(points))[:, None, None], rows[:, :, None], columns[:, None, :]
    frames[place] = frames[place] * (1 - covered) + np.array(colour, dtype=np.float32) * covered


class _Goal(NamedTuple):
    """A movement of a hand: its centre, name and size, and how far fingers are stretched."""

    centre: np.ndarray
    movement: str
    size: float
    fingers: np.ndarray


def _followed(goals: Sequence[_Goal], bounds: Sequence[float], signer: Signer) -> tuple[np.ndarray, np.ndarray]:
    """
    Follow goals from each bound to the next, in frames; a hand is on its way for the first third of this time.

    Returns:
        `np.ndarray` of shape `(num_frames, 2)`: The wrist.
        `np.ndarray` of shape `(num_frames, 5)`: How far fingers are stretched.
    """
    times = np.arange(int(bounds[-1]))
    wrist, fingers = np.empty((len(times), 2)), np.empty((len(times), 5))
    before = goals[0]
    place = before.centre
    for goal, begin, end in zip(goals, bounds[:-1], bounds[1:], strict=True):
        now = (times >= begin) & (times < end)
        passed = np.append((times[now] - begin) / (end - begin), 1.0)[:, None]  # 1 is where the next one comes from
        phase = np.clip((passed - TRANSITION) / (1 - TRANSITION), 0, 1)
        path = goal.centre + goal.size * _turned(_moved(goal.movement, phase), signer.tilt)
        arrived = np.clip(passed[:-1] / TRANSITION, 0, 1)
        arrived = arrived * arrived * (3 - 2 * arrived)
        wrist[now] = place + (path[:-1] - place) * arrived
        fingers[now] = before.fingers + (goal.fingers - before.fingers) * arrived
        place, before = path[-1], goal
    return wrist, fingers


def _moved(movement: str, phase: np.ndarray) -> np.ndarray:
    """Return offsets of shape `(num_frames, 2)` on a path of size 1, for phases from 0 to 1."""
    zero, turn = np.zeros_like(phase), 2 * math.pi * phase
    columns = {
        "still": (zero, zero),
        "up": (zero, 1 - 2 * phase),
        "down": (zero, 2 * phase - 1),
        "outwards": (2 * phase - 1, zero),
        "inwards": (1 - 2 * phase, zero),
        "circle": (np.cos(turn), np.sin(turn)),
        "reverse": (np.cos(turn), -np.sin(turn)),
        "shake": (np.sin(2 * turn), zero),
        "nod": (zero, np.sin(2 * turn)),
    }
    return np.concatenate(columns[movement], axis=1)


def _turned(offsets: np.ndarray, angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return offsets @ np.array([[cosine, sine], [-sine, cosine]])


def _stretched(shape: str, signer: Signer) -> np.ndarray:
    """Return how far each of five fingers is stretched, from 0 to 1."""
    stretched = np.abs(np.array(SHAPE_FINGERS[shape], dtype=float) - signer.bend)
    return np.clip(stretched + signer.fingers, 0, 1)


def _hand_points(wrist: np.ndarray, fingers: np.ndarray, signer: Signer) -> np.ndarray:
    """Return the 21 points of a hand, of shape `(num_frames, 21, 2)`; x grows to the side of the little finger."""
    directions = np.stack([np.sin(signer.spread * FINGER_ANGLES), -np.cos(signer.spread * FINGER_ANGLES)], axis=1)
    joints = np.linspace(0, FINGER, 4) * fingers[:, :, None]  # (num_frames, 5, 4), from the knuckle
    offsets = (PALM + joints)[..., None] * directions[:, None]
    hand = np.concatenate([np.zeros((len(wrist), 1, 2)), offsets.reshape(len(wrist), 20, 2)], axis=1)
    return wrist[:, None] + signer.hand_size * hand
