"""The typed configuration of a multimodal model: one sub-configuration per tower, one for the fusion."""

from types import MappingProxyType
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import MODALITIES, Modality

FusionForm = Literal["merge", "co_attention", "cross_attention"]
FusionPool = Literal["none", "time"]
ContrastiveForm = Literal["softmax", "sigmoid"]
ClipEmbedding = Literal["fusion", "mean"]

OBJECTIVES = ("mlm", "mam", "mvm", "contrastive_tv", "contrastive_ta", "contrastive_av", "contrastive_tav", "matching")
"""Names of the pre-training objectives; each has a weight `{name}_loss_weight` in the configuration."""

MASKED_OBJECTIVES: dict[str, Modality] = {"mlm": "text", "mam": "audio", "mvm": "video"}
"""The modality that each masked objective predicts."""

CONTRASTIVE_PAIRS: dict[str, tuple[str, str]] = {
    "contrastive_tv": ("text", "video"),
    "contrastive_ta": ("text", "audio"),
    "contrastive_av": ("audio", "video"),
    "contrastive_tav": ("text", "clip"),
}
"""The two sides that each contrastive objective compares; `clip` is audio and video fused without text."""


LATER_SETTINGS: dict[str, tuple[str, ...]] = {
    "pose_config": (),
    "text_backbone_config": (
        "mapper_strides",
        "mapper_dropout",
        "encoder_prompt",
        "decoder_prompt",
        "max_target_length",
    ),
}
"""Parts that models did not always have, with their further settings."""


def refuse_kernels(config: PreTrainedConfig) -> None:
    """
    Refuse a configuration whose attention (or experts) is a repository on the hub, whose code would be run.

    Raises:
        ValueError: If it is one.
    """
    for value in (config._attn_implementation, config._experts_implementation):
        if value is not None and "/" in value:
            raise InputError(
                f"The {config.model_type} configuration names {value!r} as its attention: code from the hub, which is "
                "not run. Remove the entry, or use 'eager', 'sdpa' or another attention that is part of transformers."
            )


class _SubConfigs:
    """Names of all sub-configurations, including those of modalities that are added later."""

    def __get__(self, config: PreTrainedConfig | None, owner: type) -> dict[str, type[AutoConfig]]:
        # Not `fusion_config`: transformers reads a setting of that name for its fused kernels.
        return {f"{name}_config": AutoConfig for name in (*MODALITIES, "crossformer", "text_backbone")}


@strict
class MultimodalConfig(PreTrainedConfig):
    r"""
    Configuration of [`MultimodalModel`] and its heads. A modality whose sub-configuration is `None` is not part of the
    model.

    Args:
        text_config, audio_config, video_config, pose_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of each tower, with a `model_type` that `simple_multimodal.models.encoders.ENCODERS` knows. A
            further modality has its tower's configuration in `{modality}_config`, too.
        crossformer_config (`dict` or `PreTrainedConfig`):
            A ViT configuration (pre-norm layers) or a BERT configuration (post-norm layers) that gives the sizes of
            the crossformer.
        fusion_form (`str`, *optional*, defaults to `"cross_attention"`):
            `merge`, `co_attention` or `cross_attention`; see [`Crossformer`].
        fusion_pool (`str`, *optional*, defaults to `"none"`):
            `time` averages the audio tokens, and the video tokens, that stand for the same moment before fusion.
        contrastive_dim (`int`, *optional*, defaults to 768):
            Size of the embeddings that are compared by cosine.
        contrastive_form (`str`, *optional*, defaults to `"softmax"`):
            `softmax` (InfoNCE, as in CLIP) or `sigmoid` (as in SigLIP).
        contrastive_loss_before_fusion (`bool`, *optional*, defaults to `True`):
            Whether text, audio and video embeddings pool the towers' own tokens. If `False`, each modality's tokens go
            through the fusion layers first, alone. A tower with its own embedding provides that instead of the mean of
            its tokens; if its size is `contrastive_dim`, nothing is projected.
        clip_embedding (`str`, *optional*, defaults to `"fusion"`):
            How a clip is embedded: `fusion` pools its tokens after the fusion layers; `mean` is the mean of its audio
            and video embeddings, of those it has.
        frame_pooling_layers (`int`, *optional*, defaults to 0):
            Layers of the [`FrameTransformer`] of a video tower that encodes single frames; with 0, a clip's embedding
            is the mean of its frame embeddings.
        share_masked_pass (`bool`, *optional*, defaults to `False`):
            Whether contrastive and matching losses use the masked inputs of the masked objectives (one pass through
            each tower in training) instead of clean ones.
        hard_negative_ratio (`float`, *optional*, defaults to 1.0):
            Share of the matching negatives that are sampled by similarity; the others are any clips of the batch.
            Training for thousands of steps on few clips needs those, too: see `docs/models.md`.
        matching_residual (`bool`, *optional*, defaults to `False`):
            Whether pairs are ranked by the scaled cosine plus the weighted log odds of the matching head, instead of
            by the head alone; see [`ranking_scores`]. `train.py` sets it for new models; models saved without this
            entry keep their scores.
        matching_weight (`float`, *optional*, defaults to 1.0):
            Weight of the matching head's log odds in that sum: the one of [`MATCHING_WEIGHTS`] with the best R@1 on
            the validation split. Evaluation during training sets it.
        rerank_top_k (`int`, *optional*):
            Number of first candidates that are re-ranked by matching unless another one is given: the number that gave
            a better R@1 than the cosine alone on the validation split, else 0; `None`: not measured, treated as 0.
            Evaluation during training sets it.
        task (`str`, *optional*):
            Name of the task that the model was trained for; models saved without it are identified by their class.
        problem_type (`str`, *optional*):
            Of a classifier: `single_label_classification` or `multi_label_classification`.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before the classifier of video classification.
        label_frequencies (`list[float]`, *optional*):
            Share of the training rows that have each label, from which the bias of a new classifier starts.
        positive_focus, negative_focus, negative_margin (`float`, *optional*, default to 0.0):
            Form of the loss of many labels, see [`asymmetric_loss`].
        text_backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the sequence-to-sequence or decoder-only model that writes text.
        mapper_strides (`int`, *optional*, defaults to 0), mapper_dropout (`float`, *optional*, defaults to 0.1):
            Convolutions that each halve the number of tokens that the backbone sees, and the dropout after them; see
            [`Mapper`].
        encoder_prompt, decoder_prompt (`str`, *optional*, default to `""`), max_target_length (`int`, *optional*,
            defaults to 128):
            Texts in front of a clip and at the beginning of its text, and the largest number of tokens of a text in
            training; see [`TextTargets`].
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Natural logarithm of the initial inverse temperature (1 / 0.07).
        image_mean, image_std (`list[float]`):
            Normalisation of `uint8` pixels on the device, per RGB channel, in units of 0 to 1.
        {objective}_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of each pre-training objective; 0 leaves the objective and its decoder out.
        initializer_range (`float`, *optional*):
            Standard deviation of new projections and heads; by default that of `crossformer_config`. A narrow fusion
            needs a larger one than the 0.02 of wide ones: see `docs/architecture.md`.
        lora (`dict`, *optional*):
            Adapters that the model is built with, see [`add_lora`]: arguments of `peft.LoraConfig`, with the names of
            all adapted layers as `target_modules`.
    """

    model_type = "simple_multimodal"
    sub_configs = _SubConfigs()
    measured_settings = MappingProxyType({"matching_weight": 1.0, "rerank_top_k": None})  # set by evaluation

    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    video_config: dict | PreTrainedConfig | None = None
    pose_config: dict | PreTrainedConfig | None = None
    crossformer_config: dict | PreTrainedConfig | None = None
    text_backbone_config: dict | PreTrainedConfig | None = None
    fusion_form: FusionForm = "cross_attention"
    fusion_pool: FusionPool = "none"
    contrastive_dim: int = 768
    contrastive_form: ContrastiveForm = "softmax"
    contrastive_loss_before_fusion: bool = True
    clip_embedding: ClipEmbedding = "fusion"
    frame_pooling_layers: int = 0
    share_masked_pass: bool = False
    hard_negative_ratio: float = 1.0
    matching_residual: bool = False
    matching_weight: float = 1.0
    rerank_top_k: int | None = None
    task: str | None = None
    classifier_dropout: float = 0.1
    label_frequencies: list[float] | None = None
    positive_focus: float = 0.0
    negative_focus: float = 0.0
    negative_margin: float = 0.0
    mapper_strides: int = 0
    mapper_dropout: float = 0.1
    encoder_prompt: str = ""
    decoder_prompt: str = ""
    max_target_length: int = 128
    logit_scale_init_value: float = 2.6592
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    initializer_range: float | None = None
    lora: dict | None = None
    mlm_loss_weight: float = 1.0
    mam_loss_weight: float = 1.0
    mvm_loss_weight: float = 1.0
    contrastive_tv_loss_weight: float = 1.0
    contrastive_ta_loss_weight: float = 1.0
    contrastive_av_loss_weight: float = 1.0
    contrastive_tav_loss_weight: float = 1.0
    matching_loss_weight: float = 1.0

    def __post_init__(self, **kwargs):
        for key in self.sub_configs:
            value = kwargs.pop(key) if key in kwargs else getattr(self, key, None)
            if isinstance(value, dict):
                if "model_type" not in value:
                    raise InputError(f"`{key}` has no `model_type`; name the architecture, for example 'videomae'.")
                value = AutoConfig.for_model(**value)
            setattr(self, key, value)
        for key, value in kwargs.items():
            if key.endswith("_config") and isinstance(value, dict) and "model_type" in value:
                raise InputError(
                    f"`{key}` is for a tower of an unknown modality; known are {', '.join(MODALITIES)}. Import the "
                    "module that adds it before loading the model."
                )
        if self.initializer_range is None and self.crossformer_config is not None:
            self.initializer_range = self.crossformer_config.initializer_range
        super().__post_init__(**kwargs)
        for config in (self, *filter(None, (getattr(self, key) for key in self.sub_configs))):
            refuse_kernels(config)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the settings. Those of poses and of text backbones are left out for a model without them: what is stored
        with a model's fingerprint stays valid.
        """
        output = super().to_dict()
        for part, settings in LATER_SETTINGS.items():
            if getattr(self, part) is None:
                for name in (part, *settings):
                    output.pop(name, None)
        return output

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities this model has, in canonical order."""
        return tuple(m for m in MODALITIES if self.tower_config(m) is not None)

    def tower_config(self, modality: Modality) -> PreTrainedConfig | None:
        """Return the configuration of one tower, or `None` if the model lacks the modality."""
        return getattr(self, f"{modality}_config")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the objectives that are enabled and that this model's modalities allow, by name."""
        weights = {
            "mlm": (self.mlm_loss_weight, {"text"}),
            "mam": (self.mam_loss_weight, {"audio"}),
            "mvm": (self.mvm_loss_weight, {"video"}),
            "contrastive_tv": (self.contrastive_tv_loss_weight, {"text", "video"}),
            "contrastive_ta": (self.contrastive_ta_loss_weight, {"text", "audio"}),
            "contrastive_av": (self.contrastive_av_loss_weight, {"audio", "video"}),
            "contrastive_tav": (self.contrastive_tav_loss_weight, {"text"}),
            "matching": (self.matching_loss_weight, {"text"}),
        }
        has_clip = any(m != "text" for m in self.modalities)
        return {
            name: weight
            for name, (weight, needed) in weights.items()
            if weight > 0
            and needed <= set(self.modalities)
            and (has_clip or name not in ("contrastive_tav", "matching"))
        }
