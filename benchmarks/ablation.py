"""From a naive reader to ours, one technique at a time: CPU seconds for 16 uniform frames of each clip at 224 x 224.

python benchmarks/ablation.py CLIPS_FOLDER [--repeats 5]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from simple_multimodal.media import get_video_backend, index_video, sample_positions
from simple_multimodal.media import pyav_backend as ours_module
from simple_multimodal.media.container import decode_frames, open_media, open_video_stream

SIZE = (224, 224)
backend = get_video_backend("pyav")


def _images(path: str, positions: list[int]):
    with open_media(path) as container:
        stream = open_video_stream(container, index_video(path).stream, path)
        for number, frame in enumerate(decode_frames(container, stream)):
            if number in positions:
                yield frame
            if number == positions[-1]:
                return


def everything(path: str, positions: list[int]) -> np.ndarray:
    """Decode everything, convert everything to RGB, select, resize with PIL."""
    with open_media(path) as container:
        stream = open_video_stream(container, index_video(path).stream, path)
        frames = [frame.to_ndarray(format="rgb24") for frame in decode_frames(container, stream)]
    return np.stack(
        [np.asarray(Image.fromarray(frames[n]).resize(SIZE, Image.Resampling.BILINEAR)) for n in positions]
    )


def convert_wanted(path: str, positions: list[int]) -> np.ndarray:
    """Stop at the last wanted frame, and convert only the wanted ones."""
    frames = [frame.to_ndarray(format="rgb24") for frame in _images(path, positions)]
    return np.stack([np.asarray(Image.fromarray(frame).resize(SIZE, Image.Resampling.BILINEAR)) for frame in frames])


def scale_while_converting(path: str, positions: list[int]) -> np.ndarray:
    """Let swscale convert and scale in one step, with a new context for each frame."""
    return np.stack([p.to_ndarray(format="rgb24", height=SIZE[0], width=SIZE[1]) for p in _images(path, positions)])


def shared_context(path: str, positions: list[int]) -> np.ndarray:
    """Use one swscale context for all frames."""
    convert = VideoReformatter()
    return np.stack(
        [
            convert.reformat(
                p, SIZE[1], SIZE[0], "rgb24", interpolation=Interpolation.BILINEAR, threads=1
            ).to_ndarray()
            for p in _images(path, positions)
        ]
    )


def planar(path: str, positions: list[int]) -> np.ndarray:
    """Scale to planes instead of packed RGB."""
    return backend.frames(path, positions, replace(index_video(path), table=None), SIZE)


def _with_table(path: str, positions: list[int], **changes) -> np.ndarray:
    index = index_video(path)
    if index.table is not None:
        index = replace(index, table=replace(index.table, **changes))
    return backend.frames(path, positions, index, SIZE)


def groups_to_last_wanted(path: str, positions: list[int]) -> np.ndarray:
    """Decode each group of frames only up to the last wanted frame, and open the file without probing the stream."""
    table = index_video(path).table
    nothing = {} if table is None else {"is_unreferenced": np.zeros_like(table.is_unreferenced)}
    return _with_table(path, positions, **nothing)


def unreferenced_left_out(path: str, positions: list[int]) -> np.ndarray:
    """Withhold packets of frames that no other frame refers to from the decoder: our reader."""
    return _with_table(path, positions)


def always_seek(path: str, positions: list[int]) -> np.ndarray:
    """Not adopted: seek for every group instead of reading past packets that are not decoded."""
    limit, ours_module.SEEK_PACKETS = ours_module.SEEK_PACKETS, 0
    try:
        return _with_table(path, positions)
    finally:
        ours_module.SEEK_PACKETS = limit


STEPS = [everything, convert_wanted, scale_while_converting, shared_context, planar, groups_to_last_wanted,
         unreferenced_left_out, always_seek]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    files = sorted(str(path) for path in options.folder.iterdir() if path.is_file())
    positions = {path: sample_positions(index_video(path), 16) for path in files}
    calls = {step.__name__: (lambda path, step=step: step(path, positions[path])) for step in STEPS}
    # The lower bound: the necessary decoding, without conversion.
    calls["floor: decoding alone"] = lambda path: _decode_only(path, positions[path])
    seconds = common.interleaved(files, calls, options.repeats)
    totals = {name: common.total(values, files) for name, values in seconds.items()}
    before = None
    for step in STEPS:
        value = totals[step.__name__]
        change = "" if before is None else f", {before / value:.2f} times less than the step before"
        print(f"{value:7.2f} s  {step.__name__:26s}{step.__doc__.strip()}{change}")
        before = value
    floor = totals["floor: decoding alone"]
    own = totals["unreferenced_left_out"]
    print(f"{floor:7.2f} s  lower bound: the necessary decoding; ours takes {own / floor:.3f} times as long")
    common.save("ablation", {"cpu_seconds": totals, "floor": floor})


def _decode_only(path: str, positions: list[int]) -> int:
    index = index_video(path)
    wanted = sorted(set(positions))
    decode = ours_module._decode_from_start if index.table is None else ours_module._decode_sparsely
    with open_media(path, probe="everything" if index.table is None else "nothing") as container:
        return sum(1 for _ in decode(container, open_video_stream(container, index.stream, path), index, wanted))


if __name__ == "__main__":
    main()
