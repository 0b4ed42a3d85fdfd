"""Media files without a manifest: records for a file, a folder or a list of files."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.index_cache import index_cache

logger = logging.get_logger(__name__)

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2t .m2ts .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg .mpg .mts .ogv .qt .ts "
    ".vob .webm .wmv".split()
)
AUDIO_SUFFIXES = frozenset(
    ".aac .aif .aifc .aiff .flac .m4a .m4b .mka .mp2 .mp3 .oga .ogg .opus .w64 .wav .weba .wma".split()
)
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES
"""Files of a folder that are taken for media, in any case: the usual names of the containers that can be read."""

NUM_KINDS = 6
"""Suffixes of other files that are named."""


def media_records(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, recursive: bool = False
) -> list[dict[str, Any]]:
    """
    Find media files, and make a record of each as [`RecordParser.parse_record`] does.

    Args:
        paths (`str` or list): A media file, a folder (its media files in alphabetical order, hidden ones excepted), or
            a list of files. A file without pictures is a sound; one of a folder that cannot be opened is taken for a
            video: whoever reads its row finds out what is wrong with it. A warning counts what a folder holds besides.
        recursive (`bool`, *optional*, defaults to `False`): Take the files of folders in the folder, too, except for
            hidden and linked folders.

    Returns:
        `list[dict[str, Any]]`: The `id` is the file's path as given; of a folder's file, its path in the folder.

    Raises:
        MediaError: A file that is given by name cannot be read as media.
        ValueError: A folder has no media file, a file occurs twice, **or** `recursive` and this is no folder.
    """
    is_folder = is_media_folder(paths)
    if recursive and not is_folder:
        raise InputError(f"--recursive looks into the folders of a folder, and {paths!r} is none. Leave it out.")
    if isinstance(paths, (str, os.PathLike)):
        folder = Path(paths)
        if not is_folder:
            paths = [paths]
            names = [os.fspath(folder)]
        else:
            names, passed_over = _list_media(folder, recursive=recursive)
            paths = [folder / name for name in names]
            besides = f"; passed over: {', '.join(passed_over)}" if passed_over else ""
            if not paths:
                known = " ".join(sorted(MEDIA_SUFFIXES))
                raise InputError(f"{folder}: no media file there (looked for {known}){besides}.")
            if passed_over and os.environ.get("LOCAL_RANK", "0") == "0":
                logger.warning(f"{folder}: {len(paths)} media files{besides}.")
    else:
        names = [os.fspath(path) for path in paths]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!r} is given twice; every clip needs a name of its own.")
    records = []
    for name, path in zip(names, paths, strict=True):
        absolute = os.path.abspath(path)
        try:
            has_video = index_cache.tracks(absolute).video is not None
        except MediaError:
            if not is_folder:
                raise
            has_video = True
        names_of_file = {"id": name, "video" if has_video else "audio": absolute, "group": absolute}
        # A name that is not UTF-8 cannot stand in a table of strings; JSON escapes it.
        exact = {key: value for key, value in names_of_file.items() if _as_utf8(value) != value}
        records.append(
            {
                **{key: _as_utf8(value) for key, value in names_of_file.items()},
                "audio_from_video": has_video,
                "captions": [],
                "further": json.dumps(exact),
            }
        )
    return records


def _as_utf8(name: str) -> str:
    return name.encode(errors="replace").decode()


def _list_media(folder: Path, *, recursive: bool) -> tuple[list[str], list[str]]:
    """Media files of a folder by their paths in it, sorted, and how many of what else is there."""
    names: list[str] = []
    kinds: Counter[str] = Counter()
    num_hidden = num_folders = num_links = 0

    def fail(error: OSError) -> None:  # else a folder that cannot be opened would seem to be empty
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                num_hidden += 1
            elif suffix in MEDIA_SUFFIXES:
                names.append(Path(place, name).relative_to(folder).as_posix())
            else:
                kinds[suffix or "no suffix"] += 1
        shown = [name for name in folders if not name.startswith(".")]
        num_hidden += len(folders) - len(shown)
        linked = [name for name in shown if os.path.islink(os.path.join(place, name))]
        if recursive:
            num_links += len(linked)
        else:
            num_folders += len(shown)
        folders[:] = sorted(set(shown) - set(linked)) if recursive else []
    most = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    some = ", ".join(most[:NUM_KINDS]) + (", ..." if len(most) > NUM_KINDS else "")
    counts = {
        f"of other kinds ({some})": kinds.total(),
        "hidden": num_hidden,
        "folders (--recursive looks into them)": num_folders,
        "linked folders": num_links,
    }
    return sorted(names), [f"{count} {what}" for what, count in counts.items() if count]


def is_media_folder(paths: object) -> bool:
    """Whether [`media_records`] would take this for a folder, in which files have not been chosen one by one."""
    return isinstance(paths, (str, os.PathLike)) and Path(paths).is_dir()
