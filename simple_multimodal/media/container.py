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
# FFmpeg open further files or addresses, are left out.
ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,asf,flv,gif,wav,w64,aiff,mp3,flac,aac"  # FFmpeg's names
)
MAX_PIXELS = 4096 * 4096  # of one frame; FFmpeg refuses larger ones before it allocates them
MAX_FRAMES = 2**20  # of one file, some 9 hours at 30 frames per second
MAX_PACKETS = 2**22  # of one stream, some 24 hours of audio
MAX_DAMAGED_PACKETS = 2**12  # a header of a few KB may promise millions that the file does not hold
MAX_FILE_BYTES = 2**36  # 64 GiB; a file of holes may claim any size
MAX_ALLOCATION_BYTES = 9 * MAX_PIXELS  # that FFmpeg takes at once; frames have up to 8 bytes a pixel
MAX_STALL_SECONDS = 60.0  # that FFmpeg may search a file for its header or for a next packet
MAX_PASS_SECONDS = 600.0  # of processor time for one pass through a file, so that no other load counts

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ALLOWED_FORMATS,
    "max_pixels": str(MAX_PIXELS),
}
_STALLED = f"nothing that can be decoded was found within {MAX_STALL_SECONDS:.0f} seconds"
_ONLY_HEADERS = {"skip_frame": "all", "fpsprobesize": "0"}  # of frames: none is decoded to find out their rate
PROBE_OPTIONS: dict[str, dict[str, str]] = {
    "everything": {},
    "far": {"analyzeduration": "60000000", "probesize": str(2**26)},  # microseconds, bytes
    "streams": _ONLY_HEADERS,
    "far_streams": _ONLY_HEADERS | {"analyzeduration": "60000000", "probesize": str(2**26)},
    "audio": _ONLY_HEADERS | {"analyzeduration": "100000"},
    "nothing": _ONLY_HEADERS | {"analyzeduration": "1"},
}
# Containers that list their streams at the start. In others a stream is found when its first packet comes.
HEADER_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "wav", "w64", "aiff", "mp3", "flac", "aac", "gif"}

if sys.platform != "win32":  # whose libraries do not look up what they link to
    # FFmpeg's own limit is 2 GiB, and the tables of a file of 2 KB can ask for that. PyAV has no setting for it.
    ctypes.CDLL(av.container.core.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION_BYTES))


Probe = Literal["everything", "far", "streams", "far_streams", "audio", "nothing"]


@dataclass(frozen=True)
class VideoTrack:
    """
    The video stream of a file that is read.

    Args:
        stream (`int`): Its number among all streams.
        codec (`str`): FFmpeg's name of its codec.
        width, height (`int`): Of its coded frames, in pixels.
    """

    stream: int
    codec: str
    width: int
    height: int


@dataclass(frozen=True)
class AudioTrack:
    """
    The audio stream of a file that is read.

    Args:
        stream (`int`): Its number among all streams.
        codec (`str`): FFmpeg's name of its codec.
        sampling_rate (`int`): As announced, in Hz; 0 where the stream does not say before its first packet.
        probe (`str`): How the file has to be opened for the stream to be there, see [`open_media`].
    """

    stream: int
    codec: str
    sampling_rate: int
    probe: Probe


@dataclass(frozen=True)
class Tracks:
    """
    Which streams of a file are read. They are chosen once, so that all readers agree.

    Args:
        container (`str`): FFmpeg's name of the container format.
        kinds (`str`): Kinds of all streams, for messages.
        video ([`VideoTrack`], *optional*): `None`: no video that can be decoded.
        audio ([`AudioTrack`], *optional*): `None`: no audio that can be decoded.
    """

    container: str
    kinds: str
    video: VideoTrack | None
    audio: AudioTrack | None


def check_media_file(path: str | os.PathLike[str]) -> os.stat_result:
    """
    Check that a path is a regular file with content, of at most `MAX_FILE_BYTES`.

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
def open_media(path: str | os.PathLike[str], *, probe: Probe = "everything") -> Iterator[InputContainer]:
    """
    Open a local media file, and turn what FFmpeg raises while it is open into `MediaError`.

    Only `ALLOWED_FORMATS` are accepted and only the file itself is read: a playlist under a media name, which would
    make FFmpeg open other files or addresses, is refused.

    Args:
        path (`str` or `os.PathLike`): The file.
        probe (`str`, *optional*, defaults to `"everything"`): How much of the beginning FFmpeg looks at to find out
            what is in the file, which takes most of the time of opening: `"everything"` about 5 s, frames included;
            `"far"` up to 60 s or 64 MiB; `"streams"` and `"far_streams"` the same without decoding frames; `"audio"`
            0.1 s; `"nothing"` only the header. The last four are for readers that know the file by its index.

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

    Cover images are no video. Where no audio was found and the container does not list its streams (transport streams
    and the like), audio that starts late is looked for in the first minute.

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
        # FFmpeg passes over a stream whose sampling rate it has not seen yet, although it may be announced.
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
        raise MediaError(f"{os.fspath(path)!r}: stream {number} is no video that can be decoded; did the file change?")
    stream.codec_context.thread_count = 1  # the callers run side by side already
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
        raise MediaError(f"{os.fspath(path)!r}: stream {number} is no audio that can be decoded; did the file change?")
    stream.codec_context.thread_count = 1
    return stream


def require_video(tracks: Tracks, path: str | os.PathLike[str]) -> VideoTrack:
    """
    Return the video track of a file, or say that there is none.

    Args:
        tracks (`Tracks`): Of the file.
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
    Return the unit of a stream's time stamps.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.

    Returns:
        `Fraction`: Length of a tick, in seconds.
    """
    assert stream.time_base is not None  # every stream that FFmpeg reads has one
    return stream.time_base


def demux_packets(container: InputContainer, *streams: VideoStream | AudioStream) -> Iterator[av.Packet]:
    """
    Read the packets of streams from where the file stands.

    Args:
        container (`av.container.InputContainer`): The open file.
        streams (`av.video.stream.VideoStream` or `av.audio.stream.AudioStream`): Of its streams.

    Yields:
        `av.Packet`: The packets; an empty one at the end.

    Raises:
        MediaError: There are more than `MAX_PACKETS`, one took more than `MAX_STALL_SECONDS`, or all of them, with
            what the caller does, more than `MAX_PASS_SECONDS`.
        av.FFmpegError: The file breaks off.
    """
    started = time.thread_time()
    packets = container.demux(*streams)
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
            packets = container.demux(*streams)
            continue
        except av.ExitError as error:  # not where the file ends: what follows is unknown
            raise MediaError(f"{_path_of(container)!r}: {_STALLED}") from error
        number += 1
        yield packet


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """
    Decode a video stream from its start, in the decoder's output order.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.video.stream.VideoStream`): One of its streams.

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
    Decode an audio stream from where the file stands.

    Args:
        container (`av.container.InputContainer`): The open file.
        stream (`av.audio.stream.AudioStream`): One of its streams.
        packets (`Iterator[av.Packet]`, *optional*): Of the stream; by default all that follow.

    Yields:
        `tuple[av.Packet, av.AudioFrame]`: A frame, and the packet behind which the decoder put it out.

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
        raise MediaError(f"{_path_of(container)!r}: not one of its {num_packets} audio packets can be decoded")


def decode_packets(
    container: InputContainer, stream: VideoStream | AudioStream, packets: Iterator[av.Packet]
) -> Iterator[tuple[av.Packet, object]]:
    """
    Decode packets, leaving out what is damaged.

    A packet that the decoder refuses is left out and decoding goes on behind it, as players do; the log says so once
    per pass. Where the file itself breaks off, the stream ends.

    Args:
        container (`av.container.InputContainer`): The open file, for messages.
        stream (`av.video.stream.VideoStream` or `av.audio.stream.AudioStream`): Of the packets.
        packets (`Iterator[av.Packet]`): In the order of the file.

    Yields:
        `tuple[av.Packet, av.VideoFrame | av.AudioFrame]`: A frame, and the packet behind which it was put out.

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
        except av.EOFError:  # the decoder was drained before
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
