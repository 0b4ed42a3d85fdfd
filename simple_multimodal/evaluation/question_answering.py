"""Question answering from a fixed list: accuracy by type, intervals by clip, and baselines that see no clip."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval, bootstrap_interval, resampled_mean


def predicted_labels(logits: np.ndarray) -> np.ndarray:
    """
    Return the label with the highest score of each question, the first of equal ones.

    Args:
        logits (`np.ndarray` of shape `(num_questions, num_labels)`): Score of each answer; real numbers.

    Returns:
        `np.ndarray` of shape `(num_questions,)`, int64.

    Raises:
        ValueError: If `logits` is not a matrix, has no label, **or** contains NaN.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InputError(f"Logits must have shape (num_questions, num_labels), got {logits.shape}.")
    if np.isnan(logits).any():
        questions = np.flatnonzero(np.isnan(logits).any(axis=1))
        raise InputError(
            f"The logits of {len(questions)} of {len(logits)} questions contain NaN (first: question {questions[0]}). "
            "Check the inputs and the weights."
        )
    return logits.argmax(axis=1)


def correct_answers(
    predictions: Sequence[str] | Sequence[int] | np.ndarray,
    answers: Sequence[str],
    *,
    id2label: Mapping[int, str] | None = None,
) -> np.ndarray:
    """
    Return whether each predicted answer equals the right one exactly.

    A question whose answer is not in the model's list counts as wrong. So does a predicted label without an answer
    (the head may have more labels than there are answers).

    Args:
        predictions (`Sequence[str]` or `Sequence[int]` of length `num_questions`, or `np.ndarray`):
            Predicted answers, or with `id2label` predicted labels.
        answers (`Sequence[str]` of length `num_questions`): Right answers, exactly as annotated.
        id2label (`Mapping[int, str]`, *optional*): Answer of each label, as in the configuration of the model.

    Returns:
        `np.ndarray` of shape `(num_questions,)`, bool.

    Raises:
        ValueError: If the numbers of predictions and answers differ, **or** predictions are labels without `id2label`
            or strings with it.

    Example:

    ```python
    >>> correct_answers([0, 1, 7], ["man", "zebra", "man"], id2label={0: "man", 1: "dog"})
    array([ True, False, False])
    ```
    """
    predictions = np.asarray(predictions)
    if predictions.shape != (len(answers),):
        raise InputError(f"Every question needs one prediction: got {predictions.shape} for {len(answers)} answers.")
    if len(answers) and predictions.dtype.kind not in ("U" if id2label is None else "iu"):
        raise InputError(
            "Predictions must be answers (strings) without id2label, or labels (integers) with it; got "
            f"{predictions.dtype} {'without' if id2label is None else 'with'} id2label."
        )
    words = predictions.tolist() if id2label is None else [id2label.get(label) for label in predictions.tolist()]
    return np.array([word == answer for word, answer in zip(words, answers, strict=True)], dtype=np.bool_)


def question_answering_metrics(is_correct: np.ndarray, answer_types: Sequence[str] | None = None) -> dict[str, float]:
    """
    Compute the accuracy over all questions and over those of each type.

    Args:
        is_correct (`np.ndarray` of shape `(num_questions,)`, bool): Result of [`correct_answers`].
        answer_types (`Sequence[str]` of length `num_questions`, *optional*): Type of each question, e.g. `"what"`.

    Returns:
        `dict[str, float]`: `accuracy` (a fraction) and `num_questions`, then `{type}_accuracy` and
        `{type}_num_questions` of each type, types in alphabetical order.

    Raises:
        ValueError: If `is_correct` is empty, not one-dimensional or not bool, **or** `answer_types` has a different
            length.

    Example:

    ```python
    >>> question_answering_metrics(np.array([True, False, True]), ["who", "what", "who"])["who_accuracy"]
    1.0
    ```
    """
    is_correct = np.asarray(is_correct)
    metrics: dict[str, float] = {}
    for prefix, values in _by_type(is_correct, answer_types).items():
        metrics[f"{prefix}accuracy"] = float(is_correct[values].mean())
        metrics[f"{prefix}num_questions"] = int(values.sum())
    return metrics


def question_answering_intervals(
    is_correct: np.ndarray,
    answer_types: Sequence[str] | None = None,
    *,
    groups: np.ndarray | None = None,
) -> dict[str, Interval]:
    """
    Compute bootstrap intervals of the accuracies of [`question_answering_metrics`].

    Args:
        is_correct (`np.ndarray` of shape `(num_questions,)`, bool): Result of [`correct_answers`].
        answer_types (`Sequence[str]` of length `num_questions`, *optional*): Type of each question.
        groups (`np.ndarray` of shape `(num_questions,)`, *optional*):
            Clip of each question; all questions of a clip are resampled together. See [`bootstrap_interval`].

    Returns:
        `dict[str, tuple[float, float]]`: Lower and upper end for `accuracy` and each `{type}_accuracy`. For a type,
        only the clips with such a question are resampled.

    Raises:
        ValueError: For the reasons listed in [`question_answering_metrics`] and [`bootstrap_interval`].
    """
    is_correct = np.asarray(is_correct)
    return {
        f"{prefix}accuracy": bootstrap_interval(
            is_correct[values],
            resampled_mean,
            groups=None if groups is None else np.asarray(groups)[values],
        )
        for prefix, values in _by_type(is_correct, answer_types).items()
    }


def first_words(questions: Sequence[str]) -> list[str]:
    """
    Return the first word of each question in lower case, which is the answer type of MSR-VTT-QA and MSVD-QA.

    Args:
        questions (`Sequence[str]`): Questions.

    Returns:
        `list[str]`: First words; `""` for an empty question.
    """
    return [question.casefold().partition(" ")[0] for question in questions]


def question_only_answers(
    questions: Sequence[str],
    train_questions: Sequence[str],
    train_answers: Sequence[str],
    *,
    answer_types: Sequence[str] | None = None,
    train_answer_types: Sequence[str] | None = None,
) -> list[str]:
    """
    Answer by looking up the question among the training questions, a baseline that sees no clip.

    The answer is the most frequent one of the identical training questions; if there are none, of the training
    questions of this type; if there are none of this type either, of all. Among equally frequent answers, the first in
    training wins. On the test split of MSVD-QA, using only its training split and first words as types, this answers
    22.5 % correctly (22.3 % to 22.7 % with other rules for ties).

    Args:
        questions (`Sequence[str]`): Questions to answer.
        train_questions (`Sequence[str]` of length `num_train`): Questions of training, in the order of their file.
        train_answers (`Sequence[str]` of length `num_train`): Their answers.
        answer_types (`Sequence[str]`, *optional*, defaults to [`first_words`]): Type of each question.
        train_answer_types (`Sequence[str]`, *optional*, defaults to [`first_words`]): Type of each training question.

    Returns:
        `list[str]`: One answer per question.

    Raises:
        ValueError: If there is no training question, **or** lengths differ.

    Example:

    ```python
    >>> train = ["who sings?", "who sings?", "who runs?", "what is red?"]
    >>> question_only_answers(["who sings?", "who eats?", "why?"], train, ["man", "man", "dog", "car"])
    ['man', 'man', 'man']
    ```
    """
    if len(train_questions) == 0:
        raise InputError("There are no training questions to look up. Pass at least one.")
    types = first_words(questions) if answer_types is None else answer_types
    train_types = first_words(train_questions) if train_answer_types is None else train_answer_types
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, kind, answer in zip(train_questions, train_types, train_answers, strict=True):
        by_question[question][answer] += 1
        by_type[kind][answer] += 1
    overall = Counter(train_answers)
    # A counter keeps insertion order, and `most_common` keeps it among ties.
    return [
        (by_question.get(question) or by_type.get(kind) or overall).most_common(1)[0][0]
        for question, kind in zip(questions, types, strict=True)
    ]


def answer_baselines(
    questions: Sequence[str],
    answers: Sequence[str],
    train_questions: Sequence[str],
    train_answers: Sequence[str],
    *,
    answer_types: Sequence[str] | None = None,
    train_answer_types: Sequence[str] | None = None,
) -> dict[str, float]:
    """
    Compute baselines and bounds for an accuracy: what is possible without a clip, and what is possible at all.

    Args:
        questions (`Sequence[str]` of length `num_questions`): Questions of the evaluated split.
        answers (`Sequence[str]` of length `num_questions`): Their right answers.
        train_questions (`Sequence[str]` of length `num_train`): Questions of training, in the order of their file.
        train_answers (`Sequence[str]` of length `num_train`): Their answers.
        answer_types (`Sequence[str]`, *optional*): As for [`question_only_answers`].
        train_answer_types (`Sequence[str]`, *optional*): As for [`question_only_answers`].

    Returns:
        `dict[str, float]`: `majority_accuracy` of the most frequent training answer for every question,
        `question_only_accuracy` of [`question_only_answers`], `seen_question_share`, the fraction of questions that
        also occur in training, `seen_answer_share`, that of answers (an upper bound for a model with these answers),
        and `answer_entropy_bits` of the right answers.

    Raises:
        ValueError: If there is no question or no training question, **or** lengths differ.
    """
    looked_up = question_only_answers(
        questions,
        train_questions,
        train_answers,
        answer_types=answer_types,
        train_answer_types=train_answer_types,
    )
    majority = [Counter(train_answers).most_common(1)[0][0]] * len(answers)
    seen_questions, seen_answers = set(train_questions), set(train_answers)
    shares = np.array(list(Counter(answers).values())) / len(answers)
    return {
        "majority_accuracy": question_answering_metrics(correct_answers(majority, answers))["accuracy"],
        "question_only_accuracy": question_answering_metrics(correct_answers(looked_up, answers))["accuracy"],
        "seen_question_share": float(np.mean([question in seen_questions for question in questions])),
        "seen_answer_share": float(np.mean([answer in seen_answers for answer in answers])),
        "answer_entropy_bits": float(-(shares * np.log2(shares)).sum()),
    }


class AnswerResult(NamedTuple):
    """
    Results of question answering.

    Args:
        metrics (`dict[str, float]`): The [`question_answering_metrics`], and with training questions the
            [`answer_baselines`].
        intervals (`dict[str, tuple[float, float]]`): The [`question_answering_intervals`], resampled by clip.
        is_correct (`np.ndarray` of shape `(num_questions,)`, bool): Whether each question was answered correctly.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    is_correct: np.ndarray


def answer_result(
    labels: np.ndarray | Sequence[int],
    rows: Sequence[Mapping],
    *,
    id2label: Mapping[int, str],
    train_pairs: Sequence[tuple[str, str]] = (),
) -> AnswerResult:
    """
    Measure predicted answers to the questions of a manifest.

    Args:
        labels (`np.ndarray` or `Sequence[int]` of length `num_questions`): Predicted labels.
        rows (`Sequence[Mapping]` of length `num_questions`): Rows with strings `question`, `answer` (`None` if
            unknown), `group` (the clip) and, either all or none of them, `answer_type`.
        id2label (`Mapping[int, str]`): Answer of each label.
        train_pairs (`Sequence[tuple[str, str]]`, *optional*): Training questions with their answers.

    Returns:
        [`AnswerResult`].

    Raises:
        ValueError: If lengths differ **or** there is no question.
    """
    answers = [row.get("answer") or "" for row in rows]
    types = [row["answer_type"] or "" for row in rows] if all("answer_type" in row for row in rows) else None
    is_correct = correct_answers(np.asarray(labels), answers, id2label=id2label)
    metrics = question_answering_metrics(is_correct, types)
    if train_pairs:
        questions, known = zip(*train_pairs, strict=True)
        metrics |= answer_baselines([str(row["question"]) for row in rows], answers, questions, known)
    groups = np.array([row["group"] for row in rows])
    return AnswerResult(metrics, question_answering_intervals(is_correct, types, groups=groups), is_correct)


def _by_type(is_correct: np.ndarray, answer_types: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return which questions `(num_questions,)`, bool, belong to each prefix of metrics: `""` for all, e.g. `"what_"`
    for a type. A question with the type `""` counts only among all.
    """
    if is_correct.ndim != 1 or len(is_correct) == 0 or is_correct.dtype != np.bool_:
        raise InputError(
            f"Question answering is measured over one bool per question, at least one, got shape {is_correct.shape} "
            f"of {is_correct.dtype}."
        )
    everything = {"": np.ones(len(is_correct), dtype=np.bool_)}
    if answer_types is None:
        return everything
    types = np.asarray(answer_types)
    if types.shape != is_correct.shape:
        raise InputError(f"Every question needs one type: got {len(types)} types for {len(is_correct)} questions.")
    return everything | {f"{kind}_": types == kind for kind in sorted(set(types.tolist()) - {""})}
