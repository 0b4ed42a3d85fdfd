"""The crossformer: a transformer over all encoders' tokens, in three forms, sized by a ViT or BERT configuration."""

from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import BertModel, PreTrainedConfig, ViTModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import CLIP_MODALITIES, DEFAULT_MODALITIES, MODALITIES, Modality
from simple_multimodal.models.base import load_weights
from simple_multimodal.models.configuration import FusionForm
from simple_multimodal.models.loading import LoadingReport, load_config, transfer_tensors
from simple_multimodal.models.times import time_embedding

PRE_NORM = {"vit": True, "bert": False}
"""Known fusion configurations and whether their layers normalise before (`True`) or after the residual."""


class Stream(NamedTuple):
    """Tokens of one modality inside the fusion.

    Args:
        states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): Token states.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` where a token is real.
    """

    states: torch.Tensor
    mask: torch.Tensor

    def select(self, rows: torch.Tensor) -> "Stream":
        """Return the given rows, as a new stream."""
        # Not `states[rows]`: CPU threads add up the gradients of a row that is taken several times in any order.
        return Stream(self.states.index_select(0, rows), self.mask[rows])


Clip = dict[Modality, Stream]


class ClipCache(NamedTuple):
    """The part of clips that a text stack's attention needs.

    Args:
        layers (`list[tuple[torch.Tensor, torch.Tensor]]`): Keys and values of each layer, of shape `(num_clips,
            num_heads, num_tokens, head_size)`.
        mask (`torch.BoolTensor` of shape `(num_clips, num_tokens)`): `True` where a token is real.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor


def concatenate(streams: Clip) -> Stream:
    """Concatenate all streams along the token axis, in canonical modality order."""
    ordered = [streams[m] for m in MODALITIES if m in streams]
    return Stream(torch.cat([s.states for s in ordered], dim=1), torch.cat([s.mask for s in ordered], dim=1))


def split(states: torch.Tensor, like: Clip) -> Clip:
    """Undo [`concatenate`]: cut `states` into the streams that `like` has."""
    ordered = [m for m in MODALITIES if m in like]
    parts = states.split([like[m].mask.shape[1] for m in ordered], dim=1)
    return {m: Stream(part, like[m].mask) for m, part in zip(ordered, parts, strict=True)}


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the attention bias `(batch_size, 1, 1, num_tokens)`: 0 for real tokens, else the lowest finite number.

    It is finite so that a row without any real token yields finite (and unused) states instead of NaN.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return bias[:, None, None, :]


class FusionAttention(nn.Module):
    """Multi-head attention of `states` to `context` (or to themselves); parameter names follow ViT's."""

    def __init__(self, hidden_size: int, num_attention_heads: int, dropout: float, bias: bool):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise InputError(
                f"The fusion's hidden_size {hidden_size} is not a multiple of its num_attention_heads "
                f"{num_attention_heads}; change one of the two in the fusion configuration."
            )
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape `(batch, tokens, hidden)` to `(batch, heads, tokens, head)`."""
        return states.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

    def keys_and_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of `(batch, keys, hidden)`, each of shape `(batch, heads, keys, head)`."""
        return self._heads(self.k_proj(context)), self._heads(self.v_proj(context))

    def forward(
        self, states: torch.Tensor, keys_and_values: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend from `(batch, queries, hidden)` to keys and values with a `(contexts, keys)` mask; `batch` may be a
        multiple of `contexts`; then the same number of neighbouring rows attends to each context.
        """
        key, value = keys_and_values
        query = self._heads(self.q_proj(states).reshape(len(key), -1, states.shape[-1]))
        attended = F.scaled_dot_product_attention(
            query, key, value, additive_mask(mask, query.dtype), dropout_p=self.dropout if self.training else 0.0
        )
        return self.o_proj(attended.transpose(1, 2).reshape(states.shape))  # (batch, queries, hidden)


class FusionMLP(nn.Module):
    """The feed-forward part of a layer; parameter names follow ViT's."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(states)))


class FusionLayer(GradientCheckpointingLayer):
    """One transformer layer: self-attention, optional attention to a context, feed-forward.

    With a ViT configuration it normalises before each part (pre-norm), with a BERT configuration after each residual
    (post-norm), so that the weights of either can be loaded.
    """

    def __init__(self, config: PreTrainedConfig, *, attends_to_context: bool):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        bias = config.qkv_bias if config.model_type == "vit" else True

        def attention() -> FusionAttention:
            return FusionAttention(size, config.num_attention_heads, config.attention_probs_dropout_prob, bias)

        self.pre_norm = PRE_NORM[config.model_type]
        self.layernorm_before = nn.LayerNorm(size, eps=eps)
        self.attention = attention()
        if attends_to_context:
            self.layernorm_cross = nn.LayerNorm(size, eps=eps)
            # States of a pre-norm stack are sums of residuals of any size.
            self.layernorm_context = nn.LayerNorm(size, eps=eps) if self.pre_norm else nn.Identity()
            self.cross_attention = attention()
        self.attends_to_context = attends_to_context
        self.layernorm_after = nn.LayerNorm(size, eps=eps)
        self.mlp = FusionMLP(size, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def context_keys_and_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a context `(contexts, tokens, hidden)`, which can be passed in its place."""
        return self.cross_attention.keys_and_values(self.layernorm_context(context))

    def forward(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        context: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        context_mask: torch.Tensor | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        """
        Args:
            states (`torch.Tensor` of shape `(batch, tokens, hidden)`): States that attend.
            mask (`torch.BoolTensor` of shape `(batch, tokens)`): `True` where a token is real.
            context (`torch.Tensor` of shape `(contexts, context_tokens, hidden)`, *optional*): States to attend to, or
                [`context_keys_and_values`] of them; `batch` is a multiple of `contexts`. Rows without a real context
                token skip it.
            context_mask (`torch.BoolTensor` of shape `(contexts, context_tokens)`, *optional*): Mask of the context.
            num_queries (`int`, *optional*): Number of first tokens to compute; by default, all.

        Returns:
            `torch.Tensor` of shape `(batch, num_queries, hidden)`.
        """
        normed = self.layernorm_before(states) if self.pre_norm else states
        attended = self.attention(normed[:, :num_queries], self.attention.keys_and_values(normed), mask)
        states = states[:, :num_queries] + self.dropout(attended)
        if not self.pre_norm:
            states = self.layernorm_before(states)
        if context is not None and context_mask is not None:
            if isinstance(context, torch.Tensor):
                context = self.context_keys_and_values(context)
            normed = self.layernorm_cross(states) if self.pre_norm else states
            informed = states + self.dropout(self.cross_attention(normed, context, context_mask))
            if not self.pre_norm:
                informed = self.layernorm_cross(informed)
            # Attention without any real key would average padding, whose amount depends on the batch.
            has_context = context_mask.any(dim=1).repeat_interleave(len(states) // len(context_mask))
            states = torch.where(has_context[:, None, None], informed, states)
        if self.pre_norm:
            return states + self.dropout(self.mlp(self.layernorm_after(states)))
        return self.layernorm_after(states + self.dropout(self.mlp(states)))


class Crossformer(nn.Module):
    """Fuses the tokens of all modalities.

    Three forms, one implementation of the layer:

    - `merge`: self-attention over the concatenation of all tokens (as the fusion encoders of FLAVA, Singh et al. 2022,
      and ALPRO, Li et al. 2022).
    - `co_attention`: one stack per modality whose layers attend to themselves, then to the other modalities' states of
      the layer below (ViLBERT, Lu et al. 2019; LXMERT, Tan & Bansal 2019).
    - `cross_attention`: a stack over the clip's audio and video tokens that never sees text, and a text stack that
      attends to that stack's output (ALBEF, Li et al. 2021; BLIP, Li et al. 2022). The only form whose clip side can
      be computed once and reused for every text.

    In each form the clip can be encoded without text ([`encode_clip`]), which gives the clip's embedding.

    Args:
        config (`PreTrainedConfig`): ViT or BERT configuration; `num_hidden_layers` is the depth of every stack.
        form (`str`): One of the above.
        token_sizes (`dict[Modality, int]`): Hidden size of each encoder's tokens.
    """

    def __init__(self, config: PreTrainedConfig, *, form: FusionForm, token_sizes: dict[Modality, int]):
        super().__init__()
        if config.model_type not in PRE_NORM:
            raise InputError(
                f"The fusion cannot be built from a {config.model_type!r} configuration; use one of "
                f"{sorted(PRE_NORM)} (examples are in configs/crossformer/)."
            )
        self.form = form
        self.pre_norm = PRE_NORM[config.model_type]
        self.hidden_size = config.hidden_size
        self.num_layers = config.num_hidden_layers
        self.projections = nn.ModuleDict({m: nn.Linear(size, config.hidden_size) for m, size in token_sizes.items()})
        # Every model has a row for each of these three; further ones follow in alphabetical order.
        further = sorted(token_sizes.keys() - set(DEFAULT_MODALITIES))
        self.embedded_modalities = (*DEFAULT_MODALITIES, *further)
        self.modality_embeddings = nn.Embedding(len(self.embedded_modalities), config.hidden_size)
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        clip_modalities = [m for m in CLIP_MODALITIES if m in token_sizes]

        def stack(attends_to_context: bool) -> nn.ModuleList:
            layers = range(self.num_layers)
            return nn.ModuleList(FusionLayer(config, attends_to_context=attends_to_context) for _ in layers)

        if form == "merge":
            self.stacks = nn.ModuleDict({"all": stack(False)})
        elif form == "co_attention":
            self.stacks = nn.ModuleDict({m: stack(len(token_sizes) > 1) for m in MODALITIES if m in token_sizes})
        else:
            self.stacks = nn.ModuleDict()
            if "text" in token_sizes:
                self.stacks["text"] = stack(len(clip_modalities) > 0)
            if clip_modalities:
                self.stacks["clip"] = stack(False)

        def output_norm() -> nn.Module:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if self.pre_norm else nn.Identity()

        self.output_norms = nn.ModuleDict({name: output_norm() for name in self.stacks})

    def embed(
        self, modality: Modality, tokens: torch.Tensor, mask: torch.Tensor, seconds: torch.Tensor | None
    ) -> Stream:
        """Bring an encoder's tokens to the fusion's size and add the modality's and the time's embedding.

        Args:
            tokens (`torch.Tensor` of shape `(batch_size, num_tokens, token_size)`): Output of the encoder.
            mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` for real tokens.
            seconds (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): Time in the segment; `None` for
                text.
        """
        row = self.modality_embeddings.weight[self.embedded_modalities.index(modality)]
        states = self.projections[modality](tokens) + row
        if seconds is not None:
            states = states + time_embedding(seconds, self.hidden_size).to(states.dtype)
        return Stream(self.dropout(self.input_norm(states)), mask)

    def _run(
        self, name: str, stream: Stream, context: "Stream | ClipCache | None" = None, num_queries: int | None = None
    ) -> torch.Tensor:
        """Run one stack; with `num_queries`, the last layer only computes the first `num_queries` tokens."""
        states = stream.states
        for depth in range(self.num_layers):
            layer = self.stacks[name][depth]
            queries = num_queries if depth == self.num_layers - 1 else None
            if context is None:
                states = layer(states, stream.mask, num_queries=queries)
            else:
                seen = context.layers[depth] if isinstance(context, ClipCache) else context.states
                states = layer(states, stream.mask, seen, context.mask, num_queries=queries)
        return self.output_norms[name](states)

    def _co_attend(self, streams: Clip, num_queries: int | None = None) -> Clip:
        """Run all stacks; with `num_queries`, the last layer only computes that many first tokens of the text."""
        for depth in range(self.num_layers):
            is_cut = num_queries is not None and depth == self.num_layers - 1
            updated: Clip = {}
            for modality, stream in streams.items():
                if is_cut and modality != "text":
                    continue
                others = {m: s for m, s in streams.items() if m != modality}
                layer, queries = self.stacks[modality][depth], num_queries if is_cut else None
                if others:
                    context = concatenate(others)
                    states = layer(stream.states, stream.mask, context.states, context.mask, num_queries=queries)
                else:
                    states = layer(stream.states, stream.mask, num_queries=queries)
                updated[modality] = Stream(states, stream.mask[:, :queries])
            streams = updated
        return {m: Stream(self.output_norms[m](s.states), s.mask) for m, s in streams.items()}

    def encode_clip(self, clip: Clip) -> Clip:
        """Fuse audio and video without text.

        Args:
            clip (`dict[Modality, Stream]`): Embedded audio and/or video streams.

        Returns:
            `dict[Modality, Stream]` of the same shapes.
        """
        if self.form == "co_attention":
            return self._co_attend(clip)
        name = "clip" if self.form == "cross_attention" else "all"
        return split(self._run(name, concatenate(clip)), clip)

    def encode_text(self, text: Stream, num_queries: int | None = None) -> torch.Tensor:
        """Run the fusion layers over the text alone; return `(batch_size, num_queries, hidden_size)` states."""
        return self._run("all" if self.form == "merge" else "text", text, num_queries=num_queries)

    def clip_side(self, embedded: Clip, encoded: Clip) -> Clip:
        """Return what [`fuse`] needs of a clip: its encoded states if every text can reuse them, else its inputs."""
        return encoded if self.form == "cross_attention" else embedded

    def cache_clip(self, clip: Clip) -> "Clip | ClipCache":
        """Compute the part of [`fuse`] that depends on the clip alone, once for many texts.

        Args:
            clip (`dict[Modality, Stream]`): Output of [`clip_side`].

        Returns:
            [`ClipCache`] in the form `cross_attention`; in the others every text changes the clip's states from the
            first layer on, so that nothing can be kept: `clip` itself.
        """
        if self.form != "cross_attention" or not clip:
            return clip
        states, mask = concatenate(clip)
        return ClipCache([layer.context_keys_and_values(states) for layer in self.stacks["text"]], mask)

    def fuse(self, text: Stream, clip: "Clip | ClipCache", num_queries: int | None = None) -> torch.Tensor:
        """Return text states that have attended to the clip.

        Args:
            text (`Stream`): Embedded text.
            clip (`dict[Modality, Stream]` or `ClipCache`): Output of [`clip_side`] for the same rows; may be empty. Or
                [`cache_clip`] of it, then the text may have a multiple of its rows: the first `n` belong to the first
                clip, and so on.
            num_queries (`int`, *optional*): Number of first tokens whose states are wanted. The last layer then
                computes nothing else: with one, matching and answering cost up to a layer less.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_text_tokens or num_queries, hidden_size)`.
        """
        if isinstance(clip, ClipCache):
            return self._run("text", text, clip, num_queries)
        if not clip:
            return self.encode_text(text, num_queries)
        if self.form == "cross_attention":
            return self._run("text", text, concatenate(clip), num_queries)
        if self.form == "co_attention":
            return self._co_attend({"text": text, **clip}, num_queries)["text"].states
        num_tokens = text.mask.shape[1]
        return self._run("all", concatenate({"text": text, **clip}), num_queries=num_queries)[:, :num_tokens]


BERT_NAMES = {
    "attention.self.query.": "attention.q_proj.",
    "attention.self.key.": "attention.k_proj.",
    "attention.self.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
    "attention.output.LayerNorm.": "layernorm_before.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "output.LayerNorm.": "layernorm_after.",
}


def fusion_weights(source: dict[str, torch.Tensor], crossformer: Crossformer) -> dict[str, torch.Tensor]:
    """Rename the layers of a ViT or BERT into every stack of a crossformer.

    Layer `i` of the source becomes layer `i` of each stack. Attention to a context, which neither source has, starts
    as a copy of the same layer's self-attention and its norm.

    Args:
        source (`dict[str, torch.Tensor]`): State of a `ViTModel` (`layers.N.…`) or `BertModel` (`encoder.layer.N.…`).
        crossformer (`Crossformer`): Module that the tensors are for.

    Returns:
        `dict[str, torch.Tensor]`: Tensors by their name in `crossformer`; names that it lacks are left out.
    """
    known = crossformer.state_dict().keys()
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in source.items():
        if name.startswith("layers."):
            depth, rest = name.removeprefix("layers.").split(".", 1)
        elif name.startswith("encoder.layer."):
            depth, old = name.removeprefix("encoder.layer.").split(".", 1)
            rest = next(
                (new + old.removeprefix(prefix) for prefix, new in BERT_NAMES.items() if old.startswith(prefix)), old
            )
        elif name.startswith("layernorm."):
            for stack in crossformer.stacks:
                renamed[f"output_norms.{stack}.{name.removeprefix('layernorm.')}"] = tensor
            continue
        else:
            continue
        for stack in crossformer.stacks:
            renamed[f"stacks.{stack}.{depth}.{rest}"] = tensor
            if rest.startswith("attention."):
                renamed[f"stacks.{stack}.{depth}.cross_{rest}"] = tensor
            elif rest.startswith("layernorm_before."):
                for norm in ("layernorm_cross.", "layernorm_context."):
                    renamed[f"stacks.{stack}.{depth}.{rest.replace('layernorm_before.', norm)}"] = tensor
    return {name: tensor for name, tensor in renamed.items() if name in known}


STOCK_MODELS = {"vit": ViTModel, "bert": BertModel}
"""Classes of `transformers` that read a checkpoint for the fusion, by `model_type`."""


def load_fusion_config(name_or_path: str) -> PreTrainedConfig:
    """Read a ViT or BERT configuration from a JSON file, a folder or the hub; a `ValueError` says what is wrong."""
    return load_config(name_or_path, sorted(STOCK_MODELS), "fusion")


def load_pretrained_fusion(
    crossformer: Crossformer, name_or_path: str, *, cache_dir: str | None = None
) -> LoadingReport:
    """Load the layers of a ViT or BERT checkpoint into every stack of a crossformer, in place.

    Args:
        crossformer (`Crossformer`): Filled in place.
        name_or_path (`str`): Hub name or local folder.
        cache_dir (`str`, *optional*): Folder where files from the hub are kept.

    Raises:
        ValueError: If there is no such checkpoint or it is neither a ViT nor a BERT.
    """
    config = load_fusion_config(name_or_path)
    if PRE_NORM[config.model_type] != crossformer.pre_norm:
        raise InputError(
            f"{name_or_path!r} holds a {config.model_type!r} model, but the fusion's configuration is for the other "
            "kind; use a checkpoint and a configuration of the same architecture."
        )
    try:
        stock, _ = load_weights(
            STOCK_MODELS[config.model_type],
            name_or_path,
            dtype=torch.float32,
            cache_dir=cache_dir,
            add_pooling_layer=False,
        )
    except (OSError, SafetensorError, UnpicklingError, RuntimeError) as error:
        raise InputError(f"Cannot read weights of the fusion from {name_or_path!r}: {error}") from error
    source = {name: tensor.detach() for name, tensor in stock.state_dict().items()}
    renamed = fusion_weights(source, crossformer)
    report = transfer_tensors(name_or_path, renamed, crossformer, rename=lambda name: name)
    # The other layers of a deeper checkpoint and its embeddings have no place here; report their original names.
    used = {tensor.data_ptr() for tensor in renamed.values()}
    report.unused |= {name: "no such tensor in the fusion" for name, t in source.items() if t.data_ptr() not in used}
    return report
