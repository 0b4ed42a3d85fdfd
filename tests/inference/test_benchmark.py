"""Tests of measuring models on prepared benchmarks, by the scripts' command."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simple_multimodal.cli import main
from simple_multimodal.data.manifest import MultimodalDataset
from simple_multimodal.inference import Retriever
from simple_multimodal.inference.benchmark import measure_retrieval
from tests.training.tiny_run import CAPTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_CLIPS = 7  # which neither 2 nor 3 divides


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory) -> Path:
    """`msrvtt_ret` and `msvd_qa` in ALPRO's layout, over the seven clips."""
    folder = tmp_path_factory.mktemp("benchmarks") / "data"
    rows = [{"caption": caption, "clip_name": str(n)} for n, caption in enumerate(CAPTIONS)]
    write_lines(folder / "msrvtt_ret/txt/test.jsonl", rows)
    questions = [
        {"question": question, "answer": answer, "video_id": str(n), "answer_type": question.partition(" ")[0]}
        for n in range(NUM_CLIPS)
        for question, answer in (("who is there?", "cat"), ("what is it?", str(n)))
    ]
    write_lines(folder / "msvd_qa/txt/test.jsonl", questions)
    write_lines(folder / "msvd_qa/txt/train.jsonl", [{**row, "video_id": "7"} for row in questions[:3]])
    for task in ("msrvtt_ret", "msvd_qa"):
        shutil.copytree(clips / "video", folder / task / "videos")
        shutil.copy(clips / "video/0.mp4", folder / task / "videos/7.mp4")
    return folder


def unseen(model: str, folder: Path) -> str:
    """A copy of a model that does not know what it was trained on."""
    shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns("checkpoint-*", "training_clips.json"))
    return str(folder / "model")


def infer(capfd, *argv: str) -> tuple[int, dict]:
    code = main(["infer", *argv])
    printed = capfd.readouterr().out.strip().splitlines()
    return code, ast.literal_eval(printed[-1]) if printed else {}


def test_retrieval_prints_the_reference_literal_and_writes_results(retrieval_model, data, tmp_path, capfd):
    model = unseen(retrieval_model, tmp_path)
    code, printed = infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out"))
    assert code == 0 and set(printed["text2video"]) == {"r1", "r5", "r10", "medianR", "meanR"}
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["protocol"].startswith("msrvtt-1ka-9k") and written["headline"] == "matching_text_to_video_R@1"
    assert written["counts"] == {"captions": NUM_CLIPS, "clips": NUM_CLIPS, "duplicate_captions": 0}
    assert printed["text2video"]["r1"] == round(100 * written["metrics"]["matching_text_to_video_R@1"], 2)
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert len(rows) == NUM_CLIPS**2 and set(rows[0]) == {"vid_id", "txt_id", "score", "sim"}
    assert all(0 <= row["score"] <= 1 for row in rows)
    # Without matching the embeddings are kept and used again.
    again = [model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out"), "--matching_top_k", "0"]
    infer(capfd, *again)
    saved = tmp_path / "out/clips.safetensors"
    before = saved.stat().st_mtime_ns
    _, printed = infer(capfd, *again)
    assert saved.stat().st_mtime_ns == before
    embeddings = json.loads((tmp_path / "out/metrics.json").read_text())
    assert embeddings["headline"] == "text_to_video_R@1"
    assert embeddings["metrics"]["text_to_video_R@1"] == written["metrics"]["text_to_video_R@1"]


def test_what_changes_the_meaning_stands_in_the_name(retrieval_model, data, tmp_path, capfd):
    model = unseen(retrieval_model, tmp_path)
    flags = ["--output_dir", str(tmp_path / "out"), "--matching_top_k", "2", "--dsl"]
    infer(capfd, model, str(data / "msrvtt_ret"), *flags)
    assert "+rerank2+dsl" in json.loads((tmp_path / "out/metrics.json").read_text())["protocol"]
    code, _ = infer(capfd, model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "alpro"), "--alpro")
    assert code == 0 and json.loads((tmp_path / "alpro/metrics.json").read_text())["protocol"].startswith("alpro")


def test_a_test_on_training_clips_is_refused(retrieval_model, data, tmp_path, capfd):
    assert set(json.loads(Path(retrieval_model, "training_clips.json").read_text())["clips"]) >= {"0", "6"}
    code = main(["infer", retrieval_model, str(data / "msrvtt_ret"), "--output_dir", str(tmp_path / "out")])
    assert code == 2 and "7 of the 7 test clips" in capfd.readouterr().err


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
    # The reference's eight processes had two questions twice.
    _, printed = infer(capfd, model, str(data / "msvd_qa"), "--output_dir", str(tmp_path / "alpro"), "--alpro")
    assert sum(count for _, count in printed["ratios"].values()) == 16


@pytest.mark.parametrize(
    ("num_processes", "task"), [(2, "msrvtt_ret"), (3, "msrvtt_ret"), (2, "msvd_qa"), (3, "msvd_qa")]
)
def test_several_processes_give_the_same_metrics(request, data, tmp_path, capfd, num_processes, task):
    model = request.getfixturevalue("retrieval_model" if task == "msrvtt_ret" else "question_model")
    model, arguments = unseen(model, tmp_path), [str(data / task), "--output_dir"]
    infer(capfd, model, *arguments, str(tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command += ["-m", "simple_multimodal", "infer", model, *arguments, str(tmp_path / "several")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("metrics.json", "results.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "several" / name).read_text()


def test_several_captions_of_a_clip_are_all_queries(retrieval_model, clips, tmp_path):
    manifest = tmp_path / "several.jsonl"
    write_lines(manifest, [{"video": f"{n}.mp4", "captions": ["a cat", f"clip {n}"]} for n in range(3)])
    dataset = MultimodalDataset(manifest, video_root=clips / "video")
    measured = measure_retrieval(Retriever.from_pretrained(retrieval_model), dataset)
    assert measured.counts == {"captions": 6, "clips": 3, "duplicate_captions": 3}
    assert measured.metrics["text_to_video_num_queries"] == 6 and measured.metrics["video_to_text_num_queries"] == 3


def test_bad_input_is_named(retrieval_model, question_model, data, tmp_path, capfd):
    def error(*argv: str) -> str:
        assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 2
        return capfd.readouterr().err

    assert "neither written by `simple-multimodal prepare`" in error("infer", retrieval_model, str(tmp_path))
    assert "a model of another task" in error("infer", question_model, str(data / "msrvtt_ret"))
    absent = error("infer", retrieval_model, str(data / "msrvtt_ret"), "--split", "validation")
    assert "has no validation split" in absent


def test_clips_are_encoded_searched_and_asked_on_the_command_line(
    retrieval_model, question_model, clips, tmp_path, capfd
):
    def lines(*argv: str) -> list[dict]:
        assert main(list(argv)) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]

    index = str(tmp_path / "index.safetensors")
    assert main(["encode", retrieval_model, str(clips / "video"), "--out", index]) == 0
    assert capfd.readouterr().out.strip().endswith("7 clips")
    found = lines("search", retrieval_model, "a cat purrs", index, "--top_k", "3")
    assert len(found) == 3 and found == lines(
        "search", retrieval_model, "a cat purrs", str(clips / "video"), "--top_k", "3"
    )
    reranked = lines("search", retrieval_model, "a cat purrs", str(clips / "video/0.mp4"), str(clips / "video/1.mp4"),
                     "--rerank", "2")  # fmt: skip
    assert all(match["matching"] is not None for match in reranked)
    answers = lines("answer", question_model, "who is there?", str(clips / "video/0.mp4"), "--top_k", "2")
    assert len(answers) == 1 and len(answers[0]["answers"]) == 2
