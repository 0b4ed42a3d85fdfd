"""SLURM job scripts with stand-ins for SLURM's programs: what they start, and how they handle exit codes."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((REPOSITORY / "run_scripts").glob("*.sbatch"))

SRUN = '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\nif [ "$1" = show ]; then echo host0; else echo "$*" >> scontrol.txt; fi\n'
PYTHON = (
    '#!/usr/bin/env bash\nprintf "%s\\n" "${RANK:-none}/${WORLD_SIZE:-none}" "$@" > started.txt\nexit "$EXIT_CODE"\n'
)


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("exit_code", [0, 1, 75])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_job_starts_training_and_is_only_requeued_on_exit_code_75(script, exit_code, tmp_path):
    write_program(tmp_path / "bin/srun", SRUN)
    write_program(tmp_path / "bin/scontrol", SCONTROL)
    write_program(tmp_path / ".venv/bin/python", PYTHON)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "host0",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "3",
        "EXIT_CODE": str(exit_code),
    }
    result = subprocess.run(["bash", str(script), "--run_name", "two words"], env=environment, cwd="/")
    assert result.returncode == exit_code
    ranks, *words = (tmp_path / "started.txt").read_text().splitlines()
    assert words == ["train.py", "--run_name", "two words"]
    assert ranks == ("none/none" if script.stem == "slurm_one_gpu" else "3/8")
    requeued = tmp_path / "scontrol.txt"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 7\n" if exit_code == 75 else "")
