"""Bad samples: their replacements, and decoders that crash, hang or exhaust memory."""

import ctypes
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from simple_multimodal.data import bad_samples
from simple_multimodal.data.bad_samples import BadSampleError
from simple_multimodal.data.batch_reader import MAX_REPLACEMENTS, BatchReader, RowKeys, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.data.readers import TextReader
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.media.pyav_backend import PyAVBackend
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.question_answering.targets import AnswerLabels
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets
from tests.conftest import REPOSITORY

NUM_ROWS = 12
BAD_ROWS = (3, 8)


@pytest.fixture(scope="module")
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=120),
        video_processor=VideoClipProcessor(num_frames=4, size=16, random_crop=True, random_flip=True),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280),
    )


@pytest.fixture
def folder(media_dir, tmp_path) -> Path:
    """Write `0.mp4` to `11.mp4` with captions and answers."""
    rows = []
    for row in range(NUM_ROWS):
        shutil.copy(media_dir / f"audio{row % 3}.mp4", tmp_path / f"{row}.mp4")
        rows.append({"id": f"r{row}", "video": f"{row}.mp4", "caption": f"{row} cats", "answer": "cat"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def dataset(folder) -> RowDataset:
    return RowDataset.from_manifest(folder / "train.jsonl", cache_dir=folder / "cache")


@pytest.fixture(autouse=True)
def forget_files(monkeypatch):
    """Retry without delay, and forget in each test which files were waited for."""
    monkeypatch.setattr(bad_samples, "RETRY_SECONDS", (0.0, 0.0))
    bad_samples._given_up.clear()


def make_reader(dataset, processor, policy="replace", **options) -> BatchReader:
    targets = PretrainingTargets(processor, mlm_probability=0.3, vt_match_ratio=0.5)
    options = {"training": True, "seed": 5, "targets": targets, "num_threads": 3} | options
    collator = MultimodalCollator(processor, **options)
    return BatchReader(dataset, collator, on_bad_sample=policy)


def spoil(folder: Path, rows=BAD_ROWS) -> None:
    """Make files bad: alternately garbage and missing."""
    for number, row in enumerate(rows):
        (folder / f"{row}.mp4").write_bytes(b"x" * 1000)
        if number % 2:
            (folder / f"{row}.mp4").unlink()


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        if isinstance(first[key], tuple):  # numbers that are only used on the host
            assert first[key] == second[key]
        else:
            assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("bad", [BAD_ROWS, (0, 1, 2, 3), tuple(range(9))])
def test_a_bad_row_is_replaced_by_the_first_good_row_of_its_random_sequence(folder, dataset, processor, parallel, bad):
    spoil(folder, bad)
    reader = make_reader(dataset, processor, parallel=parallel)
    for epoch in range(2):
        keys = [(epoch, row) for row in range(4)]
        expected, tried = [], []
        for _, row in keys:
            generator = sample_generator(5, epoch, f"r{row}", "replacement")
            while row in bad:
                tried.append(row)
                row = int(generator.integers(NUM_ROWS))
            expected.append(dataset[epoch, row])
        batch = reader(keys)
        assert sorted(sample.row for sample in batch.pop("bad_samples", [])) == sorted(tried)
        assert_equal(batch, reader.collator(expected))


def test_a_bad_sample_has_a_name_and_a_reason(folder, dataset, processor):
    spoil(folder)
    samples = make_reader(dataset, processor)([(2, 3), (2, 8)])["bad_samples"]
    found = {sample.row: sample for sample in samples}
    assert found.keys() == set(BAD_ROWS)
    for row, reason in zip(BAD_ROWS, ["cannot be read as media", "does not exist"], strict=True):
        assert found[row][1:4] == (2, f"r{row}", str(folder / f"{row}.mp4")) and reason in found[row].reason


@pytest.mark.parametrize("keys", [[(0, 3), (0, 1)], [(0, 3), (0, 8)]])
def test_a_skipped_sample_is_a_row_without_modalities(folder, dataset, processor, keys):
    spoil(folder)
    batch = make_reader(dataset, processor, "skip")(keys)
    bad = torch.tensor([row in BAD_ROWS for _, row in keys])
    assert sorted(sample.row for sample in batch["bad_samples"]) == [row for _, row in keys if row in BAD_ROWS]
    for modality in ("text", "audio", "video"):
        assert torch.equal(batch[f"{modality}_mask"], ~bad)
    assert bool((batch["mlm_labels"][bad] == -100).all())
    for key in ("audio_values", "pixel_values_videos", "video_seconds", "audio_seconds"):
        assert not batch[key][bad].any()
    assert batch["row_ids"].tolist() == [row for _, row in keys]


def test_targets_see_which_rows_were_skipped(folder, dataset, processor):
    """The columns of a task are known even for a skipped row; the task must ignore it."""
    spoil(folder)
    reader = make_reader(dataset, processor, "skip", targets=AnswerLabels({"cat": 0}))
    assert reader([(0, 3), (0, 1), (0, 8)])["labels"].tolist() == [-1, 0, -1]
    assert reader.collator([{**dataset[1], "answer": "dog"}, dataset[1]])["labels"].tolist() == [-1, 0]
    assert reader.collator.empty_batch(2)["labels"].tolist() == [-1, -1]


def test_one_unreadable_modality_makes_the_whole_row_bad(dataset, processor, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no audio today")

    monkeypatch.setattr("simple_multimodal.data.readers.read_audio", refuse)
    batch = make_reader(dataset, processor, "skip")([(0, 0)])
    assert not batch["video_mask"].any() and not batch["pixel_values_videos"].any()
    assert not batch["video_seconds"].any() and not batch["text_mask"].any()


def test_the_fail_policy_names_the_row(folder, dataset, processor):
    spoil(folder)
    reader = make_reader(dataset, processor, "fail")
    for row in BAD_ROWS:
        with pytest.raises(BadSampleError, match=rf"row {row} \(id 'r{row}'\): .*{row}\.mp4"):
            reader([(0, 0), (0, row)])


def test_places_stay_empty_if_no_row_can_be_read(folder, dataset, processor):
    spoil(folder, range(NUM_ROWS))
    batch = make_reader(dataset, processor)([(0, 0), (0, 1)])
    assert len(batch["bad_samples"]) == 2 * (1 + MAX_REPLACEMENTS)
    assert not batch["video_mask"].any() and batch["row_ids"].tolist() == [0, 1]


def test_a_file_that_reappears_is_read(folder, dataset, processor, monkeypatch):
    expected = make_reader(dataset, processor)([(0, 3)])
    (folder / "3.mp4").rename(folder / "away")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            (folder / "away").rename(folder / "3.mp4")

    monkeypatch.setattr(bad_samples.time, "sleep", sleep)
    assert_equal(make_reader(dataset, processor)([(0, 3)]), expected)
    assert len(waited) == 2


def test_a_missing_file_is_waited_for_only_once(folder, dataset, processor, monkeypatch):
    spoil(folder)
    waited = []
    monkeypatch.setattr(bad_samples.time, "sleep", waited.append)
    reader = make_reader(dataset, processor, "skip")
    for epoch in range(3):
        reader([(epoch, row) for row in range(NUM_ROWS)])
    assert len(waited) == 2  # for the missing file, but not for the damaged one


def test_a_file_system_error_is_retried(dataset, processor, monkeypatch):
    expected = make_reader(dataset, processor)([(0, 3)])
    original, calls = PyAVBackend.frames, []

    def frames(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(116, "Stale file handle")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PyAVBackend, "frames", frames)
    assert_equal(make_reader(dataset, processor)([(0, 3)]), expected)
    assert len(calls) == 2


# ---- Decoders that crash, hang or exhaust memory ----
def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def hang() -> None:
    time.sleep(1000)


def exhaust_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(10**7))
        time.sleep(0.005)


def break_decoder(monkeypatch, fault) -> None:
    """Make the decoder misbehave for the files of the bad rows."""
    original = PyAVBackend.frames

    def frames(self, path, *args, **kwargs):
        if int(Path(path).stem) in BAD_ROWS:
            fault()
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(PyAVBackend, "frames", frames)


def stream(dataset, processor, num_workers: int, policy="replace", **limits):
    """Return all batches of two epochs, and the bad samples."""
    reader = SupervisedReader(make_reader(dataset, processor, policy), **limits)
    keys = RowKeys(dataset)
    loader = DataLoader(
        keys,
        batch_size=4,
        sampler=EpochSampler(keys, seed=1),
        collate_fn=reader,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if num_workers else None,
    )
    batches, samples = [], []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for batch in loader:
            samples += batch.pop("bad_samples", [])
            batches.append(batch)
    return batches, samples


@pytest.mark.parametrize(
    ("fault", "num_workers", "limits", "reason"),
    [
        (crash, 1, {}, "its decoder crashed (SIGSEGV)"),
        (crash, 2, {}, "its decoder crashed (SIGSEGV)"),
        (leave, 1, {}, "its decoder exited (7)"),
        (hang, 1, {"timeout_seconds": 0.8}, "not read within 0.8 seconds (`sample_timeout_seconds`)"),
        (
            exhaust_memory,
            1,
            {"memory_gigabytes": 0.3},
            "reading it took more than 0.3 GB (`loader_memory_gigabytes`)",
        ),
    ],
)
def test_a_misbehaving_decoder_costs_only_its_sample(
    folder, dataset, processor, monkeypatch, fault, num_workers, limits, reason
):
    with monkeypatch.context() as patch:
        break_decoder(patch, fault)
        batches, samples = stream(dataset, processor, num_workers, **limits)
    spoil(folder)  # as if the files had been bad from the start
    expected, expected_samples = stream(dataset, processor, 0)
    assert len(batches) == len(expected) == 6
    for first, second in zip(batches, expected, strict=True):
        assert_equal(first, second)
    assert [(sample.row, sample.epoch) for sample in samples] == [(s.row, s.epoch) for s in expected_samples]
    assert {sample.reason for sample in samples} == {f"{str(folder / f'{row}.mp4')!r}: {reason}" for row in BAD_ROWS}
    assert {sample.file for sample in samples} == {str(folder / f"{row}.mp4") for row in BAD_ROWS}


def test_a_crash_is_an_error_if_bad_samples_are_errors(dataset, processor, monkeypatch):
    break_decoder(monkeypatch, crash)
    with pytest.raises(BadSampleError, match=r"its decoder crashed \(SIGSEGV\)"):
        stream(dataset, processor, 1, "fail")


def test_a_process_that_dies_without_reading_is_not_replaced_forever(dataset, processor, monkeypatch):
    monkeypatch.setattr(TextReader, "collate", lambda *args: crash())
    with pytest.raises(RuntimeError, match="ended 3 times without reading a file"):
        stream(dataset, processor, 1)


def test_a_bug_is_reported_with_its_traceback(dataset, processor, monkeypatch):
    def broken(*args):
        raise KeyError("labels")

    monkeypatch.setattr(PretrainingTargets, "__call__", broken)
    with pytest.raises(RuntimeError, match=r"(?s)Reading a batch failed:.*in broken.*KeyError: 'labels'"):
        stream(dataset, processor, 1)


def test_a_worker_does_not_accumulate_open_files(dataset, processor):
    keys = RowKeys(dataset)
    loader = DataLoader(
        [keys[epoch, row] for epoch in range(40) for row in range(4)],
        batch_size=2,
        collate_fn=SupervisedReader(make_reader(dataset, processor)),
        num_workers=1,
    )
    batches = iter(loader)
    counts = []
    for _ in batches:
        counts.append(len(os.listdir(f"/proc/{batches._workers[0].pid}/fd")))
        if len(counts) == 70:
            break
    assert max(counts[60:]) <= max(counts[10:20]) + 4


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (crash, signal.SIGSEGV, "died while it read row {row}: {file}"),
        (hang, signal.SIGKILL, "row {row}: {file} was not read within 0.5 seconds"),
    ],
)
def test_without_workers_the_file_that_ends_the_process_is_named(
    folder, dataset, processor, monkeypatch, capfd, fault, status, message
):
    break_decoder(monkeypatch, fault)
    process = os.fork()
    if process == 0:  # a separate run
        faulthandler.disable()  # pytest's handler would print a page
        reader = make_reader(dataset, processor, parallel=False)
        SupervisedReader(reader, timeout_seconds=0.5)([(0, 1), (0, BAD_ROWS[0])])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -status
    said = ""
    for _ in range(200):  # the watcher ends slightly later than the process
        said += capfd.readouterr().err
        if "row" in said:
            break
        time.sleep(0.05)
    assert message.format(row=BAD_ROWS[0], file=folder / f"{BAD_ROWS[0]}.mp4") in said


def test_threads_of_a_forked_child_find_a_thread_pool():
    """Eight threads use torch for the first time at once; without the renewal, nearly every child fails."""
    script = """
import os, threading
import torch
import simple_multimodal.data.batch_reader

torch.set_num_threads(8)  # starting so many takes a while, in which the others ask for the pool
torch.get_num_threads()

def work():
    barrier.wait()
    try:
        torch.ones(100_000).add(1)
    except RuntimeError as error:
        errors.append(error)

for _ in range(5):
    child = os.fork()
    if child == 0:
        barrier, errors = threading.Barrier(8), []
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(len(errors))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert process.stdout.split() == ["0"] * 5, process.stderr
