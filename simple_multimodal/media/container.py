"""Open media files with PyAV under limits, and decode their streams."""

import ctypes
import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
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
# FFmpeg open other files or URLs, are excluded.
ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,asf,flv,gif,wav,w64,aiff,mp3,flac,aac"  # FFmpeg's names
)
MAX_PIXELS = 4096 * 4096  # of one frame; FFmpeg refuses larger ones before it allocates them
MAX_FRAMES = 2**20  # of one file, about 9 hours at 30 frames per second
MAX_PACKETS = 2**22  # of one stream, about 24 hours of audio
MAX_DAMAGED_PACKETS = 2**12  # a header of a few KB may announce millions that the file does not hold
MAX_FILE_BYTES = 2**36  # 64 GiB; a sparse file may claim any size
MAX_ALLOCATION_BYTES = 9 * MAX_PIXELS  # of one allocation in FFmpeg; frames have up to 8 bytes per pixel
MAX_STALL_SECONDS = 60.0  # for which FFmpeg may search a file for its header or the next packet
MAX_PASS_SECONDS = 600.0  # of CPU time for one pass through a file, so that other load on the machine does not count

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ALLOWED_FORMATS,
    "max_pixels": str(MAX_PIXELS),
}
_STALLED = f"nothing that can be decoded was found within {MAX_STALL_SECONDS:.0f} seconds"
_ONLY_HEADERS = {"skip_frame": "all", "fpsprobesize": "0"}  # no frame is decoded to determine the frame rate
PROBE_OPTIONS: dict[str, dict[str, str]] = {
    "everything": {},
    "far": {"analyzeduration": "60000000", "probesize": str(2**26)},  # microseconds, bytes
    "streams": _ONLY_HEADERS,
    "far_streams": _ONLY_HEADERS | {"analyzeduration": "60000000", "probesize": str(2**26)},
    "audio": _ONLY_HEADERS | {"analyzeduration": "100000"},
    "nothing": _ONLY_HEADERS | {"analyzeduration": "1"},
}
# Containers that list their streams at the start. In others a stream is only found at its first packet.
HEADER_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "wav", "w64", "aiff", "mp3", "flac", "aac", "gif"}

if sys.platform != "win32":  # on Windows the symbol cannot be looked up through PyAV's library
    # FFmpeg's own limit is 2 GiB, which the tables of a 2 KB file can request. PyAV has no setting for it.
    ctypes.CDLL(av.container.core.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION_BYTES))


Probe = Literal["everything", "far", "streams", "far_streams", "audio", "nothing"]


@dataclass(frozen=True)
class VideoTrack:
    """
    The video stream that is read from a file.

    Args:
        stream (`int`): Number of the stream among all streams.
        codec (`str`): FFmpeg's name of the codec.
        width, height (`int`): Size of the coded frames, in pixels.
    """

    stream: int
    codec: str
    width: int
    height: int


@dataclass(frozen=True)
class AudioTrack:
    """
    The audio stream that is read from a file.

    Args:
        stream (`int`): Number of the stream among all streams.
        codec (`str`): FFmpeg's name of the codec.
        sampling_rate (`int`): Announced sampling rate in Hz; 0 if unknown before the first packet.
        probe (`str`): How the file must be opened for the stream to be found, see [`open_media`].
    """

    stream: int
    codec: str
    sampling_rate: int
    probe: Probe


@dataclass(frozen=True)
class Tracks:
    """
    The streams that are read from a file, chosen once so that all readers agree.

    Args:
        container (`str`): FFmpeg's name of the container format.
        kinds (`str`): Kinds of all streams, for messages.
        video ([`VideoTrack`], *optional*): The video track; `None` if no video can be decoded.
        audio ([`AudioTrack`], *optional*): The audio track; `None` if no audio can be decoded.
    """

    container: str
    kinds: str
    video: VideoTrack | None
    audio: AudioTrack | None


def check_media_file(path: str | os.PathLike[str]) -> os.stat_result:
    """
    Check that a path is a non-empty regular file of at most `MAX_FILE_BYTES`.

    Args:
        path (`str` or `os.PathLike`): The file. It is never interpreted as a URL or an FFmpeg protocol.

    Returns:
        `os.stat_result`: The status of the file.

    Raises:
        MediaError: The file is missing, empty or too large, or is a folder, a device or a pipe.
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
        raise MediaError(f"{os.fspath(path)!r}: has {status.st_size} bytes; at most {MAX_FILE_BYTES} are allowed")
    return status


@contextmanager
def open_media(path: str | os.PathLike[str], *, probe: Probe = "everything") -> Iterator[InputContainer]:
    """
    Open a local media file, and raise FFmpeg's errors as `MediaError` while it is open.

    Only `ALLOWED_FORMATS` are accepted and only the file itself is read: a playlist disguised as a media file, which
    would make FFmpeg open other files or URLs, is refused.

    Args:
        path (`str` or `os.PathLike`): The file.
        probe (`str`, *optional*, defaults to `"everything"`): How much of the beginning FFmpeg examines to detect the
            contents of the file, which takes most of the time of opening: `"everything"` about 5 s, frames included;
            `"far"` up to 60 s or 64 MiB; `"streams"` and `"far_streams"` the same without decoding frames; `"audio"`
            0.1 s; `"nothing"` only the header. The last four are for readers that have an index of the file.

    Yields:
        `av.container.InputContainer`: The open file; closed at the end of the block.

    Raises:
        MediaError: The file cannot be opened, or decoding it fails as a whole.
    """
    check_media_file(path)
    try:
        # "file:" keeps FFmpeg from reading a name such as "concat:a|b" as a protocol. Some files contain names of
        # muxers that are not UTF-8.
        address = f"file:{os.path.abspath(path)}"
        options = OPEN_OPTIONS | PROBE_OPTIONS[probe]
        started = time.monotonic()
        with av.open(
            address, mode="r", options=options, metadata_errors="ignore", timeout=MAX_STALL_SECONDS
        ) as container:
            # FFmpeg treats its interrupted search for streams as finished, so a track would seem to be missing.
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
        if os.fspath(path).lower().endswith((".pose", ".npy")):
            reason += "; poses, and features of their frames, belong in the column `pose`"
        raise MediaError(f"{os.fspath(path)!r}: cannot be read as media: {reason}") from error


def probe_tracks(path: str | os.PathLike[str]) -> Tracks:
    """
    Open a file to choose its streams.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `Tracks`: The streams, see [`choose_tracks`].

    Raises:
        MediaError: The file cannot be read as media.
    """
    with open_media(path) as container:
        return choose_tracks(container, path)


def choose_tracks(container: InputContainer, path: str | os.PathLike[str]) -> Tracks:
    """
    Choose the streams that players show and play: FFmpeg's choice among those that can be decoded.

    A cover image does not count as video. If no audio is found and the container does not list its streams (for
    example transport streams), the first minute is searched for audio that starts late.

    Args:
        container (`av.container.InputContainer`): The file, opened with `probe="everything"`.
        path (`str` or `os.PathLike`): The file.

    Returns:
        `Tracks`: The streams.

    Raises:
        MediaError: The file cannot be opened again.
    """
    name = container.format.name
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
    video = _best_video(container)
    audio = _best_audio(container, video)
    if audio is not None or name in HEADER_FORMATS:
        probe: Probe = "audio" if name in HEADER_FORMATS else "streams"
        return Tracks(name, kinds, _video_track(video), _audio_track(audio, probe))
    with open_media(path, probe="far") as reopened:
        # FFmpeg skips a stream whose sampling rate it has not seen yet, although the stream may be announced.
        announced = (stream for stream in reopened.streams.audio if stream.codec_context is not None)
        audio = _best_audio(reopened, _best_video(reopened)) or next(announced, None)
        return Tracks(name, kinds, _video_track(video), _audio_track(audio, "far_streams"))


def _best_video(container: InputContainer) -> VideoStream | None:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    return None if stream.disposition & Disposition.attached_pic else stream


def _best_audio(container: InputContainer, video: VideoStream | None) -> AudioStream | None:
    stream = container.streams.best("audio", video)
    return stream if isinstance(stream, AudioStream) and stream.codec_context is not None else None


def _video_track(stream: VideoStream | None) -> VideoTrack | None:
    if stream is None:
        return None
    codec = stream.codec_context
    return VideoTrack(stream.index, codec.name, codec.width, codec.height)


def _audio_track(stream: AudioStream | None, probe: Probe) -> AudioTrack | None:
    if stream is None:
        return None
    return AudioTrack(stream.index, stream.codec_context.name, stream.codec_context.sample_rate, probe)


def open_video_stream(container: InputContainer, number: int, path: str | os.PathLike[str]) -> VideoStream:
    """
    Prepare the video stream of an open file for decoding, in one thread within `MAX_PIXELS`.

    Args:
        container (`av.container.InputContainer`): The open file.
        number (`int`): Number of the stream, from [`VideoTrack`] or [`FrameIndex`].
        path (`str` or `os.PathLike`): The file, for the message.

    Returns:
        `av.video.stream.VideoStream`: The stream.

    Raises:
        MediaError: The file has no such stream: it changed since it was probed.
    """
    stream = container.streams[number] if number < len(container.streams) else None
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise MediaError(f"{os.fspath(path)!r}: stream {number} is not a decodable video; did the file change?")
    stream.codec_context.thread_count = 1  # the callers already run in parallel
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def open_audio_stream(container: InputContainer, number: int, path: str | os.PathLike[str]) -> AudioStream:
    """
    Prepare the audio stream of an open file for decoding, in one thread.

    Args:
        container (`av.container.InputContainer`): The open file.
        number (`int`): Number of the stream, from [`AudioTrack`].
        path (`str` or `os.PathLike`): The file, for the message.

    Returns:
        `av.audio.stream.AudioStream`: The stream.

    Raises:
        MediaError: The file has no such stream: it changed since it was probed.
    """
    stream = container.streams[number] if number < len(container.streams) else None
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise MediaError(f"{os.fspath(path)!r}: stream {number} is not decodable audio; did the file change?")
    stream.codec_context.thread_count = 1
    return stream


def require_video(tracks: Tracks, path: str | os.PathLike[str]) -> VideoTrack:
    """
    Return the video track of a file, or raise an error if there is none.

    Args:
        tracks (`Tracks`): The tracks of the file.
        path (`str` or `os.PathLike`): The file, for the message.

    Returns:
        `VideoTrack`: The track.

    Raises:
        MediaError: The file has no video stream that can be decoded.
    """
    if tracks.video is None:
        raise MediaError(f"{os.fspath(path)!r}: has no video stream that can be decoded (streams: {tracks.kinds})")
    return tracks.video


def tick_seconds(stream: VideoStream) -> Fraction:
    """
    Return the length of a tick, the unit of a stream's time stamps.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.

    Returns:
        `Fraction`: Length of a tick, in seconds.
    """
    assert stream.time_base is not None  # every stream that FFmpeg reads has one
    return stream.time_base


def demux_packets(container: InputContainer, *streams: VideoStream | AudioStream) -> Iterator[av.Packet]:
    """
    Read the packets of streams from the current position of the file.

    Args:
        container (`av.container.InputContainer`): The open file.
        streams (`av.video.stream.VideoStream` or `av.audio.stream.AudioStream`): Streams of the file.

    Yields:
        `av.Packet`: The packets; an empty one at the end.

    Raises:
        MediaError: There are more than `MAX_PACKETS`, one took more than `MAX_STALL_SECONDS`, or all of them, with
            the work of the caller, more than `MAX_PASS_SECONDS`.
        av.FFmpegError: The file is truncated.
    """
    started = time.thread_time()
    packets = container.demux(*streams)
    number = 0
    while True:
        if time.thread_time() - started > MAX_PASS_SECONDS or number > MAX_PACKETS:
            raise MediaError(
                f"{_path_of(container)!r}: has more than {MAX_PACKETS} packets, or takes more than "
                f"{MAX_PASS_SECONDS:.0f} seconds; split it into shorter files"
            )
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:  # PyAV 18.1 raises it for a packet of a stream that the header did not announce
            packets = container.demux(*streams)
            continue
        except av.ExitError as error:  # a timeout, not the end of the file
            raise MediaError(f"{_path_of(container)!r}: {_STALLED}") from error
        number += 1
        yield packet


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """
    Decode a video stream from its start, in the decoder's output order.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.video.stream.VideoStream`): A stream of the file.

    Yields:
        `av.VideoFrame`: The frames.
    """
    for _, frame in decode_packets(container, stream, demux_packets(container, stream)):
        assert isinstance(frame, VideoFrame)
        yield frame


def decode_audio(
    container: InputContainer, stream: AudioStream, packets: Iterator[av.Packet] | None = None
) -> Iterator[tuple[av.Packet, AudioFrame]]:
    """
    Decode an audio stream from the current position of the file.

    Args:
        container (`av.container.InputContainer`): The open file.
        stream (`av.audio.stream.AudioStream`): A stream of the file.
        packets (`Iterator[av.Packet]`, *optional*): Packets of the stream; by default all that follow.

    Yields:
        `tuple[av.Packet, av.AudioFrame]`: A frame, and the packet after which the decoder returned it.

    Raises:
        MediaError: There are packets, but none of them can be decoded.
    """
    num_packets = num_frames = 0

    def counted(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        nonlocal num_packets
        for packet in packets:
            num_packets += packet.size > 0
            yield packet

    for packet, frame in decode_packets(container, stream, counted(packets or demux_packets(container, stream))):
        assert isinstance(frame, AudioFrame)
        num_frames += 1
        yield packet, frame
    if num_packets > 0 and num_frames == 0:
        raise MediaError(f"{_path_of(container)!r}: none of its {num_packets} audio packets can be decoded")


def decode_packets(
    container: InputContainer, stream: VideoStream | AudioStream, packets: Iterator[av.Packet]
) -> Iterator[tuple[av.Packet, object]]:
    """
    Decode packets, skipping damaged ones.

    As in players, a packet that the decoder refuses is skipped and decoding continues after it; a warning is logged
    once per pass. Where the file is truncated, the stream ends.

    Args:
        container (`av.container.InputContainer`): The open file, for messages.
        stream (`av.video.stream.VideoStream` or `av.audio.stream.AudioStream`): The stream of the packets.
        packets (`Iterator[av.Packet]`): The packets, in file order.

    Yields:
        `tuple[av.Packet, av.VideoFrame | av.AudioFrame]`: A frame, and the packet after which it was returned.

    Raises:
        MediaError: More than `MAX_DAMAGED_PACKETS` are damaged.
    """
    refused = 0
    reason = ""
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
        except av.EOFError:  # the decoder is already drained
            continue
        except av.FFmpegError as error:
            refused, reason = refused + 1, error.strerror or str(error)
            if refused > MAX_DAMAGED_PACKETS:
                raise MediaError(
                    f"{_path_of(container)!r}: more than {MAX_DAMAGED_PACKETS} {stream.type} packets are damaged"
                ) from error
            continue
        for frame in frames:
            yield packet, frame
    if refused:
        logger.warning("%r: %d damaged %s packets left out (%s)", _path_of(container), refused, stream.type, reason)


def _path_of(container: InputContainer) -> str:
    return container.name.removeprefix("file:")
