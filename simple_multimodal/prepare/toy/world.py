"""Write the toy world, or complete one that was interrupted."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from simple_multimodal.cores import available_cores
from simple_multimodal.defaults import (
    TOY_PAIRS,
    TOY_QUESTION_CLIPS,
    TOY_TRAIN_CLIPS,
    TOY_VALIDATION_AUDIO,
    TOY_VALIDATION_VIDEOS,
)
from simple_multimodal.errors import InputError
from simple_multimodal.output_folder import LOCK_FILE
from simple_multimodal.prepare.toy.clips import ToyClip, draw_clips, num_combinations
from simple_multimodal.prepare.toy.manifests import write_manifests
from simple_multimodal.prepare.toy.media import (
    AUDIO_ATTRIBUTES,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    VIDEO_ATTRIBUTES,
    ToyAudio,
    ToyVideo,
    render_audio,
    render_video,
    write_clip,
)
from simple_multimodal.progress import can_show_bars

TOY_VERSION = 4  # raise it whenever the same parameters would write other files
SECONDS_PER_SEGMENT = 0.6  # mean duration of a background


def make_toy_world(
    output_dir: str | os.PathLike[str],
    *,
    num_train_clips: int = TOY_TRAIN_CLIPS,
    num_validation_videos: int = TOY_VALIDATION_VIDEOS,
    num_validation_audio: int = TOY_VALIDATION_AUDIO,
    num_question_clips: int = TOY_QUESTION_CLIPS,
    num_pairs: int = TOY_PAIRS,
    num_segments: int = 6,
    seconds: float | None = None,
    seed: int = 0,
    num_processes: int | None = None,
) -> Path:
    """
    Write a toy world: small H.264/AAC clips and their manifests; see `docs/toy_world.md`.

    Files depend only on the arguments, not on `num_processes`. A finished folder with the same arguments is left
    unchanged, missing files are added, and an interrupted run is completed.

    Args:
        output_dir (`str` or `os.PathLike`): Folder to write; new, empty, or made earlier with the same arguments.
        num_train_clips (`int`, *optional*, defaults to 2000): Number of training clips.
        num_validation_videos (`int`, *optional*, defaults to 16): Number of different videos of validation clips, 2 to
            192.
        num_validation_audio (`int`, *optional*, defaults to 16): Number of different audio tracks of validation clips,
            2 to 27; each is combined with every video.
        num_question_clips (`int`, *optional*, defaults to 243): Number of held-out clips for questions, a multiple of
            9.
        num_pairs (`int`, *optional*, defaults to 512): Maximum number of pairs of either kind. Pairs that differ in a
            single attribute come first and make up at most half, as far as the other pairs suffice.
        num_segments (`int`, *optional*, defaults to 6): Number of background segments per clip, a multiple of 3 from 6
            up.
        seconds (`float`, *optional*, defaults to 0.6 * `num_segments`): Length of a clip in seconds, a multiple of
            0.3, at least 0.6 per segment.
        seed (`int`, *optional*, defaults to 0): Random seed of the world.
        num_processes (`int`, *optional*): Number of writing processes, by default one per available core.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If an argument is out of range, or the folder holds something else.
    """
    output_dir = Path(output_dir)
    seconds = SECONDS_PER_SEGMENT * num_segments if seconds is None else seconds
    num_processes = available_cores() if num_processes is None else num_processes
    num_frames = round(seconds * FRAMES_PER_SECOND)
    _check_at_least(1, num_train_clips=num_train_clips, num_pairs=num_pairs, num_processes=num_processes)
    _check_at_least(0, seed=seed)
    _check_range("num_validation_videos", num_validation_videos, 2, num_combinations(VIDEO_ATTRIBUTES))
    _check_range("num_validation_audio", num_validation_audio, 2, num_combinations(AUDIO_ATTRIBUTES))
    if num_question_clips < 9 or num_question_clips % 9:
        raise InputError(f"num_question_clips must be a multiple of 9 from 9 up, got {num_question_clips}.")
    if num_segments < 6 or num_segments % 3:
        raise InputError(f"num_segments must be a multiple of 3 from 6 up, got {num_segments}.")
    if num_frames % 3 or abs(num_frames - seconds * FRAMES_PER_SECOND) > 1e-6 or num_frames < 6 * num_segments:
        raise InputError(
            f"seconds must be a multiple of 0.3 and at least {SECONDS_PER_SEGMENT * num_segments:g} for "
            f"{num_segments} segments, got {seconds}."
        )
    parameters = {
        "num_train_clips": num_train_clips,
        "num_validation_videos": num_validation_videos,
        "num_validation_audio": num_validation_audio,
        "num_question_clips": num_question_clips,
        "num_pairs": num_pairs,
        "num_segments": num_segments,
        "seconds": num_frames / FRAMES_PER_SECOND,
        "seed": seed,
    }
    description = json.dumps({"version": TOY_VERSION, "parameters": parameters}, indent=2) + "\n"
    finished, unfinished = output_dir / "toy.json", output_dir / "toy.unfinished.json"
    is_finished = _check_folder(output_dir, description, finished, unfinished)

    clips = draw_clips(
        num_train_clips=num_train_clips,
        num_validation_videos=num_validation_videos,
        num_validation_audio=num_validation_audio,
        num_question_clips=num_question_clips,
        num_segments=num_segments,
        num_frames=num_frames,
        seed=seed,
    )
    missing = [clip for split in clips.values() for clip in split if not (output_dir / clip.path).is_file()]
    if is_finished and not missing:
        return output_dir

    if not is_finished:
        output_dir.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(description, encoding="utf-8")
    for split in clips:
        (output_dir / split).mkdir(exist_ok=True)
        for left_over in (output_dir / split).glob("*.tmp"):  # from a run that was killed
            left_over.unlink()
    _write_clips(output_dir, missing, num_frames, seed, num_processes)
    if not is_finished:
        write_manifests(output_dir, clips, num_pairs, seed)
        os.replace(unfinished, finished)
    return output_dir


def _write_clips(output_dir: Path, clips: list[ToyClip], num_frames: int, seed: int, num_processes: int) -> None:
    tasks = [(output_dir / clip.path, clip.video, clip.audio, num_frames, seed) for clip in clips]
    num_processes = min(num_processes, len(tasks))
    with tqdm(total=len(tasks), desc="toy clips", unit="clip", disable=not can_show_bars()) as progress:
        if num_processes <= 1:
            for task in tasks:
                progress.update(_render_and_write(task))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            for written in pool.map(_render_and_write, tasks, chunksize=8):
                progress.update(written)


def _render_and_write(task: tuple[Path, ToyVideo, ToyAudio, int, int]) -> int:
    path, video, audio, num_frames, seed = task
    num_samples = num_frames * SAMPLING_RATE // FRAMES_PER_SECOND
    frames = render_video(video, num_frames=num_frames, seed=seed)
    write_clip(path, frames, render_audio(audio, num_samples=num_samples, seed=seed))
    return 1


def _check_at_least(smallest: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < smallest:
            raise InputError(f"{name} must be at least {smallest}, got {value}.")


def _check_range(name: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise InputError(f"{name} must be from {smallest} to {largest}, got {value}.")


def _check_folder(output_dir: Path, description: str, finished: Path, unfinished: Path) -> bool:
    """Return whether the folder already holds this world; raise an error if it holds anything else."""
    for marker in (finished, unfinished):
        if marker.is_file():
            if marker.read_text(encoding="utf-8") != description:
                raise InputError(
                    f"{output_dir} holds a toy world made with other arguments or by another version "
                    f"(see {marker.name}). Use the same arguments or another folder, or delete it."
                )
            return marker == finished
    if output_dir.exists() and (not output_dir.is_dir() or any(p.name != LOCK_FILE for p in output_dir.iterdir())):
        raise InputError(f"{output_dir} exists and is not a toy world. Choose a new or empty folder.")
    return False
