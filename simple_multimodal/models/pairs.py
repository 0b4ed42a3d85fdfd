"""Encoded clips and texts, and scores of pairs of them: every clip and text runs through its tower once."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from simple_multimodal.modalities import MODALITIES, Modality
from simple_multimodal.models.distributed import gather_objects
from simple_multimodal.models.fusion.crossformer import Clip, Stream
from simple_multimodal.progress import can_show_bars

PAIRS_PER_BATCH = 256
"""Pairs of text and clip that go through the fusion layers at once; bounds memory."""

CLIP_TOKENS_PER_BATCH = 2**15
"""Tokens of clips, padding included, that the fusion layers hold at once; bounds memory where clips have few texts.
At base size (12 layers, 768 wide, float32) their keys and values take 2.4 GB; a clip of the default towers has 2,080
tokens.
"""

Batch = dict[str, torch.Tensor]


class Encoded(NamedTuple):
    """A clip or a text encoded by its towers, on the CPU.

    Args:
        embed (`torch.FloatTensor` of shape `(contrastive_dim,)`, *optional*): Unit-length embedding; `None` from a
            model that has none.
        tokens (`dict[Modality, torch.Tensor]`): Tokens that the fusion takes of it, as tensors of shape `(num_tokens,
            hidden_size)` without padding.
    """

    embed: torch.Tensor | None
    tokens: dict[Modality, torch.Tensor]


def _rows(embeds: torch.Tensor | None, streams: Clip) -> list[Encoded]:
    """Split a batch into rows."""
    num_rows = len(next(iter(streams.values())).mask)
    return [
        Encoded(
            None if embeds is None else embeds[row].float().cpu().clone(),  # not a view, which would be sent whole
            {m: stream.states[row][stream.mask[row]].cpu() for m, stream in streams.items()},
        )
        for row in range(num_rows)
    ]


@torch.no_grad()
def encode_clips(model: PreTrainedModel, batch: Batch) -> list[Encoded]:
    """Encode the clips of a collator's batch that is on the model's device."""
    return _rows(*model.encode_clip(batch))


@torch.no_grad()
def encode_texts(model: PreTrainedModel, batch: Batch) -> list[Encoded]:
    """Encode the texts of a batch (`input_ids`, `attention_mask`) that is on the model's device."""
    embeds, stream = model.encode_text(batch)
    return _rows(embeds, {"text": stream})


def padded(tokens: Sequence[torch.Tensor], device: torch.device) -> Stream:
    """Pad rows of different lengths, each of shape `(num_tokens, hidden_size)`, to a stream."""
    lengths = torch.tensor([len(row) for row in tokens])
    longest = max(1, int(lengths.max()))
    states = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in tokens])
    return Stream(states.to(device), (torch.arange(longest) < lengths[:, None]).to(device))


def ranking_scores(
    model: PreTrainedModel, logits: torch.Tensor, cosines: torch.Tensor, *, weight: float | None = None
) -> torch.Tensor:
    """
    Return the scores by which pairs of text and clip are ranked, from the outputs of the matching head.

    With `matching_residual`, this is the scaled cosine plus the head's weighted log odds. Hard negatives are sampled
    in proportion to the exponential of the scaled cosine, so the head learns what the cosine lacks, as in
    noise-contrastive estimation against a model (Gutmann & Hyvärinen 2010; residual energy-based models, Deng et al.
    2020): only the sum of both is a score of the pair. The weight would be 1 if the head knew new clips as well as
    those that it was trained on. Without `matching_residual`, it is the head's probability, as in ALBEF and ALPRO.

    Args:
        model (`PreTrainedModel`): Model with a matching head.
        logits (`torch.FloatTensor` of shape `(num_pairs, 2)`): Outputs of `matching_logits`.
        cosines (`torch.FloatTensor` of shape `(num_pairs,)`): Cosines of the embeddings of each pair.
        weight (`float`, *optional*): Weight of the log odds; by default the model's `matching_weight`.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs,)`: Scores; higher is better.
    """
    if model.cosine_weight == 0:
        return logits.softmax(dim=1)[:, 1]
    weight = model.config.matching_weight if weight is None else weight
    return weight * (logits[:, 1] - logits[:, 0]) + model.cosine_weight * cosines


class Block(NamedTuple):
    """Pairs that are scored together: some clips, with the same number of texts for each.

    Args:
        clips (`np.ndarray` of shape `(num_clips,)`): Positions of the clips.
        texts (`np.ndarray` of shape `(num_clips, num_texts)`): Positions of the texts of each clip.
        places (`np.ndarray` of shape `(num_clips, num_texts)`): Position of each pair in the list of pairs, -1 for
            padding.
    """

    clips: np.ndarray
    texts: np.ndarray
    places: np.ndarray


def plan_blocks(
    pairs: np.ndarray,
    text_lengths: Sequence[int],
    clip_lengths: np.ndarray,
    *,
    pairs_per_batch: int,
    clip_tokens_per_batch: int,
) -> Iterator[Block]:
    """
    Group pairs to compute what depends on a clip alone for many texts at once, with little padding.

    Args:
        pairs (`np.ndarray` of shape `(num_pairs, 2)`): Positions of text and clip.
        text_lengths (`Sequence[int]`): Number of tokens of each text; texts of a block have similar lengths.
        clip_lengths (`np.ndarray` of shape `(num_clips, num_modalities)`): Number of tokens of each clip; among clips
            with the same number of texts, those of similar length are grouped.
        pairs_per_batch (`int`): Most pairs of a block.
        clip_tokens_per_batch (`int`): Most tokens of a block's clips, each padded to the longest in each modality. A
            clip that has more is alone in its block.

    Yields:
        [`Block`]: Blocks that together hold every pair once; they depend only on the arguments. No Python object is
        created per pair, of which there may be many millions.
    """
    order = np.lexsort((np.asarray(text_lengths)[pairs[:, 0]], pairs[:, 1]))  # by clip, then by length
    begins = np.flatnonzero(np.diff(pairs[order, 1], prepend=-1))
    ends = np.append(begins, len(order))[1:]
    runs = [
        (run, min(run + pairs_per_batch, end))  # of one clip
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        for run in range(begin, end, pairs_per_batch)
    ]
    # Most texts first, then the longest clip.
    clip_of = pairs[:, 1]
    totals = clip_lengths.sum(axis=-1)
    runs.sort(key=lambda run: (run[0] - run[1], -totals[clip_of[order[run[0]]]]))
    first = 0
    while first < len(runs):
        width = runs[first][1] - runs[first][0]
        last, longest = first, np.zeros_like(clip_lengths[0])
        while last < len(runs) and (last - first + 1) * width <= pairs_per_batch:
            longest = np.maximum(longest, clip_lengths[clip_of[order[runs[last][0]]]])
            if last > first and (last - first + 1) * longest.sum() > clip_tokens_per_batch:
                break
            last += 1
        block = runs[first:last]
        first = last
        places = np.full((len(block), width), -1)
        for row, (begin, end) in zip(places, block, strict=True):
            row[: end - begin] = order[begin:end]
        fill = order[[end - 1 for _, end in block], None]  # repeated where a clip has fewer texts
        filled = np.where(places < 0, fill, places)
        yield Block(pairs[filled[:, 0], 1], pairs[filled, 0], places)


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
    clip_tokens_per_batch: int = CLIP_TOKENS_PER_BATCH,
    finished: Mapping[int, torch.Tensor] = MappingProxyType({}),
    on_block: Callable[[int, torch.Tensor], None] = lambda number, outputs: None,
    shows_progress: bool = False,
) -> torch.Tensor:
    """
    Run pairs of text and clip through the fusion layers; each pair is scored by one process.

    Memory is bounded by `pairs_per_batch` fused pairs and by `clip_tokens_per_batch` tokens of clips: in the form
    `cross_attention` that many have keys and values at once; in the others, which keep nothing of a clip, that many
    run through the layers at once, counted for each pair. Only a single clip that has more exceeds it. Which pairs
    form a block does not depend on the number of processes, so neither do the scores.

    Args:
        model (`PreTrainedModel`): Model in evaluation mode.
        score (`Callable`): Method of the model, `matching_logits` or `answer_logits`.
        texts, clips (`Sequence[Encoded]`): Encoded texts and clips, the same on all processes.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`): Positions of text and clip.
        process_index, num_processes (`int`, *optional*): Index of the process whose share to score, and their number.
        autocast (`Callable`, *optional*): Context manager of the precision to run in.
        pairs_per_batch (`int`, *optional*, defaults to 256): Pairs at once.
        clip_tokens_per_batch (`int`, *optional*, defaults to 32768): Tokens of clips at once.
        finished (`Mapping[int, torch.Tensor]`, *optional*): Blocks of this process's share that an earlier call with
            the same arguments passed to `on_block`; they are not computed again.
        on_block (`Callable`, *optional*): Called with number and outputs of each block once it is computed.
        shows_progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar over this process's
            share.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs, num_outputs)`, the same on all processes.
    """
    text_lengths = [len(text.tokens["text"]) for text in texts]
    clip_lengths = np.array([[len(tokens) for tokens in clip.tokens.values()] for clip in clips])

    def blocks() -> Iterator[tuple[int, Block]]:
        plan = plan_blocks(
            pairs,
            text_lengths,
            clip_lengths,
            pairs_per_batch=pairs_per_batch,
            clip_tokens_per_batch=clip_tokens_per_batch,
        )
        return enumerate(plan)

    own = {number: outputs for number, outputs in finished.items() if number % num_processes == process_index}
    share = itertools.islice(blocks(), process_index, None, num_processes)
    total = sum(int((block.places >= 0).sum()) for _, block in share) if shows_progress else None
    done = sum(len(outputs) for outputs in own.values())
    with tqdm(unit="pairs", total=total, initial=done, disable=not (shows_progress and can_show_bars())) as bar:
        for number, block in blocks():
            if number % num_processes != process_index or number in own:
                continue
            text = padded([texts[t].tokens["text"] for t in block.texts.flat], model.device)
            names = [m for m in MODALITIES if m in clips[block.clips[0]].tokens]
            clip: Clip = {m: padded([clips[c].tokens[m] for c in block.clips], model.device) for m in names}
            with autocast():
                side = model.cache_clip(clip)
                if side is clip:  # nothing can be kept: every text gets the clip again
                    longest = sum(stream.mask.shape[1] for stream in clip.values())
                    rows = torch.arange(block.texts.size, device=model.device)
                    parts = [
                        score(
                            text.select(part),
                            {m: stream.select(part // block.texts.shape[1]) for m, stream in clip.items()},
                        )
                        for part in rows.split(max(clip_tokens_per_batch // max(longest, 1), 1))
                    ]
                    outputs = torch.cat(parts)
                else:
                    outputs = score(text, side)
                outputs = outputs.float().cpu()
            own[number] = outputs[torch.from_numpy(block.places.ravel() >= 0)]
            on_block(number, own[number])
            bar.update(len(own[number]))
    gathered = dict(part for parts in gather_objects(own) for part in parts.items())
    if not gathered:
        return torch.empty(0, 2)
    scores = torch.empty(len(pairs), next(iter(gathered.values())).shape[1])
    for number, block in blocks():
        scores[block.places[block.places >= 0]] = gathered[number]
    return scores
