"""TimeSformer as a video encoder."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, TimesformerConfig, TimesformerForVideoClassification, TimesformerModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Conversion, Encoder, EncoderOutput
from simple_multimodal.models.patches import normalize_pixels


class TimesformerVideoEncoder(Encoder, TimesformerModel):
    """
    TimeSformer ([Bertasius et al., 2021](https://huggingface.co/papers/2102.05095)), whose attention is eager only.

    Args:
        config ([`TimesformerConfig`]): Sizes of the tower, which takes exactly `num_frames` frames of `image_size`.
        image_mean, image_std (`Sequence[float]`, *optional*, default to those of ImageNet):
            Normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.
    """

    modality = "video"
    model_type = "timesformer"
    pretrained_class = TimesformerForVideoClassification
    pretrained_names = {"timesformer.": "encoder."}
    uses_own_processor = True

    def __init__(
        self,
        config: TimesformerConfig,
        *,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        super().__init__(config)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer whose output is one tensor; activation checkpointing may need its gradients."""
        return self.get_submodule("embeddings.patch_embeddings.projection")

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames and their size."""
        return {"num_frames": config.num_frames, "size": config.image_size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy the config for clips of `num_frames` frames of `height` by `width` pixels.

        Raises:
            ValueError: If the frames are not square, the patches do not tile them, or no attention is over time.
        """
        if height != width or not isinstance(config.patch_size, int) or height % config.patch_size:
            raise InputError(
                f"The clips have frames of {height} by {width} pixels, but TimeSformer takes square ones in patches "
                f"of {config.patch_size}: set size of the video processor (video_size) to a multiple of that."
            )
        if config.attention_type == "space_only":
            raise InputError(
                "This TimeSformer has attention_type 'space_only', in which frames do not attend to each other. Use a "
                "checkpoint with 'divided_space_time' or 'joint_space_time'."
            )
        config = deepcopy(config)
        config.num_frames, config.image_size = num_frames, height
        return config

    @property
    def tokens_per_step(self) -> int:
        """Number of patches of a frame."""
        return (self.config.image_size // self.config.patch_size) ** 2

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's clips are not `num_frames` frames of `height` by `width` pixels."""
        expected = (self.config.num_frames, self.config.image_size, self.config.image_size)
        if (num_frames, height, width) != expected:
            raise InputError(
                f"The clips have {num_frames} frames of {height} by {width} pixels, but the video tower takes "
                f"{expected[0]} frames of {expected[1]} by {expected[2]}. Set num_frames and size of the video "
                "processor to these."
            )

    def forward(self, pixel_values_videos: torch.Tensor, video_seconds: torch.Tensor) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating-point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.

        Returns:
            [`EncoderOutput`]: Tokens in the order (time, height, width), without the class token, which has no time.
        """
        _, num_frames, _, height, width = pixel_values_videos.shape
        self.check_inputs(num_frames, height, width)
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        states = TimesformerModel.forward(self, pixels.to(self.dtype)).last_hidden_state[:, 1:]
        states = states.unflatten(1, (-1, num_frames)).transpose(1, 2)  # (batch, time, patches of a frame, hidden)
        seconds = video_seconds.repeat_interleave(states.shape[2], dim=1)
        return EncoderOutput(states.flatten(1, 2), torch.ones_like(seconds, dtype=torch.bool), seconds)

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """Convert position and time tables of another length: use the nearest entry, as the stock class does."""
        if source.shape == target.shape or source.shape[-1] != target.shape[-1]:
            return None
        if name == "encoder.embeddings.time_embeddings":
            tensor = F.interpolate(source.transpose(1, 2), size=target.shape[1], mode="nearest").transpose(1, 2)
            return Conversion(tensor, f"nearest of {source.shape[1]} for {target.shape[1]} frames")
        if name == "encoder.embeddings.position_embeddings":
            old, new = (config.image_size // config.patch_size for config in (source_config, self.config))
            grid = source[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(new, new), mode="nearest").permute(0, 2, 3, 1).flatten(1, 2)
            tensor = torch.cat([source[:, :1], grid], dim=1)
            return Conversion(tensor, f"nearest of {old}x{old} for {new}x{new} patches")
        return None
