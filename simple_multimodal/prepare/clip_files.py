"""Find the files of clips in a folder."""

import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from simple_multimodal.data.files import VIDEO_SUFFIXES
from simple_multimodal.data.roots import Roots
from simple_multimodal.prepare.annotations import clip_name, some

CLIP_SUFFIXES = VIDEO_SUFFIXES | {""}
"""Suffixes of clips; some of DiDeMo's have none."""

POSE_SUFFIXES = frozenset([".pose", ".npy"])
"""Suffixes of poses, and of features of the frames."""


@dataclass
class FoundFiles:
    """
    What a folder holds, as paths relative to it.

    Args:
        clips (`list[str]`): Files that may be clips, judging by their suffixes; hidden ones are left out.
        empty (`list[str]`): Those that are empty, or are not regular files.
        outside (`list[str]`): Links that lead out of the folder and are not followed.
        others (`list[str]`): Files with other suffixes that are not hidden.
        folders (`list[str]`): Folders that were searched, without the folder itself.
    """

    clips: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def path_name(file: str, suffixes: Collection[str] = VIDEO_SUFFIXES) -> str:
    """
    Return the name of a clip that is known by its path: the path without the suffix of a video, or one of other
    `suffixes`, in which accents are composed, whatever the file system does.
    """
    path = PurePosixPath(unicodedata.normalize("NFC", file))
    return str(path.with_suffix("") if path.suffix.lower() in suffixes else path)


def find_files(
    folder: Path, *, by_path: bool, follow_links: bool, suffixes: Collection[str] = CLIP_SUFFIXES
) -> FoundFiles:
    """
    Find the files in a folder and its sub-folders.

    Args:
        folder (`Path`): The folder.
        by_path (`bool`): Whether to list a folder under each of its paths if links lead to it, except inside itself;
            otherwise it is searched once.
        follow_links (`bool`): Whether to follow links that lead out of it.
        suffixes (`Collection[str]`, *optional*): Suffixes of the files to find; by default those of videos.
    """
    found = FoundFiles()
    roots = Roots({"video": folder}, follow_links=follow_links)
    walked = {roots.folders["video"]}  # and the targets of links
    for place, folders, names in os.walk(folder, followlinks=True):
        entries = sorted([*folders, *names])
        linked = {name: os.path.realpath(Path(place, name)) for name in folders if Path(place, name).is_symlink()}
        folders[:] = sorted({*folders} - linked.keys())
        for name in entries:
            path = Path(place, name)
            file = path.relative_to(folder).as_posix()
            if path.is_symlink() and not roots.allows(path):
                found.outside.append(file)
            elif name in linked:
                if by_path:
                    is_known = linked[name] in _folders_above(Path(place), folder)
                else:
                    is_known = any(Path(linked[name]).is_relative_to(other) for other in walked)
                if not is_known:
                    walked.add(linked[name])
                    folders.append(name)
                    found.folders.append(file)
            elif name in folders:
                found.folders.append(file)
            elif name.startswith("."):
                continue
            elif Path(name).suffix.lower() not in suffixes:
                found.others.append(file)
            elif not path.is_file() or path.stat().st_size == 0:
                found.empty.append(file)
            else:
                found.clips.append(file)
    return found


def _folders_above(place: Path, folder: Path) -> set[str]:
    """Return a place and the folders above it up to `folder`, with links resolved."""
    parts = place.relative_to(folder).parts
    return {os.path.realpath(folder.joinpath(*parts[:number])) for number in range(len(parts) + 1)}


def choose_files(
    folder: Path,
    wanted: set[str],
    *,
    by_path: bool,
    follow_links: bool,
    suffixes: Collection[str] = CLIP_SUFFIXES,
    named: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """
    Return the file of each wanted clip that exists, relative to the folder, and notes about the folder.

    Args:
        folder (`Path`): Folder of the clips.
        wanted (`set[str]`): Names of the clips.
        by_path (`bool`): Whether the names are those of [`path_name`] instead of [`clip_name`].
        follow_links (`bool`): Whether to follow links that lead out of the folder.
        suffixes (`Collection[str]`, *optional*): Suffixes of the clips' files; by default those of videos.
        named (`Mapping[str, str]`, *optional*): Files that annotations name, by clip; no other file is used for these.
    """
    found = find_files(folder, by_path=by_path, follow_links=follow_links, suffixes=suffixes)
    files: dict[str, list[str]] = {}
    for file in found.clips:
        clip = path_name(file, {*VIDEO_SUFFIXES, *suffixes}) if by_path else clip_name(file)
        files.setdefault(clip, []).append(file)
    for clip, file in (named or {}).items():
        files[clip] = [own for own in files.get(clip, []) if unicodedata.normalize("NFC", own) == file]
    notes = []
    if found.empty:
        notes.append(f"{len(found.empty)} empty files count as missing: {some(found.empty)}")
    if found.outside:
        notes.append(
            f"{len(found.outside)} links that lead out of {folder} are not followed: {some(found.outside)}; pass "
            "--follow_links, or the folder that holds the files"
        )
    if unused := [file for clip, own in files.items() if clip not in wanted for file in own]:
        notes.append(f"{len(unused)} files in {folder} do not belong to a clip of this protocol: {some(unused, 3)}")
    if several := [clip for clip, own in files.items() if clip in wanted and len(own) > 1]:
        notes.append(f"{len(several)} clips have several files; the first is used: {some(several, 3)}")
    return {clip: files[clip][0] for clip in sorted(wanted & files.keys()) if files[clip]}, notes
