"""Training losses as sums over rows: divided by a global count, they do not depend on how rows are distributed."""

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from simple_multimodal.models.configuration import ContrastiveForm
from simple_multimodal.models.distributed import gather_objects, gather_rows, share_of, sum_over_processes


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `(batch, tokens, size)` states over tokens whose `(batch, tokens)` mask is `True`, or 0."""
    weights = mask[..., None].float()  # half precision can neither count nor sum many tokens
    return ((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(states.dtype)


def normalize(embeddings: torch.Tensor) -> torch.Tensor:
    """Scale the last axis to length one, in float32; finite for a row of zeros."""
    return F.normalize(embeddings.float(), dim=-1, eps=1e-6)


def compute_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products with a floating-point tensor: its own, or that of autocast."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def similarities(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosines `(num_first, num_second)` of unit rows, always in float32: the scale multiplies errors."""
    with torch.autocast(first.device.type, enabled=False):
        return first.float() @ second.float().T


def _directional_softmax(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    scale: torch.Tensor,
    positives: torch.Tensor,
    present: torch.Tensor,
) -> torch.Tensor:
    """Return minus the mean log-probability of each query's positives, `(num_queries,)`; 0 without positives."""
    logits = scale * similarities(queries, candidates)
    logits = logits.masked_fill(~present[None], torch.finfo(logits.dtype).min)
    log_probabilities = logits.log_softmax(dim=1)
    weights = positives / positives.sum(dim=1, keepdim=True).clamp(min=1)
    return -(log_probabilities * weights).masked_fill(~positives, 0).sum(dim=1)


def contrastive_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    present: torch.Tensor,
    group_ids: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    form: ContrastiveForm,
    gather: bool = True,
    recompute: bool = False,
) -> torch.Tensor:
    """Sum the symmetric contrastive loss of this process's rows against the rows of all processes.

    Rows that share a group are positives of each other: the softmax form averages the log-probability over a row's
    positives (the outer form of SupCon, Khosla et al. 2020; with one positive, InfoNCE as in CLIP, Radford et al.
    2021), the sigmoid form labels every pair (SigLIP, Zhai et al. 2023). A row never becomes its own negative through
    a duplicate.

    Args:
        first, second (`torch.Tensor` of shape `(batch_size, dim)`): Unit-length embeddings of the two sides.
        present (`torch.BoolTensor` of shape `(batch_size,)`): Rows that have both sides; others take no part.
        group_ids (`torch.LongTensor` of shape `(batch_size,)`): Rows with equal ids mean the same clip.
        logit_scale (`torch.Tensor`): Inverse temperature (not its logarithm).
        logit_bias (`torch.Tensor`, *optional*): Bias of the sigmoid form.
        form (`str`): `softmax` or `sigmoid`.
        gather (`bool`): Whether rows of other processes take part.
        recompute (`bool`): Whether to recompute the matrices of rows by rows in the backward pass, one direction at a
            time, instead of keeping those of all objectives: this saves much memory with thousands of rows.

    Returns:
        `torch.Tensor`, a scalar: The sum over local rows; divide by the global number of present rows.
    """
    spread = gather_rows if gather else (lambda rows: rows)
    all_first, all_second = spread(first), spread(second)
    all_present, all_groups = spread(present), spread(group_ids)
    positives = (group_ids[:, None] == all_groups[None]) & present[:, None] & all_present[None]
    recomputed = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    run = recomputed if recompute else (lambda function, *inputs: function(*inputs))
    if form == "softmax":
        per_row = run(_directional_softmax, first, all_second, logit_scale, positives, all_present)
        per_row = (per_row + run(_directional_softmax, second, all_first, logit_scale, positives, all_present)) / 2
        return per_row.masked_fill(~present, 0).sum()
    pairs = present[:, None] & all_present[None]
    # Each pair is in the row of its first side; summing one direction over all processes counts every pair once.
    return run(_sigmoid_pairs, first, all_second, logit_scale, logit_bias, positives, pairs)


def _sigmoid_pairs(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    positives: torch.Tensor,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """Return minus the log-likelihood of all labels, summed."""
    logits = scale * similarities(queries, candidates)
    labels = positives.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(labels * (logits + bias)).masked_fill(~pairs, 0).sum()


MAX_BLOCK_ELEMENTS = 1 << 24
"""Most logits that the loss over a whole set holds at once: 64 MiB of float32, a few times over."""


@torch.no_grad()
def whole_set_contrastive_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    group_ids: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    form: ContrastiveForm,
) -> torch.Tensor:
    """Sum [`contrastive_loss`] over all rows of a set against the whole set, a block of rows at a time.

    Every process has the same rows, computes the blocks of its share, and returns the same sum. Blocks do not depend
    on the number of processes. Each of the two directions is a separate product, so that a row's softmax sees all of
    its candidates at once.

    Args:
        first, second (`torch.Tensor` of shape `(num_rows, dim)`): Unit-length embeddings of rows that have both sides.
        group_ids, logit_scale, logit_bias, form: As for [`contrastive_loss`].
    """
    present = torch.ones_like(group_ids, dtype=torch.bool)
    num_rows = max(1, MAX_BLOCK_ELEMENTS // len(group_ids))
    begins = range(0, len(group_ids), num_rows)

    def losses_of(begin: int) -> torch.Tensor:
        end = begin + num_rows
        positives = group_ids[begin:end, None] == group_ids
        if form == "sigmoid":
            pairs = torch.ones_like(positives)
            return _sigmoid_pairs(first[begin:end], second, logit_scale, logit_bias, positives, pairs)[None]
        there = _directional_softmax(first[begin:end], second, logit_scale, positives, present)
        back = _directional_softmax(second[begin:end], first, logit_scale, positives, present)
        return (there + back) / 2

    found: dict[int, torch.Tensor] = {}
    for part in gather_objects({begin: losses_of(begin).cpu() for begin in share_of(begins)}):
        found |= part
    return torch.cat([found[begin] for begin in begins]).sum()


DRAW_STEPS = 2**40
"""Integer units of the sampling weights: finer than the 24 bits of the random number that decides."""


@torch.no_grad()
def draw_hard_negatives(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    *,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    query_texts: torch.Tensor,
    candidate_texts: torch.Tensor,
    candidate_present: torch.Tensor,
    logit_scale: torch.Tensor,
    hard_ratio: float,
    uniform: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample, per query, one candidate of another group and text: with probability `hard_ratio` in proportion to
    `exp(scale * similarity)`, else uniformly.

    With `hard_ratio` 1 the distribution is ALBEF's (Li et al. 2021). Once the contrastive loss has sharpened it, the
    nearest candidate is sampled each time, and the head never learns to reject the others, which retrieval ranks as
    well. A candidate whose own text equals the query's is not a negative, however different the clips: the text is
    true of both.

    Sampling inverts the cumulative distribution at a number that comes with the row, so that it depends only on the
    row and the global batch. The distribution is accumulated in integers, which is exact in any order; torch has no
    deterministic cumulative sum of floating-point numbers on CUDA.

    Args:
        queries (`torch.Tensor` of shape `(num_queries, dim)`): Unit-length text embeddings.
        candidates (`torch.Tensor` of shape `(num_candidates, dim)`): Unit-length clip embeddings of all processes.
        query_groups, candidate_groups (`torch.LongTensor`): Group of each query and candidate.
        query_texts, candidate_texts (`torch.LongTensor`): Ids that are equal for rows with equal texts.
        candidate_present (`torch.BoolTensor` of shape `(num_candidates,)`): Candidates that have a clip.
        logit_scale (`torch.Tensor`): Inverse temperature.
        hard_ratio (`float`): Probability of sampling by similarity.
        uniform (`torch.Tensor` of shape `(num_queries,)`): Number in [0, 1) per query.

    Returns:
        `(indices, exists)`: Candidate index per query, and whether the query has any negative (`int64` and `bool`,
            both of shape `(num_queries,)`); the index is 0 where there is none.
    """
    allowed = (query_groups[:, None] != candidate_groups[None]) & candidate_present[None]
    allowed &= query_texts[:, None] != candidate_texts[None]
    logits = (logit_scale * similarities(queries, candidates)).double().masked_fill(~allowed, float("-inf"))
    exists = allowed.any(dim=1)
    hard = torch.where(exists[:, None], logits, 0.0).softmax(dim=1) * allowed
    weights = hard_ratio * hard + (1 - hard_ratio) * allowed / allowed.sum(dim=1, keepdim=True).clamp(min=1)
    cumulative = (weights * DRAW_STEPS).round().long().cumsum(dim=1)
    total = cumulative[:, -1:]
    targets = torch.minimum((uniform.double()[:, None] * total).long(), total - 1)
    indices = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return torch.where(exists, indices, 0), exists


def answer_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: dict[str, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of the answers that the model knows, divided by their number.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_answers)`): One logit per answer.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Index of the answer; negative if it is not in the list,
            in which case it takes no part in the loss.
        num_items (`dict[str, torch.Tensor]`, *optional*): Global count of the answered questions, `answer`; by default
            that of this batch on all processes.

    Returns:
        The loss, a scalar, and `(sum, count)` of correct answers over all questions.
    """
    known = labels >= 0
    count = num_items["answer"] if num_items else sum_over_processes(known.sum().float())
    loss = F.cross_entropy(logits, labels.masked_fill(~known, -100), ignore_index=-100, reduction="sum")
    correct = (logits.argmax(dim=-1) == labels).sum()
    return loss / count.to(loss.device).clamp(min=1), torch.stack(
        [correct, torch.full_like(correct, len(labels))]
    ).float()


def label_smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Return the sum of the cross-entropies of rows with one label each.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): One logit per label.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Number of the label; negative where it is unknown, which
            leaves the row out.
        smoothing (`float`, *optional*, defaults to 0.0): Share of the target that is spread evenly over all labels
            (Szegedy et al. 2016).
    """
    targets = labels.masked_fill(labels < 0, -100)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum", label_smoothing=smoothing)


def asymmetric_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    positive_focus: float = 0.0,
    negative_focus: float = 0.0,
    negative_margin: float = 0.0,
) -> torch.Tensor:
    """Return the sum of the asymmetric losses of rows with any number of labels ([Ridnik et al.,
    2021](https://huggingface.co/papers/2009.14119)).

    With `p` the probability of a label and `q = max(p - negative_margin, 0)`, a label that applies adds
    `-(1 - p)^positive_focus log p`, and one that does not adds `-q^negative_focus log(1 - q)`. With zeros this is
    binary cross-entropy, with equal focus and no margin the focal loss (Lin et al. 2017, without weights of classes).

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): One logit per label.
        labels (`torch.FloatTensor` of shape `(batch_size, num_labels)`): 1 for labels that apply, 0 for others, NaN
            where it is unknown, which leaves the entry out.
        positive_focus, negative_focus (`float`, *optional*, default to 0.0): Exponents that reduce the weight of
            entries that the model already gets right.
        negative_margin (`float`, *optional*, defaults to 0.0): Probability below which a label that does not apply
            adds nothing.
    """
    known = ~labels.isnan()
    applies = labels == 1
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    losses = -torch.where(applies, log_p, log_not_p)
    p = logits.sigmoid()
    if negative_margin > 0:
        q = (p - negative_margin).clamp(min=0)
        losses = torch.where(applies, losses, -torch.log1p(-q))
    else:
        q = p
    # A power of zero is left out: its gradient would be NaN where the base is zero.
    if positive_focus > 0:
        losses = torch.where(applies, losses * (1 - p) ** positive_focus, losses)
    if negative_focus > 0:
        losses = torch.where(applies, losses, losses * q**negative_focus)
    return losses.masked_fill(~known, 0).sum()
