"""A transformer over the frames of a pose: points, or features of frames, as one token per frame."""

from copy import deepcopy
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.vit.modeling_vit import ViTLayer

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Encoder, EncoderOutput
from simple_multimodal.models.times import time_embedding


@strict
class PoseConfig(PreTrainedConfig):
    """
    Configuration of [`PoseModel`].

    Args:
        num_features (`int`, *optional*, defaults to 534): Numbers per frame, `num_features` of the [`PoseProcessor`].
        hidden_size (`int`, *optional*, defaults to 256): Size of the tokens, even.
        num_hidden_layers (`int`, *optional*, defaults to 4): Number of layers; with 0, frames are only projected and
            normalised.
        num_attention_heads, intermediate_size (`int`), hidden_act (`str`), qkv_bias (`bool`), layer_norm_eps,
            initializer_range (`float`): As in [`~transformers.ViTConfig`].
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, *optional*, default to 0.0): Dropout of the states
            and of the attention.
    """

    model_type = "pose"

    num_features: int = 534
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02


AutoConfig.register("pose", PoseConfig)


class PoseModel(PreTrainedModel):
    """
    Layers of a ViT over projected frames, to which the embedding of their times is added. There is no table of
    positions, so that a pose may have any number of frames and any rate.

    Args:
        config ([`PoseConfig`]): Sizes of the model.

    Raises:
        ValueError: If `hidden_size` is odd.
    """

    config_class = PoseConfig
    base_model_prefix = "pose"
    main_input_name = "pose_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PoseConfig):
        super().__init__(config)
        if config.hidden_size % 2:
            raise InputError(f"`hidden_size` of the pose tower is {config.hidden_size}; give an even number.")
        self.projection = nn.Linear(config.num_features, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


class PoseEncoder(Encoder, PoseModel):
    """
    The tower for poses; see [`PoseModel`].

    Args:
        config ([`PoseConfig`]): Sizes of the tower.
    """

    modality = "pose"
    model_type = "pose"
    pretrained_class = PoseModel
    pretrained_names = {"": "encoder."}

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the numbers per frame."""
        return {"num_features": config.num_features}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_features: int) -> PreTrainedConfig:
        """Copy the config for frames of `num_features` numbers."""
        config = deepcopy(config)
        config.num_features = num_features
        return config

    @property
    def tokens_per_step(self) -> int:
        """Every token is a time step."""
        return 1

    def check_inputs(self, num_features: int) -> None:
        """Raise a `ValueError` if the tower does not take frames of `num_features` numbers."""
        if num_features != self.config.num_features:
            raise InputError(
                f"The poses have {num_features} numbers per frame, but the pose tower takes "
                f"{self.config.num_features}. Set num_features of the pose processor (`pose_features`) to "
                f"{self.config.num_features}, with points, depth and files that give so many, or train another tower."
            )

    def forward(
        self, pose_values: torch.Tensor, pose_attention_mask: torch.Tensor, pose_seconds: torch.Tensor
    ) -> EncoderOutput:
        """
        Args:
            pose_values (`torch.FloatTensor` of shape `(batch_size, num_frames, num_features)`):
                Normalised coordinates, or features.
            pose_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): `True` = real.
            pose_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`):
                Time of each frame in the segment, in seconds.

        Returns:
            [`EncoderOutput`] with a token per frame.
        """
        self.check_inputs(pose_values.shape[-1])
        states = self.projection(pose_values.to(self.dtype))  # (batch, frames, hidden)
        states = self.dropout(states + time_embedding(pose_seconds, states.shape[-1]).to(states.dtype))
        mask = self._layer_mask(pose_attention_mask)
        for layer in self.layers:
            states = layer(states, mask)
        return EncoderOutput(self.norm(states), pose_attention_mask, pose_seconds)

    def _layer_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a mask that the layers take unchanged, of shape `(batch_size, 1, 1, num_frames)`."""
        # A row without a frame attends to its padding: attention to nothing would not be finite.
        seen = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]
        if self.config._attn_implementation != "eager":
            return seen
        return torch.zeros_like(seen, dtype=self.dtype).masked_fill(~seen, torch.finfo(self.dtype).min)
