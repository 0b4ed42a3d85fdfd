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


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one verb.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process when not given.

    Returns:
        `int`: The exit code: 0, or 1 where `doctor` finds that the core does not work, or 2 for a user's error.
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

    options = vars(parser.parse_args(argv))
    del options["verb"]
    try:
        return options.pop("run")(**options)
    except (ValueError, OSError) as error:
        print(f"simple-multimodal: error: {error}", file=sys.stderr)
        return 2


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
