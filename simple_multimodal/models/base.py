"""What every encoder offers: the contract that an adapter of a tower of `transformers` fulfils; and every model."""

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

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.configuration import ContrastiveForm


def load_weights(model_class: type[PreTrainedModel], name_or_path: str | os.PathLike[str], **settings) -> Any:
    """
    A stock model by `from_pretrained`, without running code out of its files, and what that calls `loading_info`.

    Args:
        model_class (`type`): what to load.
        name_or_path (`str`): folder or hub name.
        settings: arguments of `from_pretrained`.

    Raises:
        ValueError: If its `pytorch_model.bin` holds more than tensors.
        OSError: If there is no such model.
    """
    try:
        return model_class.from_pretrained(name_or_path, output_loading_info=True, **settings)
    except UnpicklingError as error:  # its message advises to run the code
        raise InputError(
            f"{os.fspath(name_or_path)!r}: its pytorch_model.bin is damaged or holds code, so it was not loaded. Get "
            "the weights as model.safetensors, which holds tensors and nothing else."
        ) from error


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of all parameters and saved buffers of a module, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class EncoderOutput(NamedTuple):
    """
    Tokens of one modality.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch_size, num_tokens, hidden_size)`): what the tower's last layer
            gives.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`): `True` = stands for real input, `False` =
            padding.
        seconds (`torch.FloatTensor` of shape `(batch_size, num_tokens)`, *optional*):
            time in the segment that each token stands for, in seconds; `None` for text and whatever else has no time.
        class_tokens (`torch.FloatTensor` of shape `(batch_size, num_windows, hidden_size)`, *optional*):
            states of the tower's class tokens, which only its own decoder reads.
        embedding (`torch.FloatTensor` of shape `(batch_size, embedding_size)`, *optional*):
            what a tower that was trained for retrieval pools and projects by itself, of any length.
        num_steps (`int`, *optional*): moments that the tokens stand for, one after the other and equally many tokens
            each, where they do not follow from the tower's config.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    seconds: torch.Tensor | None
    class_tokens: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    num_steps: int | None = None


def mean_direction(embeddings: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean of embeddings that are scaled to length one before.

    Args:
        embeddings (`torch.Tensor` of shape `(batch_size, num_parts, size)`): of the parts of each row.
        weights (`torch.Tensor` of shape `(batch_size, num_parts)`, *optional*): of the parts, 0 or more; by default
            they are equal.

    Returns:
        `torch.Tensor` of shape `(batch_size, size)`: of length at most one; zeros where no part has a weight.
    """
    parts = F.normalize(embeddings.float(), dim=-1, eps=1e-6)
    if weights is None:
        return parts.mean(dim=1).to(embeddings.dtype)
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return (parts * shares[..., None]).sum(dim=1).to(embeddings.dtype)


class Conversion(NamedTuple):
    """A pretrained tensor made to fit, and the rule by which, in words."""

    tensor: torch.Tensor
    rule: str


def keep_statistics(module: nn.Module) -> None:
    """
    Have batch normalisation use the statistics that it was loaded with, and leave them as they are; its scale and
    shift are trained as ever. To be called after `train()`.

    Statistics of a batch would make a row depend on its neighbours, and so the loss on chunks, on accumulation and on
    the number of processes; running ones would change in forward passes, of which activation checkpoints and chunks
    have two.
    """
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
            part.eval()


class Encoder(nn.Module):
    """
    Base of all encoders: an adapter around a tower of `transformers`, built from a config alone.

    A subclass also inherits from the tower's own `PreTrainedModel`, which brings that tower's weight initialisation,
    activation checkpointing and choice of attention, and so names its tensors as the tower does. It defines `forward`
    and, where a pretrained tensor may not fit, `convert_pretrained`.

    Class attributes:
        modality: `"text"`, `"audio"`, `"video"` or a further one.
        model_type: the `model_type` of the Hugging Face config, which with the modality is the encoder's key in the
            registry.
        pretrained_class: the class of `transformers` that reads a checkpoint together with the head of its masked
            objective, or with its projection.
        composite_class: the class that reads a checkpoint which holds this tower beside another one, such as
            `CLIPModel`; the `model_type` of its config is a key in the registry, too.
        sub_config: the entry of a composite config that is this tower's, such as `"vision_config"`.
        composite_values: values of a composite config that hold for this tower's, whatever that says.
        pretrained_names: how names of these classes start, and what they become: `encoder.…` or `decoder.…`; the
            first entry that fits counts.
        other_names: how the names of a composite checkpoint's other parts start, which are no business of this tower.
        logit_scale_name: what a composite checkpoint calls the logarithm of its inverse temperature.
        contrastive_form: the contrastive loss that the embedding comes from.
        decoder_class: the decoder of the masked objective, built from the same config; `None`: there is none.
        tokens_are_all: whether a model takes nothing of it but tokens; not so of an embedding or number of steps.
        uses_own_processor: whether tokenizer, sound or picture settings come from the tower's checkpoint where no
            other source is named.
        late_embeddings: how names of parameters start that are embeddings, but registered after the layers.
        uncalled: how names of linear layers end whose weights the stock class reads without calling the layers, so
            that an adapter in them would do nothing.
        untrained: how names of parameters start that are never trained.
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
        """Training mode, or the other; see [`keep_statistics`]."""
        super().train(mode)
        keep_statistics(self)
        return self

    @property
    def hidden_size(self) -> int:
        """Size of the tokens."""
        return self.config.hidden_size

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters of each layer, from the lowest up, as `--layer_decay` counts layers."""
        return [list(layer.parameters()) for layer in transformer_layers(self)]

    @property
    def tokens_per_step(self) -> int:
        """How many tokens stand for the same moment; only encoders of sound and video have it."""
        raise NotImplementedError(f"Tokens of the {self.modality} encoder {self.model_type!r} have no time.")

    @property
    def window_frames(self) -> int:
        """Frames of a window of audio, as they are counted along the last axis of `audio_values`."""
        return self.processor_values(self.config)["num_frames"]

    def time_steps(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """
        Which tokens stand for the same moment; by default, neighbours.

        Args:
            num_tokens (`int`): number of tokens of a row when nothing is masked.
            device (`torch.device`, *optional*): where the result is wanted; by default, on the CPU.

        Returns:
            `torch.LongTensor` of shape `(num_tokens,)`: the time step of each token, from 0 to
            `num_tokens // tokens_per_step - 1`.
        """
        return torch.arange(num_tokens, device=device) // self.tokens_per_step

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Every `model_type` of a config that holds this tower's."""
        composite_type = cls._composite_type()
        return (cls.model_type,) if composite_type is None else (cls.model_type, composite_type)

    @classmethod
    def _composite_type(cls) -> str | None:
        return None if cls.composite_class is None else cls.composite_class.config_class.model_type

    @classmethod
    def tower_config(cls, config: PreTrainedConfig, modalities: Sequence[Modality] = ()) -> PreTrainedConfig:
        """This tower's part of a checkpoint's config, in a model of these modalities."""
        if config.model_type != cls._composite_type():
            return config
        tower = getattr(config, cls.sub_config)
        for name in cls.composite_values:
            setattr(tower, name, getattr(config, name))
        return tower

    @classmethod
    def takes_own_processor(cls, config: PreTrainedConfig) -> bool:
        """Whether a checkpoint with this config brings its own processor; see `uses_own_processor`."""
        return cls.uses_own_processor

    @classmethod
    def settings_beside(cls, name_or_path: str) -> dict[str, Any]:
        """Entries for this tower's config out of other files of a checkpoint, by hub name or folder."""
        return {}

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Size of the embedding that the tower pools and projects by itself; `None`: it has none."""
        return None

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """What the tower's config says about its inputs, as arguments of the processor of its modality."""
        return {}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """
        A copy of a tower's config for inputs of another size, where it depends on that; each modality has arguments of
        its own: the `input_size` of its part of the processor.

        Raises:
            ValueError: If the tower cannot take such inputs.
        """
        return config

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Raise a `ValueError` if the tower does not take inputs of the size that its part of the processor makes."""

    def read_pretrained(self, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """Read a checkpoint with the stock class; the second value is what `from_pretrained` calls `loading_info`."""
        model_type = PreTrainedConfig.get_config_dict(name_or_path)[0]["model_type"]
        model_class = self.composite_class if model_type == self._composite_type() else self.pretrained_class
        return load_weights(model_class, name_or_path, **kwargs)  # type: ignore[arg-type]  # one of both it is

    @classmethod
    def computed_tensors(cls, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Tensors that the stock class computes from its config instead of saving them, under our names."""
        return {}

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """
        Make one pretrained tensor fit this encoder's config.

        Args:
            name (`str`): our name of the tensor, which starts with `encoder.` or `decoder.`.
            source (`torch.Tensor`): the pretrained tensor.
            target (`torch.Tensor`): our tensor.
            source_config ([`PreTrainedConfig`]): config of the checkpoint.

        Returns:
            [`Conversion`] or `None` where the tensor needs no conversion or no rule is known; without one it is loaded
            if the shapes agree.
        """
        return None


class TowerModel(PreTrainedModel):
    """Base of all models: towers that can be frozen, or trained at a rate of their own; saved as safetensors alone."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    loss_weights: Mapping[str, float] = {}
    """Weight of each objective that the model trains, by name."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        [`PreTrainedModel.from_pretrained`], which never falls back to a pickle (`pytorch_model.bin`). Should an index
        of safetensors name one all the same, transformers reads tensors from it and runs nothing.

        Raises:
            OSError: There is no such model, or it has no safetensors.
            ValueError: The weights are damaged, or of other shapes than the configuration says.
        """
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs, use_safetensors=True)
        except (SafetensorError, UnpicklingError, RuntimeError) as error:
            raise InputError(f"{pretrained_model_name_or_path}: its weights cannot be loaded: {error}") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_untrained()  # transformers makes every parameter that it loads one that is trained
        model.limit_temperature()
        return loaded

    def post_init(self) -> None:
        super().post_init()
        # What FSDP shards one by one; stock classes also name parts of theirs that our towers do not have.
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._no_split_modules = {type(layer).__name__ for layer in layers}
        self._freeze_untrained()

    def train(self, mode: bool = True) -> Self:
        """Training mode, or the other; see [`keep_statistics`]."""
        super().train(mode)
        keep_statistics(self)
        return self

    def limit_temperature(self) -> None:
        """
        Bring the temperature of the contrastive loss back to its limits, as CLIP does after each step of the optimizer
        ([Radford et al., 2021](https://huggingface.co/papers/2103.00020)); nothing for a model without one.
        """

    def _freeze_untrained(self) -> None:
        for tower in self.towers.values():
            for name, parameter in tower.named_parameters():
                if name.startswith(getattr(tower, "untrained", ())):
                    parameter.requires_grad_(False)

    def get_input_embeddings(self) -> None:
        """None: each tower has its own input."""

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The towers that the model has, and its `fusion`, by name."""
        return self.base_model.towers

    def masked_decoder(self, modality: Modality) -> nn.Module | None:
        """Return the decoder of a modality's masked objective; by default there is none."""
        return None

    def tower_hash(self, modality: Modality) -> str:
        """
        SHA-256 of all that decides what tokens the tower of a modality makes of its input.

        Raises:
            ValueError: If a model takes more of that tower than tokens, so that features cannot stand for it.
        """
        if not getattr(self.towers[modality], "tokens_are_all", True):
            raise InputError(
                f"There are no features of a {self.towers[modality].config.model_type!r} tower: they would hold its "
                "tokens and lack its embedding. Use the tower itself, frozen or not."
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
            sizes (`Mapping[str, tuple[int, ...]]`): What the processor makes for each of these towers.

        Returns:
            The fitted model, and one [`LoadingReport`] per tower.

        Raises:
            ValueError: If a tower cannot take inputs of that size.
        """
        for modality, size in sizes.items():
            self.base_model.check_inputs(modality, *size)
        return self, []

    def freeze(self, names: Sequence[str]) -> None:
        """Keep the weights of these towers (`text`, `audio`, `video`, `fusion`) as they are."""
        for name in names:
            if name not in self.towers:
                raise InputError(
                    f"Cannot freeze {name!r}: this model has {', '.join(self.towers)}. Name some of these."
                )
            self.towers[name].requires_grad_(False)

    def freeze_unreached(self, batch: dict[str, torch.Tensor]) -> list[str]:
        """
        Keep the weights as they are that no gradient can reach, such as the embedding of a modality that no objective
        compares, or the temperature of a model that answers questions.

        They would be no part of what is trained, but `DistributedDataParallel` would wait for their gradients, and the
        optimizer would keep a state for them. What is reached is read off the graph of a forward pass, so that it
        holds for every tower, form of fusion and set of objectives, and for features in place of towers.

        Args:
            batch (`dict[str, torch.Tensor]`): with the entries of the batches to come; of any rows, because every
                batch runs through the same modules. With several processes, in all of them.

        Returns:
            `list[str]`: the names of the parameters that were frozen.

        Raises:
            ValueError: No parameter that is trained is reached.
        """
        was_training = self.training
        self.train()  # the objectives are those of training
        for child in self.children():  # in which nothing is drawn, and no layer is checkpointed
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
                "There is nothing to train: the objectives depend on frozen weights alone. Take a tower out of "
                "--freeze, or give another objective a weight."
            )
        for name in unreached:
            trained[name].requires_grad_(False)
        return unreached

    def checkpoint_activations(self, names: Sequence[str]) -> None:
        """
        Keep of each layer of these towers (`text`, `audio`, `video`, `fusion`) its input alone, and run it again in
        the backward pass ([Chen et al., 2016](https://huggingface.co/papers/1604.06174)).

        Raises:
            ValueError: The model lacks one.
        """
        for name in names:
            if name not in self.towers:
                raise InputError(
                    f"Cannot checkpoint activations of {name!r}: this model has {', '.join(self.towers)}. Name some "
                    "of these in --gradient_checkpointing_towers."
                )
        if not names:
            return
        self.activation_checkpointing_enable()
        self.disable_input_require_grads()  # needed by reentrant checkpoints alone; frozen towers would get gradients
        recomputed = {module for name in names for module in self.towers[name].modules()}
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = module in recomputed


def transformer_layers(tower: nn.Module) -> list[nn.Module]:
    """The layers of a tower, in their order: those of its longest stack; of two as long, the last."""
    stacks = [
        [layer for layer in module if isinstance(layer, GradientCheckpointingLayer)]
        for module in tower.modules()
        if isinstance(module, nn.ModuleList)
    ]
    return max(reversed(stacks), key=len, default=[])
