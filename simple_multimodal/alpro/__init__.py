"""ALPRO: its architecture, and the reader of its original checkpoints."""

from simple_multimodal.alpro.configuration import AlproConfig
from simple_multimodal.alpro.conversion import load_alpro
from simple_multimodal.alpro.modeling import AlproForQuestionAnswering, AlproForRetrieval, AlproModel

__all__ = ["AlproConfig", "AlproForQuestionAnswering", "AlproForRetrieval", "AlproModel", "load_alpro"]
