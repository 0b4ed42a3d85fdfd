"""Clips and texts after their towers, and scores of pairs of them: every clip and text runs through its tower once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from simple_multimodal.modalities import MODALITIES, Modality
from simple_multimodal.models.fusion.crossformer import Clip, Stream

PAIRS_PER_BATCH = 256
"""Pairs of text and clip that go through the fusion layers at once; bounds memory."""

Batch = dict[str, torch.Tensor]


class Encoded(NamedTuple):
    """A clip or a text after its towers, on the CPU.

    Args:
        embed (`torch.FloatTensor` of shape `(contrastive_dim,)`, *optional*): unit-length embedding; `None` from a
            model that has none.
        tokens (`dict[Modality, torch.Tensor]`): what the fusion takes of it, tensors of shape `(num_tokens,
            hidden_size)` without padding.
    """

    embed: torch.Tensor | None
    tokens: dict[Modality, torch.Tensor]


def _rows(embeds: torch.Tensor | None, streams: Clip) -> list[Encoded]:
    """A batch, row by row."""
    num_rows = len(next(iter(streams.values())).mask)
    return [
        Encoded(
            None if embeds is None else embeds[row].float().cpu(),
            {m: stream.states[row][stream.mask[row]].cpu() for m, stream in streams.items()},
        )
        for row in range(num_rows)
    ]


@torch.no_grad()
def encode_clips(model: PreTrainedModel, batch: Batch) -> list[Encoded]:
    """The clips of a collator's batch, on the model's device, after their towers."""
    return _rows(*model.encode_clip(batch))


@torch.no_grad()
def encode_texts(model: PreTrainedModel, batch: Batch) -> list[Encoded]:
    """The texts of a batch (`input_ids`, `attention_mask`), on the model's device, after their tower."""
    embeds, stream = model.encode_text(batch)
    return _rows(embeds, {"text": stream})


def padded(tokens: Sequence[torch.Tensor], device: torch.device) -> Stream:
    """A stream out of rows of different lengths, each of shape `(num_tokens, hidden_size)`."""
    lengths = torch.tensor([len(row) for row in tokens])
    longest = max(1, int(lengths.max()))
    states = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in tokens])
    return Stream(states.to(device), (torch.arange(longest) < lengths[:, None]).to(device))


class Block(NamedTuple):
    """Pairs that are scored together: some clips, and equally many texts for each.

    Args:
        clips (`list[int]`): positions of the clips.
        texts (`list[list[int]]`): for each clip positions of texts, of one length.
        places (`list[list[int]]`): where in the list of pairs each stands, -1 for one that fills up.
    """

    clips: list[int]
    texts: list[list[int]]
    places: list[list[int]]


def plan_blocks(pairs: np.ndarray, text_lengths: Sequence[int], pairs_per_batch: int) -> Iterator[Block]:
    """
    Group pairs so that what depends on a clip alone is computed for many texts at once, with little padding.

    Args:
        pairs (`np.ndarray` of shape `(num_pairs, 2)`): positions of text and clip.
        text_lengths (`Sequence[int]`): tokens of each text; texts of a block are of similar length.
        pairs_per_batch (`int`): most pairs of a block.

    Yields:
        [`Block`]: together they hold every pair once; they depend on nothing else than the arguments.
    """
    by_clip: dict[int, list[int]] = {}
    for place, (_, clip) in enumerate(pairs.tolist()):
        by_clip.setdefault(clip, []).append(place)
    runs: list[tuple[int, list[int]]] = []
    for clip, places in by_clip.items():
        places.sort(key=lambda place: text_lengths[pairs[place, 0]])
        runs += [(clip, places[begin : begin + pairs_per_batch]) for begin in range(0, len(places), pairs_per_batch)]
    runs.sort(key=lambda run: -len(run[1]))
    begin = 0
    while begin < len(runs):
        width = len(runs[begin][1])
        block = runs[begin : begin + max(pairs_per_batch // width, 1)]
        begin += len(block)
        filled = [places + [places[-1]] * (width - len(places)) for _, places in block]
        yield Block(
            [clip for clip, _ in block],
            [[int(pairs[place, 0]) for place in places] for places in filled],
            [places + [-1] * (width - len(places)) for _, places in block],
        )


@torch.no_grad()
def score_pairs(
    model: PreTrainedModel,
    score: Callable[[Stream, Any], torch.Tensor],
    texts: Sequence[Encoded],
    clips: Sequence[Encoded],
    pairs: np.ndarray,
    *,
    process_index: int = 0,
    num_processes: int = 1,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    pairs_per_batch: int = PAIRS_PER_BATCH,
    on_block: Callable[[int], None] = lambda num_pairs: None,
) -> torch.Tensor:
    """
    Run pairs of text and clip through the fusion layers; each pair is scored by one process.

    Memory is bounded by `pairs_per_batch` fused pairs, and in the form `cross_attention` by keys and values of as
    many clips as a block has, at most `pairs_per_batch`.

    Args:
        model (`PreTrainedModel`): in evaluation mode.
        score (`Callable`): a method of the model, `matching_logits` or `answer_logits`.
        texts, clips (`Sequence[Encoded]`): after their towers, the same on all processes.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`): positions of text and clip.
        process_index, num_processes (`int`, *optional*): whose share to score.
        autocast (`Callable`, *optional*): under which precision to run.
        pairs_per_batch (`int`, *optional*, defaults to 256): pairs at once.
        on_block (`Callable`, *optional*): called with the number of pairs after each block.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs, num_outputs)`, the same on all processes.
    """
    lengths = [len(text.tokens["text"]) for text in texts]
    own: list[tuple[list[int], torch.Tensor]] = []
    for number, block in enumerate(plan_blocks(pairs, lengths, pairs_per_batch)):
        if number % num_processes != process_index:
            continue
        text = padded([texts[t].tokens["text"] for row in block.texts for t in row], model.device)
        names = [m for m in MODALITIES if m in clips[block.clips[0]].tokens]
        clip: Clip = {m: padded([clips[c].tokens[m] for c in block.clips], model.device) for m in names}
        with autocast():
            side = model.cache_clip(clip)
            if side is clip:  # nothing can be kept: every text gets the clip anew
                rows = torch.arange(len(block.clips), device=model.device).repeat_interleave(len(block.texts[0]))
                side = {m: stream.select(rows) for m, stream in clip.items()}
            outputs = score(text, side).float().cpu()
        places = [place for row in block.places for place in row]
        kept = [number for number, place in enumerate(places) if place >= 0]
        own.append(([places[number] for number in kept], outputs[kept]))
        on_block(len(kept))
    parts = [part for parts in gather_object([own]) for part in parts]
    if not parts:
        return torch.empty(0, 2)
    scores = torch.empty(len(pairs), parts[0][1].shape[1])
    for places, outputs in parts:
        scores[places] = outputs
    return scores
