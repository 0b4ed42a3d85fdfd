"""Tests of the points that are used of each estimator's skeletons."""

import numpy as np
import pytest

from simple_multimodal.media import MediaError, Pose, read_pose
from simple_multimodal.processing import PoseProcessor
from simple_multimodal.processing.pose_layouts import _FACE_OUTLINES
from tests.media.pose_files import BODY, COCO, HAND, HOLISTIC, OPENPOSE, points_of, write_pose


def pose_of(tmp_path, data=None, confidence=None, **settings) -> Pose:
    return read_pose(write_pose(tmp_path / "a.pose", data, confidence, **settings))


@pytest.mark.parametrize(
    ("components", "num_points", "num_all", "hidden"),
    [
        (HOLISTIC, 178, 12 + 478 + 42 + 2, [6, 7]),
        ({name: HOLISTIC[name] for name in reversed(HOLISTIC)}, 178, 534, [176, 177]),
        (OPENPOSE, 9, 9, [3, 4, 5]),
        (COCO, 78, 78, [3, 4, 5]),
        ({f"{name}_133": points for name, points in COCO.items()}, 78, 78, [3, 4, 5]),
        ({f"{name}_136": points for name, points in COCO.items()}, 78, 78, [3, 4, 5]),
    ],
    ids=["holistic", "holistic in another order", "OpenPose", "COCO", "AlphaPose 133", "AlphaPose 136"],
)
def test_estimators(tmp_path, components, num_points, num_all, hidden):
    data, confidence = points_of(4, components=components, num_dims=2)
    pose = pose_of(tmp_path, data, np.ones_like(confidence), components=components)
    values = PoseProcessor(num_features=2 * num_points).extract(pose).values.reshape(4, num_points, 2)
    is_zero = (values == 0).all(dim=2)
    assert is_zero.any(dim=0).nonzero()[:, 0].tolist() == hidden and bool(is_zero[:, hidden].all())
    everything = PoseProcessor(num_features=2 * num_all, points="all").extract(pose).values
    assert everything.shape == (4, 2 * num_all)


def test_the_reduced_face_has_the_outlines(shared_dir):
    header = read_pose(shared_dir / "data/poses/clip062_reduced.pose").header
    assert header.components[1].points == tuple(map(str, _FACE_OUTLINES)) and len(_FACE_OUTLINES) == 128


def test_points_without_a_place(tmp_path):
    lacking = {**HOLISTIC, "FACE_LANDMARKS": tuple(map(str, range(466)))}
    with pytest.raises(MediaError, match="a.pose.*FACE_LANDMARKS lacks the points 466; set `points` to 'all'"):
        PoseProcessor().extract(pose_of(tmp_path, components=lacking))
    with pytest.raises(MediaError, match="a.pose.*POSE_LANDMARKS lacks the point RIGHT_SHOULDER"):
        PoseProcessor().extract(pose_of(tmp_path, components={"POSE_LANDMARKS": BODY[:2]}))
    with pytest.raises(MediaError, match="a.pose.*components are body, hand; .*OpenPose.*features of its frames"):
        PoseProcessor().extract(pose_of(tmp_path, components={"body": BODY, "hand": HAND}))


def test_equal_names_keep_their_places(tmp_path):
    components = {"pose_keypoints_2d": ("RShoulder", "LShoulder", "", "LShoulder"), "hand": ("", "")}
    data, confidence = points_of(components=components, num_dims=2)
    pose = pose_of(tmp_path, data, np.ones_like(confidence), components=components)
    values = PoseProcessor(num_features=12).extract(pose).values.numpy().reshape(6, 6, 2)
    unit = np.linalg.norm(values[:, 0] - values[:, 1], axis=1).mean()  # of the first points with these names
    assert float(unit) == pytest.approx(1, abs=1e-5)
    scale = (data[0, 0, 5] - data[0, 0, 4]) / (values[0, 5] - values[0, 4])
    np.testing.assert_allclose((values[:, 2:] - values[:, :1]) * scale, data[:, 0, 2:] - data[:, 0, :1], rtol=1e-3)


@pytest.mark.parametrize("components", [HOLISTIC, OPENPOSE, COCO], ids=["holistic", "OpenPose", "COCO"])
@pytest.mark.parametrize("points", ["reduced", "all"])
def test_the_reference_returns_the_same(tmp_path, components, points):
    reference = pytest.importorskip("pose_format", reason="needs pose-format>=0.15, the reference")
    from pose_format.utils.generic import pose_hide_legs, reduce_holistic

    pose = pose_of(tmp_path, *points_of(components=components), components=components)
    expected = reference.Pose.read((tmp_path / "a.pose").read_bytes())
    pose_hide_legs(expected)
    expected = (reduce_holistic(expected) if points == "reduced" else expected).normalize()
    expected = expected.torch().body.data.zero_filled().flatten(1)
    values = PoseProcessor(num_features=expected.shape[1], points=points).extract(pose).values
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
