"""The toy world of moving shapes and melodies, from its arguments to its folder."""

import os
from pathlib import Path

from simple_multimodal.cores import available_cores
from simple_multimodal.defaults import (
    TOY_PAIRS,
    TOY_QUESTION_CLIPS,
    TOY_TRAIN_CLIPS,
    TOY_VALIDATION_AUDIO,
    TOY_VALIDATION_VIDEOS,
)
from simple_multimodal.errors import InputError
from simple_multimodal.prepare.toy.clips import ToyClip, draw_clips, num_combinations
from simple_multimodal.prepare.toy.folder import check_at_least, write_world
from simple_multimodal.prepare.toy.manifests import write_manifests
from simple_multimodal.prepare.toy.media import (
    AUDIO_ATTRIBUTES,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    VIDEO_ATTRIBUTES,
    render_audio,
    render_video,
    write_clip,
)

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
    check_at_least(1, num_train_clips=num_train_clips, num_pairs=num_pairs, num_processes=num_processes)
    check_at_least(0, seed=seed)
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
    clips = draw_clips(
        num_train_clips=num_train_clips,
        num_validation_videos=num_validation_videos,
        num_validation_audio=num_validation_audio,
        num_question_clips=num_question_clips,
        num_segments=num_segments,
        num_frames=num_frames,
        seed=seed,
    )
    return write_world(
        output_dir,
        {(clip.path,): (clip, num_frames, seed) for split in clips.values() for clip in split},
        description={"version": TOY_VERSION, "parameters": parameters},
        write_clip=_render_and_write,
        write_manifests=lambda: write_manifests(output_dir, clips, num_pairs, seed),
        num_processes=num_processes,
    )


def _render_and_write(output_dir: Path, task: tuple[ToyClip, int, int]) -> None:
    clip, num_frames, seed = task
    num_samples = num_frames * SAMPLING_RATE // FRAMES_PER_SECOND
    frames = render_video(clip.video, num_frames=num_frames, seed=seed)
    write_clip(output_dir / clip.path, frames, render_audio(clip.audio, num_samples=num_samples, seed=seed))


def _check_range(name: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise InputError(f"{name} must be from {smallest} to {largest}, got {value}.")
