"""DeBERTa-v2 and v3 as a text encoder, with their masked language modelling head."""

import torch
from transformers import DebertaV2ForMaskedLM, DebertaV2Model, DebertaV2PreTrainedModel, PreTrainedModel

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder, TextEncoder


class DebertaV2TextDecoder(TextDecoder, DebertaV2PreTrainedModel):
    """Masked language modelling head of DeBERTa-v2."""


class DebertaV2TextEncoder(TextEncoder, DebertaV2Model):
    """
    DeBERTa-v2 and v3 ([He et al., 2020](https://huggingface.co/papers/2006.03654)), whose attention is eager only.

    Args:
        config ([`DebertaV2Config`]): sizes of the tower.
    """

    model_type = "deberta-v2"
    pretrained_class = DebertaV2ForMaskedLM
    pretrained_names = {
        "deberta.": "encoder.",
        "cls.predictions.transform.": "decoder.",
        "cls.predictions.bias": "decoder.bias",
        "lm_predictions.lm_head.": "decoder.",
    }
    decoder_class = DebertaV2TextDecoder
    late_embeddings = ("encoder.rel_embeddings.", "encoder.LayerNorm.")  # the norm is of the relative positions

    @classmethod
    def read_pretrained(cls, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """Read a checkpoint with the head that its file has; the config does not always name the right one."""
        model, info = super().read_pretrained(name_or_path, **kwargs)
        prefix = "lm_predictions." if model.config.legacy else "cls."
        if any(name.startswith(prefix) for name in info["unexpected_keys"]):
            model, info = super().read_pretrained(name_or_path, legacy=not model.config.legacy, **kwargs)
        return model, info

    def check_inputs(self, max_seq_length: int) -> None:
        """Raise a `ValueError` if the tower has absolute positions, but not for `max_seq_length` tokens."""
        if self.config.position_biased_input:
            super().check_inputs(max_seq_length)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        outputs = DebertaV2Model.forward(self, input_ids, attention_mask=attention_mask)
        return EncoderOutput(outputs.last_hidden_state, attention_mask.bool(), None)
