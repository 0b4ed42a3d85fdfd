"""Tests of how pairs of text and clip are grouped and scored: as if every pair went through the model alone."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from simple_multimodal.models import MultimodalForQuestionAnswering, MultimodalForRetrieval
from simple_multimodal.models.pairs import encode_clips, encode_texts, plan_blocks, ranking_scores, score_pairs
from tests.models import tiny

FORMS = ("merge", "co_attention", "cross_attention")


@pytest.mark.parametrize("num_pairs", [0, 1, 7, 60])
@pytest.mark.parametrize("pairs_per_batch", [1, 4, 1000])
def test_blocks_hold_every_pair_once(num_pairs, pairs_per_batch):
    generator = np.random.default_rng(0)
    every = np.argwhere(np.ones((9, 8)))
    pairs = generator.permutation(every)[:num_pairs]
    lengths = generator.integers(1, 20, 9).tolist()
    seen: Counter = Counter()
    for block in plan_blocks(pairs, lengths, pairs_per_batch):
        assert len({len(row) for row in block.texts}) == 1
        assert len(block.clips) * len(block.texts[0]) <= pairs_per_batch
        for clip, texts, places in zip(block.clips, block.texts, block.places, strict=True):
            for text, place in zip(texts, places, strict=True):
                if place >= 0:
                    assert pairs[place].tolist() == [text, clip]
                    seen[place] += 1
    assert seen == Counter(range(num_pairs))


def model_of(form: str, has_answers: bool):
    torch.manual_seed(0)
    if has_answers:
        config = tiny.tiny_config(form, id2label=dict(enumerate("abc")), label2id={c: i for i, c in enumerate("abc")})
        return tiny.randomize(MultimodalForQuestionAnswering(config))
    return tiny.randomize(MultimodalForRetrieval(tiny.tiny_config(form)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_answers", [False, True])
@pytest.mark.parametrize("pairs_per_batch", [2, 64])
def test_pairs_are_scored_as_if_alone(form, has_answers, pairs_per_batch):
    model = model_of(form, has_answers)
    score = model.answer_logits if has_answers else model.matching_logits
    batch = tiny.make_batch()  # rows that lack audio, video, or both
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    pairs = np.array([(0, 0), (1, 0), (3, 0), (5, 1), (0, 1), (2, 2), (2, 3), (1, 5), (3, 4)])
    scores = score_pairs(model, score, texts, clips, pairs, pairs_per_batch=pairs_per_batch)
    for (text, clip), values in zip(pairs.tolist(), scores, strict=True):
        alone_text = {key: value[text : text + 1] for key, value in batch.items()}
        alone_clip = {key: value[clip : clip + 1] for key, value in batch.items()}
        with torch.no_grad():
            expected = score(model.encode_text(alone_text)[1], model.encode_clip(alone_clip)[1])
        torch.testing.assert_close(values, expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_matching_of_own_pairs_is_that_of_training(form):
    """The towers and the head are the same by both ways."""
    model = model_of(form, has_answers=False)
    batch = tiny.make_batch([tiny.Row(seed, aligned=True) for seed in range(3)])
    with torch.no_grad():
        expected = model(**batch).logits
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    scores = score_pairs(model, model.matching_logits, texts, clips, np.array([(0, 0), (1, 1), (2, 2)]))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_no_pairs_no_scores():
    model = model_of("merge", has_answers=False)
    batch = tiny.make_batch()
    texts, clips = encode_texts(model, batch), encode_clips(model, batch)
    assert len(score_pairs(model, model.matching_logits, texts, clips, np.empty((0, 2), dtype=int))) == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip_embedding", ["fusion", "mean"])
def test_pairs_are_ranked_by_the_cosine_and_what_matching_adds(form, clip_embedding):
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
    torch.testing.assert_close(ranking_scores(model, logits, cosines), scores + logits[:, 1] - logits[:, 0])


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
