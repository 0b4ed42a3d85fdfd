"""Atomic checkpoints, which are staged, hashed, synced and renamed; and the one that a run resumes from."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from simple_multimodal.errors import InputError
from simple_multimodal.missing import no_such_folder
from simple_multimodal.models.distributed import decide_in_first_process
from simple_multimodal.output_folder import give_umask
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.quarantine import QUARANTINE_FILE
from simple_multimodal.training.run_record import RUN_FILE, changed_arguments, read_run_record, write_run_record

logger = logging.get_logger(__name__)

STAGING = ".incomplete"
"""Staging folder in the output folder. Its content is of no use to a later run."""

MANIFEST = "checkpoint.json"
"""File with the sizes and hashes of all files of a checkpoint; written last."""

STATE_FILE = "trainer_state.json"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""Errors raised for a full or failing disk by Python, `torch.save` and safetensors, in this order."""


# ---- Writing ----
def seal(staged: Path, final: Path) -> None:
    """
    Sync a staged checkpoint to the disk and move it to its final path, replacing an existing checkpoint there.

    Raises:
        OSError: If the disk fails; the checkpoint is not moved then.
    """
    files = {}
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        give_umask(path)
        files[path.relative_to(staged).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
        _sync(path)
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    for path in (manifest, *(path for path in staged.rglob("*") if path.is_dir()), staged):
        _sync(path)
    replaced = _take_name(final) if final.exists() else None
    staged.rename(final)
    _sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Move the files of a model into a folder, the weights last, and remove the weights of an older model first: a
    folder with weights then holds a complete model, even if the process is killed.
    """
    entries = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    files = [path for path in staged.rglob("*") if path.is_file()]
    for path in files:
        give_umask(path)
        _sync(path)
    for name in entries:
        Path(folder, name).unlink(missing_ok=True)
    for path in sorted(files, key=lambda path: path.name in entries):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    _sync(folder)
    shutil.rmtree(staged)


def rotate(output_dir: str | os.PathLike, limit: int | None, *, keep: set[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left; those in `keep` count, but are never removed."""
    if not limit or limit < 0:
        return
    others = [folder for _, folder in sorted(list_checkpoints(output_dir).items()) if folder not in keep]
    kept = max(limit - sum(folder.is_dir() for folder in keep), 0)
    for folder in others[: len(others) - kept]:
        shutil.rmtree(_take_name(folder), ignore_errors=True)


def _take_name(checkpoint: Path) -> Path:
    """Move a checkpoint aside, so that no half-removed folder has its name, and return its new path."""
    aside = Path(checkpoint.parent, STAGING, f"{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    return checkpoint.rename(aside)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, has been written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Finding ----
def list_checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Return the folders that are named like a checkpoint, by step."""
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and folder.is_dir():
            steps[int(number)] = folder
    return steps


def problem_of(checkpoint: str | os.PathLike) -> str | None:
    """Say briefly why a folder is not a complete checkpoint; return `None` if all its files are as written."""
    if not Path(checkpoint).is_dir():
        return no_such_folder(checkpoint)
    try:
        files = json.loads(Path(checkpoint, MANIFEST).read_bytes())["files"]
        for name, written in files.items():
            path = Path(checkpoint, name)
            if path.stat().st_size != written["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {written['size']}"
            if sha256(path) != written["sha256"]:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except OSError as error:
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def newest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """Return the newest complete checkpoint that process 0 finds; a warning names skipped ones."""
    return decide_in_first_process(lambda: _newest_checkpoint(output_dir))


def _newest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    found, passed_over = None, []
    for _, folder in sorted(list_checkpoints(output_dir).items(), reverse=True):
        problem = problem_of(folder)
        if problem is None:
            found = folder
            break
        passed_over.append(f"{folder.name} ({problem})")
    if passed_over:
        chosen = f"{found.name} is the newest complete one" if found else "there is no complete one"
        logger.warning(f"Skipped checkpoints in {output_dir}: {', '.join(passed_over)}; {chosen}.")
    return found


def find_checkpoint(args: MultimodalTrainingArguments, record: dict) -> Path | None:
    """
    Find the checkpoint to resume from; `None` starts from the beginning.

    Args:
        args ([`MultimodalTrainingArguments`]): Arguments of the run: `output_dir`, `overwrite_output_dir` and
            `resume_from_checkpoint`, a folder or `"True"`.
        record (`dict`): Description of this run, see [`make_run_record`].

    Raises:
        ValueError: If the named checkpoint is incomplete, or the folder belongs to another run.
    """
    output, resume_from = Path(args.output_dir), args.resume_from_checkpoint
    if output.exists() and not output.is_dir():
        raise InputError(f"--output_dir {str(output)!r} is a file; give a folder.")
    if resume_from is not None and resume_from.lower() not in ("true", "false"):
        problem = decide_in_first_process(lambda: problem_of(resume_from))
        if problem is not None:
            raise InputError(
                f"--resume_from_checkpoint {resume_from!r} is not a complete checkpoint: {problem.rstrip('.')}. Give "
                f"a folder such as {output / 'checkpoint-500'}, or leave the flag out to resume from the newest "
                "complete one."
            )
        checkpoint: Path | None = Path(resume_from)
    else:
        checkpoint = None if args.overwrite_output_dir else newest_checkpoint(output)
    if checkpoint is not None:
        return checkpoint
    if resume_from is not None and resume_from.lower() == "true":
        raise InputError(
            f"--resume_from_checkpoint is True, but {str(output)!r} has no complete checkpoint, or "
            "--overwrite_output_dir is given. Leave the flag out to start from the beginning."
        )
    # A run that was killed right away leaves at most hidden files.
    if args.overwrite_output_dir or not output.exists() or all(path.name.startswith(".") for path in output.iterdir()):
        return None
    earlier = read_run_record(output)
    if earlier is None:
        raise InputError(
            f"--output_dir {str(output)!r} is not empty, but has neither a complete checkpoint nor a {RUN_FILE}. "
            "Give another folder, or pass --overwrite_output_dir to write into this one."
        )
    differences = list(changed_arguments(earlier, record))
    if differences:
        raise InputError(
            f"--output_dir {str(output)!r} belongs to a run that differs in {', '.join(differences[:8])}. Give "
            "another folder, or pass --overwrite_output_dir to start over."
        )
    return None


def begin_run(output_dir: str | os.PathLike, record: dict | None, *, starts_over: bool) -> None:
    """Remove files that a killed process left incomplete and, if the run starts over, older checkpoints, which a
    later resume would pick up; a warning names them. Then write `run.json`, except for a resumed run, whose
    record (here `None`) is only complete after its checkpoint has been read.
    """
    if starts_over:
        older = [path for _, path in sorted(list_checkpoints(output_dir).items()) if (path / MANIFEST).is_file()]
        removed = [path.name for path in (*older, Path(output_dir, QUARANTINE_FILE)) if path.exists()]
        if removed:
            logger.warning(f"Starting over in {output_dir}: removed {', '.join(removed)}.")
        for folder in older:
            _take_name(folder)
    clear_staging(output_dir)
    if record is not None:
        write_run_record(output_dir, record)


def clear_staging(output_dir: str | os.PathLike) -> None:
    """Remove staged files that were never moved to their final path."""
    shutil.rmtree(Path(output_dir, STAGING), ignore_errors=True)
