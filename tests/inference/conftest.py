"""Tiny trained models of both tasks, and the clips that they were trained on."""

import json
import shutil
from pathlib import Path

import pytest

from tests.training import tiny_run
from tests.training.tiny_run import CAPTIONS, flags

NUM_CLIPS = 7  # not divisible by 2 or 3


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return tiny_run.write_clips(tmp_path_factory.mktemp("inference") / "clips")


@pytest.fixture(scope="session")
def questions(clips) -> Path:
    """A manifest of two questions for each of the first three clips."""
    path = clips / "questions.jsonl"
    rows = [
        {"id": f"{n}{kind}", "video": f"video/{n}.mp4", "question": question, "answer": answer, "answer_type": kind}
        for n in range(3)
        for kind, question, answer in (("what", "what is it?", str(n)), ("who", "who is there?", "cat"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def start(clips, tmp_path_factory) -> list[str]:
    configs = tiny_run.write_configs(tmp_path_factory.mktemp("configs"))
    return [*tiny_run.config_flags(configs), *flags(cache_dir=tmp_path_factory.mktemp("cache"), max_steps=2)]


@pytest.fixture(scope="session")
def retrieval_model(clips, start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "retrieval"
    tiny_run.run(*tiny_run.data_flags(clips), *start, *flags(output_dir=folder, fusion_form="merge"))
    return str(folder)


@pytest.fixture(scope="session")
def question_model(questions, start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "questions"
    data = flags(train_file=questions, validation_file=questions)
    tiny_run.run(*data, *start, *flags(task="question_answering", output_dir=folder))
    return str(folder)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
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
    """Copy a model without its training clips, and set its matching to be better than the cosine."""
    copy = folder / "model"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("checkpoint-*", "training_clips.json"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rerank_top_k": NUM_CLIPS}))
    return str(copy)
