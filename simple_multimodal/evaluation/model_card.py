"""The model card of a saved model: how to use it, what it was built from, and how well it performs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation import glossary
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.rendering import (
    JSONValue,
    flatten,
    format_chance,
    format_interval,
    format_number,
    render,
)
from simple_multimodal.evaluation.result_files import check_names, write_whole

TAGS = ("multimodal", "simple-multimodal")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    task: str,
    modalities: Sequence[str],
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    training_counts: Mapping[str, int],
    run: Mapping[str, JSONValue],
    dataset_name: str,
    base_models: Sequence[str],
    notes: Sequence[str] = (),
    primary_metric: str | None = None,
    intervals: Mapping[str, Interval] | None = None,
    settings: Mapping[str, JSONValue] | None = None,
    usage: str | None = None,
    model_name: str | None = None,
    license: str | None = None,
    chance: Mapping[str, float] | None = None,
) -> Path:
    """
    Write `README.md` with Hugging Face metadata and the measured numbers into the folder of a saved model.

    Args:
        folder (`str` or `os.PathLike`): Folder that `save_pretrained` wrote; its `config.json` names the model class.
        task (`str`): Task that the model was trained for; a tag of the card.
        modalities (`Sequence[str]`): Modalities of the model, e.g. `("text", "video")`; tags of the card.
        metrics (`Mapping[str, float]`): Metrics by name; empty if nothing was measured.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): Numbers of queries, clips etc. that the metrics are computed over.
        training_counts (`Mapping[str, int]`): Numbers of rows, clips, bad samples etc. in training.
        run (`Mapping`): Content of `run.json`; `command` and `versions` are shown first. Must not contain secrets.
        notes (`Sequence[str]`, *optional*): Sentences about the command, shown under it.
        dataset_name (`str`): Name of the evaluation data set, not a path on this machine.
        base_models (`Sequence[str]`):
            Hub names or local folders that the weights were loaded from; empty if trained from scratch. Only the name
            of a local folder is written, and not into the metadata, where it would look like a hub name.
        primary_metric (`str`, *optional*): Name of the metric that sums up the run; it is shown first.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals by metric name.
        settings (`Mapping`, *optional*): The settings of the run that matter most, JSON values by name.
        usage (`str`, *optional*): Python code that uses the model, with `{model}` for its name as a string literal.
        model_name (`str`, *optional*, defaults to the name of `folder`): Name of the model.
        license (`str`, *optional*): License of the weights as abbreviated on the hub, e.g. `apache-2.0`.
        chance (`Mapping[str, float]`, *optional*): Chance levels by metric name that do not follow from the metrics.

    Returns:
        `Path` of the file written.

    Raises:
        ValueError: If `folder` has no `config.json` that names a model class, if `run` has no `command` (a string) or
            no `versions` (a mapping), `primary_metric` or an interval is not one of the metrics, **or** a metric is
            not finite.
    """
    folder = Path(folder)
    intervals = intervals or {}
    check_names(metrics, intervals, primary_metric)
    architecture = _architecture(folder)
    command, versions = run.get("command"), run.get("versions")
    if not isinstance(command, str) or not isinstance(versions, Mapping):
        raise InputError(
            f"The model card needs the `command` (a string) and the `versions` (a mapping) of the run, got "
            f"{sorted(run)}. Pass the content of run.json."
        )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"Metric {name!r} is {value}, but a model card needs finite numbers. Leave it out.")
    model_name = folder.resolve().name if model_name is None else model_name
    hub_models = [name for name in base_models if HUB_NAME.fullmatch(name) and not Path(name).exists()]
    measured = sorted(
        (name for name in metrics if not isinstance(metrics[name], int)), key=lambda name: name != primary_metric
    )
    metadata = ModelCardData(
        library_name="transformers",
        license=license,
        tags=[*TAGS, *modalities, task],
        base_model=hub_models or None,
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_name,
                dataset_name=dataset_name,
                metric_type=name,
                metric_name=name,
                metric_value=metrics[name],
                dataset_args={"protocol": protocol, "counts": dict(counts)},
            )
            for name in measured
        ]
        or None,
    )
    quoted_name = json.dumps(model_name, ensure_ascii=False)
    loading = (
        f"from simple_multimodal.models import {architecture}\n"
        "from simple_multimodal.processing import MultimodalProcessor\n\n"
        f"model = {architecture}.from_pretrained({quoted_name})  # this folder, or its name on the hub\n"
        f"processor = MultimodalProcessor.from_pretrained({quoted_name})"
    )
    levels = glossary.chance_levels(metrics) | dict(chance or {})
    num_queries = glossary.numbers_of_queries(metrics, counts)
    card = render(
        "model_card.md.jinja",
        filters={
            "plain": _plain,
            "code": _code,
            "fence": _fence,
            "number": lambda value, name="": format_number(name, value, num_queries.get(name)),
            "interval": lambda name: format_interval(name, intervals, num_queries.get(name)),
            "meaning": glossary.meaning,
        },
        metadata=Markup(metadata.to_yaml()),
        model_name=model_name,
        architecture=architecture,
        modalities=" and ".join(part for part in (", ".join(modalities[:-1]), *modalities[-1:]) if part),
        task=task,
        base_models=[name if name in hub_models else Path(name).name for name in base_models],
        primary_metric=primary_metric,
        metrics=metrics,
        intervals=intervals,
        chance={name: format_chance(name, level, num_queries.get(name)) for name, level in levels.items()},
        usage=None if usage is None else usage.replace("{model}", quoted_name),
        loading=loading,
        inputs=_describe_inputs(folder),
        dataset_name=dataset_name,
        counts=counts,
        protocol=protocol,
        training_counts=training_counts,
        command=command,
        notes=notes,
        settings=flatten(settings or {}),
        versions=flatten(versions),
        arguments=flatten({name: value for name, value in run.items() if name not in ("command", "versions")}),
    )
    path = folder / "README.md"
    # A lone surrogate, which a name read from JSON may contain, cannot be encoded in UTF-8.
    write_whole(path, [card.encode("utf-8", errors="backslashreplace").decode("utf-8")])
    return path


def _architecture(folder: Path) -> str:
    """Return the name of the model class in `config.json`."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{str(folder)!r} has no config.json. Call save_pretrained before writing the model card.")
    architectures = json.loads(config_file.read_text(encoding="utf-8")).get("architectures")
    if not architectures:
        raise InputError(f"{str(config_file)!r} has no model class in `architectures`. Write it with save_pretrained.")
    return architectures[0]


def _describe_inputs(folder: Path) -> dict[str, str]:
    """Describe in words how the saved processor reads audio, video and poses; empty without a processor."""
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    inputs: dict[str, str] = {}
    if audio := processor.get("feature_extractor"):
        seconds = audio["num_frames"] * audio["hop_seconds"]
        windows = "windows" if audio["max_windows"] is None else f"at most {audio['max_windows']} windows"
        inputs["audio"] = f"mono, {audio['sampling_rate']:,} Hz, {windows} of {seconds:g} seconds"
    if video := processor.get("video_processor"):
        size = video["size"]
        inputs["video"] = f"{video['num_frames']} frames of {size['width']} × {size['height']} pixels, RGB"
    if pose := processor.get("pose_processor"):
        rate = "" if pose["target_rate"] is None else f", {pose['target_rate']:g} frames per second"
        inputs["pose"] = f"{pose['num_features']} numbers per frame{rate}, {pose['points']} points"
    return inputs


def _plain(text: str) -> Markup:
    """Escape Markdown and HTML in text, and put it on one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", text))


def _code(text: str) -> Markup:
    """Format text as inline code without backticks and bars, which would end it or its table cell."""
    return Markup(f"`{' '.join(text.split()).replace('`', '').replace('|', '')}`")


def _fence(content: str, language: str) -> Markup:
    """Format a code block with a fence that is longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{content}\n{fence}")
