"""Progress bars: shown in a terminal, if asked for, and never in a log file."""

import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState
from transformers.utils import logging

import simple_multimodal as smm
from simple_multimodal.progress import can_show_bars
from simple_multimodal.training.console import ConsoleCallback, Speed
from tests.streams import Stream


@pytest.fixture
def stream(monkeypatch):
    """Function that replaces standard error."""

    def replace(is_terminal: bool) -> Stream:
        monkeypatch.setattr(sys, "stderr", Stream(is_terminal))
        return sys.stderr

    return replace


@pytest.mark.parametrize(("is_terminal", "shows"), [(True, True), (True, False), (False, True)])
def test_a_pipeline_shows_bars_in_a_terminal_if_asked_for(retrieval_model, clips, stream, is_terminal, shows):
    retriever = smm.Retriever.from_pretrained(retrieval_model, shows_progress=shows)
    told = stream(is_terminal)
    retriever.search("a cat", clips / "video", rerank=2)
    for unit in ("clips", "pairs"):
        assert (unit in told.getvalue()) == (is_terminal and shows)


@pytest.mark.parametrize("stderr", [None, SimpleNamespace(write=print)])
def test_a_replaced_standard_error_shows_no_bars(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert not can_show_bars()


def test_a_pipeline_shows_bars_in_a_notebook_if_asked_for(retrieval_model, clips, monkeypatch):
    told = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})(is_terminal=False)
    monkeypatch.setattr(sys, "stderr", told)
    for shows in (False, True):
        smm.Retriever.from_pretrained(retrieval_model, shows_progress=shows).search("a cat", clips / "video")
        assert ("clips" in told.getvalue()) == shows


@pytest.mark.parametrize("is_terminal", [True, False])
def test_training_shows_bars_in_a_terminal(stream, tmp_path, is_terminal):
    told = stream(is_terminal)
    args = smm.TrainingArguments(str(tmp_path), report_to="none")
    state, logs = TrainerState(max_steps=3, is_world_process_zero=True), {"total_flos": 1.0}
    callback = ConsoleCallback(SimpleNamespace(last_evaluation=None))
    callback.on_train_begin(args, state, TrainerControl())
    assert ("0/3" in told.getvalue()) == is_terminal
    callback.on_log(args, state, TrainerControl(), logs=logs)
    assert logs == {"total_flos": 1.0}  # files of results are the same with and without a terminal
    callback.on_train_end(args, state, TrainerControl())


def test_the_bar_of_a_resumed_run_starts_where_it_stopped(stream, tmp_path):
    told = stream(True)
    args = smm.TrainingArguments(str(tmp_path), report_to="none")
    state = TrainerState(max_steps=30, global_step=20, is_world_process_zero=True)
    callback = ConsoleCallback(SimpleNamespace(last_evaluation=None, speed=Speed()))
    callback.on_train_begin(args, state, TrainerControl())
    state.global_step = 21
    callback.on_step_end(args, state, TrainerControl())
    assert (callback.training_bar.n, callback.training_bar.initial) == (21, 20)
    callback.on_train_end(args, state, TrainerControl())
    assert "21/30" in told.getvalue()


def test_loading_a_model_shows_no_bar(retrieval_model, stream):
    logging.enable_progress_bar()
    told = stream(True)
    smm.load(retrieval_model)
    assert told.getvalue() == "" and logging.is_progress_bar_enabled()
