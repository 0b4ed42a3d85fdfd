"""Large contrastive batches in little memory: rows are encoded in chunks, of which only the outputs are kept.

This is gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983): encode all chunks without a graph, compute the
loss over their outputs and its gradient with respect to these, then encode one chunk after the other again, with a
graph, and go backward through it. To autograd a chunk is one operation, with the parameters among its inputs: one
forward and one backward pass do all of it, and gradients are synchronised, scaled and accumulated as usual.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from simple_multimodal.modalities import AUDIO_WINDOW_KEYS, Modality
from simple_multimodal.models.fusion.crossformer import Clip, Stream

Rows = TypeVar("Rows")
Output = TypeVar("Output")


class EncodedRows(NamedTuple):
    """
    Outputs that the losses over a batch need, each computed from its row alone.

    Args:
        embeds (`dict[str, torch.Tensor]`): Unit-length embeddings `(num_rows, contrastive_dim)` by side.
        streams (`dict[Modality, Stream]`): Input of the matching head from the rows' texts and clips.
        sums (`dict[str, torch.Tensor]`): Losses of objectives that do not compare rows, summed over rows.
        metrics (`dict[str, torch.Tensor]`): `(sum, count)` of their metrics, of shape `(2,)`.
    """

    embeds: dict[str, torch.Tensor]
    streams: dict[Modality, Stream]
    sums: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class _Chunk(torch.autograd.Function):
    """A call whose forward pass keeps only the inputs; the backward pass repeats it with the same random state.

    Checkpoints of torch do not work here: reentrant ones pass on the gradient of a parameter chunk by chunk, which
    `DistributedDataParallel` refuses; the others keep a graph without its tensors, of 18 MB per chunk of 16 rows on
    the toy world.
    """

    @staticmethod
    def forward(ctx, call: Callable[..., list[torch.Tensor]], num_leaves: int, *inputs: torch.Tensor):
        leaves = inputs[:num_leaves]
        ctx.call, ctx.parameters = call, inputs[num_leaves:]
        ctx.save_for_backward(*leaves)
        ctx.cpu_state, ctx.device_states = torch.get_rng_state(), get_device_states(*leaves)
        device = leaves[0].device.type
        # Weights that were cast here, without a graph, must not be reused where there is one.
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,
        }
        ctx.set_materialize_grads(False)
        with torch.autocast(**ctx.autocast):
            outputs = call(leaves)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor | None):
        leaves = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in ctx.saved_tensors]
        device, (devices, states) = ctx.autocast["device_type"], ctx.device_states
        with (
            torch.random.fork_rng(devices, device_type=device),
            torch.enable_grad(),
            torch.autocast(**ctx.autocast),
        ):
            torch.set_rng_state(ctx.cpu_state)
            set_device_states(devices, states, device_type=device)
            outputs = ctx.call(leaves)
        used = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        inputs = [*leaves, *ctx.parameters]
        found = torch.autograd.grad(
            [output for output, _ in used],
            [tensor for tensor in inputs if tensor.requires_grad],
            [gradient for _, gradient in used],
            allow_unused=True,
        )
        remaining = iter(found)
        return None, None, *(next(remaining) if tensor.requires_grad else None for tensor in inputs)


def split_rows(rows: Rows, chunk_size: int) -> list[Rows]:
    """Split tensors with the same number of rows, in dictionaries and tuples, into chunks of `chunk_size` rows."""
    leaves, form = tree_flatten(rows)
    return [tree_unflatten(chunk, form) for chunk in zip(*(leaf.split(chunk_size) for leaf in leaves), strict=True)]


def split_batch(batch: dict[str, Any], chunk_size: int) -> list[dict[str, torch.Tensor]]:
    """Split a collator's batch by [`split_rows`]; each chunk lists the audio windows of its own rows, at least one.
    The host knows their number, so that nothing waits for the device.
    """
    chunks = split_rows({name: part for name, part in batch.items() if name not in AUDIO_WINDOW_KEYS}, chunk_size)
    if any(name not in batch for name in AUDIO_WINDOW_KEYS):
        return chunks  # every window runs
    windows, counts = (batch[name] for name in AUDIO_WINDOW_KEYS)
    first = 0
    for number, chunk in enumerate(chunks):
        first_row = number * chunk_size
        num_windows = sum(counts[first_row : first_row + chunk_size])
        own = windows[first : first + num_windows]
        first += num_windows
        chunk[AUDIO_WINDOW_KEYS[0]] = (
            torch.stack([own[:, 0] - first_row, own[:, 1]], dim=1) if num_windows else windows.new_zeros(1, 2)
        )
    return chunks


def run_in_chunks(
    model: nn.Module,
    function: Callable[[Rows], Output],
    rows: Rows,
    chunk_size: int | None,
    *,
    split: Callable[[Rows, int], list[Rows]] = split_rows,
) -> list[Output]:
    """
    Call a function on one chunk of rows after the other.

    If there are several chunks, a call only keeps its outputs. The backward pass calls the function once more for each
    chunk, with the random state of the CPU and the device at the first call, and adds up gradients.

    Args:
        model (`nn.Module`): Module whose parameters the function may use.
        function (`Callable`): Computes every row independently of the others, without talking to other processes.
        rows: Tensors with the same number of rows, in dictionaries and tuples.
        chunk_size (`int`, *optional*): Rows in a chunk; the last may have fewer. By default, all rows.
        split (`Callable`, *optional*, defaults to [`split_rows`]): Makes the chunks.

    Returns:
        `list`: Outputs of the calls, in order: tensors in dictionaries and tuples. Floating-point ones require a
        gradient.
    """
    if chunk_size is None:
        return [function(rows)]
    chunks = split(rows, chunk_size)
    if len(chunks) == 1:
        return [function(rows)]
    form = tree_flatten(chunks[0])[1]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output_forms: list[Any] = []

    def call(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs, output_form = tree_flatten(function(tree_unflatten(leaves, form)))
        output_forms.append(output_form)
        return outputs

    flat = [tree_flatten(chunk)[0] for chunk in chunks]
    outputs = [_Chunk.apply(call, len(leaves), *leaves, *parameters) for leaves in flat]
    return [tree_unflatten(output, output_forms[0]) for output in outputs]


def encode_in_chunks(
    model: nn.Module,
    encode: Callable[[dict[str, torch.Tensor]], EncodedRows],
    batch: dict[str, torch.Tensor],
    chunk_size: int | None,
) -> EncodedRows:
    """Encode a batch as [`run_in_chunks`] does, and join the outputs."""
    chunks = run_in_chunks(model, encode, batch, chunk_size, split=split_batch)
    first = chunks[0]
    if len(chunks) == 1:
        return first

    def joined(name: Modality) -> Stream:
        streams = [chunk.streams[name] for chunk in chunks]
        return Stream(torch.cat([s.states for s in streams]), torch.cat([s.mask for s in streams]))

    return EncodedRows(
        {name: torch.cat([chunk.embeds[name] for chunk in chunks]) for name in first.embeds},
        {name: joined(name) for name in first.streams},
        {name: torch.stack([chunk.sums[name] for chunk in chunks]).sum(dim=0) for name in first.sums},
        {name: torch.stack([chunk.metrics[name].detach() for chunk in chunks]).sum(dim=0) for name in first.metrics},
    )


def score_in_chunks(model: nn.Module, text: Stream, clip: Clip, *, chunk_size: int | None) -> torch.Tensor:
    """Return the `matching_logits` of a model for pairs of text and clip, computed by [`run_in_chunks`]."""
    return torch.cat(run_in_chunks(model, lambda pairs: model.matching_logits(*pairs), (text, clip), chunk_size))
