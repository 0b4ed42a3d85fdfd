"""The program for bad files, at its smallest."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_two_processes_stay_in_step_despite_a_bad_batch_or_half_of_one():
    command = "-m tests.faults.bad_files --rows 12 --epochs 1 --workers 1 --processes 2 --shares".split()
    result = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("the same weights for each number of processes, the exact list in all") == 2
