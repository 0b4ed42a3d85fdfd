"""Lists of labels, such as answers or classes: read from a file, taken from a saved model, and numbered."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simple_multimodal.assembly import saved_config
from simple_multimodal.errors import InputError
from simple_multimodal.models.base import TowerModel


def numbered(labels: Sequence[str]) -> dict[str, Any]:
    """Return `label2id` and `id2label` of labels in their order, as settings of a configuration."""
    return {
        "label2id": {label: number for number, label in enumerate(labels)},
        "id2label": dict(enumerate(labels)),
    }


def read_labels(file: str | os.PathLike[str], option: str) -> list[str]:
    """
    Read a list of labels: one per line; or in a `.json` file a list, or an object that maps each label to its number.

    Args:
        file (`str` or `os.PathLike`): The file; one that begins with `{` is JSON, whatever its name.
        option (`str`): Option that names the file, for messages.

    Raises:
        ValueError: If the file cannot be read, a label is blank or occurs twice, there are fewer than two, **or** the
            numbers of an object are not those from 0.
    """
    named = f"{option}={os.fspath(file)!r}"
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
        is_object = text.startswith("{")
        is_json = is_object or Path(file).suffix == ".json"
        content: Any = json.loads(text, object_pairs_hook=list) if is_json else text.splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{named} cannot be read as text or JSON: {error}") from error
    if is_object:
        by_number = {number: label for label, number in content if type(number) is int}
        if len(by_number) < len(content) or set(by_number) != set(range(len(content))):
            raise InputError(f"{named} must contain a JSON object of two or more labels, numbered from 0.")
        content = [by_number[number] for number in range(len(content))]
    if not isinstance(content, list) or not all(isinstance(label, str) and label.strip() for label in content):
        raise InputError(f"{named}: a label is blank, or not a string. Write one label per line, or a JSON list.")
    labels = [label.strip() for label in content]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"{named} contains a label twice: {', '.join(map(repr, twice[:3]))}. Leave one out.")
    if len(labels) < 2:
        raise InputError(f"{named} has {len(labels)} labels; at least two are needed.")
    return labels


def label_settings(
    model_classes: Mapping[str, type[TowerModel]],
    source: str | os.PathLike[str] | None,
    labels: Sequence[str] | None,
    option: str,
    from_rows: Callable[[], Sequence[str]],
) -> dict[str, Any]:
    """
    Return the labels that a model should know, as settings of its configuration. A saved model of the task keeps its
    own, so that the result is empty.

    Args:
        model_classes (`Mapping[str, type[TowerModel]]`): Models of the task.
        source (`str`, *optional*): Saved model that the run starts from.
        labels (`Sequence[str]`, *optional*): Labels that the user named.
        option (`str`): Option that named them, for messages.
        from_rows (`Callable`): Function that returns the labels of the training rows, called if nothing else has any.

    Raises:
        ValueError: If the saved model has other labels than those that the user named.
    """
    config = {} if source is None else saved_config(source)
    if config.get("architectures") in [[model.__name__] for model in model_classes.values()]:
        label2id = config.get("label2id") or {}
        own = sorted(label2id, key=label2id.__getitem__)
        if labels is not None and list(labels) != own:
            order = ", in another order" if sorted(labels) == sorted(own) else ""
            raise InputError(
                f"{source} is already trained for this task, with other labels than those of {option}{order}. Leave "
                f"{option} out."
            )
        return {}
    return numbered(labels if labels is not None else from_rows())
