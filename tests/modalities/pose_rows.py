"""Rows with poses, and small configs of towers, for tests of runs."""

import json
from pathlib import Path

import numpy as np

from tests.media.pose_files import points_of, write_pose
from tests.training.tiny_run import CAPTIONS, CONFIGS, NUM_ROWS, write_clips

NUM_FEATURES = 27  # of 9 points: without the nose, which reduction leaves out
POSE_CONFIG = {
    "model_type": "pose",
    "num_features": NUM_FEATURES,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.2,
}


def write_small_pose(path: Path, seed: int = 0, num_frames: int = 6, **settings) -> Path:
    """Write a pose of random points with the small skeleton, in which the shoulders are always there."""
    data, confidence = points_of(num_frames, seed=seed)
    confidence[:, :, 1:3] = 1.0
    return write_pose(path, data, confidence, **settings)


def write_pose_rows(folder: Path) -> Path:
    """
    Write `video/`, `pose/`, `rows.jsonl` and configs of towers. Row 1 has no pose, row 3 has neither video nor pose,
    row 4 has no video; the pose of row 5 is features (`.npy`), and row 6 shows a segment. Rows alternate between two
    labels.
    """
    write_clips(folder)
    (folder / "pose").mkdir()
    rows = []
    for number, caption in enumerate(CAPTIONS):
        row = {"id": f"r{number}", "caption": caption, "video": f"{number}.mp4", "pose": f"{number}.pose"}
        row["label"] = "ab"[number % 2]
        write_small_pose(folder / f"pose/{number}.pose", seed=number, num_frames=5 + 2 * number)
        rows.append(row)
    assert len(rows) == NUM_ROWS
    rows[1]["pose"] = rows[3]["pose"] = rows[3]["video"] = rows[4]["video"] = None
    np.save(folder / "pose/5.npy", np.random.default_rng(5).normal(size=(9, NUM_FEATURES)).astype(np.float32))
    rows[5]["pose"] = "5.npy"
    rows[6] |= {"start_seconds": 0.1, "end_seconds": 0.4}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, values in (CONFIGS | {"pose": POSE_CONFIG}).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder
