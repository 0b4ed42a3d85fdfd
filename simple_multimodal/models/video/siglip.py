"""The image tower of SigLIP as a video encoder; checkpoints of SigLIP 2 with a fixed resolution are of this type."""

import torch
from transformers import PreTrainedConfig, SiglipModel, SiglipVisionModel

from simple_multimodal.models.video.images import ImageEncoder


class HeadedImageEncoder(ImageEncoder):
    """Base of the image towers of both SigLIP families: a head with attention pools a frame's embedding."""

    pretrained_names = {"vision_model.": "encoder.", "": "encoder."}
    other_names = ("text_model.", "logit_")
    contrastive_form = "sigmoid"

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Return the size of the common space with text; `None` without the head."""
        return config.hidden_size if config.vision_use_head else None


class SiglipVideoEncoder(HeadedImageEncoder, SiglipVisionModel):
    """
    The ViT of SigLIP ([Zhai et al., 2023](https://huggingface.co/papers/2303.15343)) over each frame.

    Args:
        config ([`SiglipVisionConfig`]): Sizes of the tower.
        settings: As in [`ImageEncoder`].
    """

    model_type = "siglip_vision_model"
    pretrained_class = SiglipVisionModel
    composite_class = SiglipModel

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See [`ImageEncoder.encode_images`]."""
        outputs = SiglipVisionModel.forward(self, pixels, interpolate_pos_encoding=True)  # where the size differs
        return outputs.last_hidden_state, outputs.pooler_output
