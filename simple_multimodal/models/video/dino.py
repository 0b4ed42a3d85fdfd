"""DINOv2 (with and without registers) and DINOv3 (ViT and ConvNeXt) over each frame as video encoders."""

import torch
from torch import nn
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ConvNextModel, DINOv3ViTModel, PreTrainedConfig

from simple_multimodal.models.video.images import FrameEncoder


class DinoEncoder(FrameEncoder):
    """Base of these towers, which only provide tokens, a class token first."""

    pretrained_names = {"": "encoder."}
    untrained = ("embeddings.mask_token",)  # of the objective that they were trained with


class Dinov2VideoEncoder(DinoEncoder, Dinov2Model):
    """
    The ViT of DINOv2 ([Oquab et al., 2023](https://huggingface.co/papers/2304.07193)) over each frame; see
    [`FrameEncoder`].

    Args:
        config ([`Dinov2Config`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "dinov2"
    pretrained_class = Dinov2Model

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See [`ImageEncoder.encode_images`]."""
        return Dinov2Model.forward(self, pixels).last_hidden_state, None


class Dinov2WithRegistersVideoEncoder(DinoEncoder, Dinov2WithRegistersModel):
    """
    DINOv2 with register tokens ([Darcet et al., 2023](https://huggingface.co/papers/2309.16588)) over each frame,
    behind the class token; see [`FrameEncoder`].

    Args:
        config ([`Dinov2WithRegistersConfig`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "dinov2_with_registers"
    pretrained_class = Dinov2WithRegistersModel

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See [`ImageEncoder.encode_images`]."""
        return Dinov2WithRegistersModel.forward(self, pixels).last_hidden_state, None


class DINOv3VideoEncoder(DinoEncoder, DINOv3ViTModel):
    """
    The ViT of DINOv3 ([Siméoni et al., 2025](https://huggingface.co/papers/2508.10104)) over each frame, with register
    tokens behind the class token; see [`FrameEncoder`]. Its positions are not shifted and scaled at random in
    training, because one random choice would apply to all frames of a pass.

    Args:
        config ([`DINOv3ViTConfig`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "dinov3_vit"
    pretrained_class = DINOv3ViTModel

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """See [`FrameEncoder.fit_config`]."""
        config = super().fit_config(config, num_frames, height, width)
        config.pos_embed_shift = config.pos_embed_jitter = config.pos_embed_rescale = None
        return config

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See [`ImageEncoder.encode_images`]."""
        return DINOv3ViTModel.forward(self, pixels).last_hidden_state, None


class DINOv3ConvNextVideoEncoder(DinoEncoder, DINOv3ConvNextModel):
    """
    The ConvNeXt of DINOv3 ([Siméoni et al., 2025](https://huggingface.co/papers/2508.10104)) over each frame: the mean
    over its last feature map, then the positions of the map; see [`FrameEncoder`].

    Args:
        config ([`DINOv3ConvNextConfig`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "dinov3_convnext"
    pretrained_class = DINOv3ConvNextModel

    @property
    def hidden_size(self) -> int:
        """Number of channels of the last stage."""
        return self.config.hidden_sizes[-1]

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the blocks of all stages, each stage's first block with its downsampling layers."""
        groups: list[list[nn.Parameter]] = []
        for stage in self.model.stages:
            first, *others = stage.layers
            smaller = [parameter for layer in stage.downsample_layers for parameter in layer.parameters()]
            groups += [[*smaller, *first.parameters()], *(list(layer.parameters()) for layer in others)]
        return groups

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See [`ImageEncoder.encode_images`]."""
        return DINOv3ConvNextModel.forward(self, pixels).last_hidden_state, None
