"""Verbs about datasets: `toy`, `clips`, `index`, `prepare`, `export_table`, `pack`, `estimate_poses` and `show`."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from simple_multimodal.cli.options import (
    Clips,
    FileOptions,
    FollowLinks,
    IndexDir,
    Json,
    Manifest,
    Manifests,
    NumThreads,
    only_writer,
    print_json,
)
from simple_multimodal.cli.signature import flag_names
from simple_multimodal.defaults import (
    NUM_VALIDATION_CLIPS,
    SIGN_FRAMES,
    SIGN_SIGNERS,
    SIGN_TEST_CLIPS,
    SIGN_VALIDATION_CLIPS,
    TOY_PAIRS,
    TOY_QUESTION_CLIPS,
    TOY_TRAIN_CLIPS,
    TOY_VALIDATION_AUDIO,
    TOY_VALIDATION_VIDEOS,
    Difficulty,
    Hand,
)
from simple_multimodal.errors import InputError, with_flags
from simple_multimodal.evaluation.protocols import PROTOCOLS, SPLITS, known_benchmarks
from simple_multimodal.missing import Named
from simple_multimodal.prepare.settings import PackSettings, SignalSettings


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """What all toy datasets have."""

    num_train_clips: Annotated[int, "number of training clips, in addition to the held-out ones"] = TOY_TRAIN_CLIPS
    seed: Annotated[int, "random seed"] = 0
    num_processes: Annotated[int | None, "number of writing processes; default: one per core"] = None


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Size of the toy dataset of shapes."""

    num_validation_videos: Annotated[int, "shapes: number of different videos in the held-out clips"] = (
        TOY_VALIDATION_VIDEOS
    )
    num_validation_audio: Annotated[int, "shapes: number of different audio tracks in the held-out clips"] = (
        TOY_VALIDATION_AUDIO
    )
    num_question_clips: Annotated[int, "shapes: number of held-out clips with questions, a multiple of 9"] = (
        TOY_QUESTION_CLIPS
    )
    num_pairs: Annotated[
        int, "shapes: number of pairs that differ only in audio, and of pairs that differ only in video"
    ] = TOY_PAIRS


@dataclass(frozen=True, kw_only=True)
class SignOptions:
    """Size and difficulty of the toy dataset of signs."""

    difficulty: Annotated[
        Difficulty,
        "signs: `easy`, or `hard`: signs that differ by the shape of a hand or by the second hand alone, and signers "
        "who differ more",
    ] = "easy"
    num_validation_clips: Annotated[int, "signs: number of clips for validation"] = SIGN_VALIDATION_CLIPS
    num_test_clips: Annotated[int, "signs: number of test clips, by signers of training and again by others"] = (
        SIGN_TEST_CLIPS
    )
    num_signers: Annotated[int, "signs: number of signers in training"] = SIGN_SIGNERS
    num_frames: Annotated[int, "signs: number of frames of every clip, 25 per second"] = SIGN_FRAMES
    hidden_hand: Annotated[Hand | None, "signs: hand that is missing in all poses and clips"] = None


def toy(
    out: Annotated[str, "output folder; a complete one is not changed"],
    *,
    world: Annotated[
        Literal["shapes", "signs"],
        "`shapes`: clips of moving shapes and melodies; `signs`: poses and clips of signed sentences",
    ] = "shapes",
    options: WorldOptions,
    shapes: ToyOptions,
    signs: SignOptions,
) -> int:
    """Write a toy dataset."""
    from simple_multimodal.prepare.toy import make_sign_world, make_toy_world

    others = signs if world == "shapes" else shapes
    for option in fields(others):
        if getattr(others, option.name) != option.default:
            raise InputError(f"--{option.name} does not apply to --world {world}. Leave it out, or change --world.")
    with only_writer(out, "toy"):
        if world == "shapes":
            print(make_toy_world(out, **vars(options), **vars(shapes)))
        else:
            print(make_sign_world(out, **vars(options), **vars(signs)))
    return 0


def clips(
    clips_jsonl: Annotated[str, "JSONL with one clip per line: file, split, captions, ...", Named.FILE],
    out: Annotated[str, "output folder for one manifest per split"],
) -> int:
    """Turn a `clips.jsonl` into one manifest per split."""
    from simple_multimodal.prepare.clips import clips_jsonl_to_manifests

    for path in clips_jsonl_to_manifests(clips_jsonl, out).values():
        print(path)
    print(f"Pass {shlex.join(['--video_root', os.path.dirname(clips_jsonl) or '.'])}", file=sys.stderr)
    return 0


def index(
    manifests: Manifests,
    *,
    files: FileOptions,
    index_dir: IndexDir = None,
    decodes: Annotated[bool, "decode every file completely instead of only reading its packets"] = False,
    num_threads: NumThreads = None,
    json: Json = False,
) -> int:
    """Index the media of manifests and report problems. Exit code 1 if files cannot be read."""
    from simple_multimodal.prepare.check import check_manifests

    report = check_manifests(manifests, **vars(files), index_dir=index_dir, decodes=decodes, num_threads=num_threads)
    print_json(report.to_dict()) if json else print(with_flags(report.to_text(), flag_names(index)))
    return 1 if report.unreadable else 0


def prepare(
    benchmark: Annotated[
        str, f"benchmark of the annotations: {', '.join(known_benchmarks())}", "NAME", known_benchmarks()
    ],
    *,
    annotations: Annotated[
        str | None, "folder of the annotation files; default: the folder of the clips", "DIR", Named.PATH
    ] = None,
    videos: Annotated[
        str | None,
        "folder of the clips; default: `videos` of ALPRO's data/<task>/{txt,videos}, for class_folders and path_lists "
        "the folder of the annotations",
        "DIR",
        Named.PATH,
    ] = None,
    poses: Annotated[
        str | None, "folder of the clips' poses (.pose) or features of their frames (.npy)", "DIR", Named.PATH
    ] = None,
    signals: SignalSettings,
    output: Annotated[str, "folder for train.jsonl, validation.jsonl and test.jsonl", "DIR"],
    protocol: Annotated[
        str | None, f"evaluation protocol; default: the benchmark's first of {', '.join(PROTOCOLS)}", "NAME"
    ] = None,
    splits: Annotated[Sequence[str], "splits to write; only their files are needed", SPLITS] = SPLITS,
    num_validation_clips: Annotated[
        int | None,
        f"number of training clips to use for validation if the benchmark has no validation list; default: "
        f"{NUM_VALIDATION_CLIPS}, but at most a tenth of the training clips",
    ] = None,
    seed: Annotated[int, "random seed of that choice"] = 0,
    follow_links: FollowLinks = False,
    require_all_clips: Annotated[bool, "write nothing if clips are missing"] = False,
    check: Annotated[bool, "open every file, and count unreadable ones as missing"] = False,
    index_dir: IndexDir = None,
    num_threads: NumThreads = None,
    json: Json = False,
) -> int:
    """Turn a benchmark's annotations into manifests. Exit code 1 if they differ from its protocol."""
    from simple_multimodal.prepare.manifests import prepare_benchmark

    with only_writer(output, "prepare"):
        preparation = prepare_benchmark(
            benchmark,
            annotations,
            output,
            videos=videos,
            poses=poses,
            signals=signals,
            protocol=protocol,
            splits=splits,
            num_validation_clips=num_validation_clips,
            seed=seed,
            requires_all_clips=require_all_clips,
            opens_files=check,
            follow_links=follow_links,
            index_dir=index_dir,
            num_threads=num_threads,
        )
    if json:
        print_json(preparation.to_dict() | {"notes": preparation.notes, "flags": preparation.flags})
    else:
        print(preparation.to_text())
    return 1 if preparation.deviations else 0


def export_table(
    manifest: Manifest,
    out: Annotated[str, "table to write, such as train.tsv", "FILE"],
    *,
    signals: SignalSettings,
    column: Annotated[
        Literal["pose", "video"] | None, "column of the files; default: the one that the manifest has"
    ] = None,
    encoder_prompt: Annotated[str, "prompt of rows without `encoder_prompt`"] = "",
    decoder_prompt: Annotated[str, "prompt of rows without `decoder_prompt`"] = "",
    line_end: Annotated[Literal["crlf", "lf"], "end of lines"] = "crlf",
) -> int:
    """Write a manifest as a table of multimodalhugs. Exit code 1 if the table cannot hold all of it."""
    from simple_multimodal.prepare.signal_tables import write_signal_table

    notes = write_signal_table(
        manifest,
        out,
        signals=signals,
        column=column,
        encoder_prompt=encoder_prompt,
        decoder_prompt=decoder_prompt,
        line_end=line_end,
    )
    print("\n".join([out, *(f"note: {note}" for note in notes)]))
    return 1 if notes else 0


def pack(
    manifest: Manifest,
    out: Annotated[str, "output folder; existing files are kept"],
    *,
    settings: PackSettings,
    num_threads: NumThreads = None,
    files: FileOptions,
    index_dir: IndexDir = None,
) -> int:
    """Write a copy of a dataset that is fast to read. Exit code 1 if rows were left out."""
    from simple_multimodal.prepare.pack import pack_manifest

    with only_writer(out, "pack"):
        report = pack_manifest(
            manifest, out, **vars(files), index_dir=index_dir, settings=settings, num_threads=num_threads
        )
    print(with_flags(report.to_text(), flag_names(pack)))
    return 1 if report.errors else 0


def estimate_poses(
    manifest: Manifest,
    out: Annotated[str, "output folder; finished poses are kept"],
    *,
    estimator: Annotated[str, "mediapipe, or a Python file with a class `Estimator` (docs/poses.md)", "NAME or FILE"],
    python: Annotated[
        str | None,
        "Python of the estimator's environment; default: the one that run_scripts/setup_pose.sh makes, .venv-pose",
        "FILE",
        Named.FILE,
    ] = None,
    num_processes: Annotated[
        int | None, "number of clips at the same time, a process for each; default: one per core"
    ] = None,
    files: FileOptions,
    index_dir: IndexDir = None,
) -> int:
    """Estimate the poses of a manifest's videos. Exit code 1 if rows were left out."""
    from simple_multimodal.prepare.poses import estimate_poses as estimate

    with only_writer(out, "estimate_poses"):
        report = estimate(
            manifest,
            out,
            estimator=estimator,
            python=python,
            num_processes=num_processes,
            **vars(files),
            index_dir=index_dir,
        )
    print(with_flags(report.to_text(), flag_names(estimate_poses)))
    roots = [word for name, root in report.roots.items() for word in (f"--{name}_root", str(root))]
    print(f"Pass {shlex.join(roots)}", file=sys.stderr)
    return 1 if report.errors else 0


def show(
    clips: Clips,
    *,
    row: Annotated[
        int | None,
        "number of the row to draw, counted from 0; default: the first of a manifest or a folder, or all files that "
        "are given",
    ] = None,
    model: Annotated[
        str | None,
        "folder of a trained model; default: the preprocessing of a new model with pretrained VideoMAE and MAE towers",
        "DIR",
        Named.MODEL,
    ] = None,
    epoch: Annotated[int | None, "draw clips as in this epoch of training; default: as in evaluation"] = None,
    seed: Annotated[int, "random seed of the run; used with --epoch"] = 0,
    num_frames: Annotated[int | None, "frames per clip; default: the model's"] = None,
    video_size: Annotated[
        Sequence[int] | None, "height and width of a frame in pixels, or one number for both; default: the model's"
    ] = None,
    out: Annotated[str, "image file to write", "FILE"] = "sample.png",
    files: FileOptions,
    index_dir: IndexDir = None,
) -> int:
    """Draw clips as the model sees them."""
    from transformers import VideoMAEConfig, ViTMAEConfig

    from simple_multimodal.assembly import build_processor
    from simple_multimodal.data.files import is_media_folder
    from simple_multimodal.data.rows import RowDataset
    from simple_multimodal.missing import reading_model
    from simple_multimodal.prepare.show import draw_sample, stack, with_pose
    from simple_multimodal.processing import MultimodalProcessor

    source = files.open_clips(clips)
    dataset = source if isinstance(source, RowDataset) else RowDataset.from_files(source)
    if row is not None and not 0 <= row < len(dataset):
        raise InputError(f"--row is {row}, but {' '.join(clips)} has rows 0 to {len(dataset) - 1}.")
    has_one = row is not None or source is dataset or is_media_folder(source)
    rows = [row or 0] if has_one else range(len(dataset))
    if model is None:
        processor = build_processor({"audio": ViTMAEConfig(), "video": VideoMAEConfig()}, captions=tuple)
    else:
        with reading_model(model):
            processor = MultimodalProcessor.from_pretrained(model)
    samples = [dataset[(epoch or 0, number)] for number in rows]
    images = [
        draw_sample(
            sample,
            processor if model is not None else with_pose(processor, sample),
            is_training=epoch is not None,
            seed=seed,
            num_frames=num_frames,
            video_size=video_size,
            index_dir=index_dir,
        )
        for sample in samples
    ]
    stack(images).save(out)
    print(out)
    if model is None and num_frames is None and video_size is None:
        video = processor.video_processor
        print(
            f"Without --model, clips are drawn as for new models with pretrained VideoMAE and MAE towers: "
            f"{video.num_frames} frames of {video.width}x{video.height}. For other towers, such as small random "
            "ones, set --num_frames and --video_size.",
            file=sys.stderr,
        )
    return 0
