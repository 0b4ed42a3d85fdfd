"""Opens media files with PyAV under limits, and yields what their streams decode to."""

import ctypes
import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import av
import av.container.core
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from simple_multimodal.media.errors import MediaError

logger = logging.getLogger(__name__)

# Containers that hold their media themselves. Playlists (HLS, DASH, ffconcat, SDP) and image patterns, which make
# FFmpeg open further files or addresses, are left out.
ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,asf,flv,gif,wav,w64,aiff,mp3,flac,aac"  # FFmpeg's names
)
MAX_PIXELS = 4096 * 4096  # of one picture; FFmpeg refuses larger ones before it allocates them
MAX_FRAMES = 2**20  # of one file, some 9 hours at 30 frames per second
MAX_PACKETS = 2**22  # of one stream, some 24 hours of sound
MAX_DAMAGED_PACKETS = 2**12  # a header of a few KB may promise millions that the file does not hold
MAX_FILE_BYTES = 2**36  # 64 GiB; a file of holes may claim any size
MAX_ALLOCATION_BYTES = 9 * MAX_PIXELS  # that FFmpeg takes at once; pictures have up to 8 bytes a pixel
MAX_STALL_SECONDS = 60.0  # that FFmpeg may search a file for its header or for a next packet
MAX_PASS_SECONDS = 600.0  # of processor time for one pass through a file, so that no other load counts
REORDER_PICTURES = 16  # the deepest picture reordering of H.264 and HEVC: the earliest time stamp is among so many

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ALLOWED_FORMATS,
    "max_pixels": str(MAX_PIXELS),
}
_STALLED = f"nothing that can be decoded was found within {MAX_STALL_SECONDS:.0f} seconds"
PROBE_OPTIONS: dict[str, dict[str, str]] = {
    "everything": {},
    "sound": {"skip_frame": "all", "fpsprobesize": "0", "analyzeduration": "100000"},
    "nothing": {"skip_frame": "all", "fpsprobesize": "0", "analyzeduration": "1"},
}

if sys.platform != "win32":  # whose libraries do not look up what they link to
    # FFmpeg's own limit is 2 GiB, and the tables of a file of 2 KB can ask for that. PyAV has no setting for it.
    ctypes.CDLL(av.container.core.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION_BYTES))


def check_media_file(path: str | os.PathLike[str]) -> os.stat_result:
    """
    Checks that a path is a regular file with content, of at most `MAX_FILE_BYTES`.

    Args:
        path (`str` or `os.PathLike`): The file. It is never read as an address or an FFmpeg protocol.

    Returns:
        `os.stat_result`: What the file system says about the file.

    Raises:
        MediaError: The file is absent, empty, too large, or is a folder, a device or a pipe.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{os.fspath(path)!r}: cannot be opened: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise MediaError(f"{os.fspath(path)!r}: is {kind}; a regular file is needed")
    if status.st_size == 0:
        raise MediaError(f"{os.fspath(path)!r}: the file is empty (0 bytes)")
    if status.st_size > MAX_FILE_BYTES:
        raise MediaError(f"{os.fspath(path)!r}: has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
    return status


@contextmanager
def open_media(
    path: str | os.PathLike[str], *, probe: Literal["everything", "sound", "nothing"] = "everything"
) -> Iterator[InputContainer]:
    """
    Opens a local media file, and turns what FFmpeg raises while it is open into `MediaError`.

    Only `ALLOWED_FORMATS` are accepted and only the file itself is read: a playlist under a media name, which would
    make FFmpeg open other files or addresses, is refused.

    Args:
        path (`str` or `os.PathLike`): The file.
        probe (`"everything"`, `"sound"` or `"nothing"`, *optional*, defaults to `"everything"`): Whose format FFmpeg
            finds out by decoding the beginning. That takes most of the time of opening; who knows the file by its
            index can do without.

    Yields:
        `av.container.InputContainer`: The open file; closed at the end of the block.

    Raises:
        MediaError: The file cannot be opened, or decoding it fails as a whole.
    """
    check_media_file(path)
    try:
        # "file:" keeps FFmpeg from reading a name such as "concat:a|b" as a protocol. Some files carry names of their
        # muxer that are not UTF-8.
        address = f"file:{os.path.abspath(path)}"
        options = OPEN_OPTIONS | PROBE_OPTIONS[probe]
        started = time.monotonic()
        with av.open(
            address, mode="r", options=options, metadata_errors="ignore", timeout=MAX_STALL_SECONDS
        ) as container:
            # FFmpeg takes an interrupted search of its own for streams as finished: a track would seem to be missing.
            if time.monotonic() - started > MAX_STALL_SECONDS:
                raise MediaError(f"{os.fspath(path)!r}: cannot be read as media: {_STALLED}")
            yield container
    except (av.FFmpegError, UnicodeError) as error:
        if isinstance(error, av.FFmpegError) and error.errno == errno.EINVAL:
            reason = f"damaged, or in none of the accepted containers ({ALLOWED_FORMATS})"
        elif isinstance(error, av.ExitError):
            reason = _STALLED
        elif isinstance(error, av.FFmpegError):
            reason = error.strerror or str(error)
        else:
            reason = str(error)
        raise MediaError(f"{os.fspath(path)!r}: cannot be read as media: {reason}") from error


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """
    Finds the video stream that players show: FFmpeg's choice among those that can be decoded, cover pictures excepted.

    Args:
        container (`av.container.InputContainer`): The open file.

    Returns:
        `av.video.stream.VideoStream` or `None`: The stream, set to decode in one thread within `MAX_PIXELS`.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    if stream.disposition & Disposition.attached_pic:
        return None
    stream.codec_context.thread_count = 1  # the callers run side by side already
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def require_video_stream(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    """
    Returns the video stream of an open file, or says why there is none.

    Args:
        container (`av.container.InputContainer`): The open file.
        path (`str` or `os.PathLike`): Its path, for the message.

    Returns:
        `av.video.stream.VideoStream`: The stream.

    Raises:
        MediaError: The file has no video stream that can be decoded.
    """
    stream = find_video_stream(container)
    if stream is None:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise MediaError(f"{os.fspath(path)!r}: has no video stream that can be decoded (streams: {found})")
    return stream


def find_audio_stream(container: InputContainer) -> AudioStream | None:
    """
    Finds the audio stream that players play: FFmpeg's choice among those that can be decoded.

    Args:
        container (`av.container.InputContainer`): The open file.

    Returns:
        `av.audio.stream.AudioStream` or `None`: The stream, set to decode in one thread.
    """
    stream = container.streams.best("audio", find_video_stream(container))
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    stream.codec_context.thread_count = 1
    return stream


def demux_packets(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
    """
    Reads the packets of a stream from where the file stands.

    Args:
        container (`av.container.InputContainer`): The open file.
        stream (`av.video.stream.VideoStream` or `av.audio.stream.AudioStream`): One of its streams.

    Yields:
        `av.Packet`: The packets; an empty one at the end.

    Raises:
        MediaError: There are more than `MAX_PACKETS`, one took more than `MAX_STALL_SECONDS`, or all of them, with
            what the caller does, more than `MAX_PASS_SECONDS`.
        av.FFmpegError: The file breaks off.
    """
    started = time.thread_time()
    packets = container.demux(stream)
    number = 0
    while True:
        if time.thread_time() - started > MAX_PASS_SECONDS or number > MAX_PACKETS:
            raise MediaError(
                f"{_path_of(container)!r}: has more than {MAX_PACKETS} packets, or takes more than "
                f"{MAX_PASS_SECONDS:.0f} seconds; cut it into shorter files"
            )
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:  # of PyAV 18.1, on a packet of a stream that the header did not announce
            packets = container.demux(stream)
            continue
        except av.ExitError as error:  # not where the file ends: what follows is unknown
            raise MediaError(f"{_path_of(container)!r}: {_STALLED}") from error
        number += 1
        yield packet


def decode_pictures(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """
    Decodes a video stream from its start, in the decoder's output order.

    A packet that the decoder refuses is left out and decoding goes on behind it, as players do; the log says so once
    per pass. Where the file itself breaks off, the stream ends.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.video.stream.VideoStream`): One of its streams.

    Yields:
        `av.VideoFrame`: The pictures.
    """
    for frame in _decode(container, stream):
        assert isinstance(frame, VideoFrame)
        yield frame


def decode_sound(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """
    Decodes an audio stream from its start; damage is treated as `decode_pictures` does.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.audio.stream.AudioStream`): One of its streams.

    Yields:
        `av.AudioFrame`: Blocks of sound.
    """
    for frame in _decode(container, stream):
        assert isinstance(frame, AudioFrame)
        yield frame


def _decode(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[object]:
    """Yields all frames of a stream, leaving out what is damaged."""
    refused = 0
    reason = ""
    packets = demux_packets(container, stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            refused, reason = refused + 1, error.strerror or str(error)
            break
        try:
            frames = packet.decode()
        except av.EOFError:  # the decoder was drained before
            continue
        except av.FFmpegError as error:
            refused, reason = refused + 1, error.strerror or str(error)
            if refused > MAX_DAMAGED_PACKETS:
                raise MediaError(
                    f"{_path_of(container)!r}: more than {MAX_DAMAGED_PACKETS} {stream.type} packets are damaged"
                ) from error
            continue
        yield from frames
    if refused:
        logger.warning("%r: %d damaged %s packets left out (%s)", _path_of(container), refused, stream.type, reason)


def _path_of(container: InputContainer) -> str:
    return container.name.removeprefix("file:")
