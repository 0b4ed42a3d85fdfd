"""Train with some shares of bad files, in one process and two, and check the guarantees; takes minutes.

    python -m tests.faults.bad_files [--rows 200] [--epochs 2] [--workers 0 2] [--shares 0 0.01 0.1] [--processes 1 2]

Bad files are in turn garbage, empty, missing and truncated to half their size. The share 0 is for comparing times.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import traceback
from pathlib import Path

import numpy as np

from tests.media.media_files import write_media
from tests.training import tiny_run
from tests.training.tiny_run import flags

BATCH = 4


def write_rows(folder: Path, num_rows: int) -> None:
    """Write clips with different audio and captions, and a manifest."""
    (folder / "video").mkdir(parents=True)
    lines = ["id,video,caption"]
    for row in range(num_rows):
        write_media(
            folder / f"video/{row}.mp4",
            num_frames=24,
            waveform=lambda times, row=row: np.sin(2 * np.pi * (200 + row) * times) / 2,
            audio_codec="aac",
            audio_seconds=1.0,
        )
        lines.append(f"row{row},{row}.mp4,{tiny_run.CAPTIONS[row % len(tiny_run.CAPTIONS)]}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def spoil(folder: Path, rows) -> set[str]:
    """Make files bad, each in one of four ways; return their paths."""
    for number, row in enumerate(rows):
        path = folder / f"video/{row}.mp4"
        content = path.read_bytes()
        path.write_bytes([b"\0" * 500, b"", b"", content[: len(content) // 2]][number % 4])
        if number % 4 == 2:
            path.unlink()
    return {str(folder / f"video/{row}.mp4") for row in rows}


def start(argv: list[str], rank: int, num_processes: int, port: int) -> int:
    """Start one process of a run as a fork of this one, which has loaded everything; return its process id."""
    process = os.fork()
    if process:
        return process
    try:
        if num_processes > 1:
            values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
            os.environ |= {name: str(value) for name, value in values.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            tiny_run.run(*argv)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def train(common: list[str], output: Path, num_processes: int, **values) -> tuple[float, str, list[dict]]:
    """Run a training; return its seconds, a hash of the final weights, and the list of bad files."""
    argv = [*common, *flags("--do_train", output_dir=output, **values)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [start(argv, rank, num_processes, port) for rank in range(num_processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert codes == [0] * num_processes, f"{output.name}: exit codes {codes}"
    seconds = json.loads((output / "train_results.json").read_text())["train_runtime"]
    path = output / "quarantine.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    print(f"  {output.name}: {seconds:.1f} s of training, {len(lines)} bad files", flush=True)
    return seconds, hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest(), lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.0, 0.01, 0.1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = str(folder / "index")
        write_rows(folder / "good", arguments.rows)
        configs = tiny_run.config_flags(tiny_run.write_configs(folder))
        generator = np.random.default_rng(0)
        shuffled = generator.permutation(arguments.rows)
        cases = {f"{share:.0%}": shuffled[: round(arguments.rows * share)] for share in arguments.shares}
        cases |= {"a whole batch": np.arange(BATCH), "a process's share": np.arange(BATCH, BATCH + BATCH // 2)}
        for title, rows in cases.items():
            print(f"{title} bad:")
            data = shutil.copytree(folder / "good", folder / "data")
            bad = spoil(data, rows)
            order = "sequential" if title.startswith("a ") else "random"
            common = [*configs, *flags(train_file=data / "train.csv", video_root=data / "video")]
            common += flags(num_train_epochs=arguments.epochs, train_sampling_strategy=order, save_strategy="no")
            found = {}
            for processes in arguments.processes:
                for workers in arguments.workers:
                    for run in ("first", "second"):
                        output = folder / f"{title}, {processes} processes, {workers} workers, {run}"
                        found[processes, workers, run] = train(
                            common,
                            output,
                            processes,
                            dataloader_num_workers=workers,
                            per_device_train_batch_size=BATCH // processes,
                            seed=1,
                        )
            for processes in arguments.processes:
                runs = [value for key, value in found.items() if key[0] == processes]
                assert len({run[1] for run in runs}) == 1, f"{title}: weights differ between runs of {processes}"
            for _, _, lines in found.values():
                files = [line["file"] for line in lines]
                assert len(files) == len(set(files)) and set(files) == bad, f"{title}: {set(files) ^ bad}"
            print(f"  {len(found)} runs: the same weights for each number of processes, the exact list in all")
            shutil.rmtree(data)


if __name__ == "__main__":
    main()
