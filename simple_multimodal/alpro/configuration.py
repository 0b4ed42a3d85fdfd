"""The typed configuration of ALPRO: a BERT whose upper layers fuse, and a TimeSformer."""

from types import MappingProxyType

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig, TimesformerConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from simple_multimodal.modalities import Modality
from simple_multimodal.models.configuration import refuse_kernels


@strict
class AlproConfig(PreTrainedConfig):
    r"""
    Configuration of [`AlproModel`] and its heads. The defaults are those of the published checkpoints.

    Args:
        text_config (`dict` or `BertConfig`, *optional*):
            The BERT, text layers and fusion layers together; BERT-base by default.
        video_config (`dict` or `TimesformerConfig`, *optional*):
            The TimeSformer; ViT-B/16 with divided space-time attention over 8 frames by default.
        fusion_layer (`int`, *optional*, defaults to 6):
            First layer of the BERT that sees text and video; those below only see text.
        contrastive_dim (`int`, *optional*, defaults to 256):
            Size of the embeddings that are compared by cosine.
        temperature_init_value (`float`, *optional*, defaults to 0.07):
            Initial divisor of the cosines.
        drop_path_rate (`float`, *optional*, defaults to 0.1):
            Probability in training that the last layer of the TimeSformer drops a residual; it grows from 0 over the
            layers. It is set here because `TimesformerConfig` (transformers 5.23) only takes whole numbers.
        image_mean, image_std (`list[float]`, *optional*, default to those of CLIP):
            Normalisation of `uint8` pixels on the device, per RGB channel, in units of 0 to 1.
        contrastive_tv_loss_weight, matching_loss_weight (`float`, *optional*, default to 1.0):
            Weight of each objective of retrieval; 0 leaves it out.
        hard_negative_ratio (`float`, *optional*, defaults to 1.0):
            As in [`MultimodalConfig`].
        rerank_top_k (`int`, *optional*), task (`str`, *optional*):
            As in [`MultimodalConfig`].
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new heads.
        lora (`dict`, *optional*):
            Adapters that the model is built with, as in [`MultimodalConfig`].
    """

    model_type = "alpro"
    measured_settings = MappingProxyType({"rerank_top_k": None})  # set by evaluation, as in `MultimodalConfig`
    sub_configs = {"text_config": BertConfig, "video_config": TimesformerConfig}

    text_config: dict | PreTrainedConfig | None = None
    video_config: dict | PreTrainedConfig | None = None
    fusion_layer: int = 6
    contrastive_dim: int = 256
    temperature_init_value: float = 0.07
    drop_path_rate: float = 0.1
    image_mean: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    contrastive_tv_loss_weight: float = 1.0
    matching_loss_weight: float = 1.0
    hard_negative_ratio: float = 1.0
    rerank_top_k: int | None = None
    task: str | None = None
    initializer_range: float = 0.02
    lora: dict | None = None

    def __post_init__(self, **kwargs):
        for key, config_class in self.sub_configs.items():
            value = getattr(self, key)
            if value is None or isinstance(value, dict):
                setattr(self, key, config_class(**(value or {})))
        super().__post_init__(**kwargs)
        for config in (self, self.text_config, self.video_config):
            refuse_kernels(config)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities that the model reads."""
        return ("text", "video")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the retrieval objectives that are enabled, by name."""
        weights = {"contrastive_tv": self.contrastive_tv_loss_weight, "matching": self.matching_loss_weight}
        return {name: weight for name, weight in weights.items() if weight > 0}
