"""Load a trained model with its processor, read clips for it, and encode each clip once."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedModel

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import open_features
from simple_multimodal.data.files import media_rows
from simple_multimodal.data.manifest import MultimodalDataset, Row
from simple_multimodal.inference.partial import Partial, process_state
from simple_multimodal.modalities import CLIP_MODALITIES
from simple_multimodal.models.base import hash_weights
from simple_multimodal.models.pairs import PAIRS_PER_BATCH, Encoded, encode_clips, encode_texts, score_pairs
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


def from_main(make: Callable[[], Any]) -> Any:
    """What the main process makes, on all processes: they cannot come to decide otherwise."""
    return broadcast_object_list([make() if process_state().is_main_process else None])[0]


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
        features (`str`, *optional*): folder that [`TowerFeatures`] wrote. Its towers do not run, and their files are
            not read; every clip must have features.

    Raises:
        ValueError: If the features are not this model's.
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
        features: str | os.PathLike[str] | None = None,
    ):
        self.state = process_state()
        self.model = model.to(self.state.device).eval()
        self.processor = processor
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shows_progress = shows_progress and self.state.is_main_process
        readers = (
            {}
            if features is None
            else open_features(features, self.model.tower_hash, processor, video_backend=video_backend)
        )
        self.collator = MultimodalCollator(
            processor,
            drop_modalities=drop_modalities,  # type: ignore[arg-type]
            video_backend=video_backend,
            index_dir=index_dir,
            features={m: reader for m, reader in readers.items() if m not in drop_modalities},
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
            ValueError: If there is no such model, it was trained for another task, or its weights are damaged.
            OSError: If it has no weights as safetensors.
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
        """One row for each different clip, in the order of their first occurrence; none for a row without a clip."""
        rows = clips if isinstance(clips, MultimodalDataset) else media_rows(clips)
        unique: dict[ClipKey, Row] = {}
        for row in rows:
            if self.has_clip(row):
                unique.setdefault(ClipKey.of(row), row)
        return list(unique.values())

    def has_clip(self, row: Row) -> bool:
        """Whether a row has a file that this model looks at or listens to."""
        taken = [m for m in CLIP_MODALITIES if m in self.processor.modalities]
        return any(row[m] is not None for m in taken)  # type: ignore[literal-required]

    def key(self, rows: Sequence[Row]) -> str:
        """Hash of the weights, the processor, and the clips (by path, segment, size and time of change); the same on
        all processes.
        """
        return from_main(lambda: self._key(rows))

    def _key(self, rows: Sequence[Row]) -> str:
        dtypes = {modality: reader.dtype for modality, reader in self.collator.features.items()}
        settings = [self.collator.drop_modalities, self.collator.video_backend, dtypes]
        digest = hashlib.sha256(json.dumps([self.processor.to_json_string(), settings]).encode())
        digest.update(self.model.config.to_json_string().encode())
        digest.update(hash_weights(self.model).encode())
        for row in rows:
            files = [path for path in (row["video"], row["audio"]) if path is not None]
            stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
            segment = row["start_seconds"], row["end_seconds"]
            digest.update(json.dumps([row["id"], row["group"], stats, segment]).encode())
        return digest.hexdigest()

    def encode_rows(
        self, rows: Sequence[Row], *, with_tokens: bool = True, partial: Path | None = None, key: str = ""
    ) -> list[Encoded]:
        """
        Run each row's clip through the towers once. Which clips make a batch does not depend on the number of
        processes, so that the results do not either.

        Args:
            rows (`Sequence[Row]`): of different clips.
            with_tokens (`bool`, *optional*, defaults to `True`): keep what the fusion takes, and not embeddings alone.
            partial (`Path`, *optional*): folder to keep finished batches in, and to go on from.
            key (`str`, *optional*): with `partial`, [`key`] of the rows.

        Returns:
            `list[Encoded]`: one for each row, the same on all processes.

        Raises:
            MediaError: A file cannot be read; the message names it and its row.
            ValueError: A clip has no features, where the model is used with some.
        """
        for reader in self.collator.features.values():
            reader.check_rows(rows)
        batches = [range(n, min(n + self.batch_size, len(rows))) for n in range(0, len(rows), self.batch_size)]
        share = range(self.state.process_index, len(batches), self.state.num_processes)
        parts = Partial(partial, "clips", f"{key} {self.batch_size} {with_tokens}")
        own = {number: _unpack(tensors) for number, tensors in parts.finished.items()}
        missing = [number for number in share if number not in own]
        loader: DataLoader = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=[list(batches[number]) for number in missing],
            collate_fn=self.collator,
            num_workers=self.num_workers,
        )
        done = sum(len(encoded) for encoded in own.values())
        total = sum(len(batches[number]) for number in share)
        with tqdm(unit="clips", total=total, initial=done, disable=not self.shows_progress) as bar:
            for number, batch in zip(missing, loader, strict=True):
                encoded = encode_clips(self.model, send_to_device(batch, self.model.device))
                own[number] = encoded if with_tokens else [Encoded(clip.embed, {}) for clip in encoded]
                parts.add(number, _pack(own[number]))
                bar.update(len(encoded))
        parts.flush()
        gathered = dict(part for parts in gather_object([own]) for part in parts.items())
        return [clip for number in range(len(batches)) for clip in gathered[number]]

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Run each different text through its tower once; every process does so, for texts are cheap."""
        order = sorted(dict.fromkeys(texts), key=len)  # alike lengths: little padding
        encoded: dict[str, Encoded] = {}
        for begin in range(0, len(order), TEXTS_PER_BATCH):
            some = order[begin : begin + TEXTS_PER_BATCH]
            batch = send_to_device(self.processor.tokenize(some), self.model.device)
            encoded |= zip(some, encode_texts(self.model, batch), strict=True)
        return [encoded[text] for text in texts]

    def score(
        self,
        score: Callable[..., torch.Tensor],
        texts: Sequence[str],
        encoded: Sequence[Encoded],
        clips: Sequence[Encoded],
        pairs: np.ndarray,
        *,
        partial: Path | None = None,
        key: str = "",
    ) -> torch.Tensor:
        """
        Run pairs of text and clip through the fusion layers, shared among the processes.

        Args:
            score (`Callable`): a method of the model, `matching_logits` or `answer_logits`.
            texts (`Sequence[str]`), encoded (`Sequence[Encoded]`): the texts, and the same after their tower.
            clips (`Sequence[Encoded]`): after their towers.
            pairs (`np.ndarray` of shape `(num_pairs, 2)`): positions of text and clip.
            partial (`Path`, *optional*): folder to keep finished blocks of pairs in, and to go on from.
            key (`str`, *optional*): with `partial`, [`key`] of the clips' rows.

        Returns:
            `torch.FloatTensor` of shape `(num_pairs, num_outputs)`, the same on all processes.
        """
        if partial is not None:
            digest = hashlib.sha256(json.dumps([key, list(texts), PAIRS_PER_BATCH]).encode())
            digest.update(pairs.tobytes())
            key = digest.hexdigest()
        parts = Partial(partial, "pairs", key)
        scores = score_pairs(
            self.model,
            score,
            encoded,
            clips,
            pairs,
            process_index=self.state.process_index,
            num_processes=self.state.num_processes,
            pairs_per_batch=PAIRS_PER_BATCH,
            finished={number: tensors["outputs"] for number, tensors in parts.finished.items()},
            on_block=lambda number, outputs: parts.add(number, {"outputs": outputs}),
            shows_progress=self.shows_progress,
        )
        parts.flush()
        return scores


def _pack(clips: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Encoded clips as tensors by name."""
    embeds = {f"{n}.embed": clip.embed.clone() for n, clip in enumerate(clips) if clip.embed is not None}
    return embeds | {f"{n}.{m}": tokens for n, clip in enumerate(clips) for m, tokens in clip.tokens.items()}


def _unpack(tensors: dict[str, torch.Tensor]) -> list[Encoded]:
    """What [`_pack`] was given."""
    rows: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, entry = name.partition(".")
        rows.setdefault(int(number), {})[entry] = tensor
    return [Encoded(rows[n].pop("embed", None), rows[n]) for n in range(len(rows))]  # type: ignore[arg-type]


def cosine(texts: Sequence[Encoded], embeds: torch.Tensor) -> torch.Tensor:
    """Cosines `(num_texts, num_clips)` of texts with unit-length clip embeddings."""
    return torch.stack([text.embed for text in texts if text.embed is not None]) @ embeds.T
