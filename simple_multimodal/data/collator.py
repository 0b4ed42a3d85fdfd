"""Read the media of a batch's rows side by side and turn them into one flat dictionary of tensors."""

import contextlib
import copy
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from simple_multimodal.cores import available_cores
from simple_multimodal.data.bad_samples import BadSampleError, with_retries
from simple_multimodal.data.features import ClipTokens, FeatureReader
from simple_multimodal.data.in_flight import InFlight
from simple_multimodal.data.randomness import sample_generator, stable_hash
from simple_multimodal.data.rows import Row, row_captions
from simple_multimodal.data.targets import Targets
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.backend import VideoBackend
from simple_multimodal.media.errors import NoAudioError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import with_index
from simple_multimodal.media.video import decoder_name, get_video_backend
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS, Modality
from simple_multimodal.processing import AudioFeatures, MultimodalProcessor
from simple_multimodal.processing.audio_windows import windows_with_audio
from simple_multimodal.processing.batch_memory import SharedBatch

MAX_THREADS = 8

Result = TypeVar("Result")

OnBadSample = Callable[[int, BadSampleError], Row]
"""Given the number of a row in its batch and what is wrong with it: another row for its place, or raises."""


class MultimodalCollator:
    """Collator for rows of [`RowDataset`].

    Sounds and clips are decoded and processed side by side in one pool of threads, the largest clips first; texts are
    tokenised meanwhile. A row's tensors do not depend on its neighbours (but for padding), on threads or on worker
    processes: whatever is random comes from a generator of (seed, epoch, id, purpose).

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
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    @property
    def decoder(self) -> str:
        """What decodes frames, see [`decoder_name`]."""
        return decoder_name(self.video_backend, self.decode_device)

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
        modalities = self.processor.modalities
        numbers = range(len(rows))
        read: dict[str, Callable[[int], Any]] = {}
        videos: dict[str, torch.Tensor] = {}
        if "text" in modalities:
            read["text"] = lambda number: self._attempt(self._choose_caption, rows[number], "text")
        if "audio" in modalities:
            read["audio"] = lambda number: self._attempt(self._read_sound, rows[number], "audio")
        if "video" in modalities and "video" not in self.features:
            videos = self.processor.video_processor.new_batch(len(rows), device=self._backend.device)
            read["video"] = lambda number: self._attempt(
                partial(self._read_clip, number=number, batch=videos), rows[number], "video"
            )
        for modality in self.features:
            read[modality] = partial(self._attempt_tokens, rows, modality)
        # Sounds one after the other beside the clips: the steps of decoding them are so short that two threads at it
        # would only take the interpreter from each other.
        sounds = self._start(lambda: [read["audio"](number) for number in numbers]) if "audio" in read else list
        by_size = sorted(numbers, key=lambda number: -self._clip_size(rows[number])) if "video" in read else ()
        clips = {number: self._start(partial(read["video"], number)) for number in by_size}
        found = {"text": [read["text"](number) for number in numbers] if "text" in read else []}
        texts = self._tokenize(_readable(found["text"])) if "text" in read else {}
        found |= {"audio": sounds(), "video": [clips[number]() for number in sorted(clips)]}
        for number in numbers:
            while (error := _first_error([found[name][number] for name in read])) is not None:
                if on_bad_sample is None:
                    raise error
                rows[number] = on_bad_sample(number, error)
                for name in read:
                    found[name][number] = read[name](number)
                texts = {}
        if "text" in read and not texts:
            texts = self._tokenize(found["text"])
        batch: dict[str, Any] = dict(texts)
        if "audio" in read and "audio" not in self.features:
            extractor = self.processor.feature_extractor
            batch |= extractor.collate(found["audio"])
            windows = windows_with_audio(batch["audio_attention_mask"], extractor.num_frames)
            batch |= zip(AUDIO_WINDOW_KEYS, windows, strict=True)
        batch |= videos
        for modality, reader in self.features.items():
            batch |= reader.collate(found[modality])
        batch["row_ids"] = torch.tensor([row["index"] for row in rows])
        batch["group_ids"] = torch.tensor([stable_hash(row["group"]) for row in rows])
        if self.targets is not None:
            batch |= self.targets(rows, batch, self._generator)
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

    def tokenize_captions(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Token ids of every caption of every row, for evaluations over all captions.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape `(num_captions, sequence_length)`,
            `row_ids` and `group_ids` of shape `(num_captions,)`; captions in the order of the rows. Rows without text
            have none.
        """
        has_text = "text" in self.processor.modalities and "text" not in self.drop_modalities
        captions: list[Any] = [self._attempt(row_captions, row, "text") for row in rows] if has_text else []
        if (error := _first_error(captions)) is not None:
            raise error
        pairs = [(row, caption) for row, own in zip(rows, captions, strict=False) for caption in own]
        encoded = self._tokenize([caption for _, caption in pairs]) if pairs else {}
        empty = torch.zeros(0, 0, dtype=torch.long)
        batch = {
            "input_ids": encoded.get("input_ids", empty),
            "attention_mask": encoded.get("attention_mask", empty),
            "row_ids": torch.tensor([row["index"] for row, _ in pairs], dtype=torch.long),
            "group_ids": torch.tensor([stable_hash(row["group"]) for row, _ in pairs], dtype=torch.long),
        }
        return batch if torch.utils.data.get_worker_info() is None else SharedBatch(batch)

    def _generator(self, row: Row, purpose: str) -> np.random.Generator:
        return sample_generator(self.seed, row["epoch"], row["id"], purpose)

    def _attempt(self, read: Callable[[Row], Result], row: Row, column: str) -> Result | BadSampleError:
        """Read something of a row; what goes wrong comes back with the name of the row and of the file."""
        file = row[column]  # type: ignore[literal-required]
        record = self.in_flight if file is not None else None
        try:
            with contextlib.nullcontext() if record is None else record.reading(row["index"], file):
                return with_retries(partial(read, row), file)
        except (ValueError, OSError, MemoryError) as error:  # MediaError is a ValueError
            bad = BadSampleError.of(row, file, str(error) or type(error).__name__)
            bad.__cause__ = error
            return bad

    def _clip_size(self, row: Row) -> int:
        """Bytes of a row's clip, a measure of the work that it makes."""
        size = self._attempt(lambda row: _file_size(row["video"]), row, "video")
        return size if isinstance(size, int) else 0

    def _choose_caption(self, row: Row) -> str | None:
        captions = [] if "text" in self.drop_modalities else row_captions(row)
        if not captions:
            return None
        if self.training and len(captions) > 1:
            return captions[int(self._generator(row, "caption").integers(len(captions)))]
        return captions[0]

    def _tokenize(self, captions: Sequence[str | None]) -> dict[str, torch.Tensor]:
        padding = "max_length" if self.pad_to_max_length else None
        return self.processor.tokenize(captions, max_length=self.max_seq_length, padding=padding)

    def _attempt_tokens(
        self, rows: Sequence[Row], modality: Modality, number: int
    ) -> ClipTokens | BadSampleError | None:
        """Tokens of a row's clip, where the row has one."""
        row = rows[number]
        if row[modality] is None or modality in self.drop_modalities:  # type: ignore[literal-required]
            return None
        return self._attempt(self.features[modality].read, row, modality)

    def _read_sound(self, row: Row) -> AudioFeatures | None:
        path = row["audio"]
        if path is None or "audio" in self.drop_modalities:
            return None
        extractor = self.processor.feature_extractor
        try:
            waveform = read_audio(
                path,
                extractor.sampling_rate,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                index_dir=self.index_dir,
            )
        except NoAudioError:
            if row["audio_is_sound_track"]:
                return None
            raise
        return extractor.extract(waveform, self._generator(row, "audio") if self.training else None)

    def _read_clip(self, row: Row, number: int, batch: dict[str, torch.Tensor]) -> None:
        """Read the clip of a row into its place in the batch."""
        path = row["video"]
        if path is None or "video" in self.drop_modalities:
            batch["pixel_values_videos"][number] = 0
            batch["video_seconds"][number] = 0
            batch["video_mask"][number] = False
            return
        processor = self.processor.video_processor

        def read(index: FrameIndex) -> None:
            positions = processor.sample(
                index,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                generator=self._generator(row, "frames") if self.training else None,
            )
            generator = self._generator(row, "crop") if self.training else None
            fit = processor.fit(index.height, index.width, generator=generator)
            size = None if processor.scales_in_memory else (fit.height, fit.width)
            frames = self._backend.frames(path, positions, index, size)
            processor.transform(frames, fit, out=batch["pixel_values_videos"][number])
            # The first frame may have come on before the segment's start.
            seconds = np.maximum(index.seconds[positions] - (row["start_seconds"] or 0.0), 0.0)
            batch["video_seconds"][number] = torch.from_numpy(seconds)
            batch["video_mask"][number] = True

        with_index(path, read, index_dir=self.index_dir)

    def _start(self, read: Callable[[], Result]) -> Callable[[], Result]:
        """Start to read something; call what is returned for the result. Sequentially, that reads it."""
        return self._get_pool().submit(read).result if self.parallel else read

    def _get_pool(self) -> ThreadPoolExecutor:
        """This process's pool; threads do not survive a fork, so a child makes a new one."""
        if self._pool is None or self._pool_process != os.getpid():
            self._pool = ThreadPoolExecutor(self.num_threads or default_num_threads(), thread_name_prefix="collator")
            self._pool_process = os.getpid()
        return self._pool


def _first_error(parts: Sequence[Any]) -> BadSampleError | None:
    return next((part for part in parts if isinstance(part, BadSampleError)), None)


def _readable(captions: Sequence[Any]) -> list[str | None]:
    return [None if isinstance(caption, BadSampleError) else caption for caption in captions]


def default_num_threads() -> int:
    """This process's share of the cores it may use: divided among the processes of a launcher and their workers."""
    worker = torch.utils.data.get_worker_info()
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (1 if worker is None else worker.num_workers)
    return min(max(available_cores() // sharers, 1), MAX_THREADS)


def _file_size(path: str | None) -> int:
    """Bytes, the measure of the work that a file makes; 0 where there is none (its reader tells, if it should be)."""
    try:
        return 0 if path is None else os.stat(path).st_size
    except OSError:
        return 0
