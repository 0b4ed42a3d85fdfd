"""What a run leaves for people: the metrics file, the report page, the model card, and where to find them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from simple_multimodal.data.bad_samples import as_json
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.model_card import write_model_card
from simple_multimodal.evaluation.report import write_report
from simple_multimodal.evaluation.result_files import write_metrics
from simple_multimodal.modalities import BUILT_IN_MODALITIES
from simple_multimodal.tasks.base import Evaluation

CARD_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm",
    "freeze", "lora_rank", "seed",
)  # fmt: skip
"""Arguments that a model card names first."""


def write_results(trainer: Any, metrics: dict[str, float]) -> dict[str, float]:
    """
    Write `eval_results.json`, `evaluation.json`, `report.html` and, beside a model that was trained, its `README.md`,
    and into its configuration whether matching re-ranks; say where they are. Main process only.

    Args:
        trainer (`MultimodalTrainer`): After training and/or evaluation.
        metrics (`dict[str, float]`): What `trainer.evaluate()` returned.

    Returns:
        `dict[str, float]`: The metrics.
    """
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return metrics
    evaluation = trainer.last_evaluation
    folder = Path(trainer.args.output_dir)
    examples = trainer.task.examples(evaluation, trainer.eval_collator)
    run = trainer.run_record or {}
    _write_evaluation(trainer, folder / "evaluation.json")
    data = {"evaluation": count_rows(trainer.eval_dataset, len(evaluation.bad_samples))}
    if trainer.args.do_train:
        data = {"training": count_rows(trainer.train_dataset, num_bad_in(trainer.state.log_history))} | data
    write_report(
        folder / "report.html",
        title=folder.resolve().name,
        log_history=trainer.state.log_history,
        examples=examples,
        run=run,
        data=data,
        **_numbers(evaluation),
    )
    model = run.get("arguments", {}).get("model_name_or_path")
    if trainer.args.do_train:
        trainer.save_config()
        trainer.create_model_card()
        model = str(folder)
    say_where(folder / "report.html", model, trainer.task.next_command(trainer.eval_collator.processor.modalities))
    return metrics


def write_test_results(trainer: Any, metrics: dict[str, float]) -> dict[str, float]:
    """
    Write `test_results.json` and `test_evaluation.json`. Main process only.

    Args:
        trainer (`MultimodalTrainer`): After an evaluation of the test set.
        metrics (`dict[str, float]`): What that returned.

    Returns:
        `dict[str, float]`: The metrics.
    """
    trainer.save_metrics("test", metrics)
    if trainer.is_world_process_zero():
        _write_evaluation(trainer, Path(trainer.args.output_dir, "test_evaluation.json"))
    return metrics


def _write_evaluation(trainer: Any, path: Path) -> None:
    """Write the metrics file of the last evaluation; its folder is made if need be."""
    evaluation = trainer.last_evaluation
    path.parent.mkdir(parents=True, exist_ok=True)
    write_metrics(
        path,
        selection_split=(trainer.run_record or {}).get("selection_split"),
        precision=trainer.args.precision,
        decoder=trainer.eval_collator.decoder,
        bad_samples=as_json(evaluation.bad_samples),
        **_numbers(evaluation),
    )


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "metrics": evaluation.metrics,
        "protocol": evaluation.protocol,
        "counts": evaluation.counts,
        "intervals": evaluation.intervals,
        "headline": evaluation.primary_metric,
    }


def say_where(report: Path, model: str | None, command: str) -> None:
    """
    Print the last lines of a run, on standard error: its size on disk, report, model and the next command.

    Args:
        report (`Path`): The report page, in the output folder of the run.
        model (`str`, *optional*): Folder or hub name of the model; `None` for one that was not saved by this run.
        command (`str`): What to type next, `{model}` in the place of the model.
    """
    print(f"Disk:   {describe_disk_usage(report.parent)}", file=sys.stderr)
    print(f"Report: {report}", file=sys.stderr)
    if model is not None:
        print(f"Model:  {model}", file=sys.stderr)
        print(f"Next:   {command.replace('{model}', shlex.quote(model))}", file=sys.stderr)


def describe_disk_usage(folder: Path) -> str:
    """
    Say how much an output folder takes on disk, and which part of it weights and checkpoints do.

    Args:
        folder (`Path`): Output folder of a run.

    Returns:
        `str`: Such as `"outputs/toy holds 306 MB (model 102 MB, checkpoints 204 MB)"`; 1 MB is a million bytes.
    """
    total = 0
    parts = {"model": 0, "checkpoints": 0}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        size = path.stat().st_size
        total += size
        first, *rest = path.relative_to(folder).parts
        if first.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and rest:
            parts["checkpoints"] += size
        elif not rest and path.suffix == ".safetensors":
            parts["model"] += size
    shares = [f"{name} {_megabytes(size)}" for name, size in parts.items() if size]
    return f"{folder} holds {_megabytes(total)}" + (f" ({', '.join(shares)})" if shares else "")


def _megabytes(size: int) -> str:
    """Whole megabytes, or a tenth where there are few."""
    return f"{size / 1e6:,.{0 if size >= 10e6 else 1}f} MB"


def count_rows(dataset: RowDataset, num_bad: int) -> dict[str, int]:
    """
    Count a data set for the report and the card; opens no file.

    Args:
        dataset (`RowDataset`): Its rows.
        num_bad (`int`): How many samples could not be read.

    Returns:
        `dict[str, int]`: `rows`, `clips` (files), `captions` (or questions) and `bad_samples`.
    """
    return {
        "rows": len(dataset),
        "clips": len(dataset.clip_names()),
        "captions": dataset.num_captions(),
        "bad_samples": num_bad,
    }


def num_bad_in(log_history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many training samples could not be read, as logged last."""
    return max((entry["bad_samples"] for entry in log_history if "bad_samples" in entry), default=0)


def write_card(trainer: Any, run: Mapping[str, Any]) -> None:
    """
    Write the model card of a trained model with the numbers of the last evaluation.

    Args:
        trainer (`MultimodalTrainer`): After its model was saved.
        run (`Mapping`): Content of `run.json`.
    """
    evaluation, args, arguments = trainer.last_evaluation, trainer.args, run["arguments"]
    modalities = trainer.eval_collator.processor.modalities
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    parts = run.get("model", {}).get("parameters", {}).values()  # none of a sharded model
    parameters = {
        name: f"{sum(part[key] for part in parts):,}"
        for name, key in (("parameters", "total"), ("trained parameters", "trainable"))
        if parts
    }
    write_model_card(
        args.output_dir,
        task=trainer.task.name,
        modalities=modalities,
        metrics=evaluation.metrics if evaluation else {},
        intervals=evaluation.intervals if evaluation else {},
        headline=evaluation.primary_metric if evaluation else None,
        protocol=evaluation.protocol if evaluation else "not evaluated",
        counts=evaluation.counts if evaluation else {},
        training_counts=count_rows(trainer.train_dataset, num_bad_in(trainer.state.log_history)),
        run=run,
        settings={
            "steps": trainer.state.global_step,
            "epochs": round(trainer.state.epoch or 0.0, 2),
            "rows per step": batch_size,
            "precision": args.precision,
            **parameters,
            **{name: arguments[name] for name in CARD_SETTINGS if arguments.get(name) not in (None, [], "")},
        },
        usage=trainer.task.usage(modalities),
        dataset_name=name_of(trainer.eval_dataset.manifest_file) if trainer.eval_dataset is not None else "",
        base_models=[
            arguments[name]
            for name in (
                "model_name_or_path",
                *(f"{tower}_model_name_or_path" for tower in (*BUILT_IN_MODALITIES, "fusion")),
            )
            if arguments.get(name)
        ],
    )


def name_of(manifest_file: Path | None) -> str:
    """Return what the card calls a data set: its folder, or the manifest in the present one."""
    return "" if manifest_file is None else manifest_file.parent.name or manifest_file.stem
