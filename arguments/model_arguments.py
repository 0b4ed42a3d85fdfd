"""Arguments about the model: its towers, where their weights come from, and its training objectives."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from simple_multimodal.defaults import DEFAULT_TASK
from simple_multimodal.errors import InputError
from simple_multimodal.flags import (
    AUDIO,
    FUSION,
    LORA,
    MODEL,
    OBJECTIVES,
    POSE,
    TEXT,
    VIDEO,
    check_bounds,
    flag,
    given,
)
from simple_multimodal.missing import Named
from simple_multimodal.modalities import BUILT_IN_MODALITIES, DEFAULT_MODALITIES, MODALITIES

logger = logging.get_logger("simple_multimodal")

PROJECT_FOLDER = Path(__file__).resolve().parents[1]
"""Folder of `train.py`, where `configs/...` is found from any working directory."""

TOWERS = (*BUILT_IN_MODALITIES, "fusion")

PARTS = (*TOWERS, "backbone")
"""Parts of a model that can be frozen or adapted."""

PROCESSOR_NAMES = {"text": "tokenizer_name", "audio": "audio_processor_name", "video": "video_processor_name"}
"""Arguments that name the source of a modality's part of the processor."""

DEFAULT_CONFIG_NAMES = {
    "text": "configs/text/debertv2_config_small.json",
    "audio": "configs/audio/mae_config_small.json",
    "video": "configs/video/videomae_config_small.json",
    "pose": "configs/pose/pose_config_small.json",
    "fusion": "configs/crossformer/vit_config_small.json",
}
"""Configs of towers for which neither a model nor a config is named."""

# Help texts of the flags that every tower has.
WEIGHTS = "Hub name or folder of the tower's weights."
CONFIG = "Hugging Face config of the tower (JSON file or hub name)."
ATTENTION = "Attention implementation of the tower: eager or sdpa. Default: the best that it supports."
PROCESSOR = "Hub name or folder of the preprocessor config."


def loss_weight(objective: str) -> Any:
    """Return the flag for the weight of an objective."""
    remedy = "give a number from 0 (off) upwards"
    return flag(None, OBJECTIVES, f"Weight of {objective}; 0 turns it off. Default: 1.", at_least=0, remedy=remedy)


def find_config(name: str) -> str:
    """
    Find a config file in the working directory or, failing that, beside `train.py`.

    Args:
        name (`str`): A path such as `configs/runs/toy.yaml`, or a hub name.

    Returns:
        `str`: The absolute path of the file beside `train.py` if only that one exists; otherwise `name` unchanged, as
        it may be a hub name.
    """
    beside_train_py = PROJECT_FOLDER / name
    if not Path(name).exists() and beside_train_py.exists():
        return str(beside_train_py)
    return name


@dataclass
class ModelArguments:
    """
    Arguments about the model. Towers are named `text`, `audio`, `video`, `pose` and `fusion`.

    A tower starts from the weights of its `*_model_name_or_path`, else from random weights with the config that its
    `*_config_name` names, else from random weights with a small config of this repository.
    """

    model_name_or_path: str | None = flag(
        None, MODEL, "Hub name or folder of a complete saved model to start from or to evaluate.", names=Named.MODEL
    )
    task: str | None = flag(
        None,
        MODEL,
        "pretraining: all objectives; retrieval: contrastive and matching only; question_answering: choose an answer "
        "(columns question and answer); video_classification: recognise labels (column label or labels). "
        f"Default: the task of --model_name_or_path, else {DEFAULT_TASK}.",
    )
    modalities: list[str] = flag(
        list(DEFAULT_MODALITIES), MODEL, "Modalities that the model takes.", choices=tuple(MODALITIES)
    )
    freeze: list[str] = flag([], MODEL, "Towers to freeze. Default: none.", choices=PARTS)
    cache_dir: str | None = flag(None, MODEL, "Folder for files from the hub. Default: the Hugging Face cache.")

    lora_rank: int | None = flag(
        None,
        LORA,
        "Rank of the low-rank adapters (LoRA) that are trained instead of the towers' weights. Default: no LoRA.",
        at_least=1,
        remedy="give 1 or more, or leave it out to train all weights",
    )
    lora_alpha: int | None = flag(
        None,
        LORA,
        "Adapter outputs are scaled by alpha / rank. Default: 2 * rank.",
        at_least=1,
        remedy="give 1 or more",
    )
    lora_dropout: float = flag(
        0.0,
        LORA,
        "Dropout probability of the adapters' inputs, from 0 to below 1.",
        at_least=0,
        below=1,
        remedy="give a number from 0 to below 1",
    )
    lora_towers: list[str] = flag(
        [],
        LORA,
        "Towers to add adapters to. Default: all but the fusion, except those in --freeze.",
        choices=PARTS,
    )
    lora_target_modules: list[str] = flag(
        [],
        LORA,
        "Linear layers to add adapters to, by the ends of their names, such as query fc1. Default: the attention "
        "projections.",
    )

    text_model_name_or_path: str | None = flag(None, TEXT, WEIGHTS, names=Named.MODEL)
    text_config_name: str | None = flag(None, TEXT, CONFIG, names=Named.MODEL)
    text_attn_implementation: str | None = flag(None, TEXT, ATTENTION)
    tokenizer_name: str | None = flag(
        None,
        TEXT,
        "Hub name or folder of the tokenizer. Default: one trained on the training captions.",
        names=Named.MODEL,
    )

    audio_model_name_or_path: str | None = flag(None, AUDIO, WEIGHTS, names=Named.MODEL)
    audio_config_name: str | None = flag(None, AUDIO, CONFIG, names=Named.MODEL)
    audio_attn_implementation: str | None = flag(None, AUDIO, ATTENTION)
    audio_processor_name: str | None = flag(None, AUDIO, PROCESSOR, names=Named.MODEL)

    video_model_name_or_path: str | None = flag(None, VIDEO, WEIGHTS, names=Named.MODEL)
    video_config_name: str | None = flag(None, VIDEO, CONFIG, names=Named.MODEL)
    video_attn_implementation: str | None = flag(None, VIDEO, ATTENTION)
    video_processor_name: str | None = flag(None, VIDEO, PROCESSOR, names=Named.MODEL)
    pose_model_name_or_path: str | None = flag(None, POSE, WEIGHTS, names=Named.MODEL)
    pose_config_name: str | None = flag(None, POSE, CONFIG, names=Named.MODEL)
    pose_attn_implementation: str | None = flag(None, POSE, ATTENTION)

    frame_pooling_layers: int = flag(
        0,
        VIDEO,
        "Number of transformer layers over the frame embeddings of a clip (CLIP, SigLIP), initialised to return their "
        "mean; 0: only the mean.",
        at_least=0,
        remedy="give 0 (the mean) or more",
    )

    fusion_model_name_or_path: str | None = flag(
        None, FUSION, "Hub name or folder of ViT or BERT weights for the crossformer.", names=Named.MODEL
    )
    fusion_config_name: str | None = flag(
        None, FUSION, "ViT or BERT config (JSON file or hub name) of the crossformer.", names=Named.MODEL
    )
    fusion_form: Literal["merge", "co_attention", "cross_attention"] = flag(
        "cross_attention",
        FUSION,
        "How modalities are fused. merge: one sequence of all tokens; co_attention: each stream also attends to the "
        "others; cross_attention: text attends to audio and video, which do not attend to text.",
    )
    fusion_pool: Literal["none", "time"] = flag(
        "none", FUSION, "time: average simultaneous audio and video tokens before fusion."
    )

    contrastive_dim: int | None = flag(
        None, OBJECTIVES, "Dimension of the contrastive embeddings. Default: that of the towers, else 768."
    )
    contrastive_loss_before_fusion: bool = flag(
        True, OBJECTIVES, "Compute contrastive losses from tokens before the fusion layers; False: after them."
    )
    clip_embedding: Literal["fusion", "mean"] | None = flag(
        None,
        OBJECTIVES,
        "What a clip's embedding is computed from. fusion: its tokens after the fusion layers; mean: the mean of its "
        "modalities' embeddings, the default if all towers come from one checkpoint with a shared space.",
    )
    contrastive_form: Literal["softmax", "sigmoid"] | None = flag(
        None,
        OBJECTIVES,
        "Contrastive loss: softmax as in CLIP, or sigmoid as in SigLIP. Default: that of the towers' shared "
        "checkpoint, else softmax.",
    )
    mlm_loss_weight: float | None = loss_weight("masked language modelling")
    mam_loss_weight: float | None = loss_weight("masked audio modelling")
    mvm_loss_weight: float | None = loss_weight("masked video modelling")
    contrastive_tv_loss_weight: float | None = loss_weight("the text-video contrastive loss")
    contrastive_ta_loss_weight: float | None = loss_weight("the text-audio contrastive loss")
    contrastive_av_loss_weight: float | None = loss_weight("the audio-video contrastive loss")
    contrastive_tav_loss_weight: float | None = loss_weight("the contrastive loss of text and clip (audio and video)")
    matching_loss_weight: float | None = loss_weight("text-clip matching")
    hard_negative_ratio: float | None = flag(
        None,
        OBJECTIVES,
        "Fraction of negative clips sampled from the batch by similarity, not uniformly; 0 to 1. Default: 1.",
        share=True,
    )
    share_masked_pass: bool = flag(
        False, OBJECTIVES, "Use one masked forward pass for all objectives: faster, but contrastive losses see masks."
    )

    def __post_init__(self) -> None:
        self.modalities = [name for name in MODALITIES if name in self.modalities]
        further = [name for name in self.modalities if name not in BUILT_IN_MODALITIES]
        if further and self.model_name_or_path is None:
            raise InputError(
                f"--modalities names {', '.join(further)}, but train.py has no flags for such a tower. Build the "
                "model in Python (`simple_multimodal.from_towers`), save it, and pass its folder as "
                "--model_name_or_path."
            )
        self.freeze = [name for name in PARTS if name in self.freeze]
        check_bounds(self)
        self.lora_towers = [name for name in PARTS if name in self.lora_towers]
        self._check_lora()
        self._check_frame_pooling()
        if self.model_name_or_path is not None:
            unused = [f"--{name}" for name in self.part_names if vars(self)[name] is not None]
            if unused:
                logger.warning(
                    f"--model_name_or_path is a complete model with its own towers and processor; ignored: "
                    f"{', '.join(unused)}."
                )
        elif unused := [f"--{name}" for name in self.absent_names if vars(self)[name] is not None]:
            logger.warning(f"Ignored with --modalities {' '.join(self.modalities)}: {', '.join(unused)}.")
        for tower, default in DEFAULT_CONFIG_NAMES.items():
            named = vars(self)[f"{tower}_config_name"]
            if named is None and self.model_name_or_path is None and vars(self)[f"{tower}_model_name_or_path"] is None:
                named = default
            setattr(self, f"{tower}_config_name", named and find_config(named))

    def leave_out_text(self, task: str) -> None:
        """
        Leave the text tower out of the model, for a task that writes the text.

        Raises:
            ValueError: If it was named.
        """
        if self.modalities == list(DEFAULT_MODALITIES):  # the default
            self.modalities = [name for name in self.modalities if name != "text"]
        if "text" in self.modalities:
            raise InputError(
                f"--modalities names text, but --task {task} writes the text of a row, which the model must not see. "
                "Leave it out."
            )

    def _check_lora(self) -> None:
        if self.lora_rank is None:
            given = {"alpha": self.lora_alpha, "dropout": self.lora_dropout, "towers": self.lora_towers}
            given["target_modules"] = self.lora_target_modules
            if without_rank := [f"--lora_{name}" for name, value in given.items() if value]:
                raise InputError(f"{', '.join(without_rank)} would have no effect without --lora_rank; set it too.")
            return
        if both := [name for name in self.lora_towers if name in self.freeze]:
            raise InputError(
                f"--freeze and --lora_towers both name {', '.join(both)}. LoRA freezes a tower's weights, too, and "
                "trains adapters in it. Name each tower in one of the two; in --freeze if --features replace it."
            )

    def _check_frame_pooling(self) -> None:
        if self.frame_pooling_layers == 0 or self.model_name_or_path is not None:
            return
        has_lora = self.lora_rank is not None and "video" in (self.lora_towers or ["video"])
        if has_lora or "video" in self.freeze:
            raise InputError(
                f"--frame_pooling_layers is {self.frame_pooling_layers}, but {'LoRA' if has_lora else '--freeze'} "
                "freezes the weights of the video tower, including these new layers. Leave one of the two out."
            )

    @property
    def lora(self) -> dict[str, int | float | list[str]] | None:
        """Arguments of [`add_lora`], except the default of `towers`; `None` without adapters."""
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
        """Names of the arguments that name the parts of a new model."""
        return [
            *(f"{tower}_model_name_or_path" for tower in TOWERS),
            *(f"{tower}_config_name" for tower in TOWERS),
            *PROCESSOR_NAMES.values(),
        ]

    @property
    def named_places(self) -> dict[str, str]:
        """Folders and hub names that the model is read from, by the argument that names them."""
        used = [name for name in self.part_names if name not in self.absent_names]
        return given(self, *(used if self.model_name_or_path is None else ["model_name_or_path"]))

    @property
    def absent_names(self) -> list[str]:
        """Names of the arguments that name parts of modalities that the model does not have."""
        kinds = ("model_name_or_path", "config_name", "attn_implementation")
        absent = [name for name in BUILT_IN_MODALITIES if name not in self.modalities]
        names = [f"{modality}_{kind}" for modality in absent for kind in kinds]
        return names + [PROCESSOR_NAMES[modality] for modality in absent if modality in PROCESSOR_NAMES]

    @property
    def changed_config_settings(self) -> dict[str, str | int | float | bool]:
        """The `config_settings` that differ from their defaults, which a saved model must agree with."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in self.config_settings.items() if value != defaults[name]}

    @property
    def given_objectives(self) -> dict[str, float]:
        """Loss weights and `hard_negative_ratio` that were given, under their names in `MultimodalConfig`."""
        return given(self, *(name for name in vars(self) if name.endswith("_loss_weight")), "hard_negative_ratio")

    @property
    def loading_settings(self) -> dict[str, Any]:
        """Arguments of `load`."""
        own = {"attn_implementation": self.attn_implementation, "cache_dir": self.cache_dir}
        return own | self.given_objectives

    @property
    def config_settings(self) -> dict[str, str | int | float | bool]:
        """Arguments of `MultimodalConfig`, except those of its towers."""
        return {
            **given(self, "fusion_form", "fusion_pool", "frame_pooling_layers", "share_masked_pass"),
            **given(self, "contrastive_dim", "contrastive_form", "contrastive_loss_before_fusion", "clip_embedding"),
            **self.given_objectives,
        }

    @property
    def building_settings(self) -> dict[str, Any]:
        """Arguments of `build`."""
        return {
            "configs": {modality: self.tower_config_name(modality) for modality in self.modalities},
            "fusion": self.tower_config_name("fusion"),
            "pretrained": self.pretrained_towers,
            "processor_names": {name: vars(self)[name] for name in PROCESSOR_NAMES.values()},
            "attn_implementation": self.attn_implementation,
            "cache_dir": self.cache_dir,
            **self.config_settings,
        }

    @property
    def attn_implementation(self) -> dict[str, str]:
        """Attention implementations that were given, by sub-config, as `from_pretrained` takes them."""
        named = {f"{m}_config": vars(self)[f"{m}_attn_implementation"] for m in BUILT_IN_MODALITIES}
        return {config: name for config, name in named.items() if name is not None}

    @property
    def pretrained_towers(self) -> dict[str, str]:
        """Hub name or folder of the weights, by tower that starts from pretrained ones."""
        names = {tower: vars(self)[f"{tower}_model_name_or_path"] for tower in (*self.modalities, "fusion")}
        return {tower: name for tower, name in names.items() if name is not None}

    def tower_config_name(self, tower: str) -> str:
        """Return where the config of a tower is read from: the named one, else the one beside its weights."""
        return vars(self)[f"{tower}_config_name"] or vars(self)[f"{tower}_model_name_or_path"]
