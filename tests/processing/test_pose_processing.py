"""Tests of the pose processor."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch

from simple_multimodal.errors import InputError
from simple_multimodal.media import FrameFeatures, MediaError, Pose, read_frame_features, read_pose
from simple_multimodal.processing import PoseProcessor
from tests.media.pose_files import HOLISTIC, SMALL, points_of, write_pose

NUM_SMALL = 3 * (6 + 3)  # of the small skeleton, reduced: the nose is left out
SEGMENTS = {  # keys of features.npz
    "reduced": {},
    "full": {},
    "reduced_stride_2": {},
    "reduced_ms_190_610": {"start_seconds": 0.19, "end_seconds": 0.61},
    "reduced_frames_3_9": {"start_seconds": 3 / 25, "end_seconds": 9 / 25},
    "reduced_ms_start_only": {"start_seconds": 0.19},
}


def pose_of(tmp_path, data=None, confidence=None, *, start_seconds=None, end_seconds=None, **settings) -> Pose:
    path = write_pose(tmp_path / "a.pose", data, confidence, **settings)
    return read_pose(path, start_seconds=start_seconds, end_seconds=end_seconds)


def small(**settings) -> PoseProcessor:
    return PoseProcessor(**{"num_features": NUM_SMALL, **settings})


@pytest.fixture
def pose(tmp_path) -> Pose:
    return pose_of(tmp_path)


@pytest.fixture
def whole(tmp_path) -> Pose:
    """Pose without missing points."""
    data, confidence = points_of(20)
    return pose_of(tmp_path, data, np.ones_like(confidence))


def naive(pose: Pose, person: int = 0, num_dims: int = 3) -> np.ndarray:
    """Return the features of the small skeleton, reduced, point by point."""
    data, confidence = pose.data[:, person, :, :num_dims].astype(float), pose.confidence[:, person]
    names = [point for points in SMALL.values() for point in points]
    left, right = names.index("LEFT_SHOULDER"), names.index("RIGHT_SHOULDER")
    both = [frame for frame in range(len(data)) if confidence[frame, left] != 0 and confidence[frame, right] != 0]
    middle = np.mean([(data[frame, left] + data[frame, right]) / 2 for frame in both], axis=0)
    unit = np.mean([np.linalg.norm(data[frame, left] - data[frame, right]) for frame in both])
    rows = []
    for frame in range(len(data)):
        row = []
        for point, name in enumerate(names):
            if name != "NOSE":
                is_there = confidence[frame, point] != 0 and "HIP" not in name
                row += list((data[frame, point] - middle) / unit) if is_there else [0.0] * num_dims
        rows.append(row)
    return np.array(rows)


def test_golden_features(shared_dir):
    folder = shared_dir / "data/poses"
    golden = np.load(folder / "features.npz")
    expected = json.loads((folder / "expected.json").read_text())["files"]
    num_compared = 0
    for name in golden.files:
        file, key = name.split(".")
        processor = PoseProcessor(
            num_features=golden[name].shape[1],
            points="all" if key == "full" else "reduced",
            frame_stride=2 if "stride" in key else 1,
        )
        pose = read_pose(folder / f"{file}.pose", **SEGMENTS[key])
        if file == "no_shoulders":  # the reference returns pixels
            with pytest.raises(MediaError, match="no_shoulders.pose.*no frame of the segment has both shoulders"):
                processor.extract(pose)
            continue
        values = processor.extract(pose).values
        np.testing.assert_allclose(values.numpy(), golden[name], rtol=0, atol=1e-5)
        assert list(values.shape) == expected[file][key]["shape"]
        assert float(values.mean()) == pytest.approx(expected[file][key]["mean"], abs=1e-5)
        num_compared += 1
    assert num_compared == 12


def test_golden_errors(shared_dir):
    folder = shared_dir / "data/poses"
    with pytest.raises(MediaError, match="starts at 1000.0 s, after the end"):
        read_pose(folder / "clip055.pose", start_seconds=1000.0)
    with pytest.raises(MediaError, match="hands_v01.pose.*components are LEFT_HAND_LANDMARKS, RIGHT_HAND_LANDMARKS"):
        PoseProcessor().extract(read_pose(folder / "hands_v01.pose"))


@pytest.mark.parametrize("version", [0.1, 0.2])
def test_points_are_normalised_by_the_shoulders(tmp_path, version):
    data, confidence = points_of(6, 2)
    pose = pose_of(tmp_path, data, confidence, version=version)
    for person in (0, 1):
        sequence = small(person=person).extract(pose)
        assert sequence.values.dtype == sequence.seconds.dtype == torch.float32
        np.testing.assert_allclose(sequence.values.numpy(), naive(pose, person), atol=1e-5)
    np.testing.assert_array_equal(pose.data, data)  # unchanged


def test_a_segment_is_cut_before_it_is_normalised(tmp_path, pose):
    part = pose_of(tmp_path, start_seconds=0.05, end_seconds=0.2)
    sequence = small().extract(part)
    np.testing.assert_allclose(sequence.values.numpy(), naive(part), atol=1e-5)
    assert not np.allclose(sequence.values.numpy(), small().extract(pose).values.numpy()[1:5], atol=1e-2)
    np.testing.assert_allclose(sequence.seconds, [0, 0.03, 0.07, 0.11], atol=1e-6)  # frame 1 begins at 0.04


def test_all_points_keep_their_places(pose):
    values = small(points="all", num_features=30).extract(pose).values.numpy().reshape(6, 10, 3)
    np.testing.assert_allclose(values[:, [1, 2, 3, 4, 7, 8, 9]].reshape(6, -1), naive(pose).reshape(6, 9, 3)[
        :, [0, 1, 2, 3, 6, 7, 8]
    ].reshape(6, -1), atol=1e-5)  # fmt: skip
    assert (values[:, 5:7] == 0).all() and values[:, 0].any()  # hips, nose


def test_depth(tmp_path, pose):
    as_is, scaled, drop = (
        small(depth=depth, num_features=18 if depth == "drop" else 27).extract(pose).values.numpy()
        for depth in ("as_is", "scaled", "drop")
    )
    assert not np.allclose(as_is, scaled)
    np.testing.assert_allclose(drop, naive(pose, num_dims=2), atol=1e-5)
    times_320 = pose._replace(data=pose.data * np.float32([1, 1, 320]))
    np.testing.assert_allclose(scaled, naive(times_320), atol=1e-4)
    with pytest.raises(MediaError, match="has no width"):
        small(depth="scaled").extract(pose_of(tmp_path, size=(0, 240, 0)))


def test_depth_does_not_scale_metres(tmp_path):
    components = {**SMALL, "POSE_WORLD_LANDMARKS": ("NOSE",)}
    data, confidence = points_of(components=components)
    data[..., 10, 2] = 0.5
    pose = pose_of(tmp_path, data, np.ones_like(confidence), components=components)
    depths = []
    for depth in ("as_is", "scaled"):
        values = small(depth=depth, points="all", num_features=33).extract(pose).values.reshape(6, 11, 3)
        unit = (values[:, 1] - values[:, 2]).norm(dim=-1).mean()  # of the shoulders
        assert float(unit) == pytest.approx(1)
        depths.append(values[:, 10, 2])
    middle = 320 * data[:, 0, 1:3, 2].mean()
    shoulders = data[:, 0, 1:3] * np.float32([1, 1, 320])
    distance = np.linalg.norm(shoulders[:, 0] - shoulders[:, 1], axis=1).mean()
    np.testing.assert_allclose(depths[1], (0.5 - middle) / distance, rtol=1e-4)


def test_shoulders_that_cannot_be_used(tmp_path):
    data, confidence = points_of()
    confidence[:] = 1
    confidence[::2, 0, 1], confidence[1::2, 0, 2] = 0, 0  # one of them in every frame
    with pytest.raises(MediaError, match="a.pose.*no frame of the segment has both shoulders"):
        small().extract(pose_of(tmp_path, data, confidence))
    confidence[3] = 1
    np.testing.assert_allclose(  # one frame is enough
        small().extract(pose_of(tmp_path, data, confidence)).values.numpy(),
        naive(read_pose(tmp_path / "a.pose")),
        atol=1e-5,
    )
    data[:, :, 1] = data[:, :, 2]
    with pytest.raises(MediaError, match="its shoulders are 0 apart"):
        small().extract(pose_of(tmp_path, data, confidence))
    data[:, :, 1], data[:, :, 2] = 1e38, -1e38
    data[:, :, 3] = 3e38
    small().extract(pose_of(tmp_path, data, confidence))
    data[:, :, 1:3] = np.float32([[0, 0, 0], [1e-10, 0, 0]])
    with pytest.raises(MediaError, match="too far away"):
        small().extract(pose_of(tmp_path, data, confidence))


def test_a_person_who_is_not_there(pose):
    with pytest.raises(MediaError, match="a.pose.*has 1 people, but `person` .`pose_person`. is 1"):
        small(person=1).extract(pose)


def test_another_width_than_the_model_reads(pose):
    with pytest.raises(MediaError, match="a.pose.*has 27 numbers per frame, but 534 are expected; set `num_features`"):
        PoseProcessor().extract(pose)


@pytest.mark.parametrize("num_frames", [1, 4, 5, 20])
def test_every_nth_frame(tmp_path, num_frames):
    pose = pose_of(tmp_path, *points_of(num_frames, seed=1))
    every = small().extract(pose)
    fourth = small(frame_stride=4).extract(pose)
    np.testing.assert_array_equal(fourth.values, every.values[::4])
    np.testing.assert_array_equal(fourth.seconds, every.seconds[::4])


def test_the_rate_is_resampled(whole):
    every = small().extract(whole).values.numpy()
    half = small(target_rate=12.5).extract(whole)
    np.testing.assert_allclose(half.values, every[::2], atol=1e-6)
    np.testing.assert_allclose(half.seconds, np.arange(10) / 12.5, atol=1e-6)
    twice = small(target_rate=50.0).extract(whole)
    assert len(twice.values) == 40
    np.testing.assert_allclose(twice.values[::2], every, atol=1e-6)
    np.testing.assert_allclose(twice.values[1:-1:2], (every[1:] + every[:-1]) / 2, atol=1e-5)
    np.testing.assert_allclose(twice.values[-1], every[-1], atol=1e-6)  # on screen until the end
    same = small(target_rate=25.0).extract(whole)
    np.testing.assert_array_equal(same.values, every)
    third = small(target_rate=10.0, frame_stride=2).extract(whole)
    np.testing.assert_allclose(third.values, every[::5], atol=1e-6)
    np.testing.assert_allclose(third.seconds, [0, 0.2, 0.4, 0.6], atol=1e-6)


def test_a_rate_that_would_take_much_memory_is_refused(tmp_path):
    slow = pose_of(tmp_path, rate=1.5)
    assert len(small(target_rate=24.0).extract(slow).values) == 96
    with pytest.raises(
        MediaError, match="a.pose.*has 1.5 frames per second, .* `target_rate` .`pose_rate`., 25; at most 16 times"
    ):
        small(target_rate=25.0).extract(slow)


def test_preparing_takes_at_most_four_times_the_size(tmp_path):
    path = write_pose(tmp_path / "a.pose", *points_of(500, components=HOLISTIC), components=HOLISTIC)
    for settings in ({"num_features": 534}, {"num_features": 534 * 3, "points": "all", "rotation_std": 0.1}):
        processor = PoseProcessor(**settings)
        tracemalloc.start()
        try:
            processor.extract(read_pose(path), np.random.default_rng(0))
            assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size
        finally:
            tracemalloc.stop()


def test_one_frame_can_be_resampled(tmp_path):
    data, confidence = points_of(1)
    one = pose_of(tmp_path, data, np.ones_like(confidence))
    for rate, num_frames in ((5.0, 1), (25.0, 1), (100.0, 4)):
        values = small(target_rate=rate).extract(one).values
        np.testing.assert_allclose(values, small().extract(one).values.expand(num_frames, -1))


@pytest.mark.parametrize(
    ("num_frames", "rate", "target_rate", "expected"),
    [(3, 25.0, 12.5, 2), (4, 25.0, 12.5, 2), (1500, 15.0, 9.99, 999)],  # in floating point 999.0000000000001
)
def test_the_number_of_resampled_frames(tmp_path, num_frames, rate, target_rate, expected):
    np.save(tmp_path / "a.npy", np.zeros((num_frames, 1), np.float32))
    features = read_frame_features(tmp_path / "a.npy", rate)
    settings = {"num_features": 1, "target_rate": target_rate}
    assert len(PoseProcessor(**settings, max_frames=expected).extract(features).values) == expected
    with pytest.raises(MediaError, match=f"has {expected} frames, more than `max_frames`"):
        PoseProcessor(**settings, max_frames=expected - 1).extract(features)


def test_missing_points_are_not_interpolated(tmp_path):
    data, confidence = points_of(4)
    confidence[:] = 1
    confidence[1, 0, 7] = 0  # a point of the hand
    pose = pose_of(tmp_path, data, confidence)
    every = small().extract(pose).values.reshape(4, 9, 3)
    values = small(target_rate=100.0).extract(pose).values.reshape(16, 9, 3)
    np.testing.assert_array_equal(values[:2, 6], every[[0, 0], 6])  # the nearer frame has it
    assert not values[2:6, 6].any()  # the nearer frame lacks it
    np.testing.assert_array_equal(values[6:8, 6], every[[2, 2], 6])
    np.testing.assert_allclose(values[1, 5], 0.75 * every[0, 5] + 0.25 * every[1, 5], atol=1e-5)


def test_long_rows_are_refused_not_cut(whole):
    assert len(small(max_frames=20).extract(whole).values) == 20
    assert len(small(max_frames=10, frame_stride=2).extract(whole).values) == 10
    for settings in ({"max_frames": 19}, {"max_frames": 9, "frame_stride": 2}, {"max_frames": 39, "target_rate": 50}):
        with pytest.raises(MediaError, match="a.pose.*more than `max_frames` .`max_pose_frames`., .*start_seconds"):
            small(**settings).extract(whole)


def test_nothing_is_drawn_by_default(whole):
    np.testing.assert_array_equal(
        small().extract(whole, np.random.default_rng(0)).values, small().extract(whole).values
    )


@pytest.mark.parametrize(
    "settings",
    [{"rotation_std": 0.2}, {"shear_std": 0.2}, {"scale_std": 0.2}, {"rate_std": 0.2}, {"frame_dropout": 0.9}],
)
def test_augmentation_is_a_function_of_the_generator(whole, settings):
    processor = small(**settings)
    first, again, other = (processor.extract(whole, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.seconds, again.seconds)
    assert first.values.shape != other.values.shape or not np.array_equal(first.values, other.values)
    np.testing.assert_array_equal(processor.extract(whole).values, small().extract(whole).values)  # in evaluation


def test_space_is_augmented_as_one_matrix(tmp_path):
    pose = pose_of(tmp_path, *points_of(20))
    plain = small().extract(pose).values.reshape(-1, 3).numpy()
    shear, rotation, scale, _ = np.random.default_rng(3).normal(size=4) * 0.2
    values = small(rotation_std=0.2, shear_std=0.2, scale_std=0.2).extract(pose, np.random.default_rng(3)).values
    matrix = np.array([[1, shear], [0, 1]]) @ np.array(
        [[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]]
    )
    expected = plain[:, :2] @ (matrix @ np.diag([1, 1 + scale]))  # as augment2d of pose-format
    values = values.reshape(-1, 3).numpy()
    np.testing.assert_allclose(values[:, :2], expected, atol=1e-5)
    np.testing.assert_array_equal(values[:, 2], plain[:, 2])
    assert not values[(plain == 0).all(axis=1)].any()  # missing points stay missing


def test_hands_are_never_exchanged(whole):
    for seed in range(20):
        values = small(scale_std=5.0).extract(whole, np.random.default_rng(seed)).values.reshape(20, 9, 3)
        ratio = values[..., 1] / small().extract(whole).values.reshape(20, 9, 3)[..., 1].where(values[..., 1] != 0, 1)
        ratio = ratio[values[..., 1] != 0]
        assert 0.5 - 1e-3 <= float(ratio.min()) and float(ratio.max()) <= 2 + 1e-3


def test_the_speed_is_augmented_within_the_limit(whole):
    lengths = {len(small(rate_std=0.3).extract(whole, np.random.default_rng(seed)).values) for seed in range(30)}
    assert min(lengths) >= 10 and max(lengths) <= 40 and len(lengths) > 5 and max(lengths) > 20
    processor = small(rate_std=0.3, max_frames=20)
    lengths = {len(processor.extract(whole, np.random.default_rng(seed)).values) for seed in range(30)}
    assert max(lengths) == 20


def test_frames_are_dropped_in_order(whole):
    every = small().extract(whole)
    lengths = set()
    for seed in range(30):
        kept = small(frame_dropout=0.5).extract(whole, np.random.default_rng(seed))
        lengths.add(len(kept.values))
        frames = (kept.seconds * 25).round().long()
        assert bool((frames.diff() > 0).all())
        np.testing.assert_array_equal(kept.values, every.values[frames])
    assert min(lengths) >= 10 and max(lengths) <= 20 and len(lengths) > 3


def test_features_are_used_as_they_are(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    features = read_frame_features(tmp_path / "a.npy", 10.0, start_seconds=0.25)
    assert isinstance(features, FrameFeatures)
    processor = PoseProcessor(num_features=6, rotation_std=0.5)
    sequence = processor.extract(features, np.random.default_rng(0))
    np.testing.assert_array_equal(sequence.values, values[2:])
    np.testing.assert_allclose(sequence.seconds, [0, *(np.arange(1, 8) / 10 - 0.05)], atol=1e-6)
    half = PoseProcessor(num_features=6, target_rate=5.0).extract(features)
    np.testing.assert_allclose(half.values, values[2::2], atol=1e-6)
    with pytest.raises(MediaError, match="a.npy.*has 6 numbers per frame, but 534 are expected"):
        PoseProcessor().extract(features)


def test_a_batch_is_padded_with_zeros(tmp_path):
    poses = [pose_of(tmp_path, *points_of(length)) for length in (3, 6)]
    processor = small()
    batch = processor([poses[0], None, poses[1]])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "pose_values": ((3, 6, 27), torch.float32),
        "pose_attention_mask": ((3, 6), torch.bool),
        "pose_seconds": ((3, 6), torch.float32),
        "pose_mask": ((3,), torch.bool),
    }
    assert list(batch) == PoseProcessor.model_input_names
    assert batch["pose_mask"].tolist() == [True, False, True]
    assert batch["pose_attention_mask"].sum(dim=1).tolist() == [3, 0, 6]
    for row, pose in ((0, poses[0]), (2, poses[1])):
        alone = processor(pose)
        length = len(pose.data)
        assert torch.equal(batch["pose_values"][row, :length], alone["pose_values"][0])
        assert torch.equal(batch["pose_seconds"][row, :length], alone["pose_seconds"][0])
        assert not batch["pose_values"][row, length:].any() and not batch["pose_seconds"][row, length:].any()
    assert not batch["pose_values"][1].any() and not batch["pose_seconds"][1].any()


def test_a_batch_without_poses_has_one_frame():
    batch = PoseProcessor()([None, None])
    assert batch["pose_values"].shape == (2, 1, 534) and not batch["pose_values"].any()
    assert not batch["pose_attention_mask"].any() and not batch["pose_mask"].any()


def test_a_processor_can_be_saved(tmp_path):
    settings = {
        "num_features": 27, "points": "all", "depth": "scaled", "person": 1, "target_rate": 12.5, "frame_stride": 2,
        "max_frames": 300, "features_rate": 30.0, "rotation_std": 0.1, "shear_std": 0.2, "scale_std": 0.3,
        "rate_std": 0.4, "frame_dropout": 0.5,
    }  # fmt: skip
    processor = PoseProcessor(**settings)
    assert processor.to_dict() == settings and processor.input_size == (27,)
    assert PoseProcessor.from_dict(processor.to_dict(), depth="drop").to_dict() == {**settings, "depth": "drop"}
    (tmp_path / "processor_config.json").write_text(json.dumps({"pose_processor": processor.to_dict()}))
    assert PoseProcessor.from_pretrained(tmp_path).to_dict() == settings
    assert PoseProcessor.from_pretrained(tmp_path, max_frames=9, trust_remote_code=False).max_frames == 9
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(InputError, match="does not read poses"):
        PoseProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": "few"}, "Unknown `points` 'few'; known are reduced, all"),
        ({"depth": "z"}, "Unknown `depth` 'z'; known are as_is, scaled, drop"),
        ({"num_features": 0}, "1 or more"),
        ({"frame_stride": 0}, "1 or more"),
        ({"max_frames": 0}, "1 or more"),
        ({"person": -1}, "`person` must be 0 or more, got -1"),
        ({"target_rate": 0.0}, "`target_rate` must be"),
        ({"target_rate": math.nan}, "`target_rate` must be"),
        ({"features_rate": -1.0}, "`features_rate` must be"),
        ({"rotation_std": -0.1}, "0 or more"),
        ({"rate_std": math.inf}, "0 or more"),
        ({"frame_dropout": 1.0}, "less than 1"),
    ],
)
def test_settings_that_are_not_allowed(settings, message):
    with pytest.raises(InputError, match=message):
        PoseProcessor(**settings)


def test_no_damage_crashes_the_processor(tmp_path):
    path = write_pose(tmp_path / "a.pose")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(len(content), size=20):
            damaged[place] ^= generator.integers(1, 256)
        path.write_bytes(damaged)
        try:
            values = small(target_rate=10.0).extract(read_pose(path)).values
        except MediaError as error:
            assert str(path) in str(error)
        else:
            assert bool(values.isfinite().all())
