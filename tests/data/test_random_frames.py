"""Tests of the random order of frames, of the dataset that reads them, and of the reports on sampling."""

import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from simple_multimodal.data.random_frames import (
    FEISTEL_ROUNDS,
    FrameOrder,
    RandomFrameDataset,
    plan_visits,
    sampling_report,
    shuffled,
    window_counts,
    window_report,
)
from tests.media.media_files import HEIGHT, WIDTH, read_number, write_media

LENGTHS = [40, 25, 1, 61]


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_shuffled_numbers_are_a_permutation(size):
    key = np.random.default_rng(size).integers(0, 2**64, FEISTEL_ROUNDS, dtype=np.uint64)
    assert sorted(shuffled(np.arange(size), size, key).tolist()) == list(range(size))


def test_every_place_gets_every_number_equally_often():
    counts = np.zeros((6, 6))
    generator = np.random.default_rng(0)
    for _ in range(3000):
        key = generator.integers(0, 2**64, FEISTEL_ROUNDS, dtype=np.uint64)
        counts[np.arange(6), shuffled(np.arange(6), 6, key)] += 1
    deviation = (counts - 500) / np.sqrt(3000 * 5 / 36)
    assert np.abs(deviation).max() < 4 and 0.5 < deviation.std() < 1.5


@pytest.mark.parametrize("chunk_size", [1, 4, 8, 100])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_frame_once(chunk_size, epoch):
    order = FrameOrder(LENGTHS, chunk_size=chunk_size, seed=3, epoch=epoch)
    chunks = order.chunks(range(order.num_chunks))
    frames = [(video, frame) for video, first, stop in chunks for frame in range(first, stop)]
    assert sorted(frames) == [(video, frame) for video, length in enumerate(LENGTHS) for frame in range(length)]
    assert max(stop - first for _, first, stop in chunks) <= chunk_size
    assert frames != sorted(frames)
    assert order.chunks(range(0, order.num_chunks, 2)) == chunks[::2]


def test_chunks_begin_elsewhere_in_each_epoch_and_seed():
    cuts = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        order = FrameOrder([1000], chunk_size=10, seed=seed, epoch=epoch)
        cuts.add(min(stop for _, first, stop in order.chunks(range(order.num_chunks)) if first == 0))
    assert len(cuts) > 1


@pytest.mark.parametrize(("chunk_size", "buffer_frames"), [(1, 1), (1, 40), (1, 400), (1, 9000), (7, 7), (7, 150)])
def test_frames_are_decoded_in_time_and_fit_into_the_buffer(chunk_size, buffer_frames):
    lengths, ahead = [180, 180, 60, 5], max(buffer_frames // 10 // chunk_size, 1)
    starts = [np.arange(0, length, 30) for length in lengths]
    order = FrameOrder(lengths, chunk_size=chunk_size)
    share = range(1, order.num_chunks, 2)  # every second chunk
    chunks = order.chunks(share)
    num_held = num_visits = 0
    planned = set()
    for place, visit in enumerate(plan_visits(order, share, starts, buffer_frames, ahead)):
        if place >= ahead:
            _, first, stop = chunks[place - ahead]
            num_held -= stop - first
        for chunk in visit:
            assert chunk[1:] == chunks[chunk.place] and chunk.place >= place
            assert (chunk.video, chunk.first // 30) == (visit[0].video, visit[0].first // 30)
            num_held += chunk.stop - chunk.first
            planned.add(chunk.place)
        num_visits += len(visit) > 0
        assert place in planned and num_held <= buffer_frames
    assert planned == set(range(len(share)))
    if buffer_frames == 9000:  # room for all of 15 groups of pictures
        assert num_visits <= 20
    if buffer_frames == 400:
        assert num_visits < len(share) / 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_media(folder / f"{n}.mp4", num_frames=length)) for n, length in enumerate(LENGTHS)]


def read(frame) -> tuple[int, int]:
    return frame.video, read_number(np.asarray(frame.pixels))


@pytest.mark.parametrize(("chunk_size", "buffer_frames"), [(1, 30), (1, 5000), (4, 30)])
def test_the_right_frames_come_in_random_order(videos, chunk_size, buffer_frames):
    dataset = RandomFrameDataset(
        videos, size=(HEIGHT, WIDTH), chunk_size=chunk_size, buffer_frames=buffer_frames, seed=5
    )
    dataset.set_epoch(2)
    order = FrameOrder(LENGTHS, chunk_size=chunk_size, seed=5, epoch=2)
    expected = [(v, n) for v, first, stop in order.chunks(range(order.num_chunks)) for n in range(first, stop)]
    frames = list(dataset)
    assert len(dataset) == len(frames) == sum(LENGTHS)
    assert [(frame.video, frame.position) for frame in frames] == [read(frame) for frame in frames] == expected


@pytest.mark.parametrize(("num_workers", "world_size"), [(2, 1), (0, 3), (2, 2)])
def test_workers_and_processes_share_an_epoch(videos, num_workers, world_size):
    seen = []
    for rank in range(world_size):
        dataset = RandomFrameDataset(
            videos, size=(HEIGHT, WIDTH), buffer_frames=10, rank=rank, world_size=world_size, num_threads=1
        )
        for batch in DataLoader(dataset, batch_size=4, num_workers=num_workers):
            assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape[1:] == (3, HEIGHT, WIDTH)
            seen += zip(batch.video.tolist(), batch.position.tolist(), strict=True)
    assert sorted(seen) == [(video, frame) for video, length in enumerate(LENGTHS) for frame in range(length)]


def test_stopping_an_epoch_early_ends_all_threads(videos):
    before = threading.active_count()
    frames = iter(RandomFrameDataset(videos, size=(HEIGHT, WIDTH), buffer_frames=8))
    next(frames)
    frames.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_unreadable_video_is_named(videos, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.mp4"):
        RandomFrameDataset([*videos, str(tmp_path / "absent.mp4")])
    with pytest.raises(ValueError, match="1 <= chunk_size <= buffer_frames"):
        RandomFrameDataset(videos, chunk_size=9, buffer_frames=8)


def test_the_report_counts_each_frame_once_and_measures_the_similarity_of_neighbours():
    generator = np.random.default_rng(0)
    lengths = [400, 300]
    order = FrameOrder(lengths, chunk_size=5)
    alike = [np.repeat(generator.normal(size=(length // 100, 3)), 100, axis=0) for length in lengths]
    independent = [generator.normal(size=(length, 3)) for length in lengths]
    one, other = sampling_report(order, alike), sampling_report(order, independent)
    for report in (one, other):
        assert (report.min_count, report.max_count, report.num_frames) == (1, 1, 700)
    assert one.correlation > 0.95 and one.design_effect > 4.8 and one.effective_share < 0.21
    assert abs(other.correlation) < 0.1 and abs(other.effective_share - 1) < 0.5
    single = sampling_report(FrameOrder(lengths), alike)
    assert (single.correlation, single.design_effect) == (0.0, 1.0)


@pytest.mark.parametrize(("num_frames", "window"), [(1, 1), (5, 1), (5, 5), (5, 9), (10, 3), (10, 7), (40, 8)])
def test_window_counts_equal_those_of_sliding_windows(num_frames, window):
    counts = np.zeros(num_frames, dtype=int)
    for start in range(max(num_frames - window, 0) + 1):
        counts[start : start + window] += 1
    np.testing.assert_array_equal(window_counts(num_frames, window), counts)


def test_the_bias_of_windows_is_exact_and_zero_for_single_frames():
    lengths = [40, 7, 90]
    generator = np.random.default_rng(0)
    values = [np.stack([np.abs(np.linspace(-1, 1, n)), generator.normal(size=n)], axis=1) for n in lengths]
    report = window_report(values, 8)
    # By enumerating every window: 33, 1 and 83 frames to begin at.
    windows = [frames[start : start + 8] for frames in values for start in range(max(len(frames) - 8, 0) + 1)]
    frames = np.concatenate(values)
    shift = np.linalg.norm(np.concatenate(windows).mean(axis=0) - frames.mean(axis=0))
    assert report.bias == pytest.approx(shift / np.sqrt(frames.var(axis=0).sum())) and report.bias > 0.05
    average = sum(map(len, windows)) / sum(lengths)
    assert (report.min_share, report.max_share) == pytest.approx((1 / average, 8 / average))
    assert report.edge_share == pytest.approx(2 * 14 / sum(lengths))  # seven at each end of the two long ones
    single = window_report(values, 1)
    assert (single.min_share, single.max_share, single.edge_share) == (1, 1, 0) and single.bias < 1e-12


def test_frames_on_a_device_come_in_the_same_order(videos, monkeypatch):
    settings = {"size": (HEIGHT, WIDTH), "buffer_frames": 30, "seed": 5}
    expected = [(frame.video, frame.position) for frame in RandomFrameDataset(videos, **settings)]
    dataset = RandomFrameDataset(videos, **settings)
    frames = dataset._backend.frames
    monkeypatch.setattr(dataset._backend, "device", "meta")  # stands in for a GPU; frames have no values
    monkeypatch.setattr(dataset._backend, "frames", lambda *args: torch.from_numpy(frames(*args)).to("meta"))
    found = list(dataset)
    assert [(frame.video, frame.position) for frame in found] == expected
    assert all(frame.pixels.device.type == "meta" and frame.pixels.shape == (3, HEIGHT, WIDTH) for frame in found)
    with pytest.raises(ValueError, match="decode_device='cuda' needs video_backend='torchcodec'"):
        RandomFrameDataset(videos, decode_device="cuda")
