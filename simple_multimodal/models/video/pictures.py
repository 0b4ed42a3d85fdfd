"""What towers of single pictures share as video encoders: every frame runs through the tower by itself."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from simple_multimodal.models.base import Encoder, EncoderOutput, mean_direction
from simple_multimodal.models.patches import normalize_pixels

DEFAULT_NUM_FRAMES = 12
"""Frames of a clip where nothing else is said; as CLIP4Clip (Luo et al. 2021) takes them."""


class PictureEncoder(Encoder):
    """
    Base of video encoders that look at one frame at a time. A subclass also inherits from the stock tower and defines
    `encode_pictures`.

    A clip's embedding is the mean of its frames' embeddings, each scaled to length one before: the parameter-free form
    (`meanP`) of [CLIP4Clip](https://huggingface.co/papers/2104.08860).

    Args:
        config (`PreTrainedConfig`): sizes of the tower. It takes any number of frames, and frames of any size that its
            patches tile.
        image_mean, image_std (`Sequence[float]`, *optional*, default to those of ImageNet):
            normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.
    """

    modality = "video"
    sub_config = "vision_config"
    tokens_are_all = False
    uses_own_processor = True

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        super().__init__(config)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Number of frames and size."""
        return {"num_frames": DEFAULT_NUM_FRAMES, "size": config.image_size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        A copy of the config, in which nothing has to change: position tables are interpolated in every pass.

        Raises:
            `ValueError` if the patches do not tile the frames, or the pixels are not RGB.
        """
        patch = config.patch_size
        if not isinstance(patch, int) or height % patch or width % patch:
            raise ValueError(
                f"The clips have frames of {height} by {width} pixels, but the video tower cuts them into patches of "
                f"{patch}. Height and width must be multiples of one whole number: set size of the video processor "
                "(--video_size) to such."
            )
        if config.num_channels != 3:
            raise ValueError(f"The video tower must take RGB frames, but num_channels is {config.num_channels}.")
        return deepcopy(config)

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's patches do not tile frames of `height` by `width` pixels."""
        self.fit_config(self.config, num_frames, height, width)

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Run the tower.

        Args:
            pixels (`torch.FloatTensor` of shape `(num_pictures, 3, height, width)`): normalised.

        Returns:
            Tokens `(num_pictures, num_tokens, hidden_size)`, as the stock tower's `last_hidden_state`, and embeddings
            `(num_pictures, embedding_size)`, if it has any.
        """
        raise NotImplementedError

    def forward(self, pixel_values_videos: torch.Tensor, video_seconds: torch.Tensor) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): time of each frame in the segment.

        Returns:
            [`EncoderOutput`]: the tokens of one frame after those of the other; a class token first, if there is one.
        """
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        self.check_inputs(num_frames, height, width)
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        tokens, embedding = self.encode_pictures(pixels.flatten(0, 1).to(self.dtype))
        seconds = video_seconds.repeat_interleave(tokens.shape[1], dim=1)
        return EncoderOutput(
            tokens.reshape(batch_size, -1, tokens.shape[-1]),
            torch.ones_like(seconds, dtype=torch.bool),
            seconds,
            embedding=None if embedding is None else mean_direction(embedding.unflatten(0, (batch_size, num_frames))),
            num_steps=num_frames,
        )
