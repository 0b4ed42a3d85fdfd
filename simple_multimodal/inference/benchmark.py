"""Measure a trained model on the test split of a benchmark, under a named protocol, and write what came out."""

import functools
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging

from simple_multimodal.data.bad_samples import BadSample, BadSampleError, as_json, with_retries
from simple_multimodal.data.manifest import MultimodalDataset, QuestionDataset, Row, row_captions
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
from simple_multimodal.evaluation.ranking import first_pairs
from simple_multimodal.evaluation.report import write_metrics
from simple_multimodal.evaluation.result_files import write_rows
from simple_multimodal.evaluation.retrieval import (
    ScoredPairs,
    dual_softmax,
    duplicate_captions,
    matched_retrieval,
    text_video_retrieval,
)
from simple_multimodal.inference.answerer import QuestionAnswerer
from simple_multimodal.inference.pipeline import cosine, from_main
from simple_multimodal.inference.retriever import Retriever
from simple_multimodal.media.errors import MediaError
from simple_multimodal.missing import no_such_folder
from simple_multimodal.models.pairs import ranking_scores
from simple_multimodal.prepare.manifests import prepare_benchmark
from simple_multimodal.processing import AudioFeatureExtractor

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
        bad_samples (`list[BadSample]`): what could not be read, and counts as wrong.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]
    protocol: str
    headline: str
    printed: dict[str, Any]
    rows: Iterable[dict] = field(repr=False)
    bad_samples: list[BadSample] = field(default_factory=list)


def measure_retrieval(
    retriever: Retriever,
    dataset: MultimodalDataset,
    *,
    protocol: str = "own",
    matching_top_k: int | None = None,
    measures_change: bool = False,
    uses_dual_softmax: bool = False,
    is_alpro: bool = False,
    num_results: int | None = None,
    saved: str | os.PathLike[str] | None = None,
    partial: str | os.PathLike[str] | None = None,
) -> Measurement:
    """
    Every caption asks for its clip, and every clip for one of its captions.

    A row of which a file cannot be read counts as in the main job's evaluation ([`evaluate_encoded`]): its captions
    and its clip come last wherever they are looked for, and get the last rank as queries.

    Args:
        retriever ([`Retriever`]): the model.
        dataset ([`MultimodalDataset`]): rows with captions; rows of one `group` show the same clip, which is a
            candidate once: the clip of the first row. A row without a clip is left out with its captions, and counted.
        protocol (`str`, *optional*, defaults to `"own"`): name to publish the numbers under.
        matching_top_k (`int`, *optional*): how many candidates of each query the matching head orders anew; by default
            all, with 0 none.
        measures_change (`bool`, *optional*, defaults to `False`): score all pairs, and say how every metric changes
            where the first `matching_top_k` alone are ordered anew.
        uses_dual_softmax (`bool`, *optional*, defaults to `False`): normalise cosines over all queries of the test,
            which a single query has not.
        is_alpro (`bool`, *optional*, defaults to `False`): print the numbers of rounded scores, as ALPRO does.
        num_results (`int`, *optional*): without matching, how many of the first candidates of each query have a row in
            the results; by default all.
        saved (`str`, *optional*): file to keep the clips' embeddings in, see [`Retriever.index`].
        partial (`str`, *optional*): folder for what is finished, see [`Retriever.index`].

    Raises:
        ValueError: No row has a clip and a caption, or `is_alpro` without all pairs, or `measures_change` without
            `matching_top_k`, or more than the retriever's `max_bad_fraction` of the clips or of the texts, or all,
            cannot be read.
    """
    if is_alpro and matching_top_k is not None:
        raise ValueError("ALPRO ranks by the matching scores of all pairs: leave matching_top_k out.")
    if matching_top_k is not None and matching_top_k < 0:
        raise ValueError(f"matching_top_k must be 0 (no matching) or more, got {matching_top_k}.")
    if measures_change and not matching_top_k:
        raise ValueError(
            "There is no change to measure: matching_top_k must say how many candidates are ordered anew, 1 or more."
        )
    rows = list(dataset.named_rows())
    shown = [row for row in rows if retriever.has_clip(row)]
    captions, bad = _read_captions(shown)
    if not captions:
        raise ValueError(f"{dataset.manifest_file}: no row has a clip and a caption to search it by.")
    retriever.warn_of(list(bad.values()))
    retriever.check_bad_samples(list(bad.values()), len(shown))
    # Each where it is first; another row may stand for the clip of a bad one.
    in_order = sorted(shown, key=lambda row: row["index"] in bad)
    clips = list({row["group"]: row for row in reversed(in_order)}.values())[::-1]
    index = retriever.index_rows(clips, saved=saved, for_matching=matching_top_k != 0, partial=partial)
    unread = {sample.row for sample in index.bad_samples}
    bad |= {sample.row: sample for sample in index.bad_samples}
    texts = [caption for _, caption in captions]
    encoded = retriever.encode_texts(texts)
    # Numbers in place of names: millions of comparisons of texts take long.
    number = {row["group"]: place for place, row in enumerate(clips)}
    groups = np.array([number[row["group"]] for row, _ in captions]), np.arange(len(clips))
    in_index = np.array([row["index"] not in unread for row in clips])
    good_texts = np.array([row["index"] not in bad for row, _ in captions])
    good_clips = np.array([row["index"] not in bad for row in clips])
    is_read = good_texts[:, None] & good_clips
    cosines = np.full(is_read.shape, -np.inf, dtype=np.float32)
    cosines[:, in_index] = cosine(encoded, index.embeds).numpy()
    cosines[~good_texts] = -np.inf
    cosines[:, ~good_clips] = -np.inf
    scores = cosines
    if uses_dual_softmax:
        values = dual_softmax(cosines[good_texts][:, good_clips], temperature=DUAL_SOFTMAX_TEMPERATURE)
        scores = np.full(is_read.shape, -np.inf)
        scores[is_read] = values.ravel()
    result = text_video_retrieval(scores, *groups)
    metrics, intervals = dict(result.metrics), dict(result.intervals)
    prefix = ""
    if matching_top_k == 0:
        pairs = first_pairs(scores, *groups, num_results)
        scored = ScoredPairs(pairs, cosines[pairs[:, 0], pairs[:, 1]])
    else:
        prefix = "matching_"
        place_in_index = np.cumsum(in_index) - 1

        def match(pairs: np.ndarray) -> np.ndarray:
            found = np.full(len(pairs), -np.inf, dtype=np.float32)
            is_scored = is_read[pairs[:, 0], pairs[:, 1]]
            logits = retriever.score(
                retriever.model.matching_logits,
                texts,
                encoded,
                index.clips or (),
                np.stack([pairs[is_scored, 0], place_in_index[pairs[is_scored, 1]]], axis=1),
                partial=None if partial is None else Path(partial),
                key=index.key,
            )
            own_cosines = torch.from_numpy(cosines[pairs[is_scored, 0], pairs[is_scored, 1]])
            found[is_scored] = ranking_scores(retriever.model, logits, own_cosines).numpy()
            return found

        matched, scored = matched_retrieval(
            scores, *groups, match, top_k=matching_top_k, measures_change=measures_change
        )
        metrics |= matched.metrics
        intervals |= matched.intervals
    printed = (
        {"text2video": alpro_retrieval_metrics(scored.values.reshape(scores.shape), groups[0])["text2video"]}
        if is_alpro
        else {"text2video": _in_percent(metrics, f"{prefix}text_to_video_")}
    )
    counts = {
        "captions": len(captions),
        "clips": len(clips),
        "duplicate_captions": int(duplicate_captions(texts, groups[0])[[text != "" for text in texts]].sum()),
    }
    if len(shown) < len(rows):
        counts["rows_without_clip"] = len(rows) - len(shown)
    if bad:
        counts["bad_samples"] = len(bad)
        has_row = is_read[scored.pairs[:, 0], scored.pairs[:, 1]]
        scored = ScoredPairs(scored.pairs[has_row], scored.values[has_row])
    return Measurement(
        metrics=metrics,
        intervals=intervals,
        counts=counts,
        protocol=protocol,
        headline=f"{prefix}text_to_video_R@1",
        printed=printed,
        rows=retrieval_rows(
            scored,
            cosines[scored.pairs[:, 0], scored.pairs[:, 1]],
            range(len(captions)),
            [row["id"] for row in clips],
        ),
        bad_samples=[bad[row] for row in sorted(bad)],
    )


def _read_captions(rows: Iterable[Row]) -> tuple[list[tuple[Row, str]], dict[int, BadSample]]:
    """Each caption with its row, and the rows of which the text cannot be read, which have an empty one."""
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
    partial: str | os.PathLike[str] | None = None,
) -> Measurement:
    """
    Answer every question once; what the model does not know as an answer counts as wrong, and so does a question about
    a clip that cannot be read.

    Args:
        answerer ([`QuestionAnswerer`]): the model.
        dataset ([`QuestionDataset`]): the questions.
        protocol (`str`, *optional*, defaults to `"own"`): name to publish the numbers under.
        train_dataset ([`QuestionDataset`], *optional*): training questions: then the accuracy of a table that sees no
            clip stands beside.
        is_alpro (`bool`, *optional*, defaults to `False`): print the numbers that count the questions twice that
            ALPRO's eight processes had twice.
        partial (`str`, *optional*): folder for what is finished, see [`QuestionAnswerer.answer_rows`].

    Raises:
        ValueError: More than the answerer's `max_bad_fraction` of the clips, or all, cannot be read.
    """
    rows: list[dict[str, Any]] = [dict(row) for row in dataset.named_rows()]
    logits, is_read, bad_samples = answerer.answer_rows(dataset, partial=partial)
    labels = np.full(len(rows), -1)  # which stands for no answer
    labels[is_read.numpy()] = predicted_labels(logits[is_read].numpy())
    train_pairs = () if train_dataset is None else train_dataset.pairs()
    result = answer_result(labels, rows, id2label=answerer.model.config.id2label, train_pairs=train_pairs)
    types = [row.get("answer_type") or "" for row in rows]
    printed = {"overall_acc": round(100 * result.metrics["accuracy"], 2)}
    counted = padded_positions(len(rows), ALPRO_PROCESSES) if is_alpro else np.arange(len(rows))
    if is_alpro or set(types) <= set(ANSWER_TYPES):
        printed = alpro_question_answering_metrics(result.is_correct[counted], [types[n] for n in counted])
    counts = {"questions": len(rows), "clips": len({row["group"] for row in rows})}
    if bad_samples:
        counts["bad_samples"] = len(bad_samples)
    return Measurement(
        metrics=result.metrics,
        intervals=result.intervals,
        counts=counts,
        protocol=protocol,
        headline="accuracy",
        printed=printed,
        rows=question_answering_rows(
            labels,
            [row["captions"][0] for row in rows],
            [Path(row["video"] or row["audio"] or "").stem for row in rows],
            [row.get("answer") or "" for row in rows],
            types,
        ),
        bad_samples=bad_samples,
    )


def measure_benchmark(
    pipeline: Retriever | QuestionAnswerer,
    folder: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model_folder: str | os.PathLike[str] | None = None,
    split: str = "test",
    video_root: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    matching_top_k: int | Literal["all"] | None = None,
    measures_change: bool = False,
    uses_dual_softmax: bool = False,
    is_alpro: bool = False,
) -> Measurement:
    """
    Measure a model on manifests that `simple-multimodal prepare` wrote, and write `metrics.json` and `results.json`.

    What is finished lies in `partial/` of the output folder until these are written: a call that was interrupted goes
    on from there when it is made again, with any number of processes.

    Args:
        pipeline ([`Retriever`] or [`QuestionAnswerer`]): the model.
        folder (`str`): with `{split}.jsonl`, `protocol.json` and, for questions, `train.jsonl`.
        output_dir (`str`): where results go.
        model_folder (`str`, *optional*): the model's folder, whose `training_clips.json` is compared with the tested
            clips, and whose `run.json` says by which split it was chosen.
        split (`str`, *optional*, defaults to `"test"`): which manifest.
        video_root (`str`, *optional*): folder of the videos.
        follow_links (`bool`, *optional*, defaults to `False`): see [`MultimodalDataset`].
        matching_top_k (`int` or `"all"`, *optional*): how many candidates of each query the matching head orders anew;
            0: none. By default what the protocol says, if matching was better than the cosine on the validation split
            of the model's training ([`Retriever.rerank_top_k`]), else none. ALPRO, and models that were saved before
            this was measured, are ranked as the protocol says.
        measures_change, uses_dual_softmax, is_alpro (`bool`, *optional*): as there.

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
    if not is_retrieval and (matching_top_k is not None or measures_change or uses_dual_softmax):
        raise ValueError(f"{folder} holds questions: re-ranking and dual softmax are for retrieval, leave them out.")
    if split not in prepared["splits"]:
        raise ValueError(f"{folder} has no {split} split; it has {', '.join(prepared['splits'])}.")
    clips = prepared["splits"][split]["clips"]
    if model_folder is not None and split == "test":
        check_overlap(_read(model_folder, "training_clips.json").get("clips", []), clips, protocol.name)
    if isinstance(pipeline, Retriever) and matching_top_k is None and not is_alpro:
        is_unknown = pipeline.model.config.rerank_top_k is None and pipeline.model.cosine_weight == 0
        matching_top_k = protocol.rerank_top_k if pipeline.rerank_top_k > 0 or is_unknown else 0
        if matching_top_k == 0 and pipeline.state.is_main_process:
            logger.warning(
                "Ranked by cosine: the model was not saved with a matching head that proved better on the validation "
                "split. --matching_top_k N re-ranks the first N candidates, --matching_top_k all every one."
            )
    if matching_top_k == "all":
        matching_top_k = None
    name = (
        "alpro"
        if is_alpro
        else protocol_name(
            protocol.name,
            num_missing=len(prepared["splits"][split]["missing"]),
            deviates=any(line.startswith(f"{split}: ") for line in prepared["deviations"]),
            rerank_top_k=matching_top_k or None,
            uses_dual_softmax=uses_dual_softmax,
            decodes_on_gpu=pipeline.collator.decode_device != "cpu",
        )
    )
    root = None if video_root is None else Path(video_root)
    audio: AudioFeatureExtractor | None = pipeline.processor.feature_extractor
    settings: dict[str, Any] = {"modalities": pipeline.processor.modalities, "follow_links": follow_links}
    output_dir.mkdir(parents=True, exist_ok=True)
    partial = output_dir / "partial"
    if isinstance(pipeline, Retriever):
        measured = measure_retrieval(
            pipeline,
            MultimodalDataset(folder / f"{split}.jsonl", video_root=root, **settings),
            protocol=name,
            matching_top_k=matching_top_k,
            measures_change=measures_change,
            uses_dual_softmax=uses_dual_softmax,
            is_alpro=is_alpro,
            num_results=protocol.rerank_top_k,
            saved=output_dir / "clips.safetensors",
            partial=partial,
        )
    else:

        def questions(name: str) -> QuestionDataset:
            return QuestionDataset(folder / f"{name}.jsonl", video_root=root, **settings)

        measured = measure_answers(
            pipeline,
            questions(split),
            protocol=name,
            train_dataset=questions("train") if (folder / "train.jsonl").exists() else None,
            is_alpro=is_alpro,
            partial=partial,
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
            audio_crop=None if audio is None else audio.crop_rule,
            precision=pipeline.precision,
            decoder=pipeline.collator.decoder,
            bad_samples=as_json(measured.bad_samples),
        )
    if pipeline.state.is_local_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    return measured


def prepared_folder(
    data: str | os.PathLike[str], output_dir: str | os.PathLike[str], *, follow_links: bool = False
) -> tuple[Path, Path | None, str]:
    """
    The folder of a benchmark's manifests; of one in ALPRO's layout (`txt/`, `videos/`) they are written first.

    Args:
        data (`str`): a folder that `simple-multimodal prepare` wrote, or ALPRO's `data/<task>`.
        output_dir (`str`): where manifests go, into `manifests/`, if they have to be written.
        follow_links (`bool`, *optional*, defaults to `False`): see [`prepare_benchmark`].

    Returns:
        The folder, the folder of the videos if it is known, and the protocol's name.

    Raises:
        ValueError: It is neither.
    """
    data = Path(data)
    if not data.exists():
        raise ValueError(f"{data}: {no_such_folder(data)}")
    if data.is_file():
        raise ValueError(
            f"{data} is a file; `infer` measures on the folder of a prepared benchmark. On a manifest of your own: "
            f"python train.py --do_eval --task TASK --model_name_or_path MODEL --validation_file {data} "
            "--output_dir OUT"
        )
    folder, videos = data, data / "videos"
    if not (data / "protocol.json").is_file():
        folder = Path(output_dir, "manifests")
        benchmark = data.name.removesuffix("_ret")
        if benchmark not in BENCHMARKS or not (data / "txt").is_dir():
            raise ValueError(
                f"{data}: neither written by `simple-multimodal prepare` (no protocol.json) nor in ALPRO's layout "
                f"(a folder such as msrvtt_ret with txt/ and videos/)."
            )
        splits = _listed_splits(data / "txt")
        preparation = from_main(
            lambda: prepare_benchmark(
                benchmark, data / "txt", folder, videos=videos, splits=splits, follow_links=follow_links
            )
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
