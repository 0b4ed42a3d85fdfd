"""The result of preparing a benchmark: the manifests that were written, and how they deviate from its protocol."""

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simple_multimodal.evaluation.protocols import Protocol, SplitSize, get_protocol

LABELS_FILE = "labels.txt"
"""The file of labels, one per line in the order of the classes."""


@dataclass
class PreparedSplit:
    """
    A manifest that was written.

    Args:
        num_rows (`int`): Number of rows.
        clips (`list[str]`): Names of its clips in order, without extension; without folder, unless the clips of the
            data set are named by their paths.
        num_texts (`int`): Number of captions, questions or scripts.
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
        video_root (`Path`, *optional*): Folder of the videos.
        protocol (`str`): Name of the protocol.
        splits (`dict[str, PreparedSplit]`): The splits by name.
        sources (`dict[str, str]`): SHA-256 of each annotation file that was read.
        validation_split (`dict[str, int]`, *optional*): Seed and number of the training clips that were set aside for
            validation because there is no list.
        deviations (`list[str]`): Deviations of the manifests from the protocol, one line each.
        notes (`list[str]`): Further remarks.
        labels (`list[str]`): Labels of the rows in the order of the classes; empty if rows have neither `label` nor
            `labels`.
        follow_links (`bool`, *optional*, defaults to `False`): Whether links out of `video_root` were followed.
        index_dir (`Path`, *optional*): Folder of the frame indices, if not the one in the user's cache.
        pose_root (`Path`, *optional*): Folder of the poses or features.
        frame_videos (`dict[str, Any]`, *optional*): How videos were made of folders of images, if they were.
    """

    folder: Path
    video_root: Path | None
    protocol: str
    splits: dict[str, PreparedSplit]
    sources: dict[str, str]
    validation_split: dict[str, int] | None
    deviations: list[str]
    notes: list[str]
    labels: list[str] = field(default_factory=list)
    follow_links: bool = False
    index_dir: Path | None = None
    pose_root: Path | None = None
    frame_videos: dict[str, Any] | None = None

    @property
    def flags(self) -> str:
        """Flags to pass to the commands that use the manifests, quoted for a shell."""
        flags = [] if self.video_root is None else ["--video_root", str(self.video_root)]
        flags += [] if self.pose_root is None else ["--pose_root", str(self.pose_root)]
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
            **({"labels": self.labels} if self.labels else {}),
            **({"frame_videos": self.frame_videos} if self.frame_videos else {}),
        }

    def to_text(self) -> str:
        """Return the report as text: sizes next to the protocol's, then notes and deviations."""
        protocol = get_protocol(self.protocol)
        lines = [f"{self.protocol}: manifests are in {self.folder}"]
        for name, split in self.splits.items():
            expected = protocol.sizes.get(name)
            listed = f"listed: {in_words(split.listed, protocol)}"
            if self.validation_split is not None and name == "train":
                listed += ", including {num_clips} clips set aside for validation".format_map(self.validation_split)
            elif self.validation_split is not None and name == "validation":
                listed = "set aside: {num_clips} clips of the training list, chosen with seed {seed}".format_map(
                    self.validation_split
                )
            lines.append(
                f"{name + ':':12}{split.num_rows} rows, "
                f"{in_words(SplitSize(len(split.clips), split.num_texts), protocol)}; {listed}; protocol: "
                + (in_words(expected, protocol) if expected else "no size given")
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
            if self.labels:
                files += f" --labels_file {shlex.quote(str(self.folder / LABELS_FILE))}"
            if self.pose_root is not None:
                files += f" --modalities {'video ' * (self.video_root is not None)}pose"
            lines.append(
                f"Train: python train.py --task {protocol.task} --model_name_or_path BASE {files} {flags} "
                "--output_dir MODEL"
            )
        if "test" in usable:
            lines.append(f"Test:  simple-multimodal infer MODEL {folder} {flags} --output_dir RESULTS")
        if {"train", "test"} & {*usable}:
            lines.append("BASE is the model to fine-tune; MODEL and RESULTS are folders to write")
        return "\n".join(lines)


def texts_of(protocol: Protocol) -> str:
    """Return what the texts of a protocol are called."""
    return {
        "question_answering": "questions",
        "video_classification": "scripts",
        "translation": "sentences",
    }.get(protocol.task, "captions")


def in_words(size: SplitSize, protocol: Protocol) -> str:
    has_texts = size.texts > 0 or protocol.task != "video_classification"
    return f"{size.clips} clips" + (f", {size.texts} {texts_of(protocol)}" if has_texts else "")
