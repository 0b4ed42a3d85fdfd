"""Load a trained model with its processor, read clips for it, and encode each clip once."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedModel

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.files import media_rows
from simple_multimodal.data.manifest import MultimodalDataset, Row
from simple_multimodal.models.pairs import Encoded, encode_clips, encode_texts
from simple_multimodal.processing import MultimodalProcessor

Clips = MultimodalDataset | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A data set; or a media file, a folder of them, or a list of files."""

TEXTS_PER_BATCH = 64


class ClipKey(NamedTuple):
    """What makes two rows show the same clip: their files and segment."""

    video: str | None
    audio: str | None
    start_seconds: float | None
    end_seconds: float | None

    @classmethod
    def of(cls, row: Row) -> Self:
        return cls(row["video"], row["audio"], row["start_seconds"], row["end_seconds"])


class Pipeline:
    """
    A model in use. Several processes of a launcher (`accelerate launch`, `torchrun`) share the work; each returns all
    results.

    Args:
        model (`PreTrainedModel`): put on the device of this process and into evaluation mode.
        processor ([`MultimodalProcessor`]): its processor.
        batch_size (`int`, *optional*, defaults to 16): clips that run through the towers at once.
        num_workers (`int`, *optional*, defaults to 0): processes that read clips; none: threads of this one do.
        drop_modalities (`Sequence[str]`, *optional*): take every clip as lacking these.
        shows_progress (`bool`, *optional*, defaults to `False`): show bars.
        video_backend, index_dir (`str`, *optional*): see [`MultimodalCollator`].
    """

    model_classes: dict[str, type[PreTrainedModel]]
    """What each kind of checkpoint is loaded as, by the name of the class that was saved."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: MultimodalProcessor,
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        drop_modalities: Sequence[str] = (),
        shows_progress: bool = False,
        video_backend: str = "pyav",
        index_dir: str | None = None,
    ):
        self.state = PartialState()
        self.model = model.to(self.state.device).eval()
        self.processor = processor
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shows_progress = shows_progress and self.state.is_main_process
        self.collator = MultimodalCollator(
            processor,
            drop_modalities=drop_modalities,  # type: ignore[arg-type]
            video_backend=video_backend,
            index_dir=index_dir,
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, cache_dir: str | None = None, **settings
    ) -> Self:
        """
        Args:
            name_or_path (`str`): folder or hub name of a trained model.
            cache_dir (`str`, *optional*): where files from the hub are kept.
            settings: arguments of the class.

        Raises:
            ValueError: If there is no such model, or it was trained for another task.
        """
        try:
            config = AutoConfig.from_pretrained(name_or_path, cache_dir=cache_dir, trust_remote_code=False)
        except (OSError, RecursionError) as error:
            raise ValueError(f"{name_or_path}: is no saved model: {error}") from error
        saved_class = (config.architectures or ["an unknown class"])[0]
        if saved_class not in cls.model_classes:
            raise ValueError(
                f"{name_or_path} holds {saved_class}, a model of another task; {cls.__name__} takes "
                f"{', '.join(cls.model_classes)}."
            )
        model_class = cls.model_classes[saved_class]
        model, loaded = model_class.from_pretrained(name_or_path, cache_dir=cache_dir, output_loading_info=True)
        if loaded["missing_keys"]:
            raise ValueError(f"{name_or_path} lacks the weights {sorted(loaded['missing_keys'])[:3]}.")
        processor = MultimodalProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
        return cls(model, processor, **settings)

    def rows(self, clips: Clips) -> list[Row]:
        """One row for each different clip, in the order of their first occurrence."""
        rows = clips if isinstance(clips, MultimodalDataset) else media_rows(clips)
        unique: dict[ClipKey, Row] = {}
        for row in rows:
            unique.setdefault(ClipKey.of(row), row)
        return list(unique.values())

    def encode_rows(self, rows: Sequence[Row]) -> list[Encoded]:
        """
        Run each row's clip through the towers once.

        Args:
            rows (`Sequence[Row]`): of different clips.

        Returns:
            `list[Encoded]`: one for each row, the same on all processes.

        Raises:
            MediaError: A file cannot be read; the message names it and its row.
        """
        share = range(self.state.process_index, len(rows), self.state.num_processes)
        loader: DataLoader = DataLoader(
            [rows[number] for number in share],  # type: ignore[arg-type]
            batch_size=self.batch_size,
            collate_fn=self.collator,
            num_workers=self.num_workers,
        )
        own = []
        for batch in self._progress(loader, "clips", len(loader)):
            own += encode_clips(self.model, send_to_device(batch, self.model.device))
        encoded: list[Encoded] = [None] * len(rows)  # type: ignore[list-item]
        for number, item in gather_object(list(zip(share, own, strict=True))):
            encoded[number] = item
        return encoded

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Run each text through its tower once; every process does so, for texts are cheap."""
        encoded: list[Encoded] = []
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # alike lengths: little padding
        for begin in range(0, len(texts), TEXTS_PER_BATCH):
            batch = self.processor.tokenize([texts[number] for number in order[begin : begin + TEXTS_PER_BATCH]])
            encoded += encode_texts(self.model, send_to_device(batch, self.model.device))
        result: list[Encoded] = [None] * len(texts)  # type: ignore[list-item]
        for number, item in zip(order, encoded, strict=True):
            result[number] = item
        return result

    def _progress(self, items, unit: str, total: int) -> Iterator:
        return iter(tqdm(items, unit=unit, total=total, disable=not self.shows_progress))


def cosine(texts: Sequence[Encoded], embeds: torch.Tensor) -> torch.Tensor:
    """Cosines `(num_texts, num_clips)` of texts with unit-length clip embeddings."""
    return torch.stack([text.embed for text in texts if text.embed is not None]) @ embeds.T
