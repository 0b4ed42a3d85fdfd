"""Single frames of 200 videos in uniformly random order, 224 x 224: beside one seek for each, and beside tuned peers.

python benchmarks/make_videos.py CLIPS_FOLDER VIDEOS
python benchmarks/random_frames.py VIDEOS [--buffer_frames 2080]
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import readers
import torch
from make_videos import GROUP_SIZES
from torch.utils.data import DataLoader

from simple_multimodal.data.random_frames import LEAD, FrameOrder, RandomFrameDataset, plan_visits, sampling_report

BATCH = 128
CHUNK_SIZES = (1, 4, 8, 16, 32)


def one_by_one(request: tuple[str, int]) -> np.ndarray:
    """The plain way: open, seek, decode up to the frame, convert it to a PIL picture and resize that."""
    import av
    from PIL import Image

    path, position = request
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        step = int(1 / (stream.average_rate * stream.time_base))
        container.seek(position * step, stream=stream)
        for picture in container.decode(stream):
            if picture.pts >= position * step:
                return np.asarray(picture.to_image().resize(readers.SIZE[::-1], Image.Resampling.BILINEAR))
    raise ValueError(f"{path} has no frame {position}")


def planned(dataset: RandomFrameDataset, chunk_size: int, num_frames: int) -> list[tuple[str, list[int]]]:
    """What our data set reads for so many frames in the middle of an epoch: a file, and frames of it, at a time."""
    order = FrameOrder(dataset.num_frames, chunk_size=chunk_size)
    ahead = max(dataset.buffer_frames // LEAD // chunk_size, 1)
    visits = plan_visits(order, range(order.num_chunks), dataset.group_starts, dataset.buffer_frames, ahead)
    plan: list[tuple[str, list[int]]] = []
    for visit in itertools.islice(visits, order.num_chunks // 2, None):
        if visit and num_frames > 0:
            positions = [position for chunk in visit for position in range(chunk.first, chunk.stop)]
            plan.append((dataset.paths[visit[0].video], sorted(positions)))
            num_frames -= len(positions)
    return plan


def timed(reader: Callable, plan: list[tuple[str, list[int]]]) -> tuple[float, float]:
    """Wall and CPU seconds of reading a plan in two threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda request: reader(*request), plan))
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--buffer_frames", type=int, default=2080)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = {}
    for group_size in GROUP_SIZES:
        paths = sorted(str(path) for path in (options.folder / f"groups_of_{group_size}").glob("*.mp4"))
        dataset = RandomFrameDataset(paths, buffer_frames=options.buffer_frames, num_threads=2)
        order = FrameOrder(dataset.num_frames)
        assert order.num_chunks >= 20 * options.buffer_frames, "the videos must hold 20 times the buffer"

        # One epoch, in which every frame comes once.
        counts: Counter = Counter()
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in DataLoader(dataset, batch_size=BATCH):
            counts.update(zip(batch.video.tolist(), batch.position.tolist(), strict=True))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert len(counts) == len(dataset) and set(counts.values()) == {1}
        entry = {
            "num_videos": len(paths),
            "num_frames": len(dataset),
            "buffer_gigabytes": options.buffer_frames * 3 * 224 * 224 / 1e9,
            "epoch_frames_per_second": len(dataset) / wall,
            "epoch_cpu_ms_per_frame": 1000 * cpu / len(dataset),
            "times_each_frame_came": sorted(set(counts.values())),
        }

        # The plain way on two processes, and readers that get the same plan, in turns.
        plan = planned(dataset, 1, options.buffer_frames)
        num_planned = sum(len(positions) for _, positions in plan)
        singles = [(path, position) for path, positions in plan for position in positions][::10]
        rates: dict[str, list[float]] = {}
        chosen = {k: readers.READERS[k] for k in ("ours", "torchcodec exact", "torchcodec approximate", "decord")}
        chosen["torchcodec + torchvision"] = readers.READERS["torchcodec + torchvision"]
        with ProcessPoolExecutor(2) as processes:
            list(processes.map(one_by_one, singles[:4]))
            for repeat in range(options.repeats):
                wall = time.perf_counter()
                list(processes.map(one_by_one, singles, chunksize=8))
                rates.setdefault("one by one", []).append(len(singles) / (time.perf_counter() - wall))
                for name in list(chosen) if repeat % 2 == 0 else list(chosen)[::-1]:
                    wall, _ = timed(chosen[name], plan)
                    rates.setdefault(name, []).append(num_planned / wall)
        entry["frames_per_second"] = {name: float(np.median(values)) for name, values in rates.items()}
        entry["raw"] = rates

        # Chunks: how much faster, and what they cost in variance.
        entry["chunks"] = {}
        sample = paths[:40]
        pixels = [readers.backend.frames(p, range(n), readers.index_video(p), (16, 16)) for p, n in
                  zip(sample, dataset.num_frames, strict=False)]  # fmt: skip
        for chunk_size in CHUNK_SIZES:
            plan = planned(dataset, chunk_size, options.buffer_frames)
            wall, _ = timed(readers.ours, plan)
            rate = sum(len(positions) for _, positions in plan) / wall
            small = FrameOrder([len(frames) for frames in pixels], chunk_size=chunk_size)
            on_pixels = sampling_report(small, [frames.reshape(len(frames), -1) / 255 for frames in pixels])
            on_gradients = sampling_report(small, [gradients(frames) for frames in pixels])
            entry["chunks"][chunk_size] = {
                "frames_per_second": rate,
                "inclusion": [on_pixels.min_count, on_pixels.max_count],
                "correlation_of_pixels": on_pixels.correlation,
                "design_effect_of_pixels": on_pixels.design_effect,
                "correlation_of_gradients": on_gradients.correlation,
                "design_effect_of_gradients": on_gradients.design_effect,
                "effective_frames_per_second": rate * on_gradients.effective_share,
            }
        results[f"groups of {group_size}"] = entry
        print(f"groups of {group_size}: epoch {entry['epoch_frames_per_second']:.0f} frames/s, each frame once")
        for name, rate in entry["frames_per_second"].items():
            print(f"  {name:26s}{rate:8.1f} frames/s   ours is {entry['frames_per_second']['ours'] / rate:.2f} times")
        for chunk_size, chunk in entry["chunks"].items():
            print(
                f"  chunks of {chunk_size:2d}: {chunk['frames_per_second']:7.0f} frames/s, design effect "
                f"{chunk['design_effect_of_pixels']:.2f} (pixels) "
                f"{chunk['design_effect_of_gradients']:.2f} (gradients)"
                f", worth {chunk['effective_frames_per_second']:.0f} independent ones"
            )
    common.save("random_frames", results)


def gradients(frames: np.ndarray) -> np.ndarray:
    """The gradient that each frame gives the first layer of a small network."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1)
    )
    inputs = torch.from_numpy(frames).float() / 255
    network(inputs[:1])
    parameters = dict(network.named_parameters())

    def loss(values: dict[str, torch.Tensor], frame: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(network, values, (frame[None],))
        return (output.squeeze() - frame.mean() + frame[0].mean()) ** 2

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs)
    return grads["0.weight"].flatten(1).detach().numpy()


if __name__ == "__main__":
    main()
