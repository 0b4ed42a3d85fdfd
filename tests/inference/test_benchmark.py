"""Measuring models on prepared benchmarks with the `infer` command."""

import ast
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference import pipeline
from simple_multimodal.tasks.retrieval.evaluate import evaluate_retrieval
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Retriever
from tests.inference.conftest import NUM_CLIPS, unseen, write_lines
from tests.inference.killed import infer_in_parts
from tests.processes import launch
from tests.training import tiny_run
from tests.training.tiny_run import CAPTIONS

REPOSITORY = Path(__file__).resolve().parents[2]


def infer(capfd, *argv: str) -> tuple[int, dict]:
    code = main(["infer", *argv])
    printed = capfd.readouterr().out.strip().splitlines()
    return code, ast.literal_eval(printed[-1]) if printed else {}


def test_retrieval_prints_the_reference_literal_and_writes_results(retrieval_model, data, tmp_path, capfd):
    model = unseen(retrieval_model, tmp_path)
    code, printed = infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out"))
    assert code == 0 and set(printed["text2video"]) == {"r1", "r5", "r10", "medianR", "meanR"}
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (
        written["protocol"].startswith("msrvtt-1ka-9k") and written["primary_metric"] == "matching_text_to_video_R@1"
    )
    assert written["counts"] == {"captions": NUM_CLIPS, "clips": NUM_CLIPS, "duplicate_captions": 0}
    assert written["audio_crop"] == "of longer audio the middle 3.84 seconds"  # six windows of 64 spectrogram frames
    deviation = "test: the annotations list 7 clips and 7 captions, msrvtt-1ka-9k has 1000 and 1000"
    assert written["protocol"].startswith("msrvtt-1ka-9k+") and "+deviating" in written["protocol"]
    assert written["deviations"] == [deviation]
    assert printed["text2video"]["r1"] == round(100 * written["metrics"]["matching_text_to_video_R@1"], 2)
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert len(rows) == NUM_CLIPS**2 and set(rows[0]) == {"vid_id", "txt_id", "score", "sim"}
    # Without matching, embeddings are saved and reused.
    again = [model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out"), "--rerank_top_k", "0"]
    infer(capfd, *again)
    saved = tmp_path / "out/embeddings/index.json"
    before = saved.stat().st_mtime_ns
    _, printed = infer(capfd, *again)
    assert saved.stat().st_mtime_ns == before
    embeddings = json.loads((tmp_path / "out/metrics.json").read_text())
    assert embeddings["primary_metric"] == "text_to_video_R@1"
    assert embeddings["metrics"]["text_to_video_R@1"] == written["metrics"]["text_to_video_R@1"]


def test_a_prepared_folder_prints_a_table_of_the_main_metrics(retrieval_model, data, tmp_path, capfd):
    model, videos = unseen(retrieval_model, tmp_path), str(data / "msrvtt_ret/videos")
    infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out"))
    arguments = [str(tmp_path / "out/manifests"), "--video_root", videos, "--output_dir", str(tmp_path / "again")]
    assert main(["infer", model, *arguments]) == 0
    printed = capfd.readouterr()
    title, head, first, *_ = printed.out.splitlines()
    assert title.startswith("msrvtt-1ka-9k") and f"{NUM_CLIPS} captions, {NUM_CLIPS} clips" in title
    assert head.split() == ["value", "95", "%", "interval", "chance"] and first.split()[-1] == "0.14"  # one of seven
    assert "text2video" not in printed.out
    results = [str(tmp_path / f"again/{name}.json") for name in ("metrics", "results")]
    assert printed.err.splitlines()[-1] == f"Results: {', '.join(results)}"


def test_the_name_of_the_protocol_includes_everything_that_changes_the_meaning(retrieval_model, data, tmp_path, capfd):
    model = unseen(retrieval_model, tmp_path)
    flags = ["--output_dir", str(tmp_path / "out"), "--rerank_top_k", "2", "--dsl"]
    infer(capfd, model, str(data / "msrvtt_ret"), *flags)
    assert "+rerank2+dsl" in json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]
    code, _ = infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "alpro"), "--alpro")
    assert code == 0 and json.loads((tmp_path / "alpro/metrics.json").read_text())["protocol"].startswith("alpro")


@pytest.mark.parametrize(
    ("saved", "prefix", "warning"),
    [
        ({"rerank_top_k": 3}, "matching_", None),  # better on the validation split
        ({"rerank_top_k": 0}, "", "was not better on the validation split"),
        ({"rerank_top_k": None}, "", "was not measured on the validation split"),
        ({"rerank_top_k": None, "matching_residual": False}, "matching_", None),  # saved by an earlier version
    ],
)
def test_matching_ranks_by_default_only_if_it_was_better(
    retrieval_model, data, tmp_path, caplog, saved, prefix, warning
):
    model = Path(unseen(retrieval_model, tmp_path))
    config = json.loads((model / "config.json").read_text())
    assert config["matching_residual"] and config["rerank_top_k"] is not None  # as `train.py` leaves it
    (model / "config.json").write_text(json.dumps(config | saved))
    assert main(["infer", str(model), str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["primary_metric"] == f"{prefix}text_to_video_R@1" and "+rerank" not in written["protocol"]
    warned = [record.getMessage() for record in caplog.records if "ranked by cosine alone" in record.getMessage()]
    assert len(warned) == (warning is not None)
    assert all(warning in message and "`rerank_top_k`" in message for message in warned)


def test_testing_on_training_clips_is_refused(retrieval_model, data, clips, tmp_path, capfd):
    assert set(json.loads(Path(retrieval_model, "training_clips.json").read_text())["clips"]) >= {"0", "6"}
    code = main(["infer", retrieval_model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert code == 2 and "7 of the 7 test clips" in error and f": 0 ({clips}/video/0.mp4), 1 (" in error


def test_questions_print_the_reference_literal(question_model, data, tmp_path, capfd):
    model = unseen(question_model, tmp_path)
    code, printed = infer(capfd, model, str(data / "msvd_qa"), "--output_dir", str(tmp_path / "out"))
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert code == 0 and printed["overall_acc"] == round(100 * written["metrics"]["accuracy"], 2)
    ratios = {kind: ratio for kind, ratio in printed["ratios"].items() if ratio[1]}
    assert ratios == {"what_ratio": [50.0, NUM_CLIPS], "who_ratio": [50.0, NUM_CLIPS]}
    assert written["metrics"]["question_only_accuracy"] == (NUM_CLIPS + 1) / (2 * NUM_CLIPS)  # "cat", and "0" once
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["question_id"] for row in rows] == list(range(2 * NUM_CLIPS))
    # The reference's eight processes counted two questions twice.
    _, printed = infer(capfd, model, str(data / "msvd_qa"), "--output_dir", str(tmp_path / "alpro"), "--alpro")
    assert sum(count for _, count in printed["ratios"].values()) == 16


@pytest.mark.parametrize(
    ("task", "killed_at", "killed_processes", "num_processes"),
    [
        ("msrvtt_ret", None, 0, 2),
        pytest.param("msvd_qa", None, 0, 3, marks=pytest.mark.slow),
        pytest.param(
            "msrvtt_ret", "pairs 7", 2, 3, marks=pytest.mark.slow
        ),  # after all clips, and pairs of both processes
        ("msvd_qa", "clips 3", 3, 2),  # of the first process, after its clips 0, and some of the others
    ],
)
def test_several_processes_compute_the_same_metrics(
    request, data, tmp_path, capfd, monkeypatch, task, killed_at, killed_processes, num_processes
):
    """Also if they resume after a kill with a different number of processes."""
    model = request.getfixturevalue("retrieval_model" if task == "msrvtt_ret" else "question_model")
    model, arguments = unseen(model, tmp_path), [str(data / task), "--output_dir"]
    monkeypatch.setattr(pipeline, "PAIRS_PER_BATCH", 4)
    infer(capfd, model, *arguments, str(tmp_path / "one"), "--batch_size", "2")
    several = tmp_path / "several"
    command = [model, *arguments, str(several), "--batch_size", "2"]
    if killed_at is not None:
        killed = launch(killed_processes, infer_in_parts, command, killed_at)
        assert killed.returncode != 0 and not (several / "metrics.json").exists()
        left = [path.parent.name for path in (several / "partial").glob("*/*.safetensors")]
        assert left.count("clips") == 4 if task == "msrvtt_ret" else 1 <= left.count("clips") < 4
        assert ("pairs" in left) == (task == "msrvtt_ret")
    done = launch(num_processes, infer_in_parts, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("95 % interval") == 1  # from one process only, so they worked together
    for name in ("metrics.json", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (several / name).read_bytes()
    assert not (several / "partial").exists()


def test_several_captions_of_a_clip_are_all_queries(retrieval_model, clips, tmp_path):
    manifest = tmp_path / "several.jsonl"
    write_lines(manifest, [{"video": f"{n}.mp4", "captions": ["a cat", f"clip {n}"]} for n in range(3)])
    dataset = RowDataset.from_manifest(manifest, roots={"video": clips / "video"})
    measured = evaluate_retrieval(Retriever.from_pretrained(retrieval_model), dataset)
    assert measured.counts == {"captions": 6, "clips": 3, "duplicate_captions": 3}
    assert measured.metrics["text_to_video_num_queries"] == 6 and measured.metrics["video_to_text_num_queries"] == 3


def ranks_of(retriever: Retriever, index: ClipIndex, captions: list[str], first: int) -> np.ndarray:
    """Return the rank of clip `n` for caption `n` in a search with re-ranking; there are no ties."""
    found = retriever.search(captions, index, top_k=len(captions), rerank=first)
    return np.array([1 + [match.id for match in some].index(index.ids[n]) for n, some in enumerate(found)])


def test_compare_rerank_reports_changes(retrieval_model, data, clips, tmp_path, capfd, monkeypatch):
    model = unseen(retrieval_model, tmp_path)
    config = Path(model, "config.json")  # rank by the head alone, which differs from the cosine
    config.write_text(json.dumps(json.loads(config.read_text()) | {"matching_residual": False}))
    scored = []
    plain = Retriever.score
    monkeypatch.setattr(Retriever, "score", lambda *args, **keys: scored.append(len(args[5])) or plain(*args, **keys))

    def metrics(name: str, *flags: str) -> dict:
        folder = tmp_path / name
        assert infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(folder), *flags)[0] == 0
        return json.loads((folder / "metrics.json").read_text())

    every, two = metrics("every", "--rerank_top_k", "all"), metrics("two", "--rerank_top_k", "2")
    assert scored[0] == NUM_CLIPS**2 and scored[1] < scored[0]
    measured = metrics("measured", "--rerank_top_k", "2", "--compare_rerank")
    assert scored[2:] == [NUM_CLIPS**2]  # each pair once
    changes = {name: value for name, value in measured["metrics"].items() if name.endswith("_change")}
    assert len(changes) == 10 and set(changes) < set(measured["intervals"])
    for name, change in changes.items():
        name = name.removesuffix("_change")
        assert change == pytest.approx(two["metrics"][name] - every["metrics"][name])
    assert {name: v for name, v in measured["metrics"].items() if name not in changes} == two["metrics"]
    assert measured["protocol"] == two["protocol"] and "+rerank2" in two["protocol"]
    assert len(json.loads((tmp_path / "measured/results.json").read_text())) == NUM_CLIPS**2
    # The expected ranks come from searches with re-ranking.
    retriever = Retriever.from_pretrained(model)
    index = retriever.index([clips / f"video/{n}.mp4" for n in range(NUM_CLIPS)])
    before, after = (ranks_of(retriever, index, CAPTIONS, first) for first in (NUM_CLIPS, 2))
    assert changes["matching_text_to_video_mean_rank_change"] == pytest.approx(after.mean() - before.mean())
    assert changes["matching_text_to_video_R@1_change"] == pytest.approx((after == 1).mean() - (before == 1).mean())
    assert (before != after).any()


def test_rows_without_a_clip_are_left_out_and_one_group_is_one_candidate(retrieval_model, clips, tmp_path):
    manifest = tmp_path / "rows.jsonl"
    rows = [
        {"id": "a", "video": "0.mp4", "caption": "a cat", "group": "first"},
        {"id": "b", "video": "1.mp4", "caption": "two dogs", "group": "first"},  # the same clip in another file
        {"id": "c", "video": "2.mp4", "caption": "rain"},
        {"id": "d", "video": "2.mp4", "caption": "more rain", "group": "other"},  # a file under two names
        {"id": "e", "caption": "nothing to be seen"},
    ]
    write_lines(manifest, rows)
    dataset = RowDataset.from_manifest(manifest, roots={"video": clips / "video"})
    measured = evaluate_retrieval(Retriever.from_pretrained(retrieval_model), dataset)
    assert measured.counts == {"captions": 4, "clips": 3, "duplicate_captions": 0, "rows_without_clip": 1}
    assert [row["vid_id"] for row in measured.rows] == [name for name in "acd" for _ in range(4)]
    assert measured.metrics["matching_text_to_video_num_candidates"] == 3
    write_lines(manifest, rows[-1:])
    with pytest.raises(ValueError, match=r"rows\.jsonl: no row has both a clip and a caption"):
        alone = RowDataset.from_manifest(manifest, roots={"video": clips / "video"}, modalities=("text",))
        evaluate_retrieval(Retriever.from_pretrained(retrieval_model), alone)


def test_only_first_candidates_have_result_rows_without_matching(retrieval_model, clips, tmp_path):
    """All pairs of a large benchmark would take many gigabytes."""
    dataset = RowDataset.from_manifest(clips / "train.csv", roots={n: clips / n for n in ("audio", "text", "video")})
    retriever = Retriever.from_pretrained(retrieval_model)
    with pytest.raises(ValueError, match=r"0 \(no matching\) or more, got -1"):
        evaluate_retrieval(retriever, dataset, rerank_top_k=-1)
    every = list(evaluate_retrieval(retriever, dataset, rerank_top_k=0).rows)
    some = evaluate_retrieval(retriever, dataset, rerank_top_k=0, num_results=1)
    assert len(every) == NUM_CLIPS**2 and all(row["score"] == row["sim"] for row in every)
    best = {max((row for row in every if row[key] == value), key=lambda row: row["sim"])["sim"]
            for key in ("vid_id", "txt_id") for value in {row[key] for row in every}}  # fmt: skip
    assert {row["sim"] for row in some.rows} == best


def test_errors_name_invalid_input(retrieval_model, question_model, data, tmp_path, capfd):
    outs = (tmp_path / f"out{number}" for number in range(99))

    def error(*argv: str) -> str:
        assert main([*argv, "--output_dir", str(next(outs))]) == 2
        return capfd.readouterr().err

    retrieval = ("infer", unseen(retrieval_model, tmp_path / "retrieval"), str(data / "msrvtt_ret"))
    answering = ("infer", unseen(question_model, tmp_path / "answering"), str(data / "msvd_qa"))
    assert "was not written by `simple-multimodal prepare`" in error("infer", retrieval_model, str(tmp_path))
    assert "a model of another task" in error("infer", question_model, str(data / "msrvtt_ret"))
    assert "a model of another task" in error("infer", retrieval_model, str(data / "msvd_qa"))
    absent = error("infer", retrieval_model, str(data / "msrvtt_ret"), "--split", "validation")
    assert "has no validation split" in absent
    assert "compare_rerank needs rerank_top_k" in error(*retrieval, "--compare_rerank")
    assert "--rerank_top_k is -1; give 0 (no re-ranking) or more." in error(*retrieval, "--rerank_top_k", "-1")
    with pytest.raises(SystemExit):
        error(*retrieval, "--rerank_top_k", "few")
    assert "--rerank_top_k: 'few' is neither a number nor 'all'" in capfd.readouterr().err
    refused = error(*answering, "--rerank_top_k", "3")
    assert "--rerank_top_k is an option of --task pretraining or retrieval, and would be ignored" in refused
    shutil.copytree(data / "msvd_qa", tmp_path / "msvd_qa")
    listed = tmp_path / "msvd_qa/txt/test.jsonl"
    listed.write_text(listed.read_text().replace('"answer_type": "who"', '"answer_type": "whose"'))
    assert "ALPRO knows the answer types what, who, how, where, when; got 'whose'" in error(
        *answering[:2], str(tmp_path / "msvd_qa"), "--alpro"
    )
    prepared = tmp_path / "prepared"
    shutil.copytree(tmp_path / "out1/manifests", prepared)  # from the second call above
    row = (prepared / "test.jsonl").read_text().splitlines()[0]
    (prepared / "test.jsonl").write_text(f"{row}\n{row}\n")
    twice = error(*retrieval[:2], str(prepared), "--video_root", str(data / "msrvtt_ret/videos"))
    assert "test.jsonl, line 2: the id '0' occurred before, in line 1" in twice


def test_every_command_refuses_models_of_another_task(retrieval_model, question_model, clips, tmp_path, capfd):
    clip = str(clips / "video/0.mp4")
    embeddings = "embeddings, which only models of --task pretraining or --task retrieval have."
    for remedy, argv in (
        (embeddings, ["search", question_model, "a cat", clip]),
        (embeddings, ["encode", question_model, clip, "--out", str(tmp_path / "out")]),
        ("which only models of --task question_answering have.", ["answer", retrieval_model, "who is there?", clip]),
    ):
        assert main(argv) == 2
        error = capfd.readouterr().err
        assert "a model of another task" in error and remedy in error and error.count("\n") == 1


class Malicious:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_code_in_a_file_of_weights_is_refused_and_not_run(retrieval_model, clips, tmp_path, capfd, kind):
    trace, folder = tmp_path / "trace", Path(unseen(retrieval_model, tmp_path))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    payload = {**weights, "more": Malicious(trace)}
    torch.save(payload, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "zip")
    assert main(["search", str(folder), "a cat", str(clips / "video")]) == 2
    error = capfd.readouterr().err
    assert str(folder) in error and "no file named model.safetensors" in error and error.count("\n") == 1
    training = tiny_run.flags("--use_cpu", model_name_or_path=folder, task="retrieval", output_dir=tmp_path / "out")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        tiny_run.run(*tiny_run.data_flags(clips), *training)
    assert not trace.exists()


def test_commands_encode_clips_search_them_and_answer_questions(
    retrieval_model, question_model, clips, tmp_path, capfd
):
    def lines(*argv: str) -> list[dict]:
        assert main(list(argv)) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]

    index = str(tmp_path / "embeddings")
    assert main(["encode", retrieval_model, str(clips / "video"), "--out", index]) == 0
    assert capfd.readouterr().out.strip().endswith("7 clips")
    found = lines("search", retrieval_model, "a cat purrs", index, "--top_k", "3")
    direct = lines("search", retrieval_model, "a cat purrs", str(clips / "video"), "--top_k", "3")
    # Encoded in other batches: the last of the six printed digits may differ.
    assert len(found) == 3 and found == [{**m, "score": pytest.approx(m["score"], abs=1e-5)} for m in direct]
    reranked = lines("search", retrieval_model, "a cat purrs", str(clips / "video/0.mp4"), str(clips / "video/1.mp4"),
                     "--rerank", "2")  # fmt: skip
    assert all(match["matching"] is not None for match in reranked)
    answers = lines("answer", question_model, "who is there?", str(clips / "video/0.mp4"), "--top_k", "2")
    assert len(answers) == 1 and len(answers[0]["answers"]) == 2
