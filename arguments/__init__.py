"""Command line of `train.py`: three dataclasses, the options of the task, and the parser that fills them."""

from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.training.arguments import MultimodalTrainingArguments

from .data_arguments import DataArguments
from .model_arguments import ModelArguments
from .parser import parse_args

__all__ = ["DataArguments", "ModelArguments", "MultimodalTrainingArguments", "TaskOptions", "parse_args"]
