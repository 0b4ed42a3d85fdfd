"""Verbs about this machine and about runs: `doctor`, `diff` and `repeat`."""

from collections.abc import Sequence
from typing import Annotated

from simple_multimodal.cli.options import Json, print_json
from simple_multimodal.missing import Named


def doctor(*, json: Json = False) -> int:
    """Report what is installed and what is missing. Exit code 1 if the core does not work."""
    from simple_multimodal.doctor import examine, to_dict, to_text

    report = examine()
    print_json(to_dict(report)) if json else print(to_text(report))
    return 0 if report.core_works else 1


def diff(first: Annotated[str, "folder", Named.PATH], second: Annotated[str, "folder", Named.PATH]) -> int:
    """Compare two checkpoints or model folders bit for bit. Exit code 1 if they differ."""
    from simple_multimodal.training.comparison import compare_folders

    return _print_differences(f"{first} and {second}", *compare_folders(first, second))


def repeat(
    command: Annotated[Sequence[str], "training command after `--`, such as: -- python train.py ..."],
    *,
    runs: Annotated[int, "number of runs"] = 3,
    output_dir: Annotated[str, "output folder for run-1, run-2, ...", "DIR"],
) -> int:
    """Train several times and compare each run with the first. Exit code 1 if any differs."""
    from simple_multimodal.training import comparison

    compared = comparison.repeat(command, num_runs=runs, output_dir=output_dir)
    return max([_print_differences(f"run-1 and {run.name}", lines, count) for run, lines, count in compared])


def _print_differences(what: str, lines: list[str], num_compared: int) -> int:
    print(f"{what}: {f'{len(lines)} of {num_compared} differ' if lines else f'equal, all {num_compared}'}")
    for line in lines:
        print(f"  {line}")
    return 1 if lines else 0
