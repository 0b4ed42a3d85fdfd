"""Matching: whether a text and a clip belong together, trained on negatives from the batches of all processes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from simple_multimodal.models.distributed import RowExchange, first_row, gather_rows
from simple_multimodal.models.fusion.crossformer import Clip, Stream
from simple_multimodal.models.losses import compute_dtype, draw_hard_negatives
from simple_multimodal.models.outputs import Batch


def take_clips(clip: Clip, rows: torch.Tensor) -> Clip:
    """Take the streams of rows of any process; only these are sent, and gradients flow back to their owners.

    Under autocast, states are rounded on the way to its dtype, which the fusion multiplies them in anyway.

    Args:
        clip (`dict[Modality, Stream]`): Streams of the rows of this process.
        rows (`torch.LongTensor` of shape `(batch_size,)`): Positions in what [`gather_rows`] would return.

    Returns:
        `dict[Modality, Stream]`: Streams padded to the longest of any process.
    """
    exchange = RowExchange(rows, [stream.mask.shape[1] for stream in clip.values()])
    taken: Clip = {}
    for (modality, (states, mask)), length in zip(clip.items(), exchange.largest, strict=True):
        missing = length - mask.shape[1]
        if missing:
            states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        taken[modality] = Stream(exchange.take(states, compute_dtype(states)), exchange.take(mask, torch.uint8))
    return taken


def matching_loss(
    score: Callable[[Stream, Clip], torch.Tensor],
    text: Stream,
    clip: Clip,
    *,
    text_embeds: torch.Tensor,
    clip_embeds: torch.Tensor,
    has_text: torch.Tensor,
    has_clip: torch.Tensor,
    logit_scale: torch.Tensor,
    hard_negative_ratio: float,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the matching loss: does the text belong to the clip? Rows not `match_aligned` get a negative clip of any
    process, from another group and with a different text of its own.

    Args:
        score (`Callable`): The model's `matching_logits`.
        text (`Stream`), clip (`dict[Modality, Stream]`): What `score` takes of the rows of this process.
        text_embeds, clip_embeds (`torch.Tensor` of shape `(batch_size, dim)`): Unit-length embeddings; hard negatives
            are sampled by their similarity times `logit_scale`.
        hard_negative_ratio (`float`): Share of the negatives that are hard; see [`draw_hard_negatives`].
        has_text, has_clip (`torch.BoolTensor` of shape `(batch_size,)`): Rows that have one; others take no part.
        batch (`dict[str, torch.Tensor]`): The collator's batch, for its groups, texts and random choices.

    Returns:
        Sum of the loss over rows, `(sum, count)` of correct rows, and the logits `(batch_size, 2)`.
    """
    own = torch.arange(text.mask.shape[0], device=text.mask.device) + first_row(text.mask.shape[0])
    negatives, exists = draw_hard_negatives(
        text_embeds,
        gather_rows(clip_embeds.detach()),
        query_groups=batch["group_ids"],
        candidate_groups=gather_rows(batch["group_ids"]),
        query_texts=batch["text_ids"],
        candidate_texts=gather_rows(batch["text_ids"]),
        candidate_present=gather_rows(has_clip),
        logit_scale=logit_scale,
        hard_ratio=hard_negative_ratio,
        uniform=batch["match_uniform"],
    )
    aligned = batch["match_aligned"] | ~exists
    chosen = torch.where(aligned, own, negatives)
    logits = score(text, take_clips(clip, chosen))
    counted = has_text & has_clip
    loss = F.cross_entropy(logits, aligned.long(), reduction="none").masked_fill(~counted, 0).sum()
    correct = ((logits.argmax(dim=-1) == aligned) & counted).sum()
    return loss, torch.stack([correct, counted.sum()]).float(), logits
