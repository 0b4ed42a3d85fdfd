"""DistilBERT as a text encoder, with its masked language modelling head."""

import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel, DistilBertPreTrainedModel

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder
from simple_multimodal.models.text.sentences import SentenceEncoder


class DistilBertTextDecoder(TextDecoder, DistilBertPreTrainedModel):
    """Masked language modelling head of DistilBERT."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config, hidden_act=config.activation, layer_norm_eps=1e-12)  # as in the stock head


class DistilBertTextEncoder(SentenceEncoder, DistilBertModel):
    """
    DistilBERT ([Sanh et al., 2019](https://huggingface.co/papers/1910.01108)).

    Args:
        config ([`DistilBertConfig`]): Sizes of the tower.
    """

    model_type = "distilbert"
    pretrained_class = DistilBertForMaskedLM
    pretrained_names = {
        "distilbert.": "encoder.",
        "vocab_transform.": "decoder.dense.",
        "vocab_layer_norm.": "decoder.LayerNorm.",
        "vocab_projector.bias": "decoder.bias",
    }
    decoder_class = DistilBertTextDecoder
    uses_own_processor = True

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        mask = self.stock_mask(attention_mask)
        tokens = DistilBertModel.forward(self, input_ids, attention_mask=mask).last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
