"""Tests of the reader of features of frames."""

import struct
import tracemalloc

import numpy as np
import pytest

from simple_multimodal.media import MediaError, read_frame_features
from simple_multimodal.media.frame_features import is_feature_file, read_feature_header


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("start", "end", "frames"), [(None, None, slice(10)), (0.19, 0.41, slice(4, 10))])
def test_a_segment_is_read_as_it_was_saved(tmp_path, values, dtype, order, start, end, frames):
    np.save(tmp_path / "a.npy", np.array(values, dtype=dtype, order=order))
    features = read_frame_features(tmp_path / "a.npy", 25.0, start_seconds=start, end_seconds=end)
    assert features.values.dtype == np.float32 and features.values.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(features.values, values.astype(dtype).astype(np.float32)[frames])
    header = features.header
    assert (header.num_frames, header.size, header.rate, header.duration_seconds) == (10, 6, 25.0, 0.4)
    assert features.offset_seconds == pytest.approx((frames.start or 0) / 25 - (start or 0))
    assert header == read_feature_header(tmp_path / "a.npy", 25.0)
    assert header.content == f"npy, 6 {np.dtype(dtype).name} per frame"
    assert is_feature_file(tmp_path / "a.npy") and is_feature_file("A.NPY") and not is_feature_file("a.npy.pose")


def test_only_the_bytes_of_a_segment_are_read(tmp_path, values):
    values[[2, 5]] = np.nan  # which would be an error
    np.save(tmp_path / "a.npy", values)
    features = read_frame_features(tmp_path / "a.npy", 25.0, start_seconds=0.12, end_seconds=0.2)
    np.testing.assert_array_equal(features.values, values[3:5])
    with pytest.raises(MediaError, match="a.npy.*infinite or not a number"):
        read_frame_features(tmp_path / "a.npy", 25.0)
    np.save(tmp_path / "b.npy", np.zeros((100_000, 6), np.float32))
    tracemalloc.start()
    try:
        read_frame_features(tmp_path / "b.npy", 25.0, start_seconds=400.0, end_seconds=401.0)
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


def test_features_may_be_large(tmp_path):
    values = np.full((4, 6), 3e38, np.float32)  # whose sum is infinite
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(read_frame_features(tmp_path / "a.npy", 25.0).values, values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}]), "holds Python objects, which are never loaded"),
        (np.zeros((4, 2), np.int64), r"holds int64 of shape \(4, 2\)"),
        (np.zeros((4, 2), np.complex64), "holds complex64"),
        (np.zeros(4, np.float32), r"shape \(4,\)"),
        (np.zeros((4, 2, 2), np.float32), r"shape \(4, 2, 2\)"),
        (np.zeros((0, 2), np.float32), r"shape \(0, 2\)"),
        (np.zeros((4, 0), np.float32), r"shape \(4, 0\)"),
        (np.zeros((4, 2), [("速度", "<f4")]), r"of shape \(4, 2\); features are floating-point numbers"),
        (np.full((2, 2), 1e300), "infinite or not a number"),  # as float32
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_arrays_that_are_not_features(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(MediaError, match=message):
        read_frame_features(tmp_path / "a.npy", 25.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00", "is not a .npy file"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"{'descr':", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 200) + b"(" * 200, "is not a .npy file"),
    ],
)
def test_files_that_are_not_arrays(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(MediaError, match=message):
        read_frame_features(tmp_path / "a.npy", 25.0)


def test_a_file_of_another_size_than_its_header_says(tmp_path, values, caplog):
    path = tmp_path / "a.npy"
    np.save(path, values)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(MediaError, match="ends 1 bytes before the end of its features"):
        read_frame_features(path, 25.0)
    path.write_bytes(content + b"123")
    np.testing.assert_array_equal(read_frame_features(path, 25.0).values, values)
    assert "the 3 bytes at its end" in caplog.text


def test_no_damage_crashes_the_reader(tmp_path, values):
    path = tmp_path / "a.npy"
    np.save(path, values)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for number in range(400):
        damaged = bytearray(content[: generator.integers(len(content))] if number % 2 else content)
        for place in generator.integers(len(damaged) or 1, size=2 if damaged else 0):
            damaged[place] ^= generator.integers(1, 256)
        path.write_bytes(damaged)
        try:
            read_frame_features(path, 25.0)
        except MediaError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reading_takes_at_most_four_times_the_size(tmp_path, dtype, order):
    np.save(tmp_path / "a.npy", np.zeros((2000, 100), dtype, order=order))
    tracemalloc.start()
    try:
        read_frame_features(tmp_path / "a.npy", 25.0)
        assert tracemalloc.get_traced_memory()[1] < 4 * (tmp_path / "a.npy").stat().st_size
    finally:
        tracemalloc.stop()
