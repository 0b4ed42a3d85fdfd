"""Tests of the toy world of signs: exact files, held-out sentences, a grammar, and signs that can be told apart."""

import inspect
import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.media import Pose, has_audio, open_video, read_pose
from simple_multimodal.prepare.toy import make_sign_world
from simple_multimodal.prepare.toy.sentences import (
    CATEGORIES,
    GENDERS,
    STRENGTHS,
    Sign,
    draw_sentences,
    make_signs,
    num_sentences,
    sentence_of,
)
from simple_multimodal.prepare.toy.sign_world import NUM_NEW_SIGNERS, VARIATIONS, SignStyle, draw_sign_clips
from simple_multimodal.prepare.toy.signing import (
    ARM_POINTS,
    GLOVES,
    HAND_POINTS,
    SIGN_RATE,
    Signer,
    draw_signer,
    perform,
)
from simple_multimodal.processing import PoseProcessor

SIZES = {
    "num_train_clips": 30,
    "num_validation_clips": 3,
    "num_test_clips": 2,
    "num_signers": 2,
    "num_frames": 24,
}
SPLITS = ("train", "validation", "test", "test_new_signers")
NAMES = [name for names in CATEGORIES for name in names]
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(make_sign_world).parameters.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_sign_world(tmp_path_factory.mktemp("signs") / "world", **SIZES, num_processes=1)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def frames_of(path: Path) -> np.ndarray:
    """Return all frames of a clip, of shape `(num_frames, height, width, 3)`."""
    video = open_video(path)
    return video.frames(range(len(video))).transpose(0, 2, 3, 1).astype(float)


READERS = {"pose": read_pose, "video": frames_of}


def hand_points(difficulty: str, variation: float = 1.0) -> dict[str, dict[str, np.ndarray]]:
    """Return the points of each hand in performances of each sign alone, by the same signer at the same pace."""
    signer = draw_signer("signer", variation=variation, seed=0)
    shown = {
        name: perform([sign], signer, "clip", num_frames=40, seed=0).points
        for name, sign in make_signs(difficulty).items()
    }
    return {hand: {name: points[:, own] for name, points in shown.items()} for hand, own in HAND_POINTS.items()}


def test_files_are_identical_in_a_second_run_with_more_processes(world, tmp_path):
    again = make_sign_world(tmp_path / "again", **SIZES, num_processes=2)
    assert contents(again) == contents(world)
    other = make_sign_world(tmp_path / "other", **SIZES, seed=1, num_processes=1)
    for name in ("train/train_000000.mp4", "train/train_000000.pose", "train.jsonl"):
        assert (other / name).read_bytes() != (world / name).read_bytes()


def test_the_folder_holds_the_files_that_the_manifests_name(world):
    assert {path.name for path in world.iterdir()} == {
        *SPLITS,
        *(f"{split}.jsonl" for split in SPLITS),
        *("clips.jsonl", "toy.json"),
    }
    truths = {clip["id"]: clip for clip in read(world / "clips.jsonl")}
    named = set()
    for split, count in zip(SPLITS, (30, 3, 2, 2), strict=True):
        rows = read(world / f"{split}.jsonl")
        assert len(rows) == len({row["id"] for row in rows}) == count
        for row in rows:
            assert list(row) == ["id", "pose", "video", "caption", "signer", "group"]
            truth = truths.pop(row["id"])
            assert truth["split"] == split and truth["signer"] == row["signer"]
            assert row["caption"] == sentence_of(tuple(truth["signs"]))
            assert row["group"] == "-".join(truth["signs"])
            starts = truth["sign_seconds"]
            assert len(starts) == len(truth["signs"]) and starts == sorted(starts)
            assert 0 <= starts[0] and starts[-1] < SIZES["num_frames"] / SIGN_RATE
            named |= {row["pose"], row["video"]}
    assert not truths
    assert named == {str(path.relative_to(world)) for path in world.rglob("*") if path.suffix in (".pose", ".mp4")}


def test_poses_and_clips_are_read_and_show_the_same_performance(world):
    rows = read(world / "train.jsonl")[:6]
    poses, clips = ([reads(world / row[kind]) for row in rows] for kind, reads in READERS.items())
    for pose, frames in zip(poses, clips, strict=True):
        assert pose.data.shape == (24, 1, 48, 2) and pose.header.rate == SIGN_RATE
        assert (pose.header.width, pose.header.height) == (64, 64)
        assert [len(component.points) for component in pose.header.components] == [6, 21, 21]
        assert frames.shape == (24, 64, 64, 3)
        assert glove_distance(frames, pose) < 3.5
    assert not has_audio(world / rows[0]["video"])
    others = [glove_distance(frames, pose) for frames, pose in zip(clips, poses[1:] + poses[:1], strict=True)]
    assert min(others) > 5


def glove_distance(frames: np.ndarray, pose: Pose) -> float:
    """Return the median distance, in pixels, from the middle of a glove to that of the points of its hand."""
    grid = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), axis=-1)
    distances = []
    for hand, own in HAND_POINTS.items():
        is_glove = np.abs(frames - GLOVES[hand]).max(axis=-1) < 90
        for number, pixels in enumerate(is_glove):
            if pose.confidence[number, 0, own].all() and pixels.sum() > 8:  # not behind the other hand
                middle = pose.data[number, 0, own].mean(axis=0)
                distances.append(np.linalg.norm(grid[pixels].mean(axis=0) - middle))
    assert len(distances) > 30
    return float(np.median(distances))


def test_the_processor_of_poses_gives_96_numbers_per_frame(world):
    processor = PoseProcessor(num_features=96)
    poses = [read_pose(world / row["pose"]) for row in read(world / "test.jsonl")]
    batch = processor(poses)
    assert batch["pose_values"].shape == (2, 24, 96) and batch["pose_mask"].all()
    assert 0.3 < batch["pose_values"].std() < 1.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_train_clips", [30, DEFAULTS["num_train_clips"], num_sentences() + 5])
def test_sentences_are_held_out_but_their_words_and_signs_are_not(num_train_clips, seed):
    style = SignStyle("easy", 72, None, seed)
    clips = draw_sign_clips(style, num_train_clips, 200, 100, 8)
    sentences = {split: [sentence_of(clip.signs) for clip in clips if clip.split == split] for split in SPLITS}
    assert [len(own) for own in sentences.values()] == [num_train_clips, 200, 100, 100]
    assert sentences["test"] == sentences["test_new_signers"]
    train, validation, test = (set(sentences[split]) for split in SPLITS[:3])
    assert len(train) == min(num_train_clips, num_sentences() - 300)
    assert len(validation) == 200 and len(test) == 100
    assert not train & validation and not train & test and not validation & test
    words = {word for sentence in train for word in sentence.split()}
    assert words >= {word for sentence in validation | test for word in sentence.split()}
    assert {sign for clip in clips if clip.split == "train" for sign in clip.signs} == set(NAMES)


def test_too_few_training_clips_for_all_words_are_refused():
    for count in (1, 17):  # there are 18 forms of the strengths
        with pytest.raises(ValueError, match=r"num_train_clips must be at least \d\d, so that training has all signs"):
            draw_sentences(count, 5, np.random.default_rng(0))
    with pytest.raises(ValueError) as raised:
        draw_sentences(1, 5, np.random.default_rng(0))
    enough = int(re.search(r"at least (\d+)", str(raised.value)).group(1))
    train, _ = draw_sentences(enough, 5, np.random.default_rng(0))
    assert len(train) == enough and {sign for signs in train for sign in signs} == set(NAMES)


def test_new_signers_do_not_occur_in_training():
    for difficulty in ("easy", "hard"):
        clips = draw_sign_clips(SignStyle(difficulty, 72, None, 0), 500, 100, 100, 5)
        signers = {split: {clip.signer for clip in clips if clip.split == split} for split in SPLITS}
        assert len(signers["train"]) == 5 and signers["train"] == signers["validation"] == signers["test"]
        assert len(signers["test_new_signers"]) == NUM_NEW_SIGNERS
        assert not signers["test_new_signers"] & signers["train"]
        names = {signer.name for split in SPLITS for signer in signers[split]}
        assert len(names) == 5 + NUM_NEW_SIGNERS
        habits = [(signer.reach, signer.tilt, signer.height) for split in SPLITS for signer in signers[split]]
        assert len(set(habits)) == len(names)


def test_words_stand_in_another_order_than_signs_and_endings_depend_on_the_weather():
    signs = ("gebirge", "freitag", "nacht", "nebel", "schwach")
    assert sentence_of(signs) == "am freitag in der nacht schwacher nebel im gebirge"
    assert sentence_of(("küste", "montag", "kälte", "stark")) == "am montag starke kälte an der küste"
    assert sentence_of(("alpen", "sonntag", "abend", "gewitter", "leicht")) == (
        "am sonntag am abend leichtes gewitter in den alpen"
    )
    for weather, gender in GENDERS.items():
        for strength in STRENGTHS:
            word = sentence_of((*signs[:3], weather, strength)).split()[5]
            assert word == strength + {"m": "er", "f": "e", "n": "es"}[gender]
    for sentence in (sentence_of(signs), sentence_of(signs[:2] + signs[3:])):
        assert sentence.split().index("freitag") < sentence.split().index("gebirge")  # not as they are signed


def test_different_signs_make_different_sentences():
    _, everything = draw_sentences(30, num_sentences() - 200, np.random.default_rng(0))
    assert len(set(everything)) == len({sentence_of(signs) for signs in everything}) == num_sentences() - 200
    assert len(NAMES) == len(set(NAMES)) == len(make_signs("easy")) == 37


def test_easy_signs_differ_in_either_hand_alone():
    for own in hand_points("easy").values():
        for first, second in combinations(NAMES, 2):
            wrists = own[first][:, 0], own[second][:, 0]
            assert np.linalg.norm(wrists[0] - wrists[1], axis=-1).max() > 4, (first, second)  # pixels


def test_hard_signs_differ_in_the_second_hand_or_in_shape_alone():
    signs, own = make_signs("hard"), hand_points("hard")
    second_hand, shape = [], []
    for names in CATEGORIES:
        for first, second in combinations(names, 2):
            right, left = (np.abs(own[hand][first] - own[hand][second]).max() for hand in ("right", "left"))
            assert right > 2 or left > 2, (first, second)  # pixels
            same_wrist = (own["right"][first][:, 0] == own["right"][second][:, 0]).all()
            if right == 0:
                second_hand.append((first, second))
            elif same_wrist and signs[first].is_two_handed == signs[second].is_two_handed:
                shape.append((first, second))
    alone = {name for pair in second_hand for name in pair}
    assert len(second_hand) == len(alone) // 2 == 18 and set(NAMES) - alone == {"sonntag"}
    assert len({name for pair in shape for name in pair}) == 36
    assert len(set(signs.values())) == 37


@pytest.mark.parametrize("hidden", ["left", "right"])
def test_a_hidden_hand_is_missing_and_all_else_is_the_same(world, tmp_path, hidden):
    one_handed = make_sign_world(tmp_path / "one", **SIZES, hidden_hand=hidden, num_processes=1)
    (shown,) = {"left", "right"} - {hidden}
    for split in SPLITS:
        assert (one_handed / f"{split}.jsonl").read_bytes() == (world / f"{split}.jsonl").read_bytes()
    for row in read(world / "validation.jsonl"):
        whole, part = read_pose(world / row["pose"]), read_pose(one_handed / row["pose"])
        missing = [*range(*HAND_POINTS[hidden].indices(48)), *ARM_POINTS[hidden]]
        kept = [number for number in range(48) if number not in missing]
        assert not part.confidence[:, :, missing].any() and not part.data[:, :, missing].any()
        np.testing.assert_array_equal(part.data[:, :, kept], whole.data[:, :, kept])
        np.testing.assert_array_equal(part.confidence[:, :, kept], whole.confidence[:, :, kept])
        assert whole.confidence[:, :, missing].mean() > 0.7
        frames = frames_of(one_handed / row["video"])
        visible = {hand: (np.abs(frames - GLOVES[hand]).max(axis=-1) < 60).sum() for hand in GLOVES}
        assert visible[hidden] == 0 and visible[shown] > 24 * 8


@pytest.mark.parametrize(("difficulty", "least", "most"), [("easy", 1.0, 1.0), ("hard", 0.6, 0.95)])
def test_shapes_of_new_signers_are_mistaken_in_the_hard_setting_alone(difficulty, least, most):
    variation = VARIATIONS[difficulty]
    known = [draw_signer(f"signer_{n:02d}", variation=variation, seed=0) for n in range(8)]
    new = [draw_signer(f"new_signer_{n:02d}", variation=variation, seed=0) for n in range(12)]

    def hands(signers: list[Signer], clip: str) -> tuple[np.ndarray, np.ndarray]:
        """Return hands relative to their wrists, in widths of the shoulders, and the numbers of their shapes."""
        points, shapes = [], []
        for signer in signers:
            for number, shape in enumerate(("point", "fork", "flat")):
                sign = Sign("chest", "up", shape, False)
                shown = perform([sign], signer, f"{clip} {signer.name}", num_frames=40, seed=0).points[20]
                hand = shown[HAND_POINTS["right"]]
                points.append((hand - hand[0]) / np.linalg.norm(shown[0] - shown[1]))
                shapes.append(number)
        return np.array(points).reshape(len(points), -1), np.array(shapes)

    points, shapes = hands(known, "train")

    def accuracy(signers: list[Signer]) -> float:
        """Return how often the nearest hand of a known signer has the same shape."""
        own, wanted = hands(signers, "test")
        nearest = np.square(own[:, None] - points).sum(axis=-1).argmin(axis=1)
        return float((shapes[nearest] == wanted).mean())

    assert accuracy(known) == 1.0
    assert least <= accuracy(new) <= most


def test_signers_differ_more_in_the_hard_setting():
    for name in ("signer_00", "signer_01"):
        easy, hard = (draw_signer(name, variation=variation, seed=0) for variation in (1.0, 2.0))
        assert hard.fingers == pytest.approx([2 * share for share in easy.fingers])
        assert hard.bend == 2 * easy.bend and hard.tilt == pytest.approx(2 * easy.tilt)
        assert hard.reach - 1 == pytest.approx(2 * (easy.reach - 1))
        assert (hard.pace, hard.x, hard.size, hard.clothes) == (easy.pace, easy.x, easy.size, easy.clothes)


def test_a_finished_folder_is_left_unchanged_and_missing_files_are_added(world, tmp_path):
    toy = tmp_path / "toy"
    shutil.copytree(world, toy)
    for lost in ("train/train_000003.pose", "test/test_000001.mp4"):
        (toy / lost).unlink()
    kept = {path: path.stat().st_mtime_ns for path in toy.glob("train/train_00000[012].*")}
    assert make_sign_world(toy, **SIZES, num_processes=1) == toy
    assert contents(toy) == contents(world)
    assert len(kept) == 6 and {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(ValueError, match="made with other arguments or by another version"):
        make_sign_world(toy, **SIZES, difficulty="hard")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_validation_clips": 0}, "num_validation_clips must be at least 1, got 0"),
        ({"num_test_clips": 0}, "num_test_clips must be at least 1, got 0"),
        ({"num_signers": 0}, "num_signers must be at least 1, got 0"),
        ({"num_frames": 19}, "num_frames must be at least 20, got 19"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"difficulty": "medium"}, "Unknown `difficulty` 'medium'; known are easy, hard."),
        ({"hidden_hand": "both"}, "Unknown `hidden_hand` 'both'; known are None, left, right."),
        ({"num_train_clips": 5}, "num_train_clips must be at least"),
        ({"num_test_clips": 10301}, "may be 10500 together, half of all sentences, got 200 and 10301"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_sign_world(tmp_path / "toy", **arguments)
    assert not (tmp_path / "toy").exists()
