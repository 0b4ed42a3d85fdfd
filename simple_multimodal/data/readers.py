"""Readers: what a collator reads of a row, one class per modality, and the entries that it makes of it.

A new modality, or another source of one, is a class here and a line in `READERS`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch

from simple_multimodal.data.features import ClipTokens, FeatureReader
from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row, row_captions
from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.backend import VideoBackend
from simple_multimodal.media.errors import NoAudioError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import with_index
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS, Modality
from simple_multimodal.processing import AudioFeatures, MultimodalProcessor
from simple_multimodal.processing.audio_windows import windows_with_audio

Schedule = Literal["here", "one by one", "side by side"]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ReadSettings:
    """How rows are read; see [`MultimodalCollator`].

    Args:
        processor ([`MultimodalProcessor`]): whose parts make tensors.
        backend ([`VideoBackend`]): decodes frames.
        generator_of (`Callable`, *optional*): the generator of a row for a purpose, in training; `None` otherwise, so
            that nothing is drawn.
        index_dir (`str`, *optional*): folder of stored frame indices.
        max_seq_length (`int`, *optional*): longest text in tokens.
        pad_to_max_length (`bool`): pad texts to that length.
    """

    processor: MultimodalProcessor
    backend: VideoBackend
    generator_of: GeneratorOf | None = None
    index_dir: str | None = None
    max_seq_length: int | None = None
    pad_to_max_length: bool = False


class Reader(Protocol):
    """Read one modality of rows.

    For each batch the collator calls [`new_batch`] once, [`read`] for each row that [`has`] the modality, as
    `schedule` says, and [`collate`] once all of that is done; once more if a row was replaced.
    """

    schedule: Schedule = "one by one"
    """`"here"`: in the thread that collates. `"one by one"`: in one thread of the pool. `"side by side"`: each row in
    a thread of the pool, the largest first."""

    column: str
    """Entry of a row that it reads."""

    def has(self, row: Row) -> bool:
        """Return whether a row has the modality."""
        return row.get(self.column) not in (None, "")  # an empty cell of a table is an empty text

    def size(self, row: Row) -> int:
        """Return a measure of the work that a row makes, by which those that are read side by side are ordered."""
        return 0

    def new_batch(self, num_rows: int) -> Tensors:
        """Return memory, one entry per row, that [`read`] fills in place, where sizes are known before; else none.
        Rows that lack the modality are zero there.
        """
        return {}

    def read(self, row: Row, out: Tensors) -> Any:
        """Read a row that has the modality. Called from several threads at once, if they are `"side by side"`.

        Args:
            row (`Row`): the row.
            out (`dict[str, torch.Tensor]`): its place in [`new_batch`].

        Returns:
            Its part for [`collate`]; `None` if the row turns out to have nothing of the modality.

        Raises:
            ValueError, OSError: If it cannot be read: a bad sample.
        """

    def collate(self, parts: Sequence[Any], batch: Tensors) -> Mapping[str, Any]:
        """Make entries of a batch.

        Args:
            parts (`Sequence`): what [`read`] gave for each row; `None` where a row has nothing of the modality.
            batch (`dict[str, torch.Tensor]`): the memory of [`new_batch`].

        Returns:
            `dict[str, torch.Tensor]`: By name; one entry per row.
        """


class TextReader(Reader):
    """Read captions: the first one, or in training one that is drawn."""

    schedule: Schedule = "here"
    column = "text"

    def __init__(self, settings: ReadSettings):
        self.settings = settings

    def has(self, row: Row) -> bool:
        return row["text"] is not None or bool(row["captions"])

    def read(self, row: Row, out: Tensors) -> str:
        captions = row_captions(row)
        if self.settings.generator_of is not None and len(captions) > 1:
            return captions[int(self.settings.generator_of(row, "caption").integers(len(captions)))]
        return captions[0]

    def collate(self, parts: Sequence[str | None], batch: Tensors) -> Tensors:
        """See [`MultimodalProcessor.tokenize`]."""
        padding = "max_length" if self.settings.pad_to_max_length else None
        return self.settings.processor.tokenize(parts, max_length=self.settings.max_seq_length, padding=padding)


class AudioReader(Reader):
    """Read sound.

    Rows come one after the other beside the clips: the steps of decoding sound are so short that two threads at it
    would only take the interpreter from each other.
    """

    column = "audio"

    def __init__(self, settings: ReadSettings):
        self.settings = settings
        self.extractor = settings.processor.feature_extractor

    def read(self, row: Row, out: Tensors) -> AudioFeatures | None:
        try:
            waveform = read_audio(
                cast(str, row["audio"]),
                self.extractor.sampling_rate,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                index_dir=self.settings.index_dir,
            )
        except NoAudioError:
            if row["audio_from_video"]:
                return None
            raise
        generator_of = self.settings.generator_of
        return self.extractor.extract(waveform, None if generator_of is None else generator_of(row, "audio"))

    def collate(self, parts: Sequence[AudioFeatures | None], batch: Tensors) -> dict[str, Any]:
        """See [`AudioFeatureExtractor.collate`] and [`windows_with_audio`]."""
        entries = self.extractor.collate(parts)
        windows = windows_with_audio(entries["audio_attention_mask"], self.extractor.num_frames)
        return {**entries, **dict(zip(AUDIO_WINDOW_KEYS, windows, strict=True))}


class VideoReader(Reader):
    """Read frames into their place in the batch."""

    schedule: Schedule = "side by side"
    column = "video"

    def __init__(self, settings: ReadSettings):
        self.settings = settings
        self.processor = settings.processor.video_processor

    def size(self, row: Row) -> int:
        """Return the bytes of the file."""
        return os.stat(cast(str, row["video"])).st_size

    def new_batch(self, num_rows: int) -> Tensors:
        """See [`VideoClipProcessor.new_batch`]."""
        return self.processor.new_batch(num_rows, device=self.settings.backend.device)

    def read(self, row: Row, out: Tensors) -> None:
        path, processor, generator_of = cast(str, row["video"]), self.processor, self.settings.generator_of

        def read(index: FrameIndex) -> None:
            positions = processor.sample(
                index,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                generator=None if generator_of is None else generator_of(row, "frames"),
            )
            generator = None if generator_of is None else generator_of(row, "crop")
            fit = processor.fit(index.height, index.width, generator=generator)
            size = None if processor.scales_in_memory else (fit.height, fit.width)
            frames = self.settings.backend.frames(path, positions, index, size)
            processor.transform(frames, fit, out=out["pixel_values_videos"])
            # The first frame may have come on before the segment's start.
            seconds = np.maximum(index.seconds[positions] - (row["start_seconds"] or 0.0), 0.0)
            out["video_seconds"].copy_(torch.from_numpy(seconds))
            out["video_mask"].fill_(True)

        with_index(path, read, index_dir=self.settings.index_dir)

    def collate(self, parts: Sequence[None], batch: Tensors) -> Tensors:
        """See [`VideoClipProcessor.collate`]."""
        return batch


class TokenReader(Reader):
    """Read what a frozen tower gave, in place of its input.

    Args:
        features ([`FeatureReader`]): of the tower.
    """

    def __init__(self, features: FeatureReader):
        self.features = features
        self.column = features.modality

    def read(self, row: Row, out: Tensors) -> ClipTokens:
        return self.features.read(row)

    def collate(self, parts: Sequence[ClipTokens | None], batch: Tensors) -> Tensors:
        """See [`FeatureReader.collate`]."""
        return self.features.collate(parts)


READERS: dict[Modality, Callable[[ReadSettings], Reader]] = {
    "text": TextReader,
    "audio": AudioReader,
    "video": VideoReader,
}
"""What reads each modality, made with [`ReadSettings`]."""
