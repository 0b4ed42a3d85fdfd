"""Shared parts of text encoders: checks and conversions of a text tower, and the head of masked language modelling."""

from copy import deepcopy
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Conversion, Encoder

TextPadding = Literal["longest", "max_length"]

VOCABULARY_TENSORS = (
    "encoder.embeddings.word_embeddings.weight",
    "encoder.embeddings.token_embedding.weight",
    "encoder.embeddings.tok_embeddings.weight",
    "decoder.bias",
)
"""Tensors with one row per entry of the vocabulary: useless with another tokenizer."""

ROW_TENSORS = (
    *VOCABULARY_TENSORS,
    "encoder.embeddings.position_embeddings.weight",
    "encoder.embeddings.position_embedding.weight",
)
"""Tensors whose rows keep their meaning when there are more or fewer of them."""


class TextEncoder(Encoder):
    """
    Base of the text encoders: `forward(input_ids, attention_mask)` returns one token per input id.

    Class attributes:
        padding: Length that texts are padded to: `"longest"` of the batch, or the processor's `"max_length"`.
    """

    modality = "text"
    padding: ClassVar[TextPadding] = "longest"

    @property
    def word_embeddings(self) -> torch.Tensor:
        """The table of shape `(vocab_size, hidden_size)`, which the decoder reads, too."""
        return self.get_input_embeddings().weight

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """Return the number of tokens of the longest text that the tower has positions for."""
        return config.max_position_embeddings

    @classmethod
    def fit_config(
        cls,
        config: PreTrainedConfig,
        vocab_size: int,
        pad_token_id: int | None = None,
        end_token_id: int | None = None,
    ) -> PreTrainedConfig:
        """
        Copy `config` for a tokenizer.

        Args:
            config ([`PreTrainedConfig`]): Config of the tower.
            vocab_size (`int`): Number of entries of the tokenizer.
            pad_token_id (`int`, *optional*): Id of its padding token.
            end_token_id (`int`, *optional*): Id of the token that ends every text; `None` if there is none.
        """
        config = deepcopy(config)
        config.vocab_size = vocab_size
        return config

    def check_inputs(self, max_seq_length: int) -> None:
        """Raise a `ValueError` if the tower has no positions for texts of `max_seq_length` tokens."""
        limit = self.max_tokens(self.config)
        if max_seq_length > limit:
            raise InputError(
                f"`max_seq_length` is {max_seq_length}, but the text tower {self.model_type!r} has positions for "
                f"{limit} tokens. Set `max_seq_length` to {limit} or less, or raise max_position_embeddings in the "
                "text config."
            )

    def stock_mask(self, attention_mask: torch.Tensor, *, is_causal: bool = False) -> torch.Tensor:
        """
        Return a mask that the stock tower takes without reading it on the host.

        `transformers` reads a mask with two axes in order to omit one that hides nothing, which waits for the device
        in every pass; it takes a mask with four axes unchanged. Flash and flex attention keep the two axes and must
        read them.

        Args:
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.
            is_causal (`bool`, *optional*, defaults to `False`): Whether a token only sees itself and earlier ones.
        """
        kind = self.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            return attention_mask
        mask = attention_mask[:, None, None].bool()  # (batch, heads, queries, keys)
        if is_causal:
            length = mask.shape[-1]
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        if kind == "eager":  # added to the scores
            return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        return mask

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """Convert tables with one row per word or position: copy the rows that both have; further ones stay new."""
        if name not in ROW_TENSORS or source.shape == target.shape or source.shape[1:] != target.shape[1:]:
            return None
        rows = min(len(source), len(target))
        tensor = target.detach().clone()
        tensor[:rows] = source[:rows]
        return Conversion(tensor, f"first {rows} rows of {len(source)} copied, {len(target) - rows} rows are new")


class TextDecoder(nn.Module):
    """
    Head of masked language modelling: dense layer, activation, norm, then the product with the encoder's word
    embeddings plus one bias per word.

    Args:
        config (`PreTrainedConfig`): Sizes of the tower.
        hidden_act (`str`, *optional*), layer_norm_eps (`float`, *optional*): Values for configs without these names.

    Both layouts of the heads in `transformers` compute this (`cls.predictions` of BERT and older DeBERTa,
    `lm_predictions.lm_head` of newer DeBERTa). The word embeddings are passed in: there is only one copy of them, and
    nothing to tie. A subclass also inherits from the tower's `PreTrainedModel`.
    """

    def __init__(
        self, config: PreTrainedConfig, *, hidden_act: str | None = None, layer_norm_eps: float | None = None
    ):
        super().__init__(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[hidden_act or config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=layer_norm_eps or config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # that of the tower's PreTrainedModel
        if isinstance(module, TextDecoder):
            init.zeros_(module.bias)

    def forward(self, states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """
        Args:
            states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`): Text states.
            word_embeddings (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`): The encoder's
                `word_embeddings`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`: Logits.
        """
        states = self.LayerNorm(self.activation(self.dense(states)))
        return nn.functional.linear(states, word_embeddings, self.bias)
