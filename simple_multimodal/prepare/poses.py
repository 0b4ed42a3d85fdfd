"""Estimate poses of a manifest's clips: frames go to an estimator in an environment of its own, points come back."""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self, cast

import av
import numpy as np
from tqdm import tqdm

from simple_multimodal.cores import available_cores
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.media import FrameIndex, MediaError, with_index, write_pose
from simple_multimodal.media.container import decode_frames, open_media, open_video_stream
from simple_multimodal.media.conversion import FrameConverter
from simple_multimodal.media.errors import UnsoundIndexError
from simple_multimodal.media.index_cache import content_hash
from simple_multimodal.media.pose import MAX_RATE, MIN_RATE, NUM_DIMS, PoseComponent
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.progress import can_show_bars

FOLDER = Path(__file__).parent / "estimators"
ESTIMATORS = {"mediapipe": FOLDER / "mediapipe_holistic.py"}
"""File of each estimator that belongs to the package. Others are given as files."""

SETUP = "run_scripts/setup_pose.sh"
DEFAULT_PYTHON = Path(__file__).parents[2] / ".venv-pose/bin/python"
"""Python of the environment that the script `SETUP` makes."""

MAX_REPEATS = 4
"""Limit on the length of a pose, in times the frames of its clip. Clips that would need more, because most of their
frames are close together and others are not, get their average rate.
"""

ROW_COLUMNS = {"index", "epoch", "audio_from_video", "video", "audio", "text", "pose", "captions"}
"""Entries of a row that the new manifest omits or takes from the old one as they are there."""


@dataclass
class PoseReport:
    """The result of [`estimate_poses`].

    Args:
        manifest (`Path`): The new manifest.
        num_rows (`int`): Number of its rows.
        num_files (`int`): Number of pose files in it.
        num_written (`int`): Number of these files that were written in this call; the others already existed.
        without_person (`list[str]`): Clips in which no person was found; all points of their poses are missing.
        errors (`list[str]`): One line for each clip, or file of a row, that cannot be read or estimated; its rows are
            left out.
        roots (`dict[str, Path]`): Folders of the other files that the new manifest names, by column.
    """

    manifest: Path
    num_rows: int
    num_files: int
    num_written: int
    without_person: list[str]
    errors: list[str]
    roots: dict[str, Path]

    def to_text(self) -> str:
        """Return the report as text."""
        lines = [
            f"{self.manifest}: {self.num_rows} rows, {self.num_files} poses ({self.num_written} of them new)",
            *(
                f"warning: {path!r}: no person was found; all of its points are missing"
                for path in self.without_person
            ),
            *(f"left out: {error}" for error in self.errors),
        ]
        return "\n".join(lines)


def estimate_poses(
    manifest: str | Path,
    output_dir: str | Path,
    *,
    estimator: str | Path,
    python: str | Path | None = None,
    video_root: str | Path | None = None,
    audio_root: str | Path | None = None,
    text_root: str | Path | None = None,
    pose_root: str | Path | None = None,
    follow_links: bool = False,
    index_dir: str | Path | None = None,
    num_processes: int | None = None,
) -> PoseReport:
    """
    Estimate the poses of all videos of a manifest, and write a manifest of the same name with a column `pose`.

    The pose of `NAME.mp4` is `NAME.pose` in the output folder; `NAME.pose.json` says how it was made. Every clip has
    an estimator process of its own, so that its pose does not depend on other clips. Poses that were made in the same
    way of the same file are kept.

    Args:
        manifest (`str` or `Path`): The manifest.
        output_dir (`str` or `Path`): Folder of the poses; several manifests may share it.
        estimator (`str` or `Path`): Name of an estimator in `ESTIMATORS`, or a Python file with a class `Estimator`.
        python (`str` or `Path`, *optional*): Python of the estimator's environment; by default that of `.venv-pose`.
        video_root, audio_root, text_root, pose_root (`str` or `Path`, *optional*), follow_links (`bool`, *optional*):
            Folders of the manifest's columns, and whether links may lead out of them, as in [`RowDataset`].
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices, see `index_video`.
        num_processes (`int`, *optional*): Number of clips to estimate at the same time; by default one per core.

    Returns:
        `PoseReport`: The result. A clip that cannot be read or estimated costs only its rows.

    Raises:
        ValueError: The manifest is invalid, has poses already, has no videos, **or** would be overwritten; two clips
            would have the same pose file; **or** the estimator does not run.
    """
    folder = Path(output_dir)
    roots = {"video": video_root, "audio": audio_root, "text": text_root, "pose": pose_root}
    table = RowDataset.from_manifest(manifest, roots=roots, modalities=None, follow_links=follow_links)
    table.check_links()
    if any(table.column("pose")):
        raise InputError(f"{manifest}: has poses already, in the column 'pose'. Remove the column to estimate others.")
    if not any(table.column("video")):
        raise InputError(f"{manifest}: has no videos, in the column 'video', to estimate poses of.")
    new_manifest = folder / f"{Path(manifest).stem}.jsonl"
    if new_manifest.exists() and new_manifest.samefile(manifest):
        raise InputError(f"{new_manifest} is the manifest itself; choose another folder")
    maker = _Maker(estimator, python, folder, index_dir)
    errors: list[str] = []
    rows: list[Row] = []
    for number in range(len(table)):
        try:
            rows.append(table[number])
        except MediaError as error:
            errors.append(str(error))
    clips = {row["video"]: table.relative_path(row, "video") for row in rows if row["video"] is not None}
    _check_names(clips.values())
    folder.mkdir(parents=True, exist_ok=True)

    def make(path: str) -> tuple[bool, bool] | MediaError:
        try:
            return maker.make(path, clips[path])
        except MediaError as error:
            return error

    with ThreadPoolExecutor(num_processes or available_cores()) as pool:
        try:
            bar = tqdm(pool.map(make, clips), total=len(clips), unit="clip", disable=not can_show_bars())
            made = dict(zip(clips, bar, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else all clips would be estimated before it is raised
            raise
    failed = {path: result for path, result in made.items() if isinstance(result, MediaError)}
    good = {path: result for path, result in made.items() if not isinstance(result, MediaError)}
    kept = [row for row in rows if row["video"] not in failed]
    cells = {name: table.column(name) for name in ("video", "audio", "text") if name in table.columns}
    lines = [_new_row(row, {name: column[row["index"]] for name, column in cells.items()}, clips) for row in kept]
    with write_atomically(new_manifest) as temporary:
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
    return PoseReport(
        manifest=new_manifest,
        num_rows=len(lines),
        num_files=len(good),
        num_written=sum(is_new for is_new, _ in good.values()),
        without_person=[path for path, (_, has_person) in good.items() if not has_person],
        errors=[*errors, *map(str, failed.values())],
        roots={name: Path(roots[name] or Path(manifest).parent) for name, column in cells.items() if any(column)},
    )


def _new_row(row: Row, cells: Mapping[str, Any], clips: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of the new manifest: files as the old one names them, inline captions, and the pose."""
    kept = {key: value for key, value in row.items() if key not in ROW_COLUMNS and value is not None}
    files = {name: cell or "" for name, cell in cells.items()}
    text = {} if files.get("text") else {"captions": row["captions"]}
    return {**kept, **files, **text, "pose": "" if row["video"] is None else _pose_name(clips[row["video"]])}


def _pose_name(clip: str) -> str:
    """Return the name of the pose of a clip, whose path is relative to the root of the videos."""
    return PurePosixPath(clip).with_suffix(".pose").as_posix()


def _check_names(clips: Iterable[str]) -> None:
    """Raise a `ValueError` if two clips would have the same pose file."""
    owners: dict[str, str] = {}
    for clip in clips:
        other = owners.setdefault(_pose_name(clip), clip)
        if other != clip:
            raise InputError(
                f"{other!r} and {clip!r} would both have the pose {_pose_name(clip)!r}; rename one of them."
            )


class _Maker:
    """
    Makes pose files with an estimator.

    Args:
        estimator (`str` or `Path`): Name of an estimator, or its file.
        python (`str` or `Path`, *optional*): Python of its environment.
        folder (`Path`): Folder of the poses.
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices.

    Raises:
        ValueError: There is no such estimator or environment, **or** it does not run there.
    """

    def __init__(
        self, estimator: str | Path, python: str | Path | None, folder: Path, index_dir: str | Path | None
    ) -> None:
        self.folder, self.index_dir = folder, index_dir
        self.file = ESTIMATORS.get(str(estimator), Path(estimator))
        if not self.file.is_file():
            raise InputError(
                f"`estimator` {str(estimator)!r} is not one of {', '.join(ESTIMATORS)}, and not a Python file."
            )
        self.python = Path(python or DEFAULT_PYTHON)
        remedy = f"run `bash {SETUP}`, or name the Python of an environment that has the estimator as `python`"
        if not self.python.is_file():
            raise InputError(f"{self.python} does not exist; {remedy}.")
        try:
            with _Process(self.python, self.file) as process:
                description = process.reply()
        except (_EstimatorError, OSError) as error:
            raise InputError(f"{self.python} cannot run the estimator {self.file}: {error}; {remedy}.") from error
        try:
            self.components = [_component(**values) for values in description["components"]]
            self.num_dims = max(NUM_DIMS[component.format] for component in self.components)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.file}: its components are not as docs/poses.md describes them: {error}"
            ) from error
        self.made_with = {
            "estimator": str(estimator) if str(estimator) in ESTIMATORS else self.file.name,
            "estimator_sha256": hashlib.sha256(self.file.read_bytes()).hexdigest(),
            "settings": description["settings"],
            "versions": description["versions"],
        }

    def make(self, path: str, clip: str) -> tuple[bool, bool]:
        """
        Make the pose of a clip, unless it exists; return whether it was made, and whether it has a person.

        Args:
            path (`str`): The file of the clip.
            clip (`str`): Its path relative to the root of the videos.

        Raises:
            MediaError: The clip cannot be read or estimated, or its pose file is that of another clip.
        """
        target = self.folder / _pose_name(clip)
        sidecar = Path(f"{target}.json")
        made_of = {"clip": clip, "clip_sha256": content_hash(path), **self.made_with}
        facts = _read_facts(sidecar)
        if facts.get("clip", clip) != clip:
            raise MediaError(f"{path!r}: {str(target)!r} is the pose of {facts['clip']!r}; use another folder")
        is_new = not target.is_file() or any(facts.get(name) != value for name, value in made_of.items())
        if is_new:
            target.parent.mkdir(parents=True, exist_ok=True)
            sidecar.unlink(missing_ok=True)  # the pose is finished when it has one
            found = with_index(path, lambda index: self._estimate(path, index, target), index_dir=self.index_dir)
            facts = {**made_of, "decoder": f"pyav {av.__version__}", **found}
            with write_atomically(sidecar) as temporary:
                temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return is_new, facts["num_clip_frames_with_person"] > 0

    def _estimate(self, path: str, index: FrameIndex, target: Path) -> dict[str, Any]:
        """Estimate a clip and write its pose; return facts about it."""
        rate, positions = regular_positions(index)
        try:
            with _Process(self.python, self.file) as process:
                process.reply()
                points, confidence = process.estimate(index, _frames(path, index))
        except _EstimatorError as error:
            raise MediaError(f"{path!r}: its poses cannot be estimated: {error}") from error
        num_points = sum(len(component.points) for component in self.components)
        if points.ndim != 4 or (len(points), *points.shape[2:]) != (index.num_frames, num_points, self.num_dims):
            raise MediaError(
                f"{path!r}: the estimator returned points of shape {points.shape}, but the shape must be (frames, "
                f"people, points, dims), with {index.num_frames} frames, {num_points} points and {self.num_dims} dims"
            )
        if points.shape[1] == 0:
            raise MediaError(f"{path!r}: the estimator returned no people; it must return one with confidence 0")
        points[confidence == 0] = 0
        if not (np.isfinite(points).all() and np.isfinite(confidence).all()):
            raise MediaError(f"{path!r}: the estimator returned points that are infinite or not a number")
        write_pose(
            target,
            points[positions],
            confidence[positions],
            components=self.components,
            rate=rate,
            width=index.width,
            height=index.height,
        )
        return {
            "width": index.width,
            "height": index.height,
            "rate": rate,
            "num_frames": len(positions),
            "num_clip_frames": index.num_frames,
            "num_clip_frames_used": len(np.unique(positions)),
            "num_clip_frames_with_person": int((confidence > 0).any(axis=(1, 2)).sum()),
        }


def _read_facts(sidecar: Path) -> dict[str, Any]:
    """Return what a sidecar says; nothing if there is none that can be read."""
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def regular_positions(index: FrameIndex) -> tuple[float, np.ndarray]:
    """
    Choose a constant rate, which pose files have, and the frame of the clip that is on screen at each of its moments.

    Most clips have a constant rate: each frame is used once. If frames are missing, the ones before fill the gaps.

    Args:
        index (`FrameIndex`): The frames of the clip.

    Returns:
        `tuple[float, np.ndarray]`: Frames per second, and frame numbers, `int64`, ascending. A pose at position `i`
        begins at `i / rate` seconds.

    Raises:
        MediaError: The rate is not one that a pose file can have.
    """
    steps, seconds = np.diff(index.seconds), float(index.seconds[-1])
    num_steps = len(steps)
    if num_steps == 0:
        num_steps, seconds = 1, index.duration_seconds
    elif (usual := float(np.quantile(steps, 0.5, method="lower"))) * num_steps * MAX_REPEATS > seconds:
        num_steps = int(np.rint(steps / usual).sum())  # counts missing frames, too; times may be rounded
    if not MIN_RATE * seconds <= num_steps <= MAX_RATE * seconds:
        raise MediaError(
            f"{index.path!r}: has {index.num_frames} frames in {index.duration_seconds:g} s, but a pose file has "
            f"{MIN_RATE:g} to {MAX_RATE:g} frames per second"
        )
    rate = num_steps / seconds
    moments = np.rint(index.seconds * rate)
    return rate, np.searchsorted(moments, np.arange(moments[-1] + 1), side="right") - 1


def _frames(path: str, index: FrameIndex) -> Iterator[np.ndarray]:
    """Yield all frames of a clip, RGB, `uint8` of shape `(3, height, width)`; the array is used again."""
    convert = FrameConverter((index.height, index.width), index.display_matrix, scales=False)
    planes = np.empty((3, index.height, index.width), dtype=np.uint8)
    number = 0
    with open_media(path) as source:
        for frame in decode_frames(source, open_video_stream(source, index.stream, path)):
            convert(frame, planes)
            number += 1
            if number <= index.num_frames:
                yield planes
    if number != index.num_frames:
        problem = f"{path!r}: yields {number} frames, although {index.num_frames} were indexed"
        raise MediaError(f"{problem}; did the file change?") if index.table is None else UnsoundIndexError(problem)


def _component(name: str, format: str, points: list[str], limbs: list[list[int]]) -> PoseComponent:
    """Check and convert a component, as estimators describe it."""
    if format not in NUM_DIMS or not points:
        raise ValueError(f"{name!r} needs points, and {' or '.join(NUM_DIMS)} as its format")
    pairs = np.array(limbs, dtype=np.uint16).reshape(-1, 2)
    return PoseComponent(str(name), format, tuple(map(str, points)), pairs)


class _EstimatorError(Exception):
    """An estimator failed; the message is the reason."""


class _Process:
    """An estimator in a process of its own, which ends with the context. See `estimators/runner.py`."""

    def __init__(self, python: Path, file: Path):
        self.log = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
        command = [os.fspath(python), "-E", os.fspath(FOLDER / "runner.py"), os.fspath(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)
        self.input, self.output = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            self.input.close()  # the process ends by itself, unless it is busy
        self.output.close()
        if kind is not None:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def estimate(self, index: FrameIndex, frames: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Send the frames of a clip, `(3, height, width)`; return points and confidences."""
        request = {"num_frames": index.num_frames, "height": index.height, "width": index.width}
        with suppress(BrokenPipeError):  # the reply says why
            self.input.write(json.dumps(request).encode() + b"\n")
            for frame in frames:
                self.input.write(frame.transpose(1, 2, 0).tobytes())
            self.input.flush()
        shape = self.reply()["shape"]
        return self._read(shape), self._read(shape[:-1])

    def reply(self) -> dict[str, Any]:
        """Read a line of JSON."""
        line = self.output.readline()
        if not line.endswith(b"\n"):
            raise _EstimatorError(self._reason())
        reply = json.loads(line)
        if "error" in reply:
            raise _EstimatorError(reply["error"])
        return reply

    def _read(self, shape: list[int]) -> np.ndarray:
        numbers = np.frombuffer(bytearray(self.output.read(4 * int(np.prod(shape)))), dtype="<f4")
        if numbers.size < np.prod(shape):
            raise _EstimatorError(self._reason())
        return numbers.reshape(shape)

    def _reason(self) -> str:
        """Return how the process ended, with the last line that it wrote."""
        code = self.process.wait()
        self.log.seek(0)
        written = self.log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(written) if line.strip()), "")
        ended = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        return f"{ended}: {last}" if last else ended
