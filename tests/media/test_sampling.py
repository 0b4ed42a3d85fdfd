"""Tests of the frame sampling strategies."""

import json

import numpy as np
import pytest

from simple_multimodal.media import FrameIndex, MediaError, sample_positions
from simple_multimodal.media.sampling import segment_positions


def make_index(num_frames: int, rate: float = 10.0) -> FrameIndex:
    return FrameIndex(
        num_frames=num_frames,
        seconds=np.arange(num_frames) / rate,
        width=4,
        height=4,
        duration_seconds=num_frames / rate,
        path="clip.mp4",
    )


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (100, 4, [12, 37, 62, 87]),
        (100, 1, [50]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
    ],
)
def test_uniform_takes_the_centre_of_each_part(total, num_frames, expected):
    assert sample_positions(make_index(total), num_frames) == expected


def test_jittered_samples_one_frame_of_each_part():
    index = make_index(80)
    samples = [sample_positions(index, 8, "jittered", generator=np.random.default_rng(seed)) for seed in range(200)]
    parts = np.array(samples) // 10
    assert (parts == np.arange(8)).all()
    assert set(np.array(samples)[:, 0]) == set(range(10))  # every frame of a part is chosen at some point
    assert samples[3] == sample_positions(index, 8, "jittered", generator=np.random.default_rng(3))


@pytest.mark.parametrize("total", [1, 2, 5])
def test_jittered_repeats_frames_of_a_short_clip(total):
    positions = sample_positions(make_index(total), 8, "jittered", generator=np.random.default_rng(0))
    assert len(positions) == 8 and positions == sorted(positions) and set(positions) <= set(range(total))


@pytest.mark.parametrize(
    ("total", "num_frames", "stride", "expected"),
    [
        (100, 4, 2, [46, 48, 50, 52]),
        (7, 4, 2, [0, 2, 4, 6]),
        (5, 4, 2, [0, 2, 4, 4]),
        (1, 3, 4, [0, 0, 0]),
        (9, 1, 4, [4]),
    ],
)
def test_dense_is_central_without_a_generator(total, num_frames, stride, expected):
    assert sample_positions(make_index(total), num_frames, "dense", stride=stride) == expected


def test_dense_starts_anywhere_with_a_generator():
    index = make_index(10)
    starts = set()
    for seed in range(100):
        positions = sample_positions(index, 4, "dense", stride=2, generator=np.random.default_rng(seed))
        assert np.diff(positions).tolist() == [2, 2, 2]
        starts.add(positions[0])
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (100, 8, [0, 12, 24, 36, 48, 60, 72, 84]),  # the exact step is 12.5
        (15, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (7, 8, [0] * 8),
    ],
)
def test_alpro_rounds_its_step_down(total, num_frames, expected):
    assert sample_positions(make_index(total), num_frames, "alpro") == expected


def test_alpro_chooses_frames_of_the_segment():
    assert sample_positions(make_index(100), 4, "alpro", start_seconds=2.0, end_seconds=3.1) == [20, 22, 24, 26]


def test_alpro_chooses_the_frames_of_the_original(shared_dir):
    cases = json.loads((shared_dir / "data/alpro/frame_sampling_golden.json").read_text())["cases"]
    assert cases
    for case in cases:
        assert sample_positions(make_index(case["vlen"]), case["n"], "alpro") == case["indices"], case


def test_a_segment_is_half_open():
    index = make_index(100)  # frame i at i / 10 s
    assert segment_positions(index) == (0, 100)
    assert segment_positions(index, 1.0, 2.0) == (10, 20)
    assert segment_positions(index, 2.0, 3.0) == (20, 30)
    assert segment_positions(index, 9.5, 500.0) == (95, 100)
    assert sample_positions(index, 2, start_seconds=1.0, end_seconds=2.0) == [12, 17]


def test_a_segment_between_two_frames_has_the_frame_on_screen():
    index = make_index(100)
    assert segment_positions(index, 1.02, 1.08) == (10, 11)
    assert segment_positions(index, 9.95) == (99, 100)  # the last frame is shown until 10.0


def test_the_error_for_a_segment_after_the_end_names_the_file():
    with pytest.raises(MediaError, match="clip.mp4.*10.0 s, after the video's end"):
        sample_positions(make_index(100), 4, start_seconds=10.0, end_seconds=11.0)


@pytest.mark.parametrize("segment", [(-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (float("nan"), 2.0), (0.0, float("nan"))])
def test_invalid_segments_are_refused(segment):
    with pytest.raises(ValueError, match="not allowed"):
        sample_positions(make_index(100), 4, start_seconds=segment[0], end_seconds=segment[1])


def test_invalid_arguments_are_refused():
    index = make_index(100)
    with pytest.raises(ValueError, match="num_frames is 0"):
        sample_positions(index, 0)
    with pytest.raises(ValueError, match="stride is 0"):
        sample_positions(index, 4, "dense", stride=0)
    with pytest.raises(ValueError, match="'middle'; allowed are uniform, jittered, dense"):
        sample_positions(index, 4, "middle")
    with pytest.raises(ValueError, match="give a generator"):
        sample_positions(index, 4, "jittered")
