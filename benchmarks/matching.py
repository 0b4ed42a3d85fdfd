"""Matching against the cosine by step, in each form of fusion, on the toy world and on worlds that nobody tuned for.

python benchmarks/matching.py [--worlds toy polygons textures counts] [--forms ...] [--seeds 0 1 2]
python benchmarks/matching.py --worlds real --real WEIGHTS CLIPS TRANSFER_WORK [--forms ...] [--seeds 0 1 2]

Each cell of the table is a run of `train.py` with the quickstart's recipe (`configs/runs/toy.yaml`); on real clips,
with the recipe of `benchmarks/transfer.py` for fusion and matching, on features of the published towers. Every
`--eval_steps`, the validation clips are ranked in three ways: by cosine; the first 32 by the matching head alone, as
models without `matching_residual` do; and these by the weighted sum of both, as new models do. The two kinds of
matching share one run, because training is the same. For each attribute of a synthetic world, the queries whose top
clip has the correct value are counted.

A finished cell stays in the work folder: the same command continues with the next one. Arguments after `--flags` are
passed to `train.py`, such as `--flags --max_steps 200`; other flags need another work folder and another `--name`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import worlds
from transformers.trainer_utils import EvalLoopOutput

import train
from arguments import parse_args
from simple_multimodal.training import trainer
from simple_multimodal.training.trainer import MultimodalTrainer

FORMS = ("merge", "co_attention", "cross_attention")
METRICS = ("text_to_video_R@1", "text_to_video_R@5", "video_to_text_R@1")
RECIPE = Path(__file__).resolve().parents[1] / "configs/runs/toy.yaml"


class RecordingTrainer(MultimodalTrainer):
    """Also evaluates every state of the model by the head alone, and records the results."""

    records: list[dict[str, Any]]
    attributes: tuple[str, ...]

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        config = self.accelerator.unwrap_model(self.model).config
        config.matching_residual = False
        super().evaluation_loop(*args, **kwargs)
        alone = self.last_evaluation
        config.matching_residual = True
        result = super().evaluation_loop(*args, **kwargs)
        both = self.last_evaluation
        ranking = both.details
        ways = (("cosine", "", both), ("head", "matching_", alone), ("sum", "matching_", both))
        asked, scores = [row for row, _ in ranking.found.captions], ranking.scores.whole()
        self.records.append(
            {
                "step": self.state.global_step,
                **{way: {name: run.metrics[f"{prefix}{name}"] for name in METRICS} for way, prefix, run in ways},
                "matching_accuracy": both.metrics["matching_accuracy"],
                "attributes": worlds.attribute_scores(scores, asked, ranking.found.clips, self.attributes),
                **both.config_settings,
            }
        )
        return result


def make_data(world: str, options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Write the data of a world, and return its flags of `train.py` and its attributes with their values."""
    if world == "real":
        import transfer  # its libraries are not needed for the synthetic worlds

        weights, clips, work = (path.resolve() for path in options.real)
        described = [json.loads(line) for line in (clips / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
        manifests = transfer.write_manifests(described, work)
        features = transfer.make_features(weights, list(manifests.values()), clips, work / "published_towers")
        flags = transfer.base_flags(weights, manifests["train"], clips)
        flags += ["--validation_file", str(manifests["test"]), "--features", str(features), "--do_eval", "True"]
        return [*flags, *transfer.RECIPES["fusion and matching"].split()], {}
    sizes = {"num_train_clips": options.num_train_clips, "num_validation_clips": options.num_validation_clips}
    folder = options.work / "worlds" / world
    values = worlds.make_world(folder, world, **sizes)
    recipe = [line for line in RECIPE.read_text().splitlines() if not line.startswith(("pair_files", "swapped_files"))]
    config = options.work / RECIPE.name
    config.write_text("\n".join(recipe) + "\n", encoding="utf-8")
    return ["--config", str(config), "--data_root", str(folder)], values


def run_cell(world: str, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Do one run, and return its evaluations by step."""
    flags, values = make_data(world, options)
    records: list[dict[str, Any]] = []

    class Recorder(RecordingTrainer):
        pass

    Recorder.records, Recorder.attributes = records, tuple(values)
    flags += ["--output_dir", str(options.work / "run")]
    flags += ["--fusion_form", form, "--seed", str(seed), "--overwrite_output_dir", "True"]
    flags += ["--eval_strategy", "steps", "--eval_steps", str(options.eval_steps), "--save_strategy", "no"]
    flags += ["--disable_tqdm", "True"]
    trainer.MultimodalTrainer = Recorder
    begin = time.perf_counter()
    train.run(*parse_args([*flags, *options.flags]))
    return {
        "world": world,
        "form": form,
        "seed": seed,
        "flags": options.flags,
        "seconds": round(time.perf_counter() - begin),
        "chance": {name: 1 / len(found) for name, found in values.items()},
        "evaluations": records[:-1] if records[-1]["step"] == records[-2]["step"] else records,
    }


def summary(cells: list[dict[str, Any]]) -> str:
    """Return the first and last evaluation of each world and form, averaged over seeds, and the worst attribute."""
    lines = []
    for world, form in dict.fromkeys((cell["world"], cell["form"]) for cell in cells):
        last = [c["evaluations"][-1] for c in cells if (c["world"], c["form"]) == (world, form)]
        first = [c["evaluations"][0] for c in cells if (c["world"], c["form"]) == (world, form)]
        shares = {name: np.mean([e["attributes"][name] for e in last]) for name in last[0]["attributes"]}
        worst = min(shares, key=shares.__getitem__, default=None)
        found = "  ".join(
            f"{way} {np.mean([e[way]['text_to_video_R@1'] for e in first]):.3f} -> "
            f"{np.mean([e[way]['text_to_video_R@1'] for e in last]):.3f}"
            for way in ("cosine", "head", "sum")
        )
        lines.append(f"{world:10s}{form:16s}{found}" + (f"  worst: {worst} {shares[worst]:.2f}" if worst else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("toy", *worlds.WORLDS)
    parser.add_argument("--worlds", nargs="+", default=names, choices=(*names, "real"))
    folders = ("WEIGHTS", "CLIPS", "WORK")
    parser.add_argument(
        "--real", nargs=3, type=Path, metavar=folders, help="as for transfer.py; only for the world real"
    )
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num_train_clips", type=int, default=1500)
    parser.add_argument("--num_validation_clips", type=int, default=256, help="for all worlds but toy")
    parser.add_argument("--eval_steps", type=int, default=48)
    parser.add_argument("--work", type=Path, default=Path("outputs/matching"))
    parser.add_argument("--name", default="matching", help="name of the results")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="last: further flags of train.py")
    options = parser.parse_args()
    if "real" in options.worlds and options.real is None:
        parser.error("--worlds real needs --real WEIGHTS CLIPS WORK")
    cells = []
    for seed in options.seeds:  # every world and form once, then the next seed
        for world in options.worlds:
            for form in options.forms:
                file = options.work / f"{world}_{form}_{seed}.json"
                if not file.is_file():
                    cell = run_cell(world, form, seed, options)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(cell, indent=1), encoding="utf-8")
                cells.append(json.loads(file.read_text(encoding="utf-8")))
                print(summary(cells[-1:]), flush=True)
    print(summary(cells))
    common.save(options.name, {"cells": cells})


if __name__ == "__main__":
    main()
