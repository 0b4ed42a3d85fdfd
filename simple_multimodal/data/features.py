"""Tokens of frozen towers kept in files: what they were made of, and how a batch gets them in place of clips."""

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

REMEDY = "`simple-multimodal features` over their manifest with the same --output adds what is missing"

# What of a processor does not change what evaluation sees; the mean and deviation that count are the model's.
_INCIDENTAL = {"train_frame_sampling", "random_crop", "random_crop_scale", "random_flip", "image_mean", "image_std"}

_BEFORE: dict[str, Any] = {"min_window_frames": 1, "crop": "start"}
"""Settings that features written before there were such do not name, and what held then."""


class ClipKey(NamedTuple):
    """What tokens were made of.

    Args:
        path (`str`): of the file, relative to its root, with `/`.
        start_seconds, end_seconds (`float`, *optional*): the segment.
        size (`int`): of the file, in bytes.
        mtime_ns (`int`): when the file was changed last, in nanoseconds.
    """

    path: str
    start_seconds: float | None
    end_seconds: float | None
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, row: Row, modality: Modality, path: str) -> Self:
        """That of a row whose file has the relative path `path`; raises an `OSError` if there is no such file."""
        found = os.stat(cast(str, row[modality]))  # type: ignore[literal-required]
        return cls(path, row["start_seconds"], row["end_seconds"], found.st_size, found.st_mtime_ns)


class ClipTokens(NamedTuple):
    """Tokens of one clip, without padding at the end; none at all if it has nothing of the modality.

    Args:
        tokens (`torch.Tensor` of shape `(num_tokens, hidden_size)`): what the tower gave.
        mask (`torch.BoolTensor` of shape `(num_tokens,)`): `True` = stands for real input.
        seconds (`torch.FloatTensor` of shape `(num_tokens,)`): time of each token in the segment.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    seconds: torch.Tensor


def make_fingerprint(
    modality: Modality, tower_hash: str, processor: MultimodalProcessor, *, video_backend: str
) -> dict[str, Any]:
    """All that decides what a tower makes of a file.

    Args:
        modality (`str`): `"audio"` or `"video"`.
        tower_hash (`str`): of the tower's weights and configuration, as [`TowerModel.tower_hash`] gives it.
        processor ([`MultimodalProcessor`]): whose evaluation settings count.
        video_backend (`str`): what decodes frames, see [`decoder_name`].

    Returns:
        `dict`: JSON values by name.
    """
    part = processor.part(modality)
    settings = {name: value for name, value in json.loads(part.to_json_string()).items() if name not in _INCIDENTAL}
    settings = {name: value for name, value in settings.items() if name not in _BEFORE or value != _BEFORE[name]}
    if "resize_mode" in settings:  # under the name that stored features have had from the start
        settings["geometry"] = settings.pop("resize_mode")
    return {"tower": tower_hash, **settings, **({"video_backend": video_backend} if modality == "video" else {})}


class EarlierFeatures:
    """
    Features that an earlier version wrote: shards with an entry per clip and tensor, and an index that names all
    clips. Has what [`FeatureReader`] needs of a [`ClipStore`].

    Args:
        folder (`Path`): The features of one tower.

    Raises:
        OSError, ValueError, KeyError, TypeError: There are none, or the index is damaged.
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
        """Return whether an earlier version wrote what is in a folder."""
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
        """Make a [`ClipStore`] of the folder, shard by shard; a call that was interrupted goes on."""
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
    """Reads the tokens of one tower, which [`TowerFeatures`] wrote. A file that is moved with its root is found again.

    Shards are mapped into memory when they are first needed, in each process for itself.

    Args:
        folder (`Path`): with `index.json` and shards.
        modality (`str`): `"audio"` or `"video"`.

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
                f"{folder}: holds no features that can be read ({error}). `simple-multimodal features` writes them."
            ) from error
        self._known = {key[:3] for key in self._clips}

    def check_fingerprint(self, expected: Mapping[str, Any]) -> None:
        """Raise a `ValueError` that says in what these features are not those of a model, if they are not."""
        if difference := describe_difference(self.fingerprint, expected):
            raise InputError(
                f"{self.folder}: these features are of something else: {difference}. Use what they were made with, or "
                "make others in another folder."
            )

    def check_rows(self, rows: Iterable[Row]) -> None:
        """Raise a `ValueError` if clips of these rows have no features, or others: their files have changed since."""
        missing, first = 0, ""
        for row in rows:
            try:
                if row[self.modality] is not None:  # type: ignore[literal-required]
                    self._find(row)
            except ValueError as error:
                missing += 1
                first = first or f"row {row['index']} (id {row['id']!r}): {error}"
            except OSError:  # what becomes of it is decided where it is read
                continue
        if missing:
            raise InputError(f"{missing} rows have no features, the first: {first}. {REMEDY}.")

    def read(self, row: Row) -> ClipTokens:
        """Tokens of a row that has a file of the modality.

        Raises:
            MediaError: If the file could not be read when the features were made.
            ValueError: If there are no features of it.
        """
        key = self._find(row)
        if key in self._clips.unreadable:
            raise MediaError(self._clips.unreadable[key].reason)
        tensors = self._clips.read(key)
        return ClipTokens(*(tensors[name] for name in ClipTokens._fields))

    def collate(self, clips: Sequence[ClipTokens | None]) -> dict[str, torch.Tensor]:
        """Stack the tokens of a batch, padded to its longest.

        Args:
            clips (`Sequence[ClipTokens | None]`): one entry per row; `None` where a row has no file.

        Returns:
            `dict[str, torch.Tensor]`: the modality's `TOKEN_KEYS`: tokens (`float32`) of shape `(batch_size,
            num_tokens, hidden_size)`, their mask and their times, `(batch_size, num_tokens)`; and whether a row has
            the modality, `(batch_size,)`. A row without is all zeros and `False`.
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
        """The key of a row's clip, whatever folder its root is."""
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
    """The features in a folder that are of modalities of a model, made sure to be of this very model.

    Args:
        folder (`str`): what [`TowerFeatures`] wrote.
        tower_hash (`Callable`): [`TowerModel.tower_hash`] of the model.
        processor ([`MultimodalProcessor`]), video_backend, decode_device (`str`): what would read clips.

    Raises:
        ValueError: If there are none, or they were made of another tower, or read in another way.
    """
    modalities = [m for m in CLIP_MODALITIES if m in processor.modalities and Path(folder, m).is_dir()]
    if not modalities:
        raise InputError(
            f"{os.fspath(folder)}: holds no features of what this model takes, {', '.join(processor.modalities)}; "
            "`simple-multimodal features` writes them."
        )
    readers = {m: FeatureReader(Path(folder, m), m) for m in modalities}
    for modality, reader in readers.items():
        reader.check_fingerprint(
            make_fingerprint(
                modality, tower_hash(modality), processor, video_backend=decoder_name(video_backend, decode_device)
            )
        )
    return readers
