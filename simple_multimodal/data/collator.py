"""Read the media of a batch's rows side by side and turn them into one flat dictionary of tensors."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from simple_multimodal.data.bad_samples import BadSampleError
from simple_multimodal.data.features import FeatureReader
from simple_multimodal.data.in_flight import InFlight
from simple_multimodal.data.randomness import GeneratorOf, row_generator, stable_hash
from simple_multimodal.data.readers import READERS, Reader, ReadSettings, TokenReader
from simple_multimodal.data.reading import ModalityReading, ThreadPool
from simple_multimodal.data.rows import EMPTY_ROW, Row
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.media.backend import VideoBackend
from simple_multimodal.media.video import decoder_name, get_video_backend
from simple_multimodal.modalities import Modality
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.processing.batch_memory import SharedBatch, passes_batches_on

OnBadSample = Callable[[int, BadSampleError], Row]
"""Takes the number of a row in its batch and its error; returns a row to replace it, or raises. Called again if that
row cannot be read either, and so it must return a row without files in the end.
"""


class MultimodalCollator:
    """Collator for rows of [`RowDataset`].

    Each modality has a reader (`READERS`). Audio and video are decoded and processed in a pool of threads, the largest
    videos first; texts are tokenized meanwhile. The tensors of a row do not depend on the other rows of its batch
    (except for padding), on threads or on worker processes: all random numbers come from a generator that is seeded
    with (seed, epoch, row id, purpose).

    A row without caption, audio or video is not an error: its entries are zeros (`input_ids`: an empty text), and its
    `*_mask` is `False`. The same holds for a video without an audio track if the manifest has no `audio` column.

    Args:
        processor ([`MultimodalProcessor`]):
            Turns text, waveforms and frames into tensors. A batch has the modalities of the processor.
        training (`bool`, *optional*, defaults to `False`):
            Choose one of several captions and a random part of audio that is too long, and jitter, crop and flip
            frames as the processor is configured, at random. Otherwise the first caption, the same audio and the same
            frames are used every time.
        seed (`int`, *optional*, defaults to 0):
            Random seed of the run.
        targets ([`Targets`], *optional*):
            Adds the entries of a task to each batch, such as labels and masks.
        max_seq_length (`int`, *optional*):
            Maximum length of a text in tokens; by default 512 or the limit of the tokenizer.
        pad_to_max_length (`bool`, *optional*, defaults to `False`):
            Pad texts to `max_seq_length` instead of to the longest text of the batch.
        drop_modalities (`Sequence[str]`, *optional*):
            Treat every row as lacking these modalities; their files are not read.
        num_threads (`int`, *optional*):
            Number of threads; by default this process's share of the CPU cores, at most 8.
        parallel (`bool`, *optional*, defaults to `True`):
            Read in threads. `False` reads everything in order; the batch is the same, bit for bit.
        video_backend (`str`, *optional*, defaults to `"pyav"`):
            `"pyav"`, `"torchcodec"` or `"decord"`.
        decode_device (`str`, *optional*, defaults to `"cpu"`):
            `"cuda"` (with `"torchcodec"`) decodes frames on the GPU of this process and leaves them there:
            `pixel_values_videos` is on the GPU. Not available in a forked process.
        index_dir (`str`, *optional*):
            Folder of stored frame indices; by default `simple_multimodal/frame_index` in the user's cache folder.
        features (`Mapping[str, FeatureReader]`, *optional*):
            Saved tokens of frozen towers by modality. They take the place of the inputs of the tower (see
            [`FeatureReader.collate`]) and are not augmented.

    Attributes:
        in_flight ([`InFlight`], *optional*): Record of the files that are being read, set by [`SupervisedReader`] to
            know which file crashed its process.

    Raises:
        BadSampleError: When called, if a file cannot be read; the message names the row. A file that has vanished or
            whose file system fails is tried again first.

    Example:

    ```python
    >>> collator = MultimodalCollator(processor)
    >>> rows = [dataset[0], dataset[1]]  # "a cat purrs", one second with audio; "two dogs", without an audio track
    >>> batch = collator(rows)
    >>> batch["input_ids"], batch["attention_mask"]
    (tensor([[2, 54, 87, 91, 3], [2, 66, 70, 3, 0]]), tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]))
    >>> {key: tuple(value.shape) for key, value in batch.items() if key in ("audio_values", "pixel_values_videos")}
    {'audio_values': (2, 1, 128, 1024), 'pixel_values_videos': (2, 16, 3, 224, 224)}
    >>> batch["audio_windows"], batch["audio_window_counts"]  # only the first row has audio, in one window
    (tensor([[0, 0]]), (1, 0))
    >>> batch["text_mask"], batch["audio_mask"], batch["video_mask"]
    (tensor([True, True]), tensor([ True, False]), tensor([True, True]))
    >>> batch["audio_attention_mask"].sum(1)  # audio frames
    tensor([99,  0])
    >>> batch["row_ids"]
    tensor([0, 1])
    ```
    """

    opens_files = True
    """Whether the files of rows are opened, not only named."""

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
            raise InputError(f"`num_threads` must be 1 or more, got {num_threads}; use `parallel=False` for none.")
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
        self.in_flight: InFlight | None = None
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
        self._pool = ThreadPool(num_threads)

    @property
    def decoder(self) -> str:
        """Name of what decodes frames, see [`decoder_name`]."""
        return decoder_name(self.video_backend, self.decode_device)

    @property
    def columns(self) -> list[str]:
        """Entries of a row that the readers read."""
        return [reader.column for reader in self._readers.values()]

    def has(self, row: Row, modality: Modality) -> bool:
        """Return whether a row has a modality of the processor."""
        return self._readers[modality].has(row)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "in_flight": None}  # a worker makes its own

    def __call__(self, rows: Sequence[Row], on_bad_sample: OnBadSample | None = None) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows (`Sequence[Row]`):
                Rows of a [`RowDataset`], at least one.
            on_bad_sample (`Callable`, *optional*):
                Replaces a row that cannot be read, see `OnBadSample`. By default its error is raised.

        Returns:
            `dict[str, Any]`: Tensors by name: for each modality of the processor the entries of
            [`MultimodalProcessor.tokenize`], [`AudioFeatureExtractor.collate`] or [`VideoClipProcessor.collate`], with
            one entry per row; with audio, those of [`windows_with_audio`]; `row_ids` (row numbers) and `group_ids`
            (63-bit hashes of `group`), `int64` of shape `(batch_size,)`; and what `targets` adds. In a process that
            passes its batches on, such as a worker of a `DataLoader`, it is a [`SharedBatch`], a dictionary that
            reaches the other process without a copy.
        """
        rows = list(rows)
        readings = [self._start(modality, rows) for modality in self._readers]
        batch: dict[str, Any] = {}
        for reading in readings:
            reading.wait()
            batch |= reading.collate()  # while the next ones are still being read
        if _replace_bad_rows(rows, readings, on_bad_sample):
            for reading in readings:
                batch |= reading.collate()
        batch["row_ids"] = torch.tensor([row["index"] for row in rows])
        batch["group_ids"] = torch.tensor([stable_hash(row["group"]) for row in rows])
        if self.targets is not None:
            batch |= self.targets(rows, batch, self._generator_of)
        return SharedBatch(batch) if passes_batches_on() else batch

    def empty_batch(self, num_rows: int) -> dict[str, torch.Tensor]:
        """Return a batch of `num_rows` rows that lack every modality; no file is read."""
        sequential = copy.copy(self)
        sequential.parallel = False  # starting threads would cost more than it saves
        return dict(sequential([EMPTY_ROW] * num_rows))

    def _start(self, modality: Modality, rows: Sequence[Row]) -> ModalityReading:
        """Start reading a modality of all rows: from its files, or what a frozen tower made of them."""
        stored = self.features.get(modality)
        return ModalityReading(
            self._readers[modality] if stored is None else TokenReader(stored),
            rows,
            pool=self._pool if self.parallel else None,
            in_flight=self.in_flight,
            dropped=modality in self.drop_modalities,
        )


def _replace_bad_rows(rows: list[Row], readings: Sequence[ModalityReading], on_bad_sample: OnBadSample | None) -> bool:
    """Replace rows that could not be read, in place, and read what takes their place. Return whether any was."""
    replaced = False
    for number in range(len(rows)):
        while errors := [error for reading in readings if (error := reading.error(number)) is not None]:
            if on_bad_sample is None:
                raise errors[0]
            rows[number] = on_bad_sample(number, errors[0])
            for reading in readings:
                reading.read(number, rows[number])
            replaced = True
    return replaced
