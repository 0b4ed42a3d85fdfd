"""The task of a run that starts from a saved model."""

import json

import pytest

from arguments import parse_args
from arguments.inputs import Splits, describe_run, make_task
from simple_multimodal.tasks.models import saved_task
from tests.training.tiny_run import flags


@pytest.mark.parametrize(
    ("saved", "given", "expected"),
    [
        ({"task": "question_answering"}, None, "question_answering"),
        ({"task": "retrieval", "architectures": ["MultimodalForRetrieval"]}, "pretraining", "pretraining"),
        ({"architectures": ["AlproForQuestionAnswering"]}, None, "question_answering"),  # by an earlier version
        ({"architectures": ["AlproModel"]}, None, "pretraining"),  # a model of no task
        (None, None, "pretraining"),  # a new model
        (None, "retrieval", "retrieval"),
    ],
)
def test_the_task_follows_from_the_saved_model(tmp_path, saved, given, expected):
    argv = flags("--do_train", "--use_cpu", output_dir=tmp_path / "out")
    argv += [] if given is None else flags(task=given)
    if saved is not None:
        (tmp_path / "config.json").write_text(json.dumps(saved))
        argv += flags(model_name_or_path=tmp_path)
    model_args, data_args, options, args = parse_args(argv)
    task = make_task(model_args, data_args, options, args)
    assert task.name == expected
    record = describe_run(task, Splits(None, None, None), model_args, data_args, args)
    assert record["arguments"]["task"] == expected  # what a run that goes on is compared with


def test_a_model_of_no_task_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["AlproModel"]}))
    with pytest.raises(ValueError, match="AlproModel is a model of none of the tasks"):
        saved_task(tmp_path)
