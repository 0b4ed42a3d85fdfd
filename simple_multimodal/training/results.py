"""Results of a run for people to read: metrics file, report page, model card, and their paths."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from simple_multimodal.data.bad_samples import as_json
from simple_multimodal.data.records import CLIP_FILES, FILE_COLUMNS
from simple_multimodal.data.rows import RowDataset, clip_file
from simple_multimodal.evaluation.model_card import write_model_card
from simple_multimodal.evaluation.rendering import to_shell
from simple_multimodal.evaluation.report import write_report
from simple_multimodal.evaluation.result_files import write_metrics
from simple_multimodal.modalities import BUILT_IN_MODALITIES
from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.training.checkpoints import STATE_FILE
from simple_multimodal.training.quarantine import QUARANTINE_FILE, listed_samples
from simple_multimodal.training.run_record import describe_parts, read_run_record

REPORT_FILE = "report.html"
ROOTS = tuple(f"{column}_root" for column in FILE_COLUMNS)

CARD_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm",
    "freeze", "lora_rank", "seed",
)  # fmt: skip
"""Arguments that the model card lists first."""


def write_results(trainer: Any, split: str) -> None:
    """
    Write the results of a finished training or evaluation: `report.html`; for an evaluation `evaluation.json` (for a
    test set `test_evaluation.json`); and, for a model that was trained and saved, its `README.md` and, in its
    config, whether matching re-ranks. Main process only.

    Args:
        trainer (`MultimodalTrainer`): Trainer that finished.
        split (`str`): What was finished last: `"train"`, `"eval"` or `"test"`.
    """
    evaluation, folder = trainer.last_evaluation, Path(trainer.args.output_dir)
    if split != "train":
        if evaluation is None or isinstance(trainer.eval_dataset, dict):
            return  # nothing was evaluated, or several sets, of which only the last is known
        _write_evaluation(trainer, folder / ("evaluation.json" if split == "eval" else "test_evaluation.json"))
        if split == "test":
            return
    else:  # the weights may be those of a checkpoint other than the one evaluated last
        evaluation = None
    data = {}
    if trainer.train_dataset is not None:
        data["training"] = count_rows(trainer.train_dataset, num_bad_in(folder))
    if evaluation is not None:
        data["evaluation"] = count_rows(trainer.eval_dataset, len(evaluation.bad_samples))
    log_history, run, notes = _training_of(trainer)
    write_report(
        folder / REPORT_FILE,
        title=folder.resolve().name,
        log_history=log_history,
        examples=[] if evaluation is None else trainer.task.examples(evaluation, trainer.eval_collator),
        run=run,
        notes=notes,
        data=data,
        chance=None if evaluation is None else evaluation.chance,
        train_chance=None if evaluation is None else _chance_in_training(trainer, evaluation.chance),
        tables=None if evaluation is None else evaluation.tables,
        **_numbers(evaluation),
    )
    if evaluation is not None and trainer.is_saved and trainer.train_dataset is not None:
        trainer.save_config()
        trainer.create_model_card()


def _training_of(trainer: Any) -> tuple[list[dict[str, float]], dict[str, Any], list[str]]:
    """Return the logs and the record of the training that the folder is from, and notes on its command."""
    folder, run, evaluated = Path(trainer.args.output_dir), trainer.run_record, trainer.evaluation_record
    log_history = trainer.state.log_history
    source = run["arguments"].get("model_name_or_path")
    is_own = trainer.train_dataset is None and source is not None and Path(source).resolve() == folder.resolve()
    if is_own and (training := read_run_record(folder)) is not None:  # evaluates the model of its own folder
        run, evaluated = training, run
        if (folder / STATE_FILE).is_file():
            log_history = TrainerState.load_from_json(str(folder / STATE_FILE)).log_history
    notes = describe_parts(run)
    if evaluated is not None and evaluated["command"] not in ("", run["command"]):
        notes.append(f"The evaluation ran later: {to_shell(evaluated['command'])}")
    return log_history, run, notes


def _write_evaluation(trainer: Any, path: Path) -> None:
    """Write the metrics file of the last evaluation; create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_metrics(
        path,
        selection_split=trainer.run_record["selection_split"],
        precision=trainer.args.precision,
        decoder=trainer.eval_collator.decoder,
        bad_samples=as_json(trainer.last_evaluation.bad_samples),
        signatures=trainer.last_evaluation.signatures,
        **_numbers(trainer.last_evaluation),
    )


def _chance_in_training(trainer: Any, chance: Mapping[str, float]) -> dict[str, float]:
    """Return the chance levels of training, where contrastive losses compare the rows of a batch."""
    rows = math.log(trainer.args.train_batch_size * trainer.args.world_size)
    return {name: rows if name.removesuffix("_loss") in CONTRASTIVE_PAIRS else level for name, level in chance.items()}


def _numbers(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {"metrics": {}, "protocol": "not evaluated after training", "counts": {}}
    return {
        "metrics": evaluation.metrics,
        "protocol": evaluation.protocol,
        "counts": evaluation.counts,
        "intervals": evaluation.intervals,
        "primary_metric": evaluation.primary_metric,
    }


def print_where_results_are(trainer: Any) -> None:
    """
    Print the last lines of a run to standard error: its size on disk, report, model and the next command. Main
    process only.

    Args:
        trainer (`MultimodalTrainer`): Trainer at the end of the run.
    """
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    model = str(folder) if trainer.is_saved else trainer.run_record["arguments"]["model_name_or_path"]
    lines = []
    if trainer.train_dataset is not None and (num_bad := num_bad_in(folder)):
        lines.append(f"Bad:    {num_bad:,} training files could not be read, see {folder / QUARANTINE_FILE}")
    lines.append(f"Disk:   {describe_disk_usage(folder)}")
    if (folder / REPORT_FILE).is_file():
        lines.append(f"Report: {folder / REPORT_FILE}")
    lines += [f"Model:  {model}", f"Next:   {_next_command(trainer, model)}"]
    print("\n".join(lines), file=sys.stderr)


def _next_command(trainer: Any, model: str) -> str:
    """Return a command that uses the model on the clips of the run: those evaluated, or else those trained on."""
    datasets = (trainer.eval_dataset, trainer.train_dataset)
    rows = next((dataset for dataset in datasets if isinstance(dataset, RowDataset)), None)
    text, file, clips = None, None, ["my_clips/"]
    if rows is not None:
        with contextlib.suppress(ValueError):  # its text file cannot be read
            text = next(rows.captions(), None)
        row = rows.row(0, files="named")
        taken = trainer.eval_collator.processor.modalities
        file = clip_file(row, [name for name in CLIP_FILES if name in taken])
    if rows is not None and rows.manifest_file is not None:
        arguments = (trainer.evaluation_record or trainer.run_record)["arguments"]
        clips = [str(rows.manifest_file)]
        clips += [token for name in ROOTS if arguments.get(name) for token in (f"--{name}", arguments[name])]
        clips += ["--follow_links"] if arguments.get("follow_links") else []
    command = trainer.task.next_command(trainer.eval_collator.processor.modalities, text, file)
    return command.replace("{model}", shlex.quote(model)).replace("{clips}", shlex.join(clips))


def describe_disk_usage(folder: Path) -> str:
    """
    Describe the size of an output folder on disk, and the parts of it that weights and checkpoints take.

    Args:
        folder (`Path`): Output folder of a run.

    Returns:
        `str`: Text such as `"outputs/toy holds 306 MB (model 102 MB, checkpoints 204 MB)"`; 1 MB is a million bytes.
            If there are several checkpoints, it names the argument that limits their number.
    """
    total = 0
    parts = {"model": 0, "checkpoints": 0}
    checkpoints = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        size = path.stat().st_size
        total += size
        first, *rest = path.relative_to(folder).parts
        if first.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and rest:
            parts["checkpoints"] += size
            checkpoints.add(first)
        elif not rest and path.suffix == ".safetensors":
            parts["model"] += size
    shares = [f"{name} {_megabytes(size)}" for name, size in parts.items() if size]
    hint = f" in {len(checkpoints)} folders; save_total_limit sets how many are kept" if len(checkpoints) > 1 else ""
    return f"{folder} holds {_megabytes(total)}" + (f" ({', '.join(shares)}{hint})" if shares else "")


def _megabytes(size: int) -> str:
    """Format a size in megabytes: as a whole number, or with one decimal below 10 MB."""
    return f"{size / 1e6:,.{0 if size >= 10e6 else 1}f} MB"


def count_rows(dataset: RowDataset, num_bad: int) -> dict[str, int]:
    """
    Count the rows of a dataset for the report and the card, without opening media files.

    Args:
        dataset (`RowDataset`): Dataset to count.
        num_bad (`int`): Number of samples that could not be read.

    Returns:
        `dict[str, int]`: `rows`, `clips` (files), `captions` (or questions) and `bad_samples`.
    """
    return {
        "rows": len(dataset),
        "clips": len(dataset.clip_names()),
        "captions": dataset.num_captions(),
        "bad_samples": num_bad,
    }


def num_bad_in(folder: str | Path) -> int:
    """Return the number of files that could not be read in training, from the list in the folder of the run."""
    return sum(line["split"] == "training" for line in listed_samples(folder))


def write_card(trainer: Any) -> None:
    """
    Write the model card of a trained model with the metrics of the last evaluation.

    Args:
        trainer (`MultimodalTrainer`): Trainer whose model was saved.
    """
    evaluation, args, run = trainer.last_evaluation, trainer.args, trainer.run_record
    arguments = run["arguments"]
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
        chance=evaluation.chance if evaluation else {},
        primary_metric=evaluation.primary_metric if evaluation else None,
        protocol=evaluation.protocol if evaluation else "not evaluated",
        counts=evaluation.counts if evaluation else {},
        training_counts={}
        if trainer.train_dataset is None
        else count_rows(trainer.train_dataset, num_bad_in(trainer.args.output_dir)),
        run=run,
        notes=_training_of(trainer)[2],
        settings={
            "steps": trainer.state.global_step,
            "epochs": round(trainer.state.epoch or 0.0, 2),
            "rows per step": batch_size,
            "precision": args.precision,
            **parameters,
            **{name: arguments[name] for name in CARD_SETTINGS if arguments.get(name) not in (None, [], "")},
        },
        usage=trainer.task.usage(modalities),
        dataset_name=name_of(trainer.eval_dataset.manifest_file)
        if isinstance(trainer.eval_dataset, RowDataset)
        else "",
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
    """Return the name of a dataset in the card: its folder, or its manifest if that is in the working directory."""
    return "" if manifest_file is None else manifest_file.parent.name or manifest_file.stem
