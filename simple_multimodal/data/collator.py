"""Read the media of a batch's rows side by side and turn them into one flat dictionary of tensors."""

import contextlib
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

import torch

from simple_multimodal.cores import available_cores
from simple_multimodal.data.bad_samples import BadSampleError, with_retries
from simple_multimodal.data.features import FeatureReader
from simple_multimodal.data.in_flight import InFlight
from simple_multimodal.data.randomness import GeneratorOf, row_generator, stable_hash
from simple_multimodal.data.readers import READERS, Reader, ReadSettings, Tensors, TokenReader
from simple_multimodal.data.rows import Row
from simple_multimodal.data.targets import Targets
from simple_multimodal.media.backend import VideoBackend
from simple_multimodal.media.video import decoder_name, get_video_backend
from simple_multimodal.modalities import Modality
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.processing.batch_memory import SharedBatch

MAX_THREADS = 8

Result = TypeVar("Result")

OnBadSample = Callable[[int, BadSampleError], Row]
"""Given the number of a row in its batch and what is wrong with it: another row for its place, or raises."""


class MultimodalCollator:
    """Collator for rows of [`RowDataset`].

    Each modality has a reader (`READERS`). Sounds and clips are decoded and processed side by side in one pool of
    threads, the largest clips first; texts are tokenised meanwhile. A row's tensors do not depend on its neighbours
    (but for padding), on threads or on worker processes: whatever is random comes from a generator of (seed, epoch,
    id, purpose).

    A row without caption, sound or video is not an error: its entries are zeros (ids: an empty text) and its
    `*_mask` is `False`. So it is with a video that has no sound track, where the manifest has no `audio` column.

    Args:
        processor ([`MultimodalProcessor`]):
            Turns arrays into tensors; the batch has the modalities that it has.
        training (`bool`, *optional*, defaults to `False`):
            Draw a caption among several, a stretch of audio that is too long, jitter frames, crop and flip as the
            processor says. Otherwise the first caption, the same audio and the same frames every time.
        seed (`int`, *optional*, defaults to 0):
            Of the run.
        targets ([`Targets`], *optional*):
            Adds a task's entries to each batch, such as labels and what its objectives draw.
        max_seq_length (`int`, *optional*):
            Longest text in tokens; by default 512 or the tokenizer's limit.
        pad_to_max_length (`bool`, *optional*, defaults to `False`):
            Pad texts to `max_seq_length` instead of to the longest of the batch.
        drop_modalities (`Sequence[str]`, *optional*):
            Take every row as lacking these; their files are not read.
        num_threads (`int`, *optional*):
            Of the pool; by default this process's share of the CPU cores, at most 8.
        parallel (`bool`, *optional*, defaults to `True`):
            `False` does everything one after the other. The batch is the same, bit for bit.
        video_backend (`str`, *optional*, defaults to `"pyav"`):
            `"pyav"`, `"torchcodec"` or `"decord"`.
        decode_device (`str`, *optional*, defaults to `"cpu"`):
            With `"cuda"` (and `"torchcodec"`) frames are decoded by the GPU of this process and stay there:
            `pixel_values_videos` is on it. Not in a process that was forked.
        index_dir (`str`, *optional*):
            Folder of stored frame indices; by default `simple_multimodal/frame_index` in the user's cache folder.
        features (`Mapping[str, FeatureReader]`, *optional*):
            Tokens of frozen towers by modality. The batch has these (see [`FeatureReader.collate`]) in place of what
            the tower would read; nothing of them is drawn in training.

    Raises:
        BadSampleError: From a call, if a file cannot be read; the message names the row. A file that vanished or whose
            file system fails is tried again before.

    Example:

    ```python
    >>> collator = MultimodalCollator(processor)
    >>> rows = [dataset[0], dataset[1]]  # "a cat purrs", one second with sound; "two dogs", without a sound track
    >>> batch = collator(rows)
    >>> batch["input_ids"], batch["attention_mask"]
    (tensor([[2, 54, 87, 91, 3], [2, 66, 70, 3, 0]]), tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]))
    >>> {key: tuple(value.shape) for key, value in batch.items() if key.startswith(("audio", "pixel", "video"))}
    {'audio_values': (2, 1, 128, 1024), 'audio_attention_mask': (2, 1024), 'audio_seconds': (2, 1024),
     'audio_mask': (2,), 'pixel_values_videos': (2, 16, 3, 224, 224), 'video_seconds': (2, 16), 'video_mask': (2,)}
    >>> batch["text_mask"], batch["audio_mask"], batch["video_mask"]
    (tensor([True, True]), tensor([ True, False]), tensor([True, True]))
    >>> batch["audio_attention_mask"].sum(1)  # frames with sound
    tensor([99,  0])
    >>> batch["row_ids"]
    tensor([0, 1])
    ```
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        *,
        training: bool = False,
        seed: int = 0,
        targets: Targets | None = None,
        max_seq_length: int | None = None,
        pad_to_max_length: bool = False,
        drop_modalities: Sequence[Modality] = (),
        num_threads: int | None = None,
        parallel: bool = True,
        video_backend: str = "pyav",
        decode_device: str = "cpu",
        index_dir: str | None = None,
        features: Mapping[Modality, FeatureReader] | None = None,
    ):
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"`num_threads` must be 1 or more, got {num_threads}; use `parallel=False` for none.")
        self.processor = processor
        self.training = training
        self.seed = seed
        self.targets = targets
        self.max_seq_length = max_seq_length
        self.pad_to_max_length = pad_to_max_length
        self.drop_modalities = tuple(drop_modalities)
        self.num_threads = num_threads
        self.parallel = parallel
        self.video_backend = video_backend
        self.decode_device = decode_device
        self.index_dir = index_dir
        self.features = dict(features or {})
        self.in_flight: InFlight | None = None  # where to note down which files are being read
        video = processor.video_processor
        self._backend: VideoBackend = get_video_backend(
            video_backend,
            is_like_decord=video is not None and video.resize_kernel == "decord",
            decode_device=decode_device,
        )
        self._generator_of: GeneratorOf = partial(row_generator, seed)
        settings = ReadSettings(
            processor,
            self._backend,
            generator_of=self._generator_of if training else None,
            index_dir=index_dir,
            max_seq_length=max_seq_length,
            pad_to_max_length=pad_to_max_length,
        )
        self._readers: dict[Modality, Reader] = {m: READERS[m](settings) for m in processor.modalities}
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    @property
    def decoder(self) -> str:
        """What decodes frames, see [`decoder_name`]."""
        return decoder_name(self.video_backend, self.decode_device)

    @property
    def columns(self) -> list[str]:
        """Entries of a row that are read."""
        return [reader.column for reader in self._readers.values()]

    def has(self, row: Row, modality: Modality) -> bool:
        """Return whether a row has a modality of the processor."""
        return self._readers[modality].has(row)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_pool_process": 0, "in_flight": None}  # a worker makes its own

    def __call__(self, rows: Sequence[Row], on_bad_sample: OnBadSample | None = None) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows (`Sequence[Row]`):
                From [`RowDataset`], at least one.
            on_bad_sample (`Callable`, *optional*):
                Gives another row in place of one that cannot be read, and so on until one can. The default raises.

        Returns:
            `dict[str, torch.Tensor]`: For each modality of the processor the entries of
            [`MultimodalProcessor.tokenize`], [`AudioFeatureExtractor.collate`] and [`VideoClipProcessor.collate`]
            with one entry per row; with audio, those of [`windows_with_audio`]; `row_ids` (row numbers) and
            `group_ids` (63-bit hashes of `group`), `int64` of shape `(batch_size,)`; and what `targets` adds.
        """
        rows = list(rows)
        batch: dict[str, Any] = {}
        # Started in the pool, or here when it is waited for; each is collated while others are still at work.
        readings = [self._start(modality, rows) for modality in self._readers]
        for reading in readings:
            reading.wait()
            batch |= reading.collate()
        # Rows of which something cannot be read are replaced, until none is left.
        is_complete = True
        for number in range(len(rows)):
            while (error := _first_error([reading.parts[number] for reading in readings])) is not None:
                if on_bad_sample is None:
                    raise error
                rows[number] = on_bad_sample(number, error)
                is_complete = False
                for reading in readings:
                    reading.parts[number] = reading.read(number)
        for reading in () if is_complete else readings:
            batch |= reading.collate()
        batch["row_ids"] = torch.tensor([row["index"] for row in rows])
        batch["group_ids"] = torch.tensor([stable_hash(row["group"]) for row in rows])
        if self.targets is not None:
            batch |= self.targets(rows, batch, self._generator_of)
        return batch if torch.utils.data.get_worker_info() is None else SharedBatch(batch)

    def empty_batch(self, num_rows: int) -> dict[str, torch.Tensor]:
        """The batch of so many rows that lack every modality; no file is read."""
        nothing: Row = {
            "id": "",
            "index": -1,
            "epoch": 0,
            "video": None,
            "audio": None,
            "audio_is_sound_track": True,
            "text": None,
            "captions": [],
            "start_seconds": None,
            "end_seconds": None,
            "group": "",
            "is_skipped": True,
        }
        alone = copy.copy(self)
        alone.parallel = False  # no thread is worth its start
        return dict(alone([nothing] * num_rows))

    def _start(self, modality: Modality, rows: list[Row]) -> "_Reading":
        """Start to read a modality of all rows."""
        reader = self._readers[modality] if modality not in self.features else TokenReader(self.features[modality])
        reading = _Reading(reader, rows, self._attempt, is_dropped=modality in self.drop_modalities)
        numbers = range(len(rows))
        if reader.schedule == "side by side":
            by_size = sorted(numbers, key=lambda number: -reading.size(number))
            results = {number: self._submit(partial(reading.read, number)) for number in by_size}
            reading.results = lambda: [results[number]() for number in numbers]
        elif reader.schedule == "one by one":
            reading.results = self._submit(lambda: [reading.read(number) for number in numbers])
        else:
            reading.results = lambda: [reading.read(number) for number in numbers]
        return reading

    def _attempt(self, read: Callable[[Row], Result], row: Row, column: str) -> Result | BadSampleError:
        """Read something of a row; what goes wrong comes back with the name of the row and of the file."""
        value = row.get(column)
        file = value if isinstance(value, str) else None
        record = self.in_flight if file is not None else None
        try:
            with contextlib.nullcontext() if record is None else record.reading(row["index"], cast(str, file)):
                return with_retries(partial(read, row), file)
        except (ValueError, OSError, MemoryError) as error:  # MediaError is a ValueError
            bad = BadSampleError.of(row, file, str(error) or type(error).__name__)
            bad.__cause__ = error
            return bad

    def _submit(self, read: Callable[[], Result]) -> Callable[[], Result]:
        """Start to read something; call what is returned for the result. Sequentially, that reads it."""
        return self._get_pool().submit(read).result if self.parallel else read

    def _get_pool(self) -> ThreadPoolExecutor:
        """This process's pool; threads do not survive a fork, so a child makes a new one."""
        if self._pool is None or self._pool_process != os.getpid():
            self._pool = ThreadPoolExecutor(self.num_threads or default_num_threads(), thread_name_prefix="collator")
            self._pool_process = os.getpid()
        return self._pool


class _Reading:
    """One reader at work on a batch.

    Args:
        reader ([`Reader`]): reads a modality.
        rows (`list[Row]`): of the batch; where one is replaced, the new one is read.
        attempt (`Callable`): [`MultimodalCollator._attempt`].
        is_dropped (`bool`): whether every row is taken as lacking the modality.
    """

    results: Callable[[], list[Any]]
    """Waits for the parts of all rows, or reads them."""

    def __init__(self, reader: Reader, rows: list[Row], attempt: Callable[..., Any], *, is_dropped: bool):
        self.reader = reader
        self.rows = rows
        self.attempt = attempt
        self.is_dropped = is_dropped
        self.memory: Tensors = reader.new_batch(len(rows))
        self.parts: list[Any] = []

    def wait(self) -> None:
        self.parts = self.results()

    def collate(self) -> Mapping[str, Any]:
        parts = [None if isinstance(part, BadSampleError) else part for part in self.parts]
        return self.reader.collate(parts, self.memory)

    def read(self, number: int) -> Any:
        """The part of a row, or what is wrong with it."""
        row, out = self.rows[number], {name: tensor[number] for name, tensor in self.memory.items()}
        if self.has(row):
            return self.attempt(lambda row: self.reader.read(row, out), row, self.reader.column)
        for tensor in out.values():
            tensor.zero_()
        return None

    def size(self, number: int) -> int:
        row = self.rows[number]
        size = self.attempt(self.reader.size, row, self.reader.column) if self.has(row) else 0
        return size if isinstance(size, int) else 0

    def has(self, row: Row) -> bool:
        return not self.is_dropped and self.reader.has(row)


def _first_error(parts: Sequence[Any]) -> BadSampleError | None:
    return next((part for part in parts if isinstance(part, BadSampleError)), None)


def default_num_threads() -> int:
    """This process's share of the cores it may use: divided among the processes of a launcher and their workers."""
    worker = torch.utils.data.get_worker_info()
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (1 if worker is None else worker.num_workers)
    return min(max(available_cores() // sharers, 1), MAX_THREADS)
