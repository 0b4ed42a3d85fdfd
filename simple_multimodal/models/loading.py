"""Read configs and pretrained weights of towers, fit saved towers to other inputs, and report on every tensor."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from logging import LogRecord
from math import prod
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from simple_multimodal.errors import InputError
from simple_multimodal.missing import reading
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import Conversion, Encoder, TowerModel
from simple_multimodal.models.configuration import refuse_kernels
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.text.masked_lm import VOCABULARY_TENSORS

AnyTowerModel = TypeVar("AnyTowerModel", bound=TowerModel)

NO_SUCH_TENSOR = "no such tensor in this model"
"""Reason for which most tensors of a checkpoint are not used."""


@dataclass
class LoadingReport:
    """
    What happened to every tensor of a checkpoint, and to every tensor of ours.

    Args:
        name (`str`): Hub name or folder of the checkpoint.
        loaded (`list[str]`): Our tensors that were copied unchanged.
        converted (`dict[str, str]`): Our tensors that were made to fit, with the rule.
        new (`list[str]`): Our tensors without a source in the checkpoint; they keep their random or computed values.
        unused (`dict[str, str]`): Tensors of the checkpoint that were not used, with the reason.
        logit_scale, logit_bias (`torch.Tensor`, *optional*): Scalars that turn the cosines of the checkpoint's
            embeddings into logits; the scale as a logarithm.
    """

    name: str
    loaded: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None

    def summary(self) -> str:
        """Return a text that counts the loaded tensors and names all others; `{0-3}` stands for layers 0 to 3."""
        lines = [
            f"Weights from {self.name}: {len(self.loaded)} tensors loaded, {len(self.converted)} converted, "
            f"{len(self.new)} new, {len(self.unused)} unused."
        ]
        notes = (("converted", self.converted), ("new", dict.fromkeys(self.new, "")), ("unused", self.unused))
        for title, reasons in notes:
            names_by_reason = defaultdict(list)
            for name, reason in reasons.items():
                names_by_reason[reason].append(name)
            for reason, names in names_by_reason.items():
                for folded in fold_names(names):
                    lines.append(f"  {title}: {folded} ({reason})" if reason else f"  {title}: {folded}")
        return "\n".join(lines)


def fold_names(names: Iterable[str]) -> list[str]:
    """
    Fold names that differ only in their numbers into one: `a.0.w, a.1.w, a.2.w` becomes `a.{0-2}.w`.

    Only sets of consecutive numbers are folded, so that the result stands for exactly the given names.
    """
    groups = defaultdict(list)
    for name in names:
        parts = re.split(r"(?<=\.)(\d+)(?=\.)", name)
        groups[tuple(parts[::2])].append(parts[1::2])
    folded = []
    for texts, numbers in groups.items():
        columns = [[int(number) for number in column] for column in zip(*numbers, strict=True)]
        ranges = [range(min(column), max(column) + 1) for column in columns]
        if prod(map(len, ranges)) == len(numbers):
            numbers = [[f"{{{r[0]}-{r[-1]}}}" if len(r) > 1 else str(r[0]) for r in ranges]]
        for row in numbers:
            folded.append("".join(text + number for text, number in zip(texts, [*row, ""], strict=True)))
    return folded


def no_conversion(name: str, source: torch.Tensor, target: torch.Tensor) -> Conversion | None:
    """Convert nothing, so that only tensors of our shape are loaded."""
    return None


@torch.no_grad()
def transfer_tensors(
    name: str,
    source: Mapping[str, torch.Tensor],
    target: nn.Module,
    *,
    rename: Callable[[str], str | None],
    convert: Callable[[str, torch.Tensor, torch.Tensor], Conversion | None] = no_conversion,
) -> LoadingReport:
    """
    Copy tensors into a module by name.

    Args:
        name (`str`): Source of the tensors, for the report.
        source (`Mapping[str, torch.Tensor]`): Tensors by their own names.
        target (`nn.Module`): Module that they are copied into, in place.
        rename (`Callable`): Turns a name of `source` into one of `target`, or `None` where there is no counterpart.
        convert (`Callable`, *optional*):
            Takes (our name, pretrained tensor, our tensor) and returns a [`Conversion`], or `None` to load the tensor
            unchanged if it has our shape. By default nothing is converted.
    """
    report = LoadingReport(name)
    own = target.state_dict()
    for source_name, tensor in source.items():
        own_name = rename(source_name)
        if own_name is None or own_name not in own:
            report.unused[source_name] = NO_SUCH_TENSOR
            continue
        conversion = convert(own_name, tensor, own[own_name])
        if conversion is not None and conversion.tensor.shape == own[own_name].shape:
            own[own_name].copy_(conversion.tensor)
            report.converted[own_name] = conversion.rule
        elif tensor.shape == own[own_name].shape:
            own[own_name].copy_(tensor)
            report.loaded.append(own_name)
        else:
            report.unused[source_name] = f"has shape {tuple(tensor.shape)}, here {tuple(own[own_name].shape)}"
    filled = {*report.loaded, *report.converted}
    report.new = [own_name for own_name in own if own_name not in filled]
    return report


def read_config(name_or_path: str, what: str) -> dict:
    """Return the values of a Hugging Face config, which must name its `model_type`; see [`load_config`]."""
    problem = (
        f"Cannot read the {what} config from {name_or_path!r}, which must be a JSON file, a folder with config.json, "
        "or a name on the hub:"
    )
    with reading(name_or_path, problem):
        values, _ = PreTrainedConfig.get_config_dict(name_or_path)
    if "model_type" not in values:
        raise InputError(
            f"The {what} config {name_or_path!r} has no model_type. Add the name of its architecture, such as "
            '"model_type": "bert".'
        )
    return values


def load_config(name_or_path: str, model_types: Sequence[str], what: str) -> PreTrainedConfig:
    """
    Read a Hugging Face config.

    Args:
        name_or_path (`str`): A JSON file, a folder with a `config.json`, or a name on the hub.
        model_types (`Sequence[str]`): Allowed values of `model_type`.
        what (`str`): Purpose of the config, for error messages, such as `"fusion"`.

    Raises:
        ValueError: If there is no such config, or it is of another type.
    """
    values = read_config(name_or_path, what)
    if values["model_type"] not in model_types:
        raise InputError(
            f"The {what} config {name_or_path!r} has model_type {values['model_type']!r}; allowed are "
            f"{', '.join(map(repr, model_types))}. Use a config of one of these architectures."
        )
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    refuse_kernels(config)
    return config


def load_tower_config(name_or_path: str, modality: Modality, modalities: Sequence[Modality] = ()) -> PreTrainedConfig:
    """
    Read the config of a tower, or the tower's part of a composite config.

    Args:
        name_or_path (`str`): A JSON file, a folder with a `config.json`, or a name on the hub.
        modality (`str`): `"text"`, `"audio"` or `"video"`.
        modalities (`Sequence[str]`, *optional*): Modalities of the model that the tower is for, which decide what
            PE-AV embeds texts for.

    Raises:
        ValueError: If there is no such config, or no encoder for its `model_type`.
    """
    values = read_config(name_or_path, modality)
    encoder_class = get_encoder_class(values["model_type"], modality)
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    refuse_kernels(config)
    tower = encoder_class.tower_config(config, modalities)
    for name, value in encoder_class.settings_beside(name_or_path).items():
        setattr(tower, name, value)
    return tower


def pretrained_tensors(model: PreTrainedModel, missing: set[str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a stock model that came from its checkpoint; of tied ones, only the first name."""
    first_names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    return {name: tensors[name].detach() for name in first_names.values() if name not in missing}


def encoder_and_decoder(encoder: nn.Module, decoder: nn.Module | None) -> nn.ModuleDict:
    """Join an encoder and, if there is one, its decoder, so that names start with `encoder.` or `decoder.`."""
    return nn.ModuleDict({"encoder": encoder} if decoder is None else {"encoder": encoder, "decoder": decoder})


def load_pretrained_tower(
    encoder: Encoder,
    decoder: nn.Module | None,
    name_or_path: str,
    *,
    same_vocabulary: bool = True,
    cache_dir: str | None = None,
) -> LoadingReport:
    """
    Load pretrained weights into an encoder and, if there is one, its decoder, in place.

    The checkpoint is read by its own class of `transformers` with its own config, which also knows the tensor names of
    older files. What does not fit is converted by the rules of `encoder.convert_pretrained`; what cannot be converted
    is named in the report.

    Args:
        encoder ([`Encoder`]): Filled in place.
        decoder (`nn.Module`, *optional*): An `encoder.decoder_class`, filled in place.
        name_or_path (`str`): Hub name or local folder.
        same_vocabulary (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer is the checkpoint's own. If not, word embeddings and the decoder's bias stay new.
        cache_dir (`str`, *optional*): Folder where files from the hub are kept.

    Raises:
        ValueError: If there is no such checkpoint or it is of another architecture.
    """
    config = load_tower_config(name_or_path, encoder.modality)
    if config.model_type != encoder.model_type:
        raise InputError(
            f"{name_or_path!r} holds a {config.model_type!r} model, but the config of the {encoder.modality} tower is "
            f"for {encoder.model_type!r}. Use a checkpoint and a config of the same architecture."
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the stock class reports about itself, not about this tower
    try:
        model, info = encoder.read_pretrained(name_or_path, dtype=torch.float32, cache_dir=cache_dir)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError) as error:
        raise InputError(
            f"Cannot read weights of the {encoder.modality} tower from {name_or_path!r}: {error}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    computed = encoder.computed_tensors(model.config)
    source = {**pretrained_tensors(model, info["missing_keys"]), **computed}

    def rename(name: str) -> str | None:
        if name in computed:
            return name
        for start, own_start in encoder.pretrained_names.items():
            if name.startswith(start):
                return own_start + name.removeprefix(start)
        return None

    others = {name: tensor for name, tensor in source.items() if name.startswith(encoder.other_names)}
    source = {name: tensor for name, tensor in source.items() if name not in others}
    foreign = [] if same_vocabulary else [name for name in source if rename(name) in VOCABULARY_TENSORS]
    report = transfer_tensors(
        name_or_path,
        {name: tensor for name, tensor in source.items() if name not in foreign},
        encoder_and_decoder(encoder, decoder),
        rename=rename,
        convert=lambda name, tensor, own: encoder.convert_pretrained(name, tensor, own, config),
    )
    report.logit_scale, report.logit_bias = others.get(encoder.logit_scale_name), others.get("logit_bias")
    report.unused |= dict.fromkeys(foreign, "belongs to another vocabulary")
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(encoder.other_names))
    report.unused |= dict.fromkeys(unknown, NO_SUCH_TENSOR)
    return report


@torch.no_grad()
def fit_towers(
    model: AnyTowerModel, sizes: Mapping[Modality, tuple[int, ...]]
) -> tuple[AnyTowerModel, list[LoadingReport]]:
    """
    Copy a model and fit towers of the copy to inputs of other sizes, by the rules that convert a checkpoint.

    Args:
        model ([`TowerModel`]): The saved model, with a `MultimodalConfig`.
        sizes (`Mapping[str, tuple[int, ...]]`): Input sizes that the processor makes for each of these towers.

    Returns:
        The fitted model, and one [`LoadingReport`] per tower.

    Raises:
        ValueError: If a tower does not take inputs of that size, or has no rule to convert one of its tensors.
    """
    config = deepcopy(model.config)
    for modality, size in sizes.items():
        tower_config = config.tower_config(modality)
        encoder_class = get_encoder_class(tower_config.model_type, modality)
        setattr(config, f"{modality}_config", encoder_class.fit_config(tower_config, *size))
    fitted = type(model)(config).to(model.dtype).train(model.training)
    own = fitted.state_dict()
    for name, tensor in model.state_dict().items():
        if own[name].shape == tensor.shape:
            own[name].copy_(tensor)
    is_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in fitted.named_parameters():
        parameter.requires_grad_(is_trained[name])
    return fitted, [_fit_tower(model, fitted, modality, size) for modality, size in sizes.items()]


def _fit_tower(model: TowerModel, fitted: TowerModel, modality: Modality, size: tuple[int, ...]) -> LoadingReport:
    """Transfer one tower of a model to the tower of another size in the fitted model."""
    encoder, source_config = fitted.towers[modality], model.config.tower_config(modality)
    report = transfer_tensors(
        f"the saved {modality} tower",
        encoder_and_decoder(model.towers[modality], model.masked_decoder(modality)).state_dict(),
        encoder_and_decoder(encoder, fitted.masked_decoder(modality)),
        rename=lambda name: name,
        convert=lambda name, tensor, own: encoder.convert_pretrained(name, tensor, own, source_config),
    )
    if report.new:
        raise InputError(
            f"The saved {modality} tower {encoder.model_type!r} cannot be fitted to inputs of size {size}: there is "
            f"no rule for {', '.join(report.new)}. Keep the settings of the processor as they were saved."
        )
    return report


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """
    Hide the table of missing and unused tensors that transformers logs when it loads a model, for callers that report
    on them with a [`LoadingReport`]. If loading fails, the table is logged all the same, because errors refer to it.
    """
    held = []

    def hold(record: LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    reporter = logging.get_logger(PreTrainedModel.__module__)
    reporter.addFilter(hold)
    try:
        yield
    except Exception:
        reporter.removeFilter(hold)
        for record in held:
            reporter.handle(record)
        raise
    finally:
        reporter.removeFilter(hold)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers in this context, such as those of reading and writing weights."""
    is_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_shown:
            logging.enable_progress_bar()
