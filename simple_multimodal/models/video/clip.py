"""The image tower of CLIP as a video encoder."""

import torch
from torch import nn
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection, PreTrainedConfig
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from simple_multimodal.models.video.images import ImageEncoder


class CLIPVideoEncoder(ImageEncoder, CLIPVisionModel):
    """
    The ViT of CLIP ([Radford et al., 2021](https://huggingface.co/papers/2103.00020)) over each frame; see
    [`ImageEncoder`]. A frame's embedding is its class token, projected.

    Args:
        config ([`CLIPVisionConfig`]): Sizes of the tower and of its embedding.
        settings: As in [`ImageEncoder`]; mean and deviation default to CLIP's.
    """

    model_type = "clip_vision_model"
    pretrained_class = CLIPVisionModelWithProjection
    composite_class = CLIPModel
    composite_values = ("projection_dim",)
    pretrained_names = {"vision_model.": "encoder.", "visual_projection.": "encoder.visual_projection."}
    other_names = ("text_model.", "text_projection.", "logit_scale")

    def __init__(self, config: CLIPVisionConfig, **settings):
        super().__init__(config, **{"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, **settings})
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int:
        """Return the size of the common space with text."""
        return config.projection_dim

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`ImageEncoder.encode_images`]; the class token comes first."""
        outputs = CLIPVisionModel.forward(self, pixels, interpolate_pos_encoding=True)  # where the size differs
        return outputs.last_hidden_state, self.visual_projection(outputs.pooler_output)
