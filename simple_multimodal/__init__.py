"""Train and use models over text, audio and video."""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_PLACES = {
    "AlproConfig": "alpro",
    "AlproForQuestionAnswering": "alpro",
    "AlproForRetrieval": "alpro",
    "AlproModel": "alpro",
    "Dataset": "data.rows:RowDataset",
    "Evaluation": "tasks.registry",
    "MultimodalCollator": "data.collator",
    "MultimodalConfig": "models",
    "MultimodalForConditionalGeneration": "tasks.generation.modeling",
    "MultimodalForPreTraining": "tasks.retrieval.modeling",
    "MultimodalForQuestionAnswering": "tasks.question_answering.modeling",
    "MultimodalForRetrieval": "tasks.retrieval.modeling",
    "MultimodalForVideoClassification": "tasks.video_classification.modeling",
    "MultimodalModel": "models",
    "MultimodalOutput": "models",
    "MultimodalProcessor": "processing",
    "Protocol": "evaluation.protocols",
    "QuestionAnswerer": "tasks.question_answering.answerer",
    "RandomFrameDataset": "data.random_frames",
    "Retriever": "tasks.retrieval.retriever",
    "SplitSize": "evaluation.protocols",
    "Task": "tasks.registry",
    "TaskOptions": "tasks.registry",
    "TowerFeatures": "inference.features",
    "Trainer": "training.trainer:MultimodalTrainer",
    "Translator": "tasks.generation.translator",
    "TrainingArguments": "training.arguments:MultimodalTrainingArguments",
    "VideoClassifier": "tasks.video_classification.classifier",
    "evaluate": "tasks.measure",
    "from_towers": "tasks.models",
    "load": "tasks.models",
    "make_sign_world": "prepare.toy",
    "make_toy_world": "prepare.toy",
    "open_video": "media",
    "read_audio": "media",
    "register_benchmark": "prepare.benchmarks",
    "register_task": "tasks.registry",
}
"""Module of each public name, and its name there after a colon; imported when the name is first used."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own_name = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), own_name or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
