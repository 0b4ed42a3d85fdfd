"""The video tower of PE-AV as a video encoder."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.pe_video.configuration_pe_video import PeVideoEncoderConfig
from transformers.models.pe_video.modeling_pe_video import PeVideoContrastiveHead, PeVideoEncoder
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.patches import normalize_pixels
from simple_multimodal.models.pe_av import PEAVEncoder, prepare_images, require_timm

DEFAULT_NUM_FRAMES = 16
"""Default number of frames of a clip."""


class PEAVVideoEncoder(PEAVEncoder, PeVideoEncoder):
    """
    The video tower of PE-AV, see [`PEAVEncoder`]: a ViT of `timm` embeds each frame, and a transformer lets the frames
    attend to each other, any number of them. A frame is one token.

    Args:
        config ([`PeVideoEncoderConfig`]): Sizes of the tower; also `projection_dim`, the size of its embedding.
        image_mean, image_std (`Sequence[float]`, *optional*, default to 0.5):
            Normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.

    Raises:
        ValueError: If `timm` is not installed.
    """

    modality = "video"
    model_type = "pe_video_encoder"
    pretrained_names = {"video_encoder.": "encoder.", "video_head.": "encoder.video_head."}
    other_names = ("text_", "audio_", "video_plus_text_")
    tokens_are_all = False

    def __init__(
        self,
        config: PeVideoEncoderConfig,
        *,
        image_mean: Sequence[float] = IMAGENET_STANDARD_MEAN,
        image_std: Sequence[float] = IMAGENET_STANDARD_STD,
    ):
        prepare_images(config)
        super().__init__(config)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        size = self.embedding_size(config)
        self.video_head = None if size is None else PeVideoContrastiveHead(config.hidden_size, size)
        self.post_init()

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames, their size, and the normalisation that the tower was trained with."""
        height, width = _frame_size(config)
        normalisation = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
        return {"num_frames": DEFAULT_NUM_FRAMES, "size": {"height": height, "width": width}, **normalisation}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy the config, in which nothing has to change.

        Raises:
            ValueError: If the frames have another size than the tower's.
        """
        _check_size(config, height, width)
        return deepcopy(config)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the layers of `timm` only keep their inputs; set together with that of all layers."""
        return bool(self.embedder.vision_model.timm_model.grad_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.embedder.vision_model.timm_model.set_grad_checkpointing(enable)

    @property
    def tokens_per_step(self) -> int:
        """Every token is a frame."""
        return 1

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's frames are not of `height` by `width` pixels."""
        _check_size(self.config, height, width)

    def forward(self, pixel_values_videos: torch.Tensor, video_seconds: torch.Tensor) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating-point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.

        Returns:
            [`EncoderOutput`]: One token per frame.
        """
        self.check_inputs(*pixel_values_videos.shape[1:2], *pixel_values_videos.shape[3:])
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        outputs = PeVideoEncoder.forward(self, pixels.to(self.dtype).contiguous())
        embedding = None if self.video_head is None else self.video_head(outputs.pooler_output)
        mask = torch.ones_like(video_seconds, dtype=torch.bool)
        return EncoderOutput(outputs.last_hidden_state, mask, video_seconds, embedding=embedding)


def _check_size(config: PreTrainedConfig, height: int, width: int) -> None:
    own = _frame_size(config)
    if (height, width) != own:
        raise InputError(
            f"The clips have frames of {height} by {width} pixels, but PE-AV's video tower takes {own[0]} by "
            f"{own[1]}. Set size of the video processor (video_size) to that."
        )


def _frame_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Return height and width of the frames that a tower takes, in pixels."""
    require_timm()
    from timm.models import get_pretrained_cfg

    frames = config.vision_config
    size = (frames.model_args or {}).get("img_size")
    if size is None:
        size = get_pretrained_cfg(frames.architecture).input_size[1:]
    return (size, size) if isinstance(size, int) else tuple(size)
