"""Evaluation inside the main job: losses over whole sets, and retrieval between captions and clips, each sample
once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import gather_object

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.fields import read_name
from simple_multimodal.data.manifest import MultimodalDataset
from simple_multimodal.data.tables import read_jsonl
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.retrieval import matched_retrieval, text_video_retrieval, with_prefix
from simple_multimodal.evaluation.twins import pair_accuracy, pair_accuracy_interval
from simple_multimodal.modalities import CLIP_MODALITIES, MODALITIES, PRESENCE_KEYS, Modality
from simple_multimodal.models.alpro import AlproForRetrieval
from simple_multimodal.models.losses import contrastive_loss
from simple_multimodal.models.modeling import CONTRASTIVE_PAIRS, Batch, MultimodalForPreTraining
from simple_multimodal.models.pairs import Encoded, encode_texts, score_pairs

HEADLINE = "text_to_video_R@1"

RetrievalModel = MultimodalForPreTraining | AlproForRetrieval
"""What finds clips by text."""


class EncodedRow(NamedTuple):
    """One row after the towers, on the CPU: its embeddings by side (`clip` included), and its real fusion tokens.

    One that could not be read `is_bad`: it has no clip, and its captions and whoever looks for it are wrong.
    """

    row_id: int
    group_id: int
    presence: dict[str, bool]
    embeds: dict[str, torch.Tensor]
    clip: dict[Modality, torch.Tensor]
    is_bad: bool


class EncodedCaption(NamedTuple):
    """One caption after the text tower, on the CPU."""

    row_id: int
    group_id: int
    embed: torch.Tensor
    tokens: torch.Tensor


class EncodedSet(NamedTuple):
    """Rows and captions of a whole set in the order of the data set, and `(sum, count)` of each masked loss and
    metric.
    """

    rows: list[EncodedRow]
    captions: list[EncodedCaption]
    losses: dict[str, tuple[float, float]]
    metrics: dict[str, tuple[float, float]]


@dataclass
class Evaluation:
    """
    Args:
        metrics (`dict[str, float]`): losses, accuracies and task metrics, without prefix.
        intervals (`dict[str, tuple[float, float]]`): bootstrap interval of each task metric.
        counts (`dict[str, int]`): what the numbers are over.
        protocol (`str`): how the numbers were made, in one phrase.
        headline (`str`, *optional*): the metric that matters most; `None` where the set does not allow it.
        bad_samples (`list[BadSample]`): rows that could not be read, and count as wrong.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]
    protocol: str
    headline: str | None
    bad_samples: list[BadSample] = field(default_factory=list, kw_only=True)


@dataclass
class RetrievalEvaluation(Evaluation):
    """
    Args:
        scores (`np.ndarray` of shape `(num_captions, num_clips)`): cosine of each caption with each candidate clip.
        captions (`list[EncodedCaption]`), clips (`list[EncodedRow]`): the two axes of `scores`.
        rows (`list[EncodedRow]`): all rows, also those whose clip another row stands for.
        rerank_top_k (`int`, *optional*): how many candidates matching re-ranked with a better R@1 than the cosine
            has; 0: it was not better; `None`: nothing was re-ranked.
    """

    scores: np.ndarray
    captions: list[EncodedCaption]
    clips: list[EncodedRow]
    rows: list[EncodedRow]
    rerank_top_k: int | None


@dataclass
class PairSet:
    """Pairs of evaluation rows whose clips differ in one thing, say in their sound.

    Args:
        name (`str`): that thing; metrics are `{name}_pair_accuracy`, `{name}_num_pairs` and, with `swapped`,
            `{name}_pair_flip_share`.
        pairs (`list[dict[str, str]]`): ids `a` and `b` of two evaluation rows; with `swapped`, also `a_swapped` and
            `b_swapped`, ids of `swapped`: clip a with that thing of b, and the other way round.
        swapped (`MultimodalDataset`, *optional*): rows of the swapped clips.
    """

    name: str
    pairs: list[dict[str, str]]
    swapped: MultimodalDataset | None = None

    @classmethod
    def from_file(cls, path: str | os.PathLike, swapped: MultimodalDataset | None = None) -> "PairSet":
        """Read pairs from a JSONL file, which gives the set its name: `sound_pairs.jsonl` is about `sound`."""
        needed = ("a", "b") if swapped is None else ("a", "b", "a_swapped", "b_swapped")
        pairs = []
        for number, record in read_jsonl(Path(path)):
            try:
                pair = {key: read_name(record.get(key), key) for key in needed}
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            missing = [key for key, name in pair.items() if name is None]
            if missing:
                raise ValueError(f"{path}, line {number}: has no {missing}; a pair needs {list(needed)}.")
            pairs.append(cast(dict[str, str], pair))
        if not pairs:
            raise ValueError(f"{path} holds no pair.")
        return cls(Path(path).stem.removesuffix("_pairs"), pairs, swapped)


def pair_metrics(
    pair_set: PairSet,
    captions: dict[str, torch.Tensor],
    clips: dict[str, torch.Tensor],
    swapped: dict[str, torch.Tensor],
) -> tuple[dict[str, float], dict[str, Interval]]:
    """How often the caption of a clip prefers it to its twin, and whether the one thing that differs decides.

    Args:
        captions, clips, swapped (`dict[str, torch.Tensor]`): unit-length embeddings by row id: of the first caption
            and the clip of evaluation rows, and of the swapped clips (empty without any); NaN for a row that could not
            be read. Such a pair is a tie, which is wrong.

    Returns:
        The metrics that [`PairSet`] names, and the bootstrap interval of the pair accuracy, resampled by pair.
    """

    def scores(clips: dict[str, torch.Tensor], suffix: str) -> np.ndarray:
        try:
            texts = torch.stack([torch.stack([captions[pair["a"]], captions[pair["b"]]]) for pair in pair_set.pairs])
            twins = torch.stack(
                [torch.stack([clips[pair[f"a{suffix}"]], clips[pair[f"b{suffix}"]]]) for pair in pair_set.pairs]
            )
        except KeyError as error:
            raise ValueError(
                f"A pair of {pair_set.name!r} names the row {error}, which the evaluation has not (with "
                "caption and clip)."
            ) from error
        products = (texts @ twins.transpose(1, 2)).numpy()  # (pairs, captions, clips)
        products[np.isnan(products).any(axis=(1, 2))] = 0.0
        return products

    own, prefix = scores(clips, ""), f"{pair_set.name}_"
    changed = scores(swapped, "_swapped") if swapped else None
    return with_prefix(pair_accuracy(own, changed), prefix), {f"{prefix}pair_accuracy": pair_accuracy_interval(own)}


@torch.no_grad()
def encode_set(
    model: RetrievalModel,
    batches: Iterable[dict[str, Any]],
    *,
    to_device: Callable[[Batch], Batch],
    autocast: Callable[[], AbstractContextManager],
    on_step: Callable[[], None],
) -> EncodedSet:
    """Run the towers once over this process's batches, then share the result with all processes.

    Args:
        model (`RetrievalModel`): in evaluation mode, not wrapped.
        batches (`Iterable[Batch]`): this process's share of the set, no row twice, with `captions` as a
            [`BatchReader`] adds them.
        to_device, autocast, on_step: how to move a batch, under which precision to run, what to call after each batch.

    Returns:
        [`EncodedSet`] over all processes' rows.
    """
    rows: list[EncodedRow] = []
    captions: list[EncodedCaption] = []
    losses: dict[str, tuple[float, float]] = {}
    metrics: dict[str, tuple[float, float]] = {}
    masked = [name for name in ("mlm", "mam", "mvm") if name in model.loss_weights]
    for batch in batches:
        captions_of_batch = batch.pop("captions")
        bad_rows = {sample.row for sample in batch.pop("bad_samples", ())}
        inputs: Batch = to_device(batch)
        counts = model.count_items(inputs)
        with autocast():
            output = model(**inputs, num_items={name: torch.ones(()) for name in counts}, objectives=masked)
        for name in masked:
            add_to(losses, name, float(output.losses[name]), float(counts[name]))
        for name, (total, count) in output.metrics.items():
            add_to(metrics, name, float(total), float(count))
        embeds = {side: output[f"{side}_embeds"].cpu() for side in (*MODALITIES, "clip") if f"{side}_embeds" in output}
        presence = {m: inputs[PRESENCE_KEYS[m]].cpu() for m in model.config.modalities}
        for i, row_id in enumerate(inputs["row_ids"].tolist()):
            has = {m: bool(presence[m][i]) for m in presence}
            has["clip"] = any(has.get(m, False) for m in CLIP_MODALITIES)
            kept = output.clip if "matching" in model.loss_weights else {}
            tokens = {m: stream.states[i][stream.mask[i]].cpu() for m, stream in kept.items()}
            side_embeds = {side: values[i] for side, values in embeds.items()}
            is_bad = row_id in bad_rows
            rows.append(EncodedRow(row_id, int(inputs["group_ids"][i]), has, side_embeds, tokens, is_bad))
        if "text" in model.config.modalities and len(captions_of_batch["row_ids"]):
            with autocast():
                captions += encode_captions(model, to_device(captions_of_batch))
        on_step()
    rows = sorted(gather_object(rows), key=lambda row: row.row_id)
    # A stable sort keeps the order of a row's own captions.
    captions = sorted(gather_object(captions), key=lambda caption: caption.row_id)
    return EncodedSet(rows, captions, *(sum_over_dictionaries(gather_object([part])) for part in (losses, metrics)))


def encode_captions(model: RetrievalModel, captions: Batch) -> list[EncodedCaption]:
    """Embedding and fusion tokens of each caption."""
    encoded = encode_texts(model, captions)
    ids = captions["row_ids"].tolist(), captions["group_ids"].tolist()
    return [
        EncodedCaption(row_id, group_id, caption.embed, caption.tokens["text"])  # type: ignore[arg-type]  # it has one
        for row_id, group_id, caption in zip(*ids, encoded, strict=True)
    ]


def add_to(totals: dict[str, tuple[float, float]], name: str, total: float, count: float) -> None:
    """Add to a running `(sum, count)`."""
    before = totals.get(name, (0.0, 0.0))
    totals[name] = (before[0] + total, before[1] + count)


def sum_over_dictionaries(parts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Add up the `(sum, count)` of several processes."""
    totals: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            add_to(totals, name, total, count)
    return totals


def evaluate_encoded(
    model: RetrievalModel,
    encoded: EncodedSet,
    *,
    matching_top_k: int,
    process_index: int,
    num_processes: int,
    autocast: Callable[[], AbstractContextManager],
) -> RetrievalEvaluation:
    """Losses, accuracies and retrieval of an encoded set.

    Contrastive losses compare every row with every other of the set, so that they depend on neither batch size nor
    number of processes; an objective that no row has the modalities for has no loss. Queries are all captions;
    candidates are the clips, one per group. A clip that lacks both audio and video is no candidate, and its captions
    are no queries. A row that could not be read takes part with the lowest scores there are: its captions and its clip
    come last wherever they are looked for.

    Matching ranks by the scaled cosine plus its head's log odds, or by these alone, see [`ranking_scores`]; the
    matching loss and accuracy are the head's own.

    Args:
        encoded (`EncodedSet`): the same on all processes.
        matching_top_k (`int`): how many candidates per query the matching head re-ranks; 0: none, and it is measured
            by its loss alone. Candidates below keep the order of the contrastive scores.

    Raises:
        ValueError: If there is no loss at all, and not because rows could not be read.
    """
    metrics = {name: total / count for name, (total, count) in encoded.metrics.items() if count > 0}
    losses = {name: total / count for name, (total, count) in encoded.losses.items() if count > 0}
    for name in CONTRASTIVE_PAIRS:
        if name in model.loss_weights and (loss := whole_set_contrastive_loss(model, name, encoded.rows)) is not None:
            losses[name] = loss
    groups: set[int] = set()
    clips = []
    for row in sorted(encoded.rows, key=lambda row: row.is_bad):  # another row may stand for the clip of a bad one
        if (row.presence["clip"] or row.is_bad) and row.group_id not in groups:
            groups.add(row.group_id)
            clips.append(row)
    captions = [caption for caption in encoded.captions if caption.group_id in groups]
    counts = {"rows": len(encoded.rows), "captions": len(captions), "clips": len(clips)}
    bad_rows = {row.row_id for row in encoded.rows if row.is_bad}
    if bad_rows:
        counts["bad_samples"] = len(bad_rows)
    is_good = np.array([caption.row_id not in bad_rows for caption in captions], dtype=np.bool_)
    scores = np.zeros((len(captions), len(clips)), dtype=np.float32)
    intervals: dict[str, Interval] = {}
    rerank_top_k = None
    protocol = "losses only: no caption with a clip"
    if captions:
        queries = torch.stack([caption.embed for caption in captions])
        scores = (queries @ torch.stack([clip.embeds["clip"] for clip in clips]).T).numpy()
        scores[~is_good] = -np.inf
        scores[:, [clip.is_bad for clip in clips]] = -np.inf
        caption_groups = np.array([caption.group_id for caption in captions])
        clip_groups = np.array([clip.group_id for clip in clips])
        result = text_video_retrieval(scores, caption_groups, clip_groups)
        metrics |= result.metrics
        intervals |= result.intervals
        protocol = "every caption a query, one candidate per clip, cosine of text and audio-video embeddings"
        if "matching" in model.loss_weights:
            positives = caption_groups[:, None] == clip_groups[None]
            # Every caption's right clips and its hardest wrong one are there for the matching loss.
            is_needed = positives.copy()
            is_needed[np.arange(len(scores)), first_wrong(scores, positives)] = True
            odds = np.full(scores.shape, -np.inf)

            def match(pairs: np.ndarray) -> np.ndarray:
                found = np.full(len(pairs), -np.inf)
                cosines = scores[pairs[:, 0], pairs[:, 1]]
                is_readable = np.isfinite(cosines)
                logits = score_pairs(
                    model,
                    model.matching_logits,
                    [Encoded(None, {"text": caption.tokens}) for caption in captions],
                    [Encoded(None, clip.clip) for clip in clips],
                    pairs[is_readable],
                    process_index=process_index,
                    num_processes=num_processes,
                    autocast=autocast,
                )
                found[is_readable] = (logits[:, 1] - logits[:, 0]).numpy()
                odds[pairs[:, 0], pairs[:, 1]] = found
                found[is_readable] += model.cosine_weight * cosines[is_readable]
                return found

            result, _ = matched_retrieval(
                scores, caption_groups, clip_groups, match, top_k=matching_top_k, needed=np.argwhere(is_needed)
            )
            if matching_top_k > 0:
                metrics |= result.metrics
                intervals |= result.intervals
                top_k = min(matching_top_k, len(clips))
                is_better = matching_is_better(metrics)
                rerank_top_k = top_k if is_better else 0
                protocol += (
                    f"; matching_*: the first {top_k} re-ranked by the matching head, whose R@1 from text to video is "
                    f"{'better than' if is_better else 'not better than'} the cosine's: searches "
                    f"{'re-rank' if is_better else 'do not re-rank'} unless asked otherwise"
                )
            if is_good.any():
                losses["matching"], metrics["matching_accuracy"] = matching_loss(
                    odds[is_good], scores[is_good], positives[is_good]
                )
    if losses:
        total = sum(model.loss_weights[name] * value for name, value in losses.items())
        metrics = {"loss": total, **{f"{name}_loss": value for name, value in losses.items()}, **metrics}
    elif not bad_rows:
        raise ValueError(
            f"The evaluation set has no row for any of the model's objectives ({', '.join(model.loss_weights)}): of "
            f"its {len(encoded.rows)} rows none has the modalities of one. Look at the columns of --validation_file, "
            "and whether its clips have what --modalities names."
        )
    headline = HEADLINE if captions else None
    return RetrievalEvaluation(
        metrics, intervals, counts, protocol, headline, scores, captions, clips, encoded.rows, rerank_top_k
    )


def matching_is_better(metrics: dict[str, float]) -> bool:
    """Whether re-ranking by matching found more clips first than the cosine did; equally many are no reason to."""
    return metrics[f"matching_{HEADLINE}"] > metrics[HEADLINE]


def whole_set_contrastive_loss(model: RetrievalModel, name: str, rows: list[EncodedRow]) -> float | None:
    """A contrastive loss over all rows of a set at once; `None` where none has both sides."""
    first, second = CONTRASTIVE_PAIRS[name]
    kept = [row for row in rows if row.presence[first] and row.presence[second]]
    if not kept:
        return None
    scale, bias = model.scale_and_bias(name)
    total = contrastive_loss(
        torch.stack([row.embeds[first] for row in kept]),
        torch.stack([row.embeds[second] for row in kept]),
        present=torch.ones(len(kept), dtype=torch.bool),
        group_ids=torch.tensor([row.group_id for row in kept]),
        logit_scale=scale.detach().float().cpu(),
        logit_bias=None if bias is None else bias.detach().float().cpu(),
        form="softmax" if bias is None else "sigmoid",  # which alone has a bias
        gather=False,
    )
    return float(total) / len(kept)


def first_wrong(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Position of each caption's highest scoring wrong clip (of any clip where there is no wrong one)."""
    return np.where(positives, -np.inf, scores).argmax(axis=1)


def matching_loss(odds: np.ndarray, scores: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and accuracy over each caption with its own clip and with its hardest wrong clip."""
    rows = np.arange(len(odds))
    right = odds[rows, positives.argmax(axis=1)].astype(np.float64)
    hardest = first_wrong(scores, positives)
    wrong = odds[rows, hardest][~positives[rows, hardest]].astype(np.float64)
    losses = np.concatenate([np.logaddexp(0, -right), np.logaddexp(0, wrong)])
    correct = np.concatenate([right > 0, wrong <= 0])
    return float(losses.mean()), float(correct.mean())
