"""The quick part of the corpus, and checks of the programs that read it and the mutants."""

import json
import mmap
import os
import sys
import time
from pathlib import Path

import av
import pytest

from simple_multimodal.media import MediaError, index_video
from tests.faults import fuzz, hostile, opens
from tests.faults.corpus import Case, mov
from tests.faults.hostile import Listener, judge
from tests.faults.supervised import supervise
from tests.processes import launch, run_script

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_the_quick_corpus_ends_as_expected(tmp_path):
    # In its own process, which has no threads when it forks.
    ended = launch(1, run_script, Path(hostile.__file__), [str(tmp_path), "--quick"])
    result = json.loads((tmp_path / "hostile.json").read_text())
    problems = [(case["name"], case["problem"], case["reason"]) for case in result["cases"] if case["problem"]]
    assert problems == []
    assert ended.returncode == 0
    assert result["summary"]["cases"] >= 150
    assert result["summary"]["connections"] == 0
    assert all(case["reason"] for case in result["cases"] if case["outcome"] == "refused")


def test_the_ending_of_a_supervised_process_is_reported():
    def refuses():
        raise MediaError("no media")

    def fills():
        held = mmap.mmap(-1, 100 * 2**20)  # unlike a `bytearray`, never memory that this process has freed before
        held[:: 2**12] = b"x" * len(held[:: 2**12])

    assert supervise(lambda: None, limit_seconds=60)[:2] == ("reads", "")
    assert supervise(refuses, limit_seconds=60)[:2] == ("refused", "MediaError: no media")
    assert supervise(lambda: 1 / 0, limit_seconds=60).outcome == "error"
    assert supervise(lambda: os.kill(os.getpid(), 9), limit_seconds=60)[:2] == ("crash", "exit status -9")
    assert supervise(lambda: time.sleep(60), limit_seconds=0.2).outcome == "hang"
    assert 95 < supervise(fills, limit_seconds=60).megabytes < 200


def test_the_judge_finds_what_is_wrong(tmp_path):
    case = Case("a", "media", tmp_path, "refused")
    assert judge(case, "refused", 10, 0, False) == ""
    assert judge(case, "reads", 10, 0, False) == "reads, not refused"
    assert judge(case, "refused", 600, 0, False) == "600 MB"
    assert judge(case, "refused", 10, 2, True) == "2 connections; a payload was executed"
    assert judge(Case("b", "media", tmp_path, "either"), "crash", 0, 0, False) == "crash, not either"


def test_the_listener_counts_connections_of_ffmpeg():
    listener = Listener()
    with pytest.raises(av.FFmpegError):
        av.open(f"http://127.0.0.1:{listener.port}/x.mp4")
    assert listener.connections == 1


def test_mutants_depend_only_on_their_number():
    content = bytes(range(256)) * 20
    mutants = [fuzz.mutate(content, "mp4", number) for number in range(200)]
    assert mutants == [fuzz.mutate(content, "mp4", number) for number in range(200)]
    assert mutants != [fuzz.mutate(content, "wav", number) for number in range(200)]
    assert sum(mutant != content for mutant in mutants) > 150


def test_fuzzing_replaces_crashed_processes_and_counts_all_mutants(tmp_path, monkeypatch):
    def read(path, index_dir, extractor):
        content = path.read_bytes()
        if content[0] > 240:
            os.kill(os.getpid(), 9)
        if content[0] < 10:
            raise KeyError(content[0])
        return "decoded" if content[0] % 2 else "refused"

    monkeypatch.setattr(fuzz, "read", read)
    monkeypatch.setattr(fuzz, "mutate", lambda content, kind, number: bytes([number]))
    result = fuzz.fuzz("wav", b"", 250, tmp_path)
    assert {name: result[name] for name in fuzz.STATES[2:]} == {
        "refused": 116,  # the even numbers from 10 to 240
        "decoded": 115,
        "error": 10,
        "crash": 9,
        "hang": 0,
    }
    assert result["processes"] == 9 and len(list(tmp_path.glob("crash_*"))) == 9


def test_mutants_of_real_files_are_decoded_or_refused(tmp_path):
    results = {kind: fuzz.fuzz(kind, content, 30, tmp_path) for kind, content in fuzz.originals(tmp_path).items()}
    assert [(result["error"], result["crash"], result["hang"]) for result in results.values()] == [(0, 0, 0)] * 3
    assert all(result["decoded"] > 0 for result in results.values())


def test_opening_files_does_not_leak_files_or_threads():
    result = opens.measure(40, times=4)
    assert result["decoded"] == 16
    assert (result["new_files"], result["new_threads"]) == (0, 0)


@pytest.mark.parametrize("count", [80_000_000, 2**31])
def test_a_table_of_gigabytes_is_not_allocated(tmp_path, count):
    path = tmp_path / "bomb.mp4"
    path.write_bytes(mov(count, size=1))
    ending = supervise(lambda: index_video(path), limit_seconds=60)
    assert ending.outcome == "refused" and ending.megabytes < 512
