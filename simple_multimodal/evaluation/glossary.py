"""The meaning and the chance level of each number of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping

from simple_multimodal.evaluation.classification import TOP_CUTOFFS
from simple_multimodal.evaluation.retrieval import RECALL_CUTOFFS

LOSSES = {
    "mlm": "Masked language modeling: predict masked tokens of a caption from the others, its audio and its video.",
    "mam": "Masked audio modeling: reconstruct masked patches of the log-mel spectrogram from the visible ones, with "
    "the audio tower alone; mean squared error.",
    "mvm": "Masked video modeling: reconstruct masked tubes of the video from the visible ones, with the video tower "
    "alone; mean squared error.",
    "contrastive_tv": "Contrast of text and video: find each caption's video among others, and the reverse.",
    "contrastive_ta": "Contrast of text and audio: find each caption's audio among others, and the reverse.",
    "contrastive_av": "Contrast of audio and video: find the audio of each video among others, and the reverse.",
    "contrastive_tav": "Contrast of text and clip (audio and video together): the embeddings that a search compares.",
    "matching": "Tell whether caption and clip belong together; about half of the pairs have a hard negative clip.",
    "answer": "Cross-entropy of the right answer, over the questions whose answer the model knows.",
}
"""Description of each objective, whose loss is `{name}_loss`."""

METRICS = {
    "R@1": "Fraction of queries whose first result is correct.",
    "R@5": "Fraction of queries with a correct result among the first five.",
    "R@10": "Fraction of queries with a correct result among the first ten.",
    "median_rank": "Half of the queries have a correct result at this rank or better; 1 is best.",
    "mean_rank": "Mean rank of the first correct result; 1 is best, and a few bad queries weigh heavily.",
    "mlm_accuracy": "Fraction of masked tokens that are predicted exactly.",
    "matching_accuracy": "Fraction of correct decisions on whether caption and clip belong together: each caption "
    "with its own clip and with its hardest wrong one.",
    "pair_flip_share": "Fraction of choices between two clips that flip when the clips swap the one thing in which "
    "they differ.",
    "pair_accuracy": "How often a caption scores its own clip higher than one that differs in one thing only.",
    "majority_accuracy": "Accuracy of giving the most frequent training answer to every question.",
    "question_only_accuracy": "Accuracy of looking up the question among the training questions, without any clip.",
    "seen_question_share": "Fraction of questions that also occur in training.",
    "seen_answer_share": "Fraction of answers that also occur in training: an upper bound on the accuracy.",
    "answer_entropy_bits": "Entropy of the correct answers: how evenly they are distributed.",
    "mAP_all_rows": "mAP over all rows, with equal scores as one threshold (scikit-learn's definition).",
    "mAP": "Mean over the classes of average precision, which is the mean precision at the ranks of the rows that "
    "have the class.",
    "wAP": "The same mean, weighted by the number of rows that have each class.",
    "micro_F1": "F1 of all decisions that a row has a class (a probability above 0.5), all classes taken together.",
    "macro_F1": "Mean over the classes of the F1 of their decisions (a probability above 0.5).",
    "majority_top1_accuracy": "Accuracy of giving the most frequent training class to every row.",
    "majority_top5_accuracy": "Fraction of rows whose class is one of the five most frequent in training.",
    "top1_accuracy": "Fraction of rows whose class has the highest score.",
    "top5_accuracy": "Fraction of rows whose class is among the five highest scores.",
    "mean_class_accuracy": "Mean over the classes of the accuracy on their rows, so that rare classes count as much.",
    "chrF++": "F-score of n-grams of characters and of words, with more weight on recall (Popović, 2017).",
    "chrF": "F-score of n-grams of characters, with more weight on recall (Popović, 2015).",
    "BLEU": "Precision of n-grams of up to four words over all rows, lower for texts that are too short (Papineni et "
    "al., 2002), as sacrebleu computes it; 0.4169 is quoted as 41.69.",
    **{
        f"BLEU-{order}": f"BLEU with n-grams of up to {order}, over lower-case words, as papers report it."
        for order in range(1, 5)
    },
    "ROUGE-L": "F-score of the longest sequence of words that a text and its reference share in this order; mean over "
    "the rows.",
    "CIDEr-D": "Ten times the similarity of a caption's n-grams to those of its references, where n-grams that few "
    "clips have weigh more; mean over the rows, from 0 to 10, quoted times 100.",
    "WER": "Word error rate: inserted, missing and wrong words, divided by the words of the references; lower is "
    "better.",
    "CER": "Character error rate: the same for characters; lower is better.",
    "_accuracy": "Fraction of questions of this type with exactly the correct answer.",
    "accuracy": "Fraction of questions with exactly the correct answer; chance is the most frequent training answer, "
    "given to every question.",
}
"""Description of each metric, by the end of its name; the first match counts."""

LOWER_IS_BETTER = ("loss", "WER", "CER", "median_rank", "mean_rank")
"""Ends of the names of metrics of which smaller values are better."""

UNSEEN = "unseen_"
"""Prefix of the metrics over the rows whose reference does not stand in the training table."""

TEXT_ONLY = "text_only_"
"""Prefix of the metrics that text alone reaches."""

CONTRAST = (
    "Contrastive losses grow with the number of candidates: the rows of a batch in training, those of the whole set "
    "in evaluation. The loss of guessing is the logarithm of their number (4.2 for 64, 6.9 for 1,000), so the two "
    "curves lie apart even for a model that generalizes perfectly. Compare evaluations with each other, on sets of "
    "equal size."
)
"""Explanation of why contrastive losses differ between training and evaluation."""


def meaning(name: str) -> str:
    """
    Return one sentence about the meaning of a metric or loss.

    Args:
        name (`str`): Its name, with or without `eval_`.

    Returns:
        `str`: The sentence; empty for an unknown name.
    """
    name = name.removeprefix("eval_")
    if name == "loss":
        return "Weighted sum of the objectives: what training minimizes."
    if name.endswith("_loss"):
        return LOSSES.get(name.removesuffix("_loss"), "")
    sentence = next((sentence for end, sentence in METRICS.items() if name.endswith(end)), "")
    if name.startswith(TEXT_ONLY):
        return f"From the text alone, without any clip, by a regression on its words. {sentence}".rstrip()
    if name.startswith(UNSEEN):
        return f"Over the rows whose reference does not stand in the training table. {sentence}".rstrip()
    return sentence


def chance_levels(metrics: Mapping[str, float]) -> dict[str, float]:
    """
    Return the chance levels of metrics, if they follow from the counts among the metrics.

    Ranks are those of a random order of `{prefix}num_candidates` candidates. Each caption has one right clip; each
    clip has `num_candidates / num_queries` right captions.

    Args:
        metrics (`Mapping[str, float]`): Metrics and counts by name.

    Returns:
        `dict[str, float]`: Chance levels by name, in the order of `metrics`. That of `accuracy`, `top1_accuracy` and
        `top5_accuracy` is `majority_accuracy` etc., the most frequent training answers or classes, if known;
        otherwise that of `top5_accuracy` is 5 of `num_classes`. That of `mean_class_accuracy` is 1 of
        `num_measured_classes`, for any constant answer.

    Example:

    ```python
    >>> chance_levels({"text_to_video_R@5": 0.9, "text_to_video_num_candidates": 100})
    {'text_to_video_R@5': 0.05}
    ```
    """
    levels: dict[str, float] = {}
    for name in metrics:
        bare = name.removeprefix("eval_")
        log_prefix = name.removesuffix(bare)
        if (majority := f"{log_prefix}majority_{bare}") in metrics:
            levels[name] = metrics[majority]
        elif bare in ACCURACIES_BY_CLASS and (
            num_classes := metrics.get(f"{log_prefix}{ACCURACIES_BY_CLASS[bare][1]}")
        ):
            levels[name] = min(ACCURACIES_BY_CLASS[bare][0] / num_classes, 1.0)
        elif bare == "matching_loss":
            levels[name] = math.log(2)
        elif bare == "matching_accuracy" or bare.endswith("pair_accuracy"):
            levels[name] = 0.5
        else:
            column = next((end for end in RETRIEVAL_COLUMNS if name.endswith(end)), None)
            prefix = name.removesuffix(column or "")
            candidates = metrics.get(f"{prefix}num_candidates")
            if column is not None and candidates is not None:
                queries = metrics.get(f"{prefix}num_queries", candidates)
                right = max(candidates / queries, 1.0) if prefix.endswith("video_to_text_") else 1.0
                levels[name] = _chance_of_rank(column, int(candidates), right)
    return levels


def numbers_of_queries(metrics: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, int]:
    """
    Return the number of queries behind each fraction, where it is known.

    Args:
        metrics (`Mapping[str, float]`): Metrics by name, with the `num_queries` of each direction of retrieval, and
            the `num_rows` of classification.
        counts (`Mapping[str, int]`): Counts of the evaluation; `questions` is used for accuracies, if given.
    """
    numbers: dict[str, int] = {}
    for name in metrics:
        column = next((end for end in RETRIEVAL_COLUMNS if name.endswith(end)), None)
        if column is not None:
            numbers[name] = int(metrics.get(f"{name.removesuffix(column)}num_queries", 0))
        elif name.endswith(CLASSIFICATION_METRICS):
            numbers[name] = int(metrics.get("num_rows", 0))
        elif name.endswith("accuracy"):
            numbers[name] = counts.get("questions", 0)
    return {name: number for name, number in numbers.items() if number}


RETRIEVAL_COLUMNS = (*(f"R@{cutoff}" for cutoff in RECALL_CUTOFFS), "median_rank", "mean_rank")
"""Ends of the names of retrieval metrics."""

ACCURACIES_BY_CLASS = {
    **{f"top{cutoff}_accuracy": (cutoff, "num_classes") for cutoff in TOP_CUTOFFS},
    "mean_class_accuracy": (1, "num_measured_classes"),
}
"""How many classes are named for a row, and which metric counts the classes, by accuracy of classification."""

CLASSIFICATION_METRICS = ("mAP", "mAP_all_rows", "wAP", "micro_F1", "macro_F1", *ACCURACIES_BY_CLASS)
"""Ends of the names of classification metrics."""


def _chance_of_rank(column: str, candidates: int, right: float) -> float:
    """Return recall or rank of the first of `right` right candidates in a random order."""
    if column.startswith("R@"):
        return 1 - _chance_of_none(int(column.removeprefix("R@")), candidates, right)
    if column == "mean_rank" or right == 1:  # for one right candidate the two are the same
        return (candidates + 1) / (right + 1)
    return next(float(rank) for rank in range(1, candidates + 1) if _chance_of_none(rank, candidates, right) <= 0.5)


def _chance_of_none(first: int, candidates: int, right: float) -> float:
    """Return the probability that no right candidate is among the first `first` of a random order."""
    chance = 1.0
    for place in range(min(first, candidates)):
        chance *= max(candidates - right - place, 0.0) / (candidates - place)
    return chance
