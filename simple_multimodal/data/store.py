"""Tensors that a model computed from clips, stored in a folder of append-only shards with an index written last."""

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simple_multimodal.errors import InputError
from simple_multimodal.output_folder import give_umask, write_atomically

INDEX_FILE = "index.json"

Key = TypeVar("Key", bound=tuple)
Tensors = Mapping[str, torch.Tensor]

_IN_WORDS = {
    "tower": "other weights or another configuration of the tower",
    "weights": "other weights of the model",
    "config": "another configuration of the model",
    "processor": "another configuration of the processor",
}
"""Descriptions of fingerprint entries whose values are hashes or too long to print."""


class Unreadable(NamedTuple):
    """Why a clip has no tensors.

    Args:
        file (`str`, *optional*): The file at fault, if that is known.
        reason (`str`): What is wrong with it.
    """

    file: str | None
    reason: str


class TensorType(NamedTuple):
    """Type of all tensors with one name.

    Args:
        dtype (`str`): Name of the dtype, such as `"float32"`.
        shape (`list[int]`): All dimensions except the first.
    """

    dtype: str
    shape: list[int]


class ClipStore(Generic[Key]):
    """
    Tensors by clip and name, with a fingerprint of what they were computed from.

    A shard is two files. `00000.parquet` has one row per clip: the fields of its key, and `file` and `reason` if the
    clip could not be read. `00000.safetensors` has, under each name, the tensors of these clips concatenated along the
    first axis, and where each begins and ends as `{name}.offsets`, int64 of shape `(num_clips + 1,)`. Tensors of one
    name have one dtype; they may have any length, including zero. `index.json` holds the fingerprint and the shards
    that belong to the store.

    Any number of processes may read. Several may write at the same time if each uses its own shard numbers and one of
    them calls [`commit`] at the end. The Parquet file of a shard is written first and each file is renamed when it is
    complete, so a shard with a tensor file is complete. If a writer is killed, readers see the store of the last
    commit, and the next writer adopts the shards that are not in the index yet: they contain the fingerprint, and are
    often hours of work. It removes files that are incomplete or damaged, so that their clips are missing.

    Use [`open`] to read a store and [`resume`] to write one.

    Attributes:
        fingerprint (`dict`): What the tensors were computed from, as JSON values by name.
        tensors (`dict[str, TensorType]`): Type of the tensors with each name.
        unreadable (`dict[Key, Unreadable]`): Clips without tensors because they could not be read.
    """

    def __init__(self, folder: str | os.PathLike[str], key_type: type[Key], fingerprint: Mapping[str, Any]):
        self.folder = Path(folder)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.tensors: dict[str, TensorType] = {}
        self.unreadable: dict[Key, Unreadable] = {}
        self._key_type = key_type
        self._shards: list[tuple[str, range]] = []  # names, and the places of their clips, ascending
        self._places: dict[Key, int] = {}  # ascending; without replaced and dropped clips
        self._mapped: dict[str, dict[str, tuple[torch.Tensor, list[int]]]] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike[str], key_type: type[Key]) -> Self:
        """
        Open the store as of the last [`commit`], for reading.

        Args:
            folder (`str`): Folder of the store.
            key_type (`type`): Named tuple of strings and numbers (or `None`) that identifies a clip.

        Raises:
            ValueError: If the folder does not hold such a store, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / INDEX_FILE).is_file():
            raise InputError(f"{folder} is not a folder that `encode` or `features` wrote: it has no {INDEX_FILE}.")
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            store = cls(folder, key_type, index["fingerprint"])
            if difference := store._differ(index):
                raise InputError(difference)
            for shard in index["shards"]:
                store._add(shard["name"], index["tensors"], shard["dropped"])
                if len(store._shards[-1][1]) != shard["clips"]:
                    raise InputError(f"{shard['name']}.parquet does not have {shard['clips']} rows")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: does not hold a readable store of clips: {error}") from error
        return store

    @classmethod
    def resume(
        cls,
        folder: str | os.PathLike[str],
        key_type: type[Key],
        fingerprint: Mapping[str, Any],
        *,
        replaces: bool = False,
    ) -> Self:
        """
        Open a store for writing, with all complete shards in its folder. Nothing is written yet, and the folder need
        not exist. If several processes write, one of them calls this before any of them writes.

        Args:
            folder (`str`), key_type (`type`): As for [`open`].
            fingerprint (`Mapping`): What the tensors are computed from, as JSON values by name.
            replaces (`bool`, *optional*, defaults to `False`): Remove shards with another fingerprint.

        Raises:
            ValueError: If the folder holds shards of another kind or, without `replaces`, with another fingerprint;
                the message says what differs.
        """
        store = cls(folder, key_type, fingerprint)
        store._adopt(replaces=replaces)
        return store

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # each process maps files itself

    @property
    def next_number(self) -> int:
        """Number of the next shard: one more than the highest so far."""
        return 1 + max((int(shard) for shard, _ in self._shards), default=-1)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return the keys for which the store has neither tensors nor a reason why they are missing."""
        return [key for key in keys if key not in self._places]

    def read(self, key: Key) -> dict[str, torch.Tensor]:
        """
        Return the tensors of a clip by name; they are views of memory-mapped files.

        Raises:
            KeyError: If the clip is not in the store.
            ValueError: If its shard cannot be read.
        """
        place = self._places[key]
        shard, own = self._shards[bisect_right(self._shards, place, key=lambda item: item[1].start) - 1]
        row = place - own.start
        mapped = self._map(shard)
        return {name: values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in mapped.items()}

    def stack(self, name: str) -> torch.Tensor:
        """Return the tensors of all clips with a name, concatenated along the first axis in the order of the keys.

        Raises:
            ValueError: If a shard cannot be read.
        """
        places, parts = torch.tensor(list(self._places.values()), dtype=torch.int64), []
        for shard, own in self._shards:
            if name not in (mapped := self._map(shard)):  # none of this shard's clips could be read
                continue
            values, offsets = mapped[name]
            kept = torch.zeros(len(own), dtype=torch.bool)
            kept[places[(places >= own.start) & (places < own.stop)] - own.start] = True
            if not kept.all():
                values = values[kept.repeat_interleave(torch.tensor(offsets).diff())]
            parts.append(values)
        if not parts:
            dtype, shape = self.tensors.get(name, TensorType("float32", [0]))
            return torch.empty(0, *shape, dtype=getattr(torch, dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def append(self, number: int, clips: Mapping[Key, Tensors | Unreadable]) -> None:
        """
        Write a shard, if there are any clips. Clips that are already in the store are replaced.

        Args:
            number (`int`): Number of the shard, [`next_number`] or more; no other process may use it.
            clips (`Mapping[Key, Mapping[str, Tensor] | Unreadable]`): Tensors by name, or why there are none. If
                a clip lacks a name, its tensor has length 0.

        Raises:
            ValueError: If tensors with one name differ in dtype or in a dimension after the first.
        """
        if not clips:
            return
        shard, tensors, types = f"{number:05d}", {}, dict[str, TensorType]()
        contents = [{} if isinstance(clip, Unreadable) else clip for clip in clips.values()]
        for name in dict.fromkeys(name for content in contents for name in content):
            parts = [content[name] for content in contents if name in content]
            kinds = {(part.dtype, part.shape[1:]) for part in parts}
            found = [TensorType(str(dtype).removeprefix("torch."), list(shape)) for dtype, shape in kinds]
            types[name] = self.tensors.get(name, found[0])
            if found != [types[name]]:
                raise InputError(f"{self.folder}: tensors called {name!r} differ in type: {[types[name], *found]}.")
            lengths = [len(content[name]) if name in content else 0 for content in contents]
            tensors[name] = torch.cat(parts).contiguous()
            tensors[f"{name}.offsets"] = torch.tensor([0, *accumulate(lengths)])
        reasons = [clip if isinstance(clip, Unreadable) else None for clip in clips.values()]
        header = {"fingerprint": self.fingerprint, "columns": self._columns, "clips": len(clips), "tensors": types}
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.folder / f"{shard}.parquet") as temporary:
            rows = [(*key, *(reason or (None, None))) for key, reason in zip(clips, reasons, strict=True)]
            _write_table(temporary, [*self._columns, *Unreadable._fields], rows)
        with write_atomically(self.folder / f"{shard}.safetensors") as temporary:
            # A single entry: safetensors writes several in arbitrary order, and equal shards would not be equal files.
            save_file(tensors, temporary, {"store": json.dumps(header)})
            give_umask(temporary)
        self._register(shard, types, list(clips), reasons)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Remove all other clips from the store with the next [`commit`]."""
        for key in self._places.keys() - set(keys):
            del self._places[key]
            self.unreadable.pop(key, None)

    def commit(self) -> None:
        """Write the index, including the shards of other processes, which must have finished."""
        self._adopt()
        live = set(self._places.values())
        rows = {shard: [row for row, place in enumerate(own) if place not in live] for shard, own in self._shards}
        empty = {shard for shard, own in self._shards if len(rows[shard]) == len(own)}
        index = {
            "fingerprint": self.fingerprint,
            "columns": self._columns,
            "tensors": self.tensors,
            "shards": [
                {"name": shard, "clips": len(own), "dropped": rows[shard]}
                for shard, own in sorted(self._shards, key=lambda item: int(item[0]))
                if shard not in empty
            ],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.folder / INDEX_FILE) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        for shard in empty:  # after the index, which listed it until now
            self._remove(shard)
        self._shards = [item for item in self._shards if item[0] not in empty]

    @property
    def _columns(self) -> list[str]:
        return list(self._key_type._fields)  # type: ignore[attr-defined]

    def _differ(self, there: Mapping[str, Any]) -> str:
        """Describe how the fingerprint in a header or an index differs from this store's."""
        own = {"columns": self._columns, **self.fingerprint}
        return describe_difference({"columns": there["columns"], **there["fingerprint"]}, own)

    def _adopt(self, *, replaces: bool = False) -> None:
        """Add the complete shards of the folder that are not known yet, and remove incomplete ones."""
        try:
            index = json.loads((self.folder / INDEX_FILE).read_text(encoding="utf-8"))
            dropped = {shard["name"]: shard["dropped"] for shard in index["shards"]}
        except (OSError, ValueError, KeyError, TypeError):
            dropped = {}
        for temporary in self.folder.glob(".*.tmp"):  # left by a process that was killed
            temporary.unlink(missing_ok=True)
        known = {shard for shard, _ in self._shards}
        found = {path.stem for kind in ("parquet", "safetensors") for path in self.folder.glob(f"*.{kind}")}
        for shard in sorted(filter(str.isdigit, found - known), key=int):
            header = self._read_header(shard)
            if header is None:
                self._remove(shard)
                continue
            difference = self._differ(header)
            if difference and replaces and header["columns"] == self._columns:
                (self.folder / INDEX_FILE).unlink(missing_ok=True)  # first: it may list the shard
                self._remove(shard)
                continue
            if difference:
                raise InputError(f"{self.folder}: was made with other settings: {difference}. Give another folder.")
            self._add(shard, header["tensors"], dropped.get(shard, ()))

    def _read_header(self, shard: str) -> dict[str, Any] | None:
        """Return the header of a shard; `None` if the shard is incomplete."""
        path = self.folder / f"{shard}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, FileNotFoundError):
            return None
        if "store" not in metadata:
            raise InputError(f"{path} was not written as part of a store of clips. Give another folder.")
        header = json.loads(metadata["store"])
        try:
            num_clips = pq.read_metadata(path.with_suffix(".parquet")).num_rows
        except (pa.ArrowInvalid, FileNotFoundError):
            return None
        return header if num_clips == header["clips"] else None

    def _remove(self, shard: str) -> None:
        for kind in ("safetensors", "parquet"):  # in this order, so that half a shard never passes for a complete one
            (self.folder / f"{shard}.{kind}").unlink(missing_ok=True)

    def _add(self, shard: str, types: Mapping[str, Sequence[Any]], dropped: Iterable[int]) -> None:
        """Add a shard in the folder, without the dropped rows."""
        rows = _read_table(self.folder / f"{shard}.parquet")
        keys = [self._key_type._make(row[:-2]) for row in rows]  # type: ignore[attr-defined]
        unreadable = [None if row[-1] is None else Unreadable(*row[-2:]) for row in rows]
        self._register(shard, types, keys, unreadable, frozenset(dropped))

    def _register(
        self,
        shard: str,
        types: Mapping[str, Sequence[Any]],
        keys: Sequence[Key],
        unreadable: Sequence[Unreadable | None],
        dropped: frozenset[int] = frozenset(),
    ) -> None:
        begin = self._shards[-1][1].stop if self._shards else 0
        self._shards.append((shard, range(begin, begin + len(keys))))
        self.tensors |= {name: TensorType(*values) for name, values in types.items()}
        for row, (key, reason) in enumerate(zip(keys, unreadable, strict=True)):
            if row in dropped:
                continue
            self._places.pop(key, None)  # so that places ascend
            self._places[key] = begin + row
            self.unreadable.pop(key, None)
            if reason is not None:
                self.unreadable[key] = reason

    def _map(self, shard: str) -> dict[str, tuple[torch.Tensor, list[int]]]:
        """Return the tensors of a shard, which are memory-mapped, with their offsets."""
        if shard not in self._mapped:
            path = self.folder / f"{shard}.safetensors"
            try:
                with safe_open(path, "pt") as file:
                    self._mapped[shard] = {
                        name: (file.get_tensor(name), file.get_tensor(f"{name}.offsets").tolist())
                        for name in self.tensors
                        if name in file.keys()  # noqa: SIM118 (the file is not a mapping)
                    }
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: cannot be read: {error}") from error
        return self._mapped[shard]


def describe_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe the differences between two fingerprints; return an empty string if there are none."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(
        _IN_WORDS.get(name, f"{name} {there.get(name)!r} there and {here.get(name)!r} here") for name in names
    )


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[tuple]) -> None:
    """Write a Parquet file. File names that are not UTF-8 are written as a column of bytes."""
    arrays = []
    for values in zip(*rows, strict=True):
        try:
            arrays.append(pa.array(values))
        except UnicodeEncodeError:
            arrays.append(pa.array([None if value is None else os.fsencode(value) for value in values], pa.binary()))
    pq.write_table(pa.table(arrays, list(columns)), path)


def _read_table(path: Path) -> list[tuple]:
    """Return the rows that [`_write_table`] wrote."""
    with pq.ParquetFile(path) as file:
        columns = [(column.type, column.to_pylist()) for column in file.read().columns]
    return list(
        zip(
            *(
                [None if value is None else os.fsdecode(value) for value in values] if kind == pa.binary() else values
                for kind, values in columns
            ),
            strict=True,
        )
    )
