"""The console script `simple-multimodal VERB`: one function per verb."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from simple_multimodal.evaluation.protocols import BENCHMARKS, PROTOCOLS, SPLITS
from simple_multimodal.modalities import CLIP_MODALITIES, MODALITIES

TOY_OPTIONS = {
    "num_train_clips": "training clips; default: 2000",
    "num_validation_pictures": "different pictures in the held-out clips; default: 16",
    "num_validation_sounds": "different sounds in the held-out clips; default: 16",
    "num_question_clips": "held-out clips with questions, a multiple of 9; default: 243",
    "num_pairs": "pairs that differ in sound alone, and as many in picture alone; default: 512",
    "seed": "random seed; default: 0",
    "num_processes": "processes that write; default: one per core",
}


PACK_OPTIONS = {
    "short_side": "pixels of the short side of pictures, smaller ones stay; default: 224; more serves random crops",
    "group_size": "pictures in a group; 1 (the default): each can be decoded alone",
    "crf": "quality of x264, 0 (lossless) to 51; default: 18",
    "sampling_rate": "of the sound, in Hz; default: 16000",
}


ALPRO_TOKENIZER = "google-bert/bert-base-uncased"

LIMITS = {
    "sample_timeout_seconds": "with --num_workers, a file that is not read within this many seconds is bad; 0: no "
    "limit; default: 120",
    "loader_memory_gigabytes": "with --num_workers, a file for which a reading process grows by more than this "
    "many GB is bad; 0: no limit; default: 4",
}
"""What a file may take before it is bad."""

BAD_SAMPLE_OPTIONS = {
    "max_bad_fraction": "stop when more than this share of the clips cannot be read; fewer are left out of an index "
    "and count as wrong in a measurement; default: 0.2",
    **LIMITS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one verb.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process when not given.

    Returns:
        `int`: The exit code: 0, or 1 where `doctor` or `index` found something broken, `pack` left rows out or
            `prepare` wrote something else than the protocol says, where `features` could not read clips, or where
            `diff` or `repeat` found a difference, 2 for a user's error, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="simple-multimodal", description="Tools around train.py.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("doctor", help="say what this machine has and what is missing for what")
    verb.add_argument("--json", action="store_true", dest="is_json", help="print JSON")
    verb.set_defaults(run=doctor)

    verb = verbs.add_parser("toy", help="write the toy data set", allow_abbrev=False)
    verb.add_argument("out", metavar="OUT", help="folder to write; a finished one is left as it is")
    for name, description in TOY_OPTIONS.items():
        verb.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, metavar="INT", help=description)
    verb.set_defaults(run=toy)

    verb = verbs.add_parser("clips", help="turn a clips.jsonl into manifests")
    verb.add_argument("clips_jsonl", metavar="CLIPS_JSONL", help="one clip per line: file, split, captions, ...")
    verb.add_argument("out", metavar="OUT", help="folder for one manifest per split")
    verb.set_defaults(run=clips)

    verb = verbs.add_parser("index", help="index the media of manifests and say what is wrong", allow_abbrev=False)
    verb.add_argument("manifests", metavar="MANIFEST", nargs="+", help="CSV, TSV or JSONL, as train.py takes it")
    add_roots(verb)
    verb.add_argument(
        "--decodes", action="store_true", help="decode everything to its end instead of trusting packets"
    )
    verb.add_argument("--num_threads", type=int, metavar="INT", help="files read at a time; default: one per core")
    verb.add_argument("--json", action="store_true", dest="is_json", help="print JSON")
    verb.set_defaults(run=index)

    verb = verbs.add_parser("prepare", help="turn a benchmark's annotations into manifests", allow_abbrev=False)
    verb.add_argument("benchmark", choices=BENCHMARKS, help="what the annotations are of: %(choices)s", metavar="NAME")
    verb.add_argument("--annotations", required=True, metavar="DIR", help="folder of the annotation files")
    verb.add_argument(
        "--videos", metavar="DIR", help="folder of the clips; default: `videos` of ALPRO's data/<task>/{txt,videos}"
    )
    verb.add_argument(
        "--output", required=True, metavar="DIR", help="folder for train.jsonl, validation.jsonl and test.jsonl"
    )
    verb.add_argument("--protocol", metavar="NAME", help=f"default: the benchmark's first of {', '.join(PROTOCOLS)}")
    verb.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=SPLITS,
        help="splits to write, whose files alone must be there; default: all",
    )
    verb.add_argument(
        "--num_validation_clips",
        type=int,
        metavar="INT",
        help="training clips that are set aside where a benchmark has no validation list; default: 500",
    )
    verb.add_argument("--seed", type=int, default=0, metavar="INT", help="random seed that decides which; default: 0")
    add_follow_links(verb)
    verb.add_argument("--require_all_clips", action="store_true", help="write nothing if clips are missing")
    verb.add_argument(
        "--check", action="store_true", help="open every video, and count those that cannot be read as missing"
    )
    verb.add_argument("--index_dir", metavar="DIR", help="folder for frame indices; default: one in the user's cache")
    verb.add_argument("--num_threads", type=int, metavar="INT", help="files opened at a time; default: one per core")
    verb.add_argument("--json", action="store_true", dest="is_json", help="print JSON")
    verb.set_defaults(run=prepare)

    verb = verbs.add_parser("pack", help="write a copy of a data set that is fast to read", allow_abbrev=False)
    verb.add_argument("manifest", metavar="MANIFEST", help="CSV, TSV or JSONL, as train.py takes it")
    verb.add_argument("out", metavar="OUT", help="folder of the copy; what it has already is not made again")
    for name, description in PACK_OPTIONS.items():
        verb.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, metavar="INT", help=description)
    verb.add_argument("--num_threads", type=int, metavar="INT", help="files packed at a time; default: one per core")
    add_roots(verb)
    verb.set_defaults(run=pack)

    verb = verbs.add_parser("show", help="draw what the model sees of a sample", allow_abbrev=False)
    verb.add_argument("manifest", metavar="MANIFEST", help="CSV, TSV or JSONL, as train.py takes it")
    verb.add_argument("--row", type=int, default=0, metavar="INT", help="number of the row, from 0; default: 0")
    verb.add_argument(
        "--model", metavar="DIR", help="folder of a trained model; default: 16 frames of 224, 128 mel bins"
    )
    verb.add_argument(
        "--epoch", type=int, metavar="INT", help="draw as training does in this epoch; default: evaluation"
    )
    verb.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="random seed of the run, with --epoch; default: 0"
    )
    verb.add_argument("--out", default="sample.png", metavar="FILE", help="the picture; default: sample.png")
    add_roots(verb)
    verb.set_defaults(run=show)

    verb = verbs.add_parser("encode", help="save embeddings of clips, to search them", allow_abbrev=False)
    verb.add_argument("model", metavar="MODEL", help="folder or hub name of a trained model")
    verb.add_argument("clips", metavar="CLIPS", nargs="+", help="a manifest, a folder, or media files")
    verb.add_argument(
        "--out", default="clips.safetensors", metavar="FILE", help="embeddings to write; default: clips.safetensors"
    )
    add_files(verb)
    add_recursive(verb)
    add_pipeline(verb)
    verb.set_defaults(run=encode)

    verb = verbs.add_parser("features", help="run frozen towers once and keep their tokens", allow_abbrev=False)
    verb.add_argument("model", metavar="MODEL", help="folder or hub name of a saved model")
    verb.add_argument("manifests", metavar="MANIFEST", nargs="+", help="CSV, TSV or JSONL")
    verb.add_argument(
        "--tower", nargs="+", required=True, choices=CLIP_MODALITIES, dest="towers", help="towers to run"
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="folder to write; what it has is not made again")
    verb.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="of the tokens in the files; default: float32",
    )
    verb.add_argument("--shard_size", type=int, default=128, metavar="INT", help="clips in a file; default: 128")
    verb.add_argument("--batch_size", type=int, default=16, metavar="INT", help="clips per batch; default: 16")
    verb.add_argument(
        "--num_workers", type=int, default=0, metavar="INT", help="loader processes; default: 0, this process reads"
    )
    add_backend(verb)
    add_precision(verb)
    verb.add_argument("--cache_dir", metavar="DIR", help="folder for what is downloaded from the hub")
    add_numbers(verb, LIMITS)
    add_roots(verb)
    verb.set_defaults(run=features)

    verb = verbs.add_parser("search", help="find clips by text", allow_abbrev=False)
    verb.add_argument("model", metavar="MODEL", help="folder or hub name of a trained model")
    verb.add_argument("text", metavar="TEXT", help="what is to be seen and heard")
    verb.add_argument(
        "clips", metavar="CLIPS", nargs="+", help="a manifest, a folder, media files, or what `encode` saved"
    )
    verb.add_argument("--top_k", type=int, default=10, metavar="INT", help="clips to print; default: 10")
    verb.add_argument(
        "--rerank",
        type=int,
        metavar="INT",
        help="first candidates that the matching head re-ranks; 0: none; default: as many as were better re-ranked on "
        "the validation split, if any",
    )
    add_files(verb)
    add_recursive(verb)
    add_pipeline(verb)
    verb.set_defaults(run=search)

    verb = verbs.add_parser("answer", help="answer questions about clips", allow_abbrev=False)
    verb.add_argument("model", metavar="MODEL", help="folder or hub name of a model for question answering")
    verb.add_argument("question", metavar="QUESTION", help="about each clip")
    verb.add_argument("clips", metavar="CLIPS", nargs="+", help="a manifest, a folder, or media files")
    verb.add_argument("--top_k", type=int, default=1, metavar="INT", help="answers to print; default: 1")
    add_files(verb)
    add_recursive(verb)
    add_pipeline(verb)
    verb.set_defaults(run=answer)

    verb = verbs.add_parser("infer", help="measure a model on a prepared benchmark", allow_abbrev=False)
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="folder or hub name of a trained model, or ALPRO's output/downstreams/<task>/public",
    )
    verb.add_argument("data", metavar="DATA", help="folder that `prepare` wrote, or ALPRO's data/<task>")
    verb.add_argument("--split", default="test", metavar="NAME", help="train, validation or test; default: test")
    verb.add_argument("--output_dir", required=True, metavar="DIR", help="folder for metrics.json and results.json")
    verb.add_argument(
        "--video_root", metavar="DIR", help="folder of the videos; default: DATA/videos if it is there, else DATA"
    )
    verb.add_argument(
        "--matching_top_k",
        type=number_or_all,
        metavar="INT",
        help="candidates of each query that the matching head re-ranks, a number or all; 0: none; default: the "
        "protocol's, if the head was better than the cosine on the validation split, else 0",
    )
    verb.add_argument(
        "--measure_rerank",
        action="store_true",
        help="score all pairs, and say how every metric changes by re-ranking the first --matching_top_k alone",
    )
    verb.add_argument("--dsl", action="store_true", help="rank by dual softmax, over all test queries")
    verb.add_argument(
        "--alpro", action="store_true", dest="is_alpro", help="print the numbers of ALPRO's evaluation, of all pairs"
    )
    add_follow_links(verb)
    verb.add_argument(
        "--tokenizer",
        default=ALPRO_TOKENIZER,
        metavar="NAME_OR_FOLDER",
        dest="tokenizer_name",
        help=f"of an ALPRO that is converted on first use, into OUTPUT_DIR/model; default: {ALPRO_TOKENIZER}",
    )
    add_pipeline(verb)
    verb.set_defaults(run=infer)

    verb = verbs.add_parser("diff", help="compare two checkpoints or model folders bit for bit", allow_abbrev=False)
    verb.add_argument("first", metavar="FIRST", help="folder")
    verb.add_argument("second", metavar="SECOND", help="folder")
    verb.set_defaults(run=diff)

    verb = verbs.add_parser("repeat", help="train several times and compare what comes out", allow_abbrev=False)
    verb.add_argument("--runs", type=int, default=3, metavar="INT", help="how often; default: 3")
    verb.add_argument("--output_dir", required=True, metavar="DIR", help="folder for run-1, run-2, ...")
    verb.add_argument("command", metavar="COMMAND", nargs="+", help="after `--`, such as: -- python train.py ...")
    verb.set_defaults(run=repeat)

    verb = verbs.add_parser("convert", help="turn a checkpoint of another project into a model folder")
    kinds = verb.add_subparsers(required=True, metavar="KIND")
    kind = kinds.add_parser("alpro", help="ALPRO: retrieval, question answering, pre-training", allow_abbrev=False)
    kind.add_argument("checkpoint", metavar="CHECKPOINT", help="such as model_step_best.pt")
    kind.add_argument("out", metavar="OUT", help="folder for the model and its processor")
    kind.add_argument(
        "--tokenizer",
        default=ALPRO_TOKENIZER,
        metavar="NAME_OR_FOLDER",
        dest="tokenizer_name",
        help=f"tokenizer it was trained with; default: {ALPRO_TOKENIZER}",
    )
    kind.add_argument("--num_frames", type=int, metavar="INT", help="frames per clip; default: the checkpoint's")
    kind.add_argument(
        "--max_seq_length", type=int, metavar="INT", help="cut texts after this many tokens; default: 512, ALPRO: 40"
    )
    kind.add_argument(
        "--answers",
        metavar="FILE",
        dest="answers_file",
        help="train_ans2label.json, the names of the answers; without it they are LABEL_0, LABEL_1, ...",
    )
    kind.set_defaults(run=convert_alpro)

    options = vars(parser.parse_args(argv))
    del options["verb"]
    try:
        return options.pop("run")(**options)
    except KeyboardInterrupt:
        print("simple-multimodal: interrupted; the same command does what is left.", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:  # ImportError: of an extra, with its pip command
        print(f"simple-multimodal: error: {error}", file=sys.stderr)
        return 2


def add_recursive(verb: argparse.ArgumentParser) -> None:
    """Adds the flag of verbs that take a folder."""
    verb.add_argument(
        "--recursive", action="store_true", help="take the files of folders in the folder, too; not hidden ones"
    )


def add_pipeline(verb: argparse.ArgumentParser) -> None:
    """Adds the flags of a model in use."""
    verb.add_argument("--batch_size", type=int, default=16, metavar="INT", help="clips per batch; default: 16")
    verb.add_argument(
        "--num_workers", type=int, default=0, metavar="INT", help="loader processes; default: 0, this process reads"
    )
    verb.add_argument(
        "--features",
        metavar="DIR",
        help="folder that `features` wrote of this model, used in place of its towers and of decoding",
    )
    verb.add_argument(
        "--drop_modality", nargs="+", default=(), choices=MODALITIES, help="modalities to ignore; default: none"
    )
    add_precision(verb)
    verb.add_argument("--cache_dir", metavar="DIR", help="folder for what is downloaded from the hub")
    verb.add_argument("--index_dir", metavar="DIR", help="folder for frame indices; default: one in the user's cache")
    add_backend(verb)
    add_numbers(verb, BAD_SAMPLE_OPTIONS)


def add_precision(verb: argparse.ArgumentParser) -> None:
    """Adds the flag that says what the model computes in."""
    verb.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="what the model computes in; default: as in the evaluations of its training, by its run.json, else fp32",
    )


def number_or_all(text: str) -> int | Literal["all"]:
    """Reads a number of candidates, or `all`."""
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'") from None


def add_numbers(verb: argparse.ArgumentParser, options: Mapping[str, str]) -> None:
    """Adds flags of numbers, by name and description, whose defaults are those of what takes them."""
    for name, description in options.items():
        verb.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS, metavar="FLOAT", help=description)


def add_backend(verb: argparse.ArgumentParser) -> None:
    """Adds the flag that says what decodes pictures, which features must have been made with."""
    verb.add_argument(
        "--video_backend",
        default="pyav",
        choices=("pyav", "torchcodec", "decord"),
        help="decoder of the pictures; default: pyav",
    )
    verb.add_argument(
        "--decode_device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda: decode on the GPU (NVDEC), with --video_backend torchcodec; default: cpu",
    )


def add_roots(verb: argparse.ArgumentParser) -> None:
    """Adds the flags that say where the files of a manifest and their indices are."""
    add_files(verb)
    verb.add_argument("--index_dir", metavar="DIR", help="folder for frame indices; default: one in the user's cache")


def add_files(verb: argparse.ArgumentParser) -> None:
    """Adds the flags that say where the files of a manifest are."""
    for column in ("video", "audio", "text"):
        verb.add_argument(
            f"--{column}_root", metavar="DIR", help=f"folder of the {column} column; default: manifest's"
        )
    add_follow_links(verb)


def add_follow_links(verb: argparse.ArgumentParser) -> None:
    """Adds the flag about the symbolic links of a manifest, or of a benchmark's videos."""
    verb.add_argument(
        "--follow_links",
        action="store_true",
        help="follow symbolic links of a manifest wherever they lead, not only within the roots and the hub's cache",
    )


def doctor(*, is_json: bool) -> int:
    """Prints what this machine has and what is missing for what; 1 if the core does not work."""
    from simple_multimodal.doctor import examine, to_dict, to_text

    report = examine()
    print(json.dumps(to_dict(report), indent=2) if is_json else to_text(report))
    return 0 if report.core_works else 1


def toy(*, out: str, **options: int) -> int:
    """Writes the toy data set to the folder `out`."""
    from simple_multimodal.prepare.toy import make_toy_world

    with _only_writer(out, "toy"):
        print(make_toy_world(out, **options))
    return 0


def clips(*, clips_jsonl: str, out: str) -> int:
    """Turns a `clips.jsonl` into one manifest per split in the folder `out`."""
    from simple_multimodal.prepare.clips import clips_jsonl_to_manifests

    for path in clips_jsonl_to_manifests(clips_jsonl, out).values():
        print(path)
    return 0


def index(*, manifests: list[str], is_json: bool, **options: str | int | bool | None) -> int:
    """Indexes the media of manifests and prints what is wrong with them; 1 if files cannot be read."""
    from simple_multimodal.prepare.check import check_manifests

    report = check_manifests(manifests, **options)  # type: ignore[arg-type]
    print(json.dumps(report.to_dict(), indent=2) if is_json else report.to_text())
    return 1 if report.unreadable else 0


def prepare(
    *,
    benchmark: str,
    annotations: str,
    videos: str | None,
    output: str,
    require_all_clips: bool,
    check: bool,
    is_json: bool,
    **options: Any,
) -> int:
    """Turns a benchmark's annotations into manifests and prints how they differ from its protocol; 1 if they do."""
    from simple_multimodal.prepare.manifests import prepare_benchmark

    with _only_writer(output, "prepare"):
        preparation = prepare_benchmark(
            benchmark,
            annotations,
            output,
            videos=videos,
            requires_all_clips=require_all_clips,
            opens_files=check,
            **options,
        )
    report = preparation.to_dict() | {"notes": preparation.notes}
    print(json.dumps(report, indent=2) if is_json else preparation.to_text())
    return 1 if preparation.deviations else 0


def show(
    *,
    manifest: str,
    row: int,
    model: str | None,
    epoch: int | None,
    seed: int,
    out: str,
    index_dir: str | None,
    follow_links: bool,
    **roots: Any,
) -> int:
    """Draws what the model sees of a sample into a picture."""
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.missing import explain
    from simple_multimodal.prepare.show import draw_sample
    from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor

    dataset = RowDataset.from_manifest(manifest, modalities=(), roots=_roots(roots), follow_links=follow_links)
    if not 0 <= row < len(dataset):
        raise ValueError(f"--row is {row}; {manifest} has the rows 0 to {len(dataset) - 1}")
    if model is None:
        processor = MultimodalProcessor(AudioFeatureExtractor(), VideoClipProcessor())
    else:
        try:
            processor = MultimodalProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ValueError(f"{model}: is no saved model: {explain(model, error)}") from error
    sample = dataset[(epoch or 0, row)]
    draw_sample(sample, processor, is_training=epoch is not None, seed=seed, index_dir=index_dir).save(out)
    print(out)
    return 0


def encode(*, model: str, clips: list[str], recursive: bool, out: str, **settings: Any) -> int:
    """Saves embeddings of clips."""
    from simple_multimodal.tasks.retrieval.retriever import Retriever

    source = _clips(clips, settings)
    partial = f"{out}.partial"
    with _only_writer(partial, "encode", is_launched=True):
        retriever = _pipeline(Retriever, model, settings | {"shows_progress": True})
        index = retriever.index(source, saved=out, partial=partial, recursive=recursive)
        if retriever.state.is_local_main_process:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {len(index.ids)} clips{_unread(len(index.bad_samples), 'left out')}")
    return 0


def features(
    *,
    model: str,
    manifests: list[str],
    towers: list[str],
    output: str,
    dtype: str,
    shard_size: int,
    video_root: str | None,
    audio_root: str | None,
    text_root: str | None,
    follow_links: bool,
    **settings: Any,
) -> int:
    """Keeps the tokens of frozen towers; 1 if clips cannot be read."""
    import torch

    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.inference.features import TowerFeatures
    from simple_multimodal.models.distributed import leave_process_group

    pipeline = TowerFeatures.from_pretrained(model, shows_progress=True, **settings)
    files: dict[str, Any] = {
        "roots": {"video": video_root, "audio": audio_root, "text": text_root},
        "follow_links": follow_links,
    }
    datasets = [RowDataset.from_manifest(path, modalities=(), **files) for path in manifests]
    num_unreadable = 0
    for tower in dict.fromkeys(towers):
        with _only_writer(Path(output, tower), "features", is_launched=True):
            report = pipeline.write(tower, datasets, output, shard_size=shard_size, dtype=getattr(torch, dtype))  # type: ignore[arg-type]
        num_unreadable += len(report.unreadable)
        if pipeline.state.is_main_process:
            for message in report.unreadable:
                print(f"not readable: {message}", file=sys.stderr)
            print(f"{Path(output, tower)}: {report.num_clips} clips, {report.num_made} made now")
    leave_process_group()
    return 1 if num_unreadable else 0


def search(
    *, model: str, text: str, clips: list[str], recursive: bool, top_k: int, rerank: int | None, **settings: Any
) -> int:
    """Prints the clips found, one JSON object per line."""
    from simple_multimodal.tasks.retrieval.retriever import Retriever

    source = _clips(clips, settings)
    retriever = _pipeline(Retriever, model, settings)
    found = retriever.search(text, source, top_k=top_k, rerank=rerank, recursive=recursive)
    for match in found:
        print(json.dumps(match._asdict()))
    return 0


def answer(
    *,
    model: str,
    question: str,
    clips: list[str],
    recursive: bool,
    top_k: int,
    **settings: Any,
) -> int:
    """Prints the answers for each clip, one JSON object per line."""
    from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer

    source = _clips(clips, settings)
    answerer = _pipeline(QuestionAnswerer, model, settings)
    answered = answerer.answer_each(question, source, top_k=top_k, recursive=recursive)
    for clip, answers in answered.items():
        print(json.dumps({"id": clip, "answers": [answer._asdict() for answer in answers]}))
    return 0


def infer(
    *, model: str, data: str, output_dir: str, video_root: str | None, tokenizer_name: str, **options: Any
) -> int:
    """Measures a model on a prepared benchmark, and prints the numbers as ALPRO does."""
    from simple_multimodal.alpro.layout import convert_once, is_alpro_folder
    from simple_multimodal.evaluation.protocols import get_protocol
    from simple_multimodal.inference.pipeline import from_main
    from simple_multimodal.models.distributed import leave_process_group
    from simple_multimodal.tasks import get_task
    from simple_multimodal.tasks.measure import measure_benchmark, prepared_folder

    settings = {name: options.pop(name) for name in PIPELINE_SETTINGS if name in options}
    task_options = {name: options.pop(name) for name in ("matching_top_k", "measure_rerank", "dsl")}
    with _only_writer(output_dir, "infer", is_launched=True):
        folder, videos, protocol = prepared_folder(data, output_dir, follow_links=options["follow_links"])
        if is_alpro_folder(model):
            converted = Path(output_dir, "model")
            from_main(lambda: convert_once(model, data, converted, tokenizer_name=tokenizer_name))
            model = str(converted)
        kind = get_task(get_protocol(protocol).task)
        task = kind(kind.options_class.from_flags(task_options, task=kind.name))
        pipeline = _pipeline(kind.pipeline_class, model, settings | {"shows_progress": True})
        measured = measure_benchmark(
            task, pipeline, folder, output_dir, model_folder=model, video_root=video_root or videos, **options
        )
    if pipeline.state.is_main_process:
        metric = measured.primary_metric or ""
        print(
            f"{measured.protocol}: {metric} {measured.metrics[metric]:.4f}"
            f"{_unread(len(measured.bad_samples), 'counted as wrong')}",
            file=sys.stderr,
        )
        print(measured.printed)
    leave_process_group()
    return 0


def _only_writer(folder: str | Path, verb: str, *, is_launched: bool = False) -> AbstractContextManager[None]:
    """Keeps others out of the folder that a verb writes into; the processes of one launch write together."""
    from simple_multimodal.output_folder import writing_into

    if not is_launched:
        return writing_into(folder, command=f"simple-multimodal {verb}")
    from simple_multimodal.inference.partial import process_state
    from simple_multimodal.models.distributed import decide_in_first_process

    process_state()  # which starts the processes' talk
    return writing_into(folder, command=f"simple-multimodal {verb}", decide=decide_in_first_process)


PIPELINE_SETTINGS = (
    *("batch_size", "num_workers", "features", "drop_modality", "cache_dir", "index_dir", "video_backend"),
    *("decode_device", "precision"),
    *BAD_SAMPLE_OPTIONS,
)


def _pipeline(kind: Any, model: str, settings: dict[str, Any]) -> Any:
    settings["drop_modalities"] = settings.pop("drop_modality")
    return kind.from_pretrained(model, **settings)


def _unread(num_bad: int, fate: str) -> str:
    return f" ({num_bad} could not be read, {fate})" if num_bad else ""


def _roots(settings: dict[str, Any]) -> dict[str, str | None]:
    """Take the root folder of each column out of the settings."""
    return {name: settings.pop(f"{name}_root") for name in ("video", "audio", "text")}


def _clips(clips: list[str], settings: dict[str, Any]) -> Any:
    """A data set if a manifest is named, else folders or files; takes the settings of files out of the others."""
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.data.tables import is_table

    follow_links = settings.pop("follow_links")
    roots = _roots(settings)
    if len(clips) == 1 and is_table(clips[0]):
        return RowDataset.from_manifest(clips[0], modalities=(), follow_links=follow_links, roots=roots)
    if given := [f"--{name}_root" for name, root in roots.items() if root is not None]:
        raise ValueError(f"{given[0]} is for a manifest; files and folders are found where they are. Leave it out.")
    return clips[0] if len(clips) == 1 else clips


def pack(
    *,
    manifest: str,
    out: str,
    num_threads: int | None,
    video_root: str | None,
    audio_root: str | None,
    text_root: str | None,
    follow_links: bool,
    index_dir: str | None,
    **settings: int,
) -> int:
    """Writes a copy of a data set that is fast to read; 1 if rows were left out."""
    from simple_multimodal.prepare.pack import PackSettings, pack_manifest

    with _only_writer(out, "pack"):
        report = pack_manifest(
            manifest,
            out,
            video_root=video_root,
            audio_root=audio_root,
            text_root=text_root,
            follow_links=follow_links,
            index_dir=index_dir,
            settings=PackSettings(**settings),
            num_threads=num_threads,
        )
    print(report.to_text())
    return 1 if report.errors else 0


def diff(*, first: str, second: str) -> int:
    """Compares two folders bit for bit; 1 if they differ."""
    from simple_multimodal.training.comparison import compare_folders

    return _print_differences(f"{first} and {second}", *compare_folders(first, second))


def repeat(*, runs: int, output_dir: str, command: list[str]) -> int:
    """Trains several times and compares each run with the first; 1 if any differs."""
    from simple_multimodal.training import comparison

    compared = comparison.repeat(command, num_runs=runs, output_dir=output_dir)
    return max([_print_differences(f"run-1 and {run.name}", lines, count) for run, lines, count in compared])


def _print_differences(what: str, lines: list[str], num_compared: int) -> int:
    print(f"{what}: {f'{len(lines)} of {num_compared} differ' if lines else f'equal, all {num_compared}'}")
    for line in lines:
        print(f"  {line}")
    return 1 if lines else 0


def convert_alpro(*, checkpoint: str, out: str, **options: str | int | None) -> int:
    """Turns an ALPRO checkpoint into a folder with model and processor; prints what became of every tensor."""
    from simple_multimodal.alpro import folder

    with _only_writer(out, "convert"):
        print(folder.convert_alpro(checkpoint, out, **options).summary())  # type: ignore[arg-type]
    print(out)
    return 0
