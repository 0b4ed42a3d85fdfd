"""An epoch of training with live frozen towers and one on their features, in seconds; and the cost of the features.

python benchmarks/features.py CLIPS [--epochs 3] [--work outputs/features]

CLIPS is a folder with `clips.jsonl` (file, split, captions) and the files that it names. The audio and video towers
are the `small` ones (`configs/`), with random weights, which take as long as others; text tower and fusion are the toy
ones, and are trained for retrieval. All runs call `train.py` as a user would; the time of an epoch is `train_runtime`
divided by the number of epochs: without loading the model and without evaluation.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[1]
MODEL = (
    "--text_config_name configs/text/debertv2_config_toy.json --audio_config_name configs/audio/mae_config_small.json "
    "--video_config_name configs/video/videomae_config_small.json --fusion_config_name "
    "configs/crossformer/vit_config_toy.json --fusion_pool time --contrastive_dim 128 --max_audio_windows 1"
).split()
SETTINGS = (
    "--task retrieval --do_train True --do_eval False --per_device_train_batch_size 12 --save_strategy no "
    "--disable_tqdm True --use_cpu True --freeze audio video --frame_sampling uniform --logging_strategy epoch"
).split()


def run(*words: str | Path) -> float:
    """Run a command in the repository's folder, show its output, and return the wall seconds."""
    print("$", *words, flush=True)
    started = time.perf_counter()
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/features")
    options = parser.parse_args()
    work, tool = options.work.resolve(), [sys.executable, "-m", "simple_multimodal"]
    shutil.rmtree(work, ignore_errors=True)
    run(*tool, "clips", options.clips / "clips.jsonl", work)
    index = ["--index_dir", work / "index"]
    data = ["--train_file", work / "train.jsonl", "--validation_file", work / "train.jsonl"]
    data += ["--video_root", options.clips, *index]
    train = [sys.executable, "train.py", *SETTINGS, *data]
    run(*train, *MODEL, "--max_steps", "1", "--output_dir", work / "start")
    run(*tool, "index", work / "train.jsonl", "--video_root", options.clips, *index)  # for live runs, too
    making = run(
        *tool, "features", work / "start", work / "train.jsonl", "--tower", "audio", "video",
        "--output", work / "kept", "--video_root", options.clips, *index,
    )  # fmt: skip
    results: dict[str, dict] = {}
    for name, flags in (("live", []), ("features", ["--features", work / "kept"])):
        output = work / name
        epochs = ["--num_train_epochs", str(options.epochs), "--output_dir", output]
        run(*train, "--model_name_or_path", work / "start", *epochs, *flags)
        measured = json.loads((output / "train_results.json").read_text(encoding="utf-8"))
        results[name] = {"epoch_seconds": measured["train_runtime"] / options.epochs, "loss": measured["train_loss"]}
    ratio = results["live"]["epoch_seconds"] / results["features"]["epoch_seconds"]
    num_bytes = sum(path.stat().st_size for path in work.glob("kept/*/*.safetensors"))
    print(
        f"an epoch: {results['live']['epoch_seconds']:.2f} s with live towers, "
        f"{results['features']['epoch_seconds']:.2f} s on features: {ratio:.1f} times faster; making them took "
        f"{making:.1f} s and {num_bytes / 1e6:.0f} MB"
    )
    common.save(
        "features",
        {
            "epochs": options.epochs,
            "runs": results,
            "times_faster": ratio,
            "making_seconds": making,
            "bytes": num_bytes,
        },
    )


if __name__ == "__main__":
    main()
