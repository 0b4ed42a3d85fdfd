"""Console output of a run: a progress bar, a short line per log, and a table of the main metrics."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback

from simple_multimodal.evaluation import glossary
from simple_multimodal.evaluation.rendering import format_chance, format_interval, format_number, words
from simple_multimodal.progress import can_show_bars
from simple_multimodal.tasks.base import Evaluation

LOGGED = ("loss", "grad_norm", "learning_rate", "nan_steps", "bad_samples")
"""Values of a training log that its line shows, in addition to step and epoch."""


class Speed:
    """Samples per second and the share of time spent waiting for batches, since the last [`restart`]."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.samples = 0

    def values(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        return {"samples_per_second": self.samples / elapsed, "data_wait_share": self.waited / elapsed}

    def rounded(self) -> dict[str, str]:
        values = self.values()
        return {"samples/s": f"{values['samples_per_second']:.1f}", "data wait": f"{values['data_wait_share']:.0%}"}


class ConsoleCallback(ProgressCallback):
    """
    Show the progress of training with samples per second and the share of time spent waiting for data, and a line with
    the main values of each log. `trainer_state.json` and the trackers have all values.

    Args:
        trainer ([`MultimodalTrainer`]): The trainer whose speed is shown.
        shows_bars (`bool`, *optional*, defaults to `True`): Whether to show bars in addition to lines, in a terminal.
    """

    def __init__(self, trainer: Any, *, shows_bars: bool = True):
        super().__init__()
        self.trainer = trainer
        self.shows_bars = shows_bars and can_show_bars()
        self.is_training = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_training = True
        if self.shows_bars and not control.should_training_stop:
            super().on_train_begin(args, state, control, **kwargs)
            if self.training_bar is not None:  # a resumed run goes on where it stopped
                self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
            self.training_bar.set_postfix(self.trainer.speed.rounded(), refresh=False)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.shows_bars:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.leave = False  # the metrics follow
                self.prediction_bar.set_description("Evaluating", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if args.disable_tqdm:
            # As in transformers' callback without bars; keeps it out of `train_results.json`.
            logs.pop("total_flos", None)
        if not self.is_training or not state.is_world_process_zero:
            return
        line = log_line(logs, self.trainer.last_evaluation, args.metric_for_best_model)
        if line:
            line = f"step {state.global_step:,}/{state.max_steps:,}  {line}"
            print(line, flush=True) if self.training_bar is None else self.training_bar.write(line)

    def on_train_end(self, args, state, control, **kwargs):
        self.is_training = False
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


def log_line(logs: Mapping[str, float], evaluation: Evaluation | None, best_metric: str | None = None) -> str:
    """
    Format the main values of a log as one line.

    Args:
        logs (`Mapping[str, float]`): Values that the trainer logged.
        evaluation ([`Evaluation`], *optional*): Last evaluation, whose primary metric is shown.
        best_metric (`str`, *optional*): Metric that selects the best checkpoint, which is also shown.

    Returns:
        `str`: A line such as `"epoch 0.50  loss 2.346  learning_rate 5e-05"`; empty for other logs, such as the final
        summary.
    """
    prefix = next((name.removesuffix("_runtime") for name in logs if name.endswith("_runtime")), None)
    if prefix is None:
        shown = {name: logs[name] for name in LOGGED if name in logs}
    elif prefix != "train" and evaluation is not None:
        names = (evaluation.primary_metric, (best_metric or "").removeprefix(f"{prefix}_"), "loss")
        keys = dict.fromkeys(f"{prefix}_{name}" for name in names)
        shown = {key: logs[key] for key in keys if key in logs}
    else:
        return ""
    numbers = [f"{name} {format_number(name, value)}" for name, value in shown.items()]
    return "  ".join([f"epoch {logs['epoch']:.2f}", *numbers] if "epoch" in logs else numbers)


def main_metrics(evaluation: Evaluation) -> list[str]:
    """
    Return the names of the main metrics: the primary one, related ones with an interval, and the loss.

    Related to `text_to_video_R@1` are the other metrics of that direction and the recall at 1 of other directions;
    related to `accuracy` are the accuracies by type, and all metrics of classification are related.
    """
    primary = evaluation.primary_metric
    names = [] if primary is None else [primary]
    if primary is not None:
        end = next((column for column in glossary.RETRIEVAL_COLUMNS if primary.endswith(column)), primary)
        direction = primary.removesuffix(end)
        names += [
            name
            for name in evaluation.intervals
            if name.endswith(end)
            or (direction and name.startswith(direction))
            or (primary.endswith(glossary.CLASSIFICATION_METRICS) and name.endswith(glossary.CLASSIFICATION_METRICS))
        ]
    chance = evaluation.chance  # 1 for recalls at more than there are clips, which say nothing
    known = [name for name in (*names, "loss") if name in evaluation.metrics]
    return list(dict.fromkeys(name for name in known if name in (primary, "loss") or chance.get(name) != 1))


def results_table(title: str, evaluation: Evaluation) -> str:
    """
    Format the main metrics as a table.

    Args:
        title (`str`): Start of the heading; the counts follow.
        evaluation ([`Evaluation`]): Evaluation whose metrics are shown.
    """
    chance = evaluation.chance
    num_queries = glossary.numbers_of_queries(evaluation.metrics, evaluation.counts)
    rows = [("", "value", "95 % interval", "chance")]
    for name in main_metrics(evaluation):
        rows.append(
            (
                words(name),
                format_number(name, evaluation.metrics[name], num_queries.get(name)),
                format_interval(name, evaluation.intervals, num_queries.get(name)),
                format_chance(name, chance[name], num_queries.get(name)) if name in chance else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    counts = ", ".join(f"{count:,} {words(name)}" for name, count in evaluation.counts.items() if count)
    primary = evaluation.primary_metric or ""
    if primary in evaluation.intervals and evaluation.intervals[primary][0] <= chance.get(primary, -math.inf):
        lines.append(f"The interval of {words(primary)} includes chance: the model may be guessing.")
    return "\n".join([f"{title}: {counts}", *lines])


def training_line(metrics: Mapping[str, float], num_steps: int, *, num_now: int) -> str:
    """
    Format a summary of the training as one line.

    Args:
        metrics (`Mapping[str, float]`): The `metrics` that `trainer.train()` returned.
        num_steps (`int`): Number of steps at the end of training.
        num_now (`int`): Number of these steps that were taken since the last resume, which the time covers.
    """
    duration = datetime.timedelta(seconds=round(metrics["train_runtime"]))
    resumed = f", {num_now:,} of them now" if num_now < num_steps else ""
    return (
        f"Training: {num_steps:,} steps{resumed} (epoch {metrics['epoch']:.4g}), {duration}, "
        f"{metrics['train_samples_per_second']:,.1f} samples/s, mean loss {metrics['train_loss']:.4g}"
    )
