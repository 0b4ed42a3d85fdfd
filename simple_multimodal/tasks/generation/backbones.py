"""Choose a text backbone and its tokenizer: of a model with weights, or of a configuration and the training texts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.errors import InputError
from simple_multimodal.missing import reading
from simple_multimodal.models.backbone import backbone_class
from simple_multimodal.models.configuration import refuse_kernels

SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "m2m_100",
        "vocab_size": 8192,
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
    }
)
"""Configuration of a backbone for which nothing is named."""


class Backbone(NamedTuple):
    """
    A text backbone that is not loaded yet.

    Args:
        config (`PreTrainedConfig`): Its configuration.
        tokenizer ([`PreTrainedTokenizerBase`]): Its tokenizer, with all new tokens.
        weights (`str`, *optional*): Hub name or folder of its weights; `None` for random ones.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    weights: str | None


def choose_backbone(
    *,
    model: str | None,
    config_name: str | None,
    tokenizer_name: str | None,
    new_tokens: Sequence[str],
    texts: Callable[[], Iterable[str]],
    cache_dir: str | None = None,
) -> Backbone:
    """
    Read the configuration and the tokenizer of a backbone.

    Args:
        model (`str`, *optional*): Hub name or folder of a model with weights.
        config_name (`str`, *optional*): Configuration of a model with random weights, if no `model` is named; by
            default [`SMALL`].
        tokenizer_name (`str`, *optional*): Hub name or folder of the tokenizer; by default that of the model, or one
            trained on `texts`.
        new_tokens (`Sequence[str]`): Tokens to add to the tokenizer.
        texts (`Callable`): Returns the texts to train a tokenizer on.
        cache_dir (`str`, *optional*): Cache folder for files from the hub.

    Raises:
        ValueError: If something cannot be read, the model does not write text, **or** the tokenizer does not fit it.
    """
    source = model or config_name
    if source is None:
        config = AutoConfig.for_model(**SMALL)
    else:
        with reading(source, f"Cannot read the backbone's configuration from {source!r}:", cache_dir=cache_dir):
            config = AutoConfig.from_pretrained(source, cache_dir=cache_dir, trust_remote_code=False)
    refuse_kernels(config)
    backbone_class(config)
    named = tokenizer_name or model
    if named is not None:
        with reading(named, f"Cannot read the backbone's tokenizer from {named!r}:", cache_dir=cache_dir):
            tokenizer = AutoTokenizer.from_pretrained(named, cache_dir=cache_dir, trust_remote_code=False)
        if tokenizer_name is not None and model is not None and len(tokenizer) > config.vocab_size:
            raise InputError(
                f"The tokenizer {tokenizer_name!r} has {len(tokenizer):,} tokens, but the backbone {model!r} has "
                f"{config.vocab_size:,} word embeddings. Use the backbone's own tokenizer, and name further tokens in "
                "--new_tokens."
            )
    else:
        tokenizer = train_tokenizer(texts(), vocab_size=config.vocab_size, lowercase=False)
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of {named!r} has no end token, so that a text would never end. Name another one in "
            "--backbone_tokenizer_name."
        )
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)
    if model is None:
        config.vocab_size = len(tokenizer)
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
        if getattr(config, "forced_eos_token_id", None) is not None:
            config.forced_eos_token_id = tokenizer.eos_token_id
        if config.is_encoder_decoder:
            config.decoder_start_token_id = tokenizer.bos_token_id or tokenizer.eos_token_id
    return Backbone(config, tokenizer, model)
