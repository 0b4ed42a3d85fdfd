"""Video backend on PyAV, whose wheel carries FFmpeg."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.media.container import decode_pictures, open_media
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.video import (
    FrameIndex,
    apply_display_matrix,
    check_positions,
    display_matrix,
    index_video,
    require_video_stream,
)


class PyAVBackend:
    """Decodes with PyAV from the start of the file to the last frame wanted: exact on every file that decodes."""

    def index(self, path: str | os.PathLike[str]) -> FrameIndex:
        """
        Indexes the frames of a video file.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            `FrameIndex`: Number, times and size of its frames.

        Raises:
            MediaError: The file cannot be read, or holds no frame.
        """
        return index_video(path)

    def frames(self, path: str | os.PathLike[str], positions: Sequence[int], index: FrameIndex) -> np.ndarray:
        """
        Decodes the frames at some positions.

        A picture of another size than the first (streams may change it) is scaled to the first one's size.

        Args:
            path (`str` or `os.PathLike`): The file.
            positions (`Sequence[int]`): Frame numbers in `[0, index.num_frames)`, in any order, repeats allowed.
            index (`FrameIndex`): What `index(path)` returned.

        Returns:
            `np.ndarray` of shape `(len(positions), height, width, 3)`, `uint8`: RGB, rotation of the file applied.

        Raises:
            MediaError: The file cannot be read, or yields fewer frames than those indexed.
            ValueError: A position is outside the file.
        """
        check_positions(positions, index)
        places: dict[int, list[int]] = {}
        for place, position in enumerate(positions):
            places.setdefault(position, []).append(place)
        last = max(places)
        frames = np.empty((len(positions), index.height, index.width, 3), dtype=np.uint8)
        decoded = 0
        with open_media(path) as container:
            for picture in decode_pictures(container, require_video_stream(container, path)):
                if decoded == 0:
                    matrix = display_matrix(picture)
                    width, height = picture.width, picture.height
                if decoded in places:
                    rgb = picture.reformat(width=width, height=height, format="rgb24", threads=1).to_ndarray()
                    frames[places[decoded]] = apply_display_matrix(rgb, matrix)
                decoded += 1
                if decoded > last:
                    break
        if decoded <= last:
            raise MediaError(
                f"{os.fspath(path)!r}: yields {decoded} frames but {index.num_frames} were indexed; "
                "did the file change?"
            )
        return frames
