"""Untrusted clips: what one that misbehaves costs, and what is left of the others."""

import asyncio
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.errors import InputError
from simple_multimodal.serving.batches import batch_key, concatenate
from simple_multimodal.serving.readers import ClipReaders
from simple_multimodal.serving.reading import ClipError, ReaderLostError, ReadingLimits, row_of
from simple_multimodal.serving.waiting import ClosedError, DeadlineError, QueueFullError, result_of
from tests.data.conftest import assert_equal
from tests.processes import FORKSERVER
from tests.serving.clips import BrokenCollator, FaultyCollator, Unreadable, own_readers

LIMIT_SECONDS = 60.0
LIMITS = ReadingLimits(read_seconds=60.0, memory_gigabytes=0.4, clip_seconds=30.0, frames=50, pixels=64 * 48)


@pytest.fixture(scope="module")
def collator(processor) -> MultimodalCollator:
    return MultimodalCollator(processor, parallel=False)


@pytest.fixture(scope="module")
def readers(processor):
    readers = ClipReaders(FaultyCollator(processor), num_processes=2, limits=LIMITS)
    readers.wait_until_ready()
    yield readers
    readers.close()


def expected_batch(collator, path) -> dict:
    row = {**row_of(str(path)), "id": "0"}
    if path.suffix == ".wav":
        row |= {"video": None, "audio_from_video": False}
    return collator([row])


def assert_same_clip(batch, expected) -> None:
    assert type(batch) is dict
    other = {"row_ids", "group_ids"}  # number of the clip, hash of its path
    assert_equal(*({name: value for name, value in b.items() if name not in other} for b in (batch, expected)))


def read(readers, path, **options) -> dict:
    return readers.submit(str(path), **options).result(LIMIT_SECONDS)


def test_clips_are_read_as_by_the_collator(readers, collator, clips):
    names = [*(f"{n}.mp4" for n in range(6)), "audio.wav"] * 3
    jobs = [readers.submit(str(clips / name)) for name in names]
    for name, job in zip(names, jobs, strict=True):
        assert_same_clip(job.result(LIMIT_SECONDS), expected_batch(collator, clips / name))


def test_the_audio_may_be_another_file(readers, collator, clips):
    batch = read(readers, clips / "5.mp4", audio=clips / "audio.wav")
    assert torch.equal(batch["audio_values"], expected_batch(collator, clips / "audio.wav")["audio_values"])
    assert torch.equal(batch["pixel_values_videos"], expected_batch(collator, clips / "5.mp4")["pixel_values_videos"])
    with pytest.raises(ClipError, match="^has no video stream"):
        read(readers, clips / "audio.wav", audio=str(clips / "audio.wav"))


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("crash", ClipError, "its decoder crashed (SIGSEGV)"),
        ("memory", ClipError, "reading it took more than 0.4 GB"),
        ("bug", RuntimeError, "reading the clip failed; the server's log says why"),
    ],
)
def test_a_clip_that_misbehaves_costs_only_its_own_request(readers, collator, clips, name, error, reason):
    check_that_others_are_read(readers, collator, clips, name, error, reason)


def test_a_clip_that_hangs_costs_only_its_own_request(processor, collator, clips):
    limits = dataclasses.replace(LIMITS, read_seconds=5.0)
    readers = ClipReaders(FaultyCollator(processor), num_processes=2, limits=limits)
    readers.wait_until_ready()
    check_that_others_are_read(readers, collator, clips, "hang", ClipError, "not read within 5 seconds")
    readers.close()


def check_that_others_are_read(readers, collator, clips, name, error, reason):
    names = [f"{n}.mp4" for n in range(4)]
    (clips / f"{name}_attempts").unlink(missing_ok=True)
    before = readers.num_restarts
    jobs = [readers.submit(str(clips / n)) for n in (*names, f"{name}.mp4", *names)]
    with pytest.raises(error) as found:
        jobs.pop(4).result(LIMIT_SECONDS)
    assert str(found.value) == reason
    for n, job in zip(names * 2, jobs, strict=True):
        assert_same_clip(job.result(LIMIT_SECONDS), expected_batch(collator, clips / n))
    assert readers.num_restarts == before  # only the child was replaced
    assert (clips / f"{name}_attempts").read_text() == "x"  # it was not read again to find the file at fault


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(number) for number in file.read().split()]


@pytest.mark.parametrize("kills_child", [False, True])
def test_a_killed_process_costs_only_the_clip_in_its_hands(processor, collator, clips, tmp_path, kills_child):
    for name in ("gate.mp4", "1.mp4", "2.mp4"):
        os.link(clips / name, tmp_path / name)
    (tmp_path / "closed").touch()
    readers = ClipReaders(FaultyCollator(processor), num_processes=1, limits=ReadingLimits(read_seconds=LIMIT_SECONDS))
    jobs = [readers.submit(str(tmp_path / name)) for name in ("gate.mp4", "1.mp4", "2.mp4")]
    while not (tmp_path / "entered").exists():
        time.sleep(0.01)
    os.kill(children_of(readers.pids[0])[0] if kills_child else readers.pids[0], signal.SIGKILL)
    with pytest.raises(ReaderLostError):
        jobs[0].result(LIMIT_SECONDS)
    for name, job in zip(("1.mp4", "2.mp4"), jobs[1:], strict=True):
        assert_same_clip(job.result(LIMIT_SECONDS), expected_batch(collator, clips / name))
    assert (readers.num_restarts, readers.num_lost, readers.num_read) == (1 - kills_child, 1, 2)
    pid = readers.pids[0]
    os.kill(pid, signal.SIGKILL)  # while it is idle: no clip is lost
    assert_same_clip(read(readers, tmp_path / "1.mp4"), expected_batch(collator, clips / "1.mp4"))
    assert readers.num_lost == 1
    pid = readers.pids[0]
    readers.close()
    assert not os.path.exists(f"/proc/{pid}")


def test_readers_end_with_their_owner(collator, clips):
    here, there = FORKSERVER.Pipe()
    owner = FORKSERVER.Process(target=own_readers, args=(collator, str(clips / "1.mp4"), there))
    owner.start()
    assert here.poll(LIMIT_SECONDS)
    pid = here.recv()
    (child,) = children_of(pid)
    owner.kill()
    owner.join()
    ends = time.monotonic() + LIMIT_SECONDS
    while left := [number for number in (pid, child) if os.path.exists(f"/proc/{number}")]:
        if time.monotonic() > ends:
            for number in left:
                os.kill(number, signal.SIGKILL)
            pytest.fail(f"{len(left)} processes outlive their owner")
        time.sleep(0.01)


def test_readers_are_started_with_sigterm_blocked(processor, monkeypatch):
    """So that all of their threads block it: it may reach all processes of a container at once."""
    start, masks = ForkServerProcess.start, []

    def note_and_start(self):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        start(self)

    monkeypatch.setattr(ForkServerProcess, "start", note_and_start)
    ClipReaders(MultimodalCollator(processor), num_processes=1).close()
    assert [signal.SIGTERM in mask for mask in masks] == [True]


def test_cancelled_and_expired_clips_are_not_read(processor, clips, tmp_path):
    os.link(clips / "gate.mp4", tmp_path / "gate.mp4")
    (tmp_path / "closed").touch()
    readers = ClipReaders(FaultyCollator(processor), num_processes=1, max_waiting=2)
    gate = readers.submit(str(tmp_path / "gate.mp4"))
    while readers.waiting.num_waiting:
        time.sleep(0.01)
    cancelled = readers.submit(str(clips / "1.mp4"))
    expired = readers.submit(str(clips / "1.mp4"), deadline=time.monotonic())
    with pytest.raises(QueueFullError):
        readers.submit(str(clips / "1.mp4"))
    cancelled.cancel()
    last = readers.submit(str(clips / "2.mp4"))
    closing = threading.Thread(target=readers.close)
    closing.start()
    (tmp_path / "closed").unlink()
    assert gate.result(LIMIT_SECONDS) and last.result(LIMIT_SECONDS)
    with pytest.raises(CancelledError):
        cancelled.result()
    with pytest.raises(DeadlineError):
        expired.result()
    closing.join(LIMIT_SECONDS)
    assert readers.num_read == 2
    with pytest.raises(ClosedError):
        readers.submit(str(clips / "1.mp4"))


def test_nothing_accumulates_and_nothing_is_written(readers, clips, index_dir):
    """Copies under names of their own, as uploads have."""

    async def read_all(number):
        for n in range(number):
            path = clips / f"upload{n}.mp4"
            os.link(clips / f"{n % 6}.mp4", path)
            await result_of(readers.submit(str(path)))
            path.unlink()

    def open_files():
        pids = [os.getpid(), *readers.pids, *(child for pid in readers.pids for child in children_of(pid))]
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    indices, shared = sorted(index_dir.rglob("*")), sorted(os.listdir("/dev/shm"))
    asyncio.run(read_all(40))
    before = open_files()
    asyncio.run(read_all(80))
    assert all(after <= count + 4 for after, count in zip(open_files(), before, strict=True))
    assert sorted(index_dir.rglob("*")) == indices and sorted(os.listdir("/dev/shm")) == shared


def test_earlier_clips_are_forgotten(processor, clips):
    readers = ClipReaders(FaultyCollator(processor), num_processes=1)
    for name in ("crash", "crash", "crash"):
        with pytest.raises(ClipError):
            read(readers, clips / f"{name}.mp4")
    for n in range(6):
        read(readers, clips / f"{n}.mp4")
    batch = read(readers, clips / "report.mp4")
    readers.close()
    assert batch["num_known"].tolist() == [1]  # the last one, of which the child was forked to tell
    assert batch["num_indices"] == 4


def test_large_tensors_are_passed_on_without_a_copy(readers, clips):
    batch = read(readers, clips / "0.mp4")
    with open("/proc/self/maps") as file:
        blocks = [line.split()[0].split("-") for line in file if "memfd:batch" in line]
    for name in ("pixel_values_videos", "audio_values"):
        address = batch[name].data_ptr()
        assert any(int(begin, 16) <= address < int(end, 16) for begin, end in blocks), name


def test_a_batch_is_not_held_after_it_was_delivered(processor, clips):
    """Its memory belongs to the process that allocated it, which uses it again."""
    readers = ClipReaders(FaultyCollator(processor), num_processes=1)

    async def client():
        return weakref.ref((await result_of(readers.submit(str(clips / "0.mp4"))))["pixel_values_videos"])

    gc.collect()
    gc.disable()
    try:
        tensor = asyncio.run(client())
        ends = time.monotonic() + LIMIT_SECONDS
        while tensor() is not None:  # the thread goes on to wait
            assert time.monotonic() < ends
            time.sleep(0.001)
    finally:
        gc.enable()
        readers.close()


def test_batches_outlive_their_reader(processor, collator, clips):
    readers = ClipReaders(FaultyCollator(processor), num_processes=1)
    batches = [read(readers, clips / f"{n}.mp4") for n in (0, 3)]  # both with one window of audio
    readers.close()
    assert batch_key(batches[0]) == batch_key(batches[1])
    whole = concatenate(batches)
    for n, name in enumerate(("0.mp4", "3.mp4")):
        expected = expected_batch(collator, clips / name)
        assert torch.equal(whole["pixel_values_videos"][n], expected["pixel_values_videos"][0])


def test_processes_that_cannot_start_are_an_error(processor):
    collator = MultimodalCollator(processor)
    collator.targets = Unreadable()
    readers = ClipReaders(collator, num_processes=1)
    with pytest.raises(InputError, match="^Clips cannot be read: the processes that read clips do not start"):
        readers.check()
    with pytest.raises(ReaderLostError, match="do not start"):
        read(readers, "clip.mp4")
    readers.close()


def test_readers_that_fail_are_an_error(processor):
    readers = ClipReaders(BrokenCollator(processor), num_processes=1)
    with pytest.raises(InputError, match="^Clips cannot be read: reading the clip failed; the server's log says why"):
        readers.check()
    readers.close()


def test_frames_cannot_be_decoded_on_a_gpu(processor):
    collator = MultimodalCollator(processor)
    collator.decode_device = "cuda"
    with pytest.raises(ValueError, match="not on a GPU: leave out `decode_device='cuda'`"):
        ClipReaders(collator)
    with pytest.raises(ValueError, match="`num_processes` and `max_waiting` must be 1 or more"):
        ClipReaders(collator, num_processes=0)


READ_ONE_CLIP = """
import sys
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.serving.readers import ClipReaders

if __name__ == "__main__":
    collator = MultimodalCollator(MultimodalProcessor.from_pretrained(sys.argv[1]))
    readers = ClipReaders(collator, num_processes=1)
    readers.wait_until_ready()
    print(bool(readers.submit(sys.argv[2]).result(60)["video_mask"]))
    readers.close()
"""


def test_code_in_the_working_directory_is_not_run(processor, clips, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    (tmp_path / "read.py").write_text(READ_ONE_CLIP)
    (tmp_path / "here/simple_multimodal").mkdir(parents=True)
    (tmp_path / "here/simple_multimodal/__init__.py").write_text("raise SystemExit('not this one')")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "../read.py", "../processor", str(clips / "0.mp4")],
        cwd=tmp_path / "here", env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr[-2000:]
