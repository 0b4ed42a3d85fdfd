"""BERT as a text encoder, with its masked language modelling head."""

import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertPreTrainedModel

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder
from simple_multimodal.models.text.sentences import SentenceEncoder


class BertTextDecoder(TextDecoder, BertPreTrainedModel):
    """Masked language modelling head of BERT."""


class BertTextEncoder(SentenceEncoder, BertModel):
    """
    BERT ([Devlin et al., 2018](https://huggingface.co/papers/1810.04805)) without its pooler.

    Args:
        config ([`BertConfig`]): Sizes of the tower.
    """

    model_type = "bert"
    pretrained_class = BertForMaskedLM
    pretrained_names = {
        "bert.": "encoder.",
        "cls.predictions.transform.": "decoder.",
        "cls.predictions.bias": "decoder.bias",
    }
    decoder_class = BertTextDecoder

    def __init__(self, config: BertConfig):
        super().__init__(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        tokens = BertModel.forward(self, input_ids, attention_mask=self.stock_mask(attention_mask)).last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
