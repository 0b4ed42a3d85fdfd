"""Towers, fusion, heads and losses: tensors in, tensors out."""

from simple_multimodal.models.alpro import AlproConfig, AlproForQuestionAnswering, AlproForRetrieval, AlproModel
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.modeling import (
    MultimodalForPreTraining,
    MultimodalForQuestionAnswering,
    MultimodalForRetrieval,
    MultimodalModel,
    MultimodalOutput,
)

__all__ = [
    "AlproConfig",
    "AlproForQuestionAnswering",
    "AlproForRetrieval",
    "AlproModel",
    "MultimodalConfig",
    "MultimodalForPreTraining",
    "MultimodalForQuestionAnswering",
    "MultimodalForRetrieval",
    "MultimodalModel",
    "MultimodalOutput",
]
