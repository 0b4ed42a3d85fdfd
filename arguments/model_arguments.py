"""What the model is made of: its towers, where their weights come from, and the objectives that train it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from simple_multimodal.modalities import MODALITIES

logger = logging.get_logger("simple_multimodal")

PROJECT_FOLDER = Path(__file__).resolve().parents[1]
"""The folder of `train.py`; `configs/...` is found there from any working directory."""

TOWERS = (*MODALITIES, "fusion")

DEFAULT_CONFIG_NAMES = {
    "text": "configs/text/debertv2_config_small.json",
    "audio": "configs/audio/mae_config_small.json",
    "video": "configs/video/videomae_config_small.json",
    "fusion": "configs/crossformer/vit_config_small.json",
}
"""The config of a tower for which neither a model nor a config is named."""


def find_config(name: str) -> str:
    """
    Finds a config file in the working directory or, failing that, beside `train.py`.

    Args:
        name (`str`): A path such as `configs/runs/toy.yaml`, or a hub name.

    Returns:
        `str`: The absolute path of the file beside `train.py` when only that one exists; otherwise `name` unchanged,
        so that a hub name, or the name of a file that is missing, reaches whoever opens it.
    """
    beside_train_py = PROJECT_FOLDER / name
    if not Path(name).exists() and beside_train_py.exists():
        return str(beside_train_py)
    return name


@dataclass
class ModelArguments:
    """
    Arguments about the model. Towers are named `text`, `audio`, `video` and `fusion`.

    A tower starts from the weights of its `*_model_name_or_path`, else from random weights in the shape of its
    `*_config_name`, else in the shape of a small config of this repository.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"group": "Model", "help": "Folder or hub name of a whole saved model to start from or to evaluate."},
    )
    task: Literal["pretraining", "retrieval", "question_answering"] = field(
        default="pretraining",
        metadata={
            "group": "Model",
            "help": "pretraining: all objectives; retrieval: contrastive and matching only; question_answering: "
            "choose an answer (columns question and answer).",
        },
    )
    answers_file: str | None = field(
        default=None,
        metadata={
            "group": "Model",
            "help": "JSON object of answers and their numbers, for question_answering; the training answers when not "
            "given.",
        },
    )
    modalities: list[str] = field(
        default_factory=lambda: list(MODALITIES),
        metadata={"group": "Model", "choices": MODALITIES, "help": "Modalities that are part of the model."},
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "group": "Model",
            "choices": TOWERS,
            "help": "Towers whose weights stay as they are. Default: none.",
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "group": "Model",
            "help": "Folder for what is downloaded from the hub. Default: that of the Hugging Face libraries.",
        },
    )

    lora_rank: int | None = field(
        default=None,
        metadata={
            "group": "LoRA",
            "help": "Rank of low-rank adapters (LoRA), trained in place of the weights of towers. Default: no LoRA.",
        },
    )
    lora_alpha: int | None = field(
        default=None,
        metadata={"group": "LoRA", "help": "What adapters give is scaled by alpha / rank. Default: 2 * rank."},
    )
    lora_dropout: float = field(
        default=0.0, metadata={"group": "LoRA", "help": "Dropout of the adapters' inputs, from 0 to below 1."}
    )
    lora_towers: list[str] = field(
        default_factory=list,
        metadata={
            "group": "LoRA",
            "choices": TOWERS,
            "help": "Towers with adapters. Default: text, audio and video, but those in --freeze.",
        },
    )
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={
            "group": "LoRA",
            "help": "Ends of the names of the linear layers with adapters, such as query fc1. Default: the "
            "projections of attention.",
        },
    )

    text_model_name_or_path: str | None = field(
        default=None, metadata={"group": "Text", "help": "Hub name or folder of the text tower's weights."}
    )
    text_config_name: str | None = field(
        default=None,
        metadata={"group": "Text", "help": "Hugging Face config (JSON file or hub name) of the text tower."},
    )
    text_attn_implementation: str | None = field(
        default=None,
        metadata={"group": "Text", "help": "eager or sdpa; the best that the architecture offers when not given."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "group": "Text",
            "help": "Hub name or folder of the tokenizer; trained on the training captions when not given.",
        },
    )

    audio_model_name_or_path: str | None = field(
        default=None, metadata={"group": "Audio", "help": "Hub name or folder of the audio tower's weights."}
    )
    audio_config_name: str | None = field(
        default=None,
        metadata={"group": "Audio", "help": "Hugging Face config (JSON file or hub name) of the audio tower."},
    )
    audio_attn_implementation: str | None = field(
        default=None,
        metadata={"group": "Audio", "help": "eager or sdpa; the best that the architecture offers when not given."},
    )
    audio_processor_name: str | None = field(
        default=None,
        metadata={"group": "Audio", "help": "Hub name or folder whose preprocessor config holds the audio settings."},
    )

    video_model_name_or_path: str | None = field(
        default=None, metadata={"group": "Video", "help": "Hub name or folder of the video tower's weights."}
    )
    video_config_name: str | None = field(
        default=None,
        metadata={"group": "Video", "help": "Hugging Face config (JSON file or hub name) of the video tower."},
    )
    video_attn_implementation: str | None = field(
        default=None,
        metadata={"group": "Video", "help": "eager or sdpa; the best that the architecture offers when not given."},
    )
    video_processor_name: str | None = field(
        default=None,
        metadata={"group": "Video", "help": "Hub name or folder whose preprocessor config holds the video settings."},
    )

    frame_pooling_layers: int = field(
        default=0,
        metadata={
            "group": "Video",
            "help": "Layers of a transformer over the embeddings of a clip's frames (CLIP, SigLIP), which starts as "
            "their mean; 0: the mean.",
        },
    )

    fusion_model_name_or_path: str | None = field(
        default=None,
        metadata={"group": "Fusion", "help": "Hub name or folder of ViT or BERT weights for the crossformer."},
    )
    fusion_config_name: str | None = field(
        default=None,
        metadata={"group": "Fusion", "help": "ViT or BERT config (JSON file or hub name) of the crossformer."},
    )
    fusion_form: Literal["merge", "co_attention", "cross_attention"] = field(
        default="cross_attention",
        metadata={
            "group": "Fusion",
            "help": "merge: one sequence of all tokens; co_attention: every stream also attends to the others; "
            "cross_attention: text attends to audio-video states that never see the text.",
        },
    )
    fusion_pool: Literal["none", "time"] = field(
        default="none",
        metadata={"group": "Fusion", "help": "time: average the audio and video tokens of one time before fusion."},
    )

    contrastive_dim: int | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Size of the contrastive embeddings, in numbers; the towers' own, else 768, when not given.",
        },
    )
    contrastive_loss_before_fusion: bool = field(
        default=True,
        metadata={"group": "Objectives", "help": "Contrast the towers' own tokens; False: after the fusion layers."},
    )
    clip_embedding: Literal["fusion", "mean"] | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "What a clip is found by. fusion: its tokens after the fusion layers; mean: the mean of its "
            "modalities' embeddings, the default where all towers come from one checkpoint with a common space.",
        },
    )
    contrastive_form: Literal["softmax", "sigmoid"] | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "softmax as in CLIP or sigmoid as in SigLIP; that of the towers' common checkpoint, else softmax, "
            "when not given.",
        },
    )
    mlm_loss_weight: float | None = field(
        default=None,
        metadata={"group": "Objectives", "help": "Weight of masked language modelling; 1 when not given, 0: off."},
    )
    mam_loss_weight: float | None = field(
        default=None,
        metadata={"group": "Objectives", "help": "Weight of masked audio modelling; 1 when not given, 0: off."},
    )
    mvm_loss_weight: float | None = field(
        default=None,
        metadata={"group": "Objectives", "help": "Weight of masked video modelling; 1 when not given, 0: off."},
    )
    contrastive_tv_loss_weight: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Weight of the contrastive loss text-video; 1 when not given, 0: off.",
        },
    )
    contrastive_ta_loss_weight: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Weight of the contrastive loss text-audio; 1 when not given, 0: off.",
        },
    )
    contrastive_av_loss_weight: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Weight of the contrastive loss audio-video; 1 when not given, 0: off.",
        },
    )
    contrastive_tav_loss_weight: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Weight of the contrastive loss text-clip (audio and video); 1 when not given, 0: off.",
        },
    )
    matching_loss_weight: float | None = field(
        default=None,
        metadata={"group": "Objectives", "help": "Weight of text-clip matching; 1 when not given, 0: off."},
    )
    mlm_probability: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Share of a caption's tokens to predict, 0 to 1; 0.3 when not given.",
        },
    )
    audio_mask_ratio: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Share of a window's audio patches to mask, 0 to 1; 0.3 when not given.",
        },
    )
    video_mask_ratio: float | None = field(
        default=None,
        metadata={"group": "Objectives", "help": "Share of a clip's video tubes to mask, 0 to 1; 0.8 when not given."},
    )
    vt_match_ratio: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Share of rows that keep their pair for matching, 0 to 1; the others get a negative; 0.5 when "
            "not given.",
        },
    )
    hard_negative_ratio: float | None = field(
        default=None,
        metadata={
            "group": "Objectives",
            "help": "Share of the negative clips that are drawn by similarity, 0 to 1, instead of any clip of the "
            "batch; 1 when not given.",
        },
    )
    share_masked_pass: bool = field(
        default=False,
        metadata={
            "group": "Objectives",
            "help": "One masked pass for all objectives: faster, but contrast is masked too.",
        },
    )

    def __post_init__(self) -> None:
        self.modalities = [name for name in MODALITIES if name in self.modalities]
        self.freeze = [name for name in TOWERS if name in self.freeze]
        for name, value in vars(self).items():
            if name.endswith(("_ratio", "_probability")) and value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} is {value}; it is a share: give a number from 0 to 1.")
            if name.endswith("_weight") and value is not None and value < 0:
                raise ValueError(f"--{name} is {value}; give a number from 0 (off) upwards.")
        self.lora_towers = [name for name in TOWERS if name in self.lora_towers]
        self._check_lora()
        self._check_frame_pooling()
        if self.model_name_or_path is not None:
            unused = [f"--{name}" for name in self.part_names if vars(self)[name] is not None]
            if unused:
                logger.warning(
                    f"--model_name_or_path names a whole model with its own towers and processor; not used: "
                    f"{', '.join(unused)}."
                )
        elif unused := [f"--{name}" for name in self.absent_names if vars(self)[name] is not None]:
            logger.warning(f"Without effect with --modalities {' '.join(self.modalities)}: {', '.join(unused)}.")
        for tower, default in DEFAULT_CONFIG_NAMES.items():
            named = vars(self)[f"{tower}_config_name"]
            if named is None and self.model_name_or_path is None and vars(self)[f"{tower}_model_name_or_path"] is None:
                named = default
            setattr(self, f"{tower}_config_name", named and find_config(named))

    def _check_lora(self) -> None:
        if self.lora_rank is None:
            given = {"alpha": self.lora_alpha, "dropout": self.lora_dropout, "towers": self.lora_towers}
            given["target_modules"] = self.lora_target_modules
            if without_rank := [f"--lora_{name}" for name, value in given.items() if value]:
                raise ValueError(f"{', '.join(without_rank)} can have no effect without --lora_rank; give that too.")
            return
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank is {self.lora_rank}; give 1 or more, or leave it out to train all weights.")
        if self.lora_alpha is not None and self.lora_alpha < 1:
            raise ValueError(f"--lora_alpha is {self.lora_alpha}; give 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}; give a share from 0 to below 1.")
        if both := [name for name in self.lora_towers if name in self.freeze]:
            raise ValueError(
                f"--freeze and --lora_towers both name {', '.join(both)}. LoRA keeps the weights of a tower, too, and "
                "trains adapters in it: name each in one of the two; in --freeze, if --features are to stand for it."
            )

    def _check_frame_pooling(self) -> None:
        if self.frame_pooling_layers < 0:
            raise ValueError(f"--frame_pooling_layers is {self.frame_pooling_layers}; give 0 (the mean) or more.")
        if self.frame_pooling_layers == 0 or self.model_name_or_path is not None:
            return
        if self.task == "question_answering":
            raise ValueError(
                f"--frame_pooling_layers is {self.frame_pooling_layers}, but question_answering reads tokens, not the "
                "embedding that these layers make. Leave it out."
            )
        has_lora = self.lora_rank is not None and "video" in (self.lora_towers or ["video"])
        if has_lora or "video" in self.freeze:
            raise ValueError(
                f"--frame_pooling_layers is {self.frame_pooling_layers}, but {'LoRA' if has_lora else '--freeze'} "
                "keeps the weights of the video tower as they are, and with them those of these new layers. Leave one "
                "of the two out."
            )

    @property
    def lora(self) -> dict[str, int | float | list[str]] | None:
        """The arguments of [`add_lora`] but for the default of `towers`; `None`: no adapters."""
        if self.lora_rank is None:
            return None
        return {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha or 2 * self.lora_rank,
            "dropout": self.lora_dropout,
            "towers": self.lora_towers,
            "target_modules": self.lora_target_modules,
        }

    @property
    def part_names(self) -> list[str]:
        """The arguments that name what a new model is made of."""
        return [
            *(f"{tower}_model_name_or_path" for tower in TOWERS),
            *(f"{tower}_config_name" for tower in TOWERS),
            *("tokenizer_name", "audio_processor_name", "video_processor_name"),
        ]

    @property
    def absent_names(self) -> list[str]:
        """The arguments that name what modalities would be made of that are not part of the model."""
        parts = {"text": "tokenizer_name", "audio": "audio_processor_name", "video": "video_processor_name"}
        kinds = ("model_name_or_path", "config_name", "attn_implementation")
        absent = [name for name in MODALITIES if name not in self.modalities]
        return [name for m in absent for name in (*(f"{m}_{kind}" for kind in kinds), parts[m])]

    @property
    def changed_config_settings(self) -> dict[str, str | int | float | bool]:
        """Those of `config_settings` that are not at their defaults: what a saved model must agree with."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in self.config_settings.items() if value != defaults[name]}

    @property
    def given_objectives(self) -> dict[str, float]:
        """What was given of loss weights and negatives, under the names that they have in `MultimodalConfig`."""
        names = [name for name in vars(self) if name.endswith("_loss_weight") or name == "hard_negative_ratio"]
        return {name: vars(self)[name] for name in names if vars(self)[name] is not None}

    @property
    def loading_settings(self) -> dict[str, str | float | dict[str, str] | None]:
        """The arguments of `from_pretrained` for a saved model."""
        return {
            "attn_implementation": self.attn_implementation,
            "cache_dir": self.cache_dir,
            **self.given_objectives,
        }

    @property
    def config_settings(self) -> dict[str, str | int | float | bool]:
        """The arguments of `MultimodalConfig` besides those of its towers."""
        settings: dict[str, str | int | float | bool | None] = {
            "fusion_form": self.fusion_form,
            "fusion_pool": self.fusion_pool,
            "contrastive_dim": self.contrastive_dim,
            "clip_embedding": self.clip_embedding,
            "frame_pooling_layers": self.frame_pooling_layers,
            "contrastive_form": self.contrastive_form,
            "contrastive_loss_before_fusion": self.contrastive_loss_before_fusion,
            "share_masked_pass": self.share_masked_pass,
            **self.given_objectives,
        }
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def assembly_settings(self) -> dict[str, Any]:
        """What the configuration of a new model is made of besides its towers' own: arguments of `build_config`."""
        return {
            "attn_implementation": self.attn_implementation,
            "pretrained": self.pretrained_towers,
            **self.config_settings,
        }

    @property
    def mask_settings(self) -> dict[str, float | None]:
        """Mask settings of `build_targets`."""
        return {
            "mlm_probability": self.mlm_probability,
            "audio_mask_ratio": self.audio_mask_ratio,
            "video_mask_ratio": self.video_mask_ratio,
            "vt_match_ratio": self.vt_match_ratio,
        }

    @property
    def processor_names(self) -> dict[str, str | None]:
        """Where the parts of the processor are read from, and the cache for what is downloaded."""
        return {
            "tokenizer_name": self.tokenizer_name,
            "audio_processor_name": self.audio_processor_name,
            "video_processor_name": self.video_processor_name,
            "cache_dir": self.cache_dir,
        }

    @property
    def attn_implementation(self) -> dict[str, str]:
        """Attention implementations that were given, by sub-configuration, as `from_pretrained` takes them."""
        named = {f"{modality}_config": vars(self)[f"{modality}_attn_implementation"] for modality in MODALITIES}
        return {config: name for config, name in named.items() if name is not None}

    @property
    def pretrained_towers(self) -> dict[str, str]:
        """Hub name or folder of the weights of each tower that starts from pretrained ones."""
        names = {tower: vars(self)[f"{tower}_model_name_or_path"] for tower in (*self.modalities, "fusion")}
        return {tower: name for tower, name in names.items() if name is not None}

    def tower_config_name(self, tower: str) -> str:
        """Where the config of a tower is read from: the one that is named, else the one beside its weights."""
        return vars(self)[f"{tower}_config_name"] or vars(self)[f"{tower}_model_name_or_path"]
