"""Put time stamps on one timeline: fill in missing ones, drop wrong ones, and align clocks that restart."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

REORDER_FRAMES = 16  # the deepest reordering of frames in H.264 and HEVC: no time stamp is further out of place
MAX_TICKS = 2**62  # of a timeline; damaged files may claim any time


class Timeline(NamedTuple):
    """
    Where the frames of a stream lie in time.

    Args:
        ticks (`np.ndarray` of shape `(num_frames,)`, `int64`):
            Time of each frame from the earliest one, in ticks; never descending.
        start (`int`): The time stamp of the earliest frame of the first run.
        run_starts (`list[int]`): Number of the first frame of each run; the first is 0.
        offsets (`list[int]`): Offset of the time stamps of each run that makes them continue the clock of the first.
        is_in_order (`bool`): Whether there is one run, whose time stamps do not go back.
    """

    ticks: np.ndarray
    start: int
    run_starts: list[int]
    offsets: list[int]
    is_in_order: bool


class ClockRun(NamedTuple):
    """
    A restart of a file's clock, where one recording was appended to another.

    Args:
        first_byte (`int`): Byte position of the first packet after the restart.
        offset_seconds (`float`): Offset of later time stamps that makes them continue the first clock.
    """

    first_byte: int
    offset_seconds: float


def make_timeline(time_stamps: Sequence[int | None], step: Fraction) -> Timeline:
    """
    Place the frames of a stream in time.

    A recording that was appended to another restarts the clock: where time stamps go back by more than frames can be
    reordered, and stay there, a new run begins, which follows the end of the previous one. Within a run the `i`-th
    frame has the `i`-th smallest time stamp (some AVI files store decoding times). A frame without a time stamp, or
    with one that is further out of place than frames can be reordered, follows the frame before it.

    Args:
        time_stamps (`Sequence[int | None]`): Time stamps in output order, in ticks; at least one.
        step (`Fraction`): Average length of a frame in ticks; 0 if unknown.

    Returns:
        `Timeline`: The timeline.
    """
    stamps = list(time_stamps)
    is_ascending = None not in stamps and bool((np.diff(np.asarray(stamps, dtype=np.float64)) >= 0).all())
    run_starts = [0] if is_ascending else find_runs(stamps)
    ticks: list[int] = []
    offsets: list[int] = []
    is_in_order = len(run_starts) == 1
    first_start = end = 0
    for begin, stop in zip(run_starts, [*run_starts[1:], len(stamps)], strict=True):
        run = fill_time_stamps(stamps[begin:stop], step)
        ascending = sorted(run)
        is_in_order &= run == ascending
        start = min(run[:REORDER_FRAMES])
        first_start = start if begin == 0 else first_start
        offsets.append(first_start + end - start)
        ticks += [min(max(stamp - start, 0) + end, MAX_TICKS) for stamp in ascending]
        end = ticks[-1] + max(round(step), 1)
    return Timeline(np.array(ticks, dtype=np.int64), first_start, run_starts, offsets, is_in_order)


def find_runs(stamps: list[int | None]) -> list[int]:
    """
    Find where a clock restarts, and remove wrong time stamps.

    Args:
        stamps (`list[int | None]`): Time stamps in stream order. Those that are further out of place than frames can
            be reordered become `None`.

    Returns:
        `list[int]`: Number of the first entry of each run; the first is 0.
    """
    known = [number for number, stamp in enumerate(stamps) if stamp is not None]
    values = [stamp for stamp in stamps if stamp is not None]
    run_starts = [0]
    latest: list[int] = []  # a heap of the REORDER_FRAMES + 1 latest time stamps of the run
    for place, (number, stamp) in enumerate(zip(known, values, strict=True)):
        ahead = values[place + 1 : place + 1 + REORDER_FRAMES]
        if len(latest) > REORDER_FRAMES and stamp < latest[0]:
            if 2 * sum(value > max(latest) for value in ahead) > len(ahead):  # the clock continues after an outlier
                stamps[number] = None
                continue
            run_starts.append(number)
            latest = []
        elif len(ahead) == REORDER_FRAMES and latest and stamp > max(ahead) and min(ahead) > max(latest):
            stamps[number] = None
            continue
        if len(latest) > REORDER_FRAMES:
            heapq.heappushpop(latest, stamp)
        else:
            heapq.heappush(latest, stamp)
    return run_starts


def fill_time_stamps(stamps: Sequence[int | None], step: Fraction) -> list[int]:
    """
    Give every frame a time stamp: a missing one follows the frame before it, or at the start precedes the next one.

    Args:
        stamps (`Sequence[int | None]`): Time stamps in output order.
        step (`Fraction`): Average length of a frame, in the same ticks.

    Returns:
        `list[int]`: Time stamps of all frames.
    """
    first = next((number for number, stamp in enumerate(stamps) if stamp is not None), 0)
    first_stamp = stamps[first] or 0
    filled = [first_stamp - round((first - number) * step) for number in range(first)]
    for stamp in stamps[first:]:
        filled.append(stamp if stamp is not None else filled[-1] + round(step) if filled else 0)
    return filled
