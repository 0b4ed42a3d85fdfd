"""Measure pre-training and retrieval, during training and on a benchmark: losses over a whole set, and retrieval
between captions and clips. Every sample counts once.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simple_multimodal.alpro import AlproForRetrieval
from simple_multimodal.alpro.metrics import alpro_retrieval_metrics, retrieval_rows
from simple_multimodal.data.bad_samples import BadSample, BadSampleError, with_retries
from simple_multimodal.data.randomness import stable_hash
from simple_multimodal.data.rows import Row, RowDataset, row_captions
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.captions import duplicate_captions
from simple_multimodal.evaluation.ranking import Ranks, all_pairs, first_pairs, is_query, right_pairs, text_clip_ranks
from simple_multimodal.evaluation.reranking import choose_candidates, refuse_nan, rerank
from simple_multimodal.evaluation.retrieval import text_clip_retrieval
from simple_multimodal.evaluation.scores import CosineScores, MatrixScores, ScoredPairs, Scores, dual_softmax_scores
from simple_multimodal.inference.encoded import EncodedBatch, EncodedRows
from simple_multimodal.media.errors import MediaError
from simple_multimodal.modalities import CLIP_MODALITIES, MODALITIES, PRESENCE_KEYS
from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS, MASKED_OBJECTIVES
from simple_multimodal.models.losses import whole_set_contrastive_loss
from simple_multimodal.models.outputs import Batch
from simple_multimodal.models.pairs import Encoded, ranking_scores
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.tasks.retrieval.retriever import Retriever

PRIMARY_METRIC = "text_to_video_R@1"
DUAL_SOFTMAX_TEMPERATURE = 0.01
MATCHING_WEIGHTS = (0.125, 0.25, 0.5, 1.0)
"""Weights of the matching head's log odds, beside the scaled cosine, from which the validation split chooses."""

RetrievalModel = MultimodalForPreTraining | AlproForRetrieval
"""Models that find clips by text."""


@dataclass
class EncodedSet:
    """
    Rows encoded by the towers.

    Args:
        captions (`list[tuple[Row, str]]`): The queries, each with its row; `""` if the text cannot be read.
        clips (`list[Row]`): The candidates, one row per group.
        is_read (`np.ndarray` of shape `(num_clips,)`, bool): Whether each candidate could be read and was encoded.
        encoded (`list[Encoded]`), embeds (`torch.FloatTensor` of shape `(num_read, contrastive_dim)`): The encoded
            candidates.
        bad (`dict[int, BadSample]`): Samples that could not be read, by row.
        num_without_clip (`int`): Number of rows that are left out because they have no clip.
        all_rows (`EncodedRows`, *optional*): All rows, with the values that losses are computed from.
        key (`str`): Hash of model and clips, which identifies finished parts of an interrupted measurement.
    """

    captions: list[tuple[Row, str]]
    clips: list[Row]
    is_read: np.ndarray
    encoded: list[Encoded]
    embeds: torch.Tensor
    bad: dict[int, BadSample]
    num_without_clip: int = 0
    all_rows: EncodedRows | None = None
    key: str = ""

    @property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Group of each caption and of each clip, as numbers: comparing millions of strings is slow."""
        number = {row["group"]: place for place, row in enumerate(self.clips)}
        return np.array([number[row["group"]] for row, _ in self.captions]), np.arange(len(self.clips))


@dataclass
class Ranking:
    """
    Ranking of captions and clips.

    Args:
        scores ([`Scores`] of shape `(num_captions, num_clips)`): Scores of the first ranking: cosines, or their dual
            softmax; `-inf` for samples that could not be read.
        ranks ([`Ranks`]): Ranks in both directions.
        found ([`EncodedSet`]): The captions and clips that were ranked.
        caption_embeds (`torch.FloatTensor` of shape `(num_captions, contrastive_dim)`): Embeddings of the captions.
    """

    scores: Scores
    ranks: Ranks
    found: EncodedSet
    caption_embeds: torch.Tensor


def evaluate_retrieval(
    retriever: Retriever,
    dataset: RowDataset,
    *,
    protocol: str = "own",
    rerank_top_k: int | None = None,
    with_losses: bool = False,
    compare_rerank: bool = False,
    dual_softmax: bool = False,
    alpro: bool = False,
    num_results: int | None = None,
    saved: str | os.PathLike[str] | None = None,
    partial: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """
    Measure retrieval of clips by captions and of captions by clips.

    Rows of one `group` show the same clip, which is a candidate once. A row without a clip is left out of retrieval. A
    row that could not be read takes part with the lowest possible scores: its captions and its clip rank last as
    candidates, and get the last rank as queries.

    Matching ranks by the scaled cosine plus its head's weighted log odds, or by the log odds alone, see
    [`ranking_scores`]; the matching loss and accuracy are computed from the head alone. With losses, the weight is the
    best of [`MATCHING_WEIGHTS`] for these rows, else the model's.

    Args:
        retriever ([`Retriever`]): The model.
        dataset ([`RowDataset`]): Rows with captions.
        protocol (`str`, *optional*, defaults to `"own"`): Name to publish the numbers under.
        rerank_top_k (`int`, *optional*): Number of candidates of each query that the matching head re-ranks; by
            default all, with 0 none.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the objectives, too, over all rows.
            Contrastive losses compare every row with every other row of the set, so that they depend on neither the
            batch size nor the number of processes. An objective whose modalities no row has gets no loss.
        compare_rerank (`bool`, *optional*, defaults to `False`): Whether to score all pairs, and report how every
            metric changes if only the first `rerank_top_k` are re-ranked.
        dual_softmax (`bool`, *optional*, defaults to `False`): Whether to normalize cosines over all queries of the
            set, which are not available to a single query.
        alpro (`bool`, *optional*, defaults to `False`): Whether to print the numbers of rounded scores, as ALPRO does.
        num_results (`int`, *optional*): Without matching, number of candidates of each query that get a row in the
            results; by default all.
        saved (`str`, *optional*): Folder to keep the clips' embeddings in, see [`Retriever.index`].
        partial (`str`, *optional*): Folder for finished parts, see [`Retriever.index`].

    Returns:
        [`Evaluation`]: The results; if there are captions, their `details` are a [`Ranking`].

    Raises:
        ValueError: If no row has a clip and a caption (with losses: nor the modalities of an objective), `alpro` is
            used without scoring all pairs, `compare_rerank` without `rerank_top_k`, **or** more than the retriever's
            `max_bad_fraction` of the clips or of the texts, or all of them, cannot be read.
    """
    if alpro and rerank_top_k is not None:
        raise InputError("ALPRO ranks by the matching scores of all pairs. Leave rerank_top_k out.")
    if rerank_top_k is not None and rerank_top_k < 0:
        raise InputError(f"rerank_top_k must be 0 (no matching) or more, got {rerank_top_k}.")
    if compare_rerank and not rerank_top_k:
        raise InputError(
            "compare_rerank needs rerank_top_k, the number of candidates to re-rank. Set it to 1 or more."
        )
    model = retriever.model
    found = _encode_set(
        retriever, dataset, with_losses=with_losses, for_matching=rerank_top_k != 0, saved=saved, partial=partial
    )
    metrics: dict[str, float] = {}
    losses: dict[str, float] = {}
    chance: dict[str, float] = {}
    counts = {"captions": len(found.captions), "clips": len(found.clips)}
    if found.all_rows is not None:
        metrics, losses, chance = _measure_losses(model, found.all_rows)
        counts = {"rows": len(dataset), **counts}
    evaluation = Evaluation(metrics, {}, counts, protocol, None, len(dataset), further_chance=chance)
    if found.captions:
        matching = measure_ranking(
            retriever,
            found,
            evaluation,
            rerank_top_k=rerank_top_k,
            with_loss=with_losses and "matching" in model.loss_weights,
            compare_rerank=compare_rerank,
            dual_softmax=dual_softmax,
            alpro=alpro,
            num_results=num_results,
            partial=partial,
        )
        losses |= matching
    if losses:
        total = sum(model.loss_weights[name] * value for name, value in losses.items())
        loss_metrics = {"loss": total, **{f"{name}_loss": value for name, value in losses.items()}}
        evaluation.metrics = loss_metrics | evaluation.metrics
    elif with_losses and not found.bad:
        raise InputError(
            f"None of the {len(dataset)} rows of the evaluation set has the modalities of any of the model's "
            f"objectives ({', '.join(model.loss_weights)}). Check the columns of --validation_file, and whether its "
            "clips have the --modalities."
        )
    evaluation.bad_samples = [found.bad[row] for row in sorted(found.bad)]
    if found.num_without_clip:
        counts["rows_without_clip"] = found.num_without_clip
    if found.bad:
        counts["bad_samples"] = len(found.bad)
    return evaluation


def _encode_set(
    retriever: Retriever,
    dataset: RowDataset,
    *,
    with_losses: bool,
    for_matching: bool,
    saved: str | os.PathLike[str] | None,
    partial: str | os.PathLike[str] | None,
) -> EncodedSet:
    """Read the captions and encode the clips with the towers: one clip per group, or with losses those of all rows."""
    rows = list(dataset.rows(files="named"))
    shown = [row for row in rows if retriever.has_clip(row)]
    num_without_clip = len(rows) - len(shown)
    captions, bad = _read_captions(shown) if retriever.takes("text") else ([], {})
    if not with_losses:
        if not captions:
            raise InputError(f"{dataset.name}: no row has both a clip and a caption. Check its columns.")
        retriever.warn_of(list(bad.values()))
        retriever.check_bad_samples(list(bad.values()), len(shown))
        clips = _one_of_each_group(shown, bad)
        index = retriever.index_rows(clips, saved=saved, for_matching=for_matching, partial=partial)
        unread = {sample.row for sample in index.bad_samples}
        bad |= {sample.row: sample for sample in index.bad_samples}
        is_read = np.array([row["index"] not in unread for row in clips])
        encoded_clips = list(index.clips or ())
        return EncodedSet(captions, clips, is_read, encoded_clips, index.embeds, bad, num_without_clip, key=index.key)
    encoded = retriever.encode_rows(rows, encode=encode_for_losses, with_text=True)
    bad = {sample.row: sample for sample in encoded.bad_samples}
    clips = _one_of_each_group(shown, bad)
    place = {row["index"]: number for number, row in enumerate(encoded.rows)}
    is_read = np.array([row["index"] in place for row in clips], dtype=np.bool_)
    read = [place[row["index"]] for row in clips if row["index"] in place]
    embeds = encoded.values["clip"][read] if "clip" in encoded.values else torch.empty(len(read), 0)
    encoded_clips = [encoded.clips[number] for number in read]
    return EncodedSet(captions, clips, is_read, encoded_clips, embeds, bad, num_without_clip, encoded)


def _one_of_each_group(rows: list[Row], bad: dict[int, BadSample]) -> list[Row]:
    """Return the first row of each group, or the first one that is not bad."""
    in_order = sorted(rows, key=lambda row: row["index"] in bad)
    return list({row["group"]: row for row in reversed(in_order)}.values())[::-1]


def _read_captions(rows: Iterable[Row]) -> tuple[list[tuple[Row, str]], dict[int, BadSample]]:
    """Return each caption with its row, and the rows whose text cannot be read, which get an empty caption."""
    captions: list[tuple[Row, str]] = []
    bad: dict[int, BadSample] = {}
    for row in rows:
        try:
            own = with_retries(functools.partial(row_captions, row), row["text"])
        except MediaError as error:
            own = [""]
            bad[row["index"]] = BadSampleError.of(row, row["text"], str(error)).sample
        captions += [(row, caption) for caption in own]
    return captions, bad


def encode_for_losses(model: RetrievalModel, batch: Batch) -> EncodedBatch:
    """Compute the masked objectives of a batch, and the values for contrast and matching over the whole set."""
    masked = [name for name in MASKED_OBJECTIVES if name in model.loss_weights]
    counts = model.count_items(batch)
    output = model(**batch, num_items={name: torch.ones(()) for name in counts}, objectives=masked)
    sums = {f"{name}_loss": torch.stack([output.losses[name].cpu(), counts[name].cpu()]).double() for name in masked}
    sums |= {name: value.cpu().double() for name, value in output.metrics.items()}
    values = {side: output[f"{side}_embeds"].cpu() for side in (*MODALITIES, "clip") if f"{side}_embeds" in output}
    values |= {PRESENCE_KEYS[m]: batch[PRESENCE_KEYS[m]].cpu() for m in model.config.modalities}
    kept = output.clip if "matching" in model.loss_weights else {}
    clips = [
        Encoded(None, {m: stream.states[row][stream.mask[row]].cpu() for m, stream in kept.items()})
        for row in range(len(batch["row_ids"]))
    ]
    return EncodedBatch(clips, values, sums)


def _measure_losses(
    model: RetrievalModel, encoded: EncodedRows
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return metrics of the masked objectives, losses of all objectives except matching, and their chance levels."""
    shares = {name: float(total / count) for name, (total, count) in encoded.sums.items() if count > 0}
    losses = {name: shares.pop(f"{name}_loss") for name in MASKED_OBJECTIVES if f"{name}_loss" in shares}
    chance = {}
    for name in CONTRASTIVE_PAIRS:
        if name in model.loss_weights and (found := _contrastive_loss(model, name, encoded)) is not None:
            losses[name], num_candidates = found
            if model.scale_and_bias(name)[1] is None:  # softmax; sigmoid losses depend on the bias
                chance[f"{name}_loss"] = math.log(num_candidates)
    return shares, losses, chance


def _contrastive_loss(model: RetrievalModel, name: str, encoded: EncodedRows) -> tuple[float, int] | None:
    """Return a contrastive loss over all rows of a set and the number of rows with both sides; `None` if none has."""
    has = {m: encoded.values[PRESENCE_KEYS[m]] for m in model.config.modalities}
    has["clip"] = torch.stack([has[m] for m in CLIP_MODALITIES if m in has]).any(dim=0)
    first, second = CONTRASTIVE_PAIRS[name]
    kept = has[first] & has[second]
    if not kept.any():
        return None
    groups = torch.tensor([stable_hash(row["group"]) for row in encoded.rows])
    scale, bias = model.scale_and_bias(name)
    total = whole_set_contrastive_loss(
        encoded.values[first][kept],
        encoded.values[second][kept],
        group_ids=groups[kept],
        logit_scale=scale.detach().float().cpu(),
        logit_bias=None if bias is None else bias.detach().float().cpu(),
        form="softmax" if bias is None else "sigmoid",  # only the sigmoid loss has a bias
    )
    num_kept = int(kept.sum())
    return float(total) / num_kept, num_kept


def measure_ranking(
    retriever: Retriever,
    found: EncodedSet,
    evaluation: Evaluation,
    *,
    rerank_top_k: int | None,
    with_loss: bool = False,
    compare_rerank: bool = False,
    dual_softmax: bool = False,
    alpro: bool = False,
    num_results: int | None = None,
    partial: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Rank captions and clips, add the results to the evaluation, and return the matching loss, if any. Options are
    those of [`evaluate_retrieval`].
    """
    model, groups = retriever.model, found.groups
    texts = [caption for _, caption in found.captions]
    encoded = retriever.encode_texts(texts)
    caption_embeds = torch.stack([text.embed for text in encoded if text.embed is not None])
    bad_texts = np.array([row["index"] in found.bad for row, _ in found.captions])
    bad_clips = np.array([row["index"] in found.bad for row in found.clips])
    clip_embeds = torch.zeros(len(found.clips), caption_embeds.shape[1])
    clip_embeds[torch.from_numpy(found.is_read)] = found.embeds
    cosines = CosineScores(
        caption_embeds, clip_embeds, bad_texts=bad_texts, bad_clips=bad_clips, processes=retriever.processes
    )
    scores: Scores = cosines
    if dual_softmax:
        matrix = np.full(cosines.shape, -np.inf)
        good = np.ix_(~bad_texts, ~bad_clips)
        matrix[good] = dual_softmax_scores(cosines.whole()[good], temperature=DUAL_SOFTMAX_TEMPERATURE)
        scores = MatrixScores(matrix)
    ranks = text_clip_ranks(scores, *groups)
    result = text_clip_retrieval(ranks, *groups)
    evaluation.metrics |= result.metrics
    evaluation.intervals |= result.intervals
    evaluation.primary_metric = PRIMARY_METRIC
    loss: dict[str, float] = {}
    chosen: dict[str, Any] = {"rerank_top_k": None}  # settings of searches; `None`: not measured
    weight: float | None = None  # of the head's log odds; `None`: the model's
    if rerank_top_k != 0 or with_loss:
        needed = needed_for_loss(groups, ranks) if with_loss else np.empty((0, 2), dtype=np.int64)
        if compare_rerank:
            needed = all_pairs(scores.shape)
        candidates = choose_candidates(scores, *groups, rerank_top_k, needed=needed)
        pairs = candidates.pairs
        is_scored = ~(bad_texts[pairs[:, 0]] | bad_clips[pairs[:, 1]])
        place_in_index = np.cumsum(found.is_read) - 1
        logits = retriever.score(
            model.matching_logits,
            texts,
            encoded,
            found.encoded,
            np.stack([pairs[:, 0], place_in_index[pairs[:, 1]]], axis=1)[is_scored],
            partial=None if partial is None else Path(partial),
            key=found.key,
        )
        own_cosines = torch.from_numpy(cosines.at(pairs[is_scored]))

        def values_with(weight: float | None) -> np.ndarray:
            values = np.full(len(pairs), -np.inf, dtype=np.float32)
            values[is_scored] = ranking_scores(model, logits, own_cosines, weight=weight).numpy()
            return values

        if with_loss and rerank_top_k and model.cosine_weight > 0:
            weight = choose_weight(lambda one: rerank(ranks, candidates, values_with(one), *groups))
            chosen["matching_weight"] = weight
        scored = ScoredPairs(pairs, values_with(weight))
        if rerank_top_k != 0:
            ranks_by_all: Ranks | None = None
            if compare_rerank:
                second = MatrixScores(scored.values.reshape(scores.shape), scores.processes)
                ranks_by_all = text_clip_ranks(second, *groups)
            reranked = rerank(ranks, candidates, scored.values, *groups)
            matched = text_clip_retrieval(reranked, *groups, ranks_before=ranks_by_all, prefix="matching_")
            evaluation.metrics |= matched.metrics
            evaluation.intervals |= matched.intervals
            if not with_loss:
                evaluation.primary_metric = f"matching_{PRIMARY_METRIC}"
        if with_loss and is_scored.any():
            values = (logits[:, 1] - logits[:, 0]).tolist()
            odds = dict(zip(map(tuple, pairs[is_scored].tolist()), values, strict=True))
            loss["matching"], evaluation.metrics["matching_accuracy"] = matching_loss(odds, groups, ranks)
    else:
        pairs = first_pairs(scores, *groups, num_results)
        scored = ScoredPairs(pairs, cosines.at(pairs))
    if with_loss and rerank_top_k:
        top_k = min(rerank_top_k, len(found.clips))
        is_better = matching_is_better(evaluation.metrics)
        chosen["rerank_top_k"] = top_k if is_better else 0
        how = "the matching head"
        if weight is not None:
            weights = ", ".join(f"{one:g}" for one in MATCHING_WEIGHTS)
            how = f"the scaled cosine plus {weight:g} (the best of {weights}) times the log odds of the matching head"
        evaluation.protocol += (
            f"; metrics matching_*: the first {top_k} clips are re-ranked by {how}, which is "
            f"{'better' if is_better else 'not better'} than the cosine alone (R@1 from text to video), so that "
            f"searches {'re-rank' if is_better else 'do not re-rank'} by default"
        )
    is_duplicate = duplicate_captions(texts, groups[0])[[text != "" for text in texts]]
    evaluation.counts["duplicate_captions"] = int(is_duplicate.sum())
    prefix = "" if rerank_top_k == 0 else "matching_"
    evaluation.printed = {
        "text2video": alpro_retrieval_metrics(scored.values.reshape(scores.shape), groups[0])["text2video"]
        if alpro
        else _in_percent(evaluation.metrics, f"{prefix}text_to_video_")
    }
    has_row = ~(bad_texts[scored.pairs[:, 0]] | bad_clips[scored.pairs[:, 1]])
    shown = ScoredPairs(scored.pairs[has_row], scored.values[has_row])
    ids = [row["id"] for row in found.clips]
    evaluation.rows = retrieval_rows(shown, cosines.at(shown.pairs), range(len(texts)), ids)
    evaluation.details = Ranking(scores, ranks, found, caption_embeds)
    evaluation.config_settings = chosen
    return loss


def choose_weight(reranked: Callable[[float], Ranks]) -> float:
    """Return the one of [`MATCHING_WEIGHTS`] with the best R@1 from text to video, the smallest of equal ones.

    Args:
        reranked (`Callable`): Function that returns the ranks after re-ranking with a weight.
    """

    def recall(weight: float) -> float:
        ranks = reranked(weight).texts
        return float((ranks[is_query(ranks)] == 1).mean())

    return max(MATCHING_WEIGHTS, key=recall)


def matching_is_better(metrics: dict[str, float]) -> bool:
    """Return whether re-ranking by matching has a higher R@1 than the cosine; a tie does not count."""
    return metrics[f"matching_{PRIMARY_METRIC}"] > metrics[PRIMARY_METRIC]


def needed_for_loss(groups: tuple[np.ndarray, np.ndarray], ranks: Ranks) -> np.ndarray:
    """Return pairs `(num_pairs, 2)` of every caption with its right clips and with its hardest wrong one."""
    hardest = np.stack([np.arange(len(ranks.texts)), ranks.first_wrong], axis=1)
    return np.concatenate([right_pairs(*groups), hardest])


def matching_loss(
    odds: Mapping[tuple[int, int], float], groups: tuple[np.ndarray, np.ndarray], ranks: Ranks
) -> tuple[float, float]:
    """
    Compute cross-entropy and accuracy over each caption with its own clip and with its hardest wrong clip.

    Args:
        odds (`Mapping[tuple[int, int], float]`): Log odds of pairs of caption and clip; missing pairs could not be
            read.
        groups (`tuple[np.ndarray, np.ndarray]`): Groups of captions and clips.
        ranks ([`Ranks`]): Ranks, which contain the hardest wrong clip of each caption.

    Raises:
        ValueError: If the log odds of a pair are NaN.
    """
    own = dict(reversed(right_pairs(*groups).tolist()))  # the first right clip of each caption
    right = np.array([odds[pair] for pair in own.items() if pair in odds][::-1])
    others = [(text, int(clip)) for text, clip in enumerate(ranks.first_wrong) if groups[0][text] != groups[1][clip]]
    wrong = np.array([odds[pair] for pair in others if pair in odds])
    refuse_nan(np.concatenate([right, wrong]))
    losses = np.concatenate([np.logaddexp(0, -right), np.logaddexp(0, wrong)])
    correct = np.concatenate([right > 0, wrong <= 0])
    return float(losses.mean()), float(correct.mean())


def _in_percent(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Return rank metrics under ALPRO's names, recalls in percent."""
    recalls = {f"r{k}": round(100 * metrics[f"{prefix}R@{k}"], 2) for k in (1, 5, 10)}
    return recalls | {"medianR": metrics[f"{prefix}median_rank"], "meanR": metrics[f"{prefix}mean_rank"]}
