"""Clips for the tests of reading processes, and a collator that misbehaves for some of them."""

import ctypes
import gc
import os
import time
from pathlib import Path

import numpy as np
import torch

from simple_multimodal.data.batch_reader import BatchReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.media.index_cache import index_cache
from simple_multimodal.serving import readers
from tests.media.media_files import write_media


def crash() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(1000)


def exhaust_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(10**7))
        time.sleep(0.005)


def fail() -> None:
    raise KeyError("labels")


NAMES = [*(f"{n}.mp4" for n in range(6)), "audio.wav"]
FAULTS = {"crash": crash, "hang": hang, "memory": exhaust_memory, "bug": fail}


class FaultyCollator(MultimodalCollator):
    """
    Collator that does what the name of a file says. It waits at `gate.mp4` while the file `closed` exists, and reports
    what its process remembers of earlier clips with `report.mp4`.
    """

    def __call__(self, rows, on_bad_sample=None):
        for row in rows:
            path = Path(row["video"] or row["audio"])
            name = path.name.partition(".")[0]
            if name in FAULTS:
                with open(path.with_name(f"{name}_attempts"), "a") as file:
                    file.write("x")
                FAULTS[name]()
            while path.name == "gate.mp4" and path.with_name("closed").exists():
                path.with_name("entered").touch()
                time.sleep(0.01)
        batch = super().__call__(rows, on_bad_sample)
        if path.name == "report.mp4":
            found = [value for value in gc.get_objects() if isinstance(value, BatchReader)]
            batch["num_known"] = torch.tensor([len(reader.known) for reader in found])
            batch["num_indices"] = torch.tensor([len(index_cache.indices)])
        return batch


class BrokenCollator(MultimodalCollator):
    """Collator that fails for every clip."""

    def __call__(self, rows, on_bad_sample=None):
        fail()


class Unreadable:
    """Object that cannot be unpickled."""

    def __reduce__(self):
        return int, ("x",)


def write_clips(folder: Path) -> Path:
    """
    Write clips without and with audio of one and two windows, and audio alone. Names that the collator
    knows are links to one of them.
    """
    for number in range(6):
        write_media(
            folder / f"{number}.mp4",
            num_frames=8 + number,
            first_number=10 * number,
            waveform=None if number == 5 else lambda times, n=number: np.sin(2 * np.pi * 300 * (n + 1) * times) / 2,
            audio_codec="aac",
            audio_seconds=0.5 + 0.5 * (number % 3),
        )
    write_media(folder / "audio.wav", waveform=lambda times: np.sin(2 * np.pi * 440 * times) / 2, audio_seconds=0.7)
    for name in (*FAULTS, "gate", "report"):
        os.link(folder / "1.mp4", folder / f"{name}.mp4")
    return folder


def own_readers(collator, path, connection) -> None:
    """Read a clip, tell the process id of the reader, and stay."""
    readers.START_METHOD = "fork"  # of this fresh process; a server of its own would import torch first
    own = readers.ClipReaders(collator, num_processes=1)
    own.submit(path).result()
    connection.send(own.pids[0])
    time.sleep(1000)
