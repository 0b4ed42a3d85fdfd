"""Tests of the store of tensors by clip: nothing is lost, mixed up or mistaken for something else."""

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from simple_multimodal.data import store as module
from simple_multimodal.data.store import ClipStore, TensorType, Unreadable

MADE_OF = {"weights": "a1", "precision": "fp32", "size": [2, 3]}
BAD = Unreadable("/clips/bad.mp4", "is empty")


class Clip(NamedTuple):
    id: str
    size: int | None = 1


def clip_tensors(seed: int, length: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randn(length, 3, generator=generator).to(torch.bfloat16),
        "mask": torch.ones(length, dtype=torch.bool),
    }


A, B, C = (Clip(name) for name in "abc")
LENGTHS = {A: 2, B: 0, C: 3}
CLIPS = {key: clip_tensors(seed, length) for seed, (key, length) in enumerate(LENGTHS.items())}


def resume(folder: Path, **further) -> ClipStore[Clip]:
    return ClipStore.resume(folder, Clip, MADE_OF, **further)


def assert_holds(store: ClipStore, clips: dict[Clip, dict[str, torch.Tensor]]) -> None:
    for key, expected in clips.items():
        found = store.read(key)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.fixture
def written(tmp_path) -> Path:
    """Write two shards, the second with a clip that could not be read."""
    store = resume(tmp_path / "store")
    store.append(0, {A: CLIPS[A], B: CLIPS[B]})
    store.append(1, {C: CLIPS[C], Clip("bad", None): BAD})
    store.commit()
    return tmp_path / "store"


def test_clips_of_any_length_come_back_as_they_were(written):
    store = ClipStore.open(written, Clip)
    assert list(store) == [A, B, C, Clip("bad", None)] and len(store) == 4
    assert_holds(store, CLIPS)
    assert store.unreadable == {Clip("bad", None): BAD}
    assert store.tensors == {"tokens": TensorType("bfloat16", [3]), "mask": TensorType("bool", [])}
    assert torch.equal(store.stack("tokens"), torch.cat([clip["tokens"] for clip in CLIPS.values()]))
    assert store.missing([A, Clip("d"), Clip("a", 2), Clip("bad", None)]) == [Clip("d"), Clip("a", 2)]
    with pytest.raises(KeyError):
        store.read(Clip("d"))
    assert_holds(pickle.loads(pickle.dumps(store)), CLIPS)


def test_files_are_plain(written):
    """They can be read with the libraries of their formats, and by users other than their owner."""
    assert sorted(path.name for path in written.iterdir()) == [
        "00000.parquet", "00000.safetensors", "00001.parquet", "00001.safetensors", "index.json",
    ]  # fmt: skip
    assert pq.read_table(written / "00001.parquet").to_pylist() == [
        {"id": "c", "size": 1, "file": None, "reason": None},
        {"id": "bad", "size": None, "file": BAD.file, "reason": BAD.reason},
    ]
    tensors = load_file(written / "00000.safetensors")
    assert tensors["tokens"].shape == (2, 3) and tensors["tokens.offsets"].tolist() == [0, 2, 2]
    index = json.loads((written / "index.json").read_text())
    assert index["fingerprint"] == MADE_OF
    assert [(shard["name"], shard["clips"]) for shard in index["shards"]] == [("00000", 2), ("00001", 2)]
    modes = {path.stat().st_mode for path in written.iterdir()}
    (written / "new").touch()
    assert modes == {(written / "new").stat().st_mode}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_tensors_are_memory_mapped(written):
    store = ClipStore.open(written, Clip)
    mapped = store.read(A)["tokens"].untyped_storage().data_ptr()
    regions = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    files = {
        region[-1]
        for region in regions
        if int(region[0].split("-")[0], 16) <= mapped < int(region[0].split("-")[1], 16)
    }
    assert files == {str(written / "00000.safetensors")}


@pytest.mark.slow
def test_a_million_long_ids(tmp_path):
    ids = [f"{number:073d}" for number in range(1_000_000)]
    embeds = [torch.full((1, 2), float(number)) for number in range(7)]
    store = resume(tmp_path)
    store.append(0, {Clip(name): {"embed": embeds[number % 7]} for number, name in enumerate(ids)})
    store.commit()
    store = ClipStore.open(tmp_path, Clip)
    assert [key.id for key in store] == ids
    assert torch.equal(store.stack("embed")[:, 1], torch.arange(1_000_000.0) % 7)
    assert torch.equal(store.read(Clip(ids[12]))["embed"], embeds[5])


def test_names_need_not_be_utf8(tmp_path):
    names = [Clip("caf\udce9.mp4"), Clip("café.mp4")]
    store = resume(tmp_path)
    store.append(0, {names[0]: CLIPS[A], names[1]: Unreadable("bad\udcff.mp4", "is empty")})
    store.commit()
    store = ClipStore.open(tmp_path, Clip)
    assert list(store) == names and store.unreadable[names[1]].file == "bad\udcff.mp4"


def test_a_later_shard_replaces_a_clip(written):
    store = resume(written)
    new = clip_tensors(9, length=4)
    store.append(store.next_number, {A: new, Clip("bad", None): CLIPS[C]})
    for opened in (store, resume(written)):
        assert_holds(opened, {**CLIPS, A: new, Clip("bad", None): CLIPS[C]})
        assert not opened.unreadable
        assert torch.equal(opened.stack("tokens"), torch.cat([CLIPS[C]["tokens"], new["tokens"], CLIPS[C]["tokens"]]))
    assert list(ClipStore.open(written, Clip)) == [A, B, C, Clip("bad", None)]  # until the index is written


def test_dropped_clips_and_their_shards_are_removed(written):
    store = resume(written)
    store.keep_only([A, Clip("elsewhere")])
    store.commit()
    for opened in (store, ClipStore.open(written, Clip), resume(written)):
        assert list(opened) == [A] and not opened.unreadable
        assert_holds(opened, {A: CLIPS[A]})
        assert torch.equal(opened.stack("tokens"), CLIPS[A]["tokens"])
    assert sorted(path.name for path in written.iterdir()) == ["00000.parquet", "00000.safetensors", "index.json"]
    store = resume(written)
    store.append(store.next_number, {B: CLIPS[B]})
    store.commit()
    assert list(ClipStore.open(written, Clip)) == [A, B]


def test_several_processes_write_and_one_commits(tmp_path):
    """In any order, the store is the same as if a single process had written it."""
    for name, order in (("one", [0, 1, 2]), ("three", [1, 2, 0])):
        stores = [resume(tmp_path / name) for _ in order]
        for number in order:
            key = list(CLIPS)[number]
            stores[number].append(number, {key: CLIPS[key]})
        stores[1].commit()
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "three/index.json").read_bytes()
    assert_holds(ClipStore.open(tmp_path / "three", Clip), CLIPS)


def test_another_fingerprint_is_named(written, tmp_path):
    other = {**MADE_OF, "weights": "b2", "size": [4, 3]}
    said = r"other weights of the model, size \[2, 3\] there and \[4, 3\] here. Give another folder"
    with pytest.raises(ValueError, match=said):
        ClipStore.resume(written, Clip, other)
    assert ClipStore.resume(written, Clip, {**MADE_OF, "size": (2, 3)}).fingerprint == MADE_OF
    store = ClipStore.resume(written, Clip, other, replaces=True)
    assert not list(store) and not list(written.iterdir())
    store.append(0, {A: CLIPS[A]})
    store.commit()
    assert ClipStore.open(written, Clip).fingerprint == other


def test_files_of_other_stores_are_not_touched(written, tmp_path):
    class Block(NamedTuple):
        number: int

    with pytest.raises(ValueError, match=r"columns \['id', 'size'\] there and \['number'\] here"):
        ClipStore.resume(written, Block, {}, replaces=True)
    with pytest.raises(ValueError, match="columns"):
        ClipStore.open(written, Block)
    save_file({"weight": torch.ones(2)}, tmp_path / "00000.safetensors")
    with pytest.raises(ValueError, match=r"00000\.safetensors was not written as part of a store"):
        resume(tmp_path, replaces=True)
    assert (tmp_path / "00000.safetensors").exists() and len(list(written.iterdir())) == 5
    with pytest.raises(ValueError, match="is not a folder that `encode` or `features` wrote: it has no index.json"):
        ClipStore.open(tmp_path, Clip)


def test_tensors_with_one_name_must_have_one_type(tmp_path):
    store = resume(tmp_path)
    with pytest.raises(ValueError, match="tensors called 'x' differ in type"):
        store.append(0, {A: {"x": torch.ones(1, 2)}, B: {"x": torch.ones(1, 2).half()}})
    store.append(0, {A: {"x": torch.ones(1, 2)}, B: {"y": torch.ones(1)}})
    assert store.read(B)["x"].shape == (0, 2)
    with pytest.raises(ValueError, match="tensors called 'x' differ in type"):
        store.append(1, {C: {"x": torch.ones(1, 3)}})
    store.append(1, {})
    assert not list(tmp_path.glob("00001*"))


@pytest.mark.parametrize("damaged", ["00001.safetensors", "00001.parquet"])
@pytest.mark.parametrize("keeps", [None, 0, -3])
def test_a_damaged_shard_costs_only_its_clips(written, damaged, keeps):
    content = (written / damaged).read_bytes()
    (written / damaged).unlink() if keeps is None else (written / damaged).write_bytes(content[:keeps])
    store = resume(written)
    assert list(store) == [A, B] and store.next_number == 1
    assert not list(written.glob("00001.*"))
    store.append(1, {C: CLIPS[C]})
    store.commit()
    assert_holds(ClipStore.open(written, Clip), CLIPS)


def _write_and_die(folder: Path, step: str) -> None:
    """Add a shard to a store, and be killed just before or after one of its files is moved into place."""
    name, _, moment = step.partition(" ")
    plain = Path.replace

    def replace(self, target):
        is_last = Path(target).suffix == {"index": ".json"}.get(name, f".{name}")
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, target)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace
    store = resume(folder)
    store.append(store.next_number, {Clip("d"): CLIPS[C]})
    store.commit()


@pytest.mark.parametrize(
    ("step", "adopted", "indexed"),
    [
        ("parquet before", False, False),
        ("parquet", False, False),
        ("safetensors before", False, False),
        ("safetensors", True, False),
        ("index before", True, False),
        ("index", True, True),
    ],
)
def test_a_writer_may_be_killed_at_any_time(written, step, adopted, indexed):
    """Readers see the committed shards; the next writer adopts complete shards and removes the rest."""
    # A forked process lacks the threads of pyarrow's pool, and would wait for them forever.
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(written, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = ClipStore.open(written, Clip)
    assert_holds(store, CLIPS)
    assert (Clip("d") in store) == indexed
    store = resume(written)
    assert (store.missing([Clip("d")]) == []) == adopted
    assert len(list(written.iterdir())) == (7 if adopted else 5)
    if not adopted:
        store.append(store.next_number, {Clip("d"): CLIPS[C]})
    store.commit()
    assert_holds(ClipStore.open(written, Clip), {**CLIPS, Clip("d"): CLIPS[C]})


def test_a_lost_or_mixed_up_shard_is_named(written):
    store = ClipStore.open(written, Clip)
    (written / "00001.safetensors").unlink()
    assert_holds(store, {A: CLIPS[A]})
    with pytest.raises(ValueError, match=r"00001\.safetensors: cannot be read"):
        store.read(C)
    (written / "00000.parquet").write_bytes((written / "00001.parquet").read_bytes())
    index = json.loads((written / "index.json").read_text())
    index["shards"][0]["clips"] = 3
    (written / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"readable store of clips: 00000\.parquet does not have 3 rows"):
        ClipStore.open(written, Clip)


def test_differences_are_described_in_words():
    assert module.describe_difference(MADE_OF, dict(MADE_OF)) == ""
    assert module.describe_difference({"a": 1, "tower": "x"}, {"b": 2, "tower": "y"}) == (
        "a 1 there and None here, other weights or another configuration of the tower, b None there and 2 here"
    )
