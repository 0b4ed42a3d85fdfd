"""The program for bad files, at its smallest."""

from pathlib import Path

from tests.faults import bad_files
from tests.processes import launch, run_script


def test_two_processes_stay_in_step_despite_a_bad_batch_or_half_of_one():
    argv = "--rows 12 --epochs 1 --workers 1 --processes 2 --shares".split()
    result = launch(1, run_script, Path(bad_files.__file__), argv)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("the same weights for each number of processes, the exact list in all") == 2
