"""Single frames of many videos in random order: every frame once per epoch, almost as fast as sequential decoding."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from simple_multimodal.cores import available_cores
from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.errors import InputError
from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import with_index

FEISTEL_ROUNDS = 8
LEAD = 32  # 1/32 of the buffer is for the next frames, which are decoded in advance


class Frame(NamedTuple):
    """A frame of a video.

    Args:
        pixels (`np.ndarray` of shape `(3, height, width)`, `uint8`): RGB; a `torch.ByteTensor` if a GPU decodes.
        video (`int`): Number of the video in the order given to the dataset.
        position (`int`): Number of the frame in the video.
    """

    pixels: np.ndarray | torch.Tensor
    video: int
    position: int


def shuffled(numbers: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """
    Apply a random permutation of `range(size)` to some numbers, without building the permutation.

    Uses a Feistel network over the smallest square of a power of two that holds `size`, and walks along its cycles
    until the result is below `size` (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        numbers (`np.ndarray` of `int64`): In `[0, size)`.
        size (`int`): Length of the permutation.
        key (`np.ndarray` of shape `(FEISTEL_ROUNDS,)`, `uint64`): Chooses the permutation.

    Returns:
        `np.ndarray`: As many numbers in `[0, size)`; different for different inputs.
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

    Each video is cut into chunks of `chunk_size` neighbouring frames. The position of the first cut is random for each
    video and epoch, and the frames left over at both ends are shorter chunks, so that no frame is lost or favoured.
    The chunks are in random order. With chunks of one frame, this is a permutation of all frames.

    Args:
        num_frames (`Sequence[int]`): Length of each video.
        chunk_size (`int`): Frames in a chunk.
        seed (`int`): Random seed of the run.
        epoch (`int`): Number of the epoch, counted from 0.
    """

    def __init__(self, num_frames: Sequence[int], *, chunk_size: int = 1, seed: int = 0, epoch: int = 0):
        generator = sample_generator(seed, epoch, "", "frame_order")
        self.chunk_size = chunk_size
        self.lengths = np.asarray(num_frames, dtype=np.int64)
        self.phases = generator.integers(0, chunk_size, len(self.lengths))  # length of a shorter first chunk, or 0
        num_chunks = (self.phases > 0) + -(-np.maximum(self.lengths - self.phases, 0) // chunk_size)
        self.stops = np.cumsum(num_chunks)  # end of each video's chunk numbers
        self.key = generator.integers(0, 2**64, FEISTEL_ROUNDS, dtype=np.uint64)

    @property
    def num_chunks(self) -> int:
        """Number of chunks in the epoch."""
        return int(self.stops[-1])

    def chunks(self, places: range) -> list[tuple[int, int, int]]:
        """
        Return the chunks at some places of the order.

        Args:
            places (`range`): Within `[0, num_chunks)`.

        Returns:
            `list[tuple[int, int, int]]`: For each chunk, the number of its video, its first frame, and its end
            (exclusive).
        """
        numbers = shuffled(np.arange(places.start, places.stop, places.step), self.num_chunks, self.key)
        videos = np.searchsorted(self.stops, numbers, side="right")
        first_chunks = np.where(videos > 0, self.stops[videos - 1], 0)
        phases = self.phases[videos]
        begins = (numbers - first_chunks - (phases > 0)) * self.chunk_size + phases
        ends = np.minimum(begins + self.chunk_size, self.lengths[videos])
        return list(zip(videos.tolist(), np.maximum(begins, 0).tolist(), ends.tolist(), strict=True))


class Chunk(NamedTuple):
    """Neighbouring frames of a video, `first` to `stop` (exclusive), at a place of the order."""

    place: int
    video: int
    first: int
    stop: int


def plan_visits(
    order: FrameOrder, share: range, group_starts: Sequence[np.ndarray], buffer_frames: int, ahead: int
) -> Iterator[list[Chunk]]:
    """
    Plan which frames to decode together, so that a buffer suffices to yield all of them in their order.

    When a frame is needed that the buffer does not hold, its group of pictures is decoded, and with it the frames of
    the group that are needed soon. With `M` groups, frames that are kept for up to `a * M` places of the order make
    visits of `1 + a` frames and fill a buffer of `M * a**2 / (2 * (a + 1))`; `a` is chosen to fill this one.

    Args:
        order ([`FrameOrder`]): Order of the epoch.
        share (`range`): Places of the order to yield; numbered from 0 below.
        group_starts (`Sequence[np.ndarray]`): For each video, the first frame of each of its groups of pictures,
            ascending; the first is 0.
        buffer_frames (`int`): Maximum number of frames held, including those being decoded.
        ahead (`int`): Number of places by which decoding is ahead; 1 or more.

    Yields:
        `list[Chunk]`: For each place, the chunks to decode then: chunks of one group, starting with the one at the
        place; an empty list if it was planned before.
    """
    size = order.chunk_size
    spare = buffer_frames - ahead * size  # the rest is for frames that are needed at once
    first_groups = np.cumsum([0, *map(len, group_starts)])
    num_groups = int(first_groups[-1])
    ratio = spare / size / num_groups
    horizon = int((ratio + (ratio**2 + 2 * ratio) ** 0.5) * num_groups) + 1
    generator = np.random.default_rng(0)  # its random choices affect only the speed

    groups: deque[int] = deque()  # groups of the next places, as far as they were read
    lengths: deque[int] = deque()  # lengths of the chunks from the next one to yield
    coming: dict[int, deque[Chunk]] = {}  # by group: chunks not planned yet
    visited: set[int] = set()
    num_seen = num_held = 0
    for place in range(len(share)):
        if num_seen < min(place + horizon, len(share)):
            block = order.chunks(share[num_seen : num_seen + max(horizon, 1024)])
            for number, (video, first, stop) in enumerate(block, num_seen):
                groups.append(int(first_groups[video] + np.searchsorted(group_starts[video], first, side="right")) - 1)
                lengths.append(stop - first)
                coming.setdefault(groups[-1], deque()).append(Chunk(number, video, first, stop))
            num_seen += len(block)
        if place >= ahead:
            num_held -= lengths.popleft()
        group = groups.popleft()
        wanted = coming.get(group, deque())
        # First visits keep frames for random times, so that later visits are spread out.
        end = place + horizon * (1 if group in visited else generator.random())
        visit: list[Chunk] = []
        if wanted and wanted[0].place == place:
            visited.add(group)
            while wanted and (not visit or (wanted[0].place < end and num_held + size <= spare)):
                visit.append(wanted.popleft())
                num_held += visit[-1].stop - visit[-1].first
        if not wanted:
            coming.pop(group, None)
        yield visit


class RandomFrameDataset(IterableDataset):
    """
    Frames of many videos, one by one in random order; in an epoch every frame of every video occurs exactly once.

    The order is known in advance, so decoding is planned (see [`plan_visits`]): when a group of pictures is decoded
    for a frame, other frames of it that are needed soon are kept in a buffer until their turn. The larger the buffer,
    the less is decoded per frame.

    Several processes and loader workers share the order: with `n` of them in total, each takes every n-th chunk.

    Args:
        paths (`Sequence[str]`): Paths of the videos.
        size (`tuple[int, int]`, *optional*, defaults to `(224, 224)`): Height and width of the frames.
        chunk_size (`int`, *optional*, defaults to 1): Number of neighbouring frames that stay together. Chunks are
            faster to read, and every frame remains equally likely; but neighbours look alike, so a batch carries less
            information (see `sampling_report`).
        buffer_frames (`int`, *optional*, defaults to 4096): Size of the buffer; 0.15 MB per frame at the default size.
        seed (`int`, *optional*, defaults to 0): Random seed, which determines the order together with the epoch.
        rank (`int`, *optional*, defaults to 0): Rank of this process.
        world_size (`int`, *optional*, defaults to 1): Number of processes.
        num_threads (`int`, *optional*): Number of videos decoded at the same time; by default one per core.
        index_dir (`str`, *optional*): Folder of stored frame indices, see `index_video`.
        video_backend, decode_device (`str`, *optional*, default to `"pyav"` and `"cpu"`): Decoder, see
            [`get_video_backend`]; with a GPU, the buffer and the frames are tensors on it.

    Raises:
        MediaError: If a video cannot be read.

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
        video_backend: str = "pyav",
        decode_device: str = "cpu",
    ):
        if chunk_size < 1 or buffer_frames < chunk_size:
            raise InputError(
                f"`chunk_size` is {chunk_size} and `buffer_frames` is {buffer_frames}; give "
                "1 <= chunk_size <= buffer_frames."
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
        self.num_frames: list[int] = []
        self.group_starts: list[np.ndarray] = []
        with ThreadPoolExecutor(num_threads or available_cores()) as pool:
            for index in pool.map(lambda path: index_video(path, index_dir=index_dir), self.paths):
                self.num_frames.append(index.num_frames)
                self.group_starts.append(group_starts(index))
        self._backend = get_video_backend(video_backend, decode_device=decode_device)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of frames in an epoch, over all processes."""
        return sum(self.num_frames)

    def __iter__(self) -> Iterator[Frame]:
        order = FrameOrder(self.num_frames, chunk_size=self.chunk_size, seed=self.seed, epoch=self.epoch)
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        sharers = self.world_size * num_workers
        share = range(self.rank * num_workers + worker_id, order.num_chunks, sharers)
        ahead = max(self.buffer_frames // LEAD // self.chunk_size, 1)
        plan = plan_visits(order, share, self.group_starts, self.buffer_frames, ahead)
        shape = self.buffer_frames, 3, *self.size
        pixels: np.ndarray | torch.Tensor = np.empty(shape, dtype=np.uint8)
        if self._backend.device != "cpu":
            pixels = torch.empty(shape, dtype=torch.uint8, device=self._backend.device)
        free = list(range(self.buffer_frames))  # free slots of the buffer; the plan never needs more
        planned: dict[int, tuple[Chunk, list[int], Future[None]]] = {}  # by place, with their slots

        def start(visit: list[Chunk]) -> None:
            slots = {chunk.place: [free.pop() for _ in range(chunk.first, chunk.stop)] for chunk in visit}
            task = pool.submit(self._decode, visit, pixels, [slot for chunk in visit for slot in slots[chunk.place]])
            for chunk in visit:
                planned[chunk.place] = chunk, slots[chunk.place], task

        threads = self.num_threads or max(available_cores() // num_workers, 1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="frames")
        try:
            for place in range(len(share)):
                for visit in itertools.islice(plan, ahead if place == 0 else 1):
                    if visit:
                        start(visit)
                chunk, slots, task = planned.pop(place)
                task.result()
                for slot, position in zip(slots, range(chunk.first, chunk.stop), strict=True):
                    own = pixels[slot].copy() if isinstance(pixels, np.ndarray) else pixels[slot].clone()
                    frame = Frame(own, chunk.video, position)
                    free.append(slot)
                    yield frame
        finally:
            pool.shutdown(cancel_futures=True)  # if iteration stops early, frames are still being decoded

    def _decode(self, visit: list[Chunk], pixels: np.ndarray | torch.Tensor, slots: list[int]) -> None:
        """Decode chunks of a video into slots of the buffer."""
        path = self.paths[visit[0].video]
        positions = [position for chunk in visit for position in range(chunk.first, chunk.stop)]
        frames = with_index(
            path, lambda index: self._backend.frames(path, positions, index, self.size), index_dir=self.index_dir
        )
        for slot, frame in zip(slots, frames, strict=True):
            pixels[slot] = frame


def group_starts(index: FrameIndex) -> np.ndarray:
    """
    Return where a video's groups of pictures begin, which can be decoded without the frames before them.

    Args:
        index ([`FrameIndex`]): Index of the video.

    Returns:
        `np.ndarray` of `int64`: Frame numbers, ascending; the first is 0.
    """
    if index.table is None:
        return np.zeros(1, dtype=np.int64)
    starts = np.searchsorted(index.table.time_stamps, index.table.entry_time_stamps)
    return np.unique(np.concatenate([[0], starts[starts < index.num_frames]]))


@dataclass(frozen=True)
class SamplingReport:
    """
    Variance of an unbiased way to sample frames.

    Args:
        min_count, max_count (`int`): Occurrences of the rarest and the most frequent frame in an epoch; both are 1.
        num_frames (`int`): Number of frames in the epoch.
        chunk_size (`int`): Number of frames in a chunk, m.
        correlation (`float`): Intraclass correlation rho of the values of frames in one chunk.
        design_effect (`float`): `1 + (m - 1) * rho`: ratio of the variance of a batch's mean to that of the same
            number of independent frames (Kish 1965, "Survey Sampling").
        effective_share (`float`): Number of independent frames that one of these is worth, `1 / design_effect`.
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
    Count how often each frame occurs in an epoch, and measure how similar the frames of a chunk are.

    Args:
        order ([`FrameOrder`]): Order of the epoch.
        values (`Sequence[np.ndarray]` of shape `(num_frames, num_values)`): For each video, the values of its frames
            that are averaged over batches: pixels, or the gradients of a network.

    Returns:
        [`SamplingReport`]: The inclusion counts, which are exact, and the design effect.
    """
    counts = [np.zeros(len(frames), dtype=np.int64) for frames in values]
    between = within = 0.0
    num_chunks = num_frames = 0
    mean = np.concatenate([np.asarray(frames, dtype=np.float64) for frames in values]).mean(axis=0)
    for video, first, stop in order.chunks(range(order.num_chunks)):
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


def window_counts(num_frames: int, window: int) -> np.ndarray:
    """
    Return, for each frame, the number of sliding windows that contain it.

    Args:
        num_frames (`int`): Number of frames in the video.
        window (`int`): Number of neighbouring frames in a window, m; a shorter video is one window.

    Returns:
        `np.ndarray` of shape `(num_frames,)`, `int64`: 1 for the first and the last frame, up to
        `min(m, num_frames - m + 1)` in the middle.
    """
    window = min(window, num_frames)
    places = np.arange(num_frames)
    # Of the starts 0 to num_frames - m, the windows from place - m + 1 to place contain the frame.
    return np.minimum(places, num_frames - window) - np.maximum(places - window + 1, 0) + 1


@dataclass(frozen=True)
class WindowReport:
    """
    Exact bias of sliding windows over videos: every window counts once, without sampling.

    Args:
        min_share, max_share (`float`): Frequency of the rarest and the most frequent frame, relative to the average.
        edge_share (`float`): Share of the frames that occur less often than the most frequent one of their video.
        bias (`float`): Distance between the mean over windows and the mean over frames, in standard deviations of a
            frame.
    """

    min_share: float
    max_share: float
    edge_share: float
    bias: float


def window_report(values: Sequence[np.ndarray], window: int) -> WindowReport:
    """
    Return the bias of sampling windows of `window` frames that may begin at any frame with equal probability.

    The edges of a video are in fewer windows than its middle: their frames are rarer, and the mean over batches
    differs from the mean over frames, however large the sample. Chunks that tile a video from a random phase
    ([`FrameOrder`]) have no such bias.

    Args:
        values (`Sequence[np.ndarray]` of shape `(num_frames, num_values)`): As for [`sampling_report`].
        window (`int`): Number of frames in a window, m.

    Returns:
        [`WindowReport`]: The bias, determined by counting.
    """
    counts = [window_counts(len(frames), window) for frames in values]
    weights = np.concatenate(counts) / np.concatenate(counts).mean()
    frames = np.concatenate([np.asarray(frames, dtype=np.float64) for frames in values])
    mean = frames.mean(axis=0)
    spread = float(((frames - mean) ** 2).sum(axis=1).mean() ** 0.5)
    shift = float(np.linalg.norm((weights[:, None] * (frames - mean)).mean(axis=0)))
    return WindowReport(
        min_share=float(weights.min()),
        max_share=float(weights.max()),
        edge_share=float(np.mean(np.concatenate([own < own.max() for own in counts]))),
        bias=shift / spread if spread > 0 else 0.0,
    )
