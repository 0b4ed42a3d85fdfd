"""Verbs about trained models: `encode`, `features`, `search`, `answer`, `classify`, `translate`, `infer` and
`convert`."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from simple_multimodal.cli.options import (
    Clips,
    FileOptions,
    FollowLinks,
    Manifests,
    Model,
    ModelOptions,
    PipelineOptions,
    Recursive,
    only_writer,
    print_json_line,
    task_options,
)
from simple_multimodal.defaults import CLIPS_PER_SHARD, TOP_K_ANSWERS, TOP_K_CLIPS, TOP_K_LABELS
from simple_multimodal.missing import Named
from simple_multimodal.modalities import CLIP_MODALITIES, Modality

ALPRO_TOKENIZER = "google-bert/bert-base-uncased"


def encode(
    model: Model,
    clips: Clips,
    *,
    out: Annotated[str, "output folder; clips in it are not encoded again", "DIR"] = "embeddings",
    files: FileOptions,
    recursive: Recursive = False,
    pipeline: PipelineOptions,
) -> int:
    """Save embeddings of clips for search."""
    from simple_multimodal.tasks.retrieval.retriever import Retriever

    source = files.open_clips(clips)
    partial = f"{out}.partial"
    with only_writer(partial, "encode", is_launched=True):
        retriever = pipeline.load(Retriever, model, shows_progress=True)
        index = retriever.index(source, saved=out, partial=partial, recursive=recursive)
        if retriever.state.is_local_main_process:
            shutil.rmtree(partial, ignore_errors=True)
    unread = f" ({len(index.bad_samples)} could not be read, left out)" if index.bad_samples else ""
    print(f"{out}: {len(index.ids)} clips{unread}")
    print(f"Next: simple-multimodal search {shlex.quote(model)} 'a dog barks' {shlex.quote(out)}", file=sys.stderr)
    return 0


def features(
    model: Annotated[str, "folder or hub name of a saved model", Named.MODEL],
    manifests: Manifests,
    *,
    tower: Annotated[Sequence[Modality], "towers to run", tuple(CLIP_MODALITIES)],
    output: Annotated[str, "output folder; existing features are kept", "DIR"],
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], "data type of the saved tokens"] = "float32",
    shard_size: Annotated[int, "number of clips per file"] = CLIPS_PER_SHARD,
    options: ModelOptions,
    files: FileOptions,
) -> int:
    """Run frozen towers once and save their tokens. Exit code 1 if clips cannot be read."""
    import torch

    from simple_multimodal.inference.features import TowerFeatures
    from simple_multimodal.models.distributed import leave_process_group

    pipeline = TowerFeatures.from_pretrained(model, shows_progress=True, **vars(options))
    datasets = [files.open(path) for path in manifests]
    num_unreadable = 0
    for name in dict.fromkeys(tower):
        with only_writer(Path(output, name), "features", is_launched=True):
            report = pipeline.write(name, datasets, output, shard_size=shard_size, dtype=getattr(torch, dtype))
        num_unreadable += len(report.unreadable)
        if pipeline.state.is_main_process:
            for message in report.unreadable:
                print(f"cannot be read: {message}", file=sys.stderr)
            print(f"{Path(output, name)}: {report.num_clips} clips, {report.num_made} new")
    leave_process_group()
    return 1 if num_unreadable else 0


def search(
    model: Model,
    text: Annotated[str, "description of the clip"],
    clips: Annotated[
        Sequence[str],
        "a manifest, a folder (links to files are followed), media files, or the output of `encode`",
        Named.PATH,
    ],
    *,
    top_k: Annotated[int, "number of clips to print"] = TOP_K_CLIPS,
    rerank: Annotated[
        int | None,
        "number of candidates that the matching head re-ranks; 0: none; default: the number that improved the "
        "validation split, if any",
    ] = None,
    files: FileOptions,
    recursive: Recursive = False,
    pipeline: PipelineOptions,
) -> int:
    """Find clips by text, and print one JSON object per line."""
    from simple_multimodal.tasks.retrieval.retriever import Retriever

    source = files.open_clips(clips)
    retriever = pipeline.load(Retriever, model, shows_progress=True)
    for match in retriever.search(text, source, top_k=top_k, rerank=rerank, recursive=recursive):
        print_json_line({**match.to_dict(), "file": match.file})
    return 0


def answer(
    model: Annotated[str, "folder or hub name of a model for question answering", Named.MODEL],
    question: Annotated[str, "question about each clip"],
    clips: Clips,
    *,
    top_k: Annotated[int, "number of answers to print per clip"] = TOP_K_ANSWERS,
    files: FileOptions,
    recursive: Recursive = False,
    pipeline: PipelineOptions,
) -> int:
    """Answer a question about clips, and print one JSON object per clip, each on its own line."""
    from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer

    source = files.open_clips(clips)
    answerer = pipeline.load(QuestionAnswerer, model, shows_progress=True)
    answered = answerer.answer_each(question, source, top_k=top_k, recursive=recursive)
    for clip, answers in answered.items():
        print_json_line({"clip": clip, "answers": [answer.to_dict() for answer in answers]})
    return 0


def classify(
    model: Annotated[str, "folder or hub name of a model for video classification", Named.MODEL],
    clips: Clips,
    *,
    top_k: Annotated[int, "largest number of labels to print per clip"] = TOP_K_LABELS,
    threshold: Annotated[float | None, "smallest score of a label, 0 to 1; default: none"] = None,
    files: FileOptions,
    recursive: Recursive = False,
    pipeline: PipelineOptions,
) -> int:
    """Recognise labels of clips, and print one JSON object per clip, each on its own line."""
    from simple_multimodal.tasks.video_classification.classifier import VideoClassifier

    source = files.open_clips(clips)
    classifier = pipeline.load(VideoClassifier, model, shows_progress=True)
    found = classifier.classify_each(source, top_k=top_k, threshold=threshold, recursive=recursive)
    for clip, labels in found.items():
        print_json_line({"clip": clip, "labels": labels})
    return 0


def translate(
    model: Annotated[str, "folder or hub name of a model that writes text", Named.MODEL],
    clips: Clips,
    *,
    output_dir: Annotated[
        str | None, "folder for the texts and their scores; default: print one JSON object per clip", "DIR"
    ] = None,
    num_beams: Annotated[int | None, "beams of generation; default: the model's"] = None,
    max_new_tokens: Annotated[int | None, "largest number of tokens; default: the model's"] = None,
    files: FileOptions,
    recursive: Recursive = False,
    pipeline: PipelineOptions,
) -> int:
    """Write the text of clips: a translation, a caption or a transcript. Rows with texts of their own are scored."""
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.tasks.generation.evaluate import evaluate_texts
    from simple_multimodal.tasks.generation.translator import Translator
    from simple_multimodal.training.console import results_table

    source = files.open_clips(clips)
    translator = pipeline.load(Translator, model, shows_progress=True)
    generation: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    if output_dir is None:
        for clip, text in translator.translate_each(source, recursive=recursive, **generation).items():
            print_json_line({"clip": clip, "text": text})
        return 0
    rows = source if isinstance(source, RowDataset) else RowDataset.from_files(source, recursive=recursive)
    with only_writer(output_dir, "translate", is_launched=True):
        measured = evaluate_texts(translator, rows, task=translator.model.config.task, **generation)
        if translator.state.is_main_process:
            for file, write in measured.files.items():
                write(Path(output_dir, file))
            print(results_table("Translated", measured) if measured.metrics else f"Texts: {output_dir}")
    return 0


def infer(
    model: Annotated[
        str, "folder or hub name of a trained model, or ALPRO's output/downstreams/<task>/public", Named.MODEL
    ],
    data: Annotated[str, "folder that `prepare` wrote, or ALPRO's data/<task>", Named.PATH],
    *,
    split: Annotated[str, "split to evaluate on: train, validation or test", "NAME"] = "test",
    output_dir: Annotated[str, "output folder for metrics.json and results.json", "DIR"],
    video_root: Annotated[
        str | None, "folder of the videos; default: DATA/videos if it exists, else DATA", "DIR", Named.PATH
    ] = None,
    audio_root: Annotated[str | None, "folder of the audio files; default: DATA", "DIR", Named.PATH] = None,
    pose_root: Annotated[str | None, "folder of the poses or features; default: DATA", "DIR", Named.PATH] = None,
    options: Annotated[Any, task_options],
    alpro: Annotated[bool, "measure as ALPRO's evaluation does, over all pairs"] = False,
    follow_links: FollowLinks = False,
    tokenizer: Annotated[
        str,
        "tokenizer of an ALPRO checkpoint, which is converted to OUTPUT_DIR/model on first use",
        "NAME_OR_FOLDER",
    ] = ALPRO_TOKENIZER,
    pipeline: PipelineOptions,
) -> int:
    """Evaluate a model on a prepared benchmark, and print its main metrics. `metrics.json` has all of them."""
    from simple_multimodal.alpro.layout import convert_once, is_alpro_folder
    from simple_multimodal.evaluation.protocols import get_protocol
    from simple_multimodal.inference.pipeline import from_main
    from simple_multimodal.models.distributed import leave_process_group
    from simple_multimodal.tasks.flags import options_from_flags
    from simple_multimodal.tasks.measure import measure_benchmark, prepared_folder
    from simple_multimodal.tasks.registry import get_task
    from simple_multimodal.training.console import results_table

    with only_writer(output_dir, "infer", is_launched=True):
        folder, videos, protocol = prepared_folder(data, output_dir, follow_links=follow_links)
        if is_alpro_folder(model):
            converted = Path(output_dir, "model")
            from_main(lambda: convert_once(model, data, converted, tokenizer_name=tokenizer))
            model = str(converted)
        kind = get_task(get_protocol(protocol).task)
        task = kind(options_from_flags(kind.name, options))
        used = pipeline.load(kind.pipeline_class, model, shows_progress=True)
        measured = measure_benchmark(
            task,
            used,
            folder,
            output_dir,
            model_folder=model,
            split=split,
            roots={"video": video_root or videos, "audio": audio_root, "pose": pose_root},
            follow_links=follow_links,
            alpro=alpro,
        )
    if used.state.is_main_process:
        print(results_table(measured.protocol, measured))
        if alpro or folder != Path(data):
            print(measured.printed)  # the line that ALPRO's evaluation ends with
        if measured.bad_samples:
            print(f"{len(measured.bad_samples)} clips could not be read and count as wrong.", file=sys.stderr)
        print(f"Results: {Path(output_dir, 'metrics.json')}, {Path(output_dir, 'results.json')}", file=sys.stderr)
    leave_process_group()
    return 0


def convert(
    kind: Annotated[Literal["alpro"], "project of the checkpoint; alpro: retrieval, question answering, pre-training"],
    checkpoint: Annotated[str, "checkpoint file, such as model_step_best.pt", Named.FILE],
    out: Annotated[str, "output folder for the model and its processor"],
    *,
    tokenizer: Annotated[str, "tokenizer of the checkpoint", "NAME_OR_FOLDER"] = ALPRO_TOKENIZER,
    num_frames: Annotated[int | None, "number of frames per clip; default: the checkpoint's"] = None,
    max_seq_length: Annotated[
        int | None, "maximum length of texts in tokens; default: the model's limit (ALPRO fine-tuned with 40)"
    ] = None,
    answers: Annotated[
        str | None,
        "train_ans2label.json with the names of the answers; default: LABEL_0, LABEL_1, ...",
        "FILE",
        Named.FILE,
    ] = None,
) -> int:
    """Convert a checkpoint of another project to a model folder, and report what happened to each tensor."""
    from simple_multimodal.alpro.folder import convert_alpro

    with only_writer(out, "convert"):
        report = convert_alpro(
            checkpoint,
            out,
            tokenizer_name=tokenizer,
            num_frames=num_frames,
            max_seq_length=max_seq_length,
            answers_file=answers,
        )
        print(report.summary())
    print(out)
    return 0
