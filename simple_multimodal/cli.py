"""The console script `simple-multimodal VERB`: one function per verb."""

import argparse
import json
import sys
from collections.abc import Sequence

TOY_OPTIONS = {
    "num_train_clips": "number of training clips",
    "num_validation_pictures": "number of different pictures in the held-out clips",
    "num_validation_sounds": "number of different sounds in the held-out clips",
    "num_question_clips": "number of held-out clips with questions, a multiple of 9",
    "num_pairs": "number of pairs that differ in sound alone, and in picture alone",
    "seed": "whole number that decides everything random",
    "num_processes": "number of writing processes",
}


PACK_OPTIONS = {
    "short_side": "pixels of the short side of pictures, smaller ones stay; default: 224; more serves random crops",
    "group_size": "pictures in a group; 1 (the default): each can be decoded alone",
    "crf": "quality of x264, 0 (lossless) to 51; default: 18",
    "sampling_rate": "of the sound, in Hz; default: 16000",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one verb.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process when not given.

    Returns:
        `int`: The exit code: 0, or 1 where `doctor` or `index` found something broken, or 2 for a user's error.
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
    verb.add_argument("--row", type=int, default=0, metavar="INT", help="number of the row, from 0")
    verb.add_argument(
        "--model", metavar="DIR", help="folder of a trained model; default: 16 frames of 224, 128 mel bins"
    )
    verb.add_argument(
        "--epoch", type=int, metavar="INT", help="draw as training does in this epoch; default: evaluation"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="INT", help="of the run, with --epoch")
    verb.add_argument("--out", default="sample.png", metavar="FILE", help="the picture; default: sample.png")
    add_roots(verb)
    verb.set_defaults(run=show)

    verb = verbs.add_parser("convert", help="turn a checkpoint of another project into a model folder")
    kinds = verb.add_subparsers(required=True, metavar="KIND")
    kind = kinds.add_parser("alpro", help="ALPRO: retrieval, question answering, pre-training", allow_abbrev=False)
    kind.add_argument("checkpoint", metavar="CHECKPOINT", help="such as model_step_best.pt")
    kind.add_argument("out", metavar="OUT", help="folder for the model and its processor")
    kind.add_argument(
        "--tokenizer",
        default="google-bert/bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        dest="tokenizer_name",
        help="tokenizer it was trained with; default: google-bert/bert-base-uncased",
    )
    kind.add_argument("--num_frames", type=int, metavar="INT", help="frames per clip; default: the checkpoint's")
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
    except (ValueError, OSError) as error:
        print(f"simple-multimodal: error: {error}", file=sys.stderr)
        return 2


def add_roots(verb: argparse.ArgumentParser) -> None:
    """Adds the flags that say where the files of a manifest and their indices are."""
    for column in ("video", "audio", "text"):
        verb.add_argument(
            f"--{column}_root", metavar="DIR", help=f"folder of the {column} column; default: manifest's"
        )
    verb.add_argument("--index_dir", metavar="DIR", help="folder for frame indices; default: one in the user's cache")


def doctor(*, is_json: bool) -> int:
    """Prints what this machine has and what is missing for what; 1 if the core does not work."""
    from simple_multimodal.doctor import examine, to_dict, to_text

    report = examine()
    print(json.dumps(to_dict(report), indent=2) if is_json else to_text(report))
    return 0 if report.core_works else 1


def toy(*, out: str, **options: int) -> int:
    """Writes the toy data set to the folder `out`."""
    from simple_multimodal.data.toy import make_toy_world

    print(make_toy_world(out, **options))
    return 0


def clips(*, clips_jsonl: str, out: str) -> int:
    """Turns a `clips.jsonl` into one manifest per split in the folder `out`."""
    from simple_multimodal.data.clips import clips_jsonl_to_manifests

    for path in clips_jsonl_to_manifests(clips_jsonl, out).values():
        print(path)
    return 0


def index(*, manifests: list[str], is_json: bool, **options: str | int | bool | None) -> int:
    """Indexes the media of manifests and prints what is wrong with them; 1 if files cannot be read."""
    from simple_multimodal.data.check import check_manifests

    report = check_manifests(manifests, **options)  # type: ignore[arg-type]
    print(json.dumps(report.to_dict(), indent=2) if is_json else report.to_text())
    return 1 if report.unreadable else 0


def show(
    *,
    manifest: str,
    row: int,
    model: str | None,
    epoch: int | None,
    seed: int,
    out: str,
    index_dir: str | None,
    **roots: str | None,
) -> int:
    """Draws what the model sees of a sample into a picture."""
    from simple_multimodal.data.manifest import MultimodalDataset
    from simple_multimodal.data.show import draw_sample
    from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor

    dataset = MultimodalDataset(manifest, modalities=(), **roots)  # type: ignore[arg-type]
    if not 0 <= row < len(dataset):
        raise ValueError(f"--row is {row}; {manifest} has the rows 0 to {len(dataset) - 1}")
    if model is None:
        processor = MultimodalProcessor(AudioFeatureExtractor(), VideoClipProcessor())
    else:
        processor = MultimodalProcessor.from_pretrained(model)
    sample = dataset[(epoch or 0, row)]
    draw_sample(sample, processor, is_training=epoch is not None, seed=seed, index_dir=index_dir).save(out)
    print(out)
    return 0


def pack(
    *,
    manifest: str,
    out: str,
    num_threads: int | None,
    video_root: str | None,
    audio_root: str | None,
    text_root: str | None,
    index_dir: str | None,
    **settings: int,
) -> int:
    """Writes a copy of a data set that is fast to read; 1 if rows were left out."""
    from simple_multimodal.data.pack import PackSettings, pack_manifest

    report = pack_manifest(
        manifest,
        out,
        video_root=video_root,
        audio_root=audio_root,
        text_root=text_root,
        index_dir=index_dir,
        settings=PackSettings(**settings),
        num_threads=num_threads,
    )
    print(report.to_text())
    return 1 if report.errors else 0


def convert_alpro(*, checkpoint: str, out: str, **options: str | int | None) -> int:
    """Turns an ALPRO checkpoint into a folder with model and processor; prints what became of every tensor."""
    from simple_multimodal.training import assembly

    print(assembly.convert_alpro(checkpoint, out, **options).summary())  # type: ignore[arg-type]
    print(out)
    return 0
