"""All steps on a few real clips: prepare, fine-tune a main-job checkpoint, and evaluate with the `inf_*` scripts.

python benchmarks/real_clips.py CLIPS [--model outputs/clips] [--work outputs/real_clips]

CLIPS is a folder with `clips.jsonl` (file, split, captions, question, answer) and the files that it names. They are
laid out in data folders like ALPRO's four, `data/<task>/{txt,videos}`, with names as in the benchmarks; every ninth
training clip is set aside for validation. Every model is evaluated on its own training clips, which is an overfit
check and not a result, and on the test clips: unchanged, without video, with every clip exchanged for another one, and
without any clip, which shows what text alone gives away. Existing files are kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("msrvtt_ret", "didemo_ret", "msrvtt_qa", "msvd_qa")
MSVD_NAMES = ("-4wsuPCjDBc_5_15", "-7KMZQEsJW4_205_208", "-8y1Q0rA3n8_108_115", "eyhzdC936uk_15_27")
FIRST_OF_1KA = {"video": "video9770", "caption": "a person is connecting something to system"}
SETTINGS = (
    "--do_train True --per_device_train_batch_size 18 --adam_beta2 0.98 --warmup_steps 0.1 --lr_scheduler_type cosine "
    "--save_strategy no --logging_steps 50 --disable_tqdm True --use_cpu True"
).split()
FINE_TUNING = {  # matching needs thousands of steps: on features of frozen towers these take minutes
    "retrieval": (
        "--task retrieval --freeze audio video --num_train_epochs 2000 --learning_rate 1e-3 --hard_negative_ratio 0.5"
    ).split(),
    "question_answering": "--task question_answering --num_train_epochs 100 --learning_rate 1e-3".split(),
}
CONDITIONS: dict[str, tuple[str, list[str]]] = {
    "as it is": ("", []),
    "without video": ("", ["--drop_modalities", "video"]),
    "clips exchanged": ("_exchanged", []),
    "without clip": ("", ["--drop_modalities", "audio", "video"]),
}


def clip_name(task: str, number: int, split: str) -> str:
    """Return the name that the clip of this number would have in the benchmark."""
    if task == "msvd_qa":
        return MSVD_NAMES[number] if number < len(MSVD_NAMES) else f"{number:04d}-4wsuPC_{number}_{number + 10}"
    if task == "didemo_ret":
        return f"{77807177 + number}@N00_{5753455690 + number}_1e04ccb364"
    return f"video{9770 + number}" if split == "test" else f"video{number}"


def rows_of(task: str, clip: dict, name: str, number: int) -> list[dict]:
    """Return ALPRO's rows about a clip."""
    if task.endswith("_qa"):
        kind = clip["question"].split()[0]
        question = {key: clip[key] for key in ("question", "answer")}
        return [{**question, "video_id": name, "answer_type": kind}]
    if task == "didemo_ret":
        return [{"caption": " ".join(clip["captions"]), "clip_name": name}]
    if clip["split"] == "train":
        return [{"caption": c, "clip_name": name, "sen_id": 2 * number + n} for n, c in enumerate(clip["captions"])]
    caption = FIRST_OF_1KA["caption"] if name == FIRST_OF_1KA["video"] else clip["captions"][0]
    return [{"caption": caption, "clip_name": name, "retrieval_key": f"ret{number}"}]


def lay_out(clips_folder: Path, data: Path, task: str) -> None:
    """Write `txt/` and `videos/`; and the same in `exchanged/`, where every clip is the next one of its split."""
    clips = [json.loads(line) for line in (clips_folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [clip for clip in clips if clip["split"] == "train"]
    splits = {
        "train": [clip for number, clip in enumerate(train) if number % 9 != 8],
        "val": train[8::9],
        "test": [clip for clip in clips if clip["split"] == "test"],
    }
    suffix = ".avi" if task == "msvd_qa" else ".mp4"
    for shift in (0, 1):
        folder = data / ("exchanged" if shift else "") / task
        (folder / "txt").mkdir(parents=True, exist_ok=True)
        (folder / "videos").mkdir(exist_ok=True)
        for first, (split, own) in zip((0, 100, 200), splits.items(), strict=True):
            first = 0 if task.startswith("msrvtt") and split == "test" else first  # the first of them is video9770
            lines = []
            for number, clip in enumerate(own):
                name = clip_name(task, first + number, split)
                video = folder / "videos" / f"{name}{suffix}"
                if not video.exists():
                    shutil.copyfile(clips_folder / own[(number + shift) % len(own)]["file"], video)
                lines += [json.dumps(row) for row in rows_of(task, clip, name, number)]
            (folder / "txt" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(*words: str | Path, accepts: Sequence[int] = (0,), **variables: str) -> None:
    """Run a command as a user would, in the repository's folder, on all cores, and show its output."""
    print("$", *words, flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    code = subprocess.run([str(word) for word in words], cwd=ROOT, env=environment | variables, check=False).returncode
    if code not in accepts:
        sys.exit(f"exited with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "outputs/clips", help="model of the main job")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/real_clips")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args()
    python, tool = sys.executable, [sys.executable, "-m", "simple_multimodal"]
    results: dict[str, dict] = {}
    for task in options.tasks:
        data, prepared = options.work / "data", options.work / "datasets" / task
        lay_out(options.clips, data, task)
        model = options.work / "models" / task
        if not (model / "model.safetensors").exists():
            benchmark = task.removesuffix("_ret")
            run(*tool, "prepare", benchmark, "--annotations", data / task, "--output", prepared, accepts=(0, 1))
            train = ["--output_dir", model]
            if task.endswith("_qa"):
                run(
                    *tool,
                    "pack",
                    prepared / "train.jsonl",
                    prepared / "packed",
                    "--video_root",
                    data / task / "videos",
                )
                train += ["--train_file", prepared / "packed" / "train.jsonl"]
            else:
                rows = [prepared / "train.jsonl", "--video_root", data / task / "videos"]
                features = prepared / "features"
                run(*tool, "features", options.model, *rows, "--tower", "video", "audio", "--output", features)
                train += ["--train_file", *rows, "--features", features]
            kind = "question_answering" if task.endswith("_qa") else "retrieval"
            run(python, "train.py", "--model_name_or_path", options.model, *train, *SETTINGS, *FINE_TUNING[kind])
        results[task] = {}
        for split in ("train", "test"):
            for condition, (layout, flags) in CONDITIONS.items():
                folder = data / "exchanged" / task if layout else data / task
                output = options.work / "inference" / f"{task} {split} {condition}".replace(" ", "_")
                if not (output / "metrics.json").exists():
                    words = ["bash", f"run_scripts/inf_{task}.sh", model, "--split", split, *flags]
                    run(*words, DATA=str(folder), OUTPUT=str(output))
                measured = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
                kept = ("protocol", "counts", "metrics", "intervals")
                results[task][f"{split}, {condition}"] = {name: measured[name] for name in kept}
    for task, by_condition in results.items():
        for condition, metrics in by_condition.items():
            values = metrics["metrics"]
            shown = {
                n: round(v, 3) for n, v in values.items() if n in ("accuracy",) or n.endswith("text_to_video_R@1")
            }
            print(f"{task:12} {condition:26} {shown}")
    common.save("real_clips", {"results": results})


if __name__ == "__main__":
    main()
