"""Read and prepare poses, compared with the steps of multimodalhugs with pose-format, in one process and in turns.

    python benchmarks/poses.py FILE.pose [FILE.pose ...] [--num_frames 300] [--repeats 20]

Each file is measured as it is, and with its frames repeated up to `--num_frames`. Both results are compared before.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from pose_format import Pose
from pose_format.utils.generic import pose_hide_legs, reduce_holistic

from simple_multimodal.media import read_pose
from simple_multimodal.processing import PoseProcessor


def reference(path: str) -> torch.Tensor:
    """Read and prepare a file as multimodalhugs does."""
    with open(path, "rb") as file:
        pose = Pose.read(file)
    pose.body = pose.body[:, :1]  # the first person
    pose_hide_legs(pose)
    pose = reduce_holistic(pose).normalize()
    return pose.torch().body.data.zero_filled().contiguous().flatten(1)


def write_repeated(path: Path, source: Path, num_frames: int) -> None:
    """Write a file with the frames of another one, repeated up to a number of frames."""
    pose = Pose.read(source.read_bytes())
    frames = np.arange(num_frames) % len(pose.body.data)
    with open(path, "wb") as file:
        Pose(pose.header, pose.body[frames]).write(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--num_frames", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for source in options.files:
            paths[source.stem] = source
            paths[f"{source.stem}, {options.num_frames} frames"] = Path(folder, source.name)
            write_repeated(Path(folder, source.name), source, options.num_frames)
        for name, path in paths.items():
            theirs = reference(str(path))
            processor = PoseProcessor(num_features=theirs.shape[1])
            readers = {
                "ours": lambda path, processor=processor: processor.extract(read_pose(path)).values,
                "reference": reference,
                "ours, reading": lambda path: read_pose(path).data,
                "reference, reading": lambda path: Pose.read(open(path, "rb")).body.data,
            }
            difference = float((readers["ours"](str(path)) - theirs).abs().max())
            cpu = common.interleaved([str(path)], readers, options.repeats)
            microseconds = {
                reader: 1e6 * statistics.median(values[str(path)]) / len(theirs) for reader, values in cpu.items()
            }
            ratio = microseconds["reference"] / microseconds["ours"]
            results[name] = {
                "num_frames": len(theirs),
                "microseconds_per_frame": microseconds,
                "reference_to_ours": ratio,
                "largest_difference": difference,
            }
            cells = ", ".join(f"{reader} {value:.1f}" for reader, value in microseconds.items())
            print(f"{name}: CPU microseconds per frame: {cells}; {ratio:.1f} times; difference {difference:.0e}")
    common.save("poses", results)


if __name__ == "__main__":
    main()
