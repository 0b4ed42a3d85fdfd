"""ALPRO: its architecture, and the reader of its original checkpoints."""

from simple_multimodal.models.alpro.configuration import AlproConfig
from simple_multimodal.models.alpro.conversion import load_alpro
from simple_multimodal.models.alpro.modeling import AlproForQuestionAnswering, AlproForRetrieval, AlproModel

__all__ = ["AlproConfig", "AlproForQuestionAnswering", "AlproForRetrieval", "AlproModel", "load_alpro"]
