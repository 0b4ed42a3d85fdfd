"""Media files to arrays: frame index, frame sampling, exact decoding, and sound aligned with the picture."""

from simple_multimodal.media.audio import has_audio, read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex, index_video, with_index
from simple_multimodal.media.sampling import SAMPLING_STRATEGIES, SamplingStrategy, sample_positions
from simple_multimodal.media.video import VIDEO_BACKENDS, VideoBackend, get_video_backend

__all__ = [
    "SAMPLING_STRATEGIES",
    "VIDEO_BACKENDS",
    "FrameIndex",
    "MediaError",
    "SamplingStrategy",
    "VideoBackend",
    "get_video_backend",
    "has_audio",
    "index_video",
    "read_audio",
    "sample_positions",
    "with_index",
]
