"""The text tower of CLIP."""

from copy import deepcopy

import torch
from torch import nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedConfig

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.text.masked_lm import TextEncoder


class CLIPTextEncoder(TextEncoder, CLIPTextModel):
    """
    The causal transformer of CLIP ([Radford et al., 2021](https://huggingface.co/papers/2103.00020)). A text's
    embedding is the state of the token that ends it, projected.

    Args:
        config ([`CLIPTextConfig`]): Sizes of the tower and of its embedding.
    """

    model_type = "clip_text_model"
    pretrained_class = CLIPTextModelWithProjection
    composite_class = CLIPModel
    composite_values = ("projection_dim",)
    sub_config = "text_config"
    pretrained_names = {"text_model.": "encoder.", "text_projection.": "encoder.text_projection."}
    other_names = ("vision_model.", "visual_projection.", "logit_scale")
    uses_own_processor = True

    def __init__(self, config: CLIPTextConfig):
        super().__init__(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int:
        """Return the size of the common space with images."""
        return config.projection_dim

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
            ValueError: If the tokenizer does not end texts with a token of its own.
        """
        if end_token_id is None or end_token_id == 2:  # the stock class reads 2 as a mark of older configs
            raise InputError(
                "CLIP's text tower pools the token that ends a text, but the tokenizer adds none (or one with id 2). "
                "Use the tokenizer of the text checkpoint: set `tokenizer_name` to its name."
            )
        config = deepcopy(config)
        config.vocab_size, config.eos_token_id = vocab_size, end_token_id
        return config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        mask = self.stock_mask(attention_mask, is_causal=True)
        outputs = CLIPTextModel.forward(self, input_ids, attention_mask=mask)
        embedding = self.text_projection(outputs.pooler_output)
        return EncoderOutput(outputs.last_hidden_state, attention_mask.bool(), None, embedding=embedding)
