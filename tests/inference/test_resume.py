"""Resuming interrupted inference: finished work is not repeated, and the result files are the same."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from simple_multimodal.cli import main
from simple_multimodal.data.store import Unreadable
from simple_multimodal.inference import encoded, partial, pipeline
from simple_multimodal.inference.partial import Partial
from simple_multimodal.tasks import measure
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.inference.conftest import NUM_CLIPS, unseen
from tests.inference.killed import infer_in_parts
from tests.processes import launch
from tests.streams import Stream

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = ("msrvtt_ret", "msvd_qa")
NUM_BATCHES = 4  # of two clips
NUM_BLOCKS = {
    "msrvtt_ret": 14,
    "msvd_qa": 4,
}  # of four pairs: 7 x 4 and 7 x 3 captions of a clip; two clips' questions


class Interrupted(Exception):
    """An exception that stands for anything that ends a process."""


class Work:
    """Counts batches of the towers and blocks of the fusion, and interrupts at one of them."""

    def __init__(self, monkeypatch):
        self.counts = {"clips": 0, "pairs": 0}
        self.ends_at: tuple[str, int] | None = None
        self._watch(monkeypatch, encoded, "encode_clips", "clips")
        self._watch(monkeypatch, MultimodalForPreTraining, "matching_logits", "pairs")
        self._watch(monkeypatch, MultimodalForQuestionAnswering, "answer_logits", "pairs")

    def _watch(self, monkeypatch, owner, name, stage):
        plain = getattr(owner, name)

        def counted(*args):
            if self.ends_at == (stage, self.counts[stage]):
                raise Interrupted
            self.counts[stage] += 1
            return plain(*args)

        monkeypatch.setattr(owner, name, counted)

    def of(self, run) -> tuple[int, int]:
        self.counts.update(clips=0, pairs=0)
        run()
        return self.counts["clips"], self.counts["pairs"]


@pytest.fixture
def work(monkeypatch) -> Work:
    monkeypatch.setattr(pipeline, "PAIRS_PER_BATCH", 4)
    monkeypatch.setattr(partial, "SECONDS_BETWEEN_FILES", 0)
    return Work(monkeypatch)


@pytest.fixture(scope="module")
def models(retrieval_model, question_model, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unseen")
    return {
        task: unseen(model, folder / task)
        for task, model in zip(TASKS, (retrieval_model, question_model), strict=True)
    }


@pytest.fixture(scope="module")
def whole(models, data, tmp_path_factory) -> dict[str, Path]:
    """Results of uninterrupted runs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pipeline, "PAIRS_PER_BATCH", 4)
        for task in TASKS:
            assert infer(models[task], data / task, folder / task) == 0
    return {task: folder / task for task in TASKS}


def infer(model: str, data: Path, out: Path) -> int:
    return main(["infer", model, str(data), "--output_dir", str(out), "--batch_size", "2"])


def assert_same_files(out: Path, expected: Path) -> None:
    for name in ("metrics.json", "results.json"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert not (out / "partial").exists()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("stage", "number"), [("clips", 0), ("clips", 3), ("pairs", 0), ("pairs", 2), ("end", 0)])
def test_an_interrupted_run_resumes(work, models, data, whole, tmp_path, monkeypatch, task, stage, number):
    out = tmp_path / "out"
    with monkeypatch.context() as ended:
        work.ends_at = stage, number
        if stage == "end":  # after everything is computed, when one of the two files is written
            ended.setattr(measure, "write_metrics", lambda *args, **further: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            infer(models[task], data / task, out)
    work.ends_at = None
    finished = {"clips": (number, 0), "pairs": (NUM_BATCHES, number), "end": (NUM_BATCHES, NUM_BLOCKS[task])}[stage]
    again = work.of(lambda: infer(models[task], data / task, out))
    assert again == (NUM_BATCHES - finished[0], NUM_BLOCKS[task] - finished[1])
    assert_same_files(out, whole[task])


def test_a_killed_process_leaves_its_finished_parts(work, models, data, whole, tmp_path):
    """A part that it was writing when it was killed does not count as finished."""
    task, out = "msrvtt_ret", tmp_path / "out"
    command = [models[task], str(data / task), "--output_dir", str(out), "--batch_size", "2"]
    killed = launch(1, infer_in_parts, command, "pairs 5")
    assert killed.returncode == -signal.SIGKILL and not (out / "results.json").exists()
    pairs = out / "partial/pairs"
    (pairs / ".00005.safetensors.1.2.tmp").write_bytes((pairs / "00004.safetensors").read_bytes()[:-1])
    (pairs / "00005.parquet").write_bytes((pairs / "00004.parquet").read_bytes())
    assert work.of(lambda: infer(models[task], data / task, out)) == (0, NUM_BLOCKS[task] - 5)
    assert_same_files(out, whole[task])


@pytest.fixture
def interrupted(work, models, data, tmp_path) -> Path:
    """A retrieval run that ended after all clips and six blocks."""
    work.ends_at = "pairs", 6
    with pytest.raises(Interrupted):
        infer(models["msrvtt_ret"], data / "msrvtt_ret", tmp_path / "out")
    work.ends_at = None
    return tmp_path / "out"


def test_finished_parts_of_another_model_are_not_used(work, interrupted, models, data, whole, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models["msrvtt_ret"], other)
    retriever = Retriever.from_pretrained(other)
    with torch.no_grad():
        retriever.model.matching_head.weight[1].add_(0.5)
    retriever.model.save_pretrained(other)
    run = work.of(lambda: infer(str(other), data / "msrvtt_ret", interrupted))
    assert run == (NUM_BATCHES, NUM_BLOCKS["msrvtt_ret"])
    infer(str(other), data / "msrvtt_ret", tmp_path / "expected")
    assert_same_files(interrupted, tmp_path / "expected")
    assert (interrupted / "results.json").read_bytes() != (whole["msrvtt_ret"] / "results.json").read_bytes()


def test_only_parts_that_depend_on_a_change_are_computed_again(work, interrupted, models, data, monkeypatch):
    """First the pairs of the clips change, then their batches."""
    monkeypatch.setattr(pipeline, "PAIRS_PER_BATCH", 3)
    work.ends_at = "pairs", 2
    with pytest.raises(Interrupted):
        work.of(lambda: infer(models["msrvtt_ret"], data / "msrvtt_ret", interrupted))
    assert work.counts == {"clips": 0, "pairs": 2}
    assert sorted(path.stem for path in (interrupted / "partial/pairs").glob("*.safetensors")) == ["00000", "00001"]
    work.ends_at = "pairs", 0
    argv = ["infer", models["msrvtt_ret"], str(data / "msrvtt_ret"), "--output_dir", str(interrupted)]
    with pytest.raises(Interrupted):
        work.of(lambda: main([*argv, "--batch_size", "4"]))
    assert work.counts["clips"] == 2


def test_only_the_part_of_a_damaged_file_is_computed_again(work, interrupted, models, data, whole):
    path = interrupted / "partial/pairs/00002.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    (interrupted / "partial/clips/00001.safetensors").write_bytes(b"")
    run = work.of(lambda: infer(models["msrvtt_ret"], data / "msrvtt_ret", interrupted))
    assert run == (1, NUM_BLOCKS["msrvtt_ret"] - 5)
    assert_same_files(interrupted, whole["msrvtt_ret"])


def test_progress_bars_start_where_the_run_resumes(interrupted, models, data, monkeypatch):
    terminal = Stream(True)
    monkeypatch.setattr(sys, "stderr", terminal)
    infer(models["msrvtt_ret"], data / "msrvtt_ret", interrupted)
    bars = terminal.getvalue()
    assert f"{NUM_CLIPS}/{NUM_CLIPS} [" in bars and "24/49 [" in bars and "49/49 [" in bars and "| 0/" not in bars


def test_an_interrupted_index_with_saved_embeddings_resumes(work, models, clips, tmp_path):
    argv = ["encode", models["msrvtt_ret"], str(clips / "video"), "--batch_size", "2"]
    assert main([*argv, "--out", str(tmp_path / "expected")]) == 0
    work.ends_at, work.counts["clips"] = ("clips", 3), 0
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        main([*argv, "--out", str(out)])
    work.ends_at = None
    assert not out.exists() and work.of(lambda: main([*argv, "--out", str(out)]))[0] == 1
    for path in (tmp_path / "expected").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "out"}


def test_parts_are_written_together(tmp_path):
    """A file per part would mean tens of thousands of files."""
    parts = Partial(tmp_path, "pairs", "key")
    values = {number: torch.full((number, 1), float(number)) for number in range(3)}
    for number, value in values.items():
        parts.add(number, [{"outputs": value}, Unreadable("file", f"reason {number}")])
    assert list(tmp_path.iterdir()) == []
    parts.flush()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00000.parquet", "00000.safetensors"]
    finished = Partial(tmp_path, "pairs", "key").finished
    assert sorted(finished) == [0, 1, 2]
    for number, (content, bad) in finished.items():
        assert torch.equal(content["outputs"], values[number]) and bad == Unreadable("file", f"reason {number}")
        assert content["outputs"].untyped_storage().nbytes() == 4 * number  # nothing else is sent with it
    assert Partial(tmp_path, "clips", "other key").finished == {} and len(list(tmp_path.rglob("*.*"))) == 2
    assert Partial(tmp_path, "pairs", "other key").finished == {} and list(tmp_path.rglob("*.*")) == []
    assert Partial(None, "pairs", "key").finished == {}
