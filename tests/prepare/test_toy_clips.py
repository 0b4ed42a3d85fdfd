"""Tests of the toy world's clips: held out, balanced, and with answers that cannot be guessed from other features."""

import dataclasses
import inspect

import numpy as np
import pytest

from simple_multimodal.prepare.toy import make_toy_world
from simple_multimodal.prepare.toy.clips import ToyClip, draw_clips
from simple_multimodal.prepare.toy.media import AUDIO_ATTRIBUTES, BACKGROUNDS, VIDEO_ATTRIBUTES, ToyAudio, ToyVideo
from tests.prepare.toy_checks import check_answers, check_held_out

ATTRIBUTES = VIDEO_ATTRIBUTES | AUDIO_ATTRIBUTES
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(make_toy_world).parameters.items()}
SIZES = ("num_train_clips", "num_validation_videos", "num_validation_audio", "num_question_clips")


@pytest.mark.parametrize(
    ("changes", "num_segments", "seed"),
    [
        ({}, 6, 0),
        ({}, 6, 1),
        ({}, 12, 2),
        ({"num_train_clips": 3000}, 24, 0),
        ({"num_train_clips": 4600, "num_validation_videos": 2, "num_validation_audio": 27}, 6, 3),
        ({"num_train_clips": 30, "num_question_clips": 9}, 6, 4),
    ],
)
def test_answers_cannot_be_guessed_from_the_other_modality(changes, num_segments, seed):
    sizes = {name: DEFAULTS[name] for name in SIZES} | changes
    num_frames = 6 * num_segments
    clips = draw_clips(**sizes, num_segments=num_segments, num_frames=num_frames, seed=seed)
    assert {split: len(own) for split, own in clips.items()} == {
        "train": sizes["num_train_clips"],
        "validation": sizes["num_validation_videos"] * sizes["num_validation_audio"],
        "questions": sizes["num_question_clips"],
    }
    check_held_out(clips["train"], clips["validation"] + clips["questions"])
    check_answers(clips["train"], num_frames=num_frames, is_exact=False)
    check_answers(clips["questions"], num_frames=num_frames, is_exact=True)


def test_check_held_out_finds_a_combination_in_both():
    clip = make_clip(0)
    check_held_out([clip], [make_clip(0, pitch="high")])
    with pytest.raises(ValueError, match="1 held-out combinations occur in training"):
        check_held_out([clip], [clip, make_clip(0, pitch="high")])


def make_clip(
    number: int, *, answer: str = "black", rotation: int = 0, colour: str = "red", pitch: str = "low"
) -> ToyClip:
    """Make a clip that shows the three backgrounds twice for 0.6 seconds each, with the beep amid the answer's."""
    names = list(BACKGROUNDS)[rotation:] + list(BACKGROUNDS)[:rotation]
    seen, heard = ("small", colour, "circle", "left"), (pitch, "slow", "pure")
    video = ToyVideo(f"p{number}", seen, "colour", (*names, *names), tuple(range(0, 36, 6)))
    repeat = number // 9 % 2
    return ToyClip(
        f"c{number}",
        "train",
        video,
        ToyAudio(f"s{number}", heard, "pitch", names.index(answer) * 0.6 + 0.3 + 1.8 * repeat),
    )


COLOUR_NAMES, PITCH_NAMES = ATTRIBUTES["colour"], ATTRIBUTES["pitch"]


def fair_clips() -> list[ToyClip]:
    generator = np.random.default_rng(0)
    order = generator.permutation(648)
    return [
        make_clip(
            n,
            answer=list(BACKGROUNDS)[n % 3],
            rotation=n // 3 % 3,
            colour=COLOUR_NAMES[order[n] % 6],
            pitch=PITCH_NAMES[order[n] // 6 % 3],
        )
        for n in range(648)
    ]


def test_check_answers_accepts_balanced_independent_answers():
    check_answers(fair_clips(), num_frames=36, is_exact=False)


def test_check_answers_finds_an_unbalanced_answer():
    clips = fair_clips()
    clips[0] = make_clip(0, answer="brown")
    clips[3] = make_clip(3, answer="brown", rotation=1)
    with pytest.raises(ValueError, match="joint questions are not balanced"):
        check_answers(clips, num_frames=36, is_exact=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": lambda n: n % 3}, "background of part 1 of 6 reveals the answer to the joint question"),
        ({"rotation": lambda n: 0}, "time of the beep reveals the answer to the joint question"),
        ({"colour": lambda n: COLOUR_NAMES[n % 3]}, "video question about colour are not uniform"),
        ({"pitch": lambda n: "low"}, "audio question about pitch are not uniform"),
        (
            {"colour": lambda n: COLOUR_NAMES[n // 3 % 6], "pitch": lambda n: PITCH_NAMES[n // 3 % 3]},
            "pitch reveals the answer to the video question about colour",
        ),
    ],
)
def test_check_answers_finds_features_that_reveal_the_answer(change, message):
    clips = []
    for n, clip in enumerate(fair_clips()):
        made = {
            "answer": list(BACKGROUNDS)[n % 3],
            "rotation": n // 3 % 3,
            "colour": clip.attributes["colour"],
            "pitch": clip.attributes["pitch"],
        }
        clips.append(make_clip(n, **(made | {name: value(n) for name, value in change.items()})))
    with pytest.raises(ValueError, match=message):
        check_answers(clips, num_frames=36, is_exact=False)


def test_check_answers_finds_a_video_that_reveals_the_answer():
    clips = fair_clips()
    with pytest.raises(ValueError, match="The video 'p0' reveals the answer"):
        check_answers(clips, num_frames=36, is_exact=True)
    one_video = [
        dataclasses.replace(clip, video=clips[0].video)
        for clip in clips
        if clip.video.backgrounds == clips[0].video.backgrounds
    ]
    with pytest.raises(ValueError, match="The audio 's0' reveals the answer"):
        check_answers(one_video, num_frames=36, is_exact=True)
