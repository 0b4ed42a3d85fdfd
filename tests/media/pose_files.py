"""Write small pose files field by field, without the code that reads them."""

import struct
from pathlib import Path

import numpy as np

BODY = ("NOSE", "LEFT_SHOULDER", "RIGHT_SHOULDER", "LEFT_ELBOW", "LEFT_WRIST", "LEFT_HIP", "RIGHT_HIP")
HAND = ("WRIST", "THUMB_TIP", "PINKY_TIP")
SMALL = {"POSE_LANDMARKS": BODY, "LEFT_HAND_LANDMARKS": HAND}
"""Components of a small skeleton with names of MediaPipe Holistic."""
HOLISTIC = {  # with the irises, which reduction leaves out
    "POSE_LANDMARKS": (
        *(f"{side}_{name}" for name in ("SHOULDER", "ELBOW", "WRIST", "HIP", "KNEE") for side in ("LEFT", "RIGHT")),
        "NOSE",
        "LEFT_PINKY",
    ),
    "FACE_LANDMARKS": tuple(map(str, range(478))),
    "LEFT_HAND_LANDMARKS": tuple(map(str, range(21))),
    "RIGHT_HAND_LANDMARKS": tuple(map(str, range(21))),
    "POSE_WORLD_LANDMARKS": ("LEFT_SHOULDER", "RIGHT_HIP"),
}
OPENPOSE = {
    "pose_keypoints_2d": ("Nose", "RShoulder", "LShoulder", "MidHip", "RKnee", "LBigToe", "REar"),
    "hand_left_keypoints_2d": ("BASE", "T_STT"),
}
COCO = {
    "BODY": ("nose", "left_shoulder", "right_shoulder", "left_hip", "right_knee", "left_big_toe"),
    "FACE": tuple(f"face-{number}" for number in range(68)),
    "LEFT_HAND": ("hand_0", "hand_1"),
    "RIGHT_HAND": ("hand_0", "hand_1"),
}


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<H", len(encoded)) + encoded


def header_bytes(
    components: dict[str, tuple[str, ...]], point_format: str = "XYZC", version: float = 0.2, size=(320, 240, 0)
) -> bytes:
    """Return the header of a pose file, with a limb and a colour per component."""
    head = struct.pack("<fHHHH", version, *size, len(components))
    for name, points in components.items():
        head += text(name) + text(point_format) + struct.pack("<HHH", len(points), 1, 1)
        head += (
            b"".join(map(text, points))
            + struct.pack("<HH", 0, max(len(points) - 1, 0))
            + struct.pack("<HHH", 255, 0, 0)
        )
    return head


def points_of(
    num_frames: int = 6, num_people: int = 1, components=SMALL, num_dims: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return random points and their confidences, of which a tenth is 0."""
    generator = np.random.default_rng(seed)
    num_points = sum(map(len, components.values()))
    shape = num_frames, num_people, num_points
    data = generator.uniform(0, 300, (*shape, num_dims)).astype(np.float32)
    return data, (generator.random(shape).round(1) if num_points else np.zeros(shape)).astype(np.float32)


def write_pose(
    path: Path,
    data: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    *,
    components=SMALL,
    rate: float = 25.0,
    version: float = 0.2,
    size=(320, 240, 0),
    num_frames: int | None = None,
) -> Path:
    """Write a pose file, of random points unless some are given, and return its path; `num_frames` may be untrue."""
    if data is None:
        data, confidence = points_of(components=components)
    body = struct.pack(
        "<HHH" if version == 0.1 else "<fIH",
        int(rate) if version == 0.1 else rate,
        len(data) if num_frames is None else num_frames,
        data.shape[1],
    )
    head = header_bytes(components, "XYZC" if data.shape[-1] == 3 else "XYC", version, size)
    path.write_bytes(head + body + data.astype("<f4").tobytes() + confidence.astype("<f4").tobytes())
    return path
