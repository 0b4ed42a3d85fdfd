"""The toy world of signs: poses and clips of people who sign sentences, from its arguments to its folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from simple_multimodal.cores import available_cores
from simple_multimodal.defaults import (
    SIGN_FRAMES,
    SIGN_SIGNERS,
    SIGN_TEST_CLIPS,
    SIGN_VALIDATION_CLIPS,
    TOY_TRAIN_CLIPS,
    Difficulty,
    Hand,
)
from simple_multimodal.errors import InputError
from simple_multimodal.media.pose import write_pose
from simple_multimodal.prepare.toy.folder import check_at_least, write_rows, write_world
from simple_multimodal.prepare.toy.media import FRAME_SIZE, toy_generator, write_clip
from simple_multimodal.prepare.toy.sentences import (
    draw_sentences,
    make_signs,
    num_sentences,
    sentence_of,
)
from simple_multimodal.prepare.toy.signing import (
    COMPONENTS,
    SIGN_RATE,
    Performance,
    Signer,
    draw_signer,
    estimate,
    perform,
    render_signing,
)

SIGNS_VERSION = 1  # raise it whenever the same parameters would write other files
NUM_NEW_SIGNERS = 4
MIN_FRAMES = 20  # four for each of five signs
VARIATIONS = {"easy": 1.0, "hard": 2.5}  # by how much signers differ, as a factor


@dataclass(frozen=True)
class SignStyle:
    """What the files of all clips of a world depend on: arguments of [`make_sign_world`]."""

    difficulty: Difficulty
    num_frames: int
    hidden_hand: Hand | None
    seed: int


@dataclass(frozen=True)
class SignClip:
    """A performance: its id, its split, its signs in their order, and who signs."""

    id: str
    split: str
    signs: tuple[str, ...]
    signer: Signer

    @property
    def pose(self) -> str:
        """Path of its poses relative to the folder of the world."""
        return f"{self.split}/{self.id}.pose"

    @property
    def video(self) -> str:
        """Path of its clip relative to the folder of the world."""
        return f"{self.split}/{self.id}.mp4"

    def perform(self, style: SignStyle) -> Performance:
        """Return the performance of this clip in a world."""
        signs = make_signs(style.difficulty)
        own = [signs[name] for name in self.signs]
        return perform(own, self.signer, self.id, num_frames=style.num_frames, seed=style.seed)


def make_sign_world(
    output_dir: str | os.PathLike[str],
    *,
    difficulty: Difficulty = "easy",
    num_train_clips: int = TOY_TRAIN_CLIPS,
    num_validation_clips: int = SIGN_VALIDATION_CLIPS,
    num_test_clips: int = SIGN_TEST_CLIPS,
    num_signers: int = SIGN_SIGNERS,
    num_frames: int = SIGN_FRAMES,
    hidden_hand: Hand | None = None,
    seed: int = 0,
    num_processes: int | None = None,
) -> Path:
    """
    Write a toy world of signs: poses and small clips of sentences that are signed; see `docs/toy_world.md`.

    Files depend only on the arguments, not on `num_processes`. A finished folder with the same arguments is left
    unchanged, missing files are added, and an interrupted run is completed.

    Args:
        output_dir (`str` or `os.PathLike`): Folder to write; new, empty, or made earlier with the same arguments.
        difficulty (`"easy"` or `"hard"`, *optional*, defaults to `"easy"`): How signs and signers differ, see
            [`make_signs`]; in the hard setting signers differ more.
        num_train_clips (`int`, *optional*, defaults to 2000): Number of training clips, at least enough for all signs
            and words: about 25.
        num_validation_clips (`int`, *optional*, defaults to 200): Number of clips of other sentences.
        num_test_clips (`int`, *optional*, defaults to 200): Number of clips of further sentences. They are signed
            twice: by signers of training, and by 4 others.
        num_signers (`int`, *optional*, defaults to 8): Number of signers in training.
        num_frames (`int`, *optional*, defaults to 72): Number of frames of every clip, 25 per second; at least 20.
        hidden_hand (`"left"` or `"right"`, *optional*): Hand that is missing in all poses and clips, which are the
            same otherwise.
        seed (`int`, *optional*, defaults to 0): Random seed of the world.
        num_processes (`int`, *optional*): Number of writing processes, by default one per available core.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If an argument is out of range, or the folder holds something else.
    """
    output_dir = Path(output_dir)
    num_processes = available_cores() if num_processes is None else num_processes
    check_at_least(
        1,
        num_validation_clips=num_validation_clips,
        num_test_clips=num_test_clips,
        num_signers=num_signers,
        num_processes=num_processes,
    )
    check_at_least(0, seed=seed)
    check_at_least(MIN_FRAMES, num_frames=num_frames)
    for name, value, known in (
        ("difficulty", difficulty, get_args(Difficulty)),
        ("hidden_hand", hidden_hand, (None, *get_args(Hand))),
    ):
        if value not in known:
            raise InputError(f"Unknown `{name}` {value!r}; known are {', '.join(map(str, known))}.")
    if num_validation_clips + num_test_clips > num_sentences() // 2:
        raise InputError(
            f"num_validation_clips and num_test_clips may be {num_sentences() // 2} together, half of all sentences, "
            f"got {num_validation_clips} and {num_test_clips}."
        )
    style = SignStyle(difficulty, num_frames, hidden_hand, seed)
    clips = draw_sign_clips(style, num_train_clips, num_validation_clips, num_test_clips, num_signers)
    parameters = {
        "difficulty": difficulty,
        "num_train_clips": num_train_clips,
        "num_validation_clips": num_validation_clips,
        "num_test_clips": num_test_clips,
        "num_signers": num_signers,
        "num_frames": num_frames,
        "hidden_hand": hidden_hand,
        "seed": seed,
    }
    return write_world(
        output_dir,
        {(clip.pose, clip.video): (clip, style) for clip in clips},
        description={"world": "signs", "version": SIGNS_VERSION, "parameters": parameters},
        write_clip=_write_files,
        write_manifests=lambda: _write_manifests(output_dir, clips, style),
        num_processes=num_processes,
    )


def draw_sign_clips(
    style: SignStyle, num_train_clips: int, num_validation_clips: int, num_test_clips: int, num_signers: int
) -> list[SignClip]:
    """
    Sample all clips of a world, without performing them.

    Args:
        style (`SignStyle`): Seed and difficulty.
        num_train_clips, num_validation_clips, num_test_clips and num_signers: As in [`make_sign_world`].

    Returns:
        `list[SignClip]`: The clips of `"train"`, `"validation"`, `"test"` and `"test_new_signers"`.
    """
    generator = toy_generator(style.seed, "sentences")
    train, held_out = draw_sentences(num_train_clips, num_validation_clips + num_test_clips, generator)
    validation, test = held_out[:num_validation_clips], held_out[num_validation_clips:]
    known, new = (
        [
            draw_signer(f"{prefix}_{n:02d}", variation=VARIATIONS[style.difficulty], seed=style.seed)
            for n in range(count)
        ]
        for prefix, count in (("signer", num_signers), ("new_signer", NUM_NEW_SIGNERS))
    )
    return [
        SignClip(f"{split}_{n:06d}", split, signs, signers[int(generator.integers(len(signers)))])
        for split, sentences, signers in (
            ("train", train, known),
            ("validation", validation, known),
            ("test", test, known),
            ("test_new_signers", test, new),
        )
        for n, signs in enumerate(sentences)
    ]


def _write_files(output_dir: Path, task: tuple[SignClip, SignStyle]) -> None:
    clip, style = task
    performance = clip.perform(style)
    data, confidence = estimate(performance, clip.signer, clip.id, hidden_hand=style.hidden_hand, seed=style.seed)
    write_pose(
        output_dir / clip.pose,
        data,
        confidence,
        components=COMPONENTS,
        rate=SIGN_RATE,
        width=FRAME_SIZE,
        height=FRAME_SIZE,
    )
    frames = render_signing(performance, clip.signer, clip.id, hidden_hand=style.hidden_hand, seed=style.seed)
    write_clip(output_dir / clip.video, frames, frames_per_second=SIGN_RATE)


def _write_manifests(output_dir: Path, clips: Sequence[SignClip], style: SignStyle) -> None:
    rows: dict[str, list[dict[str, object]]] = {}
    truths = []
    for clip in clips:
        rows.setdefault(clip.split, []).append(
            {
                "id": clip.id,
                "pose": clip.pose,
                "video": clip.video,
                "caption": sentence_of(clip.signs),
                "signer": clip.signer.name,
                "group": "-".join(clip.signs),
            }
        )
        truths.append(
            {
                "id": clip.id,
                "split": clip.split,
                "signer": clip.signer.name,
                "signs": list(clip.signs),
                "sign_seconds": [round(start / SIGN_RATE, 3) for start in clip.perform(style).starts],
            }
        )
    for split, own_rows in rows.items():
        write_rows(output_dir / f"{split}.jsonl", own_rows)
    write_rows(output_dir / "clips.jsonl", truths)
