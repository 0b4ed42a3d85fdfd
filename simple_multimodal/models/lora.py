"""Low-rank adapters (LoRA) in the towers of a model, with `peft`: placing, merging and saving them."""

import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from simple_multimodal.errors import InputError, MissingPackageError
from simple_multimodal.models.base import Encoder, TowerModel
from simple_multimodal.models.loading import fold_names

ADAPTER_FOLDER = "adapter"
"""Folder next to a merged model, with the adapters that `peft` loads onto the model that training started from."""

ATTENTION_PROJECTIONS = (
    *("query", "key", "value", "qkv", "query_proj", "key_proj", "value_proj", "q_proj", "k_proj", "v_proj"),
    *("o_proj", "out_proj", "attention.output.dense", "temporal_attention.output.dense"),
    *("Wqkv", "attn.Wo", "attn.proj"),
)
"""Names of the attention projections in towers of `transformers` and `timm`."""


def require_peft() -> ModuleType:
    """Import the package `peft`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MissingPackageError(
            "LoRA needs the package peft: pip install 'simple-multimodal[lora]', or pip install peft."
        ) from error


def add_lora(
    model: TowerModel,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    towers: Sequence[str],
    target_modules: Sequence[str] = (),
) -> None:
    """
    Put low-rank adapters ([Hu et al., 2021](https://huggingface.co/papers/2106.09685)) into linear layers of towers.

    Each such layer adds `alpha / rank * B(A(dropout(x)))` to its output; `B` starts at zero, so that the model's
    outputs do not change at first. In these towers only the adapters are trained; other towers stay as trainable as
    they were. The adapters become part of the configuration, as `lora`, so that a saved model loads with them.

    Args:
        model ([`TowerModel`]): Changed in place; one that has these adapters already keeps their weights.
        rank (`int`): Size of `A(x)`.
        alpha (`int`): Scale of the adapters times `rank`.
        dropout (`float`, *optional*, defaults to 0.0): Share of `x` that is dropped in training.
        towers (`Sequence[str]`): Names of towers of the model, including `fusion`.
        target_modules (`Sequence[str]`, *optional*): Suffixes of the names of the layers, in whole parts; by default
            the projections of attention, [`ATTENTION_PROJECTIONS`].

    Raises:
        ValueError: If the model lacks a tower or layers of that name, or has other adapters.
        ImportError: If `peft` is not installed.
    """
    targets = find_targets(model, towers, target_modules)
    lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}
    if model.config.lora is None:
        inject_lora(model.base_model, lora)
        model.config.lora = model.base_model.config.lora = lora
    elif model.config.lora != lora:
        differing = ", ".join(name for name in lora if lora[name] != model.config.lora[name])
        raise InputError(
            f"The saved model has LoRA adapters with a different {differing}. Use the lora_… settings that it was "
            "trained with, or none and another `output_dir` to start from its merged weights."
        )
    for tower in model.towers.values():
        names = dict(tower.named_parameters())
        if any(".lora_" in name for name in names):
            for name, parameter in names.items():
                parameter.requires_grad_(".lora_" in name)


def find_targets(model: TowerModel, towers: Sequence[str], target_modules: Sequence[str] = ()) -> list[str]:
    """Return the names, in the base model, of the linear layers that [`add_lora`] adapts, with the same arguments."""
    if lacking := [name for name in towers if name not in model.towers]:
        raise InputError(
            f"Cannot add LoRA to {', '.join(lacking)}: this model has {', '.join(model.towers)}. Name some of these "
            "in `lora_towers`."
        )
    found: list[str] = []
    known: list[str] = []
    for tower in towers:
        layers = _linear_layers(model, tower)
        targets = [name for name in layers if _ends_with(name, target_modules or ATTENTION_PROJECTIONS)]
        known += fold_names(layers)
        if not targets:
            raise InputError(
                f"The {tower} tower has no {', '.join(target_modules) or 'attention projection of a known name'} to "
                f"put LoRA into. Name others in `lora_target_modules`; there are {', '.join(fold_names(layers))}."
            )
        found += targets
    if unknown := [end for end in target_modules if not any(_ends_with(name, [end]) for name in found)]:
        raise InputError(
            f"`lora_target_modules` {', '.join(unknown)}: no linear layer of {', '.join(towers)} has a name that ends "
            f"this way. There are {', '.join(known)}."
        )
    return found


def _ends_with(name: str, ends: Sequence[str]) -> bool:
    return f".{name}".endswith(tuple(f".{end}" for end in ends))


def _linear_layers(model: TowerModel, tower: str) -> list[str]:
    """Return the names, in the base model, of a tower's linear layers, with or without adapters."""
    module = model.towers[tower]
    inside, uncalled = set(module.modules()), module.uncalled if isinstance(module, Encoder) else ()
    return [
        name.removesuffix(".base_layer")
        for name, module in model.base_model.named_modules()
        if module in inside
        and isinstance(module, nn.Linear)
        and ".lora_" not in name
        # `nn.MultiheadAttention` reads this layer's weight without calling it: an adapter would do nothing.
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and not _ends_with(name.removesuffix(".base_layer"), uncalled)
    ]


def inject_lora(base_model: PreTrainedModel, lora: Mapping) -> None:
    """
    Replace layers with adapted ones, and leave everything else as trainable as it is.

    Args:
        base_model (`PreTrainedModel`): Model with towers, without a head; changed in place.
        lora (`Mapping`): Arguments of `peft.LoraConfig`.
    """
    peft = require_peft()
    trainable = [parameter for parameter in base_model.parameters() if parameter.requires_grad]
    peft.inject_adapter_in_model(peft.LoraConfig(**lora), base_model)
    for parameter in trainable:
        parameter.requires_grad_()


def merge_lora(model: TowerModel) -> None:
    """Add the adapters to the weights that they belong to, in place and for good, leaving an ordinary model."""
    lora_layer = importlib.import_module("peft.tuners.lora").LoraLayer
    base = model.base_model
    for name, layer in list(base.named_modules()):
        if isinstance(layer, lora_layer):
            layer.merge()
            base.set_submodule(name, layer.get_base_layer())
    del base.peft_config
    model.config.lora = base.config.lora = None


def save_adapter(model: TowerModel, folder: str | os.PathLike[str], *, base_model: str | None = None) -> None:
    """
    Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` loads onto a
    model of this class with the weights that training started from.

    In addition to the adapters, they hold the trained modules outside of the adapted towers, such as heads and the
    fusion (`modules_to_save`), but not the temperature of the contrastive loss, which no prediction depends on.

    Args:
        model ([`TowerModel`]): Model with adapters.
        folder (`str` or `os.PathLike`): Output folder, created if it does not exist.
        base_model (`str`, *optional*): Folder or hub name of the model that training started from, for the record.
    """
    peft = require_peft()
    lora, base = model.config.lora, model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    tensors = {
        f"{prefix}{name}": tensor
        for name, tensor in peft.get_peft_model_state_dict(base, save_embedding_layers=False).items()
    }
    trained = _trained_modules(model)
    for module in trained:
        tensors |= {f"{module}.{name}": tensor for name, tensor in model.get_submodule(module).state_dict().items()}
    config = peft.LoraConfig(
        **lora, modules_to_save=trained or None, base_model_name_or_path=base_model, inference_mode=True
    )
    # Set here because `LoraConfig` turns the names into a set, whose order is not reproducible.
    config.target_modules = [prefix + name for name in lora["target_modules"]]
    config.save_pretrained(os.fspath(folder))
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def _trained_modules(module: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the largest modules without adapters whose parameters are all trained."""
    names = []
    for name, child in module.named_children():
        if any(part.startswith("lora_") for part, _ in child.named_children()):
            continue
        parameters = list(child.parameters())
        is_container = isinstance(child, (nn.ModuleList, nn.ModuleDict))  # which `peft` cannot replace
        if parameters and all(parameter.requires_grad for parameter in parameters) and not is_container:
            names.append(prefix + name)
        else:
            names += _trained_modules(child, f"{prefix}{name}.")
    return names


def prepare_trainable(model: TowerModel, freeze: Sequence[str], lora: Mapping | None, *, resumes: bool) -> None:
    """
    Freeze towers, and add LoRA adapters to others or merge those of a saved model.

    Args:
        model (`TowerModel`): Changed in place.
        freeze (`Sequence[str]`): Towers to freeze.
        lora (`Mapping`, *optional*): Arguments of [`add_lora`]; without `towers`, all but `fusion` and frozen ones.
        resumes (`bool`): Whether the model is a checkpoint of the run that is resumed.

    Raises:
        ValueError: If the model lacks a named tower or layer, or the run is resumed with other adapters.
    """
    model.freeze(freeze)
    if resumes and (lora is None) != (model.config.lora is None):
        raise InputError(
            f"The run in `output_dir` {'has no' if lora else 'has'} LoRA adapters. Use the lora_… settings that it "
            "started with to resume it, or choose another `output_dir`."
        )
    if lora is not None:
        towers = lora["towers"] or [name for name in model.towers if name not in (*freeze, "fusion")]
        if not towers:
            raise InputError(
                f"`lora_rank` has no tower to put adapters into: `freeze` names {', '.join(freeze)}. Remove a tower "
                "from `freeze`, add fusion to `lora_towers`, or leave `lora_rank` out."
            )
        add_lora(model, **{**lora, "towers": towers})
    elif model.config.lora is not None:
        merge_lora(model)
