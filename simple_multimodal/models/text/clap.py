"""The text tower of CLAP."""

import torch
from transformers import ClapModel, ClapTextConfig, ClapTextModel, ClapTextModelWithProjection, PreTrainedConfig
from transformers.models.clap.modeling_clap import ClapProjectionLayer

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.roberta import OffsetPositionsEncoder


class CLAPTextEncoder(OffsetPositionsEncoder, ClapTextModel):
    """
    The RoBERTa of CLAP ([Wu et al., 2022](https://huggingface.co/papers/2211.06687)), whose attention is eager only. A
    text's embedding is its pooled first token, projected.

    Args:
        config ([`ClapTextConfig`]): Sizes of the tower and of its embedding.
    """

    title = "CLAP's text tower"
    model_type = "clap_text_model"
    pretrained_class = ClapTextModelWithProjection
    composite_class = ClapModel
    composite_values = ("projection_dim", "projection_hidden_act")
    sub_config = "text_config"
    pretrained_names = {"text_model.": "encoder.", "text_projection.": "encoder.text_projection."}
    other_names = ("audio_model.", "audio_projection.", "logit_scale_")
    logit_scale_name = "logit_scale_t"
    uses_own_processor = True

    def __init__(self, config: ClapTextConfig):
        super().__init__(config)
        self.text_projection = ClapProjectionLayer(config)
        self.post_init()

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int:
        """Return the size of the common space with audio."""
        return config.projection_dim

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        outputs = ClapTextModel.forward(self, input_ids, attention_mask=self.stock_mask(attention_mask))
        embedding = self.text_projection(outputs.pooler_output)
        return EncoderOutput(outputs.last_hidden_state, attention_mask.bool(), None, embedding=embedding)
