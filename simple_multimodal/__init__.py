"""Train and use models over text, audio and video."""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_PLACES = {
    "AlproConfig": "alpro",
    "AlproForQuestionAnswering": "alpro",
    "AlproForRetrieval": "alpro",
    "AlproModel": "alpro",
    "MultimodalConfig": "models",
    "MultimodalForPreTraining": "tasks.retrieval.modeling",
    "MultimodalForQuestionAnswering": "tasks.question_answering.modeling",
    "MultimodalForRetrieval": "tasks.retrieval.modeling",
    "MultimodalModel": "models",
    "MultimodalProcessor": "processing",
    "MultimodalTrainer": "training.trainer",
    "MultimodalTrainingArguments": "training.arguments",
    "QuestionAnswerer": "tasks.question_answering.answerer",
    "Retriever": "tasks.retrieval.retriever",
    "RowDataset": "data.rows",
    "Task": "tasks",
    "TaskOptions": "tasks",
    "TowerFeatures": "inference.features",
    "from_towers": "tasks.models",
    "load": "tasks.models",
    "open_video": "media",
    "read_audio": "media",
    "register_task": "tasks",
}
"""The module of each public name; it is imported when the name is first used."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
