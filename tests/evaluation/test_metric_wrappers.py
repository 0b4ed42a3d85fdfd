"""The `evaluate.Metric` wrappers: loaded from their files, offline, and equal to the functions they wrap."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

import simple_multimodal.evaluation
from simple_multimodal.evaluation.ranking import retrieval_ranks
from simple_multimodal.evaluation.retrieval import retrieval_metrics

FOLDER = Path(simple_multimodal.evaluation.__file__).parent


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))


def test_the_question_answering_metric_takes_batches(load):
    metric = load("question_answering_metric.py")
    metric.add_batch(predictions=["man", "dog"], references=["man", "zebra"])
    metric.add_batch(predictions=["two"], references=["two"])
    assert metric.compute(answer_types=["who", "what", "how"]) == {
        "accuracy": 2 / 3,
        "num_questions": 3,
        "how_accuracy": 1.0,
        "how_num_questions": 1,
        "what_accuracy": 0.0,
        "what_num_questions": 1,
        "who_accuracy": 1.0,
        "who_num_questions": 1,
    }


def test_the_retrieval_metric_takes_batches(load):
    scores = np.random.default_rng(0).random((6, 4))
    positives = np.zeros((6, 4), dtype=bool)
    positives[np.arange(6), [0, 3, 1, 2, 2, 0]] = True
    metric = load("retrieval_metric.py")
    for rows in (slice(0, 4), slice(4, 6)):
        references = [np.flatnonzero(row).tolist() for row in positives[rows]]
        metric.add_batch(predictions=scores[rows].tolist(), references=references)
    expected = retrieval_metrics(retrieval_ranks(scores, positives))
    assert metric.compute(prefix="t2v_") == {f"t2v_{name}": value for name, value in expected.items()}
    with pytest.raises(ValueError, match="from 0 to 1, got 2 for query 0"):
        metric.compute(predictions=[[0.1, 0.2]], references=[[2]])
