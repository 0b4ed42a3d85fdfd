"""Media files to arrays: frame index, frame sampling, exact decoding, audio aligned with the video, and poses."""

from simple_multimodal.media.audio import has_audio, read_audio
from simple_multimodal.media.backend import VideoBackend
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_features import FrameFeatures, read_frame_features
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import index_video, with_index
from simple_multimodal.media.pose import Pose, read_pose, write_pose
from simple_multimodal.media.sampling import SAMPLING_STRATEGIES, SamplingStrategy, sample_positions
from simple_multimodal.media.video import VIDEO_BACKENDS, Video, get_video_backend, open_video

__all__ = [
    "SAMPLING_STRATEGIES",
    "VIDEO_BACKENDS",
    "FrameFeatures",
    "FrameIndex",
    "MediaError",
    "Pose",
    "SamplingStrategy",
    "Video",
    "VideoBackend",
    "get_video_backend",
    "has_audio",
    "index_video",
    "open_video",
    "read_audio",
    "read_frame_features",
    "read_pose",
    "sample_positions",
    "with_index",
    "write_pose",
]
