"""Compare the training and evaluation of two commits: losses, weights and metric files of short runs, bit for bit.

python benchmarks/compare_commits.py OLD NEW --clips CLIPS [--work outputs/compare] [--jobs toy questions ...]

Each commit is checked out into the work folder, and its own `train.py` and `simple-multimodal` run there, on data and
models made by the old commit: 50 steps of the toy run, of questions and of LoRA on its model, 30 steps on real clips
(CLIPS holds `clips.jsonl` and its files), 10 steps of fine-tuning a small ALPRO for retrieval and for questions, and
`infer`, `encode`, `search` and `answer` with the results. A finished job is not run again. Pass names that a commit
changed on purpose as `--renamed OLD_NAME=NEW_NAME`, flags that the old commit has under another name as
`--old_flags OLD_FLAG=NEW_FLAG` (without dashes), and values that may differ as `--ignore PATTERN`.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("_runtime", "_per_second", "data_wait_share", "total_flos")
"""Suffixes of the names of values that always differ."""

PREPARE = """
import sys
from pathlib import Path
from tests.models.alpro.tiny import write_folder
from tests.training.tiny_benchmark import TEXTS, write_benchmark
work = Path(sys.argv[1])
for task in ("msrvtt_ret", "msvd_qa"):
    write_benchmark(work, task)
    (work / "start" / task).mkdir(parents=True)
    write_folder(work / "start" / task, "retrieval", TEXTS)
"""
"""Code that makes two small benchmarks, and the ALPRO models that are fine-tuned on them."""

STEPS = "--logging_steps 1 --save_strategy no --use_cpu True --disable_tqdm True --report_to none"
TOY = "train.py --config configs/runs/toy.yaml --data_root DATA/toy"
ALPRO = "train.py --max_steps 10 --per_device_train_batch_size 2"
TOOL = "-m simple_multimodal"


def benchmark(task: str) -> str:
    """Return the flags for training on a small benchmark, from the model that was made for it."""
    manifests = (
        f"--train_file DATA/datasets/{task}/train.jsonl --validation_file DATA/datasets/{task}/validation.jsonl"
    )
    model = f"--model_name_or_path DATA/start/{task}/model --output_dir OUT/alpro_{task}"
    return f"{manifests} --video_root DATA/data/{task}/videos {model}"


def infer(task: str, name: str, flags: str = "") -> str:
    """Return the command that evaluates the model fine-tuned on a small benchmark."""
    folders = f"OUT/alpro_{task} DATA/datasets/{task} --video_root DATA/data/{task}/videos"
    return f"{TOOL} infer {folders} --output_dir OUT/infer_{task}_{name} {flags}"


JOBS: dict[str, list[str]] = {
    "toy": [f"{TOY} --max_steps 50 --output_dir OUT/toy {STEPS}"],
    "questions": [
        "train.py --config configs/runs/toy_questions.yaml --data_root DATA/toy --model_name_or_path OUT/toy "
        f"--max_steps 50 --max_eval_samples 400 --output_dir OUT/questions {STEPS}",
        f"{TOOL} answer OUT/questions 'what shape do you see?' DATA/toy/validation.jsonl",
    ],
    "lora": [
        f"{TOY} --model_name_or_path OUT/toy --task retrieval --lora_rank 4 --max_steps 50 "
        f"--output_dir OUT/lora {STEPS}"
    ],
    "processes": [  # the toy model, evaluated by two processes
        f"-m torch.distributed.run --nproc_per_node 2 {TOY} --model_name_or_path OUT/toy --do_train False "
        "--output_dir OUT/processes --use_cpu True --disable_tqdm True"
    ],
    "search": [
        f"{TOOL} encode OUT/toy DATA/toy/validation.jsonl --out OUT/search/clips.safetensors",
        f"{TOOL} search OUT/toy 'a red circle and a high tone' OUT/search/clips.safetensors",
        f"{TOOL} search OUT/toy 'a red circle' DATA/toy/validation.jsonl --rerank 16",
    ],
    "clips": [
        "train.py --config configs/runs/clips.yaml --train_file DATA/clips/train.jsonl --video_root CLIPS "
        f"--validation_file DATA/clips/train.jsonl --max_steps 30 --output_dir OUT/clips {STEPS}"
    ],
    "alpro": [
        f"{ALPRO} --task retrieval {benchmark('msrvtt_ret')} {STEPS}",
        f"{ALPRO} --task question_answering {benchmark('msvd_qa')} {STEPS}",
    ],
    "infer": [
        infer("msrvtt_ret", "default"),
        infer("msrvtt_ret", "top_2", "--rerank_top_k 2 --compare_rerank"),
        infer("msrvtt_ret", "all", "--rerank_top_k all"),
        infer("msrvtt_ret", "alpro", "--alpro"),
        infer("msrvtt_ret", "cosine", "--rerank_top_k 0 --dsl"),
        infer("msvd_qa", "default"),
        infer("msvd_qa", "alpro", "--alpro"),
    ],
}


def run(tree: Path, command: str, log: Path) -> None:
    """Run a command of one tree with this environment's Python, and write its output to a file."""
    words = [sys.executable, *shlex.split(command)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(words, cwd=tree, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{tree.name}: {command}\nexited with {done.returncode}; see {log}")


def flat(name: str, value: Any) -> dict[str, Any]:
    """Return the numbers and strings of nested values, by path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(f"{name}/{key}", part).items()}
    if isinstance(value, list):
        return {k: v for number, part in enumerate(value) for k, v in flat(f"{name}/{number}", part).items()}
    return {} if name.endswith(TIMES) else {name: value}


def is_result(line: str) -> bool:
    """Return whether a printed line is a reproducible result; training losses are compared by the trainer's state."""
    return line.startswith("{") and not any(name in line for name in TIMES)


def found_in(out: Path) -> dict[str, Any]:
    """Collect everything that is compared of the outputs of a commit."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "trainer_state.json":
            found |= flat(name, json.loads(path.read_text(encoding="utf-8"))["log_history"])
        elif path.name in ("evaluation.json", "metrics.json", "results.json"):
            values = json.loads(path.read_text(encoding="utf-8"))
            values = values if isinstance(values, list) else {k: values[k] for k in values if k not in ("run", "date")}
            found |= flat(name, values)
        elif path.suffix == ".safetensors" and path.is_file():
            digest = hashlib.sha256()
            for key, tensor in sorted(load_file(path).items()):
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().view(-1).numpy().tobytes() if tensor.numel() else b"")
            found[name] = digest.hexdigest()
        elif path.suffix == ".log" and path.parent.name == "logs":
            lines = path.read_text(encoding="utf-8").splitlines()
            found |= {f"{name}/{number}": line for number, line in enumerate(x for x in lines if is_result(x))}
    return {name: value for name, value in found.items() if not name.endswith(TIMES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/compare")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="substrings of names to replace")
    parser.add_argument("--ignore", nargs="*", default=[], metavar="PATTERN", help="shell patterns of names to ignore")
    parser.add_argument("--old_flags", nargs="*", default=[], metavar="OLD=NEW", help="flags that were renamed")
    options = parser.parse_args()
    old_flags = [pair.split("=") for pair in options.old_flags]
    work, clips = options.work.resolve(), options.clips.resolve()
    trees = []
    for commit in (options.old, options.new):
        words = ["git", "-C", str(ROOT), "rev-parse", "--short", f"{commit}^{{commit}}"]
        tree = work / "trees" / subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        if not tree.is_dir():
            subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", tree, commit], check=True)
        trees.append(tree)
    data = work / "data"
    if not (data / "made").exists():
        made = (
            f"-m simple_multimodal toy {data}/toy",
            f"-m simple_multimodal clips {clips}/clips.jsonl {data}/clips",
            f"-c {shlex.quote(PREPARE)} {data}",
        )
        for number, command in enumerate(made):
            run(trees[0], command, work / "logs" / f"data_{number}.log")
        (data / "made").touch()
    results = []
    for tree in dict.fromkeys(trees):
        out = work / "out" / tree.name
        for job in options.jobs:
            if (out / f"{job}.done").exists():
                continue
            for number, command in enumerate(JOBS[job]):
                (out / job).mkdir(parents=True, exist_ok=True)
                for place, folder in {"DATA": data, "OUT": out, "CLIPS": clips}.items():
                    command = command.replace(place, str(folder))
                if tree == trees[0]:
                    for before, after in old_flags:
                        command = command.replace(f"--{after}", f"--{before}")
                run(tree, command, out / "logs" / f"{job}_{number}.log")
            (out / f"{job}.done").touch()
            print(f"{tree.name}: {job}", flush=True)
    for tree in trees:
        found = found_in(work / "out" / tree.name)
        # Paths that contain the names of the two trees do not count as differences.
        results.append({k: v.replace(tree.name, "TREE") if isinstance(v, str) else v for k, v in found.items()})
    old, new = results
    for pair in options.renamed:
        before, _, after = pair.partition("=")
        old = {name.replace(before, after): v for name, v in old.items()}
    names = [n for n in dict.fromkeys([*old, *new]) if not any(fnmatch.fnmatch(n, p) for p in options.ignore)]
    different = [name for name in names if old.get(name, "nothing") != new.get(name, "nothing")]
    for name in different[:100]:
        print(f"{name}: {old.get(name, 'nothing')!r} became {new.get(name, 'nothing')!r}")
    print(f"{len(names)} values compared, {len(different)} differ")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
