"""Clips that cannot be read: which count as wrong, which are left out, and which raise an error."""

import ctypes
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.cli import main
from simple_multimodal.data import bad_samples
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.scores import dual_softmax_scores
from simple_multimodal.inference import encoded, partial, pipeline
from simple_multimodal.inference.pipeline import cosine
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.pyav_backend import PyAVBackend
from simple_multimodal.models.pairs import ranking_scores
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.question_answering.evaluate import evaluate_answers
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS
from simple_multimodal.tasks.retrieval.evaluate import DUAL_SOFTMAX_TEMPERATURE, evaluate_retrieval
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Retriever
from tests.closeness import assert_close
from tests.inference.conftest import NUM_CLIPS, unseen, write_lines
from tests.inference.killed import infer_in_parts
from tests.processes import launch
from tests.training.tiny_run import CAPTIONS

BAD = 2
GOOD = [n for n in range(NUM_CLIPS) if n != BAD]
TASKS = ("msrvtt_ret", "msvd_qa")


@pytest.fixture(autouse=True)
def wait_for_no_file(monkeypatch):
    monkeypatch.setattr(bad_samples, "RETRY_SECONDS", (0.0,))


@pytest.fixture(scope="module")
def retriever(retrieval_model) -> Retriever:
    return Retriever.from_pretrained(retrieval_model, batch_size=2)


@pytest.fixture(scope="module")
def answerer(question_model) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(question_model, batch_size=2)


@pytest.fixture(scope="module")
def models(retrieval_model, question_model, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unseen")
    return {"msrvtt_ret": unseen(retrieval_model, folder / "0"), "msvd_qa": unseen(question_model, folder / "1")}


@pytest.fixture(scope="module")
def spoiled_data(data, tmp_path_factory) -> Path:
    """The benchmarks with a clip that is not a media file."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("spoiled") / "data")
    for task in TASKS:
        (folder / task / f"videos/{BAD}.mp4").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def folder(clips, tmp_path) -> Path:
    """The seven clips, one of them empty."""
    folder = shutil.copytree(clips / "video", tmp_path / "video")
    (folder / f"{BAD}.mp4").write_bytes(b"")
    return folder


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pipeline.logger, "warning", said.append)
    return said


def captioned(folder: Path, **roots) -> RowDataset:
    """The clips of a folder with their captions."""
    manifest = folder.parent / "captions.jsonl"
    write_lines(manifest, [{"video": f"{n}.mp4", "caption": caption} for n, caption in enumerate(CAPTIONS)])
    return RowDataset.from_manifest(manifest, roots={"video": folder}, cache_dir=folder.parent / "cache", **roots)


@pytest.fixture(scope="module")
def scores(retriever, clips) -> dict[str, np.ndarray]:
    """Cosines and matching scores `(captions, clips)` of the seven clips, all of which can be read."""
    index = retriever.index([clips / f"video/{n}.mp4" for n in range(NUM_CLIPS)])
    encoded = retriever.encode_texts(CAPTIONS)
    pairs = np.argwhere(np.ones((NUM_CLIPS, NUM_CLIPS)))
    logits = retriever.score(retriever.model.matching_logits, CAPTIONS, encoded, index.clips, pairs)
    cosines = cosine(encoded, index.embeds)
    matching = ranking_scores(retriever.model, logits, cosines.flatten()).reshape(NUM_CLIPS, NUM_CLIPS)
    return {"": cosines.numpy(), "matching_": matching.numpy()}


def ranks_by_hand(scores: np.ndarray) -> list[int]:
    """Return the ranks of the good clips among the good ones, and the last rank for the bad one."""
    return [
        1 + sum(scores[n, other] >= scores[n, n] for other in GOOD if other != n) if n != BAD else NUM_CLIPS
        for n in range(NUM_CLIPS)
    ]


def assert_ranks(metrics: dict, name: str, scores: np.ndarray) -> None:
    for direction, matrix in (("text_to_video", scores), ("video_to_text", scores.T)):
        ranks = ranks_by_hand(matrix)
        prefix = f"{name}{direction}_"
        assert metrics[f"{prefix}num_queries"] == metrics[f"{prefix}num_candidates"] == NUM_CLIPS
        assert metrics[f"{prefix}R@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert metrics[f"{prefix}mean_rank"] == pytest.approx(np.mean(ranks))


@pytest.mark.parametrize("kind", ["empty", "missing", "garbage"])
def test_a_bad_clip_ranks_last_in_retrieval(retriever, scores, folder, warnings, kind):
    file = folder / f"{BAD}.mp4"
    if kind == "missing":
        file.unlink()
    elif kind == "garbage":
        file.write_bytes(b"x" * 1000)
    measured = evaluate_retrieval(retriever, captioned(folder))
    for name in ("", "matching_"):
        assert_ranks(measured.metrics, name, scores[name])
    assert measured.counts == {"captions": 7, "clips": 7, "duplicate_captions": 0, "bad_samples": 1}
    (bad,) = measured.bad_samples
    assert (bad.row, bad.id, bad.file) == (BAD, str(BAD), str(file)) and str(file) in bad.reason
    assert warnings == [f"Bad sample: row {BAD} (id '{BAD}'): {bad.reason}"]
    rows = list(measured.rows)
    assert {(row["txt_id"], row["vid_id"]) for row in rows} == {(t, str(v)) for t in GOOD for v in GOOD}


def test_a_bad_clip_ranks_last_without_matching_and_with_dual_softmax(retriever, scores, folder):
    measured = evaluate_retrieval(
        retriever, captioned(folder), rerank_top_k=0, dual_softmax=True, num_results=NUM_CLIPS
    )
    expected = np.full((NUM_CLIPS, NUM_CLIPS), -np.inf)
    expected[np.ix_(GOOD, GOOD)] = dual_softmax_scores(
        scores[""][np.ix_(GOOD, GOOD)], temperature=DUAL_SOFTMAX_TEMPERATURE
    )
    assert_ranks(measured.metrics, "", expected)
    assert len(list(measured.rows)) == len(GOOD) ** 2


def test_a_row_is_bad_if_its_caption_cannot_be_read(retriever, scores, clips, tmp_path):
    for n, caption in enumerate(CAPTIONS):
        (tmp_path / f"{n}.txt").write_text("" if n == BAD else caption)
    manifest = tmp_path / "texts.jsonl"
    rows = [{"video": f"{n}.mp4", "text": f"{n}.txt"} for n in range(NUM_CLIPS)]
    write_lines(manifest, rows)
    roots = {"roots": {"video": clips / "video"}, "cache_dir": tmp_path / "cache"}
    measured = evaluate_retrieval(retriever, RowDataset.from_manifest(manifest, **roots))
    assert_ranks(measured.metrics, "matching_", scores["matching_"])
    assert measured.counts == {"captions": 7, "clips": 7, "duplicate_captions": 0, "bad_samples": 1}
    assert [sample.file for sample in measured.bad_samples] == [str(tmp_path / f"{BAD}.txt")]
    # Another row of its group can provide the clip, which is then a candidate.
    write_lines(
        manifest, [*rows, {"video": f"{BAD}.mp4", "caption": "a clip of its own", "group": f"video={BAD}.mp4"}]
    )
    measured = evaluate_retrieval(retriever, RowDataset.from_manifest(manifest, **roots))
    assert measured.counts == {"captions": 8, "clips": 7, "duplicate_captions": 0, "bad_samples": 1}
    written = {(row["txt_id"], row["vid_id"]) for row in measured.rows}
    assert len(written) == 49 and {text for text, _ in written} == {*GOOD, 7}


def test_a_question_about_a_bad_clip_counts_as_wrong(answerer, clips, folder, tmp_path, warnings):
    rows = [
        {"id": f"{n}{kind}", "video": f"{n}.mp4", "question": question, "answer": "cat", "answer_type": kind}
        for n in range(NUM_CLIPS)
        for kind, question in (("what", "what is it?"), ("who", "who is there?"))
    ]
    write_lines(tmp_path / "questions.jsonl", rows)

    def dataset(videos: Path) -> RowDataset:
        return RowDataset.from_manifest(
            tmp_path / "questions.jsonl",
            roots={"video": videos},
            cache_dir=tmp_path / "cache",
            **QUESTION_COLUMNS,
        )

    labels = answerer.answer_rows(dataset(clips / "video")).logits.argmax(dim=1)
    # Make the model's own answers the right ones, so that only the bad clip is wrong.
    write_lines(
        tmp_path / "questions.jsonl",
        [row | {"answer": answerer.model.config.id2label[int(n)]} for row, n in zip(rows, labels, strict=True)],
    )
    assert evaluate_answers(answerer, dataset(clips / "video")).metrics["accuracy"] == 1.0
    measured = evaluate_answers(answerer, dataset(folder))
    assert measured.metrics["accuracy"] == pytest.approx(6 / 7)
    assert measured.metrics["who_accuracy"] == pytest.approx(6 / 7)
    assert measured.counts == {"questions": 14, "clips": 7, "bad_samples": 1}
    assert [sample.id for sample in measured.bad_samples] == [f"{BAD}what"] and len(warnings) == 1
    answers = [row["answer"] for row in measured.rows]
    assert [n for n, answer in enumerate(answers) if answer == -1] == [2 * BAD, 2 * BAD + 1]


def infer(models, data: Path, out: Path, task: str, *flags: str) -> int:
    return main(["infer", models[task], str(data / task), "--output_dir", str(out), "--batch_size", "2", *flags])


@pytest.mark.parametrize("task", TASKS)
def test_a_measurement_lists_its_bad_clips(models, spoiled_data, tmp_path, capfd, task):
    assert infer(models, spoiled_data, tmp_path / "out", task) == 0
    assert "1 clips could not be read and count as wrong" in capfd.readouterr().err
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    file = str(spoiled_data / task / f"videos/{BAD}.mp4")
    assert written["counts"]["bad_samples"] == 1 and written["counts"]["clips"] == NUM_CLIPS
    (listed,) = written["bad_samples"]
    assert listed["file"] == file and file in listed["reason"] and set(listed) == {"id", "file", "reason"}


def test_saved_embeddings_keep_the_list_of_bad_clips(models, spoiled_data, tmp_path, monkeypatch):
    """A second measurement, which does not read clips, counts the same bad ones."""
    flags = ("--rerank_top_k", "0")
    assert infer(models, spoiled_data, tmp_path / "out", "msrvtt_ret", *flags) == 0
    first = (tmp_path / "out/metrics.json").read_bytes()
    assert b"bad_samples" in first
    monkeypatch.setattr(Retriever, "encode_rows", None)
    assert infer(models, spoiled_data, tmp_path / "out", "msrvtt_ret", *flags) == 0
    assert (tmp_path / "out/metrics.json").read_bytes() == first


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_keeps_the_list_of_bad_clips(models, spoiled_data, tmp_path, capfd, monkeypatch, task):
    """Bad clips found before the interruption still count for `--max_bad_fraction`."""
    monkeypatch.setattr(partial, "SECONDS_BETWEEN_FILES", 0)
    assert infer(models, spoiled_data, tmp_path / "whole", task) == 0
    plain, calls = encoded.encode_clips, []

    def interrupted(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(encoded, "encode_clips", interrupted)
        assert infer(models, spoiled_data, tmp_path / "out", task) == 130
        assert not (tmp_path / "out/metrics.json").exists()
        capfd.readouterr()
        assert infer(models, spoiled_data, tmp_path / "out", task, "--max_bad_fraction", "0.1") == 2
        assert "1 of 7 samples could not be read, more than --max_bad_fraction 0.1" in capfd.readouterr().err
        del calls[:2]  # resumes with the last batch of four
        assert infer(models, spoiled_data, tmp_path / "out", task) == 0
    assert len(calls) == 2
    for name in ("metrics.json", "results.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("task", "killed_at"), [pytest.param("msrvtt_ret", None, marks=pytest.mark.slow), ("msvd_qa", "pairs 1")]
)
def test_several_processes_compute_the_same_metrics(models, spoiled_data, tmp_path, monkeypatch, task, killed_at):
    """Also if they resume the work of a single process."""
    monkeypatch.setattr(pipeline, "PAIRS_PER_BATCH", 4)
    assert infer(models, spoiled_data, tmp_path / "one", task) == 0
    command = [models[task], str(spoiled_data / task), "--output_dir", str(tmp_path / "two"), "--batch_size", "2"]
    if killed_at is not None:
        assert launch(1, infer_in_parts, command, killed_at).returncode != 0
        assert len(list((tmp_path / "two/partial").glob("clips/*.parquet"))) == 4
    done = launch(2, infer_in_parts, command)
    assert done.returncode == 0 and done.stderr.count("could not be read and count as wrong") == 1, done.stderr
    assert done.stderr.count("Bad sample: ") == 1
    for name in ("metrics.json", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_too_many_bad_clips_are_an_error(models, spoiled_data, tmp_path, capfd, monkeypatch, task):
    out = tmp_path / "out"
    assert infer(models, spoiled_data, out, task, "--max_bad_fraction", "0.1") == 2
    assert "1 of 7 samples could not be read, more than --max_bad_fraction 0.1" in capfd.readouterr().err
    assert infer(models, spoiled_data, out, task, "--max_bad_fraction", "2") == 2
    assert "max_bad_fraction=2.0 is not a fraction; give a number from 0 to 1" in capfd.readouterr().err
    # A wrong folder is found without reading any file, instead of giving a metric of 0.
    monkeypatch.setattr(bad_samples.time, "sleep", None)
    command = ["infer", models[task], str(out / "manifests"), "--output_dir", str(out)]
    assert main([*command, "--video_root", str(tmp_path), "--max_bad_fraction", "1"]) == 2
    error = capfd.readouterr().err
    assert "7 of 7 samples could not be read; the last one" in error and "Check --video_root, or" in error
    assert not (out / "metrics.json").exists()
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    for n in range(NUM_CLIPS):
        (garbage / f"{n}.mp4").write_bytes(b"x" * 1000)
    assert main([*command, "--video_root", str(garbage), "--batch_size", "2"]) == 2  # stops reading early
    assert "2 of 7 samples could not be read, more than --max_bad_fraction 0.2" in capfd.readouterr().err


def test_a_folder_is_indexed_without_its_bad_files(retriever, folder, clips, tmp_path, warnings):
    names = [f"{n}.mp4" for n in GOOD]
    index = retriever.index(folder, saved=tmp_path / "embeddings")
    assert index.ids == names and index.groups == [str(folder / name) for name in names]
    assert len(warnings) == 1 and str(folder / f"{BAD}.mp4") in warnings[0]
    expected = retriever.index([clips / "video" / name for name in names])
    assert_close(index.embeds, expected.embeds)
    loaded = ClipIndex.load(tmp_path / "embeddings")
    assert loaded.ids == names and loaded.bad_samples == index.bad_samples
    assert [sample.id for sample in loaded.bad_samples] == [f"{BAD}.mp4"]
    found = retriever.search("a cat purrs", retriever.index(folder), top_k=9, rerank=9)
    assert sorted(match.id for match in found) == names
    # Once repaired, the clip is in the index.
    shutil.copy(clips / f"video/{BAD}.mp4", folder)
    assert len(retriever.index(folder, saved=tmp_path / "embeddings").ids) == NUM_CLIPS
    with pytest.raises(ValueError, match="5 of 7 samples could not be read"):
        for name in names[:5]:
            (folder / name).unlink()
            (folder / name).touch()
        Retriever(retriever.model, retriever.processor).index(folder)


def test_a_bad_file_that_is_given_by_name_is_an_error(retriever, answerer, folder, clips, monkeypatch):
    bad, good = folder / f"{BAD}.mp4", folder / "0.mp4"
    for clip in (bad, [bad, good]):
        with pytest.raises(MediaError, match="is empty"):
            retriever.index(clip)
    with pytest.raises(MediaError, match="is empty"):
        answerer.answer("who is there?", bad)
    # A file that can be opened but not decoded.

    def refuse(*args):
        raise MediaError("the frame is broken")

    monkeypatch.setattr(PyAVBackend, "frames", refuse)
    with pytest.raises(MediaError, match=r"row 0 .*: the frame is broken"):
        retriever.index(good)
    with pytest.raises(MediaError, match=r"row 0 .*: the frame is broken"):
        Retriever(retriever.model, retriever.processor, num_workers=1).index(good)
    with pytest.raises(MediaError, match=r"row 0 .*: the frame is broken"):
        answerer.answer("who is there?", good)


def test_commands_skip_bad_files_of_a_folder(retrieval_model, question_model, folder, tmp_path, capfd):
    bad, out = str(folder / f"{BAD}.mp4"), str(tmp_path / "out")
    assert main(["encode", retrieval_model, str(folder), "--out", out]) == 0
    assert "6 clips (1 could not be read, left out)" in capfd.readouterr().out
    assert main(["search", retrieval_model, "a cat", str(folder)]) == 0
    assert len(capfd.readouterr().out.strip().splitlines()) == 6
    assert main(["answer", question_model, "who is there?", str(folder)]) == 0
    answered = [json.loads(line)["clip"] for line in capfd.readouterr().out.strip().splitlines()]
    assert answered == [f"{n}.mp4" for n in GOOD]
    for command in (
        ["encode", retrieval_model, bad, "--out", out],
        ["search", retrieval_model, "a cat", bad],
        ["answer", question_model, "who is there?", bad],
    ):
        assert main(command) == 2
        error = capfd.readouterr().err
        assert f"{bad!r}: the file is empty" in error and error.count("\n") == 1


def test_a_clip_that_crashes_the_decoder_is_bad(retriever, clips, monkeypatch, warnings):
    original = PyAVBackend.frames

    def frames(self, path, *args, **kwargs):
        if Path(path).stem == str(BAD):
            ctypes.string_at(0)
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(PyAVBackend, "frames", frames)
    with_worker = Retriever(retriever.model, retriever.processor, batch_size=2, num_workers=1)
    index = with_worker.index(clips / "video")
    assert index.ids == [f"{n}.mp4" for n in GOOD]
    assert "its decoder crashed (SIGSEGV)" in index.bad_samples[0].reason and len(warnings) == 1


def test_a_time_limit_needs_worker_processes(retriever):
    for num_workers, seconds in ((0, 0.0), (1, 120.0)):
        pipeline = Retriever(retriever.model, retriever.processor, num_workers=num_workers)
        assert pipeline._reader(pipeline.collator).timeout_seconds == seconds


def test_files_of_dropped_modalities_need_not_exist(retriever, folder):
    for n in range(NUM_CLIPS):
        (folder / f"{n}.mp4").unlink()
    without = Retriever(retriever.model, retriever.processor, drop_modalities=("audio", "video"))
    assert len(without.index(captioned(folder)).ids) == NUM_CLIPS
