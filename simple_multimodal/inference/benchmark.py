"""Measure a trained model on the test split of a benchmark, under a named protocol, and write what came out."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from simple_multimodal.data.manifest import MultimodalDataset, QuestionDataset, row_captions
from simple_multimodal.data.prepare import prepare_benchmark
from simple_multimodal.evaluation.alpro import (
    alpro_question_answering_metrics,
    alpro_retrieval_metrics,
    padded_positions,
    question_answering_rows,
    retrieval_rows,
)
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.protocols import (
    ANSWER_TYPES,
    BENCHMARKS,
    check_overlap,
    get_protocol,
    protocol_name,
)
from simple_multimodal.evaluation.question_answering import answer_result, predicted_labels
from simple_multimodal.evaluation.report import write_metrics
from simple_multimodal.evaluation.result_files import write_rows
from simple_multimodal.evaluation.retrieval import (
    dual_softmax,
    duplicate_captions,
    matched_retrieval,
    text_video_retrieval,
)
from simple_multimodal.inference.answerer import QuestionAnswerer
from simple_multimodal.inference.loading import cosine
from simple_multimodal.inference.retriever import Retriever
from simple_multimodal.models.pairs import score_pairs

logger = logging.get_logger(__name__)

ALPRO_PROCESSES = 8
"""As many as ALPRO's published numbers were measured with: questions of the first clips count twice there."""

DUAL_SOFTMAX_TEMPERATURE = 0.01


@dataclass
class Measurement:
    """
    Args:
        metrics (`dict[str, float]`): fractions and ranks by name, counts among them.
        intervals (`dict[str, tuple[float, float]]`): bootstrap intervals, resampled by clip.
        counts (`dict[str, int]`): what the numbers are over.
        protocol (`str`): its name, with whatever changes its meaning.
        headline (`str`): the metric that models are compared by.
        printed (`dict`): the numbers as ALPRO prints them, in percent.
        rows (`Iterable[dict]`): result of each pair or question, as ALPRO writes them; to be read once.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]
    protocol: str
    headline: str
    printed: dict[str, Any]
    rows: Iterable[dict] = field(repr=False)


def measure_retrieval(
    retriever: Retriever,
    dataset: MultimodalDataset,
    *,
    protocol: str = "own",
    matching_top_k: int | None = None,
    uses_dual_softmax: bool = False,
    is_alpro: bool = False,
    saved: str | os.PathLike[str] | None = None,
) -> Measurement:
    """
    Every caption asks for its clip, and every clip for one of its captions.

    Args:
        retriever ([`Retriever`]): the model.
        dataset ([`MultimodalDataset`]): rows with captions; rows of one `group` show the same clip.
        protocol (`str`, *optional*, defaults to `"own"`): name to publish the numbers under.
        matching_top_k (`int`, *optional*): how many candidates of each query the matching head orders anew; by default
            all, with 0 none.
        uses_dual_softmax (`bool`, *optional*, defaults to `False`): normalise cosines over all queries of the test,
            which a single query has not.
        is_alpro (`bool`, *optional*, defaults to `False`): print the numbers of rounded scores, as ALPRO does.
        saved (`str`, *optional*): file to keep the clips' embeddings in, see [`Retriever.index`].

    Raises:
        ValueError: No row has a caption, or `is_alpro` without all pairs.
    """
    if is_alpro and matching_top_k is not None:
        raise ValueError("ALPRO ranks by the matching scores of all pairs: leave matching_top_k out.")
    rows = list(dataset)
    captions = [(row["group"], caption) for row in rows for caption in row_captions(row)]
    if not captions:
        raise ValueError(f"{dataset.manifest_file}: no row has a caption to search for.")
    index = retriever.index(dataset, saved=saved, for_matching=matching_top_k != 0)
    encoded = retriever.encode_texts([caption for _, caption in captions])
    cosines = cosine(encoded, index.embeds).numpy()
    scores = dual_softmax(cosines, temperature=DUAL_SOFTMAX_TEMPERATURE) if uses_dual_softmax else cosines
    groups = np.array([group for group, _ in captions]), np.array(index.groups)
    result = text_video_retrieval(scores, *groups)
    metrics, intervals = dict(result.metrics), dict(result.intervals)
    decisive = cosines
    headline = "text_to_video_R@1"
    if matching_top_k != 0:

        def probabilities(pairs: np.ndarray) -> np.ndarray:
            logits = score_pairs(
                retriever.model,
                retriever.model.matching_logits,
                encoded,
                index.clips or (),
                pairs,
                process_index=retriever.state.process_index,
                num_processes=retriever.state.num_processes,
            )
            return logits.softmax(dim=1)[:, 1].numpy()

        matched, decisive = matched_retrieval(scores, *groups, probabilities, top_k=matching_top_k)
        metrics |= matched.metrics
        intervals |= matched.intervals
        headline = "matching_text_to_video_R@1"
    is_duplicate = duplicate_captions([caption for _, caption in captions], groups[0])
    right = np.array([index.groups.index(group) for group in groups[0]])
    prefix = "matching_" if matching_top_k != 0 else ""
    printed = (
        {"text2video": alpro_retrieval_metrics(decisive, right)["text2video"]}
        if is_alpro
        else {"text2video": _in_percent(metrics, f"{prefix}text_to_video_")}
    )
    return Measurement(
        metrics=metrics,
        intervals=intervals,
        counts={"captions": len(captions), "clips": len(index.ids), "duplicate_captions": int(is_duplicate.sum())},
        protocol=protocol,
        headline=headline,
        printed=printed,
        rows=(
            row
            for row in retrieval_rows(decisive, cosines, range(len(captions)), index.ids)
            if not np.isnan(row["score"])
        ),
    )


def _in_percent(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Rank metrics under ALPRO's names."""
    recalls = {f"r{k}": round(100 * metrics[f"{prefix}R@{k}"], 2) for k in (1, 5, 10)}
    return recalls | {"medianR": metrics[f"{prefix}median_rank"], "meanR": metrics[f"{prefix}mean_rank"]}


def measure_answers(
    answerer: QuestionAnswerer,
    dataset: QuestionDataset,
    *,
    protocol: str = "own",
    train_dataset: QuestionDataset | None = None,
    is_alpro: bool = False,
) -> Measurement:
    """
    Answer every question once; what the model does not know as an answer counts as wrong.

    Args:
        answerer ([`QuestionAnswerer`]): the model.
        dataset ([`QuestionDataset`]): the questions.
        protocol (`str`, *optional*, defaults to `"own"`): name to publish the numbers under.
        train_dataset ([`QuestionDataset`], *optional*): training questions: then the accuracy of a table that sees no
            clip stands beside.
        is_alpro (`bool`, *optional*, defaults to `False`): print the numbers that count the questions twice that
            ALPRO's eight processes had twice.
    """
    rows = list(dataset)
    labels = predicted_labels(answerer.answer_rows(dataset).numpy())
    train_pairs = () if train_dataset is None else train_dataset.pairs()
    result = answer_result(labels, rows, id2label=answerer.model.config.id2label, train_pairs=train_pairs)
    types = [str(row.get("answer_type") or "") for row in rows]
    printed = {"overall_acc": round(100 * result.metrics["accuracy"], 2)}
    counted = padded_positions(len(rows), ALPRO_PROCESSES) if is_alpro else np.arange(len(rows))
    if set(types) <= set(ANSWER_TYPES):
        printed = alpro_question_answering_metrics(result.is_correct[counted], [types[n] for n in counted])
    return Measurement(
        metrics=result.metrics,
        intervals=result.intervals,
        counts={"questions": len(rows), "clips": len({row["group"] for row in rows})},
        protocol=protocol,
        headline="accuracy",
        printed=printed,
        rows=question_answering_rows(
            labels,
            [row["captions"][0] for row in rows],
            [Path(row["video"] or row["audio"] or "").stem for row in rows],
            [str(row.get("answer") or "") for row in rows],
            types,
        ),
    )


def measure_benchmark(
    pipeline: Retriever | QuestionAnswerer,
    folder: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model_folder: str | os.PathLike[str] | None = None,
    split: str = "test",
    video_root: str | os.PathLike[str] | None = None,
    matching_top_k: int | None = None,
    uses_dual_softmax: bool = False,
    is_alpro: bool = False,
) -> Measurement:
    """
    Measure a model on manifests that `simple-multimodal prepare` wrote, and write `metrics.json` and `results.json`.

    Args:
        pipeline ([`Retriever`] or [`QuestionAnswerer`]): the model.
        folder (`str`): with `{split}.jsonl`, `protocol.json` and, for questions, `train.jsonl`.
        output_dir (`str`): where results go.
        model_folder (`str`, *optional*): the model's folder, whose `training_clips.json` is compared with the tested
            clips, and whose `run.json` says by which split it was chosen.
        split (`str`, *optional*, defaults to `"test"`): which manifest.
        video_root (`str`, *optional*): folder of the videos.
        matching_top_k (`int`, *optional*): as in [`measure_retrieval`]; by default what the protocol says.
        uses_dual_softmax, is_alpro (`bool`, *optional*): as there.

    Raises:
        ValueError: The folder is not as `prepare` writes it, or clips were trained on.
    """
    folder, output_dir = Path(folder), Path(output_dir)
    try:
        prepared = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: no protocol.json there, as `simple-multimodal prepare` writes it: {error}"
        ) from error
    protocol = get_protocol(prepared["protocol"])
    is_retrieval = isinstance(pipeline, Retriever)
    if (protocol.task == "retrieval") != is_retrieval:
        raise ValueError(f"{folder} is for {protocol.task}; {type(pipeline).__name__} is for another task.")
    if split not in prepared["splits"]:
        raise ValueError(f"{folder} has no {split} split; it has {', '.join(prepared['splits'])}.")
    clips = prepared["splits"][split]["clips"]
    if model_folder is not None and split == "test":
        check_overlap(_read(model_folder, "training_clips.json").get("clips", []), clips, protocol.name)
    if matching_top_k is None and not is_alpro:
        matching_top_k = protocol.rerank_top_k
    name = (
        "alpro"
        if is_alpro
        else protocol_name(
            protocol.name,
            num_missing=len(prepared["splits"][split]["missing"]),
            deviates=any(line.startswith(f"{split}: ") for line in prepared["deviations"]),
            rerank_top_k=matching_top_k or None,
            uses_dual_softmax=uses_dual_softmax,
        )
    )
    root = None if video_root is None else Path(video_root)
    modalities = pipeline.processor.modalities
    output_dir.mkdir(parents=True, exist_ok=True)
    if isinstance(pipeline, Retriever):
        measured = measure_retrieval(
            pipeline,
            MultimodalDataset(folder / f"{split}.jsonl", video_root=root, modalities=modalities),
            protocol=name,
            matching_top_k=matching_top_k,
            uses_dual_softmax=uses_dual_softmax,
            is_alpro=is_alpro,
            saved=output_dir / "clips.safetensors",
        )
    else:

        def questions(name: str) -> QuestionDataset:
            return QuestionDataset(folder / f"{name}.jsonl", video_root=root, modalities=modalities)

        measured = measure_answers(
            pipeline,
            questions(split),
            protocol=name,
            train_dataset=questions("train") if (folder / "train.jsonl").exists() else None,
            is_alpro=is_alpro,
        )
    if pipeline.state.is_main_process:
        write_rows(output_dir / "results.json", measured.rows)
        write_metrics(
            output_dir / "metrics.json",
            metrics=measured.metrics,
            protocol=measured.protocol,
            counts=measured.counts,
            intervals=measured.intervals,
            headline=measured.headline,
            selection_split=_read(model_folder or "", "run.json").get("selection_split"),
        )
    return measured


def prepared_folder(data: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> tuple[Path, Path | None, str]:
    """
    The folder of a benchmark's manifests; of one in ALPRO's layout (`txt/`, `videos/`) they are written first.

    Args:
        data (`str`): a folder that `simple-multimodal prepare` wrote, or ALPRO's `data/<task>`.
        output_dir (`str`): where manifests go, into `manifests/`, if they have to be written.

    Returns:
        The folder, the folder of the videos if it is known, and the protocol's name.

    Raises:
        ValueError: It is neither.
    """
    data = Path(data)
    folder, videos = data, data / "videos"
    if not (data / "protocol.json").is_file():
        folder = Path(output_dir, "manifests")
        benchmark = data.name.removesuffix("_ret")
        if benchmark not in BENCHMARKS or not (data / "txt").is_dir():
            raise ValueError(
                f"{data}: neither written by `simple-multimodal prepare` (no protocol.json) nor in ALPRO's layout "
                f"(a folder such as msrvtt_ret with txt/ and videos/)."
            )
        preparation = prepare_benchmark(
            benchmark, data / "txt", folder, videos=videos, splits=_listed_splits(data / "txt")
        )
        if preparation.deviations:
            logger.warning(preparation.to_text())
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))["protocol"]
    return folder, videos if videos.is_dir() else None, protocol


def _listed_splits(folder: Path) -> list[str]:
    names = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
    return [split for split, name in names.items() if (folder / name).is_file()]


def _read(folder: str | os.PathLike[str], name: str) -> dict:
    path = Path(folder, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
