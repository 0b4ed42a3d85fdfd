"""Question answering as an `evaluate.Metric` that loads offline: `evaluate.load` with this file's path, or the class
itself.
"""

from __future__ import annotations

import datasets
import evaluate

from simple_multimodal.evaluation.question_answering import correct_answers, question_answering_metrics

_DESCRIPTION = "Accuracy (a fraction) over all questions and over those of each type; answers must match exactly."
_INPUTS = """
Args:
    predictions (`list[str]`): Predicted answers.
    references (`list[str]`): Right answers; questions whose answer the model does not know count as wrong.
    answer_types (`list[str]`, *optional*): Type of each question, in the order in which they were added.
Returns:
    `dict[str, float]`: `accuracy` and `num_questions`, then `{type}_accuracy` and `{type}_num_questions`.
"""


class QuestionAnsweringMetric(evaluate.Metric):
    """
    Accuracy of answers over batches of questions.

    Example:

    ```python
    >>> from pathlib import Path
    >>> import evaluate, simple_multimodal.evaluation
    >>> path = Path(simple_multimodal.evaluation.__file__).parent / "question_answering_metric.py"
    >>> metric = evaluate.load(str(path))  # or QuestionAnsweringMetric()
    >>> metric.add_batch(predictions=["man", "dog"], references=["man", "cat"])
    >>> metric.compute(answer_types=["who", "what"])["who_accuracy"]
    1.0
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], answer_types: list[str] | None = None
    ) -> dict[str, float]:
        return question_answering_metrics(correct_answers(predictions, references), answer_types)
