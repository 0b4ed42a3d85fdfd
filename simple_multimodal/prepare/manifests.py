"""Turn a benchmark's annotations and videos into manifests, and report how they deviate from its protocol."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from simple_multimodal.prepare.annotations import SOURCES, Rows, some
from simple_multimodal.prepare.benchmarks import Annotations, alpro_folder, read_annotations
from simple_multimodal.prepare.labels import labels_of
from simple_multimodal.prepare.media_folders import check_segments, collect_files, count_long
from simple_multimodal.prepare.preparation import LABELS_FILE, Preparation, PreparedSplit, texts_of
from simple_multimodal.prepare.settings import SignalSettings


def prepare_benchmark(
    benchmark: str,
    annotations: str | Path | None,
    output_dir: str | Path,
    *,
    videos: str | Path | None = None,
    poses: str | Path | None = None,
    signals: SignalSettings | None = None,
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
    Write `train.jsonl`, `validation.jsonl` and `test.jsonl` of a benchmark, and next to them `protocol.json` and, if
    clips have labels, `labels.txt`.

    The same files and arguments give the same manifests, byte for byte. Nothing is downloaded.

    Args:
        benchmark (`str`): A key of `SOURCES`, such as `"msrvtt"`, `"msvd_qa"`, `"charades"`, `"class_folders"` or
            `"phoenix2014t"`.
        annotations (`str` or `Path`, *optional*): Folder of the annotation files, see [`read_annotations`]; by default
            `videos`.
        output_dir (`str` or `Path`): Folder of the manifests; created if it does not exist.
        videos (`str` or `Path`, *optional*): Folder of the clips, which may be in sub-folders; in ALPRO's layout
            defaults to the folder `videos` next to the annotations, for clips that are named by their paths to
            `annotations`. Clips of PHOENIX-2014T may be folders of images, of which videos are made in the folder
            `videos` of `output_dir`.
        poses (`str` or `Path`, *optional*): Folder of the clips' poses (`.pose`) or features of their frames (`.npy`).
            Together with `videos`, a clip needs a file in both.
        signals ([`SignalSettings`], *optional*): How tables of multimodalhugs name files and times.
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
            clips are missing, or some with `requires_all_clips`, **or** an argument has no effect. No manifest is
            written in these cases.
    """
    chosen = get_protocol(protocol, benchmark=benchmark)
    if protocol not in (None, chosen.name):  # or a mistake in `charades+script` would prepare `charades`
        raise InputError(f"{protocol!r} has a suffix, which only results have; the protocol is {chosen.name!r}.")
    if not splits or set(splits) - set(SPLITS):
        raise InputError(f"splits must be some of {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}.")
    if annotations is None:
        annotations = videos
    if annotations is None:
        raise InputError(f"Give the folder of the annotations, or of the clips (`videos`). {SOURCES[benchmark]}")
    takes_from_train = "validation" in splits and "validation" not in chosen.sizes
    splits = [split for split in SPLITS if split in splits]
    read_splits = splits if "train" in splits or not takes_from_train else ["train", *splits]
    if signals not in (None, SignalSettings()) and benchmark != "multimodalhugs":
        raise InputError(f"signal_root, signal_start_end_unit and signal_rate have no effect on {benchmark}.")
    signals = signals or SignalSettings()
    if signals.signal_root is None and (folder := poses or videos) is not None:
        signals = replace(signals, signal_root=os.path.abspath(folder))
    found = read_annotations(
        annotations, benchmark, chosen.name, splits=read_splits, follow_links=follow_links, signals=signals
    )
    absent = [split for split in splits if split not in found.rows and split != "validation"]
    splits = [split for split in splits if split not in absent]
    if not splits:
        raise InputError(f"{annotations}: no {' or '.join(absent)} clips are listed. {SOURCES[benchmark]}")
    _check_output(Path(output_dir), splits, found.sources)
    listed = {split: _size(rows) for split, rows in found.rows.items()}
    deviations = [*found.deviations, *_unlike_protocol(chosen, found, listed)]

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

    if videos is None and poses is None and found.by_path:
        videos = annotations
    elif videos is None and poses is None and (txt := alpro_folder(annotations, benchmark)) is not None:
        videos = txt.parent / "videos"
    folders = {name: Path(folder) for name, folder in (("pose", poses), ("video", videos)) if folder is not None}
    if not folders or not all(folder.is_dir() for folder in folders.values()):
        wrong = next((folder for folder in folders.values() if not folder.is_dir()), "videos")
        raise InputError(f"{wrong}: no such folder. Give the folder of the clips. {SOURCES[benchmark]}")
    clips = list(dict.fromkeys(clip for own in clips_of.values() for clip in own))
    files = collect_files(
        folders,
        clips,
        found,
        Path(output_dir),
        opens_files=opens_files,
        follow_links=follow_links,
        index_dir=index_dir,
        num_threads=num_threads,
    )
    notes = [*found.notes, *(f"no {split} clips are listed" for split in absent), *files.notes]
    for split in splits:
        deviations += check_segments(split, rows[split], files.reports)
        notes += count_long(split, rows[split], files.reports)
    prepared: dict[str, PreparedSplit] = {}
    manifests: dict[str, bytes] = {}
    for split in splits:
        prepared[split], manifests[split] = _make_manifest(rows[split], files.cells, listed[split])
        if without := _labels_without_rows(found.labels, rows[split], files.cells):
            notes.append(
                f"{split}.jsonl has no row with {len(without)} of the {len(found.labels)} labels: {some(without)}"
            )
        if missing := prepared[split].missing:
            deviations.append(
                f"{split}: {len(missing)} of {len(clips_of[split])} clips have no usable file, so "
                f"{prepared[split].num_rows_missing} rows are left out: {some(missing)}"
            )
    missing = sorted({clip for split in prepared.values() for clip in split.missing})
    if missing and (requires_all_clips or not any(split.num_rows for split in prepared.values())):
        raise InputError(
            f"{' and '.join(map(str, folders.values()))}: {len(missing)} clips have no usable file: {some(missing)}. "
            f"{''.join(f'{note}. ' for note in notes)}{SOURCES[benchmark]}"
        )
    if missing:
        notes.append(f"where to get the missing files. {SOURCES[benchmark]}")
    preparation = Preparation(
        folder=Path(output_dir),
        video_root=files.roots.get("video"),
        protocol=chosen.name,
        splits=prepared,
        sources={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found.sources},
        validation_split=validation_split,
        deviations=deviations,
        notes=notes,
        labels=found.labels,
        follow_links=follow_links,
        index_dir=None if index_dir is None else Path(index_dir),
        pose_root=files.roots.get("pose"),
        frame_videos=files.frame_videos,
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
    def num_texts(row: dict[str, Any]) -> int:
        if "captions" in row:
            return len(row["captions"])
        return int("caption" in row or "question" in row)

    return SplitSize(len({row["clip"] for row in rows}), sum(map(num_texts, rows)))


def _labels_without_rows(labels: list[str], rows: list[dict[str, Any]], files: Collection[str]) -> list[str]:
    """Return the labels that no row has whose clip has a file."""
    present = {label for row in rows if labels and row["clip"] in files for label in labels_of(row)}
    return [label for label in labels if label not in present]


def _unlike_protocol(protocol: Protocol, found: Annotations, listed: dict[str, SplitSize]) -> list[str]:
    """Return the deviations of annotations from the protocol."""
    texts = texts_of(protocol)
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
        if protocol.num_labels not in (None, len(found.labels)):
            deviations.append(
                f"{split}: the annotations have {len(found.labels)} labels, {protocol.name} has {protocol.num_labels}"
            )
        if protocol.task == "question_answering":
            types = Counter(row["answer_type"] for row in found.rows[split])
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


def _make_manifest(
    rows: list[dict[str, Any]], files: dict[str, dict[str, str]], listed: SplitSize
) -> tuple[PreparedSplit, bytes]:
    """Return a split and the contents of its manifest, limited to the rows whose clip has a file."""
    kept = [row for row in rows if row["clip"] in files]
    lines = []
    for row in kept:
        further = {name: value for name, value in row.items() if name not in ("id", "clip", "file")}
        if "label" in row or "labels" in row:  # models that also read text need a column, which may be empty
            further.setdefault("caption", None)
        line = {"id": row["id"], **files[row["clip"]], **further}
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
    for path in (*paths.values(), folder / LABELS_FILE):
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
    if preparation.labels:
        contents[LABELS_FILE] = "".join(f"{label}\n" for label in preparation.labels).encode()
    contents["protocol.json"] = (json.dumps(preparation.to_dict(), indent=1) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with write_atomically(folder / name) as temporary:
            temporary.write_bytes(content)
