"""Tests of the frame index and of the three video backends."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest

from simple_multimodal.media import (
    MediaError,
    get_video_backend,
    index_video,
    read_audio,
    sample_positions,
)
from simple_multimodal.media import container as container_module
from simple_multimodal.media.conversion import apply_display_matrix
from tests.faults.corpus import jpeg, mov, sized_jpeg
from tests.media.media_files import HEIGHT, WIDTH, numbered_frame, read_number, write_media, write_two_tracks


@pytest.fixture(params=["pyav", "torchcodec", "decord"])
def backend(request):
    try:
        return get_video_backend(request.param)
    except ImportError as error:
        pytest.skip(str(error))


# Frames


def test_every_frame_is_the_requested_one(backend, numbered_video):
    index = index_video(numbered_video)
    frames = backend.frames(numbered_video, range(60), index)
    assert frames.shape == (60, 3, HEIGHT, WIDTH) and frames.dtype == np.uint8
    assert [read_number(frame) for frame in frames] == list(range(60))


def test_positions_can_be_unordered_and_repeated(backend, numbered_video):
    positions = [41, 7, 7, 59, 0, np.int64(41)]
    frames = backend.frames(numbered_video, positions, index_video(numbered_video))
    assert [read_number(frame) for frame in frames] == positions


@pytest.mark.parametrize("positions", [[], [60], [0, -1]])
def test_positions_outside_the_video_are_refused(backend, numbered_video, positions):
    with pytest.raises(ValueError, match="numbered.mp4.*(at least one|0 to 59)"):
        backend.frames(numbered_video, positions, index_video(numbered_video))


def test_channels_are_in_rgb_order(backend, tmp_path):
    path = tmp_path / "orange.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        image = np.broadcast_to(np.array([250, 120, 10], dtype=np.uint8), (64, 64, 3))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        container.mux(stream.encode(None))
    frame = backend.frames(path, [0], index_video(path))[0]
    assert np.abs(frame.astype(int) - np.reshape([250, 120, 10], (3, 1, 1))).max() <= 3
    scaled = backend.frames(path, [0], index_video(path), (32, 48))[0]
    assert scaled.shape == (3, 32, 48)
    assert np.abs(scaled.astype(int) - np.reshape([250, 120, 10], (3, 1, 1))).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"g": "600", "bf": "3", "crf": "10"}),
        ("mkv", "libx265", {"crf": "10", "x265-params": "log-level=none"}),
        ("avi", "mpeg4", {"qscale": "2"}),
        ("mov", "mjpeg", {"qscale": "2"}),
        ("mpg", "mpeg2video", {"qscale": "2", "bf": "2"}),
        ("ts", "libx264", {"bf": "2", "crf": "10"}),
        ("webm", "libvpx-vp9", {"crf": "10", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_pyav_reads_every_frame_of_every_container(tmp_path, suffix, codec, options):
    path = write_media(tmp_path / f"clip.{suffix}", num_frames=30, codec=codec, codec_options=options)
    backend = get_video_backend("pyav")
    index = index_video(path)
    assert index.num_frames == 30
    np.testing.assert_allclose(index.seconds, np.arange(30) / 25, atol=1e-3)  # Matroska counts milliseconds
    assert [read_number(frame) for frame in backend.frames(path, range(30), index)] == list(range(30))


def test_a_video_of_one_frame_is_read(backend, tmp_path):
    path = write_media(tmp_path / "one.mp4", num_frames=1)
    index = index_video(path)
    assert (index.num_frames, index.duration_seconds) == (1, pytest.approx(0.04))
    assert read_number(backend.frames(path, [0, 0], index)[1]) == 0


def test_the_display_matrix_rotates_and_mirrors():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)  # [[0 1 2], [3 4 5]]
    turned = {
        (1, 0, 0, 1): [[0, 1, 2], [3, 4, 5]],
        (-1, 0, 0, -1): [[5, 4, 3], [2, 1, 0]],
        (-1, 0, 0, 1): [[2, 1, 0], [5, 4, 3]],
        (0, 1, -1, 0): [[3, 0], [4, 1], [5, 2]],  # a quarter turn clockwise
        (0, -1, 1, 0): [[2, 5], [1, 4], [0, 3]],
    }
    for matrix, expected in turned.items():
        assert apply_display_matrix(image, matrix).tolist() == expected


def test_frames_are_scaled_to_the_first_if_the_size_changes(tmp_path):
    path = tmp_path / "sizes.ts"
    parts = []
    for number, (width, height) in enumerate([(64, 48), (128, 96)]):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(3):
                image = np.full((height, width, 3), 60 + 100 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    backend = get_video_backend("pyav")
    index = index_video(path)
    frames = backend.frames(path, range(index.num_frames), index)
    assert frames.shape[1:] == (3, 48, 64)
    assert {round(mean / 20) * 20 for mean in frames.mean(axis=(1, 2, 3))} == {60, 160}


def test_backends_can_be_pickled_and_run_in_parallel(backend, numbered_video):
    backend = pickle.loads(pickle.dumps(backend))
    index = index_video(numbered_video)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda start: backend.frames(numbered_video, [start, start + 30], index), range(12)))
    assert [[read_number(frame) for frame in frames] for frames in results] == [[n, n + 30] for n in range(12)]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'opencv'; allowed are pyav, torchcodec, decord"):
        get_video_backend("opencv")


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_the_error_for_a_missing_package_has_the_install_command(monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        get_video_backend(name)


# Bad files


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("one_byte.mp4", b"x", "Invalid data"),
        ("zeros.mp4", bytes(4096), "Invalid data"),
        ("page.mp4", b"<html><body>not found</body></html>", "Invalid data"),
        ("list.mp4", b"ffconcat version 1.0\nfile numbered.mp4\n", "accepted containers"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nnumbered.ts\n", "accepted containers"),
        ("call.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "accepted"),
    ],
)
def test_files_that_are_not_media_are_refused(tmp_path, name, content, reason):
    write_media(tmp_path / "numbered.mp4", num_frames=3)
    write_media(tmp_path / "numbered.ts", num_frames=3, codec_options={"crf": "10"})
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MediaError, match=f"{name}.*{reason}"):
        index_video(path)


def test_paths_that_are_not_regular_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, reason in [
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.mp4", "a device, pipe or socket"),
        (tmp_path / "absent.mp4", "No such file"),
        ("a\0b.mp4", "null"),
        ("http://127.0.0.1:9/x.mp4", "No such file"),
        ("pipe:0", "No such file"),
    ]:
        with pytest.raises(MediaError, match=reason):
            index_video(path)


def test_a_name_that_looks_like_a_protocol_is_read_as_a_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "a.mp4", num_frames=3)
    os.rename("a.mp4", "concat:a%d|b.mp4")
    assert index_video("concat:a%d|b.mp4").num_frames == 3


def test_a_file_without_moov_is_refused(tmp_path, numbered_video):
    path = tmp_path / "cut.mp4"
    path.write_bytes(numbered_video.read_bytes()[:2000])  # the moov box lies at the end
    with pytest.raises(MediaError, match="cut.mp4"):
        index_video(path)


def test_the_remaining_frames_of_a_truncated_file_are_read(tmp_path):
    whole = write_media(tmp_path / "whole.mkv", num_frames=60)
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    backend = get_video_backend("pyav")
    index = index_video(path)
    assert 10 < index.num_frames < 50
    frames = backend.frames(path, range(index.num_frames), index)
    numbers = [read_number(frame) for frame in frames]
    assert numbers[:8] == list(range(8)) and numbers == sorted(numbers)


def test_damage_in_the_middle_does_not_end_the_video(tmp_path, caplog):
    path = write_media(tmp_path / "clip.avi", num_frames=30, codec="mjpeg", codec_options={"qscale": "2"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        damaged = packets[10]
        start, size = damaged.pos, damaged.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    backend = get_video_backend("pyav")
    index = index_video(path)
    frames = backend.frames(path, range(index.num_frames), index)
    assert [read_number(frame) for frame in frames] == [number for number in range(30) if number != 10]
    assert "clip.avi" in caplog.text and "1 damaged video packets" in caplog.text


def test_the_error_for_a_file_without_video_lists_its_streams(tmp_path):
    path = write_media(tmp_path / "audio.wav", waveform=np.sin, audio_seconds=0.1)
    with pytest.raises(MediaError, match="audio.wav.*no video stream.*streams: audio"):
        index_video(path)


def test_a_cover_image_is_not_a_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_frame(1)).reformat(format="yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    with pytest.raises(MediaError, match="no video stream"):
        index_video(path)


def test_an_image_beyond_the_pixel_limit_is_not_decoded(tmp_path):
    image = jpeg(tmp_path)
    path = tmp_path / "huge.mov"
    path.write_bytes(mov(1, size=len(image), data=sized_jpeg(image, 5000, 4000)))
    with pytest.raises(MediaError, match=f"more than {container_module.MAX_PIXELS} pixels"):
        index_video(path)


@pytest.mark.parametrize("limit, value", [("MAX_PACKETS", 5), ("MAX_PASS_SECONDS", -1), ("MAX_FILE_BYTES", 100)])
def test_a_file_beyond_the_limits_is_refused(tmp_path, monkeypatch, limit, value):
    path = write_media(tmp_path / "clip.mkv", num_frames=20)
    assert index_video(path).num_frames == 20
    os.utime(path, (0, 0))  # so that the index is not taken from memory
    monkeypatch.setattr(container_module, limit, value)
    with pytest.raises(MediaError, match="split it into shorter|at most 100 are allowed"):
        index_video(path)


def test_an_endless_search_times_out_and_is_not_taken_for_the_end_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "holes.mp3"
    with open(path, "wb") as file:
        file.truncate(2**34)
    monkeypatch.setattr(container_module, "MAX_STALL_SECONDS", 0.2)
    # The message depends on whether the limit is hit while the file is opened, as on a busy machine.
    with pytest.raises(MediaError, match="nothing that can be decoded was found|cannot be read as media"):
        read_audio(path, 16000)


def test_a_file_with_many_damaged_packets_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(10):
            packet = av.Packet(b"not a frame")
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            output.mux(packet)
    monkeypatch.setattr(container_module, "MAX_DAMAGED_PACKETS", 4)
    with pytest.raises(MediaError, match="more than 4 video packets are damaged"):
        index_video(path)


@pytest.mark.parametrize("size", [(8000, 4), (4, 8000)])
def test_a_frame_with_an_extreme_aspect_ratio_is_refused(tmp_path, size):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(*size, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="at most 64 times as long"):
        index_video(path)


# Real files


def clip_paths(shared_dir):
    return sorted((shared_dir / "data" / "clips" / "videos").iterdir())


def test_sixteen_frames_of_all_real_clips_are_read(shared_dir):
    backend = get_video_backend("pyav")
    paths = clip_paths(shared_dir)
    assert len(paths) == 52

    def read(path):
        index = index_video(path)
        assert np.all(np.diff(index.seconds) > 0) and index.seconds[0] == 0, path
        return backend.frames(path, sample_positions(index, 16), index).shape == (16, 3, index.height, index.width)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(read, paths))


@pytest.mark.parametrize(
    ("name", "num_frames", "is_in_presentation_order"),
    [
        ("clips/videos/clip024.avi", 74, False),
        ("clips/videos/clip026.avi", 83, False),  # a muxer name that is not UTF-8
        ("clips/videos/clip036.avi", 106, False),
        ("clips/videos/clip050.mp4", 101, True),  # 127 packets
        ("clips/videos/clip055.avi", 164, False),
        ("clips/videos/clip057.mp4", 390, True),  # several video streams
        ("clips/videos/clip065.avi", 68, True),  # 444 promised
        ("media/derived/nasa_theora_vorbis.ogv", 174, True),  # the decoder refuses 6 empty packets
        ("media/derived/bitflips.mp4", 178, True),
        ("media/derived/truncated_after_moov.mp4", 123, True),
        ("media/derived/truncated.webm", 124, True),
        ("media/decord/corrupted.mp4", 49, True),
        ("media/torchcodec/discard_first_keyframe.mp4", 25, True),
    ],
)
def test_difficult_files_have_the_expected_frame_counts(shared_dir, name, num_frames, is_in_presentation_order):
    index = index_video(shared_dir / "data" / name)
    assert (index.num_frames, index.is_in_presentation_order) == (num_frames, is_in_presentation_order)


@pytest.mark.parametrize("name", ["empty.mp4", "zeros.mp4", "truncated_no_moov.mp4", "nasa_16k.wav", "nasa_48k.flac"])
def test_unreadable_real_files_are_media_errors(shared_dir, name):
    with pytest.raises(MediaError, match=name):
        index_video(shared_dir / "data" / "media" / "derived" / name)


def test_a_rotated_file_is_upright(backend, shared_dir):
    folder = shared_dir / "data" / "media" / "derived"
    # The same stream, with a display matrix in the second file.
    upright, turned = folder / "nasa_h264_aac.mp4", folder / "nasa_h264_rot90.mp4"
    index = index_video(turned)
    assert (index.width, index.height) == (270, 480)
    expected = np.rot90(backend.frames(upright, [50], index_video(upright))[0], axes=(1, 2))  # counter-clockwise
    np.testing.assert_array_equal(backend.frames(turned, [50], index)[0], expected)
    assert backend.frames(turned, [50], index, (64, 32)).shape == (1, 3, 64, 32)


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
@pytest.mark.parametrize(("turned", "size"), [("video_90.mov", (320, 568)), ("video_180.mov", (568, 320))])
def test_backends_agree_on_rotation(shared_dir, name, turned, size):
    try:
        backend = get_video_backend(name)
    except ImportError as error:
        pytest.skip(str(error))
    path = shared_dir / "data" / "media" / "decord" / turned
    index = index_video(path)
    assert (index.width, index.height) == size
    ours = get_video_backend("pyav").frames(path, [0, 2], index).astype(int)
    assert np.abs(ours - backend.frames(path, [0, 2], index)).mean() < 1


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
@pytest.mark.parametrize("clip", ["clip000.mp4", "clip032.mp4", "clip058.mkv", "clip060.mp4", "clip068.mp4"])
def test_backends_agree_on_real_h264(shared_dir, name, clip):
    try:
        backend = get_video_backend(name)
    except ImportError as error:
        pytest.skip(str(error))
    path = shared_dir / "data" / "clips" / "videos" / clip
    index = index_video(path)
    positions = sample_positions(index, 8)
    ours = get_video_backend("pyav").frames(path, positions, index)
    theirs = backend.frames(path, positions, index)
    assert np.abs(ours.astype(int) - theirs).mean(axis=(1, 2, 3)).max() < 1


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
@pytest.mark.parametrize("clip", ["clip024.avi", "clip034.avi", "clip039.mpg"])
def test_backends_refuse_files_whose_frames_they_get_wrong(shared_dir, name, clip):
    try:
        backend = get_video_backend(name)
    except ImportError as error:
        pytest.skip(str(error))
    path = shared_dir / "data" / "clips" / "videos" / clip
    with pytest.raises(MediaError, match=f"{clip}.*{name}"):
        backend.frames(path, [0, 1, 40], index_video(path))


@pytest.mark.parametrize("rates", [(5, 25), (25, 5), (25, 24)])
def test_backends_read_the_indexed_one_of_two_video_tracks_or_refuse_the_file(backend, tmp_path, rates):
    path = write_two_tracks(tmp_path / "two.mkv", rates, "libx264")
    index = index_video(path)
    try:
        frames = backend.frames(path, [0, 7, 14], index)
    except MediaError:
        assert type(backend).__name__ == "DecordBackend"  # which cannot select a stream
    else:
        assert [read_number(frame) % 1000 for frame in frames] == [0, 7, 14]
        assert {read_number(frame) // 1000 for frame in frames} == {index.stream}
