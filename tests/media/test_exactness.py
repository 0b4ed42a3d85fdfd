"""Frames decoded sparsely equal those of a full decode, bit for bit, on every real file that can be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.media import MediaError, get_video_backend, sample_positions, with_index
from simple_multimodal.media.frame_index import build_index
from tests.media.media_files import write_media

SIZE = (64, 64)
DATA = Path(__file__).resolve().parents[3] / "shared/data"
FILES = sorted([*DATA.glob("clips/videos/*"), *DATA.glob("media/*/*")])


def check(path) -> bool:
    """
    Compare uniform, dense and random frames with those of decoding from the start; return whether they can be decoded
    sparsely.
    """
    backend = get_video_backend("pyav")
    generator = np.random.default_rng(0)
    tables = []

    def read(index):
        random = generator.integers(0, index.num_frames, 40).tolist()
        requests = [sample_positions(index, 16), sample_positions(index, 16, "dense"), random]
        positions = sorted({position for request in requests for position in request})
        whole = backend.frames(path, positions, replace(index, table=None), SIZE)
        for request in requests:
            expected = whole[np.searchsorted(positions, request)]
            np.testing.assert_array_equal(backend.frames(path, request, index, SIZE), expected)
        tables.append(index.table)

    with_index(path, read)
    return tables[-1] is not None


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_real_file_is_decoded_exactly(path):
    try:
        index = build_index(path)
    except MediaError:
        assert path.suffix in {".wav", ".flac"} or path.stem in {"empty", "zeros", "truncated_no_moov"}
        return
    is_sparse = check(path)
    assert is_sparse or index.codec not in {"h264", "hevc", "vp9", "libdav1d"} or path.stem in {
        "corrupted", "bitflips", "truncated_after_moov", "nasa_h264_ac3",
    }  # fmt: skip


@pytest.mark.parametrize("num_frames", [20, 700])  # the second is read by seeking
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "30", "bf": "3", "crf": "20"}),
        ("open.mp4", "libx264", {"g": "30", "bf": "3", "crf": "20", "x264-params": "open-gop=1:b-pyramid=normal"}),
        ("open.mkv", "libx265", {"crf": "20", "x265-params": "log-level=none:keyint=30:bframes=4:open-gop=1"}),
        ("layers.mp4", "libx265", {"crf": "20", "x265-params": "log-level=none:keyint=30:temporal-layers=1"}),
        ("reordered.avi", "libx264", {"g": "30", "bf": "2", "crf": "20"}),
        ("clip.webm", "libvpx-vp9", {"g": "30", "b": "0", "crf": "30", "deadline": "realtime", "cpu-used": "8"}),
        ("clip.mov", "mjpeg", {"qscale": "2"}),
    ],
)
def test_every_codec_is_decoded_exactly(tmp_path, name, codec, options, num_frames):
    path = write_media(tmp_path / name, num_frames=num_frames, codec=codec, codec_options=options)
    assert check(path)
