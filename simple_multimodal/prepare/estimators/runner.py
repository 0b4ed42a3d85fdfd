"""
Run a pose estimator in an environment of its own: frames come in through standard input, points go out.

`simple-multimodal estimate_poses` starts `python runner.py ESTIMATOR.py` for each clip. This file needs Python 3.8 or
newer and NumPy, and imports nothing of this package. What is exchanged, in order:

1. out: a line of JSON with the estimator's `components`, `settings` and `versions`
2. in: a line of JSON with `num_frames`, `height` and `width`; if the input ends here, so does the process
3. in: the frames, RGB, one byte per value
4. out: a line of JSON with the `shape` of the points, then points and confidences as little-endian float32

A line of JSON with an `error` may replace 1 and 4.
"""

import json
import os
import platform
import runpy
import sys
import traceback
from importlib import metadata

import numpy as np


class EndOfInput(Exception):
    """The process that sends the frames has ended."""


def main(path):
    """Describe the estimator in a file, then estimate the poses of one clip."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the replies
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    try:
        estimator = load(path)
        send(replies, describe(estimator))
        request = sys.stdin.buffer.readline()
        if request:
            points, confidence = estimate(estimator, **json.loads(request))
            send(replies, {"shape": points.shape}, points, confidence)
    except EndOfInput:
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        send(replies, {"error": " ".join(f"{type(error).__name__}: {error}".split())})


def load(path):
    """Return an object of the class `Estimator` of a file."""
    names = runpy.run_path(path)
    if "Estimator" not in names:
        raise NameError("the file has no class `Estimator`")
    return names["Estimator"]()


def describe(estimator):
    """Return what is known about an estimator before it has seen a frame."""
    versions = {name: metadata.version(name) for name in estimator.packages}
    return {
        "components": estimator.components,
        "settings": estimator.settings,
        "versions": {"python": platform.python_version(), **versions},
    }


def estimate(estimator, num_frames, height, width):
    """Return the points and confidences that an estimator finds in the frames of a clip, as float32."""
    frames = read_frames(num_frames, height, width)
    points, confidence = (np.ascontiguousarray(array, dtype="<f4") for array in estimator.estimate(frames))
    for _ in frames:  # the sender waits until all are read
        pass
    if points.shape[:-1] != confidence.shape:
        raise ValueError(f"points of shape {points.shape} do not go with confidences of shape {confidence.shape}")
    return points, confidence


def read_frames(num_frames, height, width):
    """Yield the frames, uint8 of shape (height, width, 3)."""
    size = height * width * 3
    for _ in range(num_frames):
        frame = sys.stdin.buffer.read(size)
        if len(frame) < size:
            raise EndOfInput
        yield np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)


def send(replies, line, *arrays):
    """Send a line of JSON, and arrays after it."""
    replies.write(json.dumps(line).encode() + b"\n")
    for array in arrays:
        replies.write(array.tobytes())
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
