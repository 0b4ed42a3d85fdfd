"""Readers: one class per modality that reads it from rows and collates it into entries of a batch.

To add a modality, or another source for one, add a class here and an entry in `READERS`.
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
from simple_multimodal.media.frame_features import FrameFeatures, is_feature_file, read_frame_features
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import with_index
from simple_multimodal.media.pose import Pose, read_pose
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS, Modality
from simple_multimodal.processing import AudioFeatures, MultimodalProcessor, PoseProcessor, PoseSequence
from simple_multimodal.processing.audio_windows import windows_with_audio

Schedule = Literal["here", "one by one", "side by side"]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ReadSettings:
    """How rows are read; see [`MultimodalCollator`].

    Args:
        processor ([`MultimodalProcessor`]): Processor whose parts make tensors.
        backend ([`VideoBackend`]): Decoder of frames.
        generator_of (`Callable`, *optional*): In training, returns the generator of a row for a purpose; otherwise
            `None`, so that nothing is random.
        index_dir (`str`, *optional*): Folder of stored frame indices.
        max_seq_length (`int`, *optional*): Maximum length of a text in tokens.
        pad_to_max_length (`bool`): Pad texts to that length.
    """

    processor: MultimodalProcessor
    backend: VideoBackend
    generator_of: GeneratorOf | None = None
    index_dir: str | None = None
    max_seq_length: int | None = None
    pad_to_max_length: bool = False


class Reader(Protocol):
    """Reader of one modality.

    For each batch, the collator calls [`new_batch`] once, [`read`] for each row that [`has`] the modality, as
    `schedule` specifies, and [`collate`] when all rows are read, and again if a row was replaced.
    """

    schedule: Schedule = "one by one"
    """`"here"`: in the thread that collates. `"one by one"`: in one thread of the pool. `"side by side"`: each row in
    a thread of the pool, the largest first."""

    column: str
    """Entry of a row to read."""

    def has(self, row: Row) -> bool:
        """Return whether a row has the modality."""
        return row.get(self.column) not in (None, "")  # an empty cell of a table is an empty text

    def size(self, row: Row) -> int:
        """Return a measure of the work for a row, by which rows that are read side by side are ordered."""
        return 0

    def new_batch(self, num_rows: int) -> Tensors:
        """Return tensors with one entry per row for [`read`] to fill in place, if sizes are known in advance;
        otherwise none. Entries of rows that lack the modality are set to zero.
        """
        return {}

    def read(self, row: Row, out: Tensors) -> Any:
        """Read a row that has the modality. Called from several threads at once if the schedule is `"side by side"`.

        Args:
            row (`Row`): The row.
            out (`dict[str, torch.Tensor]`): Its entries of [`new_batch`].

        Returns:
            Its part for [`collate`]; `None` if the row turns out to lack the modality.

        Raises:
            ValueError, OSError: If the row cannot be read and is a bad sample.
        """

    def collate(self, parts: Sequence[Any], batch: Tensors) -> Mapping[str, Any]:
        """Make the entries of a batch.

        Args:
            parts (`Sequence`): Result of [`read`] for each row; `None` for a row that lacks the modality.
            batch (`dict[str, torch.Tensor]`): Tensors of [`new_batch`].

        Returns:
            `dict[str, torch.Tensor]`: Tensors by name, with one entry per row.
        """


class TextReader(Reader):
    """Reader of captions: the first one of a row, or in training a random one."""

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
    """Reader of audio.

    Rows are read one after the other, in parallel to videos: the steps of decoding audio are so short that two threads
    would only compete for the interpreter.
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
    """Reader of video frames, which are written into the batch in place."""

    schedule: Schedule = "side by side"
    column = "video"

    def __init__(self, settings: ReadSettings):
        self.settings = settings
        self.processor = settings.processor.video_processor

    def size(self, row: Row) -> int:
        """Return the size of the file in bytes."""
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
            # The first frame may begin before the segment does.
            seconds = np.maximum(index.seconds[positions] - (row["start_seconds"] or 0.0), 0.0)
            out["video_seconds"].copy_(torch.from_numpy(seconds))
            out["video_mask"].fill_(True)

        with_index(path, read, index_dir=self.settings.index_dir)

    def collate(self, parts: Sequence[None], batch: Tensors) -> Tensors:
        """See [`VideoClipProcessor.collate`]."""
        return batch


class PoseReader(Reader):
    """Reader of pose files and of features of frames (`.npy`); one after the other, for the reason given for audio."""

    column = "pose"

    def __init__(self, settings: ReadSettings):
        self.settings = settings
        self.processor: PoseProcessor = settings.processor.part("pose")

    def read(self, row: Row, out: Tensors) -> PoseSequence:
        path = cast(str, row["pose"])
        segment = {"start_seconds": row["start_seconds"], "end_seconds": row["end_seconds"]}
        pose: Pose | FrameFeatures
        if is_feature_file(path):
            pose = read_frame_features(path, self.processor.features_rate, **segment)
        else:
            pose = read_pose(path, **segment)
        generator_of = self.settings.generator_of
        return self.processor.extract(pose, None if generator_of is None else generator_of(row, "pose"))

    def collate(self, parts: Sequence[PoseSequence | None], batch: Tensors) -> Tensors:
        """See [`PoseProcessor.collate`]."""
        return self.processor.collate(parts)


class TokenReader(Reader):
    """Reader of a frozen tower's stored tokens, in place of its input.

    Args:
        features ([`FeatureReader`]): Features of the tower.
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
    "pose": PoseReader,
}
"""Reader of each modality, constructed with [`ReadSettings`]."""
