"""Choose the files of a benchmark's clips in the folders of videos and of poses, and check what they hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simple_multimodal.data.fields import read_path
from simple_multimodal.errors import InputError
from simple_multimodal.media import MediaError
from simple_multimodal.media.frame_features import is_feature_file, read_feature_header
from simple_multimodal.media.pose import MILLISECONDS_RATIO, read_pose_header
from simple_multimodal.prepare.annotations import some
from simple_multimodal.prepare.benchmarks import Annotations
from simple_multimodal.prepare.check import FileReport, examine_files
from simple_multimodal.prepare.clip_files import CLIP_SUFFIXES, POSE_SUFFIXES, choose_files
from simple_multimodal.prepare.frame_folders import VIDEOS_FOLDER, find_frame_folders, make_videos, video_settings

SUFFIXES = {"pose": POSE_SUFFIXES, "video": CLIP_SUFFIXES}
"""Suffixes of the files in each column, in the order of the columns."""

MAX_FRAMES = 300
"""Number of frames above which multimodalhugs leaves out rows in training and validation."""


@dataclass
class ClipFiles:
    """
    The files of clips.

    Args:
        roots (`dict[str, Path]`): Folder of each column.
        cells (`dict[str, dict[str, str]]`): Cells of each clip that has a file in every column, by column.
        notes (`list[str]`): Remarks about the folders and files, one line each.
        reports (`dict[str, FileReport]`): What is known about the file of a clip; empty unless files were opened.
        frame_videos (`dict`, *optional*): How videos were made of folders of images, if they were.
    """

    roots: dict[str, Path]
    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reports: dict[str, FileReport] = field(default_factory=dict)
    frame_videos: dict[str, Any] | None = None


def collect_files(
    folders: Mapping[str, Path],
    clips: Sequence[str],
    found: Annotations,
    output_dir: Path,
    *,
    opens_files: bool = False,
    follow_links: bool = False,
    index_dir: str | Path | None = None,
    num_threads: int | None = None,
) -> ClipFiles:
    """
    Find a file for each clip in each folder; make videos of clips that are folders of images.

    Args:
        folders (`Mapping[str, Path]`): Folder of each column, of `pose` and `video`.
        clips (`Sequence[str]`): Names of the clips.
        found ([`Annotations`]): The annotations.
        output_dir (`Path`): Folder of the manifests, next to which videos are written.
        opens_files (`bool`, *optional*, defaults to `False`): Whether to open every file, and leave out clips with
            unreadable ones.
        follow_links (`bool`, *optional*), index_dir (`str` or `Path`, *optional*), num_threads (`int`, *optional*):
            See [`prepare_benchmark`].
    """
    files = ClipFiles(dict(folders))
    own: dict[str, dict[str, str]] = {}  # file of each clip by column
    named = {row["clip"]: row["file"] for rows in found.rows.values() for row in rows if "file" in row}
    for column, folder in folders.items():
        others = [file for file in named.values() if Path(file).suffix.lower() not in SUFFIXES[column]]
        if others:
            raise InputError(
                f"{others[0]!r}, which the annotations name, is not a file of `{column}s`. Give the folder of videos "
                "as `videos`, and that of poses or features as `poses`."
            )
        images: dict[str, list[Path]] = {}
        if column == "video" and found.frame_rate is not None:
            images = find_frame_folders(folder, {*clips}, follow_links=follow_links)
        if images and found.frame_rate is not None:
            files.roots[column] = output_dir / VIDEOS_FOLDER
            files.frame_videos = video_settings(found.frame_rate)
            first = {clip: paths[0] for clip, paths in images.items()}
            made = make_videos(first, files.roots[column], rate=found.frame_rate, num_threads=num_threads)
            own[column] = made.files
            files.notes.append(
                f"videos of {len(own[column])} folders of images, {found.frame_rate:g} frames per second, are in "
                f"{files.roots[column]}"
            )
            files.notes += [f"unreadable: {error}" for error in made.errors]
            if made.with_gaps:
                files.notes.append(
                    f"{len(made.with_gaps)} clips lack images between their first and last: {some(made.with_gaps, 3)}"
                )
            if several := [clip for clip, paths in images.items() if len(paths) > 1]:
                files.notes.append(
                    f"{len(several)} clips have several folders of images; the first is used: {some(several, 3)}"
                )
        else:
            own[column], notes = choose_files(
                folder,
                {*clips},
                by_path=found.by_path,
                follow_links=follow_links,
                suffixes=SUFFIXES[column],
                named=named,
            )
            files.notes += notes
        if opens_files:
            paths = [str(files.roots[column] / file) for file in own[column].values()]
            examine = _examine_poses if column == "pose" else examine_files
            reports = examine(paths, index_dir=index_dir, num_threads=num_threads)
            for clip, report in zip(list(own[column]), reports, strict=True):
                if clip not in files.reports or not files.reports[clip].duration_seconds:
                    files.reports[clip] = report
                if report.error:
                    files.notes.append(f"unreadable: {report.error}")
                    del own[column][clip]
    for clip in clips:
        if all(clip in of_column for of_column in own.values()):
            files.cells[clip] = {column: _cell(of_column[clip], column) for column, of_column in own.items()}
    return files


def _cell(file: str, column: str) -> str:
    """Return the path of a file as manifests have it: `Re:Zero/1.mp4` would be taken for a URL."""
    try:
        read_path(file, column)
    except InputError:
        return f"./{file}"
    return file


def _examine_poses(paths: Sequence[str], **_: object) -> list[FileReport]:
    """Return a report of each file of poses or features, from its header."""
    reports = []
    for path in paths:
        report = FileReport(path)
        try:
            if is_feature_file(path):  # its rate is not in the file
                report.num_frames = read_feature_header(path, rate=1.0).num_frames
            else:
                header = read_pose_header(path)
                report.num_frames, report.duration_seconds = header.num_frames, header.duration_seconds
        except (MediaError, OSError) as error:
            report.error = str(error)
        reports.append(report)
    return reports


def check_segments(split: str, rows: Sequence[Mapping[str, Any]], reports: Mapping[str, FileReport]) -> Iterator[str]:
    """
    Yield deviations of segments from their clips, whose files were opened.

    Raises:
        ValueError: If a segment is so much longer than its clip that times must be in another unit.
    """
    late = []
    for row in rows:
        report = reports.get(row["clip"])
        if report is None or report.error or report.duration_seconds == 0:
            continue
        start, end = row.get("start_seconds", 0.0), row.get("end_seconds", 0.0)
        if end > MILLISECONDS_RATIO * report.duration_seconds:
            raise InputError(
                f"{row['id']}: the segment ends at {end:g} s, but its clip at {report.duration_seconds:.3f} s. Times "
                "seem to be in another unit; correct the annotations, or set `signal_start_end_unit`."
            )
        if start > 0 and start >= report.duration_seconds:
            late.append(row["id"])
    if late:
        yield f"{split}: {len(late)} segments start after the end of their clip, and cannot be read: {some(late)}"


def count_long(split: str, rows: Sequence[Mapping[str, Any]], reports: Mapping[str, FileReport]) -> list[str]:
    """Return a note about the rows that multimodalhugs would leave out for their number of frames."""
    long = [
        row["id"]
        for row in rows
        if "file" in row and row["clip"] in reports and _num_frames(row, reports[row["clip"]]) > MAX_FRAMES
    ]
    if not long or split == "test":
        return []
    return [
        f"{split}: {len(long)} rows have more than {MAX_FRAMES} frames; multimodalhugs leaves them out by default, "
        f"here they are kept: {some(long)}"
    ]


def _num_frames(row: Mapping[str, Any], report: FileReport) -> float:
    if not report.duration_seconds:
        return report.num_frames
    end = min(row.get("end_seconds", report.duration_seconds), report.duration_seconds)
    return (end - row.get("start_seconds", 0.0)) * report.num_frames / report.duration_seconds
