"""Read byte mutations of an MP4, a WebM and a WAV through the decoding path, in processes that read many mutants each.

    python -m tests.faults.fuzz RESULTS_FOLDER --mutants 10000     # writes fuzz.json; 10000 mutants per file

A mutant depends only on the seed, the file and its number, and goes through frame index, sparse decoding of four
frames, audio and log-mel. A process that crashes or exceeds the limit is replaced, and its mutant is counted and kept
in RESULTS_FOLDER. Exits with 1 if there was one, or an exception that no caller expects. Linux.
"""

import argparse
import json
import mmap
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch

from simple_multimodal.media import MediaError, get_video_backend, read_audio, sample_positions, with_index
from simple_multimodal.media.audio import NoAudioError
from simple_multimodal.processing import AudioFeatureExtractor
from tests.faults.corpus import ramp
from tests.faults.supervised import resident_megabytes
from tests.media.media_files import write_media

LIMIT_SECONDS = 30.0
SEED = 0
MAX_MUTANTS_PER_PROCESS = 2000
STATES = ("waiting", "running", "refused", "decoded", "error", "crash", "hang")


def originals(folder: Path) -> dict[str, bytes]:
    """Make small clips of one second: 20 frames and a tone."""
    settings = {"rate": 20, "num_frames": 20, "waveform": ramp, "audio_seconds": 1.0}
    vp8 = {"cpu-used": "8", "deadline": "realtime", "b": "100k"}
    files = [
        write_media(folder / "clip.mp4", audio_codec="aac", **settings),
        write_media(
            folder / "clip.webm",
            codec="libvpx",
            codec_options=vp8,
            audio_codec="libopus",
            audio_rate=48000,
            **settings,
        ),
        write_media(folder / "clip.wav", waveform=ramp, audio_seconds=0.5),
    ]
    return {path.suffix[1:]: path.read_bytes() for path in files}


def mutate(content: bytes, kind: str, number: int) -> bytes:
    """
    Make a mutant: overwrite some bytes, replace a number by an extreme one, or remove, double or truncate a piece.

    Half of the mutants change only headers: the first or the last kilobyte.
    """
    rng = np.random.default_rng([SEED, *kind.encode(), number])
    changed = bytearray(content)
    size = len(changed)
    begin, end = [(0, size), (0, size), (0, min(1024, size)), (max(size - 1024, 0), size)][rng.integers(4)]
    how = rng.integers(6)
    if how <= 2:
        for place in rng.integers(begin, end, 2 ** int(rng.integers(6))):
            changed[place] = rng.integers(256) if how else changed[place] ^ 1 << rng.integers(8)
    elif how == 3:
        extreme = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF][rng.integers(8)]
        place = int(rng.integers(begin, max(end - 4, begin + 1)))
        changed[place : place + 4] = extreme.to_bytes(4, "big" if rng.integers(2) else "little")
    elif how == 4:
        place, length = int(rng.integers(begin, end)), int(rng.integers(1, 256))
        piece = changed[place : place + length]
        changed[place : place + length] = piece * 2 if rng.integers(2) else b""
    else:
        del changed[int(rng.integers(size)) :]
    return bytes(changed)


def read(path: Path, index_dir: str, extractor: AudioFeatureExtractor) -> str:
    """Read as much of a file as possible, like the collator; return `"decoded"` if anything could be read."""
    results = []
    backend = get_video_backend("pyav")
    try:
        with_index(
            path,
            lambda index: backend.frames(path, sample_positions(index, 4), index, (32, 32)),
            index_dir=index_dir,
        )
        results.append("decoded")
    except MediaError:
        pass
    try:
        extractor.extract(read_audio(path, extractor.sampling_rate, index_dir=index_dir))
        results.append("decoded")
    except (MediaError, NoAudioError):
        pass
    return "decoded" if results else "refused"


def work(kind: str, content: bytes, first: int, last: int, states: mmap.mmap, folder: Path) -> None:
    """Read mutants one after the other, and record the state before and after each."""
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    extractor = AudioFeatureExtractor(num_mel_bins=16, num_frames=64, max_windows=2)
    path = folder / f"mutant.{kind}"
    for number in range(first, last):
        states[number] = STATES.index("running")
        path.write_bytes(mutate(content, kind, number))
        index_dir = folder / "index"
        try:
            state = read(path, str(index_dir), extractor)
        except Exception as error:
            state = "error"
            with open(folder / "errors.txt", "a") as file:
                file.write(f"{kind} {number} {type(error).__name__}: {error}\n")
        states[number] = STATES.index(state)
        if number % 500 == 0:
            os.system(f"rm -rf {index_dir}")
    os._exit(0)


def fuzz(kind: str, content: bytes, count: int, folder: Path) -> dict[str, float]:
    """Read all mutants of one file."""
    states = mmap.mmap(-1, count)
    started = time.monotonic()
    number, peak, processes = 0, 0.0, 0
    while number < count:
        last = min(number + MAX_MUTANTS_PER_PROCESS, count)
        before = resident_megabytes()
        child = os.fork()
        if child == 0:
            work(kind, content, number, last, states, folder)
        processes += 1
        seen = time.monotonic()
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                break
            while number < last and states[number] > STATES.index("running"):
                number, seen = number + 1, time.monotonic()
            if time.monotonic() - seen > LIMIT_SECONDS:
                os.kill(child, signal.SIGKILL)
                _, status, usage = os.wait4(child, 0)
                states[number] = STATES.index("hang")
                break
            time.sleep(0.02)
        peak = max(peak, usage.ru_maxrss / 1024 - before)
        while number < last and states[number] > STATES.index("running"):
            if STATES[states[number]] == "hang":
                (folder / f"hang_{number}.{kind}").write_bytes(mutate(content, kind, number))
            number += 1
        if number < last and states[number] <= STATES.index("running"):  # it died on this one
            states[number] = STATES.index("crash")
            (folder / f"crash_{number}_{os.waitstatus_to_exitcode(status)}.{kind}").write_bytes(
                mutate(content, kind, number)
            )
            number += 1
    counts = Counter(STATES[state] for state in states[:])
    result = {name: counts[name] for name in STATES[2:]}
    return {"mutants": count, **result, "processes": processes, "peak_megabytes": round(peak, 1),
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Output folder of fuzz.json and of mutants that crashed or hung.")
    parser.add_argument("--mutants", type=int, default=10_000, help="Number of mutants per file.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    results = {}
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        for kind, content in originals(Path(folder)).items():
            results[kind] = fuzz(kind, content, options.mutants, Path(folder))
            print(kind, json.dumps(results[kind]), flush=True)
        for path in [*Path(folder).glob("crash_*"), *Path(folder).glob("hang_*"), *Path(folder).glob("errors.txt")]:
            (options.results / path.name).write_bytes(path.read_bytes())
    (options.results / "fuzz.json").write_text(json.dumps({"main_process_crashes": 0, **results}, indent=1) + "\n")
    return int(any(result[name] for result in results.values() for name in ("error", "crash", "hang")))


if __name__ == "__main__":
    sys.exit(main())
