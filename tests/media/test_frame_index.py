"""Tests of the frame index: built from packets, built by decoding, and stored."""

import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest

from simple_multimodal.media import MediaError, get_video_backend, index_video, with_index
from simple_multimodal.media import frame_index as frame_index_module
from simple_multimodal.media import index_cache as index_cache_module
from simple_multimodal.media import packets as packets_module
from simple_multimodal.media.frame_index import FrameIndex, build_index, index_by_decoding, index_from_packets
from simple_multimodal.media.index_cache import FrameIndexCache, index_cache
from tests.media.media_files import HEIGHT, WIDTH, read_number, write_media, write_two_tracks

H265 = {"crf": "10", "x265-params": "log-level=none:keyint=12:bframes=3"}


def by_decoding(path) -> FrameIndex:
    """Return the index from decoding the whole file, without a packet table."""
    return replace(index_by_decoding(path), table=None)


def assert_same(index: FrameIndex, expected: FrameIndex) -> None:
    np.testing.assert_array_equal(index.seconds, expected.seconds)
    assert replace(index, seconds=None, table=None) == replace(expected, seconds=None, table=None)


def test_a_constant_frame_rate_is_indexed(numbered_video):
    index = index_video(numbered_video)
    assert (index.num_frames, index.width, index.height) == (60, WIDTH, HEIGHT)
    np.testing.assert_array_equal(index.seconds, np.arange(60) / 25)
    assert index.duration_seconds == pytest.approx(2.4)
    assert index.start_seconds == 0.0
    assert index.is_in_presentation_order


def test_a_variable_frame_rate_and_a_late_start_are_indexed(tmp_path):
    ticks = [50, 51, 53, 60, 61, 75]
    index = index_video(write_media(tmp_path / "late.mkv", num_frames=6, ticks=ticks))
    np.testing.assert_allclose(index.seconds, (np.array(ticks) - 50) / 25, atol=1e-9)
    assert index.start_seconds == 2.0


def test_a_changed_file_is_indexed_again(tmp_path):
    path = write_media(tmp_path / "clip.mp4", num_frames=5)
    assert index_video(path).num_frames == 5
    write_media(path, num_frames=7)
    assert index_video(path).num_frames == 7


def test_the_cache_drops_the_least_recently_used(tmp_path, monkeypatch):
    paths = [write_media(tmp_path / f"{name}.mp4", num_frames=n + 1) for n, name in enumerate("abc")]
    loaded = []

    def load(stored_path, path):
        loaded.append(path.stem)
        return FrameIndex(num_frames=1, seconds=np.zeros(1), width=1, height=1, duration_seconds=1.0)

    monkeypatch.setattr(index_cache_module, "_load_index", load)
    cache = FrameIndexCache(max_files=2)
    for position in (0, 1, 0, 2, 0, 1):
        cache.get(paths[position])
    assert loaded == ["a", "b", "c", "b"]


def test_a_cache_in_memory_alone_neither_reads_nor_writes_files(tmp_path, monkeypatch):
    path = write_media(tmp_path / "clip.mp4", num_frames=3)
    FrameIndexCache(4).get(path, tmp_path / "index")
    stored = sorted((tmp_path / "index").rglob("*"))
    monkeypatch.setattr(index_cache_module, "safe_open", lambda *args, **kwargs: pytest.fail("was opened"))
    cache = FrameIndexCache(4, on_disk=False)
    for folder in (tmp_path / "index", tmp_path / "other"):
        assert cache.get(path, folder).num_frames == cache.rebuild(path, folder).num_frames == 3
        assert cache.tracks(path, folder).video is not None
    assert sorted((tmp_path / "index").rglob("*")) == stored and not (tmp_path / "other").exists()


def _index_in_child(path, results):
    results.put(index_video(path).num_frames)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_the_cache_is_locked_does_not_hang(tmp_path):
    path = write_media(tmp_path / "clip.mp4", num_frames=3)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    child = fork.Process(target=_index_in_child, args=(path, results))
    with index_cache.lock:
        child.start()
    try:
        assert results.get(timeout=20) == 3
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "12", "bf": "3", "crf": "10"}),
        ("open.mkv", "libx264", {"g": "12", "bf": "2", "crf": "10", "x264-params": "open-gop=1"}),
        ("units_of_two_bytes.mov", "libx264", {"g": "250", "bf": "0", "crf": "10"}),
        ("hevc.mp4", "libx265", H265),
        ("plain.avi", "libx264", {"g": "12", "bf": "0", "crf": "10"}),
    ],
)
def test_an_index_from_packets_equals_that_from_decoding(tmp_path, name, codec, options):
    path = write_media(tmp_path / name, num_frames=40, codec=codec, codec_options=options)
    index = index_from_packets(path)
    assert_same(index, by_decoding(path))
    assert index.table.entries[0] == 0 and len(index.table.packets) == 40


@pytest.mark.parametrize(
    ("name", "codec", "options", "has_table"),
    [
        ("reordered.avi", "libx264", {"g": "12", "bf": "2", "crf": "10"}, True),  # verified by decoding, in any order
        ("clip.webm", "libvpx-vp9", {"g": "8", "b": "0", "crf": "10", "deadline": "realtime", "cpu-used": "8"}, True),
        ("clip.mov", "mjpeg", {"qscale": "2"}, True),
        ("clip.avi", "mpeg4", {"qscale": "2"}, False),
        ("clip.mpg", "mpeg2video", {"qscale": "2", "bf": "2"}, False),
        ("clip.ts", "libx264", {"bf": "2", "crf": "10"}, False),
    ],
)
def test_a_file_is_decoded_if_its_packets_are_not_sufficient(tmp_path, name, codec, options, has_table):
    path = write_media(tmp_path / name, num_frames=30, codec=codec, codec_options=options)
    assert index_from_packets(path) is None
    index = build_index(path)
    assert_same(index, by_decoding(path))
    assert (index.table is not None) == has_table


def packets_of(path) -> list[tuple[int, int]]:
    """Return the byte position and size of each video packet of a file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("place", [0, 4])  # the length of a unit, and its first byte
def test_a_file_with_a_damaged_packet_is_decoded(tmp_path, place):
    path = write_media(tmp_path / "clip.mp4", num_frames=40)
    content = bytearray(path.read_bytes())
    content[packets_of(path)[20][0] + place] ^= 0xFF
    path.write_bytes(content)
    assert index_from_packets(path) is None
    assert_same(build_index(path), by_decoding(path))


def test_frames_that_the_header_promises_but_the_stream_lacks_are_reported(tmp_path, caplog):
    whole = write_media(
        tmp_path / "whole.mp4",
        num_frames=60,
        codec_options={"g": "12", "crf": "10"},
        container={"movflags": "faststart"},
    )
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    index = index_video(path)
    assert 4 < index.num_frames < index.num_promised == 60
    assert f"cut.mp4': yields {index.num_frames} frames of the 60 that its header promises" in caplog.text


def test_a_wrong_index_is_replaced_and_the_file_is_read_again(tmp_path, caplog):
    path = write_media(tmp_path / "clip.mp4", num_frames=30)
    index = index_video(path)
    wrong = replace(index, table=replace(index.table, time_stamps=index.table.time_stamps + 1))
    index_cache.put(path, wrong, os.stat(path))
    backend = get_video_backend("pyav")
    frames = with_index(path, lambda index: backend.frames(path, [3, 17], index))
    assert [read_number(frame) for frame in frames] == [3, 17]
    assert "does not yield all frames that its packets promise" in caplog.text
    assert_same(index_video(path), index)
    assert index_video(path).table is None


def test_a_file_that_lost_frames_since_it_was_indexed_is_an_error(tmp_path):
    path = write_media(tmp_path / "clip.mpg", num_frames=20, codec="mpeg2video", codec_options={"qscale": "2"})
    index = index_video(path)
    write_media(path, num_frames=5, codec="mpeg2video", codec_options={"qscale": "2"})
    with pytest.raises(MediaError, match="clip.mpg.*has no frame 12, although 20"):
        get_video_backend("pyav").frames(path, [0, 12], index)


@pytest.mark.parametrize("name", ["ten.mp4", "ten.avi"])
def test_too_many_frames_are_refused(tmp_path, monkeypatch, name):
    for module in (frame_index_module, packets_module):
        monkeypatch.setattr(module, "MAX_FRAMES", 10)
    codec = "libx264" if name.endswith("mp4") else "mpeg4"
    assert build_index(write_media(tmp_path / name, num_frames=10, codec=codec, codec_options={})).num_frames == 10
    with pytest.raises(MediaError, match="more than 10 frames"):
        build_index(write_media(tmp_path / name, num_frames=11, codec=codec, codec_options={}))


def copy_from(path, target, first_shown: int, rate: int = 25):
    """Copy the packets with an edit list that hides the frames before `first_shown`, as `ffmpeg -ss -c copy` does."""
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", options={"use_editlist": "1", "avoid_negative_ts": "disabled"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                shift = round(first_shown / rate / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                output.mux(packet)
    return target


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("cut.mp4", "libx264", {"g": "20", "bf": "2", "crf": "10"}),
        ("cut.mov", "libx265", {"crf": "10", "x265-params": "log-level=none:keyint=20"}),
        ("decoded.mp4", "mpeg4", {"qscale": "2"}),
        ("decoded.mov", "mjpeg", {"qscale": "2"}),
    ],
)
def test_frames_hidden_by_an_edit_list_do_not_count_as_missing(tmp_path, caplog, name, codec, options):
    source = write_media(tmp_path / f"whole_{name}", num_frames=60, codec=codec, codec_options=options)
    path = copy_from(source, tmp_path / name, first_shown=8)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    index = index_video(path)
    assert (index.num_frames, index.num_promised) == (52, 52)
    assert "promises" not in caplog.text
    frames = with_index(path, lambda index: get_video_backend("pyav").frames(path, range(52), index))
    assert [read_number(frame) for frame in frames] == list(range(8, 60))


def test_missing_frames_are_detected_in_a_file_with_an_edit_list(tmp_path):
    source = write_media(tmp_path / "whole.mp4", num_frames=60, codec_options={"g": "12", "crf": "10"})
    content = copy_from(source, tmp_path / "cut.mp4", first_shown=8).read_bytes()
    media, moov = content.index(b"mdat") - 4, content.rindex(b"moov") - 4
    assert moov > media
    cut = bytearray(content)
    cut[media + (moov - media) * 2 // 3 : moov] = bytes(moov - media - (moov - media) * 2 // 3)
    (tmp_path / "cut.mp4").write_bytes(cut)
    index = index_video(tmp_path / "cut.mp4")
    assert index.num_frames < index.num_promised == 52


@pytest.mark.parametrize("rates", [(5, 25), (25, 5), (25, 24)])
@pytest.mark.parametrize(
    ("name", "codec"), [("two.mkv", "libx264"), ("two.mp4", "libx264"), ("two.ts", "libx264"), ("two.avi", "mpeg4")]
)
def test_all_readers_choose_the_same_of_two_video_tracks(tmp_path, caplog, name, codec, rates):
    path = write_two_tracks(tmp_path / name, rates, codec)
    index = index_video(path)
    frames = with_index(path, lambda index: get_video_backend("pyav").frames(path, range(index.num_frames), index))
    numbers = [read_number(frame) for frame in frames]
    assert index.num_frames == 3 * rates[index.stream]
    assert numbers == [1000 * index.stream + number for number in range(index.num_frames)]
    assert (index.table is not None) == name.endswith((".mkv", ".mp4")) and not caplog.text


# Stored on disk


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Names of the files for which an index was built."""
    names = []
    original = build_index

    def build(path):
        names.append(os.path.basename(path))
        return original(path)

    monkeypatch.setattr(index_cache_module, "build_index", build)
    return names


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mpg"])
def test_an_index_is_stored_for_later_processes_and_for_copies(tmp_path, builds, name):
    codec = {"codec": "mpeg2video", "codec_options": {"qscale": "2"}} if name == "clip.mpg" else {}
    path = write_media(tmp_path / name, num_frames=20, **codec)
    first = FrameIndexCache(4).get(path, tmp_path / "index")
    second = FrameIndexCache(4).get(path, tmp_path / "index")
    copy = tmp_path / f"copy_of_{name}"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(0, os.stat(path).st_mtime_ns))
    third = FrameIndexCache(4).get(copy, tmp_path / "index")
    assert builds == [name] and third.path == str(copy)
    assert_same(second, first)
    assert (second.table is None) == (first.table is None) == (name == "clip.mpg")
    if first.table is not None:
        for field, values in vars(first.table).items():
            np.testing.assert_array_equal(getattr(second.table, field), values)


def test_a_stored_index_with_unknown_values_is_rebuilt(tmp_path, builds):
    """As an earlier or later version may have stored it."""
    path = write_media(tmp_path / "clip.mp4", num_frames=20, waveform=np.sin, audio_seconds=2.0)
    FrameIndexCache(4).get(path, tmp_path / "index")
    (stored,) = (file for file in (tmp_path / "index").rglob("*") if file.is_file())
    content = stored.read_bytes()
    other = content.replace(b'probe\\": \\"audio', b'probe\\": \\"other')  # how the file is opened to find its audio
    assert other != content
    stored.write_bytes(other)
    assert FrameIndexCache(4).get(path, tmp_path / "index").tracks.audio.probe == "audio"
    assert builds == ["clip.mp4"] * 2 and stored.read_bytes() == content


def test_a_stored_index_that_cannot_be_read_is_rebuilt(tmp_path, builds):
    path = write_media(tmp_path / "clip.mp4", num_frames=20)
    FrameIndexCache(4).get(path, tmp_path / "index")
    (stored,) = (file for file in (tmp_path / "index").rglob("*") if file.is_file())
    content = stored.read_bytes()
    for damaged in (b"", content[: len(content) // 2], json.dumps({}).encode()):
        stored.write_bytes(damaged)
        assert FrameIndexCache(4).get(path, tmp_path / "index").num_frames == 20
    assert builds == ["clip.mp4"] * 4
    assert stored.read_bytes() == content


def test_concurrent_writers_do_not_interfere(tmp_path):
    path = write_media(tmp_path / "clip.mp4", num_frames=20)
    with ThreadPoolExecutor(8) as pool:
        indices = list(pool.map(lambda _: FrameIndexCache(4).get(path, tmp_path / "index"), range(32)))
    assert {index.num_frames for index in indices} == {20}
    assert len([file for file in (tmp_path / "index").rglob("*") if file.is_file()]) == 1


def test_a_warning_is_logged_if_an_index_cannot_be_stored(tmp_path, caplog):
    (tmp_path / "index").write_text("a file, not a folder")
    path = write_media(tmp_path / "clip.mp4", num_frames=20)
    assert FrameIndexCache(4).get(path, tmp_path / "index").num_frames == 20
    assert "frame indices cannot be stored" in caplog.text
