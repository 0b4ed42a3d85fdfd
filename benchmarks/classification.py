"""Video classification on the toy world: what each modality carries, rows that lack one, and the losses compared.

python benchmarks/classification.py MODEL DATA [--seeds 0 1 2] [--work FOLDER]

MODEL is the model of the quickstart and DATA its toy world. Every cell is a run of `train.py` with
`configs/runs/toy_actions.yaml`; a finished one stays in the work folder, and the same command continues with the next.
Losses are compared by the difference of mAP on the same resamples of validation clips, seed by seed.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

import simple_multimodal as smm
import train
from arguments import parse_args
from simple_multimodal.evaluation.average_precision import precision_statistics
from simple_multimodal.evaluation.bootstrap import percentile_interval, resampled_groups
from simple_multimodal.tasks.video_classification.options import LOSSES
from simple_multimodal.tasks.video_classification.targets import encode_labels

CONFIG = Path(__file__).resolve().parents[1] / "configs/runs/toy_actions.yaml"
ATTRIBUTES = ("size", "colour", "shape", "motion", "pitch", "rhythm", "timbre")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lacking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the audio or the frames away from a random half of the rows."""
    generator = random.Random(0)
    kept = []
    for row in rows:
        lost = generator.choice(["audio", "video", None, None])
        own = {**row, "audio": row["video"]}
        kept.append(own if lost is None else {**own, lost: None})
    return kept


def motions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each row its motion as its one label."""
    place = ATTRIBUTES.index("motion")
    return [
        {"label" if name == "labels" else name: row[name][place] if name == "labels" else row[name] for name in row}
        for row in rows
    ]


def run(name: str, rows: dict[str, Path], options: argparse.Namespace, *flags: str) -> dict[str, Any]:
    """Do one run if it has not been done, and return its time, metrics and scores of the validation clips."""
    folder, file = options.work / "run", options.work / f"{name}.pt"
    if not file.is_file():
        tokens = [
            "--config",
            str(CONFIG),
            "--model_name_or_path",
            str(options.model),
            "--data_root",
            str(options.data),
        ]
        tokens += ["--train_file", str(rows["train"]), "--validation_file", str(rows["validation"])]
        tokens += ["--video_root", str(options.data), "--audio_root", str(options.data), "--save_strategy", "no"]
        tokens += ["--output_dir", str(folder), "--overwrite_output_dir", "True", "--disable_tqdm", "True"]
        begin = time.perf_counter()
        metrics = train.run(*parse_args([*tokens, *flags]))
        seconds = time.perf_counter() - begin
        classifier = smm.VideoClassifier.from_pretrained(folder, batch_size=64)
        scored = {}
        for dropped in ((), ("audio",), ("video",)):
            evaluation = smm.evaluate(
                folder, rows["validation"], roots=str(options.data), batch_size=64, drop_modalities=dropped
            )
            scored["".join(dropped)] = evaluation.details.probabilities.numpy(), list(evaluation.rows)
        torch.save(
            {"seconds": seconds, "metrics": metrics, "scored": scored, "labels": classifier.model.config.label2id},
            file,
        )
    return torch.load(file, weights_only=False)


def resampled_map(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mAP of each resample of the clips, the same ones for all scores."""
    members = np.arange(len(labels))
    statistics = precision_statistics(scores, labels, members, ties="threshold")
    blocks = resampled_groups(len(labels), num_values=labels.size)
    return np.concatenate([statistics(counts)["mAP"] for counts in blocks])


def by_attribute(rows: list[dict[str, Any]], values: list[tuple[str, ...]]) -> dict[str, float]:
    """Return the mean average precision of the labels of each attribute."""
    found = {row["label"]: row["average_precision"] for row in rows}
    return {
        name: float(np.mean([found[label] for label in sorted({own[place] for own in values})]))
        for place, name in enumerate(ATTRIBUTES)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--loss_epochs", type=int, default=4, help="epochs of the runs that compare losses")
    parser.add_argument("--work", type=Path, default=Path("outputs/classification"))
    options = parser.parse_args()
    options.model, options.data = options.model.resolve(), options.data.resolve()
    splits = {split: read_rows(options.data / f"{split}_actions.jsonl") for split in ("train", "validation")}
    kinds = {"all": lambda rows: rows, "lacking": lacking, "motions": motions}
    files = {
        kind: {split: write_rows(options.work / f"{kind}_{split}.jsonl", make(rows)) for split, rows in splits.items()}
        for kind, make in kinds.items()
    }
    values = [tuple(row["labels"]) for row in splits["validation"]]
    results: dict[str, Any] = {}

    whole = run("all", files["all"], options)
    for dropped, (_, rows) in whole["scored"].items():
        mean = float(np.mean([row["average_precision"] for row in rows]))
        results[f"without {dropped}" if dropped else "all"] = {"mAP": mean, **by_attribute(rows, values)}
    results["all"]["seconds"] = whole["seconds"]
    half = run("lacking", {**files["all"], "train": files["lacking"]["train"]}, options)
    results["trained on rows of which half lack one"] = {
        "mAP": half["metrics"]["eval_mAP"],
        "without audio": float(np.mean([row["average_precision"] for row in half["scored"]["audio"][1]])),
        "without video": float(np.mean([row["average_precision"] for row in half["scored"]["video"][1]])),
    }
    one = run("motions", files["motions"], options)
    results["one label (motion)"] = {"top1_accuracy": one["metrics"]["eval_top1_accuracy"]}

    labels = encode_labels([list(own) for own in values], whole["labels"], many=True).bool().numpy()
    resampled: dict[tuple[str, int], np.ndarray] = {}
    for seed in options.seeds:
        for loss in LOSSES:
            flags = ("--multi_label_loss", loss, "--seed", str(seed), "--num_train_epochs", str(options.loss_epochs))
            cell = run(f"{loss}_{seed}", files["all"], options, *flags)
            resampled[loss, seed] = resampled_map(cell["scored"][""][0], labels)
            results[f"{loss}, seed {seed}"] = {"mAP": cell["metrics"]["eval_mAP"]}
    for loss in list(LOSSES)[1:]:
        differences = [resampled[loss, seed] - resampled["bce", seed] for seed in options.seeds]
        low, high = percentile_interval(np.mean(differences, axis=0))
        found = [results[f"{loss}, seed {s}"]["mAP"] - results[f"bce, seed {s}"]["mAP"] for s in options.seeds]
        results[f"{loss} minus bce"] = {"mean": float(np.mean(found)), "low": low, "high": high}
    for name, found in results.items():
        print(f"{name:42s}" + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    common.save("classification", results)


if __name__ == "__main__":
    main()
