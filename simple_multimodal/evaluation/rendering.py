"""Templates of reports and model cards, and the formatting of names and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jinja2
from jinja2.bccache import Bucket

from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.glossary import CLASSIFICATION_METRICS
from simple_multimodal.evaluation.retrieval import RECALL_CUTOFFS

JSONValue: TypeAlias = "str | int | float | bool | None | Sequence[JSONValue] | Mapping[str, JSONValue]"


class CompiledTemplates(jinja2.BytecodeCache):
    """Compiled templates in memory: a run renders its report at every evaluation, and compiling takes longer."""

    def __init__(self) -> None:
        self.codes: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Give a template its code, if there is one."""
        if bucket.key in self.codes:
            bucket.bytecode_from_string(self.codes[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the code of a template."""
        self.codes[bucket.key] = bucket.bytecode_to_string()


compiled_templates = CompiledTemplates()


def render(template: str, /, *, filters: Mapping[str, Any] | None = None, **values: Any) -> str:
    """
    Fill in a template of this folder.

    Args:
        template (`str`): Name of a file in `templates/`.
        filters (`Mapping[str, Callable]`, *optional*): Filters of this template in addition to `number`, `words` and
            `command`.
        values: Values of the names in the template, escaped as HTML unless they are [`~markupsafe.Markup`]. A name
            without a value is an error.

    Returns:
        `str`: The rendered text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simple_multimodal.evaluation"),
        bytecode_cache=compiled_templates,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = lambda value, name="": format_number(name, value)
    environment.filters["words"] = words
    environment.filters["command"] = to_shell
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values)


def format_number(name: str, value: float, num_queries: int | None = None) -> str:
    """
    Format a metric: counts as integers, ranks and losses with four digits, fractions with four decimals, or fewer if
    there are few queries.

    Args:
        name (`str`): Name of the metric.
        value (`float`): Its value.
        num_queries (`int`, *optional*): Number of queries behind a fraction, which limits its meaningful decimals.

    Returns:
        `str`, e.g. `0.9500` for `R@1`, `0.95` if it is over 20 queries, `1.27` for `mean_rank`, `12,000` for a count.
    """
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    recalls = (f"R@{cutoff}" for cutoff in RECALL_CUTOFFS)
    is_fraction = name.endswith(("accuracy", "share", *recalls, *CLASSIFICATION_METRICS))
    if not is_fraction:
        return f"{value:.4g}"
    decimals = 4 if num_queries is None else min(max(math.ceil(math.log10(num_queries)), 2), 4)
    return f"{value:.{decimals}f}"


def format_chance(name: str, level: float, num_queries: int | None = None) -> str:
    """Format the chance level of a metric like the metric, or with more decimals if these would all be zero."""
    text = format_number(name, level, num_queries)
    return text if float(text.replace(",", "")) or not level else format_number(name, level)


def format_interval(name: str, intervals: Mapping[str, Interval], num_queries: int | None = None) -> str:
    """Format both ends of the interval of a metric with [`format_number`]; empty for a metric without one."""
    return " – ".join(format_number(name, end, num_queries) for end in intervals[name]) if name in intervals else ""


def words(name: str) -> str:
    """Turn the name of a metric into words: `eval_text_to_video` becomes `text to video`."""
    return name.removeprefix("eval_").strip("_").replace("_", " ")


def to_shell(command: str) -> str:
    """Make a command line executable in a shell: put `python` before a script."""
    return f"python {command}" if command.partition(" ")[0].endswith(".py") else command


def flatten(values: Mapping[str, JSONValue], prefix: str = "") -> dict[str, str]:
    """
    Flatten nested mappings: `{"versions": {"torch": "2.11"}}` becomes `{"versions.torch": "2.11"}`.

    Args:
        values (`Mapping`): JSON values by name.
        prefix (`str`, *optional*, defaults to `""`): Prefix of every name.

    Returns:
        `dict[str, str]`: Strings as they are, everything else as JSON.
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
