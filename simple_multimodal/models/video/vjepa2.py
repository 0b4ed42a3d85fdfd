"""The encoder of V-JEPA 2 as a video encoder."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig, VJEPA2Config, VJEPA2Model, VJEPA2PreTrainedModel
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Encoder, EncoderOutput
from simple_multimodal.models.patches import normalize_pixels


class VJEPA2VideoEncoder(Encoder, VJEPA2PreTrainedModel):
    """
    The encoder of V-JEPA 2 ([Assran et al., 2025](https://huggingface.co/papers/2506.09985)), without its predictor.
    Positions are rotations, so any number of frames and any square size will do.

    Args:
        config ([`VJEPA2Config`]): Sizes of the tower, which takes exactly `frames_per_clip` frames of `crop_size`.
        image_mean, image_std (`Sequence[float]`, *optional*, default to those of ImageNet):
            Normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.
    """

    modality = "video"
    model_type = "vjepa2"
    pretrained_class = VJEPA2Model
    pretrained_names = {"encoder.": "encoder.encoder."}
    other_names = ("predictor.", "pooler.", "classifier.")
    uses_own_processor = True

    def __init__(
        self,
        config: VJEPA2Config,
        *,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        super().__init__(config)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.encoder = VJEPA2Encoder(config)
        self.post_init()

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames and their size."""
        return {"num_frames": config.frames_per_clip, "size": config.crop_size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy the config for clips of this size.

        Raises:
            ValueError: If the frames are not squares of whole patches, or not groups of `tubelet_size`.
        """
        patch, tubelet = config.patch_size, config.tubelet_size
        if height != width or not isinstance(patch, int) or height % patch or num_frames % tubelet:
            raise InputError(
                f"The clips have {num_frames} frames of {height} by {width} pixels, but the video tower takes squares "
                f"of patches of {patch} and frames in groups of {tubelet}. Set size and num_frames of the video "
                "processor (video_size, num_frames) accordingly."
            )
        config = deepcopy(config)
        config.frames_per_clip, config.crop_size = num_frames, height
        return config

    @property
    def tokens_per_step(self) -> int:
        """Number of patches of a group of frames."""
        return (self.config.crop_size // self.config.patch_size) ** 2

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's clips are not `num_frames` frames of `height` by `width` pixels."""
        frames, size = self.config.frames_per_clip, self.config.crop_size
        if (num_frames, height, width) != (frames, size, size):
            raise InputError(
                f"The clips have {num_frames} frames of {height} by {width} pixels, but the video tower takes "
                f"{frames} frames of {size} by {size}. Set num_frames and size of the video processor to these."
            )

    def forward(self, pixel_values_videos: torch.Tensor, video_seconds: torch.Tensor) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating-point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.

        Returns:
            [`EncoderOutput`]: Tokens in the order (time, height, width).
        """
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        self.check_inputs(num_frames, height, width)
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        tokens = self.encoder(pixels.to(self.dtype)).last_hidden_state
        seconds = video_seconds.view(batch_size, -1, self.config.tubelet_size).mean(dim=-1)
        seconds = seconds.repeat_interleave(self.tokens_per_step, dim=1)
        return EncoderOutput(tokens, torch.ones_like(seconds, dtype=torch.bool), seconds)
