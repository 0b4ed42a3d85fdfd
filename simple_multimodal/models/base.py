"""What every encoder offers: the contract that an adapter of a tower of `transformers` fulfils; and every model."""

import hashlib
import json
import os
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from simple_multimodal.modalities import Modality


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
        raise ValueError(
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
            time in the segment that each token stands for, in seconds; `None` for text.
        class_tokens (`torch.FloatTensor` of shape `(batch_size, num_windows, hidden_size)`, *optional*):
            states of the tower's class tokens, which only its own decoder reads.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    seconds: torch.Tensor | None
    class_tokens: torch.Tensor | None = None


class Conversion(NamedTuple):
    """A pretrained tensor made to fit, and the rule by which, in words."""

    tensor: torch.Tensor
    rule: str


class Encoder(nn.Module):
    """
    Base of all encoders: an adapter around a tower of `transformers`, built from a config alone.

    A subclass also inherits from the tower's own `PreTrainedModel`, which brings that tower's weight initialisation,
    activation checkpointing and choice of attention, and so names its tensors as the tower does. It defines `forward`
    and, where a pretrained tensor may not fit, `convert_pretrained`.

    Class attributes:
        modality: `"text"`, `"audio"` or `"video"`.
        model_type: the `model_type` of the Hugging Face config, which is the encoder's key in the registry.
        pretrained_class: the class of `transformers` that reads a checkpoint together with the head of its masked
            objective.
        pretrained_names: how names of `pretrained_class` start, and what they become: `encoder.…` or `decoder.…`; the
            first entry that fits counts.
        decoder_class: the decoder of the masked objective, built from the same config.
    """

    modality: ClassVar[Modality]
    model_type: ClassVar[str]
    pretrained_class: ClassVar[type[PreTrainedModel]]
    pretrained_names: ClassVar[dict[str, str]]
    decoder_class: ClassVar[type[PreTrainedModel]]

    config: PreTrainedConfig

    @property
    def hidden_size(self) -> int:
        """Size of the tokens."""
        return self.config.hidden_size

    def time_steps(self, num_tokens: int) -> torch.Tensor:
        """
        Which tokens stand for the same moment; only encoders of sound and video have it.

        Args:
            num_tokens (`int`): number of tokens of a row when nothing is masked.

        Returns:
            `torch.LongTensor` of shape `(num_tokens,)`, on the CPU: the time step of each token, from 0.
        """
        raise NotImplementedError(f"Tokens of the {self.modality} encoder {self.model_type!r} have no time.")

    @classmethod
    def read_pretrained(cls, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """Read a checkpoint with the stock class; the second value is what `from_pretrained` calls `loading_info`."""
        return load_weights(cls.pretrained_class, name_or_path, **kwargs)

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
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs, use_safetensors=True)
        except (SafetensorError, UnpicklingError, RuntimeError) as error:
            raise ValueError(f"{pretrained_model_name_or_path}: its weights cannot be loaded: {error}") from error

    def post_init(self) -> None:
        super().post_init()
        # What FSDP shards one by one; stock classes also name parts of theirs that our towers do not have.
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._no_split_modules = {type(layer).__name__ for layer in layers}

    def get_input_embeddings(self) -> None:
        """None: each tower has its own input."""

    @property
    def towers(self) -> dict[str, nn.Module]:
        """The towers that the model has, and its `fusion`, by name."""
        return self.base_model.towers

    def tower_hash(self, modality: Modality) -> str:
        """SHA-256 of all that decides what the tower of `"audio"` or `"video"` makes of its input."""
        tower_config = self.config.video_config if modality == "video" else self.config.audio_config
        general = PreTrainedConfig().to_dict()  # of any model, such as the version that saved it
        settings = {name: value for name, value in tower_config.to_dict().items() if name not in general}
        if modality == "video":
            settings |= {"image_mean": self.config.image_mean, "image_std": self.config.image_std}
        weights = hash_weights(self.towers[modality])
        return hashlib.sha256(json.dumps([weights, settings], sort_keys=True).encode()).hexdigest()

    def freeze(self, names: Sequence[str]) -> None:
        """Keep the weights of these towers (`text`, `audio`, `video`, `fusion`) as they are."""
        for name in names:
            if name not in self.towers:
                raise ValueError(
                    f"Cannot freeze {name!r}: this model has {', '.join(self.towers)}. Name some of these."
                )
            self.towers[name].requires_grad_(False)
