"""Benefit of published weights on a few real clips: frozen towers against the same towers with random weights.

python benchmarks/transfer.py WEIGHTS CLIPS [--work outputs/transfer] [--seeds 5] [--choose]

WEIGHTS holds the folders all-minilm-l6-v2 (text), whisper-tiny.en (speech) and efficientnet-lite0 (images), which were
trained separately; CLIPS holds a `clips.jsonl` (file, split, captions, duration) and the files that it names. Features
of the frozen towers are computed once; then `train.py` learns a space in which the training clips are close to their
captions, with the same flags and seeds for both sets of weights. Every caption of a test clip is a query, over whole
clips and over their parts of five seconds. The baseline without training uses the names of the ImageNet classes that
the image tower predicts, embedded by the text tower (ConSE, Norouzi et al. 2013).

`--choose` measures each of `RECIPES` on folds of the training clips instead, without the test clips.
Existing files are kept.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from transformers import AutoConfig, BertModel, TimmWrapperForImageClassification, WhisperModel, set_seed
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from arguments import parse_args  # noqa: E402
from simple_multimodal.data.rows import RowDataset  # noqa: E402
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean  # noqa: E402
from simple_multimodal.evaluation.ranking import retrieval_ranks  # noqa: E402
from simple_multimodal.inference.features import TowerFeatures  # noqa: E402
from simple_multimodal.inference.pipeline import cosine  # noqa: E402
from simple_multimodal.tasks.retrieval.retriever import Retriever

TOWERS = {"text": "all-minilm-l6-v2", "audio": "whisper-tiny.en", "video": "efficientnet-lite0"}
SEGMENT_SECONDS = 5.0
STARTS = (0.0, 5.0)
"""Start of each part of a clip that is a candidate, in seconds."""

COMMON = (
    "--task retrieval --do_train True --do_eval False --eval_strategy no --freeze text audio video --use_cpu True "
    "--fusion_config_name configs/crossformer/vit_config_tiny.json --num_frames 12 --num_audio_frames 1000 "
    "--save_strategy no --disable_tqdm True --report_to none --logging_strategy no --overwrite_output_dir True"
).split()
"""Flags of every run of `train.py`."""

LINEAR = "--clip_embedding mean --fusion_form merge --matching_loss_weight 0"
RECIPES = {
    "fusion and matching": "--learning_rate 1e-3 --num_train_epochs 120 --per_device_train_batch_size 18",
    "mean of modalities": f"{LINEAR} --learning_rate 3e-3 --num_train_epochs 50 --per_device_train_batch_size 36",
}
"""The recipes that `--choose` compares."""

CHOSEN = "mean of modalities"
CONDITIONS: dict[str, tuple[str, ...]] = {"all": (), "images alone": ("audio",), "audio alone": ("video",)}
"""The modalities left out of the candidates, by name of the condition."""


def write_manifests(clips: list[dict], folder: Path) -> dict[str, Path]:
    """Write manifests of whole clips and of parts, for both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, starts in (("train", ()), ("test", STARTS)):
        whole, parts = [], []
        for clip in (clip for clip in clips if clip["split"] == split):
            row = {"video": clip["file"], "captions": clip["captions"], "group": clip["id"]}
            whole.append({"id": clip["id"], **row})
            for start in (start for start in starts if start == 0 or start + SEGMENT_SECONDS <= clip["duration"]):
                times = {"start_seconds": start, "end_seconds": start + SEGMENT_SECONDS}
                parts.append({"id": f"{clip['id']}_{start:g}", **row, **times})
        for name, rows in ((split, whole), *([(f"{split}_parts", parts)] if parts else [])):
            paths[name] = folder / f"{name}.jsonl"
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def draw_weights(weights: Path, folder: Path) -> None:
    """Write the same towers with random weights, in folders of the same names."""
    set_seed(0)
    for tower, name in TOWERS.items():
        shutil.copytree(weights / name, folder / name, dirs_exist_ok=True)
        (folder / name / "model.safetensors").unlink()
        config = AutoConfig.from_pretrained(weights / name)
        stock = {"text": BertModel, "audio": WhisperModel, "video": TimmWrapperForImageClassification}[tower](config)
        if tower == "video":  # initialised as in timm: the stock class treats convolutions like a transformer's layers
            stock.timm_model.load_state_dict(timm.create_model(config.architecture).state_dict())
        stock.save_pretrained(folder / name)


def base_flags(weights: Path, rows: Path, clips: Path) -> list[str]:
    """Return the flags that name the towers and the files of a run."""
    names = [word for m, name in TOWERS.items() for word in (f"--{m}_model_name_or_path", str(weights / name))]
    files = ["--train_file", str(rows), "--video_root", str(clips)]
    return [*COMMON, *files, *names, "--tokenizer_name", str(weights / TOWERS["text"])]


def run_training(weights: Path, rows: Path, clips: Path, output: Path, flags: Sequence[str]) -> float:
    """Run `train.py` with these flags in this process, and return the wall seconds."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train.run(*parse_args([*base_flags(weights, rows, clips), "--output_dir", str(output), *flags]))
    return time.perf_counter() - started


def make_features(weights: Path, manifests: Sequence[Path], clips: Path, folder: Path) -> Path:
    """Make features of the frozen towers for every clip and part, and return their folder."""
    start, features = folder / "start", folder / "features"
    if not (start / "config.json").exists():
        run_training(weights, manifests[0], clips, start, ["--max_steps", "1", "--per_device_train_batch_size", "2"])
    model = TowerFeatures.from_pretrained(start, shows_progress=True)
    for tower in ("audio", "video"):
        model.write(tower, [RowDataset.from_manifest(path, roots={"video": clips}) for path in manifests], features)
    return features


class Ranks:
    """Ranks of the correct candidate for every caption of the candidates' clips, in the order of the manifest."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows
        queries = dict.fromkeys((row["group"], caption) for row in rows for caption in row["captions"])
        self.groups = np.array([group for group, _ in queries])
        self.captions = [caption for _, caption in queries]
        self.positives = self.groups[:, None] == np.array([row["group"] for row in rows])[None]

    def rank(self, scores: torch.Tensor) -> "Ranks":
        """Compute the ranks from scores `(num_queries, num_candidates)`."""
        self.values = retrieval_ranks(scores.cpu().numpy(), self.positives)
        return self

    def chance(self, top: int) -> float:
        """Return the share of queries that a random order answers within the first `top` results."""
        wrong, total = (~self.positives).sum(axis=1), self.positives.shape[1]
        missed = [np.prod([(w - n) / (total - n) for n in range(top)]) for w in wrong]
        return float(1 - np.mean(missed))


def measure(model: Path, rows: Sequence[Any], features: Path) -> dict[str, Ranks]:
    """Rank by the cosine of embeddings, in each condition; a candidate that cannot be read is left out of all."""
    result: dict[str, Ranks] = {}
    for name, dropped in CONDITIONS.items():
        retriever = Retriever.from_pretrained(model, features=features, drop_modalities=dropped)
        encoded = retriever.encode_rows(rows, with_tokens=False)
        rows = encoded.rows
        result[name] = Ranks(rows)
        texts = retriever.encode_texts(result[name].captions)
        result[name].rank(cosine(texts, torch.stack([clip.embed for clip in encoded.clips])))
    return result


@torch.no_grad()
def name_classes(weights: Path, start: Path, rows: Sequence[Any], features: Path, top: int = 50) -> Ranks:
    """
    Rank without any training: the embedding of a clip is the mean of the text tower's embeddings of the names of its
    `top` most probable ImageNet classes, weighted by their probability, which is averaged over the frames.
    """
    head = TimmWrapperForImageClassification.from_pretrained(weights / TOWERS["video"]).timm_model.get_classifier()
    retriever = Retriever.from_pretrained(start, features=features)
    rows = retriever.encode_rows(rows, with_tokens=False).rows
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(number).split(",")[0] for number in range(head.out_features)]
    classes = torch.stack([text.embed for text in retriever.encode_texts(names)])
    num_tokens = retriever.model.config.video_config.tokens_per_frame
    ranks, clips = Ranks(rows), []
    for row in rows:
        frames = retriever.collator.features["video"].read(row).tokens.unflatten(0, (-1, num_tokens)).float()
        probabilities = head(frames.mean(dim=1)).softmax(dim=-1).mean(dim=0)  # pooled as the classifier does
        values, numbers = probabilities.topk(top)
        clips.append(F.normalize(values @ classes[numbers], dim=-1))
    return ranks.rank(
        torch.stack([text.embed for text in retriever.encode_texts(ranks.captions)]) @ torch.stack(clips).T
    )


def summarise(name: str, by_seed: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Compute R@1 and R@5 of ranks `(num_seeds, num_queries)`: each seed, the mean, and its interval over clips."""
    result: dict[str, Any] = {"ranks": by_seed.tolist()}
    for top in (1, 5):
        hits = (by_seed <= top).astype(float)
        interval = bootstrap_interval(hits.mean(axis=0), resampled_mean, groups=groups)
        result[f"R@{top}"] = {"mean": hits.mean(), "seeds": hits.mean(axis=1).tolist(), "interval": interval}
    one, five = result["R@1"], result["R@5"]
    seeds = " ".join(f"{value:.2f}" for value in one["seeds"])
    print(
        f"{name:52} R@1 {one['mean']:.3f} [{one['interval'][0]:.2f}, {one['interval'][1]:.2f}]  "
        f"R@5 {five['mean']:.3f} [{five['interval'][0]:.2f}, {five['interval'][1]:.2f}]  seeds {seeds}",
        flush=True,
    )
    return result


def compare(name: str, first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Compute the difference of recall, paired by seed and query, with its interval over clips."""
    result = {}
    for top in (1, 5):
        gains = ((first <= top).astype(float) - (second <= top).astype(float)).mean(axis=0)
        interval = bootstrap_interval(gains, resampled_mean, groups=groups)
        result[f"R@{top}"] = {"mean": gains.mean(), "interval": interval}
    shown = {top: (round(v["mean"], 3), [round(x, 2) for x in v["interval"]]) for top, v in result.items()}
    print(f"{name}: {shown}", flush=True)
    return result


def choose(weights: Path, manifests: dict[str, Path], clips: Path, features: Path, work: Path, folds: int) -> dict:
    """Measure the recall of each recipe on folds of the training clips, each by a model trained on the other folds."""
    rows = [json.loads(line) for line in manifests["train"].read_text(encoding="utf-8").splitlines()]
    results: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        found: list[Ranks] = []
        seconds = 0.0
        for fold in range(folds):
            splits = {"train_fold": [row for number, row in enumerate(rows) if number % folds != fold]}
            splits["held_out"] = rows[fold::folds]
            for split, some in splits.items():
                text = "".join(json.dumps(row) + "\n" for row in some)
                (work / f"{split}.jsonl").write_text(text, encoding="utf-8")
            flags = [*recipe.split(), "--features", str(features), "--seed", "0"]
            seconds += run_training(weights, work / "train_fold.jsonl", clips, work / "model", flags)
            held_out = list(RowDataset.from_manifest(work / "held_out.jsonl", roots={"video": clips}))
            found.append(measure(work / "model", held_out, features)["all"])
        ranks, groups = (np.concatenate([getattr(one, key) for one in found]) for key in ("values", "groups"))
        results[name] = summarise(name, ranks[None], groups) | {"seconds of training": seconds / folds}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/transfer")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=6, help="number of folds for --choose")
    parser.add_argument("--choose", action="store_true", help="compare the recipes on folds of the training clips")
    options = parser.parse_args()
    logging.set_verbosity_error()
    clips, work = options.clips.resolve(), options.work.resolve()
    described = [json.loads(line) for line in (clips / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    manifests = write_manifests(described, work)
    if not (work / "drawn" / TOWERS["video"] / "model.safetensors").exists():
        draw_weights(options.weights, work / "drawn")
    sources = {"published": options.weights.resolve(), "drawn": work / "drawn"}
    published = make_features(sources["published"], list(manifests.values()), clips, work / "published_towers")
    if options.choose:
        chosen = choose(sources["published"], manifests, clips, published, work, options.folds)
        common.save("transfer_recipes", {"recipes": RECIPES, "folds": options.folds, "results": chosen})
        return

    candidates = {
        "whole clips": list(RowDataset.from_manifest(manifests["test"], roots={"video": clips})),
        "parts of 5 s": list(RowDataset.from_manifest(manifests["test_parts"], roots={"video": clips})),
    }
    found: dict[tuple[str, str, str], list[Ranks]] = {}
    seconds: dict[str, list[float]] = {}
    for kind, weights in sources.items():
        features = make_features(weights, list(manifests.values()), clips, work / f"{kind}_towers")
        for seed in range(options.seeds):
            flags = [*RECIPES[CHOSEN].split(), "--features", str(features), "--seed", str(seed)]
            wall = run_training(weights, manifests["train"], clips, work / "model", flags)
            seconds.setdefault(kind, []).append(wall)
            for where, rows in candidates.items():
                for condition, ranks in measure(work / "model", rows, features).items():
                    found.setdefault((kind, where, condition), []).append(ranks)
                    print(kind, seed, where, condition, f"R@1 {(ranks.values == 1).mean():.3f}", flush=True)
    results: dict[str, Any] = {}
    for where, rows in candidates.items():
        untrained = name_classes(sources["published"], work / "published_towers/start", rows, published)
        chances = {f"R@{top}": untrained.chance(top) for top in (1, 5)}
        counts = {"captions": len(untrained.captions), "candidates": len(untrained.rows)}
        print(f"{where}: {counts}, chance {chances}")
        results[where] = {"counts": counts, "chance": chances}
        groups = untrained.groups
        results[where]["class names, no training"] = summarise("class names", untrained.values[None], groups)
        for condition in CONDITIONS:
            both = {kind: np.stack([one.values for one in found[kind, where, condition]]) for kind in sources}
            for kind, ranks in both.items():
                results[where][f"{kind}, {condition}"] = summarise(f"{kind}, {condition}", ranks, groups)
            name = f"published - drawn, {condition}"
            results[where][name] = compare(name, both["published"], both["drawn"], groups)
            if condition == "all":
                name = "published - class names"
                results[where][name] = compare(name, both["published"], untrained.values[None], groups)
    settings = {"recipe": RECIPES[CHOSEN], "common": " ".join(COMMON), "seconds of training": seconds}
    common.save("transfer", {**settings, "results": results})


if __name__ == "__main__":
    main()
