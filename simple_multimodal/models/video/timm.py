"""Any backbone of timm over each frame as a video encoder."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, TimmWrapperModel
from transformers.initialization import meta_device_safe_creation_ops
from transformers.utils import is_timm_available

from simple_multimodal.errors import InputError
from simple_multimodal.models.video.images import DEFAULT_NUM_FRAMES, FrameEncoder

KERNELS = {"bicubic": "bicubic", "bilinear": "antialias"}
"""Kernels of [`VideoClipProcessor`] by their names in timm."""

RESIZE_MODES = {"center": "short_side_center_crop", "squash": "squash", "border": "pad"}
"""Resize modes of [`VideoClipProcessor`] by timm's crop modes."""


def require_timm() -> None:
    """Raise a `ValueError` if `timm` is not installed."""
    if not is_timm_available():
        raise InputError(
            "A video tower of timm needs the package timm: pip install 'simple-multimodal[timm]', or pip install timm."
        )


class TimmVideoEncoder(FrameEncoder, TimmWrapperModel):
    """
    A backbone of [timm](https://github.com/huggingface/pytorch-image-models), convolutional or not, over each frame;
    see [`FrameEncoder`]. Its tokens are the output of `forward_features`, a feature map row by row.

    Args:
        config ([`TimmWrapperConfig`]): Name of the architecture, and its arguments.
        settings: As in [`ImageEncoder`].

    Raises:
        ValueError: If `timm` is not installed.
    """

    model_type = "timm_wrapper"
    pretrained_class = TimmWrapperModel
    pretrained_names = {"": "encoder."}
    uses_own_processor = False  # `processor_values` covers all that a checkpoint says

    timm_model: Any
    supports_gradient_checkpointing: bool
    _is_checkpointing = False

    def __init__(self, config: PreTrainedConfig, **settings):
        require_timm()
        super().__init__(config, **settings)
        self.untrained = tuple(f"timm_model.{name}" for name in _unused_parameters(config))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm has initialised its weights as each architecture needs, and the stock class would initialise them again
        # like a transformer's. It is still needed for the tables that no file holds.
        initial = {name: parameter.clone() for name, parameter in module.named_parameters(recurse=False)}
        super()._init_weights(module)
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(initial[name])

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames, and size, scaling and normalisation that the checkpoint was trained with."""
        require_timm()
        values = _pretrained_values(config)
        _, height, width = values["input_size"]
        resize_mode = RESIZE_MODES[values["crop_mode"]]
        result = {
            "num_frames": DEFAULT_NUM_FRAMES,
            "size": {"height": height, "width": width},
            "resize_mode": resize_mode,
            "resize_kernel": KERNELS.get(values["interpolation"], "bicubic"),
            "image_mean": list(values["mean"]),
            "image_std": list(values["std"]),
        }
        if resize_mode == "short_side_center_crop" and height == width:
            result["short_side"] = math.floor(height / values["crop_pct"])
        return result

    @property
    def hidden_size(self) -> int:
        """Number of channels of the backbone's output."""
        return self.timm_model.num_features

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backbone only keeps the inputs of its layers; set together with that of all layers."""
        return self._is_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        if self.supports_gradient_checkpointing:
            self.timm_model.set_grad_checkpointing(enable)
        self._is_checkpointing = enable and self.supports_gradient_checkpointing

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Return parameters by layer as timm groups them, without those before the first layer."""
        from timm.models import group_parameters

        groups = group_parameters(self.timm_model, self.timm_model.group_matcher(coarse=False))
        parameters = dict(self.timm_model.named_parameters())
        return [[parameters[name] for name in groups[number]] for number in sorted(groups)[1:]]

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See [`ImageEncoder.encode_images`]."""
        return _as_tokens(self.timm_model.forward_features(pixels), self.timm_model), None


def _as_tokens(features: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Return a backbone's output, tokens or a feature map, as `(num_images, num_tokens, channels)`."""
    if features.ndim == 3:
        return features
    if getattr(backbone, "output_fmt", "NCHW") == "NCHW":  # as timm itself asks: most backbones do not say
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2)


def _unused_parameters(config: PreTrainedConfig) -> list[str]:
    """Return the names of a backbone's parameters behind its features, such as the norm of a head."""
    import timm

    with torch.device("meta"), meta_device_safe_creation_ops(), torch.enable_grad():
        model = timm.create_model(config.architecture, pretrained=False, num_classes=0, **(config.model_args or {}))
        size = _pretrained_values(config)["input_size"]
        model.eval().forward_features(torch.empty(1, *size)).sum().backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def _pretrained_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what timm says about the images of a checkpoint, with the size that the model was built for."""
    from timm.data import resolve_data_config

    size = (config.model_args or {}).get("img_size")
    given = {} if size is None else {"input_size": (3, *((size, size) if isinstance(size, int) else size))}
    own = config.to_dict().get("pretrained_cfg")
    if own is None:
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(config.architecture)
        own = {} if known is None else known.to_dict()
    return resolve_data_config(given, pretrained_cfg=own)
