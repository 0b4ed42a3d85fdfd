"""Processes of tests end, whatever they do."""

import psutil
import pytest

from tests import processes
from tests.processes import launch, run_script


def test_a_process_that_fails_ends_the_others(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\nprint('rank', os.environ['RANK'], sys.argv[1:], os.getcwd())\n"
        "time.sleep(20 if os.environ['RANK'] == '0' else 0)\nprint('slept')\nsys.exit('failed')\n"
    )
    ended = launch(2, run_script, script, ["a"], tmp_path)
    assert ended.returncode == 1 and ended.stderr == "failed\n"
    assert f"rank 1 ['a'] {tmp_path}\n" in ended.stdout and ended.stdout.count("slept") == 1


def test_processes_that_do_not_end_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 3.0)
    script = tmp_path / "script.py"
    script.write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    with pytest.raises(TimeoutError, match="1 of 1 processes still run"):
        launch(1, run_script, script, [], tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
