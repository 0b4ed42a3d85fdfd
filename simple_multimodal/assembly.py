"""Puts a model together: which class, the processor out of its parts, the configuration that fits it, and what
its batches need besides.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.errors import InputError
from simple_multimodal.missing import reading, reading_model
from simple_multimodal.modalities import BUILT_IN_MODALITIES, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import MASKED_OBJECTIVES, MultimodalConfig
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import LoadingReport, load_tower_config
from simple_multimodal.models.lora import refuse_adapter
from simple_multimodal.models.text.masked_lm import TextEncoder
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.processing.processing_multimodal import PARTS

logger = logging.get_logger(__name__)

MASKED_OBJECTIVE_OF: dict[Modality, str] = {modality: name for name, modality in MASKED_OBJECTIVES.items()}
"""The masked objective of each modality."""

PROCESSOR_NAMES: dict[Modality, str] = {
    "text": "tokenizer_name",
    "audio": "audio_processor_name",
    "video": "video_processor_name",
}
"""What names the source of each modality's part of a processor."""

MAX_AUDIO_WINDOWS = 6
"""Most windows of a clip's audio in a new model: a minute. A batch is as long as its longest row."""


def load_towers(names: Mapping[Modality, str]) -> dict[Modality, PreTrainedConfig]:
    """Configurations of the towers of a new model, by where each is read from: see [`load_tower_config`]."""
    return {modality: load_tower_config(name, modality, tuple(names)) for modality, name in names.items()}


def processor_names(
    towers: Mapping[Modality, PreTrainedConfig], named: Mapping[str, str | None], pretrained: Mapping[str, str]
) -> dict[str, str | None]:
    """
    Where the parts of a processor are read from: what is named, else the checkpoint of a tower that
    `takes_own_processor`.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): configuration of each tower.
        named (`Mapping[str, str]`): `tokenizer_name`, `audio_processor_name` and `video_processor_name`, each of which
            may be `None`; further entries pass.
        pretrained (`Mapping[str, str]`): hub name or folder of the weights of each tower that has such.
    """
    names = dict(named)
    for modality, config in towers.items():
        encoder_class = get_encoder_class(config.model_type, modality)
        key = PROCESSOR_NAMES.get(modality)
        if key is not None and names[key] is None and encoder_class.takes_own_processor(config):
            names[key] = pretrained.get(modality)
    return names


def build_processor(
    towers: Mapping[Modality, PreTrainedConfig],
    *,
    captions: Callable[[], Iterable[str]],
    tokenizer_name: str | None = None,
    audio_processor_name: str | None = None,
    video_processor_name: str | None = None,
    max_seq_length: int | None = None,
    audio_settings: Mapping | None = None,
    video_settings: Mapping | None = None,
    cache_dir: str | None = None,
) -> MultimodalProcessor:
    """
    The processor of a new model. Each value comes from the settings, else from the processor that is named, else from
    the tower's configuration.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): configuration of each tower.
        captions (`Callable`): gives the texts that a tokenizer is trained on where none is named.
        tokenizer_name, audio_processor_name, video_processor_name (`str`, *optional*): hub names or local folders.
        max_seq_length (`int`, *optional*): longest text in tokens, which is saved with the tokenizer.
        audio_settings, video_settings (`Mapping`, *optional*): arguments of [`AudioFeatureExtractor`] and
            [`VideoClipProcessor`] that were asked for.
        cache_dir (`str`, *optional*): where files from the hub are kept.
    """
    settings = {"audio": audio_settings, "video": video_settings}
    if unused := [name for m, given in settings.items() if m not in towers for name in given or ()]:
        logger.warning(f"Without effect in a model of {' and '.join(towers)}: {', '.join(unused)}.")
    audio = video = tokenizer = None
    encoders = {m: get_encoder_class(config.model_type, m) for m, config in towers.items()}
    if "audio" in towers:
        values = {"max_windows": MAX_AUDIO_WINDOWS, "crop": "random"}
        values |= encoders["audio"].processor_values(towers["audio"])
        if audio_processor_name is not None:
            read = AudioFeatureExtractor.get_feature_extractor_dict
            values |= _read_settings(read, audio_processor_name, "audio", cache_dir)
        audio = AudioFeatureExtractor.from_dict(values, **(audio_settings or {}))
    if "video" in towers:
        values = encoders["video"].processor_values(towers["video"])
        if video_processor_name is not None:
            del values["size"]
            read = VideoClipProcessor.get_video_processor_dict
            values |= _read_settings(read, video_processor_name, "video", cache_dir)
            video = VideoClipProcessor.from_dict(values, **(video_settings or {}))
        else:
            video = VideoClipProcessor(**{**values, **(video_settings or {})})
    _warn_of_unused_stride(video, video_settings)
    text_padding = "longest"
    if "text" in towers:
        text_encoder: type[TextEncoder] = encoders["text"]  # type: ignore[assignment]
        text_padding = text_encoder.padding
        if tokenizer_name is not None:
            problem = f"Cannot read a tokenizer from {tokenizer_name!r}. Give a folder or a name on the hub."
            with reading(tokenizer_name, problem):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, cache_dir=cache_dir, trust_remote_code=False)
        else:
            tokenizer = train_tokenizer(captions())
        longest = min(tokenizer.model_max_length, text_encoder.max_tokens(towers["text"]))
        tokenizer.model_max_length = max_seq_length or longest
    further = {
        PARTS[m].name: PARTS[m].kind(**encoders[m].processor_values(config))
        for m, config in towers.items()
        if m not in BUILT_IN_MODALITIES
    }
    return MultimodalProcessor(audio, video, tokenizer, text_padding=text_padding, **further)  # type: ignore[arg-type]


def input_sizes(processor: MultimodalProcessor) -> dict[Modality, tuple[int, ...]]:
    """What each part of a processor but the tokenizer makes for its tower, in the order of the modalities."""
    return {m: processor.part(m).input_size for m in processor.modalities if m != "text"}


def _read_settings(
    read: Callable[..., tuple[dict, dict]], name: str, modality: Modality, cache_dir: str | None
) -> dict:
    """Values of a saved audio or video processor."""
    problem = (
        f"Cannot read {modality} settings from {name!r}: it needs a preprocessor_config.json or a "
        f"processor_config.json. Name another folder or hub name by --{modality}_processor_name."
    )
    with reading(name, problem):
        return read(name, cache_dir=cache_dir)[0]


def shared_checkpoint(
    towers: Mapping[Modality, PreTrainedConfig], pretrained: Mapping[str, str]
) -> tuple[str, int] | None:
    """The one checkpoint into whose common space all towers embed, text among them, and the size of that space."""
    sizes = {get_encoder_class(c.model_type, m).embedding_size(c) for m, c in towers.items()}
    names = {pretrained.get(m) for m in towers}
    (size, *others), name = sizes, next(iter(names))
    if "text" not in towers or len(towers) == 1 or len(names) > 1 or name is None or others or size is None:
        return None
    compared_with = towers["text"].to_dict().get("compared_with")  # PE-AV embeds texts for each modality anew
    return (name, size) if compared_with is None or set(towers) == {"text", compared_with} else None


def load_processor(
    source: str | os.PathLike,
    *,
    max_seq_length: int | None = None,
    audio_settings: Mapping | None = None,
    video_settings: Mapping | None = None,
    cache_dir: str | None = None,
) -> MultimodalProcessor:
    """
    The processor of a saved model, changed where settings say so; [`load_model`] fits the towers to that.

    Args:
        source (`str` or `os.PathLike`): folder or hub name of the saved model.
        max_seq_length, audio_settings, video_settings (*optional*): as in [`build_processor`].
        cache_dir (`str`, *optional*): where files from the hub are kept.
    """
    refuse_adapter(source)
    with reading_model(source):
        processor = MultimodalProcessor.from_pretrained(source, cache_dir=cache_dir)
    for modality, settings in (("audio", audio_settings), ("video", video_settings)):
        if settings and modality not in processor.modalities:
            raise InputError(
                f"{source} takes {' and '.join(processor.modalities)}, so settings of {modality} have no use "
                f"({', '.join(settings)}). Leave these flags out."
            )
    if max_seq_length is not None and processor.tokenizer is not None:
        processor.tokenizer.model_max_length = max_seq_length
    if audio_settings:
        processor.feature_extractor = AudioFeatureExtractor.from_pretrained(
            source, cache_dir=cache_dir, **audio_settings
        )
    if video_settings:
        processor.video_processor = VideoClipProcessor.from_pretrained(source, cache_dir=cache_dir, **video_settings)
        _warn_of_unused_stride(processor.video_processor, video_settings)
    return processor


def changed_sizes(
    source: str | os.PathLike, processor: MultimodalProcessor, *, cache_dir: str | None = None
) -> dict[Modality, tuple[int, ...]]:
    """The [`input_sizes`] in which a processor of [`load_processor`] differs from what was saved."""
    saved = {m: PARTS[m].load(source, cache_dir=cache_dir).input_size for m in processor.modalities if m != "text"}
    return {m: size for m, size in input_sizes(processor).items() if size != saved[m]}


def _warn_of_unused_stride(video: VideoClipProcessor | None, settings: Mapping | None) -> None:
    if video is not None and "frame_stride" in (settings or {}):
        if "dense" not in (video.frame_sampling, video.train_frame_sampling):
            logger.warning("Without effect: frame_stride, which is for --frame_sampling dense.")


def check_inputs(
    model: TowerModel,
    processor: MultimodalProcessor,
    max_seq_length: int | None = None,
    config_settings: Mapping[str, object] | None = None,
    modalities: Sequence[Modality] = BUILT_IN_MODALITIES,
) -> None:
    """
    Check that a model takes what its processor delivers, and that a saved one is what was asked for.

    Args:
        model (`TowerModel`): saved or new.
        processor (`MultimodalProcessor`): its processor.
        max_seq_length (`int`, *optional*): longest text in tokens, if not the processor's own.
        config_settings (`Mapping`, *optional*): settings of [`MultimodalConfig`] that were asked for.
        modalities (`Sequence[str]`, *optional*): modalities that were asked for; those that are built in ask for none.

    Raises:
        ValueError: If a tower cannot take the inputs, or the model has other settings or lacks a modality.
    """
    if tuple(modalities) != BUILT_IN_MODALITIES and not set(modalities) <= set(model.config.modalities):
        raise InputError(
            f"--modalities is {' '.join(modalities)}, but the saved model has {' '.join(model.config.modalities)}. "
            "Leave the flag out, or name some of these."
        )
    text = {} if processor.tokenizer is None else {"text": (max_seq_length or processor.max_seq_length(),)}
    for modality, size in {**text, **input_sizes(processor)}.items():
        model.base_model.check_inputs(modality, *size)
    own = model.config.to_dict()
    for name, value in (config_settings or {}).items():
        if name not in own or own[name] != value:
            has = f"has {own[name]!r}" if name in own else "has no such setting"
            raise InputError(
                f"--{name} is {value!r}, but the saved model {has}. Leave the flag out, or train a new "
                "model: without --model_name_or_path and in another --output_dir."
            )
    trained = model.loss_weights
    weights = {name: value for name, value in (config_settings or {}).items() if name.endswith("_loss_weight")}
    unused = [name for name, value in weights.items() if value and name.removesuffix("_loss_weight") not in trained]
    if unused:
        logger.warning(f"Without effect: {', '.join(unused)}; this run has {', '.join(trained)} alone.")


def build_config(
    towers: Mapping[Modality, PreTrainedConfig],
    crossformer: PreTrainedConfig,
    processor: MultimodalProcessor,
    *,
    attn_implementation: Mapping[str, str] | None = None,
    pretrained: Mapping[str, str] = MappingProxyType({}),
    is_trained: bool = True,
    **settings,
) -> MultimodalConfig:
    """
    The configuration of a new model, its towers made to fit what the processor delivers.

    What is not set fits the towers: no masked objective without a decoder; `contrastive_dim` is the size of the
    towers' own embeddings, if they agree; and if all towers come from one checkpoint with a common space, a clip's
    embedding is the mean of its modalities', and the contrastive loss has the form that the checkpoint was trained
    with.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): configuration of each tower.
        crossformer (`PreTrainedConfig`): ViT or BERT configuration of the fusion.
        processor (`MultimodalProcessor`): of the same modalities.
        attn_implementation (`Mapping[str, str]`, *optional*): attention of towers, by sub-configuration such as
            `text_config`; by default the best that the architecture offers.
        pretrained (`Mapping[str, str]`, *optional*): hub name or folder of the weights of each tower that has such.
        is_trained (`bool`, *optional*, defaults to `True`): whether the model will be trained; one that will not has
            no matching head, which no checkpoint gives.
        settings: further arguments of [`MultimodalConfig`].

    Raises:
        ValueError: If a tower cannot take what the processor delivers, has no decoder for an objective that was asked
            for, or the model will not be trained and has no common space.
    """
    sizes: dict[Modality, tuple[int | None, ...]] = {**input_sizes(processor)}
    if processor.tokenizer is not None:
        ids = processor.tokenizer("")["input_ids"]
        end = ids[-1] if ids and ids[-1] == processor.tokenizer.eos_token_id else None
        sizes["text"] = (len(processor.tokenizer), processor.tokenizer.pad_token_id, end)
    if (video := processor.video_processor) is not None:
        settings |= {"image_mean": list(video.image_mean), "image_std": list(video.image_std)}
    for modality, config in towers.items():
        encoder_class = get_encoder_class(config.model_type, modality)
        settings[f"{modality}_config"] = encoder_class.fit_config(config, *sizes[modality])
        if modality not in MASKED_OBJECTIVE_OF:
            continue
        weight = f"{MASKED_OBJECTIVE_OF[modality]}_loss_weight"
        if encoder_class.decoder_class is None and settings.setdefault(weight, 0.0) > 0:
            raise InputError(
                f"--{weight} is {settings[weight]}, but the {modality} tower {encoder_class.model_type!r} has no "
                "decoder for a masked objective. Leave the flag out, or take another tower."
            )
    own = {get_encoder_class(c.model_type, m).embedding_size(c) for m, c in towers.items()} - {None}
    if len(own) == 1:
        settings.setdefault("contrastive_dim", *own)
    shared = shared_checkpoint(towers, pretrained)
    if shared is not None:
        settings.setdefault("clip_embedding", "mean")
        settings.setdefault("contrastive_form", get_encoder_class(towers["text"].model_type, "text").contrastive_form)
    is_one_modality = settings.get("clip_embedding") == "mean" and "text" in towers and len(towers) == 2
    if is_one_modality and settings.get("contrastive_tav_loss_weight", 1.0) > 0:  # what it is contrasted by, once
        settings.setdefault("contrastive_tv_loss_weight" if "video" in towers else "contrastive_ta_loss_weight", 0.0)
    # What teaches the embeddings of clips and their temperature.
    settings.setdefault("matching_residual", settings.get("contrastive_tav_loss_weight", 1.0) > 0)
    if not is_trained:
        _check_zero_shot(towers, pretrained, shared, settings)
    return MultimodalConfig(
        crossformer_config=crossformer, attn_implementation=dict(attn_implementation or {}), **settings
    )


def _check_zero_shot(
    towers: Mapping[Modality, PreTrainedConfig],
    pretrained: Mapping[str, str],
    shared: tuple[str, int] | None,
    settings: dict,
) -> None:
    """Check that a new model can do without training, and leave its matching head out."""
    remedy = "Train the model (--do_train), or name one that was trained (--model_name_or_path)."
    if shared is None:
        found = ", ".join(
            f"{m}: {config.model_type!r} {f'from {pretrained[m]}' if m in pretrained else 'with random weights'}"
            for m, config in towers.items()
        )
        raise InputError(
            "Without training, texts and clips can be compared only if all towers come from one checkpoint with a "
            f"common space, such as CLIP's; these do not ({found}). Name one checkpoint for all, and the modalities "
            "that it compares with each other (--modalities text video; PE-AV compares texts with sound or with "
            f"pictures). Otherwise: {remedy}"
        )
    own = {"contrastive_dim": shared[1], "contrastive_loss_before_fusion": True, "clip_embedding": "mean"}
    for name, value in own.items():
        if settings.setdefault(name, value) != value:
            raise InputError(f"--{name} is {settings[name]}, for which {shared[0]} has no weights. {remedy}")
    if settings.setdefault("matching_loss_weight", 0.0) > 0:
        raise InputError(f"--matching_loss_weight is above 0, but there is no trained matching head. {remedy}")


def saved_config(source: str | os.PathLike, *, cache_dir: str | None = None) -> dict:
    """Values of the configuration of a saved model."""
    refuse_adapter(source)
    with reading_model(source):
        return PreTrainedConfig.get_config_dict(source, cache_dir=cache_dir)[0]


def load_model(
    model_classes: Mapping[str, type[TowerModel]],
    source: str | os.PathLike,
    *,
    is_trained: bool,
    sizes: Mapping[Modality, tuple[int, ...]] = MappingProxyType({}),
    **settings,
) -> TowerModel:
    """
    A saved model; one of another task lends its towers and fusion, and the new head is drawn at random.

    Args:
        model_classes (`Mapping[str, type[TowerModel]]`): the task's, by `model_type`.
        source (`str`): folder or hub name.
        is_trained (`bool`): whether it will be trained.
        sizes (`Mapping[str, tuple[int, ...]]`, *optional*): [`changed_sizes`], which its towers are fitted to as
            pretrained ones are.
        settings: arguments of `from_pretrained`, among them changes of the configuration.

    Raises:
        ValueError: If its architecture is unknown or has not this task or an objective that a setting weighs, if it
            lacks weights and will not be trained, or if a tower cannot be fitted to a size.
        OSError: If it has no weights as safetensors.
    """
    model_type = saved_config(source).get("model_type") or ""
    if model_type not in model_classes:
        raise InputError(
            f"{source} holds a model of the type {model_type!r}, and this --task has models of the type "
            f"{' and '.join(map(repr, model_classes))} alone. Name another --task."
        )
    model_class = model_classes[model_type]
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    if unknown := [f"--{name}" for name in settings if name.endswith("_loss_weight") and name not in known]:
        weights = ", ".join(sorted(f"--{name}" for name in known if name.endswith("_loss_weight")))
        raise InputError(
            f"{source} has no such objective: {', '.join(unknown)}. Leave that out; what it has is {weights}."
        )
    model, loaded = model_class.from_pretrained(source, output_loading_info=True, **settings)
    missing = sorted(loaded["missing_keys"])
    if missing and not is_trained:
        raise InputError(
            f"{source} holds no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}: it is a "
            f"model of another task than {model_class.__name__}. Choose its --task, or train it."
        )
    if sizes:
        model, reports = model.fit_inputs(sizes)
        warn_of_tensors(reports)
    return model


def warn_of_tensors(reports: Iterable[LoadingReport]) -> None:
    """Say in the first process what became of the tensors of checkpoints."""
    if int(os.environ.get("RANK", "0")) == 0:
        for report in reports:
            logger.warning(report.summary())
