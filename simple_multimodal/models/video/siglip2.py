"""The image tower of SigLIP 2 with its native aspect ratios (NaFlex) as a video encoder."""

import math
from typing import Any

import torch
from transformers import PreTrainedConfig, Siglip2Model, Siglip2VisionModel

from simple_multimodal.models.video.images import DEFAULT_NUM_FRAMES
from simple_multimodal.models.video.siglip import HeadedImageEncoder


class Siglip2VideoEncoder(HeadedImageEncoder, Siglip2VisionModel):
    """
    The ViT of SigLIP 2 ([Tschannen et al., 2025](https://huggingface.co/papers/2502.14786)) over each frame. The clips
    of a run have one size, of any aspect ratio, so that no patch is padding, and the position table is interpolated
    once for all frames.

    Args:
        config ([`Siglip2VisionConfig`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "siglip2_vision_model"
    pretrained_class = Siglip2VisionModel
    composite_class = Siglip2Model

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames, and the size of a square with as many patches as the position table has."""
        return {"num_frames": DEFAULT_NUM_FRAMES, "size": math.isqrt(config.num_patches) * config.patch_size}

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See [`ImageEncoder.encode_images`]."""
        patch = self.config.patch_size
        patches = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
        _, height, width, *_ = patches.shape  # (images, height, width, rows, columns, channels)
        side = math.isqrt(self.config.num_patches)
        positions = self.embeddings.position_embedding.weight
        if (height, width) != (side, side):  # the gradient of an interpolation is not deterministic on CUDA
            positions = self.embeddings.resize_positional_embeddings(
                positions.view(side, side, -1), torch.tensor([[height, width]]), max_length=height * width
            )
        states = self.embeddings.patch_embedding(patches.flatten(3).flatten(1, 2)) + positions
        states = self.post_layernorm(self.encoder(inputs_embeds=states).last_hidden_state)
        return states, self.head(states) if self.use_head else None
