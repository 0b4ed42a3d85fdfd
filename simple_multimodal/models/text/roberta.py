"""RoBERTa and XLM-RoBERTa as text encoders, with their masked language modelling head."""

from copy import deepcopy

import torch
from transformers import (
    PreTrainedConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    RobertaPreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
    XLMRobertaPreTrainedModel,
)

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder, TextEncoder
from simple_multimodal.models.text.sentences import SentenceEncoder


class OffsetPositionsEncoder(TextEncoder):
    """
    Base of text towers that count positions from after their padding token's id, which is how they recognise padding.

    Class attributes:
        title: Name of the tower in messages.
    """

    title = "RoBERTa's text tower"

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """Return the number of positions after the padding token's."""
        return config.max_position_embeddings - config.pad_token_id - 1

    @classmethod
    def fit_config(
        cls,
        config: PreTrainedConfig,
        vocab_size: int,
        pad_token_id: int | None = None,
        end_token_id: int | None = None,
    ) -> PreTrainedConfig:
        """
        Copy the config for a tokenizer; see [`TextEncoder.fit_config`].

        Raises:
            ValueError: If the tokenizer's padding token has another id than the tower's.
        """
        if pad_token_id != config.pad_token_id:
            raise InputError(
                f"{cls.title} counts positions from its padding token, number {config.pad_token_id}; that of "
                f"the tokenizer is {pad_token_id}. Use the tokenizer of the text checkpoint: set `tokenizer_name` "
                "to its name."
            )
        config = deepcopy(config)
        config.vocab_size = vocab_size
        return config


class RobertaTextDecoder(TextDecoder, RobertaPreTrainedModel):
    """Masked language modelling head of RoBERTa."""


class RobertaTextEncoder(OffsetPositionsEncoder, SentenceEncoder, RobertaModel):
    """
    RoBERTa ([Liu et al., 2019](https://huggingface.co/papers/1907.11692)) without its pooler.

    Args:
        config ([`RobertaConfig`]): Sizes of the tower.
    """

    model_type = "roberta"
    pretrained_class = RobertaForMaskedLM
    pretrained_names = {
        "roberta.": "encoder.",
        "lm_head.dense.": "decoder.dense.",
        "lm_head.layer_norm.": "decoder.LayerNorm.",
        "lm_head.bias": "decoder.bias",
        "lm_head.decoder.bias": "decoder.bias",  # the same tensor as above; either name may come first
        "lm_head.decoder.weight": "encoder.embeddings.word_embeddings.weight",
    }
    decoder_class = RobertaTextDecoder
    uses_own_processor = True

    def __init__(self, config: RobertaConfig):
        super().__init__(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        mask = self.stock_mask(attention_mask)
        tokens = RobertaModel.forward(self, input_ids, attention_mask=mask).last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)


class XLMRobertaTextDecoder(TextDecoder, XLMRobertaPreTrainedModel):
    """Masked language modelling head of XLM-RoBERTa."""


class XLMRobertaTextEncoder(OffsetPositionsEncoder, SentenceEncoder, XLMRobertaModel):
    """
    XLM-RoBERTa ([Conneau et al., 2019](https://huggingface.co/papers/1911.02116)) without its pooler: RoBERTa for a
    hundred languages.

    Args:
        config ([`XLMRobertaConfig`]): Sizes of the tower.
    """

    title = "XLM-RoBERTa's text tower"
    model_type = "xlm-roberta"
    pretrained_class = XLMRobertaForMaskedLM
    pretrained_names = RobertaTextEncoder.pretrained_names
    decoder_class = XLMRobertaTextDecoder
    uses_own_processor = True

    def __init__(self, config: XLMRobertaConfig):
        super().__init__(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """See [`RobertaTextEncoder.forward`]."""
        mask = self.stock_mask(attention_mask)
        tokens = XLMRobertaModel.forward(self, input_ids, attention_mask=mask).last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
