"""Settings of `simple-multimodal pack`, in a module without heavy imports so that `--help` is fast."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """Settings for packing files. Audio is stored losslessly, at 16 bits."""

    short_side: Annotated[int, "short side of frames in pixels, never enlarged; leave room for random crops"] = 224
    group_size: Annotated[int, "frames per group of pictures; with 1, each can be decoded alone"] = 1
    crf: Annotated[int, "quality of x264, from 0 (lossless) to 51"] = 18
    sampling_rate: Annotated[int, "sampling rate of the audio, in Hz"] = 16000

    @property
    def x264_options(self) -> dict[str, str]:
        """Options of x264, with few coding tools so that decoding is cheap."""
        parameters = {
            "keyint": self.group_size,
            "min-keyint": self.group_size,
            "bframes": max(self.group_size - 1, 0),
            "b-adapt": 0,
            "b-pyramid": "none",
            "scenecut": 0,
            "ref": 1,
        }
        joined = ":".join(f"{name}={value}" for name, value in parameters.items())
        return {"preset": "veryfast", "tune": "fastdecode", "crf": str(self.crf), "x264-params": joined}
