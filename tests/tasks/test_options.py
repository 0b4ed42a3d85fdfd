"""The options of tasks: one table, with unique names."""

import dataclasses

import pytest

from simple_multimodal.flags import OBJECTIVES, flag
from simple_multimodal.tasks import flags
from simple_multimodal.tasks.flags import OPTIONS
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.registry import TASKS
from simple_multimodal.tasks.retrieval.options import RetrievalOptions


def test_tasks_can_share_an_option_but_not_only_its_name(monkeypatch):
    monkeypatch.setattr(flags, "OPTIONS", dict(OPTIONS))
    flags.register_options("own", RetrievalOptions)
    flags.register_options("again", RetrievalOptions)

    @dataclasses.dataclass(frozen=True)
    class Other(TaskOptions):
        vt_match_ratio: float = flag(0.5, OBJECTIVES, "Something else.")

    with pytest.raises(ValueError, match="Another task already has an option 'vt_match_ratio'"):
        flags.register_options("other", Other)
    assert "other" not in flags.OPTIONS


def test_the_table_lists_the_options_of_the_built_in_tasks():
    assert {name: task.options_class for name, task in TASKS.items()} == OPTIONS
