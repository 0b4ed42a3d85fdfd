"""Towers, fusion and losses: tensors in, tensors out. The heads live with their tasks."""

from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.modeling import MultimodalModel
from simple_multimodal.models.outputs import MultimodalOutput

__all__ = ["MultimodalConfig", "MultimodalModel", "MultimodalOutput"]
