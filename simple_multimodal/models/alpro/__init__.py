"""ALPRO, for retrieval and question answering."""

from simple_multimodal.models.alpro.configuration import AlproConfig
from simple_multimodal.models.alpro.modeling import AlproForQuestionAnswering, AlproForRetrieval, AlproModel

__all__ = ["AlproConfig", "AlproForQuestionAnswering", "AlproForRetrieval", "AlproModel"]
