"""Tests of the toy world: exact files, held-out combinations, twins, pairs, and answers that need both modalities."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from simple_multimodal.prepare.toy import make_toy_world
from simple_multimodal.prepare.toy.manifests import WORDS
from simple_multimodal.prepare.toy.media import (
    AUDIO_ATTRIBUTES,
    BACKGROUNDS,
    BEEP_FREQUENCY,
    VIDEO_ATTRIBUTES,
    ToyAudio,
    ToyVideo,
    render_audio,
    render_video,
)

SIZES = {
    "num_train_clips": 12,
    "num_validation_videos": 3,
    "num_validation_audio": 4,
    "num_question_clips": 9,
    "num_pairs": 6,
}
ATTRIBUTES = VIDEO_ATTRIBUTES | AUDIO_ATTRIBUTES


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_world(tmp_path_factory.mktemp("toy") / "world", **SIZES, num_processes=1)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0] if kind == "video" else container.streams.audio[0]
        return [bytes(packet) for packet in container.demux(stream)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def background_at(clip: dict, seconds: float) -> str:
    return clip["backgrounds"][sum(start <= seconds for start in clip["switch_seconds"]) - 1]


def test_files_are_identical_in_a_second_run_with_more_processes(world, tmp_path):
    again = make_toy_world(tmp_path / "again", **SIZES, num_processes=2)
    assert contents(again) == contents(world)
    other = make_toy_world(tmp_path / "other", **SIZES, seed=1, num_processes=1)
    clip = "train/train_000000.mp4"
    assert (other / clip).read_bytes() != (world / clip).read_bytes()


def test_the_folder_holds_the_files_that_the_manifests_name(world):
    assert {path.name for path in world.iterdir()} == {
        *("train", "validation", "questions", "toy.json", "clips.jsonl", "train.jsonl", "validation.jsonl"),
        *("audio_pairs.jsonl", "video_pairs.jsonl", "validation_audio_swapped.jsonl"),
        *("validation_video_swapped.jsonl", "train_questions.jsonl", "validation_questions.jsonl"),
        *("train_actions.jsonl", "validation_actions.jsonl"),
    }
    clips = read(world / "clips.jsonl")
    assert Counter(clip["split"] for clip in clips) == {"train": 12, "validation": 12, "questions": 9}
    named = {row["video"] for path in world.glob("*.jsonl") for row in read(path) if "video" in row}
    assert named == {str(path.relative_to(world)) for path in world.rglob("*.mp4")}
    for row in read(world / "train_actions.jsonl"):
        (truth,) = [clip for clip in clips if clip["id"] == row["id"]]
        assert len(row["labels"]) == 7 and set(row["labels"]) <= set(map(str, truth.values()))
    for name in ("train", "validation", "train_questions", "validation_questions"):
        rows = read(world / f"{name}.jsonl")
        assert len({row["id"] for row in rows}) == len(rows)


def test_clips_are_h264_and_aac_of_the_stated_format(world):
    with av.open(str(world / "train/train_000000.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", 64, 64)
        assert (video.frames, video.average_rate) == (36, 10)
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16000, 1)
        assert audio.duration * audio.time_base == video.duration * video.time_base == Fraction(18, 5)
        assert "creation_time" not in container.metadata and "encoder" not in container.metadata


def test_captions_name_every_attribute_but_neither_background_nor_beep(world):
    clips = {clip["id"]: clip for clip in read(world / "clips.jsonl")}
    rows = read(world / "train.jsonl") + read(world / "validation.jsonl")
    for row in rows:
        captions = row.get("captions") or [row["caption"]]
        assert len(set(captions)) == (3 if row["id"].startswith("train") else 1)
        for caption in captions:
            for attribute, values in ATTRIBUTES.items():
                named = {v for v in values for word in WORDS[v] if re.search(rf"\b{word}\b", caption)}
                assert named == {clips[row["id"]][attribute]}, caption
            assert not re.search(r"black|grey|brown|background|beep", caption)
        assert row["group"] == "-".join(clips[row["id"]][attribute] for attribute in ATTRIBUTES)


def test_held_out_combinations_do_not_occur_in_training(world):
    groups = {split: set() for split in ("train", "validation", "questions")}
    for clip in read(world / "clips.jsonl"):
        groups[clip["split"]].add(tuple(clip[attribute] for attribute in ATTRIBUTES))
    assert len(groups["train"]) == 12 and len(groups["validation"]) == 12
    assert not groups["train"] & (groups["validation"] | groups["questions"])


def test_validation_twins_share_one_encoded_stream_and_differ_in_the_other(world):
    for modality in ("audio", "video"):
        first = "p000_s000"
        second = "p000_s001" if modality == "audio" else "p001_s000"
        a, b = (world / f"validation/validation_{name}.mp4" for name in (first, second))
        assert (packets(a, "video") == packets(b, "video")) is (modality == "audio")
        assert (packets(a, "audio") == packets(b, "audio")) is (modality == "video")


def test_pairs_differ_in_one_modality_and_swapped_rows_exchange_it(world):
    clips = {clip["id"]: clip for clip in read(world / "clips.jsonl")}
    for modality, own, shared in (
        ("audio", AUDIO_ATTRIBUTES, VIDEO_ATTRIBUTES),
        ("video", VIDEO_ATTRIBUTES, AUDIO_ATTRIBUTES),
    ):
        pairs = read(world / f"{modality}_pairs.jsonl")
        swapped = {row["id"]: row for row in read(world / f"validation_{modality}_swapped.jsonl")}
        captions = {row["id"]: row["caption"] for row in read(world / "validation.jsonl")}
        assert len(pairs) == 6 and len(swapped) == 12
        assert len({frozenset((pair["a"], pair["b"])) for pair in pairs}) == 6
        assert sum(pair["num_different_attributes"] == 1 for pair in pairs) >= 3
        for pair in pairs:
            a, b = clips[pair["a"]], clips[pair["b"]]
            assert all(a[name] == b[name] for name in shared)
            assert pair["num_different_attributes"] == sum(a[name] != b[name] for name in own) > 0
            exchanged = swapped[pair["a_swapped"]], swapped[pair["b_swapped"]]
            videos, audios = [row["video"] for row in exchanged], [row["audio"] for row in exchanged]
            if modality == "audio":
                assert videos == [a["video"], b["video"]] and audios == [b["video"], a["video"]]
            else:
                assert videos == [b["video"], a["video"]] and audios == [a["video"], b["video"]]
            assert exchanged[0]["group"] == "-".join(b[name] for name in ATTRIBUTES)
            assert [row["caption"] for row in exchanged] == [captions[pair["b"]], captions[pair["a"]]]


def test_questions_have_the_true_answer(world):
    clips = {clip["id"]: clip for clip in read(world / "clips.jsonl")}
    for name, count in (("train_questions", 12), ("validation_questions", 9)):
        rows = read(world / f"{name}.jsonl")
        assert Counter(row["answer_type"] for row in rows) == dict.fromkeys(("video", "audio", "joint"), count)
        words = {"colour": "colour", "size": "size|big", "shape": "what shape|which shape", "motion": "way|direction"}
        words |= {"pitch": "pitch|high", "rhythm": "fast|pace", "timbre": "timbre|sound like", "background": "backgr"}
        for row in rows:
            clip = clips[row["group"]]
            asked = [key for key, pattern in words.items() if re.search(pattern, row["question"])]
            answers = {key: clip[key] for key in ATTRIBUTES} | {
                "background": background_at(clip, clip["beep_seconds"])
            }
            assert row["answer"] in [answers[key] for key in asked], row
            assert row["id"] == f"{clip['id']}_{row['answer_type']}" and row["video"] == clip["video"]


def test_every_held_out_video_and_audio_track_occurs_with_each_joint_answer_once(world):
    answers = {row["group"]: row["answer"] for row in read(world / "validation_questions.jsonl") if joint(row)}
    tables: dict[str, list[str]] = {}
    for clip, answer in answers.items():
        family, video, audio = re.fullmatch(r"(questions_\d+)_(p\d)_(s\d)", clip).groups()
        tables.setdefault(f"{family}_{video}", []).append(answer)
        tables.setdefault(f"{family}_{audio}", []).append(answer)
    assert len(tables) == 6
    assert all(sorted(table) == sorted(BACKGROUNDS) for table in tables.values())
    for name in ("p0", "p1", "p2"):  # each name stands for one video
        streams = [packets(world / f"questions/questions_000_{name}_s{n}.mp4", "video") for n in range(3)]
        assert streams[0] == streams[1] == streams[2]


def joint(row: dict) -> bool:
    return row["answer_type"] == "joint"


@pytest.mark.parametrize("num_segments", [6, 12, 24])
def test_timelines_are_balanced_and_beeps_of_questions_are_far_from_switches(num_segments, tmp_path):
    sizes = SIZES | {"num_train_clips": 3, "num_validation_videos": 2, "num_validation_audio": 2}
    toy = make_toy_world(tmp_path / "toy", **sizes, num_segments=num_segments, num_processes=1)
    seconds = 0.6 * num_segments
    for clip in read(toy / "clips.jsonl"):
        assert len(clip["backgrounds"]) == len(clip["switch_seconds"]) == num_segments
        assert all(a != b for a, b in pairwise(clip["backgrounds"]))
        shown = dict.fromkeys(BACKGROUNDS, 0.0)
        for name, (start, end) in zip(clip["backgrounds"], pairwise([*clip["switch_seconds"], seconds]), strict=True):
            shown[name] += end - start
        assert list(shown.values()) == pytest.approx([seconds / 3] * 3)
        if clip["split"] != "validation":
            distances = [abs(clip["beep_seconds"] - switch) for switch in [*clip["switch_seconds"], seconds]]
            assert min(distances) >= 0.25 - 1e-9
            num_sampled = 8 * num_segments // 6
            sampled = [int((n + 0.5) * 10 * seconds / num_sampled) / 10 for n in range(num_sampled)]
            nearest = min(sampled, key=lambda at: abs(at - clip["beep_seconds"]))
            assert background_at(clip, nearest + 1e-9) == background_at(clip, clip["beep_seconds"])
    with av.open(str(toy / "train/train_000000.mp4")) as container:
        assert container.streams.video[0].frames == round(10 * seconds)


def test_decoded_frames_show_the_stated_backgrounds(world):
    for clip in read(world / "clips.jsonl")[:4]:
        with av.open(str(world / clip["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for number, pixels in enumerate(frames):
            edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # without the object
            truth = BACKGROUNDS[background_at(clip, number / 10)]
            assert np.abs(np.median(edge, axis=0) - truth).max() < 12


def test_the_decoded_beep_is_at_the_stated_time(world):
    for clip in read(world / "clips.jsonl")[:6]:
        with av.open(str(world / clip["video"])) as container:
            waveform = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])[:57600]
        shifted = waveform * np.exp(-2j * np.pi * BEEP_FREQUENCY * np.arange(57600) / 16000)
        loudness = np.abs(np.convolve(shifted, np.ones(320) / 320, mode="same"))  # 20 ms
        heard = np.flatnonzero(loudness > loudness.max() / 2) / 16000
        assert heard.mean() == pytest.approx(clip["beep_seconds"], abs=0.005)
        assert heard.max() - heard.min() == pytest.approx(0.12, abs=0.02)


def test_a_finished_folder_is_left_unchanged_and_missing_files_are_added(world, tmp_path):
    toy = tmp_path / "toy"
    shutil.copytree(world, toy)
    lost = toy / "train/train_000003.mp4"
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in toy.rglob("*") if path.is_file()}
    assert make_toy_world(str(toy), **SIZES, num_processes=1) == toy
    assert contents(toy) == contents(world)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interrupted_run_is_completed(world, tmp_path):
    toy = tmp_path / "toy"
    shutil.copytree(world / "train", toy / "train")
    shutil.copy(world / "toy.json", toy / "toy.unfinished.json")
    (toy / "train/train_000003.mp4").rename(toy / "train/.train_000003.mp4.1.2.tmp")
    first = toy / "train/train_000000.mp4"
    written = first.stat().st_mtime_ns
    make_toy_world(toy, **SIZES, num_processes=1)
    assert contents(toy) == contents(world)
    assert first.stat().st_mtime_ns == written


def test_other_folders_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="made with other arguments or by another version"):
        make_toy_world(world, **SIZES, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a toy world. Choose a new or empty folder"):
        make_toy_world(tmp_path, **SIZES)
    with pytest.raises(ValueError, match="not a toy world"):
        make_toy_world(tmp_path / "notes.txt", **SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_clips": 0}, "num_train_clips must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"num_validation_audio": 28}, "num_validation_audio must be from 2 to 27, got 28"),
        ({"num_validation_videos": 1}, "num_validation_videos must be from 2 to 192, got 1"),
        ({"num_question_clips": 10}, "num_question_clips must be a multiple of 9 from 9 up, got 10"),
        ({"num_segments": 8}, "num_segments must be a multiple of 3 from 6 up, got 8"),
        ({"seconds": 3.5}, "seconds must be a multiple of 0.3 and at least 3.6 for 6 segments, got 3.5"),
        ({"seconds": 3.3}, "seconds must be a multiple of 0.3 and at least 3.6 for 6 segments, got 3.3"),
        ({"num_validation_videos": 192, "num_validation_audio": 27}, "All 5184 combinations of attributes are"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_toy_world(tmp_path / "toy", **arguments)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_the_object_crosses_the_frame_in_its_direction_and_stays_inside(motion, axis, sign):
    for size in ("small", "large"):
        backgrounds = ("black",) * 6
        video = ToyVideo("x", (size, "red", "circle", motion), "", backgrounds, (0, 6, 12, 18, 24, 30))
        frames = render_video(video, num_frames=36, seed=0)
        assert frames.shape == (36, 64, 64, 3) and frames.dtype == np.uint8
        is_object = (frames[..., 0] > 120) & (frames[..., 1] < 100)  # red, not the white of outline and wake
        assert not is_object[:, [0, -1]].any() and not is_object[:, :, [0, -1]].any()
        centres = np.array([np.argwhere(mask).mean(axis=0) for mask in is_object])
        assert np.all(np.diff(centres[:, axis]) * sign > -0.3)
        assert (centres[-1, axis] - centres[0, axis]) * sign > 24
        assert np.ptp(centres[:, 1 - axis]) < 1
        is_white = frames[18].min(axis=-1) > 120
        distances = (np.argwhere(is_white)[:, axis] - centres[18, axis]) * sign
        assert -distances.min() > distances.max() + 5  # the wake is behind the object


def test_nuisance_factors_depend_only_on_name_and_seed():
    audio = ToyAudio("x", ("low", "fast", "noisy"), "pitch", 1.0)
    waveform = render_audio(audio, num_samples=57600, seed=0)
    assert waveform.shape == (57600,) and waveform.dtype == np.float32 and np.abs(waveform).max() < 1
    assert np.array_equal(waveform, render_audio(audio, num_samples=57600, seed=0))
    assert not np.array_equal(waveform, render_audio(audio, num_samples=57600, seed=1))
    renamed = dataclasses.replace(audio, name="y")
    assert not np.array_equal(waveform, render_audio(renamed, num_samples=57600, seed=0))
