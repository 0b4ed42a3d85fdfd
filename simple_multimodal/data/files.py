"""Media files without a manifest: rows for a file, a folder or a list of files."""

import os
from collections.abc import Sequence
from pathlib import Path

from simple_multimodal.data.manifest import Row
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import index_cache

MEDIA_SUFFIXES = frozenset(
    ".3gp .aac .aif .aiff .avi .flac .flv .m4a .m4v .mkv .mov .mp3 .mp4 .mpeg .mpg .oga .ogg .ogv .ts .wav .webm "
    ".wma .wmv".split()
)
"""Files of a folder that are taken for media."""


def media_rows(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Row]:
    """
    Rows as [`MultimodalDataset`] has them, one for each file, without text.

    Args:
        paths (`str` or list): A media file, a folder (its media files in alphabetical order, not those of folders in
            it), or a list of files. A file without pictures is a sound; one of a folder that cannot be opened is
            taken for a video: whoever reads its row finds out what is wrong with it.

    Returns:
        `list[Row]`: The `id` is the file's path as given; of a folder's file, its name.

    Raises:
        MediaError: A file that is given by name cannot be read as media.
        ValueError: A folder has no media file, or a file occurs twice.
    """
    is_folder = is_media_folder(paths)
    if isinstance(paths, (str, os.PathLike)):
        folder = Path(paths)
        if not is_folder:
            paths = [paths]
            names = [os.fspath(folder)]
        else:
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES)
            names = [path.name for path in paths]
            if not paths:
                raise ValueError(f"{folder}: no media file there (looked for {' '.join(sorted(MEDIA_SUFFIXES))}).")
    else:
        names = [os.fspath(path) for path in paths]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice; every clip needs a name of its own.")
    rows: list[Row] = []
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        absolute = os.path.abspath(path)
        try:
            has_pictures = index_cache.tracks(absolute).video is not None
        except MediaError:
            if not is_folder:
                raise
            has_pictures = True
        rows.append(
            {
                "id": name,
                "index": index,
                "epoch": 0,
                "video": absolute if has_pictures else None,
                "audio": absolute,
                "audio_is_sound_track": has_pictures,
                "text": None,
                "captions": [],
                "start_seconds": None,
                "end_seconds": None,
                "group": absolute,
            }
        )
    return rows


def is_media_folder(paths: object) -> bool:
    """Whether [`media_rows`] would take this for a folder, in which files have not been chosen one by one."""
    return isinstance(paths, (str, os.PathLike)) and Path(paths).is_dir()
