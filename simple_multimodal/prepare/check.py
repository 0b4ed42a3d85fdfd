"""Index the media files and poses of manifests and report problems."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from simple_multimodal.cores import available_cores
from simple_multimodal.data.records import read_columns
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.media import MediaError, index_video
from simple_multimodal.media.container import decode_audio, open_audio_stream, open_media
from simple_multimodal.media.frame_features import FeatureHeader, read_frame_features, read_header
from simple_multimodal.media.index_cache import content_hash, index_cache
from simple_multimodal.media.pose import PoseHeader, read_pose, segment_frames
from simple_multimodal.processing import PoseProcessor
from simple_multimodal.processing.pose_layouts import select_points
from simple_multimodal.progress import can_show_bars


@dataclass
class FileReport:
    """The facts about a media file.

    Args:
        path (`str`): The file.
        streams (`str`): Its streams, for example `"h264 480x360, aac 44100 Hz"`.
        num_frames (`int`): Number of frames that it yields; 0 without video.
        num_promised (`int`): Number of frames that its header promises; 0 if unknown.
        duration_seconds (`float`): Time from the first frame to the end of the last one; 0 without video.
        is_sparse (`bool`): Whether single frames can be read without decoding from the start.
        content (`str`): Hash of size, head and tail, equal for identical files.
        error (`str`): Reason why it cannot be read; empty if it can.
        is_pose (`bool`): Whether it is a pose, or features of its frames, instead of media.
        warning (`str`): What is unusual about it; empty if nothing is.
    """

    path: str
    streams: str = ""
    num_frames: int = 0
    num_promised: int = 0
    duration_seconds: float = 0.0
    is_sparse: bool = False
    content: str = ""
    error: str = ""
    is_pose: bool = False
    warning: str = ""


@dataclass
class ManifestReport:
    """The findings of [`check_manifests`].

    Args:
        num_rows (`dict[str, int]`): Number of rows of each manifest.
        columns (`dict[str, list[str]]`): Columns of each manifest.
        files (`list[FileReport]`): Report of each media file, in the order of the manifests.
        shared (`dict[str, list[str]]`): For each pair of manifests, files of the first whose content is also in the
            second.
    """

    num_rows: dict[str, int]
    columns: dict[str, list[str]]
    files: list[FileReport]
    shared: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unreadable(self) -> list[FileReport]:
        """The files that cannot be read."""
        return [file for file in self.files if file.error]

    @property
    def short(self) -> list[FileReport]:
        """The files that yield fewer frames than they promise."""
        return [file for file in self.files if file.num_frames < file.num_promised and not file.error]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the report as text: totals, then every file with a problem."""
        readable = [file for file in self.files if not file.error]
        poses, media = ([file for file in readable if file.is_pose == is_pose] for is_pose in (True, False))
        hours = sum(file.duration_seconds for file in media) / 3600
        lines = [f"{name}: {count} rows; {self._columns_of(name)}" for name, count in self.num_rows.items()]
        lines.append(
            f"{len(self.files)} files, {len(self.unreadable)} unreadable; {hours:.2f} hours of video, "
            f"{sum(file.num_frames for file in media)} frames"
        )
        if poses:
            hours, frames = sum(file.duration_seconds for file in poses) / 3600, sum(file.num_frames for file in poses)
            lines.append(f"{len(poses)} of the files are poses; {hours:.2f} hours, {frames} frames")
        if slow := sum(file.num_frames > 0 and not file.is_sparse for file in media):
            lines.append(f"slow: {slow} files are decoded from their start, because they have no usable keyframes")
        lines += [f"unreadable: {file.error}" for file in self.unreadable]
        lines += [f"warning: {file.warning}" for file in self.files if file.warning]
        lines += [
            f"short: {file.path!r}: yields {file.num_frames} of the {file.num_promised} frames that it promises"
            for file in self.short
        ]
        lines += [
            f"shared: {len(paths)} files are in both {pair}: {', '.join(paths[:5])}{' ...' * (len(paths) > 5)}"
            for pair, paths in self.shared.items()
        ]
        return "\n".join(lines)

    def _columns_of(self, name: str) -> str:
        """Return the columns of a manifest as text."""
        known = read_columns()
        read, further = ([c for c in self.columns[name] if (c in known) == is_read] for is_read in (True, False))
        return f"columns: {', '.join(read)}" + (f"; only passed on to tasks: {', '.join(further)}" if further else "")


def check_manifests(
    manifests: Sequence[str | Path],
    *,
    video_root: str | Path | None = None,
    audio_root: str | Path | None = None,
    text_root: str | Path | None = None,
    pose_root: str | Path | None = None,
    follow_links: bool = False,
    index_dir: str | Path | None = None,
    decodes: bool = False,
    num_threads: int | None = None,
) -> ManifestReport:
    """
    Index every video of manifests, open every audio file, and read the header of every pose, in parallel and with a
    progress bar.

    Args:
        manifests (`Sequence[str | Path]`): The manifests.
        video_root, audio_root, text_root, pose_root (`str` or `Path`, *optional*), follow_links (`bool`, *optional*):
            Folders of their columns, and whether links may lead out of them, as in [`RowDataset`].
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices, see `index_video`.
        decodes (`bool`, *optional*, defaults to `False`): Whether to decode every frame and all audio, instead of
            trusting packets that look valid, and to read all points of poses.
        num_threads (`int`, *optional*): Number of files to read at the same time; by default one per core.

    Returns:
        `ManifestReport`: The findings; a file that cannot be read raises no exception but is reported.

    Raises:
        ValueError: A manifest is invalid, see [`RowDataset`].
    """
    tables = {
        str(name): RowDataset.from_manifest(
            name,
            roots={"video": video_root, "audio": audio_root, "text": text_root, "pose": pose_root},
            modalities=None,
            follow_links=follow_links,
        )
        for name in manifests
    }
    for table in tables.values():
        table.check_links()
    absent: list[FileReport] = []
    paths_of = {name: dict(_files_of(table, absent)) for name, table in tables.items()}
    paths = {path: is_pose for paths in paths_of.values() for path, is_pose in paths.items()}
    poses = [path for path, is_pose in paths.items() if is_pose]
    files = examine_files(list(paths), poses=poses, index_dir=index_dir, decodes=decodes, num_threads=num_threads)
    contents = {file.path: file.content for file in files}
    names_of: dict[str, set[str]] = defaultdict(set)  # manifests by content
    for name, own in paths_of.items():
        for path in own:
            names_of[contents[path]].add(name)
    shared: dict[str, list[str]] = defaultdict(list)
    names = list(tables)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            both = [path for path in paths_of[first] if contents[path] and second in names_of[contents[path]]]
            if both:
                shared[f"{first} and {second}"] = both
    return ManifestReport(
        num_rows={name: len(table) for name, table in tables.items()},
        columns={name: list(table.columns) for name, table in tables.items()},
        files=[*files, *absent],
        shared=dict(shared),
    )


def examine_files(
    paths: Sequence[str],
    *,
    poses: Collection[str] = (),
    index_dir: str | Path | None = None,
    decodes: bool = False,
    num_threads: int | None = None,
) -> list[FileReport]:
    """
    Index media files in parallel, with a progress bar.

    Args:
        paths (`Sequence[str]`): The files.
        poses (`Collection[str]`, *optional*): Those of them that are poses.
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices.
        decodes (`bool`, *optional*, defaults to `False`): Whether to decode the files completely.
        num_threads (`int`, *optional*): Number of files to read at the same time; by default one per core.

    Returns:
        `list[FileReport]`: The report of each file, in the order of `paths`.
    """

    are_poses = frozenset(poses)

    def examine(path: str) -> FileReport:
        if path in are_poses:
            return examine_pose(path, decodes=decodes)
        return examine_file(path, index_dir=index_dir, decodes=decodes)

    with ThreadPoolExecutor(num_threads or available_cores()) as pool:
        return list(
            tqdm(pool.map(examine, paths), total=len(paths), desc="Indexing", unit="file", disable=not can_show_bars())
        )


def examine_file(path: str, *, index_dir: str | Path | None = None, decodes: bool = False) -> FileReport:
    """
    Index a media file, or report why that is not possible.

    Args:
        path (`str`): The file.
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices.
        decodes (`bool`, *optional*, defaults to `False`): Whether to decode the file completely.

    Returns:
        `FileReport`: The report.
    """
    report = FileReport(path)
    try:
        report.content = content_hash(path)
        tracks = index_cache.tracks(path, index_dir)
        video, audio = tracks.video, tracks.audio
        found = []
        if video is not None:
            found.append(f"{video.codec} {video.width}x{video.height}")
        if audio is not None:
            found.append(f"{audio.codec} {audio.sampling_rate} Hz" if audio.sampling_rate else audio.codec)
        report.streams = ", ".join(found)
        if not found:
            raise MediaError(f"{path!r}: has neither video nor audio that can be decoded")
        if video is not None:
            index = index_cache.verify(path, index_dir) if decodes else index_video(path, index_dir=index_dir)
            report.num_frames, report.num_promised = index.num_frames, index.num_promised
            report.duration_seconds, report.is_sparse = index.duration_seconds, index.table is not None
        if audio is not None and decodes:
            with open_media(path, probe=audio.probe) as container:
                frames = decode_audio(container, open_audio_stream(container, audio.stream, path))
                if sum(frame.samples for _, frame in frames) == 0 and video is None:
                    raise MediaError(f"{path!r}: its audio track has no samples")
    except (MediaError, OSError) as error:
        report.error = str(error)
    return report


def examine_pose(path: str, *, decodes: bool = False) -> FileReport:
    """
    Read the header of a pose file, or of features (`.npy`), or report why that is not possible.

    Args:
        path (`str`): The file.
        decodes (`bool`, *optional*, defaults to `False`): Whether to read the points, too.

    Returns:
        `FileReport`: The report; the times of features assume the default rate.
    """
    report = FileReport(path, is_pose=True)
    features_rate = PoseProcessor().features_rate
    try:
        report.content = content_hash(path)
        header = read_header(path, features_rate)
        report.streams, report.is_sparse = header.content, True
        report.num_frames = report.num_promised = header.num_frames
        report.duration_seconds = header.duration_seconds
        if header.num_trailing_bytes:
            report.warning = f"{path!r}: {header.num_trailing_bytes} bytes at its end are ignored"
        if isinstance(header, PoseHeader):
            select_points(header, reduced=False)
            try:
                select_points(header, reduced=True)
            except MediaError as error:
                report.warning = str(error)
        if decodes:
            read_frame_features(path, features_rate) if isinstance(header, FeatureHeader) else read_pose(path)
    except (MediaError, OSError) as error:
        report.error = str(error)
    return report


def _files_of(table: RowDataset, absent: list[FileReport]) -> Iterator[tuple[str, bool]]:
    """Yield every file of a manifest that exists, and whether it is a pose; add a report for rows with missing files,
    or with a segment that its pose does not have, to `absent`."""
    for number in range(len(table)):
        try:
            row = table[number]
        except MediaError as error:
            absent.append(FileReport(f"{table.manifest_file}, row {number}", error=str(error)))
            continue
        yield from ((path, False) for path in (row["video"], row["audio"]) if path is not None)
        if row["pose"] is not None:
            yield row["pose"], True
            if problem := _segment_problem(row):
                absent.append(FileReport(f"{table.manifest_file}, row {number}", error=problem))


def _segment_problem(row: Row) -> str:
    """Return what is wrong with the segment of a row with a pose; empty if nothing is, or its file cannot be read."""
    path, start, end = cast(str, row["pose"]), row["start_seconds"], row["end_seconds"]
    if start is None and end is None:
        return ""
    try:
        header = read_header(path, PoseProcessor().features_rate)
    except (MediaError, OSError):  # the report of the file says so
        return ""
    try:
        segment_frames(path, header.num_frames, header.rate, start, end)
    except MediaError as error:
        return f"row {row['index']} (id {row['id']!r}): {error}"
    return ""
