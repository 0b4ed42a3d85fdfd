"""Chance levels against random scores, and descriptions of all metrics."""

import math

import numpy as np
import pytest

from simple_multimodal.evaluation.glossary import (
    CLASSIFICATION_METRICS,
    LOSSES,
    chance_levels,
    meaning,
    numbers_of_queries,
)
from simple_multimodal.evaluation.ranking import retrieval_ranks, text_clip_ranks
from simple_multimodal.evaluation.retrieval import retrieval_metrics, text_clip_retrieval
from simple_multimodal.models.configuration import OBJECTIVES


@pytest.mark.parametrize(("num_clips", "captions_per_clip"), [(12, 1), (12, 3), (25, 2)])
def test_chance_levels_equal_the_average_of_random_scores(num_clips, captions_per_clip):
    generator = np.random.default_rng(0)
    clips = np.arange(num_clips)
    texts = clips.repeat(captions_per_clip)
    ranks = text_clip_ranks(generator.random((len(texts), num_clips)), texts, clips)
    levels = chance_levels(text_clip_retrieval(ranks, texts, clips).metrics)
    positives = texts[:, None] == clips[None]
    for direction, right in (("text_to_video", positives), ("video_to_text", positives.T)):
        many = np.tile(right, (3000, 1))  # random orders
        ranks = retrieval_ranks(generator.random(many.shape), many)
        for name, value in retrieval_metrics(ranks).items():
            if name == "median_rank":
                assert levels[f"{direction}_{name}"] == pytest.approx(value, abs=0.5)
            elif name != "num_queries":
                assert levels[f"{direction}_{name}"] == pytest.approx(value, rel=0.03)


def test_clips_without_a_caption_do_not_raise_the_chance_level():
    levels = chance_levels(
        {"text_to_video_R@1": 1.0, "text_to_video_num_candidates": 10, "text_to_video_num_queries": 2}
    )
    assert levels == {"text_to_video_R@1": pytest.approx(0.1)}


def test_a_recall_with_fewer_candidates_than_its_cutoff_is_one_by_chance():
    levels = chance_levels({"matching_text_to_video_R@10": 1.0, "matching_text_to_video_num_candidates": 4})
    assert levels == {"matching_text_to_video_R@10": 1.0}


def test_chance_levels_of_other_metrics():
    metrics = {"loss": 2.0, "matching_loss": 1.0, "matching_accuracy": 0.9, "audio_pair_accuracy": 0.9, "R@1": 0.5}
    assert chance_levels(metrics) == {
        "matching_loss": math.log(2),
        "matching_accuracy": 0.5,
        "audio_pair_accuracy": 0.5,
    }  # unknown for a sum of losses, and for a recall without its number of candidates
    answers = {"accuracy": 0.5, "what_accuracy": 0.5, "majority_accuracy": 0.25}
    assert chance_levels(answers) == {"accuracy": 0.25}


def test_chance_levels_of_classification():
    counts = {"num_classes": 20, "num_measured_classes": 10}
    metrics = {"top1_accuracy": 0.5, "top5_accuracy": 0.9, "mean_class_accuracy": 0.4, **counts}
    guessing = {"top1_accuracy": 1 / 20, "top5_accuracy": 5 / 20, "mean_class_accuracy": 1 / 10}
    assert chance_levels(metrics) == guessing
    assert chance_levels({f"eval_{name}": value for name, value in metrics.items()}) == {
        f"eval_{name}": level for name, level in guessing.items()
    }
    assert chance_levels(metrics | {"majority_top1_accuracy": 0.3}) == guessing | {"top1_accuracy": 0.3}
    assert chance_levels({"top1_accuracy": 0.5, "text_only_top1_accuracy": 0.5}) == {}  # the numbers are not known


def test_fractions_of_classification_are_over_its_rows():
    metrics = {"mAP": 0.5, "text_only_mAP": 0.4, "top1_accuracy": 0.5, "num_rows": 49, "num_classes": 3, "loss": 1.0}
    assert numbers_of_queries(metrics, {"clips": 40}) == {"mAP": 49, "text_only_mAP": 49, "top1_accuracy": 49}
    assert numbers_of_queries({"mAP": 0.5}, {}) == {}


def test_every_objective_and_metric_has_a_description():
    assert LOSSES.keys() >= set(OBJECTIVES)
    for name in (*(f"eval_{name}_loss" for name in OBJECTIVES), "loss", "matching_text_to_video_median_rank",
                 "what_accuracy", "audio_pair_accuracy", "majority_accuracy", "mlm_accuracy",
                 "BLEU", "BLEU-1", "BLEU-4", "chrF", "chrF++", "ROUGE-L", "CIDEr-D", "WER", "CER",
                 *CLASSIFICATION_METRICS, "majority_top1_accuracy", "localization_mAP"):  # fmt: skip
        assert meaning(name).endswith("."), name
    assert "looking up" in meaning("question_only_accuracy") and "looking up" not in meaning("accuracy")
    assert "of this type" in meaning("what_accuracy") and "of this type" not in meaning("accuracy")
    assert len({meaning(name) for name in CLASSIFICATION_METRICS}) == len(CLASSIFICATION_METRICS)
    assert "most frequent" in meaning("majority_top1_accuracy") and "most frequent" not in meaning("top1_accuracy")
    assert meaning("text_only_mAP").endswith(meaning("mAP")) and "without any clip" in meaning("text_only_mAP")
    assert meaning("eval_unseen_BLEU-4").endswith(meaning("BLEU-4")) and "training table" in meaning("unseen_BLEU-4")
    assert len({meaning(name) for name in ("BLEU", "BLEU-1", "BLEU-4", "chrF", "chrF++")}) == 5
    assert meaning("samples_per_second") == ""
