"""The model card beside a saved model: what it is made of, what was measured, and how to load it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.report import JSONValue, flatten, format_number

TAGS = ("multimodal", "text", "audio", "video", "simple-multimodal")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    training_counts: Mapping[str, int],
    run: Mapping[str, JSONValue],
    dataset_name: str,
    base_models: Sequence[str],
    task: str = "pre-training",
    intervals: Mapping[str, Interval] | None = None,
    model_name: str | None = None,
    license: str | None = None,
) -> Path:
    """
    Write `README.md` with Hugging Face metadata and the measured numbers into the folder of a saved model.

    Args:
        folder (`str` or `os.PathLike`): Folder that `save_pretrained` wrote; its `config.json` names the model class.
        metrics (`Mapping[str, float]`): Metrics by name; empty if nothing was measured.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): What the numbers are over.
        training_counts (`Mapping[str, int]`): What the model was trained on, e.g. rows, clips, skipped samples.
        run (`Mapping`): Content of `run.json`; `command` and `versions` are shown first. Hand in no secrets.
        dataset_name (`str`): Name of the data set that was evaluated on, not a path of this machine.
        base_models (`Sequence[str]`):
            What the towers and the fusion were loaded from, hub names or local folders; empty if from nothing. Of a
            local folder only its name is written, and not into the metadata, where it would be taken for a hub name.
        task (`str`, *optional*, defaults to `"pre-training"`): What the model was trained for.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals by metric name.
        model_name (`str`, *optional*, defaults to the name of `folder`): Name of the model.
        license (`str`, *optional*): Licence of the weights as the hub abbreviates it, e.g. `apache-2.0`.

    Returns:
        `Path` of the file written.

    Raises:
        ValueError: If `folder` has no `config.json` that names a model class, or if `run` has no `command` (a string)
            or no `versions` (a mapping), or if a metric is not finite.
    """
    folder = Path(folder)
    intervals = intervals or {}
    architecture = _architecture(folder)
    command, versions = run.get("command"), run.get("versions")
    if not isinstance(command, str) or not isinstance(versions, Mapping):
        raise ValueError(
            f"The model card needs the `command` (a string) and the `versions` (a mapping) of the run, got "
            f"{sorted(run)}. Pass what run.json holds."
        )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"Metric {name!r} is {value}; a model card holds finite numbers. Leave it out.")
    model_name = folder.resolve().name if model_name is None else model_name
    hub_models = [name for name in base_models if HUB_NAME.fullmatch(name) and not Path(name).exists()]
    shown_models = [name if name in hub_models else Path(name).name for name in base_models]

    metadata = ModelCardData(
        library_name="transformers",
        license=license,
        tags=[*TAGS, task],
        base_model=hub_models or None,
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_name,
                dataset_name=dataset_name,
                metric_type=name,
                metric_name=name,
                metric_value=value,
                dataset_args={"protocol": protocol, "counts": dict(counts)},
            )
            for name, value in metrics.items()
        ]
        or None,
    )
    quoted_name = json.dumps(model_name, ensure_ascii=False)
    arguments = flatten({name: value for name, value in run.items() if name not in ("command", "versions")})
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {_plain(model_name)}",
        f"`{architecture}` over text, audio and video, trained with simple_multimodal ({_plain(task)}).",
        "Built on " + ", ".join(_code(name) for name in shown_models) + "."
        if shown_models
        else "All weights were trained from a random start; no pretrained model is part of it.",
        "## How to load it",
        _fence(
            "python",
            f"from simple_multimodal import {architecture}\n"
            "from simple_multimodal.processing import MultimodalProcessor\n\n"
            f"model = {architecture}.from_pretrained({quoted_name})  # this folder, or its name on the hub\n"
            f"processor = MultimodalProcessor.from_pretrained({quoted_name})",
        ),
        "## What was measured",
        _measured(metrics, protocol, counts, dataset_name, intervals),
        "## Training data",
        _table(("what", "number"), [(_plain(name), f"{count:,}") for name, count in training_counts.items()])
        if training_counts
        else "Not stated.",
        "## How to train it again",
        _fence("bash", command),
        _table(
            ("software", "version"), [(_plain(name), _plain(version)) for name, version in flatten(versions).items()]
        ),
    ]
    if arguments:
        rows = _table(("name", "value"), [(_plain(name), _plain(value)) for name, value in arguments.items()])
        sections.append(f"<details><summary>All arguments ({len(arguments)})</summary>\n\n{rows}\n\n</details>")
    path = folder / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def _architecture(folder: Path) -> str:
    """Name of the model class in `config.json`."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{str(folder)!r} holds no config.json. Call save_pretrained on the model before its card.")
    architectures = json.loads(config_file.read_text(encoding="utf-8")).get("architectures")
    if not architectures:
        raise ValueError(
            f"{str(config_file)!r} names no model class in `architectures`. Write it with save_pretrained."
        )
    return architectures[0]


def _measured(
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    dataset_name: str,
    intervals: Mapping[str, Interval],
) -> str:
    if not metrics:
        return "Nothing was measured."
    over = ", ".join(f"{count:,} {_plain(name.replace('_', ' '))}" for name, count in counts.items())
    rows = []
    for name, value in metrics.items():
        ends = [format_number(name, end) for end in intervals[name]] if name in intervals else []
        rows.append((_code(name), format_number(name, value), " – ".join(ends)))
    return (
        f"On {_plain(dataset_name)}, protocol {_code(protocol)}{f', over {over}' if over else ''}. Recalls and "
        "accuracies are fractions; ties count against the model. Intervals are bootstrapped by clip.\n\n"
        + _table(("metric", "value", "95 % interval"), rows)
    )


def _plain(text: str) -> str:
    """Keep text from acting as Markdown or HTML, and on one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", text)


def _code(text: str) -> str:
    """Inline code; a backtick or bar, which would end it or its table cell, is dropped."""
    return f"`{' '.join(text.split()).replace('`', '').replace('|', '')}`"


def _fence(language: str, content: str) -> str:
    """Code block whose fence is longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
