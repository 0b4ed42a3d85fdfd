"""The annotation files of a data set: find them, and read their entries with the places that messages name."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from simple_multimodal.data.tables import is_table, read_records
from simple_multimodal.errors import InputError
from simple_multimodal.prepare.settings import SignalSettings

SOURCES = {
    "msrvtt": (
        "Captions: train_val_videodatainfo.json and test_videodatainfo.json of the MSR-VTT challenge (Microsoft "
        "Research), or MSRVTT_data.json, which holds both and comes with the lists. Lists: MSRVTT_JSFUSION_test.csv, "
        "MSRVTT_train.9k.csv and MSRVTT_train.7k.csv of CLIP4Clip (ArrowLuo/CLIP4Clip on GitHub). Videos: "
        "train_val_videos.zip (md5 51f2394d279cf84f1642defd9a651e6f) and test_videos.zip (md5 "
        "0af68454cec9d586e92805739f3911d0) of the challenge; the sums are ALPRO's (salesforce/ALPRO)."
    ),
    "didemo": (
        "Annotations: data/train_data.json, val_data.json and test_data.json of LisaAnne/LocalizingMoments on "
        "GitHub, whose README says how to request the videos (they are Flickr's, by way of YFCC100M)."
    ),
    "msvd": (
        "Captions and lists: captions_msvd.json, train_list.txt, val_list.txt and test_list.txt of X-Pool "
        "(layer6ai-labs/xpool on GitHub). Videos: YouTubeClips.tar (md5 9bdb20fcf14d59524a6febca9f6a8d89, as "
        "salesforce/ALPRO gives it) of the Microsoft Research Video Description Corpus at the University of Texas."
    ),
    "msrvtt_qa": (
        "Questions: train_qa.json, val_qa.json and test_qa.json of MSRVTT-QA (xudejing/video-question-answering on "
        "GitHub). Videos: those of MSR-VTT."
    ),
    "msvd_qa": (
        "Questions: train_qa.json, val_qa.json and test_qa.json of MSVD-QA (xudejing/video-question-answering on "
        "GitHub), and youtube_mapping.txt of MSVD. Videos: those of MSVD."
    ),
    "charades": (
        "Annotations: Charades_v1_train.csv, Charades_v1_test.csv and Charades_v1_classes.txt, from Charades.zip of "
        "the Charades data set (Allen Institute for AI). Videos: Charades_v1.zip, or Charades_v1_480.zip with smaller "
        "ones."
    ),
    "class_folders": "Expected are clips in train/<class>/, validation/<class>/ and test/<class>/, or in <class>/.",
    "path_lists": (
        "Expected are lists whose names contain train, val or test, such as train.csv or trainlist01.txt, with a path "
        "and a label in each line, and a file of the classes, such as classes.txt or classInd.txt."
    ),
    "msrvtt_caption": (
        "Captions: train_val_videodatainfo.json and test_videodatainfo.json of the MSR-VTT challenge (Microsoft "
        "Research), or MSRVTT_data.json of CLIP4Clip (ArrowLuo/CLIP4Clip on GitHub), which holds both. Videos: those "
        "of MSR-VTT."
    ),
    "msvd_caption": (
        "Captions and lists: captions_msvd.json, train_list.txt, val_list.txt and test_list.txt of X-Pool "
        "(layer6ai-labs/xpool on GitHub). Videos: those of MSVD."
    ),
    "phoenix2014t": (
        "Annotations: PHOENIX-2014-T.train.corpus.csv, PHOENIX-2014-T.dev.corpus.csv and "
        "PHOENIX-2014-T.test.corpus.csv, from annotations/manual of RWTH-PHOENIX-Weather 2014 T (release v3, RWTH "
        "Aachen). Clips: folders of images in features/fullFrame-210x260px of the same release, or videos, poses or "
        "features with the same names."
    ),
    "multimodalhugs": (
        "Expected are lists whose names contain train, validation (or dev) or test, such as train.tsv, with the "
        "columns signal, signal_start, signal_end, encoder_prompt, decoder_prompt and output of multimodalhugs."
    ),
}
"""Where to get the files of each benchmark. Nothing is ever downloaded."""

Entry = tuple[str, dict[str, Any]]  # location, for messages, and content
T = TypeVar("T")
Rows = dict[str, list[dict[str, Any]]]  # by split


def clip_name(file: str) -> str:
    """
    Return the name of a clip: its file name up to the first dot.

    No clip of these benchmarks has a dot in its name, and extensions differ between releases (DiDeMo lists some videos
    twice, with two extensions).
    """
    return file.rpartition("/")[2].partition(".")[0]


class AnnotationFiles:
    """
    The annotation files of a benchmark in a folder, as passed to a reader. They record the files that were read, and
    what the reader finds, see [`Annotations`].

    Args:
        folder (`str` or `Path`): Folder of the files, which may be in sub-folders.
        benchmark (`str`): A key of `SOURCES`.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead out of the folder,
            if it holds clips.
        signals ([`SignalSettings`], *optional*): How a table of multimodalhugs names files and times.

    Raises:
        ValueError: The folder does not exist.
    """

    def __init__(
        self,
        folder: str | Path,
        benchmark: str,
        *,
        follow_links: bool = False,
        signals: SignalSettings | None = None,
    ):
        self.folder, self.benchmark, self.follow_links = Path(folder), benchmark, follow_links
        self.signals = signals or SignalSettings()
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder. Give the folder of the annotations. {SOURCES[benchmark]}")
        self.used: list[Path] = []
        self.labels: list[str] = []
        self.deviations: list[str] = []
        self.notes: list[str] = []
        self.by_path = False
        self.frame_rate: float | None = None

    def has(self, name: str) -> bool:
        return any(self.folder.rglob(name))

    def find(self, name: str) -> Path:
        """Return the only file of that name in the folder or its sub-folders."""
        found = sorted(self.folder.rglob(name))
        if not found:
            raise InputError(
                f"{self.folder}: {name} is missing. Only the files of requested splits are needed. "
                f"{SOURCES[self.benchmark]}"
            )
        if len(found) > 1:
            raise InputError(f"{name} exists twice, as {found[0]} and {found[1]}; give the folder of one of them.")
        return self.use(found[0])

    def use(self, path: Path) -> Path:
        if path not in self.used:
            self.used.append(path)
        return path

    def entries(self, path: Path, key: str | None = None) -> Iterator[Entry]:
        """Yield the objects of a JSONL file, rows of a CSV file, or list in a JSON file (under `key`, if given)."""
        if is_table(path):
            yield from ((f"{path}, line {line}", entry) for line, entry in read_records(path))
        else:
            content = load_json(path)
            entries = content.get(key) if key is not None and isinstance(content, dict) else content
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise InputError(f"{path}: must hold a list of objects{f' under {key!r}' if key else ''}.")
            yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries))

    def once(self, items: Iterable[tuple[str, T]], path: Path) -> list[T]:
        """Return the first item of each key, and record the keys that occur again."""
        kept: dict[str, T] = {}
        again: dict[str, None] = {}
        for key, item in items:
            if key in kept:
                again[key] = None
            else:
                kept[key] = item
        if again:
            self.deviations.append(f"{path.name}: {len(again)} more than once: {some(again)}")
        return list(kept.values())

    def clips(self, names: Iterable[str], path: Path) -> list[str]:
        """Return the names of clips without duplicates."""
        return self.once(((name, name) for name in names), path)

    def lines(self, path: Path) -> list[tuple[int, str]]:
        """Return number and content of each non-blank line of a text file."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 text: {error}.") from error
        return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def some(names: Iterable[str], num_shown: int = 5) -> str:
    """Return the first few names as text."""
    names = list(names)
    return ", ".join(names[:num_shown]) + ", ..." * (len(names) > num_shown)


def load_json(path: Path, **options: Any) -> Any:
    """Return the contents of a JSON file; `options` are arguments of `json.loads`."""
    try:
        return json.loads(path.read_bytes(), **options)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError, which has line and column
        raise InputError(f"{path}: is not JSON: {error}.") from error


def value_of(entry: Entry, name: str, kind: type[str] | type[int] = str) -> Any:
    """Return a value of an entry, which must exist and have the right type."""
    where, content = entry
    if name not in content:
        raise InputError(f"{where}: no column {name!r}; the columns are {', '.join(content) or 'missing'}.")
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "a string" if kind is str else "a whole number"
        raise InputError(f"{where}: {name!r} must be {expected}, got {repr(value)[:80]}.")
    return value.strip() if isinstance(value, str) else value


Reader = Callable[[AnnotationFiles, str, Sequence[str]], Rows]
"""Function of the files, the protocol's name and the splits that returns the rows by split, see [`Annotations`]."""
