"""Stored tokens of frozen towers: what they were computed from, and how batches use them in place of clips."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Self, cast

import torch
from safetensors import SafetensorError, safe_open

from simple_multimodal.data.rows import Row
from simple_multimodal.data.store import INDEX_FILE, ClipStore, TensorType, Unreadable, describe_difference
from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.video import decoder_name
from simple_multimodal.modalities import CLIP_MODALITIES, PRESENCE_KEYS, TOKEN_KEYS, Modality
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.processing.batch_memory import batch_tensor

REMEDY = "Run `simple-multimodal features` on their manifest with the same --output to add what is missing"

# Settings of a processor that do not affect evaluation; the mean and deviation are taken from the model.
_INCIDENTAL = {
    *("train_frame_sampling", "random_crop", "random_crop_scale", "random_flip", "image_mean", "image_std"),
    *("rotation_std", "shear_std", "scale_std", "rate_std", "frame_dropout"),
}

_BEFORE: dict[str, Any] = {"min_window_frames": 1, "crop": "start"}
"""Settings that older features lack, with the values that applied when they were written."""


class ClipKey(NamedTuple):
    """The clip that tokens were computed from.

    Args:
        path (`str`): Path of the file, relative to its root, with `/`.
        start_seconds, end_seconds (`float`, *optional*): The segment.
        size (`int`): Size of the file in bytes.
        mtime_ns (`int`): Time of the file's last modification in nanoseconds.
    """

    path: str
    start_seconds: float | None
    end_seconds: float | None
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, row: Row, modality: Modality, path: str) -> Self:
        """Make the key of a row whose file has the relative path `path`; raise an `OSError` if the file is missing."""
        found = os.stat(cast(str, row[modality]))  # type: ignore[literal-required]
        return cls(path, row["start_seconds"], row["end_seconds"], found.st_size, found.st_mtime_ns)


class ClipTokens(NamedTuple):
    """Tokens of one clip, without padding at the end; no tokens if the clip lacks the modality.

    Args:
        tokens (`torch.Tensor` of shape `(num_tokens, hidden_size)`): Output of the tower.
        mask (`torch.BoolTensor` of shape `(num_tokens,)`): `True` for tokens of real input.
        seconds (`torch.FloatTensor` of shape `(num_tokens,)`): Time of each token in the segment.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    seconds: torch.Tensor


def make_fingerprint(
    modality: Modality, tower_hash: str, processor: MultimodalProcessor, *, video_backend: str
) -> dict[str, Any]:
    """Return everything that determines the output of a tower for a file.

    Args:
        modality (`str`): `"audio"`, `"video"` or `"pose"`.
        tower_hash (`str`): Hash of the tower's weights and configuration, see [`TowerModel.tower_hash`].
        processor ([`MultimodalProcessor`]): Processor, of which the evaluation settings are used.
        video_backend (`str`): Name of the decoder, see [`decoder_name`].

    Returns:
        `dict`: JSON values by name.
    """
    part = processor.part(modality)
    settings = {name: value for name, value in json.loads(part.to_json_string()).items() if name not in _INCIDENTAL}
    settings = {name: value for name, value in settings.items() if name not in _BEFORE or value != _BEFORE[name]}
    if "resize_mode" in settings:  # the name that stored features use
        settings["geometry"] = settings.pop("resize_mode")
    return {"tower": tower_hash, **settings, **({"video_backend": video_backend} if modality == "video" else {})}


class EarlierFeatures:
    """
    Features written by an earlier version: shards with an entry per clip and tensor, and an index of all clips. Has
    the part of [`ClipStore`]'s interface that [`FeatureReader`] uses.

    Args:
        folder (`Path`): Folder with the features of one tower.

    Raises:
        OSError, ValueError, KeyError, TypeError: If there are no features, or the index is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        made_in = {"dtype": index["dtype"], "precision": index.get("precision", "fp32")}
        self.fingerprint: dict[str, Any] = {**index["fingerprint"], **made_in}
        self.tensors = {"tokens": TensorType(index["dtype"], [index["hidden_size"]])}
        self.places = {_key_of(clip): (clip["shard"], clip["row"]) for clip in index["clips"]}
        self.unreadable = {_key_of(clip): Unreadable(None, clip["reason"]) for clip in index["unreadable"]}

    @classmethod
    def are_in(cls, folder: Path) -> bool:
        """Return whether a folder holds features of an earlier version."""
        try:
            return "clips" in json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False

    def __iter__(self) -> Iterator[ClipKey]:
        return iter((*self.places, *self.unreadable))

    def __contains__(self, key: object) -> bool:
        return key in self.places or key in self.unreadable

    def read(self, key: ClipKey) -> dict[str, torch.Tensor]:
        """See [`ClipStore.read`]."""
        name, row = self.places[key]
        try:
            with safe_open(self.folder / name, "pt") as file:
                return {part: file.get_tensor(f"{row}.{part}") for part in ClipTokens._fields}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder / name}: cannot be read: {error}") from error

    def convert(self) -> None:
        """Convert the folder to a [`ClipStore`], shard by shard; an interrupted conversion is resumed."""
        store = ClipStore(self.folder, ClipKey, self.fingerprint)
        shards: dict[str, list[ClipKey]] = {}
        for key, (name, _) in self.places.items():
            shards.setdefault(name, []).append(key)
        for name, keys in shards.items():
            with safe_open(self.folder / name, "pt") as file:
                is_converted = "store" in file.metadata()
            if not is_converted:
                store.append(int(Path(name).stem), {key: self.read(key) for key in keys})
        store.append(1 + max(int(Path(name).stem) for name in shards), self.unreadable)
        store.commit()


def _key_of(clip: Mapping[str, Any]) -> ClipKey:
    return ClipKey(*(clip[name] for name in ClipKey._fields))


class FeatureReader:
    """Reader of the tokens of one tower, written by [`TowerFeatures`]. Files may be moved together with their root.

    Each process maps a shard into memory when it first needs it.

    Args:
        folder (`Path`): Folder with `index.json` and shards.
        modality (`str`): `"audio"`, `"video"` or `"pose"`.

    Raises:
        ValueError: If the folder holds no features, or its index is damaged.
    """

    def __init__(self, folder: Path, modality: Modality):
        self.folder = folder
        self.modality: Modality = modality
        try:
            self._clips: ClipStore[ClipKey] | EarlierFeatures = (
                EarlierFeatures(folder) if EarlierFeatures.are_in(folder) else ClipStore.open(folder, ClipKey)
            )
            self.fingerprint: dict[str, Any] = dict(self._clips.fingerprint)
            self.dtype: str = self.fingerprint.pop("dtype")
            del self.fingerprint["precision"]
            self.hidden_size: int = self._clips.tensors["tokens"].shape[0]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder}: holds no readable features ({error}). Write them with `simple-multimodal features`."
            ) from error
        self._known = {key[:3] for key in self._clips}

    def check_fingerprint(self, expected: Mapping[str, Any]) -> None:
        """Raise a `ValueError` that lists the differences if these features belong to another model."""
        if difference := describe_difference(self.fingerprint, expected):
            raise InputError(
                f"{self.folder}: these features were made with other settings: {difference}. Use the model and "
                "settings that they were made with, or write new ones into another folder."
            )

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Raise a `ValueError` if clips of these rows have no features, or their files have changed since."""
        missing, first = 0, ""
        for row in rows:
            try:
                if row[self.modality] is not None:  # type: ignore[literal-required]
                    self._find(row)
            except ValueError as error:
                missing += 1
                first = first or f"row {row['index']} (id {row['id']!r}): {error}"
            except OSError:  # handled when the row is read
                continue
        if missing:
            raise InputError(f"{missing} rows have no features, the first: {first}. {REMEDY}.")

    def read(self, row: Row) -> ClipTokens:
        """Return the tokens of a row that has a file of the modality.

        Raises:
            MediaError: If the file could not be read when the features were made.
            ValueError: If there are no features of the file.
        """
        key = self._find(row)
        if key in self._clips.unreadable:
            raise MediaError(self._clips.unreadable[key].reason)
        tensors = self._clips.read(key)
        return ClipTokens(*(tensors[name] for name in ClipTokens._fields))

    def collate(self, clips: Sequence[ClipTokens | None]) -> dict[str, torch.Tensor]:
        """Stack the tokens of a batch, padded to its longest.

        Args:
            clips (`Sequence[ClipTokens | None]`): One entry per row; `None` for a row without a file.

        Returns:
            `dict[str, torch.Tensor]`: The modality's `TOKEN_KEYS`: tokens (`float32`) of shape `(batch_size,
            num_tokens, hidden_size)`, their mask and their times, `(batch_size, num_tokens)`; and whether a row has
            the modality, `(batch_size,)`. The entries of a row without the modality are zeros and `False`.
        """
        lengths = [0 if clip is None else len(clip.mask) for clip in clips]
        shape = len(clips), max(1, *lengths)
        tokens = batch_tensor(*shape, self.hidden_size, dtype=torch.float32)
        mask, seconds = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for row, (clip, length) in enumerate(zip(clips, lengths, strict=True)):
            tokens[row, length:] = 0
            if clip is not None:
                tokens[row, :length], mask[row, :length], seconds[row, :length] = clip
        batch = dict(zip(TOKEN_KEYS[self.modality], (tokens, mask, seconds), strict=True))
        return {**batch, PRESENCE_KEYS[self.modality]: torch.tensor(lengths) > 0}

    def _find(self, row: Row) -> ClipKey:
        """Return the key of a row's clip, wherever its root is."""
        path = cast(str, row[self.modality])  # type: ignore[literal-required]
        parts = PurePath(path).parts
        names = ("/".join(parts[first:]) for first in range(len(parts)))
        bare = ClipKey.of(row, self.modality, "")
        keys = [key for name in names if (key := bare._replace(path=name))[:3] in self._known]
        for key in keys:
            if key in self._clips:
                return key
        problem = "was changed after its features were made" if keys else "is not among them"
        raise InputError(f"{self.folder}: {path!r} {problem}")


def open_features(
    folder: str | os.PathLike[str],
    tower_hash: Callable[[Modality], str],
    processor: MultimodalProcessor,
    *,
    video_backend: str,
    decode_device: str = "cpu",
) -> dict[Modality, FeatureReader]:
    """Open the features in a folder for a model's modalities, and check that they were made with this model.

    Args:
        folder (`str`): Folder written by [`TowerFeatures`].
        tower_hash (`Callable`): [`TowerModel.tower_hash`] of the model.
        processor ([`MultimodalProcessor`]), video_backend, decode_device (`str`): How clips would be read.

    Raises:
        ValueError: If there are no features, or they were made with another tower or with other settings.
    """
    modalities = [m for m in CLIP_MODALITIES if m in processor.modalities and Path(folder, m).is_dir()]
    if not modalities:
        raise InputError(
            f"{os.fspath(folder)}: holds no features of this model's modalities ({', '.join(processor.modalities)}). "
            "Write them with `simple-multimodal features`."
        )
    readers = {m: FeatureReader(Path(folder, m), m) for m in modalities}
    for modality, reader in readers.items():
        reader.check_fingerprint(
            make_fingerprint(
                modality, tower_hash(modality), processor, video_backend=decoder_name(video_backend, decode_device)
            )
        )
    return readers
