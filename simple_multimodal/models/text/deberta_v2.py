"""DeBERTa-v2 and v3 as a text encoder, with their masked language modelling head."""

import torch
from transformers import DebertaV2ForMaskedLM, DebertaV2Model, DebertaV2PreTrainedModel, PreTrainedModel

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder
from simple_multimodal.models.text.sentences import SentenceEncoder


def relative_positions(
    length: int, num_buckets: int, max_distance: int, *, device: torch.device | None = None
) -> torch.Tensor:
    """
    Return the distances of queries to keys, those above `num_buckets // 2` on a logarithmic scale.

    The stock function computes the same, but copies a number to the device in each pass, for which the host waits.

    Args:
        length (`int`): Number of tokens of a text.
        num_buckets (`int`): Number of buckets of distances; 0 or less: no scale.
        max_distance (`int`): Distance that falls into the last bucket.
        device (`torch.device`, *optional*): Device of the result.

    Returns:
        `torch.LongTensor` of shape `(1, length, length)`.
    """
    numbers = torch.arange(length, device=device)
    distances = (numbers[:, None] - numbers)[None]
    if num_buckets <= 0 or max_distance <= 0:
        return distances
    middle = num_buckets // 2
    far = distances.abs().clamp(min=middle) / middle
    longest = torch.log(torch.tensor((max_distance - 1) / middle))  # on the CPU: a division takes it as a number
    buckets = (far.log() / longest * (middle - 1)).ceil() + middle
    return torch.where(distances.abs() <= middle, distances, (buckets * distances.sign()).long())


class DebertaV2TextDecoder(TextDecoder, DebertaV2PreTrainedModel):
    """Masked language modelling head of DeBERTa-v2."""


class DebertaV2TextEncoder(SentenceEncoder, DebertaV2Model):
    """
    DeBERTa-v2 and v3 ([He et al., 2020](https://huggingface.co/papers/2006.03654)), whose attention is eager only.

    Args:
        config ([`DebertaV2Config`]): Sizes of the tower.
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

    def read_pretrained(self, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
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
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        states, positions = self.embeddings(input_ids, mask=attention_mask), None
        if self.encoder.relative_attention:
            positions = relative_positions(
                input_ids.shape[1],
                self.encoder.position_buckets,  # type: ignore[arg-type]  # a number
                self.encoder.max_relative_positions,  # type: ignore[arg-type]
                device=input_ids.device,
            )
        outputs = self.encoder(states, attention_mask, output_hidden_states=False, relative_pos=positions)
        tokens = outputs.last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
