"""The text tower of SigLIP; checkpoints of SigLIP 2 with a fixed resolution are of this type."""

import torch
from transformers import PreTrainedConfig, SiglipModel, SiglipTextModel

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextEncoder


class FixedLengthTextEncoder(TextEncoder):
    """
    Base of the text towers of both SigLIP families: texts are padded to one length, padding takes part in attention,
    and the embedding is the projected state of the last position, whatever is there.
    """

    sub_config = "text_config"
    pretrained_names = {"text_model.": "encoder.", "": "encoder."}
    other_names = ("vision_model.", "logit_")
    contrastive_form = "sigmoid"
    padding = "max_length"
    uses_own_processor = True

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int:
        """Return the size of the common space with images."""
        return config.projection_size

    def check_inputs(self, max_seq_length: int) -> None:
        """Raise a `ValueError` if texts are not as long as the tower's position table."""
        length = self.config.max_position_embeddings
        if max_seq_length != length:
            raise InputError(
                f"`max_seq_length` is {max_seq_length}, but the text tower {self.model_type!r} reads texts that "
                f"are padded to {length} tokens: it pools the last one. Set `max_seq_length` to {length}."
            )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, max_position_embeddings)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, max_position_embeddings)`): 1 = token, 0 =
                padding, which is masked after the tower.

        Returns:
            [`EncoderOutput`] with `max_position_embeddings` tokens.
        """
        self.check_inputs(input_ids.shape[1])
        outputs = super().forward(input_ids)  # type: ignore[misc]  # that of the stock tower
        return EncoderOutput(outputs.last_hidden_state, attention_mask.bool(), None, embedding=outputs.pooler_output)


class SiglipTextEncoder(FixedLengthTextEncoder, SiglipTextModel):
    """
    The text tower of SigLIP ([Zhai et al., 2023](https://huggingface.co/papers/2303.15343)).

    Args:
        config ([`SiglipTextConfig`]): Sizes of the tower and of its embedding.
    """

    model_type = "siglip_text_model"
    pretrained_class = SiglipTextModel
    composite_class = SiglipModel
