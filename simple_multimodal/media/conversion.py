"""Convert decoded frames to RGB arrays: colours, size and rotation."""

from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

Matrix = tuple[int, int, int, int]


def read_display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """
    Read how a frame must be rotated or mirrored for display.

    Args:
        frame (`av.VideoFrame`): A decoded frame.

    Returns:
        `tuple[int, int, int, int]`: `a, b, c, d` of FFmpeg's display matrix: the pixel at `(x, y)`, `y` downwards, is
        shown at `(a * x + c * y, b * x + d * y)` up to scale and shift.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    assert isinstance(side_data, SideData)
    a, b, _, c, d, _, _, _, _ = np.frombuffer(bytes(side_data), dtype=np.int32).tolist()
    return a, b, c, d


def is_transposed(matrix: Matrix) -> bool:
    """
    Check whether a display matrix (nearest multiple of 90 degrees) swaps width and height.

    Args:
        matrix (`tuple[int, int, int, int]`): The matrix, from `read_display_matrix`.

    Returns:
        `bool`: Whether it swaps them.
    """
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def apply_display_matrix(frame: np.ndarray, matrix: Matrix) -> np.ndarray:
    """
    Rotate and mirror a frame for display, by multiples of 90 degrees.

    Args:
        frame (`np.ndarray` of shape `(height, width)`): A channel of the frame as coded.
        matrix (`tuple[int, int, int, int]`): The matrix, from `read_display_matrix`.

    Returns:
        `np.ndarray`: A view of shape `(height, width)`, or `(width, height)` where the matrix transposes.
    """
    a, b, c, d = matrix
    if is_transposed(matrix):
        frame = frame.T  # rows are now x, columns y
        x_sign, y_sign = c, b
    else:
        x_sign, y_sign = a, d
    if x_sign < 0:
        frame = frame[:, ::-1]
    if y_sign < 0:
        frame = frame[::-1]
    return frame


class FrameConverter:
    """
    Converts frames to RGB, scales and rotates them, with one set of swscale's tables for all of them.

    Args:
        size (`tuple[int, int]`): Height and width of the result.
        matrix (`tuple[int, int, int, int]`, *optional*): How to rotate the frames, from `read_display_matrix`.
        scales (`bool`, *optional*, defaults to `True`): Whether `size` differs from the frames' own. When it scales,
            swscale is faster and more exact with planes of full chroma as output; when it does not, it has a fast path
            to packed RGB, which other readers use too.
    """

    def __init__(self, size: tuple[int, int], matrix: Matrix = (1, 0, 0, 1), *, scales: bool = True):
        self.matrix = matrix
        self.height, self.width = size[::-1] if is_transposed(matrix) else size
        self.scales = scales
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame, out: np.ndarray) -> None:
        """
        Convert a frame.

        Args:
            frame (`av.VideoFrame`): The frame.
            out (`np.ndarray` of shape `(3, height, width)`, `uint8`): Where its RGB values go.
        """
        converted = self.reformatter.reformat(
            frame,
            self.width,
            self.height,
            "gbrp" if self.scales else "rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in converted.planes]
        if self.scales:
            channels = [rows[number][:, : self.width] for number in (2, 0, 1)]
        else:
            channels = [rows[0][:, number : 3 * self.width : 3] for number in range(3)]
        for channel, values in zip(out, channels, strict=True):
            channel[:] = apply_display_matrix(values, self.matrix)


class DecordConverter:
    """
    Converts frames to RGB as decord 0.6 does: FFmpeg's filters rotate them, then scale them and convert their colours.

    The kernel is the same as in [`FrameConverter`], but the filter places the chroma samples of 4:2:0 as in MPEG-2.

    Args:
        size (`tuple[int, int]`): Height and width of the result.
        matrix (`tuple[int, int, int, int]`, *optional*): How to rotate the frames, from `read_display_matrix`.
    """

    def __init__(self, size: tuple[int, int], matrix: Matrix = (1, 0, 0, 1)):
        self.size = size
        self.matrix = matrix
        self.graphs: dict[tuple[int, int, str], Graph] = {}

    def __call__(self, frame: VideoFrame, out: np.ndarray) -> None:
        """
        Convert a frame.

        Args:
            frame (`av.VideoFrame`): The frame.
            out (`np.ndarray` of shape `(3, height, width)`, `uint8`): Where its RGB values go.
        """
        kind = frame.width, frame.height, frame.format.name
        if kind not in self.graphs:  # it may change within a stream
            self.graphs[kind] = self._build_graph(frame)
        self.graphs[kind].vpush(frame)
        out[:] = self.graphs[kind].vpull().to_ndarray(format="rgb24").transpose(2, 0, 1)

    def _build_graph(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        a, b, c, d = self.matrix
        turns = is_transposed(self.matrix)
        x_sign, y_sign = (c, b) if turns else (a, d)
        turning = [("transpose", "0")] * turns + [("hflip", "")] * (x_sign < 0) + [("vflip", "")] * (y_sign < 0)
        height, width = self.size
        scaling = f"{width}:{height}:flags=bilinear"
        shown_height = frame.width if turns else frame.height
        if shown_height == height and frame.format.chroma_height(shown_height) < shown_height:
            # decord's older swscale has a shortcut if the height stays: it uses one row of chroma, or the mean of two.
            scaling += ":in_v_chr_pos=256"
        time_base = Fraction(1)  # no filter uses times
        nodes = [graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=time_base)]
        nodes += [graph.add(*node) for node in (*turning, ("scale", scaling), ("format", "rgb24"), ("buffersink", ""))]
        graph.link_nodes(*nodes).configure()
        return graph
