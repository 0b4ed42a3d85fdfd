"""Turn a benchmark's annotations and videos into manifests, and report how they deviate from its protocol."""

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simple_multimodal.data.files import VIDEO_SUFFIXES
from simple_multimodal.data.roots import Roots
from simple_multimodal.defaults import NUM_VALIDATION_CLIPS
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import (
    ANSWER_TYPES,
    PROTOCOLS,
    SPLITS,
    Protocol,
    SplitSize,
    check_overlap,
    get_protocol,
)
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.prepare.benchmarks import SOURCES, Rows, alpro_folder, clip_name, read_annotations, some
from simple_multimodal.prepare.check import examine_files

CLIP_SUFFIXES = VIDEO_SUFFIXES | {""}
"""Suffixes of clips; some of DiDeMo's have none."""


@dataclass
class PreparedSplit:
    """
    A manifest that was written.

    Args:
        num_rows (`int`): Number of rows.
        clips (`list[str]`): Names of its clips in order, without folder and extension.
        num_texts (`int`): Number of captions or questions.
        listed (`SplitSize`): Size in the annotations, before missing clips are dropped and validation clips set aside.
        missing (`list[str]`): Clips that have no usable file.
        num_rows_missing (`int`): Number of rows that were dropped with them.
        sha256 (`str`): SHA-256 of the manifest.
    """

    num_rows: int
    clips: list[str]
    num_texts: int
    listed: SplitSize
    missing: list[str]
    num_rows_missing: int
    sha256: str = ""


@dataclass
class Preparation:
    """
    The result of [`prepare_benchmark`].

    Args:
        folder (`Path`): Folder of the manifests.
        video_root (`Path`): Folder of the videos.
        protocol (`str`): Name of the protocol.
        splits (`dict[str, PreparedSplit]`): The splits by name.
        sources (`dict[str, str]`): SHA-256 of each annotation file that was read.
        validation_split (`dict[str, int]`, *optional*): Seed and number of the training clips that were set aside for
            validation because there is no list.
        deviations (`list[str]`): Deviations of the manifests from the protocol, one line each.
        notes (`list[str]`): Further remarks.
        follow_links (`bool`, *optional*, defaults to `False`): Whether links out of `video_root` were followed.
        index_dir (`Path`, *optional*): Folder of the frame indices, if not the one in the user's cache.
    """

    folder: Path
    video_root: Path
    protocol: str
    splits: dict[str, PreparedSplit]
    sources: dict[str, str]
    validation_split: dict[str, int] | None
    deviations: list[str]
    notes: list[str]
    follow_links: bool = False
    index_dir: Path | None = None

    @property
    def flags(self) -> str:
        """Flags to pass to the commands that use the manifests, quoted for a shell."""
        flags = ["--video_root", str(self.video_root)]
        flags += ["--follow_links"] * self.follow_links
        flags += [] if self.index_dir is None else ["--index_dir", str(self.index_dir)]
        return shlex.join(flags)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `protocol.json`, which is independent of the machine."""
        return {
            "protocol": self.protocol,
            "deviations": self.deviations,
            "validation_split": self.validation_split,
            "sources": self.sources,
            "splits": {
                name: asdict(split) | {"listed": split.listed._asdict(), "num_clips": len(split.clips)}
                for name, split in self.splits.items()
            },
        }

    def to_text(self) -> str:
        """Return the report as text: sizes next to the protocol's, then notes and deviations."""
        task = get_protocol(self.protocol).task
        texts = "questions" if task == "question_answering" else "captions"
        lines = [f"{self.protocol}: manifests are in {self.folder}"]
        for name, split in self.splits.items():
            expected = get_protocol(self.protocol).sizes.get(name)
            listed = f"listed: {split.listed.clips} clips, {split.listed.texts} {texts}"
            if self.validation_split is not None and name == "train":
                listed += ", including {num_clips} clips set aside for validation".format_map(self.validation_split)
            elif self.validation_split is not None and name == "validation":
                listed = "set aside: {num_clips} clips of the training list, chosen with seed {seed}".format_map(
                    self.validation_split
                )
            lines.append(
                f"{name + ':':12}{split.num_rows} rows, {len(split.clips)} clips, {split.num_texts} {texts}; "
                f"{listed}; protocol: "
                + (f"{expected.clips} clips, {expected.texts} {texts}" if expected else "no size given")
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"DEVIATES: {deviation}" for deviation in self.deviations]
        lines += [
            f"{name}.jsonl has no rows; it cannot be used" for name, split in self.splits.items() if not split.num_rows
        ]
        usable = [name for name, split in self.splits.items() if split.num_rows]
        folder, flags = shlex.quote(str(self.folder)), self.flags
        if "train" in usable:
            files = " ".join(
                f"--{name}_file {shlex.quote(str(self.folder / f'{name}.jsonl'))}"
                for name in ("train", "validation")
                if name in usable
            )
            files += " --do_train" * ("validation" not in usable)  # by default, train.py also evaluates
            lines.append(
                f"Train: python train.py --task {task} --model_name_or_path BASE {files} {flags} --output_dir MODEL"
            )
        if "test" in usable:
            lines.append(f"Test:  simple-multimodal infer MODEL {folder} {flags} --output_dir RESULTS")
        if {"train", "test"} & {*usable}:
            lines.append("BASE is the model to fine-tune; MODEL and RESULTS are folders to write")
        return "\n".join(lines)


def prepare_benchmark(
    benchmark: str,
    annotations: str | Path,
    output_dir: str | Path,
    *,
    videos: str | Path | None = None,
    protocol: str | None = None,
    splits: Sequence[str] = SPLITS,
    num_validation_clips: int | None = None,
    seed: int = 0,
    requires_all_clips: bool = False,
    opens_files: bool = False,
    follow_links: bool = False,
    index_dir: str | Path | None = None,
    num_threads: int | None = None,
) -> Preparation:
    """
    Write `train.jsonl`, `validation.jsonl` and `test.jsonl` of a benchmark, and `protocol.json` next to them.

    The same files and arguments give the same manifests, byte for byte. Nothing is downloaded.

    Args:
        benchmark (`str`): `"msrvtt"`, `"didemo"`, `"msvd"`, `"msrvtt_qa"` or `"msvd_qa"`.
        annotations (`str` or `Path`): Folder of the annotation files, see [`read_annotations`].
        output_dir (`str` or `Path`): Folder of the manifests; created if it does not exist.
        videos (`str` or `Path`, *optional*): Folder of the clips, which may be in sub-folders; in ALPRO's layout
            defaults to the folder `videos` next to the annotations.
        protocol (`str`, *optional*): Name of a protocol; by default the first one of the benchmark.
        splits (`Sequence[str]`, *optional*, defaults to all): Splits to write.
        num_validation_clips (`int`, *optional*): Number of training clips to set aside if there is no validation list;
            by default 500, or a tenth of the training clips if that is fewer.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of validation clips.
        requires_all_clips (`bool`, *optional*, defaults to `False`): Whether a missing clip is an error.
        opens_files (`bool`, *optional*, defaults to `False`): Whether to index every video, so that unreadable ones
            are dropped in addition to missing and empty ones.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead out of the folder of
            the clips.
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices.
        num_threads (`int`, *optional*): Number of files to open at the same time; by default one per core.

    Returns:
        `Preparation`: The result, with its deviations from the protocol.

    Raises:
        ValueError: An annotation file is missing or invalid, **or** test clips are also training clips, **or** all
            clips are missing, or some with `requires_all_clips`, **or** an argument has no effect. Nothing is written
            in these cases.
    """
    chosen = get_protocol(protocol, benchmark=benchmark)
    if not splits or set(splits) - set(SPLITS):
        raise InputError(f"splits must be some of {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}.")
    takes_from_train = "validation" in splits and "validation" not in chosen.sizes
    splits = [split for split in SPLITS if split in splits]
    read_splits = splits if "train" in splits or not takes_from_train else ["train", *splits]
    found = read_annotations(annotations, benchmark, chosen.name, splits=read_splits)
    _check_output(Path(output_dir), splits, found.sources)
    listed = {split: _size(rows) for split, rows in found.rows.items()}
    deviations = [*found.duplicates, *_unlike_protocol(chosen, found.rows, listed)]

    rows, validation_split = found.rows, None
    if "validation" in splits and "validation" not in rows:
        if "train" not in rows:
            raise InputError(
                f"{annotations}: no list of validation clips, and no list of training clips to take them from."
            )
        num_clips = num_validation_clips
        if num_clips is None:
            num_clips = min(NUM_VALIDATION_CLIPS, max(listed["train"].clips // 10, 1))
        validation_split = {"seed": seed, "num_clips": num_clips}
        rows = rows | set_aside(rows["train"], num_clips, seed)
        listed["validation"] = _size(rows["validation"])
    elif num_validation_clips is not None:
        raise InputError("num_validation_clips has no effect: the validation clips have a list, or are not requested.")
    clips_of = {split: list(dict.fromkeys(row["clip"] for row in rows.get(split, []))) for split in SPLITS}
    check_overlap({*clips_of["train"], *clips_of["validation"]}, clips_of["test"], chosen.name)
    if both := sorted(set(clips_of["train"]) & set(clips_of["validation"])):
        deviations.append(f"{len(both)} clips are in both train and validation: {some(both)}")

    if videos is None and (txt := alpro_folder(annotations, benchmark)) is not None:
        videos = txt.parent / "videos"
    if videos is None or not Path(videos).is_dir():
        raise InputError(f"{videos or 'videos'}: no such folder. Give the folder of the clips. {SOURCES[benchmark]}")
    wanted = {clip for clips in clips_of.values() for clip in clips}
    files, notes = _choose_files(Path(videos), wanted, follow_links=follow_links)
    if opens_files:
        reports = examine_files(
            [str(Path(videos, file)) for file in files.values()], index_dir=index_dir, num_threads=num_threads
        )
        for clip, report in zip(list(files), reports, strict=True):
            if report.error:
                notes.append(f"unreadable: {report.error}")
                del files[clip]
    prepared: dict[str, PreparedSplit] = {}
    manifests: dict[str, bytes] = {}
    for split in splits:
        prepared[split], manifests[split] = _make_manifest(rows[split], files, listed[split])
        if missing := prepared[split].missing:
            deviations.append(
                f"{split}: {len(missing)} of {len(clips_of[split])} clips have no usable file, so "
                f"{prepared[split].num_rows_missing} rows are left out: {some(missing)}"
            )
    missing = sorted({clip for split in prepared.values() for clip in split.missing})
    if missing and (requires_all_clips or not any(split.num_rows for split in prepared.values())):
        raise InputError(
            f"{videos}: {len(missing)} clips have no usable file: {some(missing)}. {''.join(f'{n}. ' for n in notes)}"
            f"{SOURCES[benchmark]}"
        )
    if missing:
        notes.append(f"where to get the missing files. {SOURCES[benchmark]}")
    preparation = Preparation(
        folder=Path(output_dir),
        video_root=Path(videos),
        protocol=chosen.name,
        splits=prepared,
        sources={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found.sources},
        validation_split=validation_split,
        deviations=deviations,
        notes=notes,
        follow_links=follow_links,
        index_dir=None if index_dir is None else Path(index_dir),
    )
    _write(preparation, manifests)
    return preparation


def set_aside(rows: list[dict[str, Any]], num_clips: int, seed: int) -> Rows:
    """
    Split training rows by clip.

    Args:
        rows (`list[dict]`): Rows with `clip`.
        num_clips (`int`): Number of clips to set aside.
        seed (`int`): Seed of the choice. The choice depends on the seed and the clips' names, not on their order: a
            clip that is preferred to another in one list is preferred to it in every list.

    Returns:
        `dict[str, list[dict]]`: `train` and `validation`, each in the order of `rows`.

    Raises:
        ValueError: `num_clips` is not between 1 and the number of clips minus 1.
    """
    clips = {row["clip"] for row in rows}
    if len(clips) < 2:
        raise InputError(
            f"The training list has {len(clips)} clip, so none can be set aside for validation. Remove validation "
            "from `splits`."
        )
    if not 0 < num_clips < len(clips):
        raise InputError(
            f"num_validation_clips must be from 1 to {len(clips) - 1}, one less than the number of training clips, "
            f"got {num_clips}."
        )
    shuffled = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed} {clip}".encode()).digest())
    chosen = set(shuffled[:num_clips])
    return {
        "train": [row for row in rows if row["clip"] not in chosen],
        "validation": [row for row in rows if row["clip"] in chosen],
    }


def _size(rows: list[dict[str, Any]]) -> SplitSize:
    return SplitSize(len({row["clip"] for row in rows}), sum(len(row.get("captions", [None])) for row in rows))


def _unlike_protocol(protocol: Protocol, rows: Rows, listed: dict[str, SplitSize]) -> list[str]:
    """Return the deviations of annotations from the protocol."""
    texts = "questions" if protocol.task == "question_answering" else "captions"
    deviations = []
    for split, size in listed.items():
        expected = protocol.sizes.get(split)
        if expected is not None and size != expected:
            others = [
                other.name
                for other in PROTOCOLS.values()
                if other.benchmark == protocol.benchmark and other.sizes.get(split) == size
            ]
            deviations.append(
                f"{split}: the annotations list {size.clips} clips and {size.texts} {texts}, {protocol.name} has "
                f"{expected.clips} and {expected.texts}"
                + (f"; this is the size of {' and '.join(others)}" if others else "")
            )
        if protocol.task == "question_answering":
            types = Counter(row["answer_type"] for row in rows[split])
            if unknown := {name: count for name, count in types.items() if name not in ANSWER_TYPES}:
                deviations.append(
                    f"{split}: {sum(unknown.values())} questions of unknown type: "
                    f"{some(f'{name!r} ({count})' for name, count in unknown.items())}; known are "
                    f"{', '.join(ANSWER_TYPES)}"
                )
            if split == "test" and (
                wrong := {name for name in ANSWER_TYPES if types[name] != protocol.answer_types[name]}
            ):
                deviations.append(
                    "test: questions by type are "
                    + ", ".join(
                        f"{name} {types[name]} ({protocol.answer_types[name]})"
                        for name in ANSWER_TYPES
                        if name in wrong
                    )
                    + f"; the numbers of {protocol.name} are in brackets"
                )
    return deviations


def _choose_files(folder: Path, wanted: set[str], *, follow_links: bool) -> tuple[dict[str, str], list[str]]:
    """Return the file of each wanted clip that exists, relative to the folder, and notes about the folder."""
    found: dict[str, list[str]] = {}
    empty = []
    outside = []
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
                outside.append(file)
            elif name in linked:
                if not any(Path(linked[name]).is_relative_to(other) for other in walked):
                    walked.add(linked[name])
                    folders.append(name)
            elif name in folders or name.startswith(".") or Path(name).suffix.lower() not in CLIP_SUFFIXES:
                continue
            elif not path.is_file() or path.stat().st_size == 0:
                empty.append(file)
            else:
                found.setdefault(clip_name(file), []).append(file)
    notes = []
    if empty:
        notes.append(f"{len(empty)} empty files count as missing: {some(empty)}")
    if outside:
        notes.append(
            f"{len(outside)} links that lead out of {folder} are not followed: {some(outside)}; pass --follow_links, "
            "or the folder that holds the files"
        )
    if unused := [file for clip, files in found.items() if clip not in wanted for file in files]:
        notes.append(f"{len(unused)} files in {folder} do not belong to a clip of this protocol: {some(unused, 3)}")
    if several := [clip for clip, files in found.items() if clip in wanted and len(files) > 1]:
        notes.append(f"{len(several)} clips have several files; the first is used: {some(several, 3)}")
    return {clip: found[clip][0] for clip in sorted(wanted & found.keys())}, notes


def _make_manifest(
    rows: list[dict[str, Any]], files: dict[str, str], listed: SplitSize
) -> tuple[PreparedSplit, bytes]:
    """Return a split and the contents of its manifest, limited to the rows whose clip has a file."""
    kept = [row for row in rows if row["clip"] in files]
    lines = []
    for row in kept:
        further = {name: value for name, value in row.items() if name not in ("id", "clip")}
        line = {"id": row["id"], "video": files[row["clip"]], **further}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    content = "".join(lines).encode()
    missing = dict.fromkeys(row["clip"] for row in rows if row["clip"] not in files)
    split = PreparedSplit(
        num_rows=len(kept),
        clips=list(dict.fromkeys(row["clip"] for row in kept)),
        num_texts=_size(kept).texts,
        listed=listed,
        missing=list(missing),
        num_rows_missing=len(rows) - len(kept),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return split, content


def _check_output(folder: Path, splits: Sequence[str], sources: Iterable[Path]) -> None:
    """Refuse a folder in which manifests would be mixed up, or annotations overwritten."""
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    left_over = [path.name for split, path in paths.items() if split not in splits and path.exists()]
    for path in paths.values():
        if any(path.exists() and path.samefile(source) for source in sources):
            raise InputError(f"{path} is an annotation file; write the manifests to another folder.")
    if left_over:
        raise InputError(
            f"{folder} already has {' and '.join(left_over)}, which protocol.json would not describe; write to "
            "another folder."
        )


def _write(preparation: Preparation, manifests: dict[str, bytes]) -> None:
    """Write the manifests and then `protocol.json`, each atomically."""
    folder = preparation.folder
    contents = {f"{split}.jsonl": content for split, content in manifests.items()}
    contents["protocol.json"] = (json.dumps(preparation.to_dict(), indent=1) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with write_atomically(folder / name) as temporary:
            temporary.write_bytes(content)
