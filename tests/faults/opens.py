"""Ten thousand opens of short and bad videos in one process: resident memory, open files and threads must stay flat.

    python -m tests.faults.opens [--opens 10000]     # prints one JSON object

Exits with 1 if resident memory grows by 1 KB per open or more (least-squares slope after the first fifth), or if there
are more open files or threads at the end than after the first fifth. Linux.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from simple_multimodal.media import MediaError, get_video_backend, read_audio, sample_positions
from simple_multimodal.media.frame_index import build_index
from tests.faults.corpus import fragmented, mov, write_clip
from tests.faults.supervised import resident_megabytes


def write_files(folder: Path) -> list[Path]:
    """Write four files that can be decoded, at least in part, and six that cannot."""
    whole = write_clip(folder / "whole.mp4").read_bytes()
    fast = write_clip(folder / "fast.mp4", container={"movflags": "faststart"}).read_bytes()
    broken = {
        "cut.mp4": fast[: len(fast) * 2 // 3],
        "no_moov.mp4": whole[: whole.index(b"moov") - 4],
        "noise.mp4": np.random.default_rng(0).bytes(4096),
        "empty.mp4": b"",
        "list.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
        "no_frames.mp4": mov(0, size=0),
        "fragment.mp4": fragmented(80_000_000),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    write_clip(folder / "whole.mkv")
    return sorted(path for path in folder.iterdir())


def open_once(path: Path) -> bool:
    """Index a file, and decode two frames and its audio; return whether this succeeded."""
    try:
        index = build_index(path)
        get_video_backend("pyav").frames(path, sample_positions(index, 2), index, (32, 32))
        read_audio(path, 16000, end_seconds=0.1)
    except MediaError:
        return False
    return True


def state() -> dict[str, float]:
    gc.collect()
    return {
        "kilobytes": resident_megabytes() * 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def measure(num_opens: int, times: int = 20) -> dict[str, float]:
    """Open the files in turn, and measure the process several times, which takes a while if it holds many objects."""
    states, places, decoded = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = f"{folder}/index"
        (Path(folder) / "files").mkdir()
        files = write_files(Path(folder) / "files")
        for number in range(num_opens):
            decoded += open_once(files[number % len(files)])
            if number % (num_opens // times) == 0:
                states.append(state())
                places.append(number)
        states.append(state())
        places.append(num_opens)
    warm = len(places) // 5
    slope = np.polyfit(places[warm:], [entry["kilobytes"] for entry in states[warm:]], 1)[0]
    return {
        "opens": num_opens,
        "decoded": decoded,
        "kilobytes_per_open": round(float(slope), 4),
        "new_files": states[-1]["files"] - states[warm]["files"],
        "new_threads": states[-1]["threads"] - states[warm]["threads"],
        "resident_megabytes": round(states[-1]["kilobytes"] / 1024, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", type=int, default=10_000)
    result = measure(parser.parse_args().opens)
    print(json.dumps(result))
    return int(result["kilobytes_per_open"] >= 1 or result["new_files"] > 0 or result["new_threads"] > 0)


if __name__ == "__main__":
    sys.exit(main())
