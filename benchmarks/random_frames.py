"""Single frames of 200 videos in uniformly random order, 224 x 224, against one seek per frame and other readers.

python benchmarks/make_videos.py CLIPS_FOLDER VIDEOS
python benchmarks/random_frames.py VIDEOS [--buffer_frames 2080] [--without_peers]
python benchmarks/random_frames.py VIDEOS --run_model base [--video_backend torchcodec --decode_device cuda]

For comparison, two orders that are not uniformly random: reading every video in order, which is the upper bound of
what decoding can deliver, and windows of neighbouring frames that may begin at any frame. Windows favour the middle of
a video over its edges; the bias is computed exactly, not estimated.

`--run_model` trains a model to classify the frames: a ViT of ViT-B/16's size or a tiny one. The share of time that it
waits for frames is 1 - (step on one cached batch) / (step on loaded batches). Nothing else is measured then.
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from make_videos import GROUP_SIZES
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification

from simple_multimodal.data.random_frames import (
    LEAD,
    FrameOrder,
    RandomFrameDataset,
    plan_visits,
    sampling_report,
    window_report,
)
from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.index_cache import with_index

BATCH = 128
CHUNK_SIZES = (1, 4, 8, 16, 32)
SIZE = (224, 224)
PEERS = ("torchcodec exact", "torchcodec approximate", "decord", "torchcodec + torchvision")
MODELS = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384},
    "base": {},
}
MODEL_STEPS = 30
Plan = list[tuple[str, list[int]]]

backend = get_video_backend("pyav")


def ours(path: str, positions: list[int]) -> np.ndarray:
    """Read with our reader and a warm index."""
    return with_index(path, lambda index: backend.frames(path, positions, index, SIZE))


def one_by_one(request: tuple[str, int]) -> np.ndarray:
    """Read one frame the naive way: open, seek, decode up to the frame, convert it to a PIL image and resize that."""
    import av
    from PIL import Image

    path, position = request
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        step = int(1 / (stream.average_rate * stream.time_base))
        container.seek(position * step, stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= position * step:
                return np.asarray(frame.to_image().resize(SIZE[::-1], Image.Resampling.BILINEAR))
    raise ValueError(f"{path} has no frame {position}")


def planned(dataset: RandomFrameDataset, chunk_size: int, num_frames: int) -> Plan:
    """Return what our data set reads for `num_frames` frames in the middle of an epoch: a file and its frames each."""
    order = FrameOrder(dataset.num_frames, chunk_size=chunk_size)
    ahead = max(dataset.buffer_frames // LEAD // chunk_size, 1)
    visits = plan_visits(order, range(order.num_chunks), dataset.group_starts, dataset.buffer_frames, ahead)
    plan: Plan = []
    for visit in itertools.islice(visits, order.num_chunks // 2, None):
        if visit and num_frames > 0:
            positions = [position for chunk in visit for position in range(chunk.first, chunk.stop)]
            plan.append((dataset.paths[visit[0].video], sorted(positions)))
            num_frames -= len(positions)
    return plan


def in_order(dataset: RandomFrameDataset, num_frames: int) -> Plan:
    """Return a plan that reads whole videos, from the first frame to the last."""
    plan: Plan = []
    for path, length in zip(dataset.paths, dataset.num_frames, strict=True):
        if num_frames > 0:
            plan.append((path, list(range(length))))
            num_frames -= length
    return plan


def windows(dataset: RandomFrameDataset, window: int, num_frames: int) -> Plan:
    """Return a plan of windows that begin anywhere, all equally likely."""
    generator = np.random.default_rng(0)
    num_starts = np.maximum(np.array(dataset.num_frames) - window, 0) + 1
    videos = generator.choice(len(num_starts), max(num_frames // window, 1), p=num_starts / num_starts.sum())
    starts = generator.integers(num_starts[videos])
    return [
        (dataset.paths[video], list(range(start, min(start + window, dataset.num_frames[video]))))
        for video, start in zip(videos.tolist(), starts.tolist(), strict=True)
    ]


def timed(reader: Callable, plan: Plan) -> tuple[float, float]:
    """Return the wall and CPU seconds of reading a plan in two threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda request: reader(*request), plan))
    return time.perf_counter() - wall, time.process_time() - cpu


def rates_of(plan: Plan) -> dict[str, float]:
    """Return the frames per second in two threads, and the CPU milliseconds per frame, of our reader."""
    num_frames = sum(len(positions) for _, positions in plan)
    wall, cpu = timed(ours, plan)
    return {"frames_per_second": num_frames / wall, "cpu_ms_per_frame": 1000 * cpu / num_frames}


def measure_epoch(dataset: RandomFrameDataset) -> dict[str, Any]:
    """Measure one epoch, in which every frame comes once."""
    counts: Counter = Counter()
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in DataLoader(dataset, batch_size=BATCH):
        counts.update(zip(batch.video.tolist(), batch.position.tolist(), strict=True))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(counts) == len(dataset) and set(counts.values()) == {1}
    return {
        "num_videos": len(dataset.paths),
        "num_frames": len(dataset),
        "buffer_gigabytes": dataset.buffer_frames * 3 * SIZE[0] * SIZE[1] / 1e9,
        "epoch_frames_per_second": len(dataset) / wall,
        "epoch_cpu_ms_per_frame": 1000 * cpu / len(dataset),
        "times_each_frame_came": sorted(set(counts.values())),
    }


def measure_readers(dataset: RandomFrameDataset, repeats: int, with_peers: bool) -> dict[str, list[float]]:
    """Measure, in turns, frames per second of the naive way on two processes and of readers that get the same plan."""
    chosen: dict[str, Callable] = {"ours": ours}
    if with_peers:
        import readers

        chosen |= {name: readers.READERS[name] for name in PEERS}
    plan = planned(dataset, 1, dataset.buffer_frames)
    num_planned = sum(len(positions) for _, positions in plan)
    singles = [(path, position) for path, positions in plan for position in positions][::10]
    rates: dict[str, list[float]] = {}
    with ProcessPoolExecutor(2) as processes:
        list(processes.map(one_by_one, singles[:4]))
        for repeat in range(repeats):
            wall = time.perf_counter()
            list(processes.map(one_by_one, singles, chunksize=8))
            rates.setdefault("one by one", []).append(len(singles) / (time.perf_counter() - wall))
            for name in list(chosen) if repeat % 2 == 0 else list(chosen)[::-1]:
                wall, _ = timed(chosen[name], plan)
                rates.setdefault(name, []).append(num_planned / wall)
    return rates


def measure_chunks(dataset: RandomFrameDataset) -> dict[str, Any]:
    """Measure the speed of chunks and of sliding windows, and their cost in variance and bias."""
    sample = dataset.paths[:40]
    pixels = [
        backend.frames(path, range(length), index_video(path), (16, 16))
        for path, length in zip(sample, dataset.num_frames, strict=False)
    ]
    flat = [frames.reshape(len(frames), -1) / 255 for frames in pixels]
    slopes = [gradients(frames) for frames in pixels]
    found: dict[str, Any] = {
        "in order": rates_of(in_order(dataset, dataset.buffer_frames)),
        "chunks": {},
        "windows": {},
    }
    for chunk_size in CHUNK_SIZES:
        rates = rates_of(planned(dataset, chunk_size, dataset.buffer_frames))
        small = FrameOrder([len(frames) for frames in pixels], chunk_size=chunk_size)
        on_pixels, on_gradients = sampling_report(small, flat), sampling_report(small, slopes)
        found["chunks"][chunk_size] = {
            **rates,
            "inclusion": [on_pixels.min_count, on_pixels.max_count],
            "correlation_of_pixels": on_pixels.correlation,
            "design_effect_of_pixels": on_pixels.design_effect,
            "correlation_of_gradients": on_gradients.correlation,
            "design_effect_of_gradients": on_gradients.design_effect,
            "effective_frames_per_second": rates["frames_per_second"] * on_gradients.effective_share,
        }
        favoured, bent = window_report(flat, chunk_size), window_report(slopes, chunk_size)
        found["windows"][chunk_size] = {
            **rates_of(windows(dataset, chunk_size, dataset.buffer_frames)),
            "inclusion": [favoured.min_share, favoured.max_share],
            "edge_share": favoured.edge_share,
            "bias_of_pixels": favoured.bias,
            "bias_of_gradients": bent.bias,
        }
    return found


def gradients(frames: np.ndarray) -> np.ndarray:
    """Return the gradient that each frame gives the first layer of a small network."""
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


def measure_model(dataset: RandomFrameDataset, name: str) -> dict[str, Any]:
    """Measure steps of a model on loaded frames, and on one cached batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ViTForImageClassification(ViTConfig(**MODELS[name], num_labels=10)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(pixels: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            images = pixels.to(device, non_blocking=True).float() / 127.5 - 1
            labels = images.flatten(1).mean(dim=1).mul(100).long().remainder(10)
            loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def seconds_of(batches: Any) -> float:
        """Return the seconds per step, without the first steps."""
        start = 0.0
        for number, pixels in enumerate(batches):
            step(pixels)
            if number in (1, MODEL_STEPS + 1):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number == 1:
                    start = time.perf_counter()
                else:
                    break
        return (time.perf_counter() - start) / MODEL_STEPS

    loader = DataLoader(dataset, batch_size=BATCH)
    first = next(iter(loader)).pixels
    cached = seconds_of(itertools.repeat(first))
    loaded = seconds_of(batch.pixels for batch in loader)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "model": name,
        "cached_step_seconds": cached,
        "loaded_step_seconds": loaded,
        "frames_per_second": BATCH / loaded,
        "stall": 1 - cached / loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--buffer_frames", type=int, default=2080)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without_peers", action="store_true", help="measure only our reader and the naive way")
    parser.add_argument("--run_model", choices=MODELS, help="only measure how long this model waits for frames")
    parser.add_argument("--video_backend", default="pyav", help="with --run_model; default: pyav")
    parser.add_argument("--decode_device", default="cpu", help="with --run_model: cpu or cuda; default: cpu")
    parser.add_argument("--name", default="random_frames", help="name of the results")
    options = parser.parse_args()
    results = {}
    for group_size in GROUP_SIZES:
        paths = sorted(str(path) for path in (options.folder / f"groups_of_{group_size}").glob("*.mp4"))
        decoder = {"video_backend": options.video_backend, "decode_device": options.decode_device}
        dataset = RandomFrameDataset(paths, buffer_frames=options.buffer_frames, num_threads=2, **decoder)
        if options.run_model:
            entry = results[f"groups of {group_size}"] = measure_model(dataset, options.run_model) | decoder
            print(f"groups of {group_size}: {entry}")
            continue
        assert len(dataset) >= 20 * options.buffer_frames, "the videos must hold 20 times the buffer"
        entry = measure_epoch(dataset)
        rates = measure_readers(dataset, options.repeats, not options.without_peers)
        entry["frames_per_second"] = {name: float(np.median(values)) for name, values in rates.items()}
        entry["raw"] = rates
        entry |= measure_chunks(dataset)
        results[f"groups of {group_size}"] = entry
        print(f"groups of {group_size}: epoch {entry['epoch_frames_per_second']:.0f} frames/s, each frame once")
        for name, rate in entry["frames_per_second"].items():
            print(f"  {name:26s}{rate:8.1f} frames/s   ours is {entry['frames_per_second']['ours'] / rate:.2f} times")
        rate, cost = entry["in order"].values()
        print(f"  {'read in order':26s}{rate:8.1f} frames/s, {cost:.2f} ms")
        for chunk_size, chunk in entry["chunks"].items():
            print(
                f"  chunks of {chunk_size:2d}: {chunk['frames_per_second']:7.0f} frames/s, "
                f"{chunk['cpu_ms_per_frame']:.2f} ms, design effect "
                f"{chunk['design_effect_of_pixels']:.2f} (pixels) "
                f"{chunk['design_effect_of_gradients']:.2f} (gradients)"
                f", worth {chunk['effective_frames_per_second']:.0f} independent frames/s"
            )
        for window, slid in entry["windows"].items():
            print(
                f"  sliding windows of {window:2d}: {slid['frames_per_second']:7.0f} frames/s, "
                f"{slid['cpu_ms_per_frame']:.2f} ms, a frame comes {slid['inclusion'][0]:.3f} to "
                f"{slid['inclusion'][1]:.3f} times, {100 * slid['edge_share']:.0f} % less often than others, bias "
                f"{slid['bias_of_pixels']:.4f} (pixels) {slid['bias_of_gradients']:.4f} (gradients)"
            )
    common.save(options.name, results)


if __name__ == "__main__":
    main()
