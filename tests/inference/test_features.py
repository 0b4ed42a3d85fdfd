"""Features of frozen towers: what is saved, resuming after a kill, and errors."""

import ctypes
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from simple_multimodal.cli import main
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import ClipKey, open_features
from simple_multimodal.data.readers import AudioReader, VideoReader
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.store import ClipStore
from simple_multimodal.inference import features, pipeline
from simple_multimodal.inference.features import FeatureReport, TowerFeatures
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.pyav_backend import PyAVBackend
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.closeness import assert_close
from tests.inference.conftest import NUM_CLIPS
from tests.inference.killed import features_until_the_second_shard
from tests.processes import launch

REPOSITORY = Path(__file__).resolve().parents[2]


class Interrupted(Exception):
    """An exception that stands for anything that ends a process."""


@pytest.fixture(scope="module")
def manifest(clips) -> Path:
    """Row 3 has no audio, row 4 no video, row 1 is a segment of its file; the last row shows the clip of the first."""
    rows = [
        {"id": str(n), "caption": "a cat", "video": f"video/{n}.mp4", "audio": f"audio/{n}.wav"}
        for n in range(NUM_CLIPS)
    ]
    rows[1]["start_seconds"] = 0.1
    rows[3]["audio"] = rows[4]["video"] = ""
    rows.append({"id": "twice", "caption": "the same clip", "video": "video/0.mp4", "audio": "audio/0.wav"})
    path = clips / "features.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def dataset(manifest) -> RowDataset:
    return RowDataset.from_manifest(manifest)


@pytest.fixture(scope="module")
def maker(retrieval_model) -> TowerFeatures:
    return TowerFeatures.from_pretrained(retrieval_model, batch_size=2)


@pytest.fixture(scope="module")
def written(maker, dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    for tower in ("audio", "video"):
        report = maker.write(tower, [dataset], folder, shard_size=4)
        assert report == (6, 6, [])
    return folder


def read(folder: Path, pipeline) -> dict:
    return open_features(folder, pipeline.model.tower_hash, pipeline.processor, video_backend="pyav")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of tensors, tables and index of one tower."""
    tensors = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {f"{path.name} {name}": file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())}
    return tensors | {"index": (folder / "index.json").read_bytes()}


def test_features_equal_the_tokens_of_the_towers(maker, written, dataset):
    rows = list(dataset)
    batch = MultimodalCollator(maker.processor)(rows)
    kept = MultimodalCollator(maker.processor, features=read(written, maker))(rows)
    assert "pixel_values_videos" not in kept and "audio_values" not in kept
    for modality in ("audio", "video"):
        assert torch.equal(kept[f"{modality}_mask"], batch[f"{modality}_mask"])
        with torch.no_grad():
            live = maker.model.base_model.encode(modality, batch)
            given = maker.model.base_model.encode(modality, kept)
        length = given.mask.shape[1]
        assert torch.equal(given.mask, live.mask[:, :length]) and not live.mask[:, length:].any()
        real = given.mask[..., None]
        assert_close(given.tokens * real, live.tokens[:, :length] * real)
        torch.testing.assert_close(given.seconds * given.mask, live.seconds[:, :length] * given.mask)


def test_the_index_lists_each_clip_once(written, clips):
    listed = [pq.read_table(written / f"video/0000{n}.parquet").to_pylist() for n in range(2)]
    assert [[clip["path"] for clip in shard] for shard in listed] == [
        [f"video/{n}.mp4" for n in (0, 1, 2, 3)],
        [f"video/{n}.mp4" for n in (5, 6)],
    ]
    found = (clips / "video/1.mp4").stat()
    clip = listed[0][1]
    assert (clip["start_seconds"], clip["end_seconds"]) == (0.1, None)
    assert (clip["size"], clip["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
    index = json.loads((written / "video/index.json").read_text())
    assert index["fingerprint"]["num_frames"] == 2 and index["fingerprint"]["video_backend"] == "pyav"
    assert json.loads((written / "audio/index.json").read_text())["fingerprint"]["num_mel_bins"] == 16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_takes_half_the_space(maker, written, dataset, tmp_path, dtype):
    maker.write("video", [dataset], tmp_path, shard_size=4, dtype=getattr(torch, dtype))
    whole, half = (read(folder, maker)["video"] for folder in (written, tmp_path))
    assert half.read(dataset[0]).tokens.nbytes == whole.read(dataset[0]).tokens.nbytes / 2
    batches = [reader.collate([reader.read(dataset[0]), None]) for reader in (whole, half)]
    assert batches[1]["video_tokens"].dtype == torch.float32
    torch.testing.assert_close(*(batch["video_tokens"] for batch in batches), atol=0.05, rtol=0.01)
    with pytest.raises(ValueError, match=f"other settings: dtype '{dtype}' there and 'float32' here"):
        maker.write("video", [dataset], tmp_path)


def test_clips_are_encoded_once_and_manifests_can_be_added(maker, clips, dataset, tmp_path, monkeypatch):
    first = RowDataset.from_manifest(dataset.manifest_file, max_samples=3)
    assert maker.write("video", [first], tmp_path, shard_size=2) == (3, 3, [])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("video/*.safetensors")}
    assert maker.write("video", [dataset], tmp_path, shard_size=2) == (6, 3, [])
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("video/*.safetensors")}
    assert sorted(after) == [f"0000{n}.safetensors" for n in range(4)] and after == after | before
    read(tmp_path, maker)["video"].check_rows(dataset)
    monkeypatch.setattr(TowerFeatures, "_encode", None)
    assert maker.write("video", [dataset], tmp_path, shard_size=2) == (6, 0, [])


def test_an_interrupted_call_resumes(maker, written, dataset, tmp_path, monkeypatch):
    plain, encoded = TowerFeatures._encode, []

    def counted(self, *args):
        if len(encoded) == ends_at:
            raise Interrupted
        encoded.append(args)
        return plain(self, *args)

    monkeypatch.setattr(TowerFeatures, "_encode", counted)
    ends_at = 2
    with pytest.raises(Interrupted):
        maker.write("video", [dataset], tmp_path, shard_size=4)
    assert sorted(path.name for path in tmp_path.glob("video/*")) == ["00000.parquet", "00000.safetensors"]
    with pytest.raises(ValueError, match="holds no readable features"):
        read(tmp_path, maker)
    ends_at = None
    assert maker.write("video", [dataset], tmp_path, shard_size=4) == (6, 2, [])
    assert len(encoded) == 3 and contents(tmp_path / "video") == contents(written / "video")


def test_a_killed_process_leaves_complete_files(maker, written, retrieval_model, manifest, tmp_path):
    words = [retrieval_model, str(manifest), "--tower", "video", "--output", str(tmp_path)]
    words += ["--shard_size", "4", "--batch_size", "2"]
    killed = launch(1, features_until_the_second_shard, words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    shard = tmp_path / "video/00000.safetensors"
    left = sorted(path.name for path in shard.parent.iterdir())
    assert left == [".lock", "00000.parquet", shard.name]  # a lock that no process holds
    (shard.parent / ".lock").unlink()
    (shard.parent / ".00001.safetensors.1.2.tmp").write_bytes(shard.read_bytes()[:-1])
    (shard.parent / "00007.safetensors").write_bytes(shard.read_bytes()[:-1])  # truncated, as after a power failure
    assert maker.write("video", [RowDataset.from_manifest(manifest)], tmp_path, shard_size=4) == (6, 2, [])
    assert contents(tmp_path / "video") == contents(written / "video")
    assert sorted(path.stem for path in shard.parent.iterdir()) == ["00000", "00000", "00001", "00001", "index"]


def write_as_before(folder: Path, store: Path) -> None:
    """Write features in the format of earlier versions."""
    folder.mkdir(parents=True)
    clips = ClipStore.open(store, ClipKey)
    made_of = dict(clips.fingerprint)
    further = {name: made_of.pop(name) for name in ("dtype", "precision")}
    made_of = {"fingerprint": made_of, **further}
    places = {}
    for shard in range(2):
        listed = pq.read_table(store / f"0000{shard}.parquet").to_pylist()
        keys = [ClipKey(*(clip[name] for name in ClipKey._fields)) for clip in listed]
        places |= {key: (f"0000{shard}.safetensors", row) for row, key in enumerate(keys)}
        tensors = {f"{n}.{name}": t.clone() for n, key in enumerate(keys) for name, t in clips.read(key).items()}
        metadata = {"made_of": json.dumps(made_of), "clips": json.dumps([key._asdict() for key in keys])}
        save_file(tensors, folder / f"0000{shard}.safetensors", metadata)
    index = {**made_of, "hidden_size": clips.tensors["tokens"].shape[0], "unreadable": []}
    index["clips"] = [{**key._asdict(), "shard": shard, "row": row} for key, (shard, row) in places.items()]
    gone = ClipKey("video/gone.mp4", None, None, 1, 1)
    index["unreadable"] = [{**gone._asdict(), "reason": "is empty"}]
    (folder / "index.json").write_text(json.dumps(index))


def test_features_of_an_earlier_version_are_read_and_added_to(
    maker, written, dataset, retrieval_model, tmp_path, monkeypatch
):
    for tower in ("audio", "video"):
        write_as_before(tmp_path / tower, written / tower)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    rows = list(dataset)
    batches = [
        MultimodalCollator(maker.processor, features=pickle.loads(pickle.dumps(read(folder, maker))))(rows)
        for folder in (written, tmp_path)
    ]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}  # reading changes nothing

    with pytest.raises(ValueError, match="dtype 'float32' there and 'float16' here"):
        maker.write("video", [dataset], tmp_path, dtype=torch.float16)
    plain = ClipStore.append

    def interrupted(store, number, clips):
        if number == 1:
            raise Interrupted
        plain(store, number, clips)

    with monkeypatch.context() as patch:
        patch.setattr(TowerFeatures, "_encode", None)
        patch.setattr(ClipStore, "append", interrupted)
        with pytest.raises(Interrupted):
            maker.write("video", [dataset], tmp_path)
        patch.setattr(ClipStore, "append", plain)
        assert maker.write("video", [dataset], tmp_path) == (6, 0, [])
    found, expected = contents(tmp_path / "video"), contents(written / "video")
    assert {name: found[name] for name in expected if name != "index"} == {
        name: value for name, value in expected.items() if name != "index"
    }
    reader = read(tmp_path, maker)["video"]
    gone = {**rows[0], "video": "video/gone.mp4"}
    monkeypatch.setattr(reader, "_find", lambda row: ClipKey("video/gone.mp4", None, None, 1, 1))
    with pytest.raises(MediaError, match="is empty"):
        reader.read(gone)


def test_several_processes_share_the_clips(retrieval_model, manifest, written, maker, dataset, tmp_path):
    words = ["features", retrieval_model, str(manifest), "--tower", "video", "--output", str(tmp_path)]
    words += ["--shard_size", "4", "--batch_size", "2", "--num_workers", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command += ["-m", "simple_multimodal", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path / 'video'}: 6 clips, 6 new"
    assert contents(tmp_path / "video") == contents(written / "video")


def test_loader_processes_are_protected_from_signals(maker, dataset, retrieval_model, clips, tmp_path, monkeypatch):
    loaders = []
    for module in (features, pipeline):
        monkeypatch.setattr(module, "protected", lambda loader: loaders.append(loader) or loader)
    maker.write("video", [dataset], tmp_path)
    Retriever.from_pretrained(retrieval_model).index(clips / "video")
    assert len(loaders) == 2


def test_the_command_lists_clips_that_cannot_be_read(retrieval_model, clips, tmp_path, capsys):
    folder = tmp_path / "clips"
    shutil.copytree(clips / "video", folder)
    (folder / "1.mp4").write_bytes(b"no video")
    manifest = tmp_path / "clips/train.csv"
    manifest.write_text("video,caption\n0.mp4,a\n1.mp4,b\n2.mp4,c\nmissing.mp4,d\n")
    words = ["features", retrieval_model, str(manifest), "--tower", "video", "--output", str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "video: 2 clips, 2 new" in said.out
    assert "cannot be read: '1'" in said.err and "1.mp4" in said.err and "missing.mp4 does not exist" in said.err
    before = sorted((tmp_path / "out/video").iterdir())
    assert main(words) == 1 and sorted((tmp_path / "out/video").iterdir()) == before  # known to be bad, but retried
    retriever = Retriever.from_pretrained(retrieval_model, features=tmp_path / "out", drop_modalities=["audio"])
    reader, dataset = retriever.collator.features["video"], RowDataset.from_manifest(manifest)
    reader.check_rows([dataset[n] for n in range(3)])  # training accepts files that cannot be read
    with pytest.raises(ValueError, match=r"1\.mp4"):
        reader.read(dataset[1])
    shutil.copy(clips / "video/1.mp4", folder / "1.mp4")
    manifest.write_text("video,caption\n1.mp4,b\n")
    assert main(words) == 0 and "1 clips, 1 new" in capsys.readouterr().out


def test_a_clip_that_crashes_the_decoder_is_unreadable(maker, dataset, written, tmp_path, monkeypatch):
    original = PyAVBackend.frames

    def frames(self, path, *args, **kwargs):
        if Path(path).stem == "2":
            ctypes.string_at(0)
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(PyAVBackend, "frames", frames)
    with_worker = TowerFeatures(maker.model, maker.processor, batch_size=2, num_workers=1)
    report = with_worker.write("video", [dataset], tmp_path)
    assert report[:2] == (5, 5) and "its decoder crashed (SIGSEGV)" in report.unreadable[0]
    kept, whole = (read(folder, maker)["video"] for folder in (tmp_path, written))
    for row in (dataset[1], dataset[3]):
        assert_close(kept.read(row).tokens, whole.read(row).tokens)


def test_limits_for_reading_a_file_can_be_set(retrieval_model, manifest, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(
        TowerFeatures,
        "write",
        lambda self, *args, **kwargs: (
            limits.append((self.sample_timeout_seconds, self.loader_memory_gigabytes)) or FeatureReport(0, 0, [])
        ),
    )
    words = ["features", retrieval_model, str(manifest), "--tower", "video", "--output", str(tmp_path)]
    assert main(words) == main([*words, "--sample_timeout_seconds", "5", "--loader_memory_gigabytes", "1"]) == 0
    assert limits == [(120.0, 4.0), (5.0, 1.0)]


def test_models_have_the_same_outputs_with_features(retrieval_model, maker, written, dataset, monkeypatch):
    plain = Retriever.from_pretrained(retrieval_model, batch_size=3)
    kept = Retriever.from_pretrained(retrieval_model, batch_size=3, features=written)
    expected = plain.index(dataset)
    monkeypatch.setattr(VideoReader, "read", None)
    monkeypatch.setattr(AudioReader, "read", None)
    index = kept.index(dataset)
    assert index.ids == expected.ids
    assert_close(index.embeds, expected.embeds)


def test_questions_can_be_answered_from_features(question_model, questions, clips, tmp_path):
    words = ["features", question_model, str(questions), "--tower", "audio", "video", "--output", str(tmp_path)]
    assert main(words) == 0
    for question in ("what is it?", ["what is it?", "who is there?"]):
        clip = clips / "video/1.mp4"
        answers = [
            QuestionAnswerer.from_pretrained(question_model, features=folder).answer(question, clip, top_k=9)
            for folder in (None, tmp_path)
        ]
        for plain, kept in zip(*(answers if isinstance(question, list) else [[a] for a in answers]), strict=True):
            assert [a.text for a in plain] == [a.text for a in kept]
            assert [a.probability for a in kept] == pytest.approx([a.probability for a in plain], abs=1e-5)


def test_infer_uses_features(retrieval_model, data, tmp_path):
    from tests.inference.conftest import unseen

    model = unseen(retrieval_model, tmp_path)
    manifest = tmp_path / "clips.csv"
    manifest.write_text("video\n" + "".join(f"{n}.mp4\n" for n in range(NUM_CLIPS)))
    words = ["--video_root", str(data / "msrvtt_ret/videos"), "--output", str(tmp_path / "kept")]
    assert main(["features", model, str(manifest), "--tower", "video", *words]) == 0
    metrics = []
    for flags in ([], ["--features", str(tmp_path / "kept")]):
        output = tmp_path / f"out{len(metrics)}"
        assert main(["infer", model, str(data / "msrvtt_ret"), "--output_dir", str(output), *flags]) == 0
        metrics.append(json.loads((output / "metrics.json").read_text())["metrics"])
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-5)


def test_a_moved_folder_is_accepted_and_a_changed_file_is_refused(retrieval_model, written, clips, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)  # with times
    retriever = Retriever.from_pretrained(retrieval_model, features=written)
    dataset = RowDataset.from_manifest(moved / "features.jsonl")
    rows = retriever.rows(dataset)
    assert len(retriever.index_rows(rows).ids) == NUM_CLIPS
    os.utime(moved / "video/5.mp4")
    with pytest.raises(ValueError, match=r"1 rows have no features.*row 5 \(id '5'\).*5\.mp4' was changed after"):
        retriever.index_rows(rows)


def test_a_clip_without_features_is_refused(retrieval_model, written, clips, data):
    retriever = Retriever.from_pretrained(retrieval_model, features=written, drop_modalities=["audio"])
    with pytest.raises(ValueError, match=r"1 rows have no features.*video/4\.mp4' is not among them.*`simple-mult"):
        retriever.index([clips / "video/3.mp4", clips / "video/4.mp4"])
    with pytest.raises(ValueError, match="1 rows have no features"):  # another segment of that file
        retriever.index([clips / "video/1.mp4"])


def test_features_of_another_tower_or_other_frames_are_refused(retrieval_model, written, dataset, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(retrieval_model, other, ignore=shutil.ignore_patterns("checkpoint-*"))
    retriever = Retriever.from_pretrained(other, features=written)
    retriever_hash = {tower: retriever.model.tower_hash(tower) for tower in ("audio", "video")}.__getitem__
    with torch.no_grad():
        next(retriever.model.towers["fusion"].parameters()).add_(0.5)
    retriever.model.save_pretrained(other)
    Retriever.from_pretrained(other, features=written)  # another fusion does not matter
    with torch.no_grad():
        next(retriever.model.towers["video"].parameters()).add_(0.5)
    retriever.model.save_pretrained(other)
    with pytest.raises(ValueError, match="other settings: other weights or another configuration of the tower"):
        Retriever.from_pretrained(other, features=written)
    with pytest.raises(ValueError, match="other settings: other weights or another configuration of the tower"):
        TowerFeatures.from_pretrained(other).write("video", [dataset], written)

    path = Path(retrieval_model, "processor_config.json")
    settings = json.loads(path.read_text())
    settings["video_processor"] |= {"frame_sampling": "dense", "random_flip": True}
    shutil.copytree(retrieval_model, tmp_path / "dense", ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "dense/processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="other settings: frame_sampling 'uniform' there and 'dense' here"):
        Retriever.from_pretrained(tmp_path / "dense", features=written)
    with pytest.raises(ValueError, match="video_backend 'pyav' there and 'decord' here"):
        open_features(
            written, retriever_hash, Retriever.from_pretrained(retrieval_model).processor, video_backend="decord"
        )


@pytest.mark.parametrize(
    ("tower", "rows", "message"),
    [
        ("video", "audio\naudio/0.wav\n", "No row of the manifests has readable video"),
        ("video", "video\nfeatures.jsonl\n", "None of the clips can be read"),
    ],
)
def test_features_without_readable_clips_are_an_error(maker, clips, tmp_path, tower, rows, message):
    (tmp_path / "rows.csv").write_text(rows)
    dataset = RowDataset.from_manifest(tmp_path / "rows.csv", roots={"video": clips, "audio": clips}, modalities=())
    with pytest.raises(ValueError, match=message):
        maker.write(tower, [dataset], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_of_a_missing_tower_are_refused(maker, dataset, tmp_path):
    with pytest.raises(ValueError, match="This model has no smell tower; it has text, audio, video"):
        maker.write("smell", [dataset], tmp_path)
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        maker.write("video", [dataset], tmp_path, shard_size=0)
    with pytest.raises(ValueError, match="holds no features of this model's modalities"):
        read(tmp_path, maker)


def test_every_command_can_choose_the_decoder_that_features_were_made_with(
    retrieval_model, question_model, manifest, clips, tmp_path, capsys
):
    pytest.importorskip("decord")
    decoder = ("--video_backend", "decord")
    written, video = str(tmp_path / "features"), str(clips / "video/0.mp4")
    argv = ["features", retrieval_model, str(manifest), "--tower", "video", "--output", written, *decoder]
    assert main(argv) == 0
    search = ["search", retrieval_model, "a cat", str(manifest), "--features", written]
    assert main(search) == 2
    assert "video_backend 'decord' there and 'pyav' here" in capsys.readouterr().err
    assert main([*search, *decoder]) == 0
    assert main(["encode", retrieval_model, video, "--out", str(tmp_path / "out"), *decoder]) == 0
    assert main(["answer", question_model, "who is there?", video, *decoder]) == 0
