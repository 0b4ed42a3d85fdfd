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
from simple_multimodal.media.frame_features import is_feature_file
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
"""Suffixes of media files in folders (case-insensitive): the usual ones of the containers that can be read."""

POSE_SUFFIX = ".pose"
"""Suffix of the files that are listed in a folder without other media."""

NUM_KINDS = 6
"""Maximum number of suffixes of other files in a message."""


def media_records(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, recursive: bool = False
) -> list[dict[str, Any]]:
    """
    Find media files, and make a record of each as [`RecordParser.parse_record`] does.

    Args:
        paths (`str` or list): A media file, a folder (its media files in alphabetical order, without hidden ones), or
            a list of files. A file without a video track is audio; a file in a folder that cannot be opened is treated
            as a video, and the error surfaces when its row is read. A warning counts the other files of a folder. A
            `.pose` file, or a `.npy` file that is given by name, is a pose; those of a folder are only used if there
            is nothing else.
        recursive (`bool`, *optional*, defaults to `False`): Include the files in subfolders, except for hidden and
            linked folders.

    Returns:
        `list[dict[str, Any]]`: One record per file. The `id` is the file's path as given, or within the folder.

    Raises:
        MediaError: If a file that is given by name cannot be read as media.
        ValueError: If a folder has no media file, a file occurs twice, **or** `recursive` is set without a folder.
    """
    is_folder = is_media_folder(paths)
    if recursive and not is_folder:
        raise InputError(
            f"`recursive` searches the subfolders of a folder, but {paths!r} is not a folder. Leave it out."
        )
    if isinstance(paths, (str, os.PathLike)):
        folder = Path(paths)
        if not is_folder:
            paths = [paths]
            names = [os.fspath(folder)]
        else:
            names, skipped = _list_media(folder, recursive=recursive)
            paths = [folder / name for name in names]
            others = f"; skipped: {', '.join(skipped)}" if skipped else ""
            if not paths:
                known = " ".join(sorted(MEDIA_SUFFIXES))
                raise InputError(f"{folder}: no media files found (looked for {known}){others}.")
            if skipped and os.environ.get("LOCAL_RANK", "0") == "0":
                logger.warning(f"{folder}: {len(paths)} media files{others}.")
    else:
        names = [os.fspath(path) for path in paths]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!r} is given twice; every clip needs a unique name.")
    records = []
    for name, path in zip(names, paths, strict=True):
        absolute = os.path.abspath(path)
        column = "pose" if is_pose_file(absolute) else "video"
        try:
            if column == "video" and index_cache.tracks(absolute).video is None:
                column = "audio"
        except MediaError:
            if not is_folder:
                raise
        names_of_file = {"id": name, column: absolute, "group": absolute}
        # A table of strings cannot hold a name that is not UTF-8; JSON escapes it.
        exact = {key: value for key, value in names_of_file.items() if _as_utf8(value) != value}
        records.append(
            {
                **{key: _as_utf8(value) for key, value in names_of_file.items()},
                "audio_from_video": column == "video",
                "captions": [],
                "further": json.dumps(exact),
            }
        )
    return records


def is_pose_file(path: str) -> bool:
    """Return whether a file that is given by name is a pose, or features of one, judging by its suffix."""
    return path.lower().endswith(POSE_SUFFIX) or is_feature_file(path)


def _as_utf8(name: str) -> str:
    return name.encode(errors="replace").decode()


def _list_media(folder: Path, *, recursive: bool) -> tuple[list[str], list[str]]:
    """Return the sorted relative paths of a folder's media files, and counts of everything else in it."""
    names: list[str] = []
    poses: list[str] = []
    kinds: Counter[str] = Counter()
    num_hidden = num_folders = num_links = 0

    def fail(error: OSError) -> None:  # otherwise a folder that cannot be opened would seem to be empty
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                num_hidden += 1
            elif suffix in MEDIA_SUFFIXES:
                names.append(Path(place, name).relative_to(folder).as_posix())
            elif suffix == POSE_SUFFIX:
                poses.append(Path(place, name).relative_to(folder).as_posix())
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
    if names and poses:
        kinds[POSE_SUFFIX] = len(poses)
    most = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    some = ", ".join(most[:NUM_KINDS]) + (", ..." if len(most) > NUM_KINDS else "")
    counts = {
        f"of other kinds ({some})": kinds.total(),
        "hidden": num_hidden,
        "folders (searched with `recursive`)": num_folders,
        "linked folders (name them directly)": num_links,
    }
    return sorted(names or poses), [f"{count} {what}" for what, count in counts.items() if count]


def is_media_folder(paths: object) -> bool:
    """Return whether [`media_records`] treats this as a folder, whose files were not chosen one by one."""
    return isinstance(paths, (str, os.PathLike)) and Path(paths).is_dir()
