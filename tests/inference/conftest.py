"""Tiny trained models of both tasks, and the clips that they were trained on."""

import json
from pathlib import Path

import pytest

from tests.training import tiny_run
from tests.training.tiny_run import flags


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
