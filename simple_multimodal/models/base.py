"""The interface of every encoder, an adapter around a tower of `transformers`, and of every model."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from simple_multimodal.defaults import Precision
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.configuration import ContrastiveForm


def load_weights(model_class: type[PreTrainedModel], name_or_path: str | os.PathLike[str], **settings) -> Any:
    """
    Load a stock model with `from_pretrained`, without running code from its files; also return its `loading_info`.

    Args:
        model_class (`type`): Class to load.
        name_or_path (`str`): Folder or hub name.
        settings: Arguments of `from_pretrained`.

    Raises:
        ValueError: If its `pytorch_model.bin` holds more than tensors.
        OSError: If there is no such model.
    """
    try:
        return model_class.from_pretrained(name_or_path, output_loading_info=True, **settings)
    except UnpicklingError as error:  # its message suggests running the code
        raise InputError(
            f"{os.fspath(name_or_path)!r}: its pytorch_model.bin is damaged or holds code, so it was not loaded. Get "
            "the weights as model.safetensors, which holds only tensors."
        ) from error


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and persistent buffers of a module, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class EncoderOutput(NamedTuple):
    """
    Tokens of one modality.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): Output of the tower's last
            layer.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` for real input, `False` for padding.
        seconds (`torch.FloatTensor` of shape `(batch_size, num_tokens)`, *optional*):
            Time of each token in the segment, in seconds; `None` for text and other modalities without time.
        class_tokens (`torch.FloatTensor` of shape `(batch_size, num_windows, hidden_size)`, *optional*):
            States of the tower's class tokens, which only its own decoder reads.
        embedding (`torch.FloatTensor` of shape `(batch_size, embedding_size)`, *optional*):
            Embedding that a tower trained for retrieval pools and projects itself, of any length.
        num_steps (`int`, *optional*): Number of successive moments that the tokens stand for, with the same number of
            tokens each, where it does not follow from the tower's config.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    seconds: torch.Tensor | None
    class_tokens: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    num_steps: int | None = None


def mean_direction(embeddings: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """
    Return the mean of embeddings, each scaled to length one first.

    Args:
        embeddings (`torch.Tensor` of shape `(batch_size, num_parts, size)`): Embeddings of the parts of each row.
        weights (`torch.Tensor` of shape `(batch_size, num_parts)`, *optional*): Weights of the parts, 0 or more; equal
            by default.

    Returns:
        `torch.Tensor` of shape `(batch_size, size)`: Means of length at most one; zeros where no part has a weight.
    """
    parts = F.normalize(embeddings.float(), dim=-1, eps=1e-6)
    if weights is None:
        return parts.mean(dim=1).to(embeddings.dtype)
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return (parts * shares[..., None]).sum(dim=1).to(embeddings.dtype)


class Conversion(NamedTuple):
    """A pretrained tensor made to fit, and a description of the rule that was applied."""

    tensor: torch.Tensor
    rule: str


def keep_statistics(module: nn.Module) -> None:
    """
    Make batch normalisation use the statistics that it was loaded with, and leave them unchanged; its scale and shift
    are trained as usual. Call this after `train()`.

    Statistics of a batch would make a row depend on its neighbours, and the loss on chunks, gradient accumulation and
    the number of processes; running statistics would change in forward passes, which activation checkpointing and
    chunks run twice.
    """
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
            part.eval()


class Encoder(nn.Module):
    """
    Base of all encoders: an adapter around a tower of `transformers`, built from a config alone.

    A subclass also inherits from the tower's own `PreTrainedModel`, which provides that tower's weight initialisation,
    activation checkpointing and choice of attention, so its tensors have the tower's names. It defines `forward` and,
    where a pretrained tensor may not fit, `convert_pretrained`.

    Class attributes:
        modality: `"text"`, `"audio"`, `"video"` or a further one.
        model_type: The `model_type` of the Hugging Face config, which together with the modality is the encoder's key
            in the registry.
        pretrained_class: The class of `transformers` that reads a checkpoint together with the head of its masked
            objective, or with its projection.
        composite_class: The class that reads a checkpoint with this tower and another one, such as `CLIPModel`; the
            `model_type` of its config is a key in the registry, too.
        sub_config: The entry of a composite config for this tower, such as `"vision_config"`.
        composite_values: Values of a composite config that override those of this tower's config.
        pretrained_names: Prefixes of the names in these classes and their replacements, `encoder.…` or `decoder.…`;
            the first match counts.
        other_names: Prefixes of the names of a composite checkpoint's other parts, that belong to other towers.
        logit_scale_name: Name of the logarithm of the inverse temperature in a composite checkpoint.
        contrastive_form: The contrastive loss that the embedding was trained with.
        decoder_class: The decoder of the masked objective, built from the same config; `None` if there is none.
        tokens_are_all: Whether a model uses only this tower's tokens (not its `embedding` or `num_steps`).
        uses_own_processor: Whether tokenizer, audio or image settings come from the tower's checkpoint where no other
            source is named.
        late_embeddings: Prefixes of the names of parameters that are embeddings, but registered after the layers.
        uncalled: Suffixes of the names of linear layers whose weights the stock class reads without calling the
            layers, so that an adapter in them would do nothing.
        untrained: Prefixes of the names of parameters that are never trained.
    """

    modality: ClassVar[Modality]
    model_type: ClassVar[str]
    pretrained_class: ClassVar[type[PreTrainedModel]]
    composite_class: ClassVar[type[PreTrainedModel] | None] = None
    sub_config: ClassVar[str]
    composite_values: ClassVar[tuple[str, ...]] = ()
    pretrained_names: ClassVar[dict[str, str]]
    other_names: ClassVar[tuple[str, ...]] = ()
    logit_scale_name: ClassVar[str] = "logit_scale"
    contrastive_form: ClassVar[ContrastiveForm] = "softmax"
    decoder_class: ClassVar[type[PreTrainedModel] | None] = None
    tokens_are_all: ClassVar[bool] = True
    uses_own_processor: ClassVar[bool] = False
    late_embeddings: ClassVar[tuple[str, ...]] = ()
    uncalled: ClassVar[tuple[str, ...]] = ()
    untrained: tuple[str, ...] = ()

    config: PreTrainedConfig
    dtype: torch.dtype  # a property of the stock class

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; see [`keep_statistics`]."""
        super().train(mode)
        keep_statistics(self)
        return self

    @property
    def hidden_size(self) -> int:
        """Size of the tokens."""
        return self.config.hidden_size

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, from the lowest up, as `layer_decay` counts layers."""
        return [list(layer.parameters()) for layer in transformer_layers(self)]

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens that stand for the same moment; only audio and video encoders define it."""
        raise NotImplementedError(f"Tokens of the {self.modality} encoder {self.model_type!r} have no time.")

    @property
    def window_frames(self) -> int:
        """Number of frames in a window of audio, counted along the last axis of `audio_values`."""
        return self.processor_values(self.config)["num_frames"]

    def time_steps(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """
        Return which tokens stand for the same moment; by default, neighbours.

        Args:
            num_tokens (`int`): Number of tokens of a row when nothing is masked.
            device (`torch.device`, *optional*): Device of the result; by default, the CPU.

        Returns:
            `torch.LongTensor` of shape `(num_tokens,)`: the time step of each token, from 0 to
            `num_tokens // tokens_per_step - 1`.
        """
        return torch.arange(num_tokens, device=device) // self.tokens_per_step

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Return every `model_type` of a config that contains this tower's."""
        composite_type = cls._composite_type()
        return (cls.model_type,) if composite_type is None else (cls.model_type, composite_type)

    @classmethod
    def _composite_type(cls) -> str | None:
        return None if cls.composite_class is None else cls.composite_class.config_class.model_type

    @classmethod
    def tower_config(cls, config: PreTrainedConfig, modalities: Sequence[Modality] = ()) -> PreTrainedConfig:
        """Return this tower's part of a checkpoint's config, for a model of these modalities."""
        if config.model_type != cls._composite_type():
            return config
        tower = getattr(config, cls.sub_config)
        for name in cls.composite_values:
            setattr(tower, name, getattr(config, name))
        return tower

    @classmethod
    def takes_own_processor(cls, config: PreTrainedConfig) -> bool:
        """Return whether a checkpoint with this config brings its own processor; see `uses_own_processor`."""
        return cls.uses_own_processor

    @classmethod
    def settings_beside(cls, name_or_path: str) -> dict[str, Any]:
        """Return entries for this tower's config from other files of a checkpoint, given by hub name or folder."""
        return {}

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Return the size of the embedding that the tower pools and projects itself; `None` if it has none."""
        return None

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return what the tower's config says about its inputs, as arguments of its modality's processor."""
        return {}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """
        Copy a tower's config for inputs of another size, where it depends on that. Each modality has its own
        arguments: the `input_size` of its part of the processor.

        Raises:
            ValueError: If the tower cannot take such inputs.
        """
        return config

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Raise a `ValueError` if the tower does not take inputs of the size that its part of the processor makes."""

    def read_pretrained(self, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """Read a checkpoint with the stock class; also return the `loading_info` of `from_pretrained`."""
        model_type = PreTrainedConfig.get_config_dict(name_or_path)[0]["model_type"]
        model_class = self.composite_class if model_type == self._composite_type() else self.pretrained_class
        return load_weights(model_class, name_or_path, **kwargs)  # type: ignore[arg-type]  # it is one of the two

    @classmethod
    def computed_tensors(cls, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Return tensors that the stock class computes from its config instead of saving them, under our names."""
        return {}

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """
        Make one pretrained tensor fit this encoder's config.

        Args:
            name (`str`): Our name of the tensor, which starts with `encoder.` or `decoder.`.
            source (`torch.Tensor`): The pretrained tensor.
            target (`torch.Tensor`): Our tensor.
            source_config ([`PreTrainedConfig`]): Config of the checkpoint.

        Returns:
            [`Conversion`], or `None` if the tensor needs no conversion or no rule is known; it is then loaded if the
            shapes agree.
        """
        return None


class TowerModel(PreTrainedModel):
    """Base of all models: towers can be frozen or trained at their own rate; weights are saved as safetensors only."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    loss_weights: Mapping[str, float] = {}
    """Weight of each objective that the model trains, by name."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        Load a model as [`PreTrainedModel.from_pretrained`] does, but never fall back to a pickle
        (`pytorch_model.bin`). If an index of safetensors names one all the same, transformers reads tensors from it
        and runs nothing.

        Raises:
            OSError: If there is no such model, or it has no safetensors.
            ValueError: If the weights are damaged, or have other shapes than the configuration says.
        """
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs, use_safetensors=True)
        except (SafetensorError, UnpicklingError, RuntimeError) as error:
            raise InputError(f"{pretrained_model_name_or_path}: its weights cannot be loaded: {error}") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_untrained()  # transformers makes every parameter that it loads trainable
        model.limit_temperature()
        return loaded

    def post_init(self) -> None:
        super().post_init()
        # FSDP shards these one by one; stock classes also name parts of theirs that our towers do not have.
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._no_split_modules = {type(layer).__name__ for layer in layers}
        self._freeze_untrained()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; see [`keep_statistics`]."""
        super().train(mode)
        keep_statistics(self)
        return self

    def limit_temperature(self) -> None:
        """
        Bring the temperature of the contrastive loss back to its limits, as CLIP does after each optimizer step
        ([Radford et al., 2021](https://huggingface.co/papers/2103.00020)); do nothing for a model without one.
        """

    def check_precision(self, precision: Precision) -> None:
        """
        Check that the model can compute in a precision; by default it can.

        Raises:
            ValueError: If it cannot.
        """

    def smooth_labels(self, factor: float) -> None:
        """
        Spread a share of each target over all labels in training; by default no loss can do that.

        Raises:
            ValueError: If the model's loss cannot.
        """
        raise InputError(
            f"--label_smoothing_factor would have no effect: {type(self).__name__} does not smooth labels."
        )

    def _freeze_untrained(self) -> None:
        for tower in self.towers.values():
            for name, parameter in tower.named_parameters():
                if name.startswith(getattr(tower, "untrained", ())):
                    parameter.requires_grad_(False)

    def get_input_embeddings(self) -> None:
        """Return `None`: each tower has its own input."""

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The towers that the model has, and its `fusion`, by name."""
        return self.base_model.towers

    def masked_decoder(self, modality: Modality) -> nn.Module | None:
        """Return the decoder of a modality's masked objective; by default there is none."""
        return None

    def tower_hash(self, modality: Modality) -> str:
        """
        Return the SHA-256 of everything that decides which tokens a modality's tower makes of its input.

        Raises:
            ValueError: If the model uses more of that tower than its tokens, so that features cannot replace it.
        """
        if not getattr(self.towers[modality], "tokens_are_all", True):
            raise InputError(
                f"There are no features of a {self.towers[modality].config.model_type!r} tower: they would hold its "
                "tokens but not its embedding. Use the tower itself, frozen or not."
            )
        tower_config = getattr(self.config, f"{modality}_config")
        general = PreTrainedConfig().to_dict()  # of any model, such as the version that saved it
        settings = {name: value for name, value in tower_config.to_dict().items() if name not in general}
        if modality == "video":
            settings |= {"image_mean": self.config.image_mean, "image_std": self.config.image_std}
        weights = hash_weights(self.towers[modality])
        return hashlib.sha256(json.dumps([weights, settings], sort_keys=True).encode()).hexdigest()

    def fit_inputs(self, sizes: Mapping[Modality, tuple[int, ...]]) -> tuple[Self, list[Any]]:
        """
        Fit towers to inputs of other sizes than those that they were saved with; by default none can be fitted.

        Args:
            sizes (`Mapping[str, tuple[int, ...]]`): Input sizes that the processor makes for each of these towers.

        Returns:
            The fitted model, and one [`LoadingReport`] per tower.

        Raises:
            ValueError: If a tower cannot take inputs of that size.
        """
        for modality, size in sizes.items():
            self.base_model.check_inputs(modality, *size)
        return self, []

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze these towers (`text`, `audio`, `video`, `fusion`)."""
        for name in names:
            if name not in self.towers:
                raise InputError(
                    f"Cannot freeze {name!r}: this model has {', '.join(self.towers)}. Name some of these."
                )
            self.towers[name].requires_grad_(False)

    def freeze_unreached(self, batch: dict[str, torch.Tensor]) -> list[str]:
        """
        Freeze the weights that no gradient can reach, such as the embedding of a modality that no objective compares,
        or the temperature of a model that answers questions.

        They would not be trained anyway, but `DistributedDataParallel` would wait for their gradients, and the
        optimizer would keep state for them. Which weights are reached is read off the graph of a forward pass, so it
        holds for every tower, form of fusion and set of objectives, and for features in place of towers.

        Args:
            batch (`dict[str, torch.Tensor]`): A batch with the entries of those to come; its rows do not matter,
                because every batch runs through the same modules. With several processes, call this in all of them.

        Returns:
            `list[str]`: Names of the parameters that were frozen.

        Raises:
            ValueError: If no trainable parameter is reached.
        """
        was_training = self.training
        self.train()  # the objectives are those of training
        for child in self.children():  # nothing random, no checkpointed layers
            child.eval()
        with torch.enable_grad():
            loss = self(**batch).loss
        self.train(was_training)
        reached: set[nn.Parameter] = set()
        nodes = {loss.grad_fn}
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            if node.name() == "torch::autograd::AccumulateGrad":
                reached.add(node.variable)
            following = {other for other, _ in node.next_functions} - nodes
            nodes |= following
            waiting += following
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        unreached = [name for name, parameter in trained.items() if parameter not in reached]
        if len(unreached) == len(trained):
            raise InputError(
                "There is nothing to train: the objectives depend only on frozen weights. Remove a tower from "
                "`freeze`, or give another objective a weight."
            )
        for name in unreached:
            trained[name].requires_grad_(False)
        return unreached

    def checkpoint_activations(self, names: Sequence[str]) -> None:
        """
        Keep only the input of each layer of these towers (`text`, `audio`, `video`, `fusion`), and run the layer again
        in the backward pass ([Chen et al., 2016](https://huggingface.co/papers/1604.06174)).

        Raises:
            ValueError: If the model lacks one of them.
        """
        for name in names:
            if name not in self.towers:
                raise InputError(
                    f"Cannot checkpoint activations of {name!r}: this model has {', '.join(self.towers)}. Name some "
                    "of these in gradient_checkpointing_towers."
                )
        if not names:
            return
        self.activation_checkpointing_enable()
        self.disable_input_require_grads()  # only reentrant checkpoints need it; frozen towers would get gradients
        recomputed = {module for name in names for module in self.towers[name].modules()}
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = module in recomputed


def transformer_layers(tower: nn.Module) -> list[nn.Module]:
    """Return the layers of a tower in order: those of its longest stack; of equally long stacks, the last."""
    stacks = [
        [layer for layer in module if isinstance(layer, GradientCheckpointingLayer)]
        for module in tower.modules()
        if isinstance(module, nn.ModuleList)
    ]
    return max(reversed(stacks), key=len, default=[])
