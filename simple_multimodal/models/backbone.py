"""Text backbones: sequence-to-sequence and decoder-only models of `transformers` that write the text of a clip."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import load_weights

SAMPLED_EMBEDDINGS = 4096
"""Number of word embeddings whose scale is measured."""


def backbone_class(config: PreTrainedConfig) -> type[AutoModelForSeq2SeqLM] | type[AutoModelForCausalLM]:
    """
    Return the Auto class of a backbone.

    Raises:
        ValueError: If `transformers` has no model of that type that writes text.
    """
    for auto_class in (AutoModelForSeq2SeqLM, AutoModelForCausalLM):
        if type(config) in auto_class._model_mapping:
            return auto_class
    raise InputError(
        f"{config.model_type!r} does not write text. Use a sequence-to-sequence model, such as m2m_100, mbart or t5, "
        "or a decoder-only one, such as llama or gpt2."
    )


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a backbone with random weights."""
    return backbone_class(config).from_config(config)


def load_backbone(config: PreTrainedConfig, name_or_path: str, *, cache_dir: str | None = None) -> PreTrainedModel:
    """
    Load a backbone with its weights, in float32.

    Args:
        config (`PreTrainedConfig`): Its configuration.
        name_or_path (`str`): Hub name or folder.
        cache_dir (`str`, *optional*): Cache folder for files from the hub.
    """
    model, _ = load_weights(
        backbone_class(config), name_or_path, config=config, cache_dir=cache_dir, dtype=torch.float32
    )
    return model


@torch.no_grad()
def add_embeddings(backbone: PreTrainedModel, num_tokens: int) -> None:
    """
    Give a backbone the word embeddings of tokens that were added to its tokenizer: the mean of the known ones plus a
    hundredth of their deviation as noise, drawn from the global generator.

    Args:
        backbone (`PreTrainedModel`): Changed in place; its vocabulary may already be larger.
        num_tokens (`int`): Size of the tokenizer's vocabulary.
    """
    known = backbone.get_input_embeddings().num_embeddings
    if num_tokens <= known:
        return
    backbone.resize_token_embeddings(num_tokens, mean_resizing=False)
    tables = {id(layer.weight): layer.weight for layer in _vocabulary_layers(backbone)}
    for table in tables.values():  # one, if input and output are tied
        old = table[:known]
        noise = torch.randn(num_tokens - known, old.shape[1], device=old.device)
        table[known:] = old.mean(dim=0) + 0.01 * old.std() * noise.to(old.dtype)


def _vocabulary_layers(backbone: PreTrainedModel) -> list[torch.nn.Module]:
    layers = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    return [layer for layer in layers if layer is not None]


@torch.no_grad()
def embedding_scale(backbone: PreTrainedModel) -> float:
    """Return the root mean square of the word embeddings as the first layer sees them, after the model's scaling."""
    embeddings = backbone.get_input_embeddings()
    ids = torch.arange(min(embeddings.num_embeddings, SAMPLED_EMBEDDINGS), device=embeddings.weight.device)
    return embeddings(ids).float().square().mean().sqrt().item()
