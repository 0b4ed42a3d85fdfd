"""The command line of `train.py`: three dataclasses and the parser that fills them."""

from simple_multimodal.training.arguments import MultimodalTrainingArguments

from .data_arguments import DataArguments
from .model_arguments import ModelArguments
from .parser import parse_args

__all__ = ["DataArguments", "ModelArguments", "MultimodalTrainingArguments", "parse_args"]
