"""Console script `simple-multimodal VERB`: a table of verbs, which are imported when they are used."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from simple_multimodal import __version__
from simple_multimodal.cli.signature import add_flags, call, check_named, flag_names
from simple_multimodal.errors import InputError, with_flags

VERBS: dict[str, tuple[str, str]] = {
    "doctor": ("simple_multimodal.cli.runs:doctor", "report what is installed and what is missing"),
    "toy": ("simple_multimodal.cli.data:toy", "write a toy dataset"),
    "clips": ("simple_multimodal.cli.data:clips", "turn a clips.jsonl into manifests"),
    "index": ("simple_multimodal.cli.data:index", "index the media of manifests and report problems"),
    "prepare": ("simple_multimodal.cli.data:prepare", "turn a benchmark's annotations into manifests"),
    "export_table": ("simple_multimodal.cli.data:export_table", "write a manifest as a table of multimodalhugs"),
    "pack": ("simple_multimodal.cli.data:pack", "write a copy of a dataset that is fast to read"),
    "estimate_poses": ("simple_multimodal.cli.data:estimate_poses", "estimate the poses of clips"),
    "show": ("simple_multimodal.cli.data:show", "draw clips as the model sees them"),
    "encode": ("simple_multimodal.cli.models:encode", "save embeddings of clips for search"),
    "features": ("simple_multimodal.cli.models:features", "run frozen towers once and save their tokens"),
    "search": ("simple_multimodal.cli.models:search", "find clips by text"),
    "answer": ("simple_multimodal.cli.models:answer", "answer questions about clips"),
    "classify": ("simple_multimodal.cli.models:classify", "recognise labels of clips"),
    "translate": ("simple_multimodal.cli.models:translate", "write translations, captions or transcripts of clips"),
    "serve": ("simple_multimodal.cli.serving:serve", "answer requests over HTTP with trained models"),
    "export_mar": ("simple_multimodal.cli.serving:export_mar", "write an archive of a model for TorchServe"),
    "infer": ("simple_multimodal.cli.models:infer", "evaluate a model on a prepared benchmark"),
    "convert": ("simple_multimodal.cli.models:convert", "turn a checkpoint of another project into a model folder"),
    "diff": ("simple_multimodal.cli.runs:diff", "compare two checkpoints or model folders bit for bit"),
    "repeat": ("simple_multimodal.cli.runs:repeat", "train several times and compare the results"),
}
"""Function and `--help` line of each verb. Its parameters are the verb's flags, see [`add_flags`]; it returns the
exit code. Other packages add verbs as entries.
"""

RENAMED_FLAGS = {
    "--drop_modality": "--drop_modalities",
    "--matching_top_k": "--rerank_top_k",
    "--measure_rerank": "--compare_rerank",
    "--num_validation_pictures": "--num_validation_videos",
    "--num_validation_sounds": "--num_validation_audio",
}
"""Old names of flags of verbs, and their names now."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one verb.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; `sys.argv[1:]` by default.

    Returns:
        `int`: Exit code: that of the verb, 2 for a user error, or 130 after Ctrl-C.
    """
    argv = [_renamed(token) for token in (sys.argv[1:] if argv is None else argv)]
    parser = _Parser(prog="simple-multimodal", description="Tools around train.py.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(metavar="VERB")
    for name, (place, line) in VERBS.items():
        verb = verbs.add_parser(name, help=line, allow_abbrev=False)
        if argv[:1] == [name]:
            function = _load(place)
            verb.description = inspect.cleandoc(function.__doc__ or line).partition("\n\n")[0]
            verb.set_defaults(run=function)
            add_flags(verb, function)
    values = vars(parser.parse_args(argv))
    if "run" not in values:
        parser.print_help()
        return 0
    from tqdm.contrib.logging import logging_redirect_tqdm  # here, because it takes longer than `--help`

    try:
        check_named(values["run"], values)
        with logging_redirect_tqdm():  # prints warnings above the progress bars
            return call(values["run"], values)
    except KeyboardInterrupt:
        print(
            "simple-multimodal: interrupted; run the same command again. Finished files are kept.",
            file=sys.stderr,
        )
        return 130
    except (InputError, OSError) as error:
        print(f"simple-multimodal: error: {with_flags(str(error), flag_names(values['run']))}", file=sys.stderr)
        return 2


def _renamed(token: str) -> str:
    """Return a command-line token, with the name of an old flag replaced by its new one."""
    flag, equals, value = token.partition("=")
    return RENAMED_FLAGS.get(flag, flag) + equals + value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End the process with one line on stderr and exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _load(place: str) -> Callable[..., int]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
