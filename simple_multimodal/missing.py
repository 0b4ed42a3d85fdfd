"""Checks that named files, folders and models exist, and messages with similar names if they do not."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Literal

from simple_multimodal.errors import InputError

MANIFESTS = {".csv", ".tsv", ".jsonl"}
NUM_NAMES = 3
"""Maximum number of suggested names."""


class Named(Enum):
    """Kind of file that a flag or argument names. It is checked before imports that take seconds."""

    PATH = "a file or a folder"
    FILE = "a file"
    MANIFEST = "a file, in --data_root if it is there"
    MODEL = "a file, a folder, or a name on the hub"

    def check(self, name: str | os.PathLike[str], flag: str = "") -> None:
        """
        Check that a path exists, or that it may be a name on the hub.

        Args:
            name (`str` or `os.PathLike`): Path or name.
            flag (`str`, *optional*): Flag to name in the message.

        Raises:
            ValueError: If it does not exist; the message has similar names.
        """
        if not Path(name).exists() and (self is not Named.MODEL or _is_path(os.fspath(name))):
            raise InputError(f"{flag} {os.fspath(name)}: {no_such_folder(name, is_file=self is Named.FILE)}".lstrip())


Kind = Literal["model", "dataset"]


def check_found(name_or_path: str, flag: str, *, kind: Kind = "model", cache_dir: str | None = None) -> None:
    """
    Check that there is a folder or file, or a model or dataset of that name in the cache of the hub or on the hub.

    Args:
        name_or_path (`str`): Folder, file, or name on the hub.
        flag (`str`): Flag to name in the message.
        kind (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        cache_dir (`str`, *optional*): Cache folder for files from the hub.

    Raises:
        ValueError: If there is none, or the hub cannot be reached; one line, with similar names that exist.
    """
    if (missing := _why_missing(name_or_path, kind, cache_dir)) is not None:
        raise InputError(f"{flag} {name_or_path}: {missing}")


@contextmanager
def reading(name_or_path: str | os.PathLike[str], problem: str, *, cache_dir: str | None = None) -> Iterator[None]:
    """
    Report errors of reading a model, or a part of one, inside the context.

    Args:
        name_or_path (`str` or `os.PathLike`): Folder, file, or name on the hub.
        problem (`str`): Start of the message; the reason follows.
        cache_dir (`str`, *optional*): Cache folder for files from the hub.

    Raises:
        ValueError: If it does not exist or cannot be read; one line, with similar names that exist.
    """
    name = os.fspath(name_or_path)
    if (missing := _why_missing(name, "model", cache_dir)) is not None:
        raise InputError(f"{problem} {missing}")
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        if not Path(name).exists():
            reason = f"{no_such_folder(name)} As a name on the hub: {reason}"
        raise InputError(f"{problem} {reason}") from error


def reading_model(
    name_or_path: str | os.PathLike[str], *, cache_dir: str | None = None
) -> AbstractContextManager[None]:
    """Return the context [`reading`] for a saved model."""
    return reading(name_or_path, f"{os.fspath(name_or_path)} is not a saved model:", cache_dir=cache_dir)


def refuse_part_of_run(name_or_path: str | os.PathLike[str]) -> None:
    """Raise a `ValueError` if a folder given as a model has no model but LoRA adapters, or checkpoints in folders."""
    folder = Path(name_or_path)
    if Path(folder, "config.json").is_file():
        return
    if Path(folder, "adapter_config.json").is_file():
        raise InputError(
            f"{folder} only holds LoRA adapters. Give the folder above it, which holds the merged model, or use peft "
            "to load them onto the model that training started from (docs/fine_tuning.md)."
        )
    checkpoints = [path.parent for path in folder.glob("checkpoint-*/config.json")]
    if checkpoints:
        newest = max(checkpoints, key=lambda path: (len(path.name), path.name))  # by step
        raise InputError(
            f"{folder} has no model yet: its training run has not ended. Run the same training command again to "
            f"continue it, or give one of its checkpoints, such as {newest}."
        )


def _why_missing(name_or_path: str | os.PathLike[str], kind: Kind, cache_dir: str | None) -> str | None:
    """Return a message that there is neither such a path nor such a model (or dataset, the other `kind`) on the hub;
    `None` if there may be one.
    """
    name = os.fspath(name_or_path)
    if Path(name).exists():
        return None
    if _is_path(name):  # the hub would be asked in vain
        return no_such_folder(name)
    not_on_hub = _why_not_on_hub(name, kind, cache_dir)
    return None if not_on_hub is None else f"{no_such_folder(name)} {not_on_hub}"


def _why_not_on_hub(name: str, kind: Kind, cache_dir: str | None) -> str | None:
    """
    Return a sentence that says why a name cannot be read from the hub or its cache, or `None` if it may be possible.

    The hub is asked with the request that reading a model or dataset begins with, but only once: without a connection,
    `huggingface_hub` repeats each request for about 25 seconds and logs every attempt.
    """
    # Imported here so that `--help` does not wait.
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    options = "" if kind == "model" else f" --repo-type {kind}"
    download = ""
    if "/" in name:  # others are more likely to be folders
        command = f"hf download {name}{options} --local-dir FOLDER"
        download = f" On a machine with a connection, `{command}` saves it to a folder that can be given instead."
    try:
        folder = repo_folder_name(repo_id=name, repo_type=kind)
        caches = [cache for cache in (cache_dir, constants.HF_HUB_CACHE) if cache is not None]
        if not any(Path(cache, folder).is_dir() for cache in caches):
            file = constants.CONFIG_NAME if kind == "model" else constants.REPOCARD_NAME
            get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind))
    except errors.HFValidationError:
        return "It is not a valid name on the hub either."
    except errors.OfflineModeIsEnabled:
        return f"It is not in the cache of the hub either, and HF_HUB_OFFLINE is set.{download}"
    except errors.GatedRepoError:
        return None  # reading it says how to get access
    except errors.RepositoryNotFoundError:
        return f"The hub has no such {kind} either; a private one needs `hf auth login`."
    except errors.HfHubHTTPError:
        return None  # it has no such file, or the hub is busy
    except errors.HTTPError:
        return f"It is not in the cache of the hub either, and the hub cannot be reached.{download}"
    return None


def _is_path(name: str) -> bool:
    """Return whether a name is a path: not one or two words as on the hub, or starts with an existing folder."""
    first, *rest = name.split("/")
    return not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or (bool(rest) and Path(first).is_dir())


def no_such_folder(name_or_path: str | os.PathLike[str], *, is_file: bool = False) -> str:
    """Return a message that a folder (or a file, if that is asked for or it has a suffix) does not exist, with similar
    names.
    """
    path = Path(os.path.expanduser(name_or_path))
    found = [os.fspath(near) if path.is_absolute() else os.path.relpath(near) for near in _nearest(path.absolute())]
    nearest = f" Did you mean {' or '.join(map(repr, found[:NUM_NAMES]))}?" if found else ""
    return f"no such {'file' if is_file or _is_file_name(path) else 'folder'}.{nearest}"


def _is_file_name(path: Path) -> bool:
    """Return whether a name ends like that of a file, not like `outputs/version-1.5`."""
    return path.suffix[1:2].isalpha()  # both `.mp4` and `.csv`


def _is_alike(found: Path, asked_for: Path) -> bool:
    """Return whether what was found can be meant: a folder, or a file, and a manifest for a manifest."""
    if found.is_dir():
        return True
    return _is_file_name(asked_for) and (asked_for.suffix not in MANIFESTS or found.suffix in MANIFESTS)


def _nearest(path: Path) -> list[Path]:
    """Return existing paths whose names are similar to those of a path, as deep as possible."""
    if path.exists():
        return [path]
    existing = next(folder for folder in path.parents if folder.is_dir())
    wrong, *rest = path.relative_to(existing).parts
    there = [p.name for p in existing.iterdir() if not p.name.startswith(".") and _is_alike(p, path)]
    found = []
    for near in difflib.get_close_matches(wrong, there, n=NUM_NAMES, cutoff=0.6):
        found += _nearest(existing.joinpath(near, *rest)) or [existing / near]
    return found
