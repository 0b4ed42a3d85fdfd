"""Limits of a server. Imports nothing heavy: they are flags, too."""

from dataclasses import dataclass
from typing import Annotated

from simple_multimodal.errors import InputError

MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """What a server accepts; everything beyond is refused with a status and a reason."""

    max_body_megabytes: Annotated[float, "size of a request's body, in MB"] = 64.0
    max_parts: Annotated[int, "number of parts of a multipart body"] = 16
    max_inputs: Annotated[int, "number of texts, clips or questions in a request"] = 64
    max_text_characters: Annotated[int, "length of a text"] = 10_000
    max_requests: Annotated[int, "number of requests that are received or processed at once; others get 429"] = 256
    max_waiting_megabytes: Annotated[
        float, "memory for the bodies of all these requests, and again for their clips once they are read, in MB"
    ] = 4096.0
    send_seconds: Annotated[float, "time to send a request's body"] = 30.0
    header_seconds: Annotated[float, "time to send a request's header"] = 10.0
    answer_seconds: Annotated[float, "time to answer a request once its body is there"] = 60.0
    read_seconds: Annotated[float, "time to read a clip"] = 20.0
    read_memory_gigabytes: Annotated[float, "memory to read a clip, in GB"] = 1.0
    max_clip_seconds: Annotated[float, "duration of a clip"] = 600.0
    max_clip_frames: Annotated[int, "number of frames of a clip"] = 2**16
    max_clip_pixels: Annotated[int, "pixels of a frame of a clip"] = 4096 * 2304

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"`{name}` must be positive, got {value}.")
        if self.max_body_megabytes > self.max_waiting_megabytes:
            raise InputError(
                f"`max_body_megabytes={self.max_body_megabytes:g}` is more than all bodies may have together, "
                f"`max_waiting_megabytes={self.max_waiting_megabytes:g}`. Lower it."
            )

    @property
    def body_bytes(self) -> int:
        """Largest body, in bytes."""
        return int(self.max_body_megabytes * MEGABYTE)

    @property
    def waiting_bytes(self) -> int:
        """Memory for all bodies, and for all clips that are read, in bytes."""
        return int(self.max_waiting_megabytes * MEGABYTE)
