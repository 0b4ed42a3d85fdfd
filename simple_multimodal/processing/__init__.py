"""Convert arrays to tensors: log-mel features, clips, poses, tokens, and the processor that combines them."""

from transformers import AutoFeatureExtractor, AutoProcessor, AutoVideoProcessor, PreTrainedConfig

from simple_multimodal.processing.feature_extraction_audio import AudioFeatureExtractor, AudioFeatures
from simple_multimodal.processing.pose_processing import PoseProcessor, PoseSequence
from simple_multimodal.processing.processing_multimodal import MultimodalProcessor
from simple_multimodal.processing.video_processing import VideoClip, VideoClipProcessor

__all__ = [
    "AudioFeatureExtractor",
    "AudioFeatures",
    "MultimodalProcessor",
    "PoseProcessor",
    "PoseSequence",
    "VideoClip",
    "VideoClipProcessor",
]


class _ProcessingConfig(PreTrainedConfig):
    """Key for the auto classes, so that they find our classes by the name saved in `processor_config.json`.

    They require a model configuration; with this one, loading a processor does not import a model.
    """

    model_type = "simple_multimodal_processing"


AutoFeatureExtractor.register(_ProcessingConfig, AudioFeatureExtractor)
AutoVideoProcessor.register(_ProcessingConfig, VideoClipProcessor)
AutoProcessor.register(_ProcessingConfig, MultimodalProcessor)
