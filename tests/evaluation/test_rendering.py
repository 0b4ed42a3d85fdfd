"""The formatting of names, numbers and commands."""

import pytest
from jinja2 import UndefinedError

from simple_multimodal.evaluation.rendering import flatten, format_number, render, to_shell, words


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text_to_video_R@1", 0.95, "0.9500"),
        ("mlm_accuracy", 1.0, "1.0000"),
        *((name, 1.0, "1.0000") for name in ("mAP", "eval_mAP_all_rows", "localization_wAP", "micro_F1", "macro_F1")),
        ("mean_rank", 1.2666, "1.267"),
        ("num_queries", 12000, "12,000"),
        ("samples_per_second", 12345.6, "12,346"),
        ("loss", 0.00012346, "0.0001235"),
    ],
)
def test_numbers_are_formatted_by_the_name_of_the_metric(name, value, expected):
    assert format_number(name, value) == expected


def test_flatten_joins_the_names_of_nested_values():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": "x", "f": [1, 2]}) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": "x",
        "f": "[1, 2]",
    }


def test_names_become_words():
    assert words("eval_text_to_video_") == "text to video"


def test_a_script_is_prefixed_with_its_interpreter():
    assert to_shell("train.py --seed 1") == "python train.py --seed 1"
    assert to_shell("accelerate launch train.py") == "accelerate launch train.py"


def test_a_missing_value_of_a_template_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("report.html.jinja", filters={"interval": str, "meaning": str})
