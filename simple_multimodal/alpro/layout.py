"""ALPRO's own folders: the checkpoint in `output/downstreams/<task>/public/ckpt` is converted on first use."""

import json
import os
import re
import shutil
from pathlib import Path

from transformers.utils import logging

from simple_multimodal.alpro.folder import convert_alpro
from simple_multimodal.errors import InputError

logger = logging.get_logger(__name__)

SOURCE_FILE = "alpro.json"
"""File in a converted model's folder that records its source."""

MAX_SEQ_LENGTHS = {"msrvtt_ret": 40, "didemo_ret": 50, "msrvtt_qa": 40, "msvd_qa": 40}
"""Tokens after which ALPRO truncates texts, by task."""


def is_alpro_folder(folder: str | os.PathLike[str]) -> bool:
    """Return whether this is the folder of an original checkpoint, with `ckpt/`, or has the name of one:
    `.../downstreams/<task>/public`.
    """
    path = Path(folder).absolute()
    is_named_so = path.name == "public" and path.parent.parent.name == "downstreams"
    return not (path / "config.json").is_file() and ((path / "ckpt").is_dir() or is_named_so)


def convert_once(
    folder: str | os.PathLike[str], data: str | os.PathLike[str], out: str | os.PathLike[str], *, tokenizer_name: str
) -> Path:
    """
    Return the folder of an original checkpoint's model, which is converted if that has not been done before.

    Args:
        folder (`str`): Folder as in [`is_alpro_folder`], with `ckpt/model_step_best.pt`, or else the `model_step_N.pt`
            with the largest number.
        data (`str`): ALPRO's `data/<task>`, which has the names of answers (`txt/train_ans2label.json`) and whose name
            decides how long texts are.
        out (`str`): Folder of the model. It is converted again if the checkpoint, the answers or the tokenizer have
            changed.
        tokenizer_name (`str`): Hub name or folder of the tokenizer.

    Returns:
        `Path`: `out`.

    Raises:
        ValueError: If there is no checkpoint, `out` is something else, or it cannot be converted, see
            [`convert_alpro`].
    """
    checkpoint = _find_checkpoint(Path(folder))
    answers = Path(data, "txt", "train_ans2label.json")
    files = [path for path in (checkpoint, answers) if path.is_file()]
    max_seq_length = MAX_SEQ_LENGTHS.get(Path(data).absolute().name, 40)
    source = {
        "files": {os.path.abspath(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
        "tokenizer": tokenizer_name,
        "max_seq_length": max_seq_length,
    }
    made_of = Path(out, SOURCE_FILE)
    if made_of.is_file() and json.loads(made_of.read_text(encoding="utf-8")) == source:
        return Path(out)
    if Path(out).exists() and not made_of.is_file():
        raise InputError(
            f"{out} was not converted from an ALPRO checkpoint and is not replaced. Choose another output_dir."
        )
    logger.warning(f"Converting {checkpoint} into {out}; later runs use it.")
    staged = Path(out).with_name(f".{Path(out).name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    convert_alpro(
        checkpoint,
        staged,
        tokenizer_name=tokenizer_name,
        max_seq_length=max_seq_length,
        answers_file=answers if answers in files else None,
    )
    (staged / SOURCE_FILE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
    return Path(out)


def _find_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that ALPRO chose, else its last one."""
    best = folder / "ckpt" / "model_step_best.pt"
    if best.is_file():
        return best
    steps = {
        int(match[1]): path
        for path in folder.glob("ckpt/model_step_*.pt")
        if (match := re.fullmatch(r"model_step_(\d+)\.pt", path.name))
    }
    if not steps:
        raise InputError(
            f"{best}: there is no such checkpoint, nor another model_step_N.pt. Put ALPRO's there, or give the folder "
            "of a model."
        )
    return steps[max(steps)]
