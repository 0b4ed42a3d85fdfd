"""Losses equal those of a loop over rows, and hard negatives follow their distribution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from simple_multimodal.models import losses
from simple_multimodal.models.losses import (
    contrastive_loss,
    draw_hard_negatives,
    masked_mean,
    normalize,
    whole_set_contrastive_loss,
)

SCALE, BIAS = torch.tensor(3.0), torch.tensor(-0.5)


def unit_rows(rows: int, seed: int = 0, size: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_softmax(first, second, present, groups):
    rows = [i for i in range(len(first)) if present[i]]
    total = 0.0
    for left, right in ((first, second), (second, first)):
        for i in rows:
            scores = {j: math.exp(float(SCALE * (left[i] @ right[j]))) for j in rows}
            positives = [j for j in rows if groups[j] == groups[i]]
            total -= sum(math.log(scores[j] / sum(scores.values())) for j in positives) / len(positives) / 2
    return total


def naive_sigmoid(first, second, present, groups):
    total = 0.0
    for i in range(len(first)):
        for j in range(len(first)):
            if present[i] and present[j]:
                sign = 1 if groups[i] == groups[j] else -1
                total += math.log(1 + math.exp(-sign * float(SCALE * (first[i] @ second[j]) + BIAS)))
    return total


def loss_of(first, second, present, groups, form, **settings):
    return contrastive_loss(
        first,
        second,
        present=torch.tensor(present),
        group_ids=torch.tensor(groups),
        logit_scale=SCALE,
        logit_bias=BIAS if form == "sigmoid" else None,
        form=form,
        **settings,
    )


def test_masked_mean_only_uses_real_tokens():
    states = torch.tensor([[[1.0, 2.0], [30.0, 40.0], [5.0, 6.0]], [[7.0, 7.0]] * 3])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(states, mask).tolist() == [[3.0, 4.0], [0.0, 0.0]]


def test_masked_mean_of_many_tokens_is_exact_in_half_precision():
    # Their sum, 300000, is beyond float16, and bfloat16 cannot count to 3001.
    ones = torch.full((1, 3001, 1), 100.0)
    mask = torch.ones(1, 3001, dtype=torch.bool)
    assert masked_mean(ones.half(), mask).tolist() == [[100.0]]
    assert masked_mean(ones.half(), mask).dtype == torch.float16
    assert masked_mean(ones.bfloat16(), mask).tolist() == [[100.0]]


def test_normalize_is_finite_for_a_row_of_zeros():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    unit = normalize(rows)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    unit.sum().backward()
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize(("form", "naive"), [("softmax", naive_softmax), ("sigmoid", naive_sigmoid)])
@pytest.mark.parametrize(
    ("present", "groups"),
    [
        ([True] * 6, [0, 1, 2, 3, 4, 5]),
        ([True] * 6, [7, 1, 7, 3, 7, 1]),  # three positives, two positives, one
        ([True, False, True, True, False, True], [7, 7, 7, 3, 4, 1]),
        ([False, False, True, False, False, False], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_contrastive_loss_equals_a_loop(form, naive, present, groups):
    first, second = unit_rows(6, seed=0), unit_rows(6, seed=1)
    expected = naive(first, second, present, groups)
    assert float(loss_of(first, second, present, groups, form)) == pytest.approx(expected, abs=1e-5)


def test_softmax_with_one_positive_equals_the_loss_of_clip():
    first, second = unit_rows(4, seed=0), unit_rows(4, seed=1)
    logits, target = SCALE * first @ second.T, torch.arange(4)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss_of(first, second, [True] * 4, [0, 1, 2, 3], "softmax") / 4, expected)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_absent_rows_neither_get_nor_cause_gradients(form):
    first, second = unit_rows(5, seed=0), unit_rows(5, seed=1)
    present, groups = [True, True, False, True, False], [0, 1, 1, 3, 4]
    first.requires_grad_(), second.requires_grad_()
    loss = loss_of(first, second, present, groups, form)
    loss.backward()
    kept = torch.tensor(present)
    for rows in (first, second):
        assert rows.grad[~kept].abs().max() == 0
        assert (rows.grad[kept].abs().sum(dim=1) > 0).all()
    alone = loss_of(first[kept], second[kept], [True] * 3, [0, 1, 3], form)
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_loss_is_zero_without_any_present_row(form):
    first, second = unit_rows(3, seed=0).requires_grad_(), unit_rows(3, seed=1)
    loss = loss_of(first, second, [False] * 3, [0, 1, 2], form)
    loss.backward()
    assert loss.item() == 0
    assert first.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_contrastive_loss_is_computed_in_float32_under_autocast(form):
    first, second = unit_rows(6, seed=0), unit_rows(6, seed=1)
    arguments = (first, second, [True] * 6, [0, 1, 2, 3, 4, 5], form)
    expected = loss_of(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(*arguments), expected)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_recomputing_the_contrastive_loss_changes_nothing_and_keeps_no_matrices(form):
    first, second = unit_rows(40, seed=0).requires_grad_(), unit_rows(40, seed=1).requires_grad_()
    results = []
    for recompute in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss = loss_of(first, second, [True] * 39 + [False], list(range(20)) * 2, form, recompute=recompute)
        assert any(t.shape == (40, 40) and t.is_floating_point() for t in kept) is not recompute
        results.append((loss, *torch.autograd.grad(loss, (first, second))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_loss_of_a_whole_set_is_the_same_in_blocks(monkeypatch, form):
    groups = torch.tensor([0, 1, 1, 2, 3, 4, 1, 5, 6, 7, 7, 8])
    settings = {
        "group_ids": groups,
        "logit_scale": torch.tensor(20.0),
        "logit_bias": None if form == "softmax" else torch.tensor(-3.0),
        "form": form,
    }
    rows = unit_rows(12, seed=1), unit_rows(12, seed=2)
    expected = contrastive_loss(*rows, present=torch.ones(12, dtype=torch.bool), gather=False, **settings)
    assert torch.equal(whole_set_contrastive_loss(*rows, **settings), expected)  # one block: bit for bit
    for elements in (1, 12 * 5, 12 * 11):
        monkeypatch.setattr(losses, "MAX_BLOCK_ELEMENTS", elements)
        found = whole_set_contrastive_loss(*rows, **settings)
        assert float(found) == pytest.approx(float(expected), rel=1e-6)


def sample(
    queries,
    candidates,
    uniform,
    *,
    query_groups,
    candidate_groups,
    texts=None,
    present=None,
    scale=SCALE,
    hard_ratio=1.0,
):
    present = torch.ones(len(candidates), dtype=torch.bool) if present is None else torch.tensor(present)
    of_queries, of_candidates = ([-1] * len(queries), [0] * len(candidates)) if texts is None else texts
    return draw_hard_negatives(
        queries,
        candidates,
        query_groups=torch.tensor(query_groups),
        candidate_groups=torch.tensor(candidate_groups),
        query_texts=torch.tensor(of_queries),
        candidate_texts=torch.tensor(of_candidates),
        candidate_present=present,
        logit_scale=scale,
        hard_ratio=hard_ratio,
        uniform=uniform,
    )


@pytest.mark.parametrize("hard_ratio", [1.0, 0.5, 0.0])
def test_negatives_follow_the_softmax_of_similarities_or_are_uniform_over_other_groups(hard_ratio):
    query, candidates = unit_rows(1, seed=0), unit_rows(6, seed=1)
    num_samples = 20000
    indices, exists = sample(
        query.expand(num_samples, -1),
        candidates,
        (torch.arange(num_samples) + 0.5) / num_samples,  # evenly spaced instead of random: frequencies are exact
        query_groups=[2] * num_samples,
        candidate_groups=[0, 1, 2, 3, 2, 5],
        present=[True, True, True, True, True, False],
        hard_ratio=hard_ratio,
    )
    assert exists.all()
    allowed = torch.tensor([1, 1, 0, 1, 0, 0])
    weights = (SCALE * query @ candidates.T)[0].exp() * allowed
    expected = hard_ratio * weights / weights.sum() + (1 - hard_ratio) * allowed / 3
    frequencies = indices.bincount(minlength=6) / num_samples
    torch.testing.assert_close(frequencies, expected, atol=2 / num_samples, rtol=0)


@pytest.mark.parametrize("groups", [[9, 1, 9, 2, 9], [1, 9, 9, 9, 2], [9, 9, 1, 2, 9]])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_hard_negatives_are_allowed_candidates_at_the_ends_of_the_interval(groups, scale):
    candidates = unit_rows(5, seed=1)
    uniform = torch.tensor([0.0, 1e-8, 0.5, 0.999999, 1 - 2**-24, 1.0])  # a float64 below 1 may round to 1
    indices, exists = sample(
        unit_rows(1).expand(6, -1),
        candidates,
        uniform,
        query_groups=[9] * 6,
        candidate_groups=groups,
        scale=torch.tensor(scale),
    )
    allowed = [i for i, group in enumerate(groups) if group != 9]
    assert exists.all()
    assert set(indices.tolist()) <= set(allowed)
    if scale == 1.0:
        assert indices[0] == allowed[0] and indices[-1] == allowed[-1]


@pytest.mark.parametrize("hard_ratio", [1.0, 0.5, 0.0])
def test_clips_with_the_text_of_the_query_are_not_negatives(hard_ratio):
    indices, exists = sample(
        unit_rows(1).expand(100, -1),
        unit_rows(5, seed=1),
        torch.arange(100) / 100,
        query_groups=[0] * 100,
        candidate_groups=[0, 1, 2, 3, 4],
        texts=([7] * 99 + [8], [7, 7, 8, 9, 7]),
        hard_ratio=hard_ratio,
    )
    assert exists.all() and set(indices[:99].tolist()) == {2, 3}
    assert indices[99] in (1, 3, 4)
    _, exists = sample(
        unit_rows(2),
        unit_rows(2, seed=1),
        torch.tensor([0.1, 0.9]),
        query_groups=[0, 1],
        candidate_groups=[0, 1],
        texts=([7, 7], [7, 7]),
    )
    assert not exists.any()


def test_sampling_does_not_accumulate_floating_point_numbers():
    """On CUDA torch refuses such a `cumsum` if deterministic algorithms are required."""
    summed = []

    class NoteSums(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ == "cumsum":
                summed.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with NoteSums():
        sample(unit_rows(3), unit_rows(3, seed=1), torch.rand(3), query_groups=[0, 1, 2], candidate_groups=[0, 1, 2])
    assert summed == [torch.int64]


def test_rare_candidates_are_sampled_with_their_exact_frequency():
    """Each of 4,096 equal candidates has an equal part of the interval; nothing is lost in rounding."""
    num_samples = 4096
    indices, _ = sample(
        unit_rows(1).expand(num_samples, -1),
        unit_rows(1, seed=1).expand(4096, -1),
        (torch.arange(num_samples) + 0.5) / num_samples,
        query_groups=[-1] * num_samples,
        candidate_groups=list(range(4096)),
    )
    assert torch.equal(indices.bincount(minlength=4096), torch.ones(4096, dtype=torch.int64))


def test_hard_negatives_are_the_most_similar_candidates_at_a_high_scale():
    candidates = torch.eye(4)
    queries = torch.tensor([[1.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.8, 1.0]])
    indices, _ = sample(
        queries,
        candidates,
        torch.tensor([0.3, 0.7]),
        query_groups=[0, 3],
        candidate_groups=[0, 1, 2, 3],
        scale=torch.tensor(100.0),
    )
    assert indices.tolist() == [1, 2]


def test_a_row_without_any_negative_is_reported():
    indices, exists = sample(
        unit_rows(3),
        unit_rows(3, seed=1),
        torch.tensor([0.0, 0.5, 0.999999]),
        query_groups=[1, 2, 1],
        candidate_groups=[1, 1, 2],
        present=[True, True, False],
    )
    assert exists.tolist() == [False, True, False]
    assert indices[0] == indices[2] == 0
    assert indices[1] in (0, 1)
