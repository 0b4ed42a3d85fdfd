"""Write a copy of a data set that is fast to read: small frames in short groups, audio at the model's rate."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from tqdm import tqdm

from simple_multimodal.cores import available_cores
from simple_multimodal.data.records import CLIP_FILES
from simple_multimodal.data.rows import Row, RowDataset, row_captions
from simple_multimodal.errors import InputError
from simple_multimodal.media import FrameIndex, MediaError, index_video, read_audio
from simple_multimodal.media.container import decode_frames, open_media, open_video_stream, tick_seconds
from simple_multimodal.media.conversion import apply_display_matrix, is_transposed
from simple_multimodal.media.errors import NoAudioError
from simple_multimodal.media.frame_features import read_header
from simple_multimodal.media.index_cache import content_hash, index_cache
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.prepare.settings import PackSettings
from simple_multimodal.processing import PoseProcessor
from simple_multimodal.progress import can_show_bars

ROW_COLUMNS = {"index", "epoch", "audio_from_video", "video", "audio", "text", "pose", "captions"}
"""Entries of a row that a packed manifest omits or replaces."""

MIN_CLOCK = 10_000  # ticks per second
AUDIO_BLOCK = 4608  # samples per FLAC frame, the maximum of its streamable subset


@dataclass
class PackReport:
    """The result of [`pack_manifest`].

    Args:
        manifest (`Path`): The new manifest.
        num_rows (`int`): Number of its rows.
        num_files (`int`): Number of media files in it.
        num_written (`int`): Number of these files that were written in this call; the others already existed.
        source_bytes, packed_bytes (`int`): Total size of the original and of the packed files.
        errors (`list[str]`): One line for each row that was dropped because one of its files cannot be read.
    """

    manifest: Path
    num_rows: int
    num_files: int
    num_written: int
    source_bytes: int
    packed_bytes: int
    errors: list[str]

    def to_text(self) -> str:
        """Return the report as text."""
        packed, source = self.packed_bytes / 1e6, self.source_bytes / 1e6
        lines = [
            f"{self.manifest}: {self.num_rows} rows, {self.num_files} files ({self.num_written} of them new), "
            f"{packed:.1f} MB, {packed / max(source, 1e-9):.2f} times the {source:.1f} MB of the originals"
        ]
        return "\n".join([*lines, *(f"left out: {error}" for error in self.errors)])


def pack_manifest(
    manifest: str | Path,
    output_dir: str | Path,
    *,
    video_root: str | Path | None = None,
    audio_root: str | Path | None = None,
    text_root: str | Path | None = None,
    pose_root: str | Path | None = None,
    follow_links: bool = False,
    index_dir: str | Path | None = None,
    settings: PackSettings | None = None,
    num_threads: int | None = None,
) -> PackReport:
    """
    Pack the media of a manifest, and write a manifest of the same name for them.

    The copy has every frame of the original at its time, upright, and the audio from the first frame on, so frame
    sampling, jitter and segments work as with the original. It consists of ordinary MP4 (H.264, FLAC) and FLAC files,
    in folders named after the first two digits of the file names, which are hashes of content and settings: identical
    files are stored once, and existing files are kept. Poses are copied as they are. `checksums.sha256` is for
    `sha256sum -c`.

    Args:
        manifest (`str` or `Path`): The manifest.
        output_dir (`str` or `Path`): Folder of the copy; several manifests may share it.
        video_root, audio_root, text_root, pose_root (`str` or `Path`, *optional*), follow_links (`bool`, *optional*):
            Folders of the manifest's columns, and whether links may lead out of them, as in [`RowDataset`].
        index_dir (`str` or `Path`, *optional*): Folder of stored frame indices, see `index_video`.
        settings ([`PackSettings`], *optional*): Settings for packing files.
        num_threads (`int`, *optional*): Number of files to pack at the same time; by default one per core.

    Returns:
        `PackReport`: The result. Rows with a file that cannot be read are dropped and reported.

    Raises:
        ValueError: The manifest is invalid, **or** would be overwritten.
    """
    settings = settings or PackSettings()
    folder = Path(output_dir)
    table = RowDataset.from_manifest(
        manifest,
        roots={"video": video_root, "audio": audio_root, "text": text_root, "pose": pose_root},
        modalities=None,
        follow_links=follow_links,
    )
    table.check_links()
    packed_manifest = folder / f"{Path(manifest).stem}.jsonl"
    if packed_manifest.exists() and packed_manifest.samefile(manifest):
        raise InputError(f"{packed_manifest} is the manifest itself; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    errors: dict[int, str] = {}
    rows: dict[int, Row] = {}
    for number in range(len(table)):
        try:
            rows[number] = table[number]
        except MediaError as error:
            errors[number] = str(error)
    sources = {path: column == "pose" for row in rows.values() for column, path in _files_of(row).items()}

    def pack(path: str) -> tuple[Path, bool] | MediaError:
        try:
            if sources[path]:
                return _copy_once(path, folder)
            return _pack_once(path, folder, settings, index_dir)
        except MediaError as error:
            return error

    with ThreadPoolExecutor(num_threads or available_cores()) as pool:
        results_of = tqdm(pool.map(pack, sources), total=len(sources), unit="file", disable=not can_show_bars())
        packed = dict(zip(sources, results_of, strict=True))
    lines = []
    used: dict[str, tuple[Path, bool]] = {}  # by source: name of the copy, and whether it was written in this call
    for number, row in rows.items():
        paths = _files_of(row)
        results = {name: packed[path] for name, path in paths.items()}
        failed = [result for result in results.values() if isinstance(result, MediaError)]
        if failed:
            errors[number] = str(failed[0])
            continue
        copies = {name: result for name, result in results.items() if not isinstance(result, MediaError)}
        used |= {paths[name]: copy for name, copy in copies.items()}
        names = {name: str(copy) for name, (copy, _) in copies.items()}
        lines.append(json.dumps(_packed_row(row, names), ensure_ascii=False))
    packed_manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_checksums(folder)
    (folder / "pack.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    files = {name for name, _ in used.values()}
    return PackReport(
        manifest=packed_manifest,
        num_rows=len(lines),
        num_files=len(files),
        num_written=len({name for name, is_new in used.values() if is_new}),
        source_bytes=sum(os.path.getsize(path) for path in used),
        packed_bytes=sum((folder / name).stat().st_size for name in files),
        errors=[f"row {number}: {error}" for number, error in sorted(errors.items())],
    )


def _packed_row(row: Row, names: dict[str, str]) -> dict[str, object]:
    """Return a row of the new manifest, with the new names of the media and inline captions."""
    kept = {key: value for key, value in row.items() if key not in ROW_COLUMNS and value is not None}
    media = {"video": names.get("video", "")}
    if "pose" in names:
        media["pose"] = names["pose"]
    if not row["audio_from_video"]:
        media["audio"] = names.get("audio", "")
    return {**kept, **media, "captions": row_captions(row)}


def _files_of(row: Row) -> dict[str, str]:
    """Return the files of a row to pack, by column."""
    return {name: path for name in CLIP_FILES if (path := row[name]) is not None}  # type: ignore[literal-required]


def _copy_once(path: str, folder: Path) -> tuple[Path, bool]:
    """Copy a pose, or features of its frames, unless it is there; return as [`_pack_once`] does."""
    read_header(path, PoseProcessor().features_rate)  # a file that cannot be read is an error here as well
    key = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    name = Path(key[:2], f"{key}{Path(path).suffix}")
    target = folder / name
    if target.exists():
        return name, False
    target.parent.mkdir(exist_ok=True)
    with write_atomically(target) as temporary:
        shutil.copyfile(path, temporary)
    return name, True


def _pack_once(path: str, folder: Path, settings: PackSettings, index_dir: str | Path | None) -> tuple[Path, bool]:
    """Pack a file unless it is already packed; return its name in the folder, and whether it was written."""
    key = hashlib.sha256(f"{content_hash(path)} {asdict(settings)}".encode()).hexdigest()[:32]
    has_video = index_cache.tracks(path, index_dir).video is not None
    name = Path(key[:2], f"{key}{'.mp4' if has_video else '.flac'}")
    target = folder / name
    if target.exists():
        return name, False
    target.parent.mkdir(exist_ok=True)
    with write_atomically(target) as temporary:
        _pack_file(path, temporary, settings, index_dir, has_video=has_video)
    return name, True


def _pack_file(
    path: str, target: Path, settings: PackSettings, index_dir: str | Path | None, *, has_video: bool
) -> None:
    index = index_video(path, index_dir=index_dir) if has_video else None
    waveform = None
    try:
        waveform = read_audio(path, settings.sampling_rate, index_dir=index_dir)
    except NoAudioError:
        if index is None:
            raise
    clock = Fraction(1)
    if index is not None:
        with open_media(path) as source:
            time_base = tick_seconds(open_video_stream(source, index.stream, path))
        # A multiple of the original's clock keeps times exact; MP4 needs a finer clock than that of some AVI files.
        clock = Fraction(1, time_base.denominator * -(-MIN_CLOCK // time_base.denominator))
    try:
        _write_copy(path, target, settings, index, clock, waveform)
    except av.FFmpegError as error:
        raise MediaError(
            f"{path!r}: its copy cannot be written to {str(target.parent)!r}: {error.strerror}"
        ) from error


def _write_copy(
    path: str,
    target: Path,
    settings: PackSettings,
    index: FrameIndex | None,
    clock: Fraction,
    waveform: np.ndarray | None,
) -> None:
    """Encode every frame of a file, with ticks of `clock` seconds, and its audio."""
    options = {"video_track_timescale": str(clock.denominator)} if index is not None else {}
    with av.open(str(target), "w", format="flac" if index is None else "mp4", options=options) as output:
        if index is not None:
            scale = min(settings.short_side / min(index.height, index.width), 1)
            height, width = (max(2 * round(length * scale / 2), 2) for length in (index.height, index.width))
            video = output.add_stream("libx264", options=settings.x264_options)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.time_base = video.codec_context.time_base = clock
            video.codec_context.thread_count = 1  # files are packed in parallel
        if waveform is not None:
            audio = output.add_stream(
                "flac", rate=settings.sampling_rate, layout="mono", options={"frame_size": str(AUDIO_BLOCK)}
            )
            audio.codec_context.format = "s16"
        if index is not None:
            ticks = -1
            frames = _scaled_frames(path, index, height, width)
            for frame, seconds in zip(frames, index.seconds, strict=True):
                ticks = max(round(Fraction(float(seconds)) / clock), ticks + 1)  # strictly ascending, as MP4 requires
                frame.pts, frame.time_base = ticks, clock
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
        if waveform is not None:
            samples = np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)
            for begin in range(0, len(samples), AUDIO_BLOCK):
                block = av.AudioFrame.from_ndarray(samples[None, begin : begin + AUDIO_BLOCK], "s16", "mono")
                block.sample_rate, block.pts = settings.sampling_rate, begin
                block.time_base = Fraction(1, settings.sampling_rate)
                output.mux(audio.encode(block))
            output.mux(audio.encode(None))


def _scaled_frames(path: str, index: FrameIndex, height: int, width: int) -> Iterator[av.VideoFrame]:
    """Yield every frame of a file, upright and scaled, in YUV 4:2:0."""
    reformatter = VideoReformatter()
    matrix = index.display_matrix
    coded_height, coded_width = (width, height) if is_transposed(matrix) else (height, width)
    with open_media(path) as source:
        for frame in decode_frames(source, open_video_stream(source, index.stream, path)):
            scaled = reformatter.reformat(
                frame, coded_width, coded_height, "yuv420p", interpolation=Interpolation.BILINEAR, threads=1
            )
            if matrix != (1, 0, 0, 1):
                planes = [
                    apply_display_matrix(
                        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width],
                        matrix,
                    )
                    for plane in scaled.planes
                ]
                flat = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, width)
                upright = av.VideoFrame.from_ndarray(flat, format="yuv420p")
                upright.colorspace, upright.color_range = scaled.colorspace, scaled.color_range
                scaled = upright
            yield scaled


def _write_checksums(folder: Path) -> None:
    """Add the checksums of media files that are not listed yet."""
    path = folder / "checksums.sha256"
    known: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            digest, _, name = line.partition("  ")
            known[name] = digest
    files = sorted(str(file.relative_to(folder)) for file in folder.glob("??/[!.]*"))
    sums = {name: known.get(name) or hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    path.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
