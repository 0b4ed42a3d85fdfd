"""Totals of the pre-training metrics, and the `evaluate` wrapper without a network."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.evaluation.metrics import (
    Total,
    masked_token_accuracy,
    matching_accuracy,
    squared_error,
    total_mean,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def test_masked_token_accuracy_counts_masked_tokens_only():
    predictions = np.array([[5, -100, 7], [5, 6, 7]])
    labels = np.array([[5, -100, 8], [-100, 6, -100]])
    assert masked_token_accuracy(predictions, labels) == Total(2, 3)
    assert masked_token_accuracy(predictions, np.full((2, 3), -100)) == Total(0, 0)


def test_matching_accuracy_counts_an_undecided_pair_as_wrong():
    logits = np.array([2.0, -1.0, 0.0, 0.0, 3.0])
    assert matching_accuracy(logits, np.array([True, False, True, False, False])) == Total(2, 5)


def test_matching_accuracy_refuses_labels_that_are_not_bool():
    with pytest.raises(ValueError, match="must be bool"):
        matching_accuracy(np.zeros(2), np.array([0, 1]))


def test_squared_error_by_hand():
    assert squared_error(np.array([1.0, 2.0], dtype=np.float16), np.array([0.0, 4.0])) == Total(5.0, 2)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\) and labels \(3,\)"):
        masked_token_accuracy(np.zeros(2), np.zeros(3))


def test_total_mean_weighs_batches_by_their_counts():
    assert total_mean([Total(1, 1), Total(0, 3), Total(0, 0)]) == 0.25
    with pytest.raises(ValueError, match="over 0 things"):
        total_mean([Total(0, 0)])


OFFLINE_SCRIPT = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("network used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import evaluate
from simple_multimodal.evaluation.retrieval_metric import RetrievalMetric

for metric in (evaluate.load(sys.argv[1]), RetrievalMetric()):
    metric.add_batch(predictions=[[0.9, 0.1, 0.5], [0.3, 0.3, 0.1]], references=[[0], [1]])
    metric.add_batch(predictions=[[0.2, 0.1, 0.5]], references=[[0, 1]])
    result = metric.compute(prefix="text_to_video_")
    assert result == {
        "text_to_video_R@1": 1 / 3, "text_to_video_R@5": 1.0, "text_to_video_R@10": 1.0,
        "text_to_video_median_rank": 2.0, "text_to_video_mean_rank": 5 / 3, "text_to_video_num_queries": 3,
    }, result
for predictions, references, message in (
    ([[0.1, 0.2], [0.1]], [[0], [0]], "with 1 and with 2 scores"),
    ([[0.1, 0.2]], [[2]], "from 0 to 1, got 2"),
    ([[0.1, 0.2]], [[]], "no right candidate"),
):
    try:
        RetrievalMetric().compute(predictions=predictions, references=references)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print("ok")
"""


def test_evaluate_wrapper_loads_from_the_package_without_a_network(tmp_path):
    module = REPOSITORY / "simple_multimodal" / "evaluation" / "retrieval_metric.py"
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", OFFLINE_SCRIPT, str(module)]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip().endswith("ok")
