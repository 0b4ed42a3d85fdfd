"""Synthetic worlds of the benchmarks: attributes change the video or the audio, and validation clips are held out."""

import json

import numpy as np
import pytest

from benchmarks import worlds
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.media import index_video
from simple_multimodal.prepare.toy.media import SAMPLING_RATE, toy_generator

every_world = pytest.mark.parametrize("name", worlds.WORLDS)
TIMES = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE


@every_world
def test_every_value_of_an_attribute_changes_either_the_video_or_the_audio(name):
    world = worlds.WORLDS[name]
    usual = {attribute: next(iter(words)) for attribute, words in world.attributes.items()}

    def render(values):
        return (
            world.draw(values, 20, toy_generator(0, "video")).round(),
            world.play(values, TIMES, toy_generator(0, "audio")).round(4),
        )

    for attribute, words in world.attributes.items():
        shown = [render(usual | {attribute: value}) for value in words]
        for n, (image, audio) in enumerate(shown):
            assert image.shape == (20, 64, 64, 3) and audio.shape == TIMES.shape and np.isfinite(audio).all()
            for other_image, other_audio in shown[:n]:
                is_same = np.array_equal(image, other_image), np.array_equal(audio, other_audio)
                assert sorted(is_same) == [False, True], attribute  # only one of them changes


@every_world
def test_captions_name_every_attribute_and_validation_is_held_out(name, tmp_path):
    world = worlds.WORLDS[name]
    for template in world.captions:
        assert all(template.count(f"{{{attribute}}}") == 1 for attribute in world.attributes)
    sizes = {"num_train_clips": 3, "num_validation_clips": 2, "seed": 1}
    values = worlds.make_world(tmp_path, name, **sizes)
    rows = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    assert [len(rows[split]) for split in rows] == [3, 2]
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["validation"]}
    for row in rows["train"]:
        assert len(set(row["captions"])) == worlds.CAPTIONS_PER_CLIP and all(row[a] in values[a] for a in values)
    for row in RowDataset.from_manifest(tmp_path / "train.jsonl").rows(files="named"):
        seconds = index_video(row["video"]).num_frames / 10
        assert world.seconds[0] <= seconds <= world.seconds[1]
    before = (tmp_path / "train/train_00000.mp4").read_bytes()
    (tmp_path / "world.json").unlink()
    worlds.make_world(tmp_path, name, **sizes)
    assert (tmp_path / "train/train_00000.mp4").read_bytes() == before


def test_unknown_worlds_and_too_many_held_out_clips_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no world 'moon'; there are toy, polygons, textures, counts"):
        worlds.make_world(tmp_path, "moon")
    with pytest.raises(ValueError, match="polygons has 800 combinations"):
        worlds.make_world(tmp_path, "polygons", num_validation_clips=800)


def test_attributes_are_scored_by_the_best_clip():
    rows = [
        {"shape": "disc", "colour": "red"},
        {"shape": "disc", "colour": "blue"},
        {"shape": "star", "colour": "red"},
    ]
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.1, 0.9, 0.2]])
    assert worlds.attribute_scores(scores, rows, rows, ("shape", "colour")) == {"shape": 2 / 3, "colour": 1 / 3}
