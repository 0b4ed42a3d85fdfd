"""Read data sets with one label per clip: clips in a folder per class, and lists of paths with their labels."""

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from simple_multimodal.data.fields import read_path
from simple_multimodal.data.files import VIDEO_SUFFIXES
from simple_multimodal.data.tables import read_table
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import SPLITS
from simple_multimodal.prepare.annotations import SOURCES, AnnotationFiles, Rows, load_json, some
from simple_multimodal.prepare.clip_files import FoundFiles, find_files, path_name
from simple_multimodal.prepare.labels import check_labels, count_labels

SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""Names of splits in the names of files and folders."""

_LIST = re.compile(r"(?<![a-z])(train|validation|val|test)(?:ing)?(?:list|set|split)?(?![a-z])")
_LIST_SUFFIXES = (".csv", ".tsv", ".txt")
_CLASS_SUFFIXES = (".json", ".txt")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_class_folders(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """
    Read a row for each video in `train/<class>/`, `validation/<class>/` (or `val/<class>/`) and `test/<class>/`, or,
    if there are no such folders, for each video in `<class>/`, which are all training clips.

    A video in a sub-folder of a class belongs to the class. Hidden files and folders are left out, and so are
    files that are not videos, which a note counts. The labels are the names of the classes of all splits in
    alphabetical order, with composed accents.

    Args:
        files ([`AnnotationFiles`]): The folder.
        protocol (`str`): Not used.
        splits (`Sequence[str]`): Splits to read.

    Raises:
        ValueError: There are no clips in folders of classes, two folders are the same split, a class has a name
            that cannot be a label, **or** a link leads out of the folder and is not followed.
    """
    found = find_files(files.folder, by_path=True, follow_links=files.follow_links)
    if links := [file for file in found.outside if _is_visible(file) and _is_clip_or_folder(files.folder / file)]:
        raise InputError(
            f"{files.folder}: {len(links)} links lead out of the folder: {some(links)}. Pass --follow_links to follow "
            "them, or remove them."
        )
    clips = [file for file in (*found.clips, *found.empty) if _is_visible(file) and _is_video(file)]
    depth = 2 if any(_split_of(file) and file.count("/") > 1 for file in clips) else 1  # folders above a clip
    clip_of = {path_name(file): file for file in sorted(clips, reverse=True)}  # of several files, the first
    split_folders: dict[str, str] = {}
    rows: Rows = {}
    for name, file in sorted(clip_of.items()):
        folders = file.split("/")[:-1]
        split = _split_of(file) if depth == 2 else "train"
        if split is None or len(folders) < depth:
            continue  # reported as a file that does not belong to a clip
        if depth == 2 and split_folders.setdefault(split, folders[0]) != folders[0]:
            raise InputError(
                f"{files.folder}: both {split_folders[split]}/ and {folders[0]}/ are {split} clips; rename one."
            )
        rows.setdefault(split, []).append({"id": name, "clip": name, "label": _label_of(folders[depth - 1])})
    if not rows:
        raise InputError(f"{files.folder}: no videos in folders of classes. {SOURCES[files.benchmark]}")
    files.by_path = True
    files.labels = sorted({row["label"] for own in rows.values() for row in own})
    check_labels(files.labels, str(files.folder))
    files.notes += _folder_notes(found, clips, depth)
    return _with_counts(files, rows, splits)


def _split_of(file: str) -> str | None:
    """Return the split that a file's first folder names."""
    return SPLIT_NAMES.get(file.partition("/")[0].lower())


def _label_of(name: str) -> str:
    """Return the label that the name of a folder, or a cell, stands for."""
    return unicodedata.normalize("NFC", name).strip()


def _is_visible(file: str) -> bool:
    return not any(part.startswith(".") for part in file.split("/"))


def _is_video(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES


def _is_clip_or_folder(path: Path) -> bool:
    return path.is_dir() or _is_video(path.name)


def _folder_notes(found: FoundFiles, clips: Sequence[str], depth: int) -> list[str]:
    """Return notes about what is in folders of classes, other than clips directly in them."""
    notes = []

    def is_inside(file: str) -> bool:
        return _is_visible(file) and file.count("/") >= depth and (depth == 1 or _split_of(file) is not None)

    others = [file for file in (*found.others, *found.clips) if is_inside(file) and not _is_video(file)]
    if others:
        kinds = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in others)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        notes.append(f"{len(others)} files of classes are not videos ({counts}), and left out: {some(others)}")
    if nested := [file for file in clips if is_inside(file) and file.count("/") > depth]:
        notes.append(f"{len(nested)} clips are in sub-folders of their class: {some(nested)}")
    used = {"/".join(file.split("/")[:depth]) for file in clips}
    empty = [
        folder
        for folder in found.folders
        if folder.count("/") == depth - 1 and folder not in used and is_inside(f"{folder}/")
    ]
    if empty:
        notes.append(f"{len(empty)} folders have no clips, and add no class: {some(empty)}")
    return notes


def _with_counts(files: AnnotationFiles, rows: Rows, splits: Sequence[str]) -> Rows:
    """Return the rows of the requested splits, and note their numbers."""
    shown = {label: label for label in files.labels}
    requested = {split: rows[split] for split in splits if split in rows}
    files.notes += [
        f"{split}, as listed: {len(own)} rows, {len(shown)} labels; {count_labels(own, shown)}"
        for split, own in requested.items()
    ]
    return requested


class Classes(NamedTuple):
    """
    The classes of lists.

    Args:
        path (`Path`): Their file.
        numbers (`dict[int, str]`): Names by number.
        names (`set[str]`): Names.
        is_numbered (`bool`): Whether the numbers are in the file; otherwise lines are counted from 0.
    """

    path: Path
    numbers: dict[int, str]
    names: set[str]
    is_numbered: bool

    @property
    def range(self) -> str:
        """The numbers in words."""
        return f"{min(self.numbers)} to {max(self.numbers)}"


def read_path_lists(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """
    Read a row for each line `path label` of a list per split, or `path,label` in a CSV file. The label is the last
    field, and so the path may contain spaces. It is a name, or a number in the file of the classes. A line of a path
    alone stands for a clip whose folder is named after its class.

    Args:
        files ([`AnnotationFiles`]): Folder with at most one list for each split, whose name contains `train`, `val`,
            `validation` or `test`, and a file whose name contains `class` or `label`: a name per line, a number and a
            name per line, or JSON. The file may be missing if labels are names.
        protocol (`str`): Not used.
        splits (`Sequence[str]`): Splits to read.

    Raises:
        ValueError: There is no list, or there are several of a split, **or** a file contains an invalid entry.
    """
    lists, class_files = _list_files(files.folder)
    if not lists:
        raise InputError(f"{files.folder}: no lists of paths. {SOURCES[files.benchmark]}")
    classes = _read_classes(files, class_files[0]) if class_files else None
    rows: Rows = {}
    for split, path in lists.items():
        entries = list(_list_rows(files, path, classes))
        rows[split] = files.once(((row["id"], row) for row in entries), path)
        names = classes.names if classes is not None else set()
        wrong = [row["id"] for row in rows[split] if _folder_of(row["clip"]) in names - {row["label"]}]
        if wrong:
            files.deviations.append(
                f"{split}: {len(wrong)} clips have another label than their folder: {some(wrong)}; check the numbers "
                f"of {class_files[0].name}"
            )
    files.by_path = True
    if classes is None:
        files.labels = sorted({row["label"] for own in rows.values() for row in own})
        check_labels(files.labels, " and ".join(path.name for path in lists.values()))
    else:
        files.labels = [classes.numbers[number] for number in sorted(classes.numbers)]
        counted = "its classes" if classes.is_numbered else "no classes, so its lines are counted:"
        files.notes.append(f"{classes.path.name} numbers {counted} {classes.range}")
    return _with_counts(files, rows, splits)


def _list_files(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the list of each split, and the file of the classes, if there is one."""
    found: dict[str, list[Path]] = {split: [] for split in (*SPLITS, "classes")}
    for path in sorted(folder.iterdir()):
        stem, suffix = path.stem.lower(), path.suffix.lower()
        if not path.is_file() or stem.startswith("."):
            continue
        kinds = {SPLIT_NAMES[name] for name in _LIST.findall(stem)}
        if len(kinds) == 1 and suffix in _LIST_SUFFIXES:
            found[kinds.pop()].append(path)
        elif not kinds and re.search("class|label", stem) and suffix in _CLASS_SUFFIXES:
            found["classes"].append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                f"{folder}: several files could be the {name} list: {some(path.name for path in paths)}. Give a "
                "folder with one of them."
            )
    return {split: found[split][0] for split in SPLITS if found[split]}, found["classes"]


def _read_classes(files: AnnotationFiles, path: Path) -> Classes:
    """Read names of classes, or their numbers and names."""
    pairs: list[tuple[Any, Any]]  # number and name
    if path.suffix.lower() == ".json":
        content = load_json(files.use(path), object_pairs_hook=list)  # an object may have a name twice
        if not isinstance(content, list):
            raise InputError(f"{path}: must hold a list of names, or an object with the number of each name.")
        is_numbered = all(isinstance(item, tuple) for item in content)
        pairs = [(number, name) for name, number in content] if is_numbered else list(enumerate(content))
    else:
        lines = [line for _, line in files.lines(files.use(path))]
        words = [line.split(maxsplit=1) for line in lines]
        is_numbered = all(len(own) == 2 and _number(own[0]) is not None for own in words)
        pairs = [(own[0], own[1]) for own in words] if is_numbered else list(enumerate(lines))
    numbers: dict[int, str] = {}
    for text, name in pairs:
        number = _number(str(text))
        if number is None or not isinstance(name, str):
            raise InputError(f"{path}: a class must have a name and a whole number, got {name!r} and {text!r}.")
        if number in numbers:
            raise InputError(f"{path}: {numbers[number]!r} and {name!r} have the same number, {number}.")
        numbers[number] = _label_of(name)
    check_labels(list(numbers.values()), str(path))
    return Classes(path, numbers, {*numbers.values()}, is_numbered)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]+", text) else None


def _list_rows(files: AnnotationFiles, path: Path, classes: Classes | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list."""
    for where, file, text in _list_entries(files, path):
        try:
            cell = read_path(file, "path")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if cell is None or cell.startswith("/"):
            raise InputError(f"{where}: the path {file!r} must be relative to the folder of the clips.")
        name = path_name(posixpath.normpath(cell))
        yield {"id": name, "clip": name, "label": _find_label(where, name, text, classes)}


def _list_entries(files: AnnotationFiles, path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the path and the label of each line of a list; the label is empty if a line is a path alone."""
    lines = files.lines(files.use(path))
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None or not lines or separator not in lines[0][1]:
        for number, line in lines:
            file, *label = [line] if _is_video(line) else line.rsplit(maxsplit=1)
            yield f"{path}, line {number}", file, _label_of("".join(label))
        return
    for position, (number, cells) in enumerate(read_table(path)):
        where = f"{path}, line {number}"
        if len(cells) != 2:
            raise InputError(f"{where}: must be path{separator}label, got {len(cells)} cells.")
        file, text = (cell.strip() for cell in cells)
        if position > 0 or text.lower() not in ("label", "class"):  # a header
            yield where, file, _label_of(text)


def _find_label(where: str, clip: str, text: str, classes: Classes | None) -> str:
    """Return the label of a line of a list: a name, the name of a number, or without either that of its folder."""
    number = _number(text)
    if classes is None:
        if number is not None or not text:
            raise InputError(
                f"{where}: the label is {text or 'missing'}, but there is no file of classes, such as classes.txt or "
                "classInd.txt."
            )
        return text
    if text in classes.names:
        return text
    if number in classes.numbers:
        return classes.numbers[number]
    if number is not None:
        counted = "" if classes.is_numbered else ", counted from 0; to count from 1, write a number before each name"
        raise InputError(
            f"{where}: the number {number} is not a class of {classes.path.name}, whose numbers are "
            f"{classes.range}{counted}."
        )
    if text:
        raise InputError(
            f"{where}: the label {text!r} is not in {classes.path.name}. (A label with spaces needs a CSV file.)"
        )
    if _folder_of(clip) not in classes.names:
        raise InputError(f"{where}: has no label, and {clip!r} is not in a folder with the name of a class.")
    return _folder_of(clip)


def _folder_of(clip: str) -> str:
    return PurePosixPath(clip).parent.name
