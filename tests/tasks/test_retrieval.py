"""Measuring retrieval: scores, ranks, and pairs of twins."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simple_multimodal.evaluation.ranking import text_clip_ranks
from simple_multimodal.evaluation.scores import ALONE
from simple_multimodal.inference.encoded import EncodedRows, sum_by_name
from simple_multimodal.models.pairs import Encoded, score_pairs
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.retrieval import evaluate
from simple_multimodal.tasks.retrieval.evaluate import (
    EncodedSet,
    evaluate_retrieval,
    matching_loss,
    measure_ranking,
    needed_for_loss,
)
from simple_multimodal.tasks.retrieval.twins import PairSet, pair_metrics

EAST, NORTH, WEST = (torch.tensor(values) for values in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))


def write_pairs(path, pairs) -> str:
    path.write_text("\n".join(map(json.dumps, pairs)))
    return str(path)


def test_pair_accuracy_counts_captions_that_prefer_their_own_clip(tmp_path):
    pairs = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    pair_set = PairSet.from_file(write_pairs(tmp_path / "audio_pairs.jsonl", pairs))
    assert pair_set.name == "audio"
    captions = {"1": EAST, "2": NORTH, "3": EAST, "4": NORTH}
    clips = {"1": EAST, "2": NORTH, "3": NORTH, "4": NORTH}  # the model cannot tell the twins 3 and 4 apart
    found, intervals = pair_metrics(pair_set, captions, clips, {})
    assert found == {"audio_pair_accuracy": 0.5, "audio_num_pairs": 2}  # ties are wrong
    low, high = intervals["audio_pair_accuracy"]
    assert 0 <= low <= 0.5 <= high <= 1


def test_ids_in_pair_files_are_parsed_like_those_in_manifests(tmp_path):
    pairs = [{"a": 1, "b": " 2"}, {"a": "3", "b": True}]
    pair_set = PairSet.from_file(write_pairs(tmp_path / "audio_pairs.jsonl", pairs))
    assert pair_set.pairs == [{"a": "1", "b": "2"}, {"a": "3", "b": "true"}]


def test_choices_flip_when_the_difference_is_swapped():
    pair = {"a": "1", "b": "2", "a_swapped": "1s", "b_swapped": "2s"}
    captions, clips = {"1": EAST, "2": NORTH}, {"1": EAST, "2": NORTH}
    flipped, _ = pair_metrics(PairSet("audio", [pair]), captions, clips, {"1s": NORTH, "2s": EAST})
    assert flipped["audio_pair_flip_share"] == 1
    kept, _ = pair_metrics(PairSet("audio", [pair]), captions, clips, {"1s": EAST, "2s": NORTH})
    assert kept["audio_pair_flip_share"] == 0
    half, _ = pair_metrics(PairSet("audio", [pair]), captions, clips, {"1s": WEST, "2s": EAST})
    assert half["audio_pair_flip_share"] == 0.5  # the first now prefers the other clip, the second has a tie


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "1"}', r"line 1: \['b'\] is missing; a pair needs \['a', 'b'\]"),
        ('{"a": "1", "b": "2"}\n{"a"', "line 2: is not a JSON object"),
        ('{"a": "1", "b": [2]}', "line 1: `b` must be a string, a number, true or false"),
        ("", "contains no pairs"),
    ],
)
def test_invalid_pair_files_are_refused(tmp_path, text, message):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        PairSet.from_file(tmp_path / "pairs.jsonl")


def test_a_pair_with_an_unknown_row_is_refused():
    with pytest.raises(ValueError, match="A pair of 'audio' names the row '2', which is not among the evaluated rows"):
        pair_metrics(PairSet("audio", [{"a": "1", "b": "2"}]), {"1": EAST}, {"1": EAST, "2": EAST}, {})


SCORES = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]], dtype=np.float32)
GROUPS = np.arange(2), np.arange(3)


def test_matching_loss_is_over_the_right_and_the_hardest_wrong_clip():
    ranks = text_clip_ranks(SCORES, *GROUPS)
    assert needed_for_loss(GROUPS, ranks).tolist() == [[0, 0], [1, 1], [0, 1], [1, 2]]
    loss, accuracy = matching_loss({(0, 0): 2.0, (0, 1): -1.0, (1, 1): -3.0, (1, 2): 0.0, (0, 2): 9.0}, GROUPS, ranks)
    expected = [np.log1p(np.exp(-2)), np.log1p(np.exp(3)), np.log1p(np.exp(-1)), np.log(2)]
    assert loss == pytest.approx(np.mean(expected))
    assert accuracy == 0.75


def test_matching_loss_without_a_wrong_clip_uses_only_the_right_one():
    groups = np.zeros(1, dtype=int), np.zeros(1, dtype=int)
    loss, accuracy = matching_loss({(0, 0): 1.0}, groups, text_clip_ranks(np.array([[0.5]]), *groups))
    assert (loss, accuracy) == (pytest.approx(np.log1p(np.exp(-1))), 1.0)


def test_rows_without_any_objective_are_an_error(monkeypatch):
    presence = {f"{m}_mask": torch.tensor([m == "text"]) for m in ("text", "audio", "video")}
    rows = EncodedRows([row(0)], [Encoded(None, {})], [], presence, {"mvm_loss": torch.zeros(2)})
    nothing = EncodedSet([], [], np.zeros(0, dtype=bool), [], torch.empty(0, 2), {}, rows)
    monkeypatch.setattr(evaluate, "_encode_set", lambda *args, **kwargs: nothing)
    model = SimpleNamespace(
        config=SimpleNamespace(modalities=("text", "audio", "video")),
        loss_weights={"contrastive_tv": 1.0, "mvm": 1.0, "matching": 1.0},
    )
    with pytest.raises(ValueError, match="any of the model's objectives .contrastive_tv, mvm, matching."):
        evaluate_retrieval(SimpleNamespace(model=model), [0], rerank_top_k=0, with_losses=True)


def test_sums_of_batches_are_added_by_name():
    parts = [{"mlm": torch.tensor([1.0, 2.0])}, {}, {"mlm": torch.tensor([3.0, 4.0]), "mam": torch.tensor([5.0, 6.0])}]
    assert {name: value.tolist() for name, value in sum_by_name(parts).items()} == {"mlm": [4, 6], "mam": [5, 6]}


def row(number: int) -> dict:
    return {"id": str(number), "index": number, "group": str(number)}


class Judge:
    """A model with two-dimensional embeddings and given log odds of pairs, which are identified by their tokens."""

    loss_weights = {"matching": 1.0}
    device = torch.device("cpu")

    def __init__(self, likes: dict[tuple[int, int], float], cosine_weight: float):
        self.likes, self.cosine_weight = likes, cosine_weight

    def cache_clip(self, clip):
        return clip

    def matching_logits(self, text, clip):
        pairs = zip(text.states[:, 0, 0].tolist(), clip["video"].states[:, 0, 0].tolist(), strict=True)
        odds = torch.tensor([self.likes.get((int(t), int(c)), 0.0) for t, c in pairs])
        return torch.stack([torch.zeros(len(odds)), odds], dim=1)


class JudgingRetriever:
    """A retriever of two captions and clips; by cosine, only the first caption finds its own clip."""

    processes = ALONE
    embeds = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    queries = torch.tensor([[1.0, 0.0], [0.9, 0.1]])

    def __init__(self, model: Judge):
        self.model = model

    def encode_texts(self, texts: list[str]) -> list[Encoded]:
        return [Encoded(self.queries[int(n)], {"text": torch.full((1, 1), int(n))}) for n in texts]

    def score(self, score, texts, encoded, clips, pairs, *, partial, key) -> torch.Tensor:
        return score_pairs(self.model, score, encoded, clips, pairs)


def judged(likes: dict[tuple[int, int], float], cosine_weight: float = 0.0, rerank_top_k: int = 9) -> Evaluation:
    retriever = JudgingRetriever(Judge(likes, cosine_weight))
    clips = [Encoded(None, {"video": torch.full((1, 1), n)}) for n in range(2)]
    captions = [(row(n), str(n)) for n in range(2)]
    found = EncodedSet(captions, [row(0), row(1)], np.ones(2, dtype=bool), clips, retriever.embeds, {})
    evaluation = Evaluation({}, {}, {}, "a protocol", None, 2)
    losses = measure_ranking(retriever, found, evaluation, rerank_top_k=rerank_top_k, with_loss=True)
    evaluation.metrics |= {f"{name}_loss": value for name, value in losses.items()}
    return evaluation


@pytest.mark.parametrize(
    ("likes", "found", "rerank_top_k"),
    [
        ({(0, 0): 5.0, (1, 1): 5.0}, 1.0, 2),  # better than the cosine, with all existing candidates
        ({(0, 0): 5.0, (1, 0): 5.0}, 0.5, 0),  # equally good
        ({(0, 1): 5.0, (1, 0): 5.0}, 0.0, 0),  # worse
    ],
)
def test_evaluation_reports_whether_matching_beats_the_cosine(likes, found, rerank_top_k):
    evaluation = judged(likes)
    assert evaluation.metrics["text_to_video_R@1"] == 0.5
    assert evaluation.metrics["matching_text_to_video_R@1"] == found
    assert evaluation.config_settings == {"rerank_top_k": rerank_top_k}
    assert ("is better than" in evaluation.protocol) == (rerank_top_k > 0)
    assert judged(likes, rerank_top_k=0).config_settings == {"rerank_top_k": None}


def test_a_zero_head_ranks_like_the_cosine_and_its_log_odds_are_added():
    zero = judged({}, cosine_weight=10.0)
    for name, value in zero.metrics.items():
        if name.startswith("text_to_video") or name.startswith("video_to_text"):
            assert zero.metrics[f"matching_{name}"] == value
    assert zero.metrics["matching_loss"] == pytest.approx(np.log(2))  # the head's own, without the cosine
    little, enough = judged({(1, 1): 2.0}, cosine_weight=10.0), judged({(1, 1): 3.0}, cosine_weight=10.0)
    assert little.metrics["matching_text_to_video_R@1"] == 0.5  # 10 * (0.9 - 0.62) = 2.8
    assert enough.metrics["matching_text_to_video_R@1"] == 1.0


def test_the_validation_split_chooses_the_weight_of_the_log_odds():
    # With weight 1 the head misleads the first caption (4 < 6), with 0.25 it does not help the second (2.8 > 1.5).
    chosen = judged({(0, 1): 6.0, (1, 1): 6.0}, cosine_weight=10.0)
    assert chosen.config_settings == {"rerank_top_k": 2, "matching_weight": 0.5}
    assert chosen.metrics["matching_text_to_video_R@1"] == 1.0
    assert "the scaled cosine plus 0.5 (the best of 0.125, 0.25, 0.5, 1) times the log odds" in chosen.protocol
    # No weight is better than the cosine, and the smallest is closest to it.
    assert judged({}, cosine_weight=10.0).config_settings == {"rerank_top_k": 0, "matching_weight": 0.125}


def test_nan_from_the_head_is_refused_without_re_ranking():
    with pytest.raises(ValueError, match="NaN for 1 of 4 pairs"):
        judged({(0, 0): np.nan}, rerank_top_k=0)
