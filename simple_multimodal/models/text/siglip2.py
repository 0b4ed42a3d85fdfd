"""The text tower of SigLIP 2 with native aspect ratios (NaFlex)."""

from transformers import Siglip2Model, Siglip2TextModel

from simple_multimodal.models.text.siglip import FixedLengthTextEncoder


class Siglip2TextEncoder(FixedLengthTextEncoder, Siglip2TextModel):
    """
    The text tower of SigLIP 2 ([Tschannen et al., 2025](https://huggingface.co/papers/2502.14786)).

    Args:
        config ([`Siglip2TextConfig`]): Sizes of the tower and of its embedding.
    """

    model_type = "siglip2_text_model"
    pretrained_class = Siglip2TextModel
    composite_class = Siglip2Model
