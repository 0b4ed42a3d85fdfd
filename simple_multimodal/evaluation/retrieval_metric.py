"""Retrieval as an `evaluate.Metric` that loads offline: `evaluate.load` with this file's path, or the class itself."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.ranking import retrieval_ranks
from simple_multimodal.evaluation.retrieval import retrieval_metrics, with_prefix

_DESCRIPTION = (
    "R@1, R@5, R@10 (fractions), median and mean rank of the best right candidate of each query. Ties count against "
    "the model."
)
_INPUTS = """
Args:
    predictions (`list[list[float]]`): Scores of all candidates for each query, the same number for every query.
    references (`list[list[int]]`): Positions of the right candidates of each query, at least one.
    prefix (`str`, *optional*, defaults to `""`): Prefix of every name, e.g. `"text_to_video_"`.
Returns:
    `dict[str, float]`: `R@1`, `R@5`, `R@10`, `median_rank`, `mean_rank`, `num_queries`.
"""


class RetrievalMetric(evaluate.Metric):
    """
    Retrieval metrics over batches of queries, each with its scores of all candidates.

    Example:

    ```python
    >>> from pathlib import Path
    >>> import evaluate, simple_multimodal.evaluation
    >>> path = Path(simple_multimodal.evaluation.__file__).parent / "retrieval_metric.py"
    >>> metric = evaluate.load(str(path))  # or RetrievalMetric()
    >>> metric.add_batch(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[[0], [1]])
    >>> metric.compute(prefix="text_to_video_")["text_to_video_R@1"]
    0.5
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]], prefix: str = ""
    ) -> dict[str, float]:
        lengths = sorted({len(scores) for scores in predictions})
        if len(lengths) > 1:
            raise InputError(
                f"Every query needs the scores of all candidates, got queries with {lengths[0]} and with "
                f"{lengths[-1]} scores. Score every query against the same candidates."
            )
        scores = np.asarray(predictions, dtype=np.float64)  # (num_queries, num_candidates)
        positives = np.zeros(scores.shape, dtype=np.bool_)
        for query, positions in enumerate(references):
            outside = [position for position in positions if not 0 <= position < scores.shape[1]]
            if outside:
                raise InputError(
                    f"Right candidates are positions from 0 to {scores.shape[1] - 1}, got {outside[0]} for query "
                    f"{query}."
                )
            positives[query, positions] = True
        return with_prefix(retrieval_metrics(retrieval_ranks(scores, positives)), prefix)
