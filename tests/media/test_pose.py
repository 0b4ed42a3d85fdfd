"""Tests of the reader of pose files."""

import hashlib
import json
import logging
import math
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from simple_multimodal.errors import InputError
from simple_multimodal.media import MediaError, read_pose
from simple_multimodal.media import write_pose as write_own_pose
from simple_multimodal.media.pose import PoseComponent, read_pose_header, segment_frames
from tests.media.pose_files import HAND, SMALL, header_bytes, points_of, text, write_pose

BROKEN = {  # what the message says of each file in ../shared
    "cut_confidence": "promises 4 frames, but has the bytes of 3",
    "cut_in_data": "promises 4 frames, but has the bytes of 0",
    "cut_in_header": "ends within its header",
    "empty": "the file is empty",
    "header_only": "ends within its header",
    "huge_frames": "promises 4294967295 frames",
    "huge_people": "promises 4 frames, but has the bytes of 0",
    "nan_rate": "nan frames per second",
    "no_frames": "no frames",
    "no_people": "no people",
    "not_finite": "infinite or not a number",
    "text": "not a pose file",
    "version_9": "its version would be 9",
    "zero_rate": "0 frames per second",
}


@pytest.fixture
def poses_dir(shared_dir):
    return shared_dir / "data/poses"


@pytest.mark.parametrize("version", [0.1, 0.2])
@pytest.mark.parametrize("num_people", [1, 3])
@pytest.mark.parametrize("num_dims", [2, 3])
def test_a_file_is_read_as_it_was_written(tmp_path, version, num_people, num_dims):
    data, confidence = points_of(5, num_people, num_dims=num_dims)
    path = write_pose(tmp_path / "a.pose", data, confidence, version=version, size=(640, 360, 9))
    pose = read_pose(path)
    np.testing.assert_array_equal(pose.data, data)
    np.testing.assert_array_equal(pose.confidence, confidence)
    header = pose.header
    assert (header.version, header.width, header.height, header.depth) == (version, 640, 360, 9)
    assert header.rate == 25.0 and header.duration_seconds == 0.2 and header.shape == data.shape
    assert {component.name: component.points for component in header.components} == SMALL
    assert [component.limbs.tolist() for component in header.components] == [[[0, 6]], [[0, 2]]]
    assert header == read_pose_header(path)
    people = {1: "", 3: "3 people with "}[num_people]
    assert header.content == f"pose {version}, {people}10 points, 640x360"


def test_golden_headers_and_points(poses_dir):
    expected = json.loads((poses_dir / "expected.json").read_text())["files"]
    assert len(expected) == 8
    for name, facts in expected.items():
        path = poses_dir / f"{name}.pose"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["file_sha256"]
        pose = read_pose(path)
        header = pose.header
        assert header.version == facts["version"] and header.rate == facts["rate"]
        assert [header.width, header.height] == [facts["width"], facts["height"]]
        assert list(header.shape) == list(pose.data.shape) == facts["shape"]
        assert [[part.name, len(part.points), part.format] for part in header.components] == facts["components"]
        assert hashlib.sha256(pose.data.astype("<f4").tobytes()).hexdigest() == facts["data_sha256"]
        assert hashlib.sha256(pose.confidence.astype("<f4").tobytes()).hexdigest() == facts["confidence_sha256"]
        assert np.count_nonzero(pose.confidence == 0) == facts["missing_points"]
        assert header.num_trailing_bytes == 0


@pytest.mark.parametrize("version", [0.1, 0.2])
@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (None, None, range(10)),
        (0.0, None, range(10)),
        (0.19, None, range(4, 10)),
        (0.16, 0.2, range(4, 5)),  # exactly one frame
        (0.17, 0.18, range(4, 5)),  # within one
        (0.19, 0.41, range(4, 11)),  # cut at the end
        (0.36, 7.0, range(9, 10)),
    ],
)
def test_a_segment_has_the_frames_on_screen(tmp_path, version, start, end, frames):
    data, confidence = points_of(10)
    path = write_pose(tmp_path / "a.pose", data, confidence, version=version)
    pose = read_pose(path, start_seconds=start, end_seconds=end)
    frames = slice(frames.start, min(frames.stop, 10))
    np.testing.assert_array_equal(pose.data, data[frames])
    np.testing.assert_array_equal(pose.confidence, confidence[frames])
    assert pose.offset_seconds == pytest.approx(frames.start / 25 - (start or 0))


def test_frames_are_chosen_as_by_the_reference():
    for milliseconds in range(0, 400, 7):
        for rate in (25.0, 24.0, struct.unpack("<f", struct.pack("<f", 29.97))[0]):
            seconds = milliseconds / 1000
            first, stop = segment_frames("", 20, rate, seconds, seconds + 0.1)
            assert first == math.floor(milliseconds / 1000 * rate)
            assert stop == min(math.ceil((seconds + 0.1) * rate), 20)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.4, None, r"starts at 0.4 s, after the end at 0.400 s; give seconds instead of milliseconds"),
        (500.0, None, r"starts at 500.0 s, after the end at 0.400 s$"),
        (1e308, None, "after the end"),
        (0.0, 400.0, "ends at 400.0 s, but the file at 0.400 s; give seconds instead of milliseconds"),
    ],
)
def test_a_segment_outside_is_an_error(tmp_path, start, end, message):
    path = write_pose(tmp_path / "a.pose", *points_of(10))
    with pytest.raises(MediaError, match=message):
        read_pose(path, start_seconds=start, end_seconds=end)


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (math.nan, None), (0.2, 0.2), (0.3, 0.2)])
def test_a_segment_that_is_not_allowed_is_an_error(tmp_path, start, end):
    with pytest.raises(InputError, match="start_seconds < end_seconds"):
        read_pose(write_pose(tmp_path / "a.pose"), start_seconds=start, end_seconds=end)


def test_only_the_bytes_of_a_segment_are_read(tmp_path):
    data, confidence = points_of(10)
    data[[2, 5]] = np.nan  # which would be an error
    confidence[:] = 1
    path = write_pose(tmp_path / "a.pose", data, confidence)
    np.testing.assert_array_equal(read_pose(path, start_seconds=0.12, end_seconds=0.2).data, data[3:5])
    tracemalloc.start()
    try:
        write_pose(path, *points_of(2000))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        read_pose(path, start_seconds=40.0, end_seconds=40.4)
        assert tracemalloc.get_traced_memory()[1] - before < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_broken_files_are_refused_by_name(poses_dir, caplog):
    paths = sorted((poses_dir / "broken").iterdir())
    assert {path.stem for path in paths} == {*BROKEN, "trailing_bytes"}
    for path in paths:
        if path.stem == "trailing_bytes":
            for _ in range(2):
                with caplog.at_level(logging.WARNING):
                    assert read_pose(path).header.num_trailing_bytes == 64
            assert [repr(str(path)) in message and "64 bytes" in message for message in caplog.messages] == [True]
            continue
        with pytest.raises(MediaError, match=BROKEN[path.stem]) as error:
            read_pose(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_header_alone_tells_of_broken_files(poses_dir):
    for path in sorted((poses_dir / "broken").iterdir()):
        if path.stem == "trailing_bytes":
            assert read_pose_header(path).num_trailing_bytes == 64
        elif path.stem == "not_finite":  # takes its points
            assert read_pose_header(path).num_frames == 4
        else:
            with pytest.raises(MediaError, match=BROKEN[path.stem]):
                read_pose_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00", "ends within its header"),
        (header_bytes({}) + struct.pack("<fIH", 25, 1, 1), "names no points"),
        (header_bytes({"A": ()}) + struct.pack("<fIH", 25, 1, 1), "names no points"),
        (header_bytes(SMALL, "XYB") + struct.pack("<fIH", 25, 1, 1), "the format 'XYB'; XYC and XYZC can be read"),
        (header_bytes(SMALL, "") + struct.pack("<fIH", 25, 1, 1), "the format ''"),
        (header_bytes(SMALL, version=0.0), "its version would be 0; videos belong in the column `video`"),
        (header_bytes({f"{n}": HAND for n in range(65)}), "65 components; at most 64"),
        (header_bytes({"A": ("x",) * 4000, "B": ("x",) * 97}), "more than 4096 points"),
        (header_bytes({"A": ("x",) * 60000}), "more than 4096 points"),
        (header_bytes(SMALL).replace(b"WRIST", b"WRI\xffT"), "not UTF-8"),
        (header_bytes(SMALL) + struct.pack("<fIH", math.inf, 1, 1), "inf frames per second"),
        (header_bytes(SMALL) + struct.pack("<fIH", -25, 1, 1), "-25 frames per second"),
        (header_bytes(SMALL, version=0.1) + struct.pack("<HHH", 25, 0, 1), "no frames"),
    ],
)
def test_other_broken_headers(tmp_path, content, message):
    path = tmp_path / "a.pose"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message):
        read_pose(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    for path in (tmp_path / "absent.pose", tmp_path):
        with pytest.raises(MediaError, match="cannot be opened|is a folder"):
            read_pose(path)


def test_points_that_are_missing_may_be_anything(tmp_path):
    data, confidence = points_of()
    data[confidence == 0] = np.nan
    assert np.isnan(data).any()
    read_pose(write_pose(tmp_path / "a.pose", data, confidence))
    data[confidence == 0] = 3e38  # whose sum is infinite
    np.testing.assert_array_equal(read_pose(write_pose(tmp_path / "b.pose", data, confidence)).data, data)
    for array, value in ((data, np.nan), (data, np.inf), (confidence, np.nan), (confidence, -np.inf)):
        kept = array[0, 0, 0].copy()
        confidence[0, 0, 0] = 1
        array[0, 0, 0] = value
        with pytest.raises(MediaError, match="infinite or not a number"):
            read_pose(write_pose(tmp_path / "c.pose", data, confidence))
        array[0, 0, 0] = kept


def test_a_long_header_is_read_completely(tmp_path):
    names = tuple(f"{number:04d}" + "x" * 400 for number in range(400))  # 160 KB
    data, confidence = points_of(2, components={"A": names})
    path = write_pose(tmp_path / "a.pose", data, confidence, components={"A": names})
    for _ in range(2):
        pose = read_pose(path)
        assert pose.header.components[0].points == names
        np.testing.assert_array_equal(pose.data, data)


def test_limbs_without_an_end_are_left_out(tmp_path):
    path = tmp_path / "a.pose"
    head = struct.pack("<fHHHH", 0.2, 1, 1, 0, 1) + text("A") + text("XYC") + struct.pack("<HHH", 2, 3, 0)
    head += text("a") + text("b") + struct.pack("<6H", 0, 1, 0, 2, 65535, 0)
    path.write_bytes(head + struct.pack("<fIH6f", 25, 1, 1, *range(6)))
    assert read_pose_header(path).components[0].limbs.tolist() == [[0, 1]]


@pytest.mark.parametrize(("promised", "num_trailing"), [(6, 0), (0, 0), (3, 0), (6, 20), (6, 1000)])
def test_frames_of_version_0_1_are_counted_by_the_size(tmp_path, promised, num_trailing):
    # 0 stands for a number that 16 bits cannot hold; bytes that make no whole frames do not count.
    data, confidence = points_of(6)
    path = write_pose(tmp_path / "a.pose", data, confidence, version=0.1, num_frames=promised)
    path.write_bytes(path.read_bytes() + bytes(num_trailing))
    pose = read_pose(path)
    np.testing.assert_array_equal(pose.data, data)
    np.testing.assert_array_equal(pose.confidence, confidence)
    assert pose.header.num_trailing_bytes == num_trailing


def test_version_0_1_that_is_cut_off_is_an_error(tmp_path):
    path = write_pose(tmp_path / "a.pose", *points_of(6), version=0.1)
    path.write_bytes(path.read_bytes()[: -4 * 10 * 4])  # a whole frame, but of the confidences
    with pytest.raises(MediaError, match="promises 6 frames, but has the bytes of 5"):
        read_pose(path)


def test_a_file_that_becomes_shorter_is_an_error(tmp_path, monkeypatch):
    path = write_pose(tmp_path / "a.pose")
    content = path.read_bytes()

    def cut(*arguments):
        path.write_bytes(content[:-8])
        return segment_frames(*arguments)

    monkeypatch.setattr("simple_multimodal.media.pose.segment_frames", cut)
    with pytest.raises(MediaError, match="was cut off while it was read"):
        read_pose(path)


def memory_of(path) -> int:
    """Return the most memory that reading a file takes, in bytes, whether it can be read or not."""
    tracemalloc.start()
    try:
        read_pose(path)
    except MediaError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_reading_takes_at_most_four_times_the_size(tmp_path, poses_dir):
    for path in [*poses_dir.glob("*.pose"), *(poses_dir / "broken").iterdir()]:
        assert memory_of(path) < max(4 * path.stat().st_size, 64 * 1024), path  # Python itself needs some
    data = np.zeros((1, 1, 4096, 2), np.float32)
    names = tuple(f"{number:03x}" for number in range(4096))  # small strings take much memory
    path = write_pose(tmp_path / "names.pose", data, data[..., 0], components={"A": names})
    assert memory_of(path) < 4 * path.stat().st_size + 2**19
    head = header_bytes(SMALL)
    path.write_bytes(head + struct.pack("<fIH", 25, 2**32 - 1, 65535) + bytes(2**20))
    assert memory_of(path) < 4 * path.stat().st_size


def test_no_damage_crashes_the_reader(tmp_path):
    content = write_pose(tmp_path / "a.pose", *points_of(3)).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "b.pose"
    num_read = 0
    for number in range(1000):
        if number % 2:
            damaged = content[: generator.integers(len(content))]
        else:
            damaged = bytearray(content)
            for place in generator.integers(len(content), size=generator.integers(1, 4)):
                damaged[place] ^= generator.integers(1, 256)
        path.write_bytes(damaged)
        try:
            pose = read_pose(path)
        except MediaError as error:
            assert str(path) in str(error)
        else:
            num_read += 1
            assert np.isfinite(pose.data[pose.confidence != 0]).all()
    assert 100 < num_read < 500  # damage to points cannot be told from points, a shorter file always can


def test_threads_read_what_one_thread_reads(tmp_path):
    expected = {}
    for number in range(12):  # more headers than are remembered
        components = {"A": tuple(f"{number}_{point}" for point in range(number + 2)), "B": HAND}
        data, confidence = points_of(3, components=components, seed=number)
        path = write_pose(tmp_path / f"{number}.pose", data, confidence, components=components)
        expected[path] = components, data, confidence
    order = np.random.default_rng(0).permutation(np.tile(np.arange(12), 417))[:5000]
    paths = list(expected)

    def is_right(number: int) -> bool:
        pose = read_pose(paths[number])
        components, data, confidence = expected[paths[number]]
        return (
            {component.name: component.points for component in pose.header.components} == components
            and np.array_equal(pose.data, data)
            and np.array_equal(pose.confidence, confidence)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, order))


def test_the_reference_reads_the_same(poses_dir):
    reference = pytest.importorskip("pose_format", reason="needs pose-format>=0.15, the reference")
    for path in poses_dir.glob("*.pose"):
        expected = reference.Pose.read(path.read_bytes())
        pose = read_pose(path)
        np.testing.assert_array_equal(pose.data, expected.body.data.data)
        np.testing.assert_array_equal(pose.confidence, expected.body.confidence)
        for ours, theirs in zip(pose.header.components, expected.header.components, strict=True):
            assert (ours.name, ours.format, list(ours.points)) == (theirs.name, theirs.format, theirs.points)
            assert ours.limbs.tolist() == [list(limb) for limb in theirs.limbs]


@pytest.mark.parametrize("num_people", [1, 3])
@pytest.mark.parametrize(("point_format", "num_dims"), [("XYC", 2), ("XYZC", 3)])
def test_written_bytes_are_those_of_the_format(tmp_path, num_people, point_format, num_dims):
    data, confidence = points_of(4, num_people, num_dims=num_dims)
    components = [
        PoseComponent(name, point_format, points, np.array([[0, len(points) - 1]])) for name, points in SMALL.items()
    ]
    size = {"width": 640, "height": 360, "depth": 9}
    for kind in (np.float32, np.float64):
        write_own_pose(
            tmp_path / "a.pose", data.astype(kind), confidence.astype(kind), components=components, rate=29.97, **size
        )
        expected = write_pose(tmp_path / "b.pose", data, confidence, rate=29.97, size=(640, 360, 9)).read_bytes()
        red, white = (struct.pack("<HHH", 255, *others) for others in ((0, 0), (255, 255)))
        assert expected.count(red) == len(SMALL)
        assert (tmp_path / "a.pose").read_bytes() == expected.replace(red, white)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.pose", "b.pose"]


@pytest.mark.parametrize(
    ("shape", "confidence_shape", "changes", "message"),
    [
        ((4, 1, 9, 3), (4, 1, 9), {}, "with 10 points and 3 dims as in `components`, got (4, 1, 9, 3) and (4, 1, 9)"),
        ((4, 1, 10, 2), (4, 1, 10), {}, "got (4, 1, 10, 2)"),
        ((4, 1, 10, 3), (4, 1, 9), {}, "and (4, 1, 9)"),
        ((4, 1, 10, 3), (3, 1, 10), {}, "and (3, 1, 10)"),
        ((4, 1, 10, 3), (4, 10), {}, "and (4, 10)"),
        ((0, 1, 10, 3), (0, 1, 10), {}, "got (0, 1, 10, 3)"),
        ((4, 0, 10, 3), (4, 0, 10), {}, "got (4, 0, 10, 3)"),
        ((4, 1, 0, 0), (4, 1, 0), {"components": ()}, "with 0 points"),
        ((4, 1, 10, 3), (4, 1, 10), {"rate": 0.0}, "`rate` must be 0.1 to 1000 frames per second, got 0.0"),
    ],
)
def test_poses_that_could_not_be_read_are_not_written(tmp_path, shape, confidence_shape, changes, message):
    components = [PoseComponent(name, "XYZC", points, np.zeros((0, 2))) for name, points in SMALL.items()]
    arguments = {"components": components, "rate": 25.0, "width": 64, "height": 64} | changes
    with pytest.raises(InputError) as raised:
        write_own_pose(tmp_path / "a.pose", np.zeros(shape), np.zeros(confidence_shape), **arguments)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())
