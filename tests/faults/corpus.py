"""The corpus of hostile and broken inputs: each case is built by code and has an expected outcome."""

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from safetensors.torch import save_file

from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from tests.media.media_files import write_media
from tests.models.tiny import FRAMES, HEIGHT, MEL_BINS, VOCAB_SIZE, WIDTH, WINDOW_FRAMES, tiny_config

Outcome = Literal["refused", "reads", "either"]
"""`either`: the damaged input may or may not be readable; reading must not crash or take long."""


@dataclass(frozen=True)
class Case:
    """
    An input and its expected outcome.

    Args:
        name (`str`): Unique name.
        kind (`str`): How it is read, see `READERS` in `hostile.py`.
        path (`Path`): Path of the file, folder or manifest.
        expected (`str`): Expected outcome.
        is_quick (`bool`): Whether it is in the ordinary test run.
    """

    name: str
    kind: str
    path: Path
    expected: Outcome
    is_quick: bool = False


class Payload:
    """Object whose pickle makes a folder when it is loaded."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def build_corpus(folder: Path, *, port: int, quick: bool = False) -> list[Case]:
    """
    Write the corpus.

    Args:
        folder (`Path`): Output folder, which must be empty.
        port (`int`): Port of the listener on 127.0.0.1 that all addresses in the corpus point to.
        quick (`bool`): Write only cases that are quick to make and read.

    Returns:
        `list[Case]`: The cases. Their payloads would make `folder / "executed"`.
    """
    address = f"127.0.0.1:{port}"
    cases = [
        *_media(folder / "media", address, quick),
        *_paths(folder / "paths", address),
        *_manifests(folder / "rows"),
    ]
    cases += [
        *_checkpoints(folder / "models", folder / "executed"),
        *_configs(folder / "configs", folder / "executed"),
    ]
    assert len({case.name for case in cases}) == len(cases)
    return [case for case in cases if case.is_quick or not quick]


# ---- Media ----
def _media(folder: Path, address: str, quick: bool) -> Iterator[Case]:
    folder.mkdir(parents=True)

    def case(name: str, content: bytes, expected: Outcome, is_quick: bool = False) -> Case:
        (folder / name).write_bytes(content)
        return Case(f"media/{name}", "media", folder / name, expected, is_quick)

    def made(path: Path, expected: Outcome = "reads", is_quick: bool = False) -> Case:
        return Case(f"media/{path.name}", "media", path, expected, is_quick)

    last = write_clip(folder / "moov_last.mp4").read_bytes()
    first = write_clip(folder / "moov_first.mp4", container={"movflags": "faststart"}).read_bytes()
    mkv = write_clip(folder / "clip.mkv").read_bytes()
    wav = write_media(folder / "audio.wav", waveform=ramp, audio_seconds=1.0).read_bytes()
    yield from (
        made(folder / name, is_quick=True) for name in ("moov_last.mp4", "moov_first.mp4", "clip.mkv", "audio.wav")
    )
    webm = b""
    if not quick:
        webm = write_clip(folder / "clip.webm", "libvpx-vp9", "libopus", 48000).read_bytes()
        yield made(folder / "clip.webm")
        yield made(write_clip(folder / "clip.avi", "mpeg4", "pcm_s16le"))

    # Not media.
    zip_path = folder / "archive.zip"
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr("a.txt", "a")
    noise = np.random.default_rng(0).bytes(4096)
    nothing = {
        "empty": b"",
        "one_byte": b"\0",
        "noise": noise,
        "text": b"hello " * 100,
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "zip": zip_path.read_bytes(),
        "pickle": pickle.dumps([1, 2, 3]),
        "elf": b"\x7fELF" + noise,
        "ftyp_only": box(b"ftyp", b"isom\0\0\0\1isom"),
        "ebml_only": bytes.fromhex("1a45dfa3a3428681014282886d6174726f736b61"),
        "riff_only": b"RIFF\xff\xff\xff\xffAVI LIST",
        "zeros": b"\0" * 100_000,
    }
    yield from (case(f"{name}.mp4", content, "refused", True) for name, content in nothing.items())
    yield case("noise.wav", noise, "refused", True)
    # Images, still or animated, which are not video containers.
    yield case("png_40000.mp4", png(40_000, 40_000), "refused", True)
    yield case("jpeg.mp4", jpeg(folder), "refused", True)
    if not quick:
        yield made(write_frames(folder / "animated.gif", "gif", pix_fmt="rgb8"))
        yield made(write_frames(folder / "apng.apng", "apng", pix_fmt="rgb24"), "refused")
        yield made(write_frames(folder / "animated.webp", "libwebp_anim"), "refused")

    # Truncated at every k-th byte; the result depends on what comes first.
    for number in range(16):
        cut = len(last) * number // 16
        outcome: Outcome = "refused" if cut <= last.index(b"moov") else "either"
        yield case(f"last_cut_{number:02}.mp4", last[:cut], outcome, number % 5 == 0)
        cut = len(first) * number // 16
        yield case(f"first_cut_{number:02}.mp4", first[:cut], "either", number % 5 == 0)
        if not quick and number % 2:
            yield case(f"cut_{number:02}.mkv", mkv[: len(mkv) * number // 16], "either")
            yield case(f"cut_{number:02}.webm", webm[: len(webm) * number // 16], "either")
    yield case("moov_missing.mp4", last[: last.index(b"moov") - 4], "refused", True)
    yield case("mdat_missing.mp4", first[: first.index(b"mdat") - 4], "refused", True)
    # Bits flipped.
    for name, content in (("mp4", first), ("mkv", mkv), ("wav", wav), ("webm", webm)):
        if content:
            yield case(f"flipped_1_in_97.{name}", flipped(content, range(0, len(content), 97)), "either", True)
            yield case(f"flipped_header.{name}", flipped(content, range(0, 512, 7)), "either", True)
            yield case(
                f"flipped_payload.{name}", flipped(content, range(len(content) // 2, len(content), 31)), "either"
            )

    # Unusual, but valid.
    yield made(write_media(folder / "one_frame.mp4", num_frames=1), is_quick=True)
    yield made(write_media(folder / "video_only.mp4", num_frames=8), is_quick=True)
    audio_only = write_media(folder / "only.m4a", waveform=ramp, audio_seconds=0.5, audio_codec="aac")
    yield made(audio_only, is_quick=True)
    yield Case("media/audio_as_video", "video_cell", audio_only, "refused", True)
    yield made(write_media(folder / "variable_rate.mp4", num_frames=8, ticks=[0, 1, 5, 6, 20, 21, 50, 51]))
    yield made(write_media(folder / "starts_late.mkv", num_frames=8, ticks=list(range(1000, 1008))))
    turned = bytearray(first)
    place = turned.index(b"tkhd") + 4 + 40  # the display matrix of the first track: a quarter turn
    turned[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    yield case("turned.mp4", bytes(turned), "reads")
    yield case("zero_frames.mp4", mov(0, size=0), "refused", True)
    if not quick:
        formats = {"yuv444p": (63, 47), "yuv420p10le": (64, 48), "gray": (64, 48), "yuv420p": (62, 46)}
        for pix_fmt, size in formats.items():
            yield made(write_frames(folder / f"h264_{pix_fmt}.mp4", "libx264", pix_fmt=pix_fmt, size=size))
        yield made(write_frames(folder / "alpha.webm", "libvpx-vp9", pix_fmt="yuva420p"))
        yield made(write_frames(folder / "hevc.mp4", "libx265", options={"x265-params": "log-level=none"}))
        yield made(write_frames(folder / "av1.mkv", "libsvtav1", options={"preset": "12"}))
        yield made(write_frames(folder / "prores.mov", "prores_ks", pix_fmt="yuv422p10le"))
        yield made(write_frames(folder / "one_pixel.mkv", "ffv1", size=(1, 1)))
        long = write_frames(
            folder / "frames_20000.mp4", "libx264", size=(32, 32), count=20_000, options={"preset": "ultrafast"}
        )
        yield made(long)

    # Forged headers and decompression bombs.
    image = jpeg(folder)
    yield case("jpeg_12000.mov", mov(1, size=len(image), data=sized_jpeg(image, 12_000, 12_000)), "refused", True)
    yield case("jpeg_65500.mov", mov(1, size=len(image), data=sized_jpeg(image, 65_500, 65_500)), "refused", True)
    yield case("jpeg_intact.mov", mov(4, size=len(image), data=image * 4), "reads", True)
    yield made(write_frames(folder / "wide_8000x4.mkv", "ffv1", size=(8000, 4), count=2), "refused", True)
    yield made(write_frames(folder / "high_4x8000.mkv", "ffv1", size=(4, 8000), count=2), "refused")
    yield case("samples_80m.mp4", mov(80_000_000, size=1), "refused", True)
    yield case("fragment_80m.mp4", fragmented(80_000_000), "refused", True)
    for edits in (100, 1000, 20_000):
        yield case(
            f"edits_{edits}.mp4", mov(10_000, size=1, data=bytes(20_000), edits=edits), "refused", edits == 1000
        )
    for field, lie in ((b"mvhd", 24), (b"mdhd", 20)):
        forged = bytearray(first)
        place = forged.index(field) + lie - 4
        forged[place : place + 4] = b"\x7f\xff\xff\xff"
        yield case(f"duration_{field.decode()}.mp4", bytes(forged), "either", True)
    forged = bytearray(first)
    place = forged.index(b"stsz") + 12
    forged[place : place + 4] = struct.pack(">I", 2**31)
    yield case("count_forged.mp4", bytes(forged), "either", True)
    deep = b""
    for _ in range(2000):
        deep = box(b"moov", deep)
    yield case("deep_boxes.mp4", box(b"ftyp", b"isom\0\0\0\1isom") + deep, "refused", True)

    # Audio.
    yield case("silence_bomb_8_channels.flac", flac(48_000, blocks=2_000, channels=8), "refused")
    yield case("silence_13_minutes_8_channels.flac", flac(48_000, blocks=600, channels=8), "reads")
    yield case("rate_1.flac", flac(1, blocks=4), "refused", True)
    yield case("rate_655350.flac", flac(655_350, blocks=4), "reads", True)
    rates = {1: "refused", 0: "refused", 2**31 - 1: "refused", 10_000_000: "refused", 768_000: "reads"}
    yield from (case(f"rate_{rate}.wav", pcm(rate, bytes(200_000)), outcome, True) for rate, outcome in rates.items())  # type: ignore[arg-type]
    for channels, outcome in ((0, "refused"), (2, "reads"), (512, "reads"), (65_535, "refused")):
        yield case(f"channels_{channels}.wav", pcm(16_000, bytes(200_000), channels=channels), outcome, True)  # type: ignore[arg-type]
    yield case("no_samples.wav", pcm(16_000, b""), "refused", True)
    claims = pcm(16_000, bytes(3200))
    yield case("claims_4gb.wav", claims[:40] + b"\xff\xff\xff\xff" + claims[44:], "reads", True)
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        samples = np.full(1600, value, "<f4").tobytes()
        yield case(f"{name}.wav", pcm(16_000, samples, code=3, width=4), "refused", True)
    cover = png(40_000, 40_000)
    yield case("cover_40000.mp3", id3_cover(cover) + mp3(folder), "reads")
    if not quick:
        yield made(repeated_times(folder / "all_at_zero.mkv", folder / "silence_13_minutes_8_channels.flac"), "either")

    # Files that refer to other files.
    local, absolute = "moov_last.mp4", str(folder / "moov_last.mp4")
    url = f"http://{address}/x.mp4"
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    lists = {
        "ffconcat_local": f"ffconcat version 1.0\nfile {local}\n",
        "ffconcat_absolute": f"ffconcat version 1.0\nfile {absolute}\n",
        "ffconcat_http": f"ffconcat version 1.0\nfile {url}\n",
        "hls_local": hls.format(local),
        "hls_absolute": hls.format(absolute),
        "hls_http": hls.format(url),
        "hls_file": hls.format(f"file://{absolute}"),
        "hls_concat": hls.format(f"concat:{absolute}|{absolute}"),
        "hls_key": hls.format(f'{local}\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"'),
        "hls_map": hls.replace("#EXTINF", f'#EXT-X-MAP:URI="{url}"\n#EXTINF').format(local),
        "dash": mpd(url),
        "smooth": f'<SmoothStreamingMedia><StreamIndex Url="{url}"/></SmoothStreamingMedia>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video "
        f"{address.rpartition(':')[2]} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "asx": f"[Reference]\nRef1={url}\n",
        "pls": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n",
        "m3u": f"#EXTM3U\n{url}\n",
        "rtsp": f"rtsptextRTSP://{address}/x",
        "metadata": f";FFMETADATA1\ntitle={url}\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "xml_entity": f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file://{absolute}">]><MPD>&b;</MPD>',
    }
    for name, content in lists.items():
        yield case(f"{name}.mp4", content.encode(), "refused", True)
    for name, suffix in (("hls_local", "m3u8"), ("hls_http", "m3u8"), ("dash", "mpd"), ("sdp", "sdp")):
        yield case(f"{name}.{suffix}", lists[name].encode(), "refused", True)
    for number in range(3):
        (folder / f"frame{number}.png").write_bytes(png(4, 4))
    yield case("frame%d.png", png(4, 4), "refused", True)
    yield case("hls_in_avi.avi", avi_subtitle(hls.format(url).encode()), "refused", True)
    yield case("reference.mov", mov(1, size=100, reference=url.encode()), "refused", True)
    yield case("file_reference.mov", mov(1, size=100, reference=absolute.encode()), "refused", True)
    if not quick:
        program = write_frames(folder / "program.mpg", "mpeg1video", count=50).read_bytes()
        hidden = mpd(url).encode()
        padding = b"\0\0\1\xbe" + struct.pack(">H", len(hidden)) + hidden
        yield case("playlist_in_padding.mpg", program[:12] + padding + program[12:], "either")
    for backend in ("torchcodec", "decord"):
        for name in ("hls_http", "ffconcat_local", "dash", "sdp", "noise"):
            yield Case(f"media/{name}.mp4 with {backend}", backend, folder / f"{name}.mp4", "refused")

    # Sparse files.
    for name, size in (("holes_1tb.mp3", 2**40), ("holes_1gb.mp3", 2**30), ("holes_1gb.ts", 2**30)):
        with open(folder / name, "wb") as file:
            file.write((b"\x47\x1f\xff\x10" + b"\xff" * 184) * 20 if name.endswith("ts") else b"")
            file.truncate(size)
        yield made(folder / name, "refused", size == 2**40)
    os.mkfifo(folder / "pipe.mp4")
    yield Case("file/pipe", "media", folder / "pipe.mp4", "refused", True)
    (folder / "folder.mp4").mkdir()
    for name, path in (("device", "/dev/zero"), ("folder", folder / "folder.mp4"), ("absent", folder / "absent.mp4")):
        yield Case(f"file/{name}", "media", Path(path), "refused", True)


def ramp(times: np.ndarray) -> np.ndarray:
    return np.sin(2000 * times) / 2


def write_clip(path: Path, codec: str = "libx264", audio_codec: str = "aac", rate: int = 16000, **settings) -> Path:
    """Write one second of numbered frames with a tone."""
    options = {"crf": "10", "g": "12"} | ({"cpu-used": "8", "deadline": "realtime"} if "vp9" in codec else {})
    return write_media(
        path,
        num_frames=25,
        codec=codec,
        codec_options=options,
        waveform=ramp,
        audio_seconds=1.0,
        audio_codec=audio_codec,
        audio_rate=rate,
        **settings,
    )


def write_frames(
    path: Path, codec: str, *, pix_fmt: str = "yuv420p", size: tuple[int, int] = (64, 48), count: int = 8, options=None
) -> Path:
    """Write black frames of any format and size (width, height)."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        stream.codec_context.thread_count = 1
        source = av.VideoFrame.from_ndarray(np.zeros((size[1], size[0], 3), np.uint8), format="rgb24")
        frame = source.reformat(format=pix_fmt)
        for number in range(count):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def flipped(content: bytes, places: range) -> bytes:
    """Flip one bit at each place."""
    changed = bytearray(content)
    for place in places:
        if place < len(changed):
            changed[place] ^= 1 << place % 8
    return bytes(changed)


def box(kind: bytes, *parts: bytes) -> bytes:
    """Make an MP4 box."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    """Make an MP4 box with version 0 and flags."""
    return box(kind, struct.pack(">I", flags), *parts)


MATRIX = struct.pack(">9I", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)


def mov(
    count: int, *, size: int, data: bytes = bytes(1000), edits: int = 0, reference: bytes = b"", more: bytes = b""
) -> bytes:
    """Make a QuickTime file with one JPEG track of `count` samples of `size` bytes, whatever is in `data`."""
    ftyp = box(b"ftyp", b"isom\0\0\0\1isom")
    header = struct.pack(">IIIIIH", 0, 0, 1000, count, 0x10000, 0x100)
    mvhd = full_box(b"mvhd", header, bytes(10), MATRIX, bytes(24), struct.pack(">I", 2))
    tkhd = full_box(
        b"tkhd",
        struct.pack(">IIIII", 0, 0, 1, 0, count),
        bytes(16),
        MATRIX,
        struct.pack(">II", 64 << 16, 48 << 16),
        flags=3,
    )
    elst = full_box(b"elst", struct.pack(">I", edits), struct.pack(">III", count, 0, 65536) * edits)
    mdhd = full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, count, 0x55C4, 0))
    hdlr = full_box(b"hdlr", bytes(4), b"vide", bytes(13))
    entry = box(
        b"jpeg",
        bytes(6),
        struct.pack(">H", 1),
        bytes(16),
        struct.pack(">HHIIIH", 64, 48, 0x480000, 0x480000, 0, 1),
        bytes(32),
        struct.pack(">Hh", 24, -1),
    )
    if reference:  # an alias record: a file elsewhere holds the samples
        path = reference + b"\0" * (len(reference) % 2)
        alias = bytes(150) + struct.pack(">HH", 2, len(reference)) + path + struct.pack(">HH", 0xFFFF, 0)
        dref = box(b"alis", struct.pack(">I", 0), alias)
    else:
        dref = full_box(b"url ", flags=1)
    stbl = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), entry),
        full_box(b"stts", struct.pack(">III", 1, count, 1)),
        full_box(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),
        full_box(b"stsz", struct.pack(">II", size, count)),
        full_box(b"stco", struct.pack(">II", 1, len(ftyp) + 8)),
    )
    minf = box(
        b"minf",
        full_box(b"vmhd", bytes(8), flags=1),
        box(b"dinf", full_box(b"dref", struct.pack(">I", 1), dref)),
        stbl,
    )
    trak = box(b"trak", tkhd, box(b"edts", elst) if edits else b"", box(b"mdia", mdhd, hdlr, minf))
    return ftyp + box(b"mdat", data) + box(b"moov", mvhd, trak, more)


def fragmented(count: int) -> bytes:
    """Make a file with one fragment that claims many samples."""
    mvex = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 1, 1, 0)))
    traf = box(
        b"traf",
        full_box(b"tfhd", struct.pack(">I", 1), flags=0x20000),
        full_box(b"tfdt", struct.pack(">I", 0)),
        full_box(b"trun", struct.pack(">I", count)),
    )
    moof = box(b"moof", full_box(b"mfhd", struct.pack(">I", 1)), traf)
    return mov(0, size=0, data=b"", more=mvex) + moof + box(b"mdat", bytes(1000))


def jpeg(folder: Path) -> bytes:
    """Make a JPEG image of 64 x 48."""
    path = folder / "image.mkv"
    if not path.exists():
        write_frames(path, "mjpeg", pix_fmt="yuvj420p", count=1)
    with av.open(str(path)) as container:
        return bytes(next(container.demux(video=0)))


def sized_jpeg(image: bytes, width: int, height: int) -> bytes:
    """Change the size in the header of a JPEG image."""
    place = image.index(b"\xff\xc0") + 5
    return image[:place] + struct.pack(">HH", height, width) + image[place + 4 :]


def png(width: int, height: int) -> bytes:
    """Make a PNG header of any size, without rows after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def pcm(rate: int, data: bytes, *, channels: int = 1, code: int = 1, width: int = 2) -> bytes:
    """Make a WAV file."""
    block = channels * width
    form = struct.pack("<HHIIHH", code, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 8 * width)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def flac(rate: int, *, blocks: int, channels: int = 1) -> bytes:
    """Make silence in FLAC: 65535 samples of every channel in about ten bytes."""
    size = 65_535
    fields = rate << 44 | (channels - 1) << 41 | 15 << 36 | size * blocks
    info = struct.pack(">HH", size, size) + bytes(6) + fields.to_bytes(8, "big") + bytes(16)
    parts = [b"fLaC\x80", len(info).to_bytes(3, "big"), info]
    for number in range(blocks):
        header = (
            bytes([0xFF, 0xF8, 0x70, (channels - 1) << 4 | 8]) + chr(number).encode() + struct.pack(">H", size - 1)
        )
        frame = header + bytes([crc(header, 0x107, 8)]) + bytes(3) * channels  # constant subframes
        parts.append(frame + struct.pack(">H", crc(frame, 0x18005, 16)))
    return b"".join(parts)


def crc(data: bytes, polynomial: int, width: int) -> int:
    """Compute a cyclic redundancy check, highest bit first."""
    value = 0
    for byte in data:
        value ^= byte << width - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> width - 1 & 1 else 0)
        value &= (1 << width) - 1
    return value


def mp3(folder: Path) -> bytes:
    path = folder / "tone.mp3"
    return write_media(path, waveform=ramp, audio_seconds=1.0, audio_codec="libmp3lame").read_bytes()


def id3_cover(image: bytes) -> bytes:
    """Make an ID3 tag with a cover."""
    content = b"\0image/png\0\3\0" + image
    frame = b"APIC" + struct.pack(">IH", len(content), 0) + content
    size = len(frame)
    return b"ID3\3\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def repeated_times(path: Path, source: Path) -> Path:
    """Copy the packets of an audio file to Matroska, all at time 0."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.audio[0])
        for packet in container.demux(audio=0):
            if packet.size:
                packet.stream, packet.pts, packet.dts = stream, 0, 0
                output.mux(packet)
    return path


def avi_subtitle(text: bytes) -> bytes:
    """Make an AVI file whose only stream is a text track (GAB2) that contains a playlist."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def chunks(kind: bytes, *parts: bytes) -> bytes:
        return chunk(b"LIST", kind + b"".join(parts))

    avih = chunk(b"avih", struct.pack("<14I", 40_000, 0, 0, 16, 1, 0, 1, 0, 64, 48, 0, 0, 0, 0))
    strh = chunk(b"strh", b"txts" + bytes(4) + struct.pack("<10I", 0, 0, 0, 1, 25, 0, 1, 0, 0, 0) + bytes(8))
    strf = chunk(b"strf", bytes(40))
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, 2) + b"\0\0" + struct.pack("<HI", 4, len(text)) + text
    return (
        b"RIFF"
        + struct.pack("<I", 4096)
        + b"AVI "
        + chunks(b"hdrl", avih, chunks(b"strl", strh, strf))
        + chunks(b"movi", chunk(b"00tx", gab2))
    )


def mpd(url: str) -> str:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S">'
        '<Period duration="PT2S">'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1000" width="64" height="48">'
        f'<BaseURL>{url}</BaseURL><SegmentBase indexRange="0-10"/></Representation></AdaptationSet></Period></MPD>'
    )


# ---- Paths in a manifest ----
def _paths(folder: Path, address: str) -> Iterator[Case]:
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    clip = write_media(folder / "outside.mp4", num_frames=4)
    (root / "clip.mp4").write_bytes(clip.read_bytes())
    (root / "link_out.mp4").symlink_to(clip)
    (root / "link_in.mp4").symlink_to("clip.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "zero.mp4").symlink_to("/dev/zero")
    (root / "folder_out").symlink_to(folder)
    os.mkfifo(root / "pipe.mp4")
    cells: dict[str, tuple[str, Outcome]] = {
        "plain": ("clip.mp4", "reads"),
        "trailing_space": ("clip.mp4 ", "reads"),
        "inside_and_back": ("sub/../clip.mp4", "reads"),
        "link_inside": ("link_in.mp4", "reads"),
        "parent": ("../outside.mp4", "refused"),
        "parent_behind": ("sub/../../outside.mp4", "refused"),
        "parent_of_windows": ("..\\outside.mp4", "refused"),
        "absolute": (str(clip), "refused"),
        "drive": ("C:\\clip.mp4", "refused"),
        "share": ("\\\\server\\share\\clip.mp4", "refused"),
        "link_out": ("link_out.mp4", "refused"),
        "link_folder": ("folder_out/outside.mp4", "refused"),
        "link_loop": ("loop.mp4", "refused"),
        "link_device": ("zero.mp4", "refused"),
        "device": ("/dev/zero", "refused"),
        "memory": ("/proc/self/mem", "refused"),
        "pipe": ("pipe.mp4", "refused"),
        "folder": ("sub", "refused"),
        "absent": ("absent.mp4", "refused"),
        "other_case": ("CLIP.MP4", "refused"),
        "nul": ("clip.mp4\0.txt", "refused"),
        "long": ("a" * 4096, "refused"),
        "deep": ("a/" * 2000 + "clip.mp4", "refused"),
        "surrogate": ("clip\ud800.mp4", "refused"),
        "home": ("~/clip.mp4", "refused"),
        "pattern": ("*.mp4", "refused"),
        "escaped": ("%2e%2e/outside.mp4", "refused"),
    }
    for scheme in (
        "http://",
        "https://",
        "ftp://",
        "rtmp://",
        "rtsp://",
        "tcp://",
        "udp://",
        "HTTP://",
        "sftp://",
        "srt://",
    ):
        cells[f"scheme_{scheme[:-3]}"] = (f"{scheme}{address}/clip.mp4", "refused")
    for start in (
        "concat:clip.mp4|",
        "subfile,,start,0,end,9,,:",
        "file:",
        "data:video/mp4;base64,AAAA",
        "pipe:0",
        "cache:",
        "crypto:",
        "async:",
        "tee:",
        "fd:",
        "unix:",
        "hls+http:",
        "concatf:",
        "ffrtmphttp:",
        "gopher:",
    ):
        cells[f"protocol_{start.partition(':')[0].partition(',')[0]}"] = (f"{start}clip.mp4", "refused")
    for number, (name, (cell, expected)) in enumerate(cells.items()):
        manifest = root / f"{number}.jsonl"
        manifest.write_text(json.dumps({"video": cell}) + "\n")
        yield Case(f"path/{name}", "row", manifest, expected, True)
    (root / "bytes.csv").write_bytes(b"video\n\xff\xfeclip.mp4\n")
    yield Case("path/not_utf8", "row", root / "bytes.csv", "refused", True)
    (folder / "texts").mkdir()
    with open(folder / "texts/huge.txt", "wb") as file:
        file.truncate(2**33)
    (folder / "texts/not_text.txt").write_bytes(b"\xff\xfe\xfd")
    (folder / "texts/a.txt").write_text("a cat")
    for name, outcome in (("huge", "refused"), ("not_text", "refused"), ("a", "reads")):
        manifest = folder / f"texts/{name}.csv"
        manifest.write_text(f"text,video\n{name}.txt,\n")
        yield Case(f"path/text_{name}", "row", manifest, outcome, True)  # type: ignore[arg-type]


# ---- Manifests ----
def _manifests(folder: Path) -> Iterator[Case]:
    folder.mkdir()
    deep = "[" * 100_000 + "]" * 100_000
    manifests: dict[str, tuple[bytes | str, Outcome]] = {
        "bom.csv": (b"\xef\xbb\xbfid,caption\r\n1,a cat\r\n", "reads"),
        "crlf.csv": ("id,caption\r\n1,a cat\r\n2,a dog\r\n", "reads"),
        "no_column.csv": ("id,label\n1,2\n", "refused"),
        "extra_column.csv": ("id,caption,weight\n1,a cat,3\n", "reads"),
        "reserved_column.csv": ("id,caption,index\n1,a cat,3\n", "refused"),
        "reserved_epoch.jsonl": ('{"caption": "a", "epoch": [1]}\n', "refused"),
        "extra_cell.csv": ("id,caption\n1,a cat,b\n", "refused"),
        "twice.csv": ("id,caption\n1,a cat\n1,a dog\n", "refused"),
        "column_twice.csv": ("id,caption,id\n1,a cat,2\n", "refused"),
        "blank_caption.csv": ("id,caption\n1,  \n", "refused"),
        "caption_1mb.csv": ("id,caption\n1," + "cat " * 250_000 + "\n", "reads"),
        "one_word_1mb.csv": ("id,caption\n1," + "a" * 1_000_000 + "\n", "reads"),
        "emoji.csv": ("id,caption\n1,\U0001f431 שלום \u202e cat\n", "reads"),
        "no_rows.csv": ("id,caption\n", "refused"),
        "nothing.csv": ("", "refused"),
        "nul.csv": (b"id,caption\n1,a\0b\n", "either"),
        "open_quote.csv": ('id,caption\n1,"a cat\n', "refused"),
        "formula.csv": ('id,caption\n1,=HYPERLINK("http://x")\n'.replace('"', ""), "reads"),
        "latin1.csv": ("id,caption\n1,caf\xe9\n".encode("latin-1"), "refused"),
        "utf16.csv": ("id,caption\n1,a cat\n".encode("utf-16"), "refused"),
        "times_nan.jsonl": ('{"caption": "a", "start_seconds": NaN}\n', "refused"),
        "times_infinite.jsonl": ('{"caption": "a", "end_seconds": 1e999}\n', "refused"),
        "times_back.jsonl": ('{"caption": "a", "start_seconds": 2, "end_seconds": 1}\n', "refused"),
        "times_list.jsonl": ('{"caption": "a", "start_seconds": [1]}\n', "refused"),
        "label_nan.jsonl": ('{"caption": "a", "label": NaN}\n', "reads"),
        "deep.jsonl": (f'{{"caption": "a", "label": {deep}}}\n', "refused"),
        "long_number.jsonl": ('{"caption": "a", "id": ' + "9" * 10_000 + "}\n", "refused"),
        "surrogate.jsonl": ('{"caption": "a \\ud800"}\n', "refused"),
        "list.jsonl": ("[1, 2]\n", "refused"),
        "not_json.jsonl": ("{'caption': 'a'}\n", "refused"),
        "caption_number.jsonl": ('{"caption": 3}\n', "refused"),
        "captions_mixed.jsonl": ('{"captions": ["a", 3]}\n', "refused"),
        "two_texts.jsonl": ('{"caption": "a", "captions": ["b"]}\n', "refused"),
        "pickle.csv": (pickle.dumps({"caption": "a"}), "refused"),
        "unknown.parquet": ("id,caption\n1,a\n", "refused"),
    }
    for name, (content, expected) in manifests.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        yield Case(f"manifest/{name}", "row", folder / name, expected, True)


# ---- Checkpoints ----
def _checkpoints(folder: Path, sentinel: Path) -> Iterator[Case]:
    folder.mkdir()
    intact = folder / "base"
    save_model(intact)
    weights = (intact / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    payload = {"weight": Payload(sentinel)}

    def changed(name: str, expected: Outcome, files: dict[str, bytes | None], kind: str = "model") -> Case:
        target = folder / name
        target.mkdir()
        for file in intact.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        for file_name, content in files.items():
            (target / file_name).write_bytes(content) if content is not None else (target / file_name).unlink()
        return Case(f"checkpoint/{name}", kind, target, expected, True)

    def config(**values) -> dict[str, bytes | None]:
        return {"config.json": json.dumps(json.loads((intact / "config.json").read_text()) | values).encode()}

    def tokenizer(**values) -> dict[str, bytes | None]:
        name = "tokenizer_config.json"
        return {name: json.dumps(json.loads((intact / name).read_text()) | values).encode()}

    torch.save(payload, folder / "payload.bin")
    pickled = (folder / "payload.bin").read_bytes()
    code = f"import os\nos.mkdir({str(sentinel)!r})\n".encode()
    mapped = {name: "code.Model" for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")}
    yield changed("intact", "reads", {})
    yield changed("pickle", "refused", {"model.safetensors": None, "pytorch_model.bin": pickled})
    yield changed("pickle_plain", "refused", {"model.safetensors": None, "pytorch_model.bin": pickle.dumps(payload)})
    yield changed("pickle_beside", "reads", {"pytorch_model.bin": pickled, "training_args.bin": pickled})
    yield changed("pickle_renamed", "refused", {"model.safetensors": pickled})
    index = json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}).encode()
    yield changed(
        "pickle_by_index",
        "refused",
        {"model.safetensors": None, "model.safetensors.index.json": index, "pytorch_model.bin": pickled},
    )
    outside = json.dumps({"metadata": {}, "weight_map": {"a": "../payload.bin"}}).encode()
    yield changed("index_outside", "refused", {"model.safetensors": None, "model.safetensors.index.json": outside})
    yield changed("no_weights", "refused", {"model.safetensors": None})
    yield changed("empty", "refused", {"model.safetensors": b""})
    yield changed("truncated", "refused", {"model.safetensors": weights[: len(weights) // 2]})
    yield changed("header_huge", "refused", {"model.safetensors": struct.pack("<Q", 2**60) + weights[8:]})
    yield changed("header_200mb", "refused", {"model.safetensors": struct.pack("<Q", 200_000_000) + weights[8:]})
    yield changed(
        "header_noise", "refused", {"model.safetensors": weights[:8] + bytes(length) + weights[8 + length :]}
    )
    header = json.loads(weights[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    for change, values in (
        ("offsets", {"data_offsets": [0, 2**50]}),
        ("negative", {"shape": [-1]}),
        ("overflow", {"shape": [2**40, 2**40]}),
        ("type", {"dtype": "F999"}),
    ):
        forged = json.dumps(header | {name: header[name] | values}).encode()
        yield changed(
            f"header_{change}",
            "refused",
            {"model.safetensors": struct.pack("<Q", len(forged)) + forged + weights[8 + length :]},
        )
    for change in ("shape", "absent"):
        tensors = {
            key: torch.zeros(2, 3) if change == "shape" else torch.zeros(1) for key in header if key != "__metadata__"
        }
        save_file(tensors if change == "shape" else {"another": torch.zeros(1)}, folder / "other", {"format": "pt"})
        yield changed(f"weights_{change}", "refused", {"model.safetensors": (folder / "other").read_bytes()})
    # Configurations that name code.
    yield changed("auto_map", "reads", config(auto_map=mapped) | {"code.py": code})
    yield changed("auto_map_unknown", "refused", config(auto_map=mapped, model_type="evil") | {"code.py": code})
    yield changed("kernel_internal", "reads", config(_attn_implementation_internal="evil/kernel"))
    yield changed("kernel", "refused", config(attn_implementation="kernels-community/flash-attn2"))
    yield changed("kernel_underscore", "refused", config(_attn_implementation="evil/kernel"))
    tower = json.loads((intact / "config.json").read_text())["text_config"]
    yield changed("kernel_in_tower", "reads", config(text_config=tower | {"attn_implementation": "evil/kernel"}))
    yield changed("config_not_json", "refused", {"config.json": b"{'model_type': 1}"})
    yield changed("config_deep", "refused", {"config.json": b"[" * 100_000 + b"]" * 100_000})
    yield changed("config_list", "refused", {"config.json": b"[]"})
    yield changed("config_pickle", "refused", {"config.json": pickled})
    yield changed("config_sizes", "refused", config(text_config=tower | {"hidden_size": 17}))
    yield changed("other_task", "refused", config(architectures=["MultimodalForQuestionAnswering"]))
    yield changed(
        "tokenizer_auto_map", "either", tokenizer(auto_map={"AutoTokenizer": ["code.Model", None]}) | {"code.py": code}
    )
    unknown = tokenizer(auto_map={"AutoTokenizer": ["code.Model", None]}, tokenizer_class="Evil")
    yield changed("tokenizer_unknown", "either", unknown | {"code.py": code})
    yield changed("tokenizer_noise", "refused", {"tokenizer.json": b"{"})
    yield changed("tokenizer_deep", "refused", {"tokenizer.json": b"[" * 100_000})
    processor = json.loads((intact / "processor_config.json").read_text())
    for change, values in (("auto_map", {"auto_map": mapped}), ("class", {"processor_class": "Evil"})):
        files = {"processor_config.json": json.dumps(processor | values).encode(), "code.py": code}
        yield changed(f"processor_{change}", "either" if change == "auto_map" else "refused", files)  # type: ignore[arg-type]
    # Towers: only weights are read from the hub's older files.
    for change, content in (("tower_pickle", pickled), ("tower_pickle_plain", pickle.dumps(payload))):
        files = {"config.json": json.dumps(tower).encode(), "model.safetensors": None, "pytorch_model.bin": content}
        yield changed(change, "refused", files, "tower")
    kernel = json.dumps(tower | {"attn_implementation": "evil/kernel"}).encode()
    yield changed("tower_kernel", "refused", {"config.json": kernel}, "tower")
    # Inputs of the converter.
    torch.save(payload, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": [1, 2]}, folder / "list.pt")
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "foreign.pt")
    torch.save({"model": {"a": torch.zeros(1).expand(2**40)}}, folder / "expanded.pt")
    torch.save({"a": torch.zeros(2**28, dtype=torch.uint8)}, folder / "large.pt")
    with zipfile.ZipFile(folder / "large.pt") as source, zipfile.ZipFile(folder / "bomb.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED)
    (folder / "large.pt").unlink()
    (folder / "plain.pt").write_bytes(pickle.dumps(payload))
    (folder / "payload.pt").write_bytes(pickled)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_bytes(b"model\n" * 100)
    (folder / "safetensors.pt").write_bytes(weights)
    (folder / "cut.pt").write_bytes(pickled[:-100])
    os.mkfifo(folder / "pipe.pt")
    for stem in (
        "legacy",
        "list",
        "foreign",
        "expanded",
        "bomb",
        "plain",
        "payload",
        "empty",
        "text",
        "safetensors",
        "cut",
        "pipe",
    ):
        yield Case(f"convert/{stem}.pt", "convert", folder / f"{stem}.pt", "refused", True)


def save_model(folder: Path) -> None:
    """Save a tiny retrieval model and its processor."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a cat purrs", "two dogs bark"])
    config = tiny_config()
    config.text_config.vocab_size = max(VOCAB_SIZE, len(tokenizer))
    MultimodalForRetrieval(config).save_pretrained(folder)
    processor = MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=MEL_BINS, num_frames=WINDOW_FRAMES),
        video_processor=VideoClipProcessor(num_frames=FRAMES, size={"height": HEIGHT, "width": WIDTH}),
        tokenizer=tokenizer,
    )
    processor.save_pretrained(folder)


# ---- Configs of a run ----
def _configs(folder: Path, sentinel: Path) -> Iterator[Case]:
    folder.mkdir()
    aliases = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)
    )
    configs = {
        "python_object": f"seed: !!python/object/apply:os.mkdir ['{sentinel}']\n",
        "python_module": "seed: !!python/module:os\n",
        "aliases": aliases,
        "nested": "seed: {a: 1}\n",
        "unknown_key": "sed: 1\n",
        "list": "- 1\n",
        "tabs": "\tseed: 1\n",
        "binary": "\x00\x01",
        "deep": "[" * 20_000,
        "other_config": "config: other.yaml\n",
    }
    for name, text in configs.items():
        (folder / f"{name}.yaml").write_text(text)
        yield Case(f"config/{name}", "config", folder / f"{name}.yaml", "refused", True)
