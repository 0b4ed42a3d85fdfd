"""Learning rates by parameter: one per tower, and lower ones for the lower layers of a tower."""

import torch
from torch import nn

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Encoder, TowerModel, transformer_layers
from simple_multimodal.training.arguments import MultimodalTrainingArguments


def tower_layers(tower: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer of a tower or of the fusion, from the lowest up."""
    if isinstance(tower, Encoder):
        return tower.layer_parameters()
    return [list(layer.parameters()) for layer in transformer_layers(tower)]


def number_layers(tower: nn.Module) -> dict[nn.Parameter, int]:
    """
    Return the layer of each parameter of a tower: 0 for embeddings (all that is registered before the layers, and the
    encoder's `late_embeddings`), 1 to N for the layers, N + 1 for what is registered after them (a final norm).
    """
    layers = tower_layers(tower)
    in_layers = {parameter: n for n, layer in enumerate(layers, start=1) for parameter in layer}
    late_embeddings = tower.late_embeddings if isinstance(tower, Encoder) else ()
    numbers: dict[nn.Parameter, int] = {}
    outside = 0
    for name, parameter in tower.named_parameters():
        if parameter in in_layers:
            numbers[parameter] = in_layers[parameter]
            outside = len(layers) + 1
        else:
            numbers[parameter] = 0 if name.startswith(late_embeddings) else outside
    return numbers


def parameter_rates(
    model: TowerModel, args: MultimodalTrainingArguments, learning_rate: float
) -> dict[nn.Parameter, float]:
    """
    Return the learning rates of parameters that may have a different one than the run.

    A tower's rate is `{tower}_learning_rate`, else the run's. With `layer_decay`, layer `n` of N in a tower
    (see [`number_layers`]) has that rate times `layer_decay ** (N + 1 - n)`, as BEiT and VideoMAE are fine-tuned
    ([Bao et al., 2021](https://huggingface.co/papers/2106.08254)). The fusion counts as a head and has the full rate.

    Args:
        model ([`TowerModel`]): Model to train.
        args ([`MultimodalTrainingArguments`]): Arguments of the run.
        learning_rate (`float`): Learning rate of the run.

    Raises:
        ValueError: If a tower with its own rate is not part of the model or not trained, or `layer_decay` is given and
            no tower is trained.
    """
    towers = model.towers
    if lacking := [f"{name}_learning_rate" for name in args.tower_learning_rates if name not in towers]:
        raise InputError(
            f"{', '.join(lacking)} would have no effect: this model has {', '.join(towers)}. Leave out what is named."
        )
    trained = [name for name, tower in towers.items() if any(p.requires_grad for p in tower.parameters())]
    idle = [f"{name}_learning_rate" for name in args.tower_learning_rates if name not in trained]
    if args.layer_decay is not None and not set(trained) - {"fusion"}:
        idle.append("layer_decay")
    if idle:
        raise InputError(
            f"{', '.join(idle)} would have no effect: nothing is trained there (frozen, or no objective reaches "
            "it). Leave out what is named."
        )
    rates: dict[nn.Parameter, float] = {}
    for name, tower in towers.items():
        if name not in args.tower_learning_rates and (args.layer_decay is None or name == "fusion"):
            continue
        rate = args.tower_learning_rates.get(name, learning_rate)
        decay = 1.0 if args.layer_decay is None else args.layer_decay
        top = len(tower_layers(tower)) + 1
        rates |= {parameter: rate * decay ** (top - number) for parameter, number in number_layers(tower).items()}
    return rates


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: dict[nn.Parameter, float]) -> None:
    """Split the parameter groups of a new optimizer in place, so that each parameter in `rates` has its rate."""
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(parameter, group["lr"]), []).append(parameter)
        groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)
