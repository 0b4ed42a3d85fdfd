"""Single frames of many videos in random order: every frame once in an epoch, near the speed of decoding in order."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.frame_index import FrameIndex, with_index

FEISTEL_ROUNDS = 8


class Frame(NamedTuple):
    """A frame of a video.

    Args:
        pixels (`np.ndarray` of shape `(3, height, width)`, `uint8`): RGB.
        video (`int`): Number of the video, as the data set was given them.
        position (`int`): Number of the frame in it.
    """

    pixels: np.ndarray
    video: int
    position: int


def shuffled(numbers: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """
    Where a random permutation of `range(size)` takes some numbers, without making the permutation.

    A Feistel network over the smallest square of a power of two that holds `size`, walked along its cycles until it is
    back inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        numbers (`np.ndarray` of `int64`): In `[0, size)`.
        size (`int`): Length of the permutation.
        key (`np.ndarray` of shape `(FEISTEL_ROUNDS,)`, `uint64`): Chooses the permutation.

    Returns:
        `np.ndarray`: As many numbers in `[0, size)`; different ones for different ones.
    """
    half_bits = np.uint64(max(-(-(size - 1).bit_length() // 2), 1))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    result = numbers.astype(np.uint64)
    is_outside = np.ones(len(result), dtype=bool)
    while is_outside.any():
        left, right = result[is_outside] >> half_bits, result[is_outside] & mask
        for round_key in key:
            mixed = right + round_key  # the finaliser of SplitMix64
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        result[is_outside] = (left << half_bits) | right
        is_outside = result >= size
    return result.astype(np.int64)


class FrameOrder:
    """
    The order of an epoch: every frame of every video exactly once.

    Each video is cut into chunks of `chunk_size` neighbouring frames; where the first cut lies is drawn anew for each
    video and epoch, and what is left over at both ends are shorter chunks, so that no frame is lost or favoured. The
    chunks follow each other in random order. Chunks of one frame: a permutation of all frames.

    Args:
        num_frames (`Sequence[int]`): Length of each video.
        chunk_size (`int`): Frames in a chunk.
        seed (`int`): Of the run.
        epoch (`int`): Counted from 0.
    """

    def __init__(self, num_frames: Sequence[int], *, chunk_size: int = 1, seed: int = 0, epoch: int = 0):
        generator = sample_generator(seed, epoch, "", "frame_order")
        self.chunk_size = chunk_size
        self.lengths = np.asarray(num_frames, dtype=np.int64)
        self.phases = generator.integers(0, chunk_size, len(self.lengths))  # of the shorter first chunk; 0: none
        num_chunks = (self.phases > 0) + -(-np.maximum(self.lengths - self.phases, 0) // chunk_size)
        self.stops = np.cumsum(num_chunks)  # number of the chunk after each video's last
        self.key = generator.integers(0, 2**64, FEISTEL_ROUNDS, dtype=np.uint64)

    @property
    def num_chunks(self) -> int:
        """Chunks of the epoch."""
        return int(self.stops[-1])

    def chunks(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """
        The chunks at places `start` to `stop` of the order.

        Args:
            start, stop (`int`): Places in `[0, num_chunks]`.

        Returns:
            `list[tuple[int, int, int]]`: Number of the video, first frame, and the frame after the last.
        """
        numbers = shuffled(np.arange(start, stop), self.num_chunks, self.key)
        videos = np.searchsorted(self.stops, numbers, side="right")
        first_chunks = np.where(videos > 0, self.stops[videos - 1], 0)
        phases = self.phases[videos]
        begins = (numbers - first_chunks - (phases > 0)) * self.chunk_size + phases
        ends = np.minimum(begins + self.chunk_size, self.lengths[videos])
        return list(zip(videos.tolist(), np.maximum(begins, 0).tolist(), ends.tolist(), strict=True))


class RandomFrameDataset(IterableDataset):
    """
    Frames of many videos, one by one in random order; in an epoch every frame of every video comes exactly once.

    The order is known in advance, so it plans: of the next `buffer_frames` frames it decodes those of one video
    together, every group of pictures once, into a buffer that they leave in the order drawn. The larger the buffer,
    the less is decoded for each: about G / (k + 1) pictures, with k wanted frames in groups of G pictures.

    Several processes and loader workers share the order: with `n` of them in all, each takes every n-th stretch of
    `buffer_frames`.

    Args:
        paths (`Sequence[str]`): The videos.
        size (`tuple[int, int]`, *optional*, defaults to `(224, 224)`): Height and width of the frames.
        chunk_size (`int`, *optional*, defaults to 1): Neighbouring frames that stay together. Chunks are faster to
            read; they leave every frame as likely as before, but as neighbours look alike, a batch of them tells less
            (see `sampling_report`).
        buffer_frames (`int`, *optional*, defaults to 4096): Frames that are held; 0.15 MB each at the default size.
        seed (`int`, *optional*, defaults to 0): Decides the order, together with the epoch.
        rank (`int`, *optional*, defaults to 0): Of this process among those that train together.
        world_size (`int`, *optional*, defaults to 1): Their number.
        num_threads (`int`, *optional*): Videos that are decoded at the same time; by default one per core.
        index_dir (`str`, *optional*): Folder of stored frame indices, see `index_video`.

    Raises:
        MediaError: A video cannot be read.

    Example:

    ```python
    >>> dataset = RandomFrameDataset(["a.mp4", "b.mp4"])
    >>> dataset.set_epoch(3)
    >>> for frame in dataset:
    ...     frame.pixels.shape, frame.video, frame.position
    ((3, 224, 224), 1, 40)
    ```
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        size: tuple[int, int] = (224, 224),
        chunk_size: int = 1,
        buffer_frames: int = 4096,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        index_dir: str | None = None,
    ):
        if chunk_size < 1 or buffer_frames < chunk_size:
            raise ValueError(
                f"chunk_size is {chunk_size} and buffer_frames {buffer_frames}; give 1 <= chunk_size <= buffer_frames"
            )
        self.paths = list(paths)
        self.size = size
        self.chunk_size = chunk_size
        self.buffer_frames = buffer_frames
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_threads = num_threads
        self.index_dir = index_dir
        self.epoch = 0
        with ThreadPoolExecutor(num_threads or _num_cores()) as pool:
            self.num_frames = list(pool.map(lambda path: self._index(path).num_frames, self.paths))
        self._backend = get_video_backend("pyav")

    def _index(self, path: str) -> FrameIndex:
        return index_video(path, index_dir=self.index_dir)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Frames of an epoch, over all processes."""
        return sum(self.num_frames)

    def __iter__(self) -> Iterator[Frame]:
        order = FrameOrder(self.num_frames, chunk_size=self.chunk_size, seed=self.seed, epoch=self.epoch)
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        stretch = self.buffer_frames // self.chunk_size  # chunks that fit
        share = range(
            self.rank * num_workers + worker_id, -(-order.num_chunks // stretch), self.world_size * num_workers
        )
        threads = self.num_threads or max(_num_cores() // num_workers, 1)
        buffer = _Buffer(self.buffer_frames, self.size)
        with ThreadPoolExecutor(threads, thread_name_prefix="frames") as pool:
            ahead: _Stretch | None = None
            try:
                for number in [*share, None]:
                    ready = ahead
                    # What leaves the buffer makes room for the next stretch, which is decoded meanwhile.
                    ahead = None if number is None else self._start(order, number * stretch, stretch, pool, buffer)
                    if ready is not None:
                        yield from ready.frames(buffer)
            finally:
                buffer.close()  # an epoch that is left early has decoding under way

    def _start(
        self, order: FrameOrder, begin: int, num_chunks: int, pool: ThreadPoolExecutor, buffer: "_Buffer"
    ) -> "_Stretch":
        """Starts to decode the chunks from a place of the order on, each video's together, the longest work first."""
        videos: list[int] = []
        positions: list[int] = []
        for video, first, stop in order.chunks(begin, min(begin + num_chunks, order.num_chunks)):
            videos += [video] * (stop - first)
            positions += range(first, stop)
        stretch = _Stretch(videos, positions, slots=[0] * len(videos), tasks=[])
        places: dict[int, list[int]] = {}  # in the stretch, by video
        for place, video in enumerate(videos):
            places.setdefault(video, []).append(place)
        for video in sorted(places, key=lambda video: -len(places[video])):
            stretch.tasks.append(pool.submit(self._decode, video, places[video], stretch, buffer, buffer.turn()))
        return stretch

    def _decode(self, video: int, places: list[int], stretch: "_Stretch", buffer: "_Buffer", turn: int) -> None:
        """Decodes the frames of one video that a stretch has at some places."""
        slots = buffer.take(len(places), turn)
        path = self.paths[video]
        positions = [stretch.positions[place] for place in places]
        frames = with_index(
            path, lambda index: self._backend.frames(path, positions, index, self.size), index_dir=self.index_dir
        )
        for place, slot, frame in zip(places, slots, frames, strict=True):
            buffer.pixels[slot] = frame
            stretch.slots[place] = slot


@dataclass
class _Stretch:
    """Consecutive frames of the order, which tasks put into slots of the buffer."""

    videos: list[int]
    positions: list[int]
    slots: list[int]
    tasks: list[Future[None]]

    def frames(self, buffer: "_Buffer") -> Iterator[Frame]:
        """Waits until all are decoded, then hands them out, and back their slots."""
        for task in self.tasks:
            task.result()
        for slot, video, position in zip(self.slots, self.videos, self.positions, strict=True):
            pixels = buffer.pixels[slot].copy()
            buffer.give_back(slot)
            yield Frame(pixels, video, position)


class _Buffer:
    """Room for so many frames, in slots that threads take and give back."""

    def __init__(self, num_slots: int, size: tuple[int, int]):
        self.pixels = np.empty((num_slots, 3, *size), dtype=np.uint8)
        self.free = list(range(num_slots))
        self.is_closed = False
        self.num_turns = self.next_turn = 0
        self.condition = threading.Condition()

    def turn(self) -> int:
        """A place in the queue for slots: whoever comes first is needed first, and must not wait for later ones."""
        self.num_turns += 1
        return self.num_turns - 1

    def take(self, count: int, turn: int) -> list[int]:
        """Waits for one's turn and so many free slots, and takes them all at once."""
        with self.condition:
            self.condition.wait_for(lambda: (self.next_turn == turn and len(self.free) >= count) or self.is_closed)
            self.next_turn += 1
            self.condition.notify_all()
            if self.is_closed:
                raise RuntimeError("the epoch was left")
            taken = self.free[-count:]
            del self.free[-count:]
            return taken

    def give_back(self, slot: int) -> None:
        """Makes a slot free."""
        with self.condition:
            self.free.append(slot)
            self.condition.notify_all()

    def close(self) -> None:
        """Ends all waiting."""
        with self.condition:
            self.is_closed = True
            self.condition.notify_all()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class SamplingReport:
    """
    What a way to sample frames costs in variance; its bias is zero.

    Args:
        min_count, max_count (`int`): How often the rarest and the most frequent frame came in an epoch; both are 1.
        num_frames (`int`): Frames of the epoch.
        chunk_size (`int`): Frames in a chunk, m.
        correlation (`float`): Intraclass correlation rho of the values of frames in one chunk.
        design_effect (`float`): `1 + (m - 1) * rho`: by how much the variance of a batch's mean grows over that of as
            many independent frames (Kish 1965, "Survey Sampling").
        effective_share (`float`): Independent frames that tell as much as one of these, `1 / design_effect`.
    """

    min_count: int
    max_count: int
    num_frames: int
    chunk_size: int
    correlation: float
    design_effect: float
    effective_share: float


def sampling_report(order: FrameOrder, values: Sequence[np.ndarray]) -> SamplingReport:
    """
    Counts how often each frame comes in an epoch, and measures how alike the frames of a chunk are.

    Args:
        order ([`FrameOrder`]): Of the epoch.
        values (`Sequence[np.ndarray]` of shape `(num_frames, num_values)`): For each video, what of its frames is
            averaged over batches: pixels, or the gradient that a network has for each.

    Returns:
        [`SamplingReport`]: The inclusion counts, which are exact, and the design effect.
    """
    counts = [np.zeros(len(frames), dtype=np.int64) for frames in values]
    between = within = 0.0
    num_chunks = num_frames = 0
    mean = np.concatenate([np.asarray(frames, dtype=np.float64) for frames in values]).mean(axis=0)
    for video, first, stop in order.chunks(0, order.num_chunks):
        counts[video][first:stop] += 1
        chunk = np.asarray(values[video][first:stop], dtype=np.float64)
        num_chunks, num_frames = num_chunks + 1, num_frames + len(chunk)
        between += len(chunk) * float(((chunk.mean(axis=0) - mean) ** 2).sum())
        within += float(((chunk - chunk.mean(axis=0)) ** 2).sum())
    all_counts = np.concatenate(counts)
    average = num_frames / num_chunks
    # The estimate from one-way analysis of variance (Donner and Koval 1980).
    mean_between = between / max(num_chunks - 1, 1)
    mean_within = within / max(num_frames - num_chunks, 1)
    total = mean_between + (average - 1) * mean_within
    correlation = (mean_between - mean_within) / total if order.chunk_size > 1 and total > 0 else 0.0
    design_effect = 1 + (order.chunk_size - 1) * correlation
    return SamplingReport(
        min_count=int(all_counts.min()),
        max_count=int(all_counts.max()),
        num_frames=num_frames,
        chunk_size=order.chunk_size,
        correlation=correlation,
        design_effect=design_effect,
        effective_share=1 / design_effect,
    )
