"""Read the annotation files of a data set: those of MSR-VTT, DiDeMo, MSVD, MSR-VTT-QA and MSVD-QA are read here."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_multimodal.data.fields import read_name
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import Protocol, register_protocol
from simple_multimodal.prepare.annotations import (
    SOURCES,
    AnnotationFiles,
    Entry,
    Reader,
    Rows,
    clip_name,
    load_json,
    some,
    value_of,
)
from simple_multimodal.prepare.charades import read_charades
from simple_multimodal.prepare.classes import read_class_folders, read_path_lists
from simple_multimodal.prepare.phoenix import read_phoenix2014t
from simple_multimodal.prepare.settings import SignalSettings
from simple_multimodal.prepare.signal_tables import read_signal_tables

_NAMES_IN_FILES = {"train": "train", "validation": "val", "test": "test"}
"""Splits, and their names in files."""


@dataclass
class Annotations:
    """
    Annotation files as rows, before the videos are looked for.

    Args:
        rows (`dict[str, list[dict]]`): Rows of each requested split that has a list. A row has `id`, `clip` (the name
            of its video), and `captions`, or `question`, `answer`, `answer_type` and `question_id`, or
            `label` or `labels`, or `caption`. `file` is its file in the folder of the clips, if the annotations name
            it.
        sources (`list[Path]`): The files that were read.
        labels (`list[str]`): Labels in the order of the classes; empty if rows have neither `label` nor `labels`.
        deviations (`list[str]`): What is not as it should be, one line each, such as the duplicates of a file, of
            which the first is kept.
        notes (`list[str]`): Further remarks, one line each.
        by_path (`bool`): Whether names of clips are their paths without suffix, in the folder of the clips, instead of
            their file names.
    """

    rows: Rows
    sources: list[Path]
    labels: list[str]
    deviations: list[str]
    notes: list[str]
    by_path: bool
    frame_rate: float | None = None


def read_annotations(
    folder: str | Path,
    benchmark: str,
    protocol: str,
    *,
    splits: Sequence[str],
    follow_links: bool = False,
    signals: SignalSettings | None = None,
) -> Annotations:
    """
    Read a benchmark's annotation files, in its own format or in that of ClipBERT and ALPRO.

    Args:
        folder (`str` or `Path`): Folder of the files, which may be in sub-folders; **or** of `train.jsonl`,
            `val.jsonl` and `test.jsonl` as in ALPRO's `data/<task>/txt`: that folder or one of the three above it.
        benchmark (`str`): A key of `SOURCES`.
        protocol (`str`): Name of the protocol, which for MSR-VTT decides which lists are read.
        splits (`Sequence[str]`): Which of `train`, `validation` and `test` to read: only their files must exist.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead out of a folder whose
            sub-folders are the classes.
        signals ([`SignalSettings`], *optional*): How a table of multimodalhugs names files and times.

    Returns:
        `Annotations`: The rows, in file order. There is no `validation` if there is no list for it.

    Raises:
        ValueError: A file is missing, **or** contains an invalid entry. The message names the file and the line or
            entry, and says where to get missing files.
    """
    files = AnnotationFiles(folder, benchmark, follow_links=follow_links, signals=signals)
    own_reader, own_names = _OWN_FORMATS[benchmark]
    if not any(files.has(name) for name in own_names) and (txt := alpro_folder(folder, benchmark)) is not None:
        rows = _read_alpro(files, txt, splits)
    else:
        rows = own_reader(files, protocol, splits)
    return Annotations(rows, files.used, files.labels, files.deviations, files.notes, files.by_path, files.frame_rate)


def alpro_folder(folder: str | Path, benchmark: str) -> Path | None:
    """Return the `txt` folder of ALPRO's `data/<task>/{txt,videos}`, given it or a folder above; `None` if absent."""
    task = benchmark if benchmark.endswith("_qa") else f"{benchmark}_ret"
    for place in (Path(), Path("txt"), Path(task, "txt"), Path("data", task, "txt")):
        if any(Path(folder, place, f"{name}.jsonl").is_file() for name in _NAMES_IN_FILES.values()):
            return Path(folder, place)
    return None


def _answer(entry: Entry) -> str:
    """Return the answer of an entry, read in the same way as a manifest's."""
    where, content = entry
    try:
        answer = read_name(content.get("answer"), "answer")
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return answer if answer is not None else value_of(entry, "answer")  # raises an error that shows the value


def _captions_by_clip(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the captions of each clip, without blank ones."""
    captions: dict[str, list[str]] = defaultdict(list)
    for clip, caption in pairs:
        if caption:
            captions[clip].append(caption)
    return dict(captions)


def _caption_rows(clips: Iterable[str], captions: dict[str, list[str]], where: str) -> list[dict[str, Any]]:
    """Return a row for each clip of a list. Every sentence counts, even if it occurs twice."""
    clips = list(clips)
    without = [clip for clip in clips if clip not in captions]
    if without:
        raise InputError(
            f"{where}: {len(without)} clips have no caption: {some(without)}. The list does not match the captions, "
            "or a caption file is incomplete."
        )
    return [{"id": clip, "clip": clip, "captions": captions[clip]} for clip in clips]


def _question_row(entry: Entry, clip: str, question_id: int, answer_type: str | None = None) -> dict[str, Any]:
    """Return a row for a question; its type defaults to its first word."""
    question = value_of(entry, "question")
    return {
        "id": str(question_id),
        "clip": clip,
        "question": question,
        "answer": _answer(entry),
        "answer_type": answer_type or question.partition(" ")[0].lower(),
        "question_id": question_id,
    }


def _read_msrvtt(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """Read the captions of the challenge's files; lists (1k-A) or the files themselves define the splits."""
    is_full = not protocol.startswith("msrvtt-1ka")
    rows: Rows = {}
    if not is_full and "test" in splits:
        path = files.find("MSRVTT_JSFUSION_test.csv")
        pairs = [(value_of(entry, "video_id"), value_of(entry, "sentence")) for entry in files.entries(path)]
        captions = dict(files.once(((clip, (clip, [caption])) for clip, caption in pairs), path))
        rows["test"] = _caption_rows(captions, captions, str(path))
    wanted = [split for split in splits if is_full or split == "train"]
    if not wanted:
        return rows

    if files.has("MSRVTT_data.json"):
        caption_paths = [files.find("MSRVTT_data.json")]
    else:  # the 9k list contains clips of the official test split
        needs_test = "test" in wanted or protocol == "msrvtt-1ka-9k"
        needs_train = wanted != ["test"]
        caption_paths = [files.find("train_val_videodatainfo.json")] if needs_train else []
        caption_paths += [files.find("test_videodatainfo.json")] if needs_test else []
    captions = _captions_by_clip(
        (value_of(entry, "video_id"), value_of(entry, "caption"))
        for path in caption_paths
        for entry in files.entries(path, "sentences")
    )
    if not is_full:
        list_path = files.find(f"MSRVTT_train.{protocol.rpartition('-')[2]}.csv")
        clips = files.clips((value_of(entry, "video_id") for entry in files.entries(list_path)), list_path)
        rows["train"] = _caption_rows(clips, captions, str(list_path))
        return rows
    members: dict[str, list[str]] = {}
    for path in caption_paths:
        videos = ((value_of(entry, "video_id"), entry) for entry in files.entries(path, "videos"))
        for entry in files.once(videos, path):
            members.setdefault(value_of(entry, "split"), []).append(value_of(entry, "video_id"))
    for split in wanted:
        clips = members.get("validate" if split == "validation" else split, [])
        rows[split] = _caption_rows(clips, captions, " and ".join(map(str, caption_paths)))
    return rows


def _read_didemo(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """Read one paragraph per video: the sentences of its moments, in file order."""
    rows = {}
    for split in splits:
        path = files.find(f"{_NAMES_IN_FILES[split]}_data.json")
        moments = files.once(
            ((str(value_of(entry, "annotation_id", int)), entry) for entry in files.entries(path)), path
        )
        sentences = _captions_by_clip(
            (clip_name(value_of(moment, "video")), value_of(moment, "description")) for moment in moments
        )
        rows[split] = _caption_rows(sentences, {clip: [" ".join(own)] for clip, own in sentences.items()}, str(path))
    return rows


def _read_msvd(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """Read one file with the captions of all clips, and a list of clips per split."""
    path = files.find("captions_msvd.json")
    content = load_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(own, list) and all(isinstance(caption, str) for caption in own) for own in content.values()
    ):
        raise InputError(f"{path}: must hold an object with a list of captions for each clip.")
    captions = _captions_by_clip((clip, caption.strip()) for clip, own in content.items() for caption in own)
    rows = {}
    for split in splits:
        list_path = files.find(f"{_NAMES_IN_FILES[split]}_list.txt")
        clips = files.clips((line for _, line in files.lines(list_path)), list_path)
        rows[split] = _caption_rows(clips, captions, str(list_path))
    return rows


def _read_qa(files: AnnotationFiles, splits: Sequence[str], name_of: Callable[[int, str], str]) -> Rows:
    """Read questions in the format of MSRVTT-QA and MSVD-QA, which number their clips."""
    rows = {}
    for split in splits:
        path = files.find(f"{_NAMES_IN_FILES[split]}_qa.json")
        questions = (
            _question_row(entry, name_of(value_of(entry, "video_id", int), entry[0]), value_of(entry, "id", int))
            for entry in files.entries(path)
        )
        rows[split] = files.once(((row["id"], row) for row in questions), path)
    return rows


def _read_msrvtt_qa(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    return _read_qa(files, splits, lambda number, where: f"video{number}")


def _read_msvd_qa(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """Read MSVD-QA's questions; `youtube_mapping.txt` calls clip N vidN."""
    path = files.find("youtube_mapping.txt")
    names: dict[str, str] = {}
    for number, line in files.lines(path):
        words = line.split()
        if len(words) != 2:
            raise InputError(f"{path}, line {number}: must be a clip's name and its vidN, got {line[:80]!r}.")
        names[words[1]] = words[0]

    def name_of(number: int, where: str) -> str:
        if f"vid{number}" not in names:
            raise InputError(f"{where}: {path} has no clip vid{number}.")
        return names[f"vid{number}"]

    return _read_qa(files, splits, name_of)


def _read_alpro(files: AnnotationFiles, folder: Path, splits: Sequence[str]) -> Rows:
    """Read one JSON object per caption or question; a question's number is its row number, as in ALPRO."""
    rows = {}
    for split in splits:
        path = folder / f"{_NAMES_IN_FILES[split]}.jsonl"
        if not path.is_file():
            if split == "validation":
                continue
            raise InputError(f"{path} is missing. It is part of ALPRO's data.zip (salesforce/ALPRO on GitHub).")
        entries = list(files.entries(files.use(path)))
        if files.benchmark.endswith("_qa"):
            rows[split] = [
                _question_row(entry, clip_name(value_of(entry, "video_id")), number, value_of(entry, "answer_type"))
                for number, entry in enumerate(entries)
            ]
        else:
            captions = _captions_by_clip(
                (clip_name(value_of(entry, "clip_name")), value_of(entry, "caption")) for entry in entries
            )
            rows[split] = _caption_rows(captions, captions, str(path))
    return rows


_ANY = ("*",)  # any file is in the data set's own format

_OWN_FORMATS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "msrvtt": (
        _read_msrvtt,
        (
            "MSRVTT_JSFUSION_test.csv",
            "MSRVTT_data.json",
            "train_val_videodatainfo.json",
            "test_videodatainfo.json",
        ),
    ),
    "didemo": (_read_didemo, tuple(f"{name}_data.json" for name in _NAMES_IN_FILES.values())),
    "msvd": (_read_msvd, ("captions_msvd.json",)),
    "msrvtt_qa": (_read_msrvtt_qa, tuple(f"{name}_qa.json" for name in _NAMES_IN_FILES.values())),
    "msvd_qa": (_read_msvd_qa, (*(f"{name}_qa.json" for name in _NAMES_IN_FILES.values()), "youtube_mapping.txt")),
    "charades": (read_charades, _ANY),
    "class_folders": (read_class_folders, _ANY),
    "path_lists": (read_path_lists, _ANY),
    "msrvtt_caption": (_read_msrvtt, _ANY),
    "msvd_caption": (_read_msvd, _ANY),
    "phoenix2014t": (read_phoenix2014t, _ANY),
    "multimodalhugs": (read_signal_tables, _ANY),
}
"""Reader of each benchmark's own format, and the files that distinguish it from ALPRO's."""


def register_benchmark(protocol: Protocol, *, read: Reader, source: str) -> None:
    """
    Register a data set outside this package for `simple-multimodal prepare` and `infer`; see
    `docs/adding_datasets.md`.

    Args:
        protocol ([`Protocol`]): The protocol, which also names the data set (`benchmark`).
        read (`Callable`): Function that is called as `read(files, protocol, splits)` with the [`AnnotationFiles`], the
            protocol's name and the splits to read, of those that the protocol has. It returns a list of rows for each
            split, see [`Annotations`].
        source (`str`): Where to get annotations and videos, for messages about missing files.

    Raises:
        ValueError: The name of the protocol or of the data set is taken.
    """
    if protocol.benchmark in _OWN_FORMATS:
        raise InputError(f"The data set {protocol.benchmark!r} is already registered; use another `benchmark`.")
    register_protocol(protocol)

    def read_listed(files: AnnotationFiles, name: str, splits: Sequence[str]) -> Rows:
        return read(files, name, [split for split in splits if split in protocol.sizes])

    SOURCES[protocol.benchmark] = source
    _OWN_FORMATS[protocol.benchmark] = read_listed, _ANY
