"""`benchmarks/device_check.py` on a CPU: its report with only the core dependencies, and its report of a failure."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# One form of fusion and one task: all of them take a minute, and the script itself runs them.
SMALL = "import sys; sys.path.insert(0, 'benchmarks')\n"
SMALL += "import device_check; device_check.FORMS = ('merge',)\n"
SMALL += "device_check.CHECKED_TASKS = ('retrieval',)\n"


def check(code: str, *argv: str, output: Path) -> tuple[int, dict[str, list[dict]], str]:
    """Run the script, and return its exit code, its rows by check, and its output."""
    command = [sys.executable, "-c", code, "--device", "cpu", "--output", str(output), *argv]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert output.exists(), done.stderr
    rows: dict[str, list[dict]] = {}
    for row in json.loads(output.read_text())["rows"]:
        rows.setdefault(row["check"], []).append(row)
    return done.returncode, rows, done.stdout


def test_computation_only_needs_the_core_dependencies(tmp_path):
    missing = "av", "datasets", "evaluate", "dill", "multiprocess", "torchcodec", "peft"
    code = f"import sys\nfor name in {missing}:\n    sys.modules[name] = None\n{SMALL}"
    code += "device_check.MEMORY_SETTINGS = device_check.MEMORY_SETTINGS[:1]\n"
    exit_code, rows, printed = check(code + "sys.exit(device_check.main())", output=tmp_path / "out.json")
    computed = ("steps", "attention", "determinism", "ddp", "use", "towers", "memory")
    failed = [row for name in computed for row in rows[name] if row["status"] != "pass"]
    assert not failed, failed
    notes = {name: row["note"] for name, found in rows.items() for row in found if row["status"] == "left out"}
    assert notes == {
        "infer": "needs av, datasets",
        "decoding": "needs av, torchcodec",
        "loader": "needs av, datasets",
    }
    assert exit_code == 0 and "0 failed, 3 left out" in printed
    assert {row["case"] for row in rows["steps"]} >= {f"retrieval, merge, {p}: loss" for p in ("fp32", "bf16", "fp16")}


def test_a_failure_sets_the_exit_code_and_other_checks_still_run(tmp_path):
    code = SMALL + "device_check.LIMITS['bf16'] = (0.0, 0.0)\n"
    code += "device_check.CHECKS['ddp'] = (lambda report, device: 1 / 0, ())\n"
    code += "late = ['--device', 'cpu', '--minutes', '-1', '--output', sys.argv[4] + '.late']\n"
    code += "assert device_check.main(late) == 0\n"
    code += "sys.exit(device_check.main())"
    checks = ("ddp", "infer", "decoding", "loader")
    exit_code, rows, printed = check(code, "--checks", *checks, output=tmp_path / "out.json")
    assert exit_code == 1 and "2 failed" in printed
    assert [row["note"] for row in rows["ddp"]] == ["ZeroDivisionError: division by zero"]
    assert [row["status"] for row in rows["infer"]] == ["pass", "FAIL"]
    assert [row["status"] for row in rows["loader"]] == ["pass"]
    assert rows["decoding"][0]["status"] == "left out"
    assert "decode_device='cuda'" in rows["decoding"][0]["note"] or "torchcodec" in rows["decoding"][0]["note"]
    late = json.loads((tmp_path / "out.json.late").read_text())["rows"]
    assert {row["note"] for row in late} == {"no time left of -1 minutes"}
