"""Settings of `simple-multimodal pack` and of tables, in a module without heavy imports so that `--help` is fast."""

from dataclasses import dataclass
from typing import Annotated, Literal

from simple_multimodal.errors import InputError

SignalUnit = Literal["milliseconds", "frames"]


@dataclass(frozen=True, kw_only=True)
class SignalSettings:
    """How a table of multimodalhugs names its files (`signal`) and times (`signal_start`, `signal_end`).

    Raises:
        ValueError: If the rate is missing, is not above 0, **or** has no effect.
    """

    signal_root: Annotated[
        str | None,
        "multimodalhugs: folder that absolute paths of its tables begin with, which stands for the folder of the "
        "clips and need not exist; default: the folder of the clips",
        "DIR",
    ] = None
    signal_start_end_unit: Annotated[SignalUnit, "multimodalhugs: unit of times in its tables"] = "milliseconds"
    signal_rate: Annotated[
        float | None, "multimodalhugs: frames per second of the clips, for --signal_start_end_unit frames"
    ] = None

    def __post_init__(self) -> None:
        if self.signal_start_end_unit == "frames" and not 0 < (self.signal_rate or 0) < float("inf"):
            raise InputError(
                "`signal_start_end_unit` is frames, so `signal_rate` must be the frames per second of the clips, "
                f"above 0, got {self.signal_rate}."
            )
        if self.signal_start_end_unit == "milliseconds" and self.signal_rate is not None:
            raise InputError("`signal_rate` has no effect on milliseconds; leave it out, or give frames as the unit.")

    @property
    def units_per_second(self) -> float:
        """Number of units in a second."""
        return 1000 if self.signal_rate is None else self.signal_rate


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
