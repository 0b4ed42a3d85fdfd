"""Pairs of clips that differ in one thing, which show whether a model's choice depends on it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from simple_multimodal.data.fields import read_name
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tables import read_jsonl
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.retrieval import with_prefix
from simple_multimodal.evaluation.twins import pair_accuracy, pair_accuracy_interval
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.retrieval.evaluate import Ranking
from simple_multimodal.tasks.retrieval.retriever import Retriever


@dataclass
class PairSet:
    """Pairs of evaluation rows whose clips differ in one thing, such as their audio.

    Args:
        name (`str`): Name of that thing; metrics are `{name}_pair_accuracy`, `{name}_num_pairs` and, with `swapped`,
            `{name}_pair_flip_share`.
        pairs (`list[dict[str, str]]`): Ids `a` and `b` of two evaluation rows; with `swapped`, also `a_swapped` and
            `b_swapped`, ids in `swapped`: clip `a` with that thing taken from `b`, and the other way round.
        swapped (`RowDataset`, *optional*): Rows of the swapped clips.
    """

    name: str
    pairs: list[dict[str, str]]
    swapped: RowDataset | None = None

    @classmethod
    def from_file(cls, path: str | os.PathLike, swapped: RowDataset | None = None) -> "PairSet":
        """Read pairs from a JSONL file, which the set is named after: `audio_pairs.jsonl` is the set `audio`."""
        needed = ("a", "b") if swapped is None else ("a", "b", "a_swapped", "b_swapped")
        pairs = []
        for number, record in read_jsonl(Path(path)):
            try:
                pair = {key: read_name(record.get(key), key) for key in needed}
            except ValueError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
            missing = [key for key, name in pair.items() if name is None]
            if missing:
                raise InputError(f"{path}, line {number}: {missing} is missing; a pair needs {list(needed)}.")
            pairs.append(cast(dict[str, str], pair))
        if not pairs:
            raise InputError(f"{path} contains no pairs.")
        return cls(Path(path).stem.removesuffix("_pairs"), pairs, swapped)


def pair_metrics(
    pair_set: PairSet,
    captions: dict[str, torch.Tensor],
    clips: dict[str, torch.Tensor],
    swapped: dict[str, torch.Tensor],
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Measure how often a caption scores its own clip above its twin, and whether the one difference decides that.

    Args:
        pair_set ([`PairSet`]): The pairs.
        captions, clips, swapped (`dict[str, torch.Tensor]`): Unit-length embeddings by row id: of the first caption
            and the clip of evaluation rows, and of the swapped clips (empty without any); NaN for a row that could not
            be read. Its pair is a tie, which counts as wrong.

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
            raise InputError(
                f"A pair of {pair_set.name!r} names the row {error}, which is not among the evaluated rows with "
                "caption and clip."
            ) from error
        products = (texts @ twins.transpose(1, 2)).numpy()  # (pairs, captions, clips)
        products[np.isnan(products).any(axis=(1, 2))] = 0.0
        return products

    own, prefix = scores(clips, ""), f"{pair_set.name}_"
    changed = scores(swapped, "_swapped") if swapped else None
    return with_prefix(pair_accuracy(own, changed), prefix), {f"{prefix}pair_accuracy": pair_accuracy_interval(own)}


def evaluate_pairs(retriever: Retriever, evaluation: Evaluation, pair_set: PairSet) -> None:
    """
    Measure pairs of evaluated rows, and add the metrics to the evaluation.

    Args:
        retriever ([`Retriever`]): The model.
        evaluation ([`Evaluation`]): Evaluation with losses of the rows that the pairs name.
        pair_set ([`PairSet`]): The pairs.

    Raises:
        ValueError: If the evaluation is not of retrieval, or a pair names a row that it does not have.
    """
    ranking: Ranking | None = evaluation.details
    if ranking is None or ranking.found.all_rows is None:
        raise InputError("Pairs need captions and clips, but the evaluation set has none.")
    captions: dict[str, torch.Tensor] = {}
    for (row, _), embed in zip(ranking.found.captions, ranking.caption_embeds, strict=True):
        captions.setdefault(row["id"], embed)
    bad_ids = {sample.id for sample in ranking.found.bad.values()}
    clips = dict.fromkeys(bad_ids, torch.full_like(ranking.caption_embeds[0], math.nan))
    everything = ranking.found.all_rows
    clips |= {
        row["id"]: embed
        for row, embed in zip(everything.rows, everything.values["clip"], strict=True)
        if retriever.has_clip(row)
    }
    swapped: dict[str, torch.Tensor] = {}
    if pair_set.swapped is not None:
        rows = [row for row in pair_set.swapped.rows(files="named") if retriever.has_clip(row)]
        encoded = retriever.encode_rows(rows, with_tokens=False)
        swapped = {sample.id: torch.full_like(ranking.caption_embeds[0], math.nan) for sample in encoded.bad_samples}
        swapped |= {row["id"]: clip.embed for row, clip in zip(encoded.rows, encoded.clips, strict=True)}  # type: ignore[misc]
        evaluation.bad_samples += encoded.bad_samples
    metrics, intervals = pair_metrics(pair_set, captions, clips, swapped)
    evaluation.metrics |= metrics
    evaluation.intervals |= intervals
