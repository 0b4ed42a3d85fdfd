"""MPNet as a text encoder, with its masked language modelling head."""

import torch
from torch import nn
from transformers import MPNetConfig, MPNetForMaskedLM, MPNetModel, MPNetPreTrainedModel

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextDecoder
from simple_multimodal.models.text.roberta import OffsetPositionsEncoder, RobertaTextEncoder
from simple_multimodal.models.text.sentences import SentenceEncoder


class MPNetTextDecoder(TextDecoder, MPNetPreTrainedModel):
    """Masked language modelling head of MPNet."""


class MPNetTextEncoder(OffsetPositionsEncoder, SentenceEncoder, MPNetModel):
    """
    MPNet ([Song et al., 2020](https://huggingface.co/papers/2004.09297)) without its pooler, whose attention is eager
    only.

    Args:
        config ([`MPNetConfig`]): Sizes of the tower.
    """

    title = "MPNet's text tower"
    model_type = "mpnet"
    pretrained_class = MPNetForMaskedLM
    pretrained_names = {**RobertaTextEncoder.pretrained_names, "mpnet.": "encoder."}
    decoder_class = MPNetTextDecoder
    uses_own_processor = True
    late_embeddings = ("encoder.relative_attention_bias.",)

    def __init__(self, config: MPNetConfig):
        super().__init__(config, add_pooling_layer=False)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stack's layers, which the stock class cannot run again in the backward pass."""
        return [list(layer.parameters()) for layer in self.encoder.layer]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        mask = self.stock_mask(attention_mask)
        tokens = MPNetModel.forward(self, input_ids, attention_mask=mask).last_hidden_state
        embedding = self.pool_sentence(tokens, attention_mask)
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
