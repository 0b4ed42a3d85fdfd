"""Pairs of text and clip are grouped, and scored as if every pair went through the model alone."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from simple_multimodal.models.fusion.crossformer import ClipCache, concatenate
from simple_multimodal.models.pairs import (
    CLIP_TOKENS_PER_BATCH,
    PAIRS_PER_BATCH,
    encode_clips,
    encode_texts,
    plan_blocks,
    ranking_scores,
    score_pairs,
)
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from tests.closeness import assert_close
from tests.models import tiny

FORMS = ("merge", "co_attention", "cross_attention")


def check_plan(pairs, text_lengths, clip_lengths, *, pairs_per_batch, clip_tokens_per_batch) -> list[int]:
    """Check that every pair is in one block and no block of several clips exceeds a bound; return clips by block."""
    seen: Counter = Counter()
    num_clips = []
    clip_lengths = np.asarray(clip_lengths)
    for block in plan_blocks(
        pairs,
        text_lengths,
        clip_lengths,
        pairs_per_batch=pairs_per_batch,
        clip_tokens_per_batch=clip_tokens_per_batch,
    ):
        assert len({len(row) for row in block.texts}) == 1
        assert len(block.clips) * len(block.texts[0]) <= pairs_per_batch
        num_tokens = len(block.clips) * clip_lengths[block.clips].max(axis=0).sum()
        assert num_tokens <= clip_tokens_per_batch or len(block.clips) == 1
        for clip, texts, places in zip(block.clips, block.texts, block.places, strict=True):
            for text, place in zip(texts, places, strict=True):
                if place >= 0:
                    assert pairs[place].tolist() == [text, clip]
                    seen[place] += 1
        num_clips.append(len(block.clips))
    assert seen == Counter(range(len(pairs)))
    return num_clips


@pytest.mark.parametrize("num_pairs", [0, 1, 7, 60])
@pytest.mark.parametrize("pairs_per_batch", [1, 4, 1000])
@pytest.mark.parametrize("clip_tokens_per_batch", [1, 30, 10_000])
def test_blocks_hold_every_pair_once(num_pairs, pairs_per_batch, clip_tokens_per_batch):
    generator = np.random.default_rng(0)
    every = np.argwhere(np.ones((9, 8)))
    pairs = generator.permutation(every)[:num_pairs]
    bounds = {"pairs_per_batch": pairs_per_batch, "clip_tokens_per_batch": clip_tokens_per_batch}
    check_plan(pairs, generator.integers(1, 20, 9).tolist(), generator.integers(0, 12, (8, 2)), **bounds)


ONE_TEXT = np.stack([np.arange(100), np.arange(100)], axis=1)  # of each of a hundred clips


@pytest.mark.parametrize(
    ("pairs", "clip_lengths", "bound", "expected"),
    [
        (ONE_TEXT, [[10, 20]] * 100, 10_000, [100]),
        (ONE_TEXT, [[10, 20]] * 100, 750, [25] * 4),  # exactly at the bound
        (ONE_TEXT, [[10, 20]] * 100, 749, [24] * 4 + [4]),
        (ONE_TEXT, [[10, 20]] * 100, 29, [1] * 100),  # every clip exceeds it
        (ONE_TEXT, [[0, 30], [30, 0]] * 50, 600, [10] * 10),  # padded, each has sixty
        (ONE_TEXT, [[0, 1000], *[[10, 20]] * 99], 750, [1] + [25] * 3 + [24]),  # one exceeds it
        (ONE_TEXT, [[0, 0]] * 100, 1, [100]),
        (np.stack([np.arange(100), np.zeros(100, int)], axis=1), [[10, 20]], 29, [1]),  # many texts of one clip
    ],
)
def test_clips_of_a_block_are_bounded_by_their_tokens(pairs, clip_lengths, bound, expected):
    found = check_plan(pairs, [5] * 100, clip_lengths, pairs_per_batch=256, clip_tokens_per_batch=bound)
    assert found == expected


def test_default_bounds_hold_keys_and_values_of_few_clips():
    """One question about each of a thousand clips of the default towers: fifteen clips at once, not 256."""
    pairs = np.stack([np.zeros(1000, int), np.arange(1000)], axis=1)
    found = check_plan(
        pairs,
        [8],
        [[512, 1568]] * 1000,
        pairs_per_batch=PAIRS_PER_BATCH,
        clip_tokens_per_batch=CLIP_TOKENS_PER_BATCH,
    )
    assert max(found) == 15


def model_of(form: str, has_answers: bool):
    torch.manual_seed(0)
    if has_answers:
        config = tiny.tiny_config(form, id2label=dict(enumerate("abc")), label2id={c: i for i, c in enumerate("abc")})
        return tiny.randomize(MultimodalForQuestionAnswering(config))
    return tiny.randomize(MultimodalForRetrieval(tiny.tiny_config(form)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_answers", [False, True])
@pytest.mark.parametrize(("pairs_per_batch", "clip_tokens_per_batch"), [(2, 10_000), (64, 10_000), (64, 40), (64, 1)])
def test_pairs_are_scored_as_if_alone(form, has_answers, pairs_per_batch, clip_tokens_per_batch):
    model = model_of(form, has_answers)
    score = model.answer_logits if has_answers else model.matching_logits
    batch = tiny.make_batch()  # rows that lack audio, video, or both
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    pairs = np.array([(0, 0), (1, 0), (3, 0), (5, 1), (0, 1), (2, 2), (2, 3), (1, 5), (3, 4)])
    bounds = {"pairs_per_batch": pairs_per_batch, "clip_tokens_per_batch": clip_tokens_per_batch}
    scores = score_pairs(model, score, texts, clips, pairs, **bounds)
    for (text, clip), values in zip(pairs.tolist(), scores, strict=True):
        alone_text = {key: value[text : text + 1] for key, value in batch.items()}
        alone_clip = {key: value[clip : clip + 1] for key, value in batch.items()}
        with torch.no_grad():
            expected = score(model.encode_text(alone_text)[1], model.encode_clip(alone_clip)[1])
        assert_close(values, expected[0])


@pytest.mark.parametrize("form", FORMS)
def test_clip_tokens_held_at_once_stay_within_the_bound(form):
    """They are keys and values of clips, or rows of pairs where nothing of a clip is kept."""
    model = model_of(form, has_answers=True)
    batch = tiny.make_batch([tiny.Row(seed) for seed in range(6)])
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    tokens_of_a_clip = sum(map(len, clips[0].tokens.values()))
    seen = []

    def score(text, clip):
        mask = clip.mask if isinstance(clip, ClipCache) else concatenate(clip).mask
        seen.append(mask.numel())
        return model.answer_logits(text, clip)

    pairs = np.array([(text, clip) for text in range(6) for clip in range(6) if text != clip or clip < 2])
    bound = 2 * tokens_of_a_clip
    score_pairs(model, score, texts, clips, pairs, clip_tokens_per_batch=bound)
    assert max(seen) == bound
    score_pairs(model, score, texts, clips, pairs[::6], clip_tokens_per_batch=1)  # fewer texts of each clip
    assert seen[-1] == tokens_of_a_clip


@pytest.mark.parametrize("form", FORMS)
def test_matching_of_own_pairs_equals_that_of_training(form):
    """Both ways use the same towers and head."""
    model = model_of(form, has_answers=False)
    batch = tiny.make_batch([tiny.Row(seed, aligned=True) for seed in range(3)])
    with torch.no_grad():
        expected = model(**batch).logits
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    scores = score_pairs(model, model.matching_logits, texts, clips, np.array([(0, 0), (1, 1), (2, 2)]))
    assert_close(scores, expected)


def test_without_pairs_there_are_no_scores():
    model = model_of("merge", has_answers=False)
    batch = tiny.make_batch()
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    assert len(score_pairs(model, model.matching_logits, texts, clips, np.empty((0, 2), dtype=int))) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip_embedding", ["fusion", "mean"])
def test_pairs_are_ranked_by_the_cosine_plus_the_log_odds_of_matching(form, clip_embedding):
    torch.manual_seed(0)
    config = tiny.tiny_config(form, clip_embedding=clip_embedding, matching_residual=True)
    model = MultimodalForRetrieval(config).eval()
    batch = tiny.make_batch()
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    pairs = np.argwhere(np.ones((6, 6)))
    cosines = (torch.stack([text.embed for text in texts]) @ torch.stack([clip.embed for clip in clips]).T).flatten()
    with torch.no_grad():
        for parameter in model.matching_head.parameters():
            parameter.zero_()
        logits = score_pairs(model, model.matching_logits, texts, clips, pairs)
        scores = ranking_scores(model, logits, cosines)
        torch.testing.assert_close(scores, np.e * cosines, rtol=1e-6, atol=0)  # logit_scale_init_value is 1
        assert torch.equal(scores.argsort(stable=True), cosines.argsort(stable=True))
        model.matching_head.weight.normal_()
    logits = score_pairs(model, model.matching_logits, texts, clips, pairs)
    odds = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(ranking_scores(model, logits, cosines), scores + odds)
    torch.testing.assert_close(ranking_scores(model, logits, cosines, weight=0.5), scores + 0.5 * odds)
    model.config.matching_weight = 0.25
    torch.testing.assert_close(ranking_scores(model, logits, cosines), scores + 0.25 * odds)


@pytest.mark.parametrize("form", FORMS)
def test_models_saved_without_a_residual_rank_by_their_head(form, tmp_path):
    saved = model_of(form, has_answers=False)
    saved.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["matching_residual"], written["rerank_top_k"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = MultimodalForRetrieval.from_pretrained(tmp_path)
    assert model.matching_head.weight.abs().sum() > 0 and model.cosine_weight == 0
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    scores = ranking_scores(model, logits, torch.tensor([-1.0, 1.0]))
    assert torch.equal(scores, logits.softmax(dim=1)[:, 1])
