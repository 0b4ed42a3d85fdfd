"""Captions that occur with several clips, in a small example and in a real test set."""

import csv

import numpy as np
import pytest

from simple_multimodal.evaluation.captions import duplicate_captions


def test_captions_of_several_clips_are_duplicates():
    captions = ["a man sings", "A man\tsings ", "a dog", "a dog", "a man runs"]
    assert duplicate_captions(captions, np.array(["x", "y", "z", "z", "x"])).tolist() == [True, True, *[False] * 3]
    assert duplicate_captions([], np.array([])).tolist() == []
    with pytest.raises(ValueError, match="got 5 captions and 1 groups"):
        duplicate_captions(captions, np.array([0]))


def test_duplicates_in_a_real_test_set_are_counted(shared_dir):
    with open(shared_dir / "data/annotations/msrvtt/MSRVTT_JSFUSION_test.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    captions, clips = [row["sentence"] for row in rows], np.array([row["video_id"] for row in rows])
    assert duplicate_captions(captions, clips).sum() == 9
