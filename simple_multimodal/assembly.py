"""Build or load a model: its processor, a config that fits the processor, and checks of both."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.errors import InputError
from simple_multimodal.missing import reading, reading_model, refuse_part_of_run
from simple_multimodal.modalities import DEFAULT_MODALITIES, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import MASKED_OBJECTIVES, MultimodalConfig
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import NO_SUCH_TENSOR, LoadingReport, load_tower_config, without_report
from simple_multimodal.models.text.masked_lm import TextEncoder
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, PoseProcessor, VideoClipProcessor
from simple_multimodal.processing.processing_multimodal import PARTS

logger = logging.get_logger(__name__)

MASKED_OBJECTIVE_OF: dict[Modality, str] = {modality: name for name, modality in MASKED_OBJECTIVES.items()}
"""Masked objective of each modality."""

PROCESSOR_NAMES: dict[Modality, str] = {
    "text": "tokenizer_name",
    "audio": "audio_processor_name",
    "video": "video_processor_name",
}
"""Argument that names the source of each modality's part of a processor."""

MAX_AUDIO_WINDOWS = 6
"""Maximum number of audio windows per clip in a new model: a minute. A batch is as long as its longest row."""


def load_towers(names: Mapping[Modality, str]) -> dict[Modality, PreTrainedConfig]:
    """Load the configs of the towers of a new model, see [`load_tower_config`]."""
    return {modality: load_tower_config(name, modality, tuple(names)) for modality, name in names.items()}


def processor_names(
    towers: Mapping[Modality, PreTrainedConfig], named: Mapping[str, str | None], pretrained: Mapping[str, str]
) -> dict[str, str | None]:
    """
    Return where the parts of a processor are read from: the named sources, else the checkpoint of a tower that
    `takes_own_processor`.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): Config of each tower.
        named (`Mapping[str, str]`): Values of `tokenizer_name`, `audio_processor_name` and `video_processor_name`,
            which may be `None`; other entries are kept.
        pretrained (`Mapping[str, str]`): Hub name or folder of the weights, by pretrained tower.
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
    pose_settings: Mapping | None = None,
    cache_dir: str | None = None,
) -> MultimodalProcessor:
    """
    Build the processor of a new model. Each value comes from the settings, else from the named processor, else from
    the tower's config.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): Config of each tower.
        captions (`Callable`): Function that returns the texts to train a tokenizer on if none is named.
        tokenizer_name, audio_processor_name, video_processor_name (`str`, *optional*): Hub names or local folders.
        max_seq_length (`int`, *optional*): Maximum text length in tokens, which is saved with the tokenizer.
        audio_settings, video_settings, pose_settings (`Mapping`, *optional*): Arguments of
            [`AudioFeatureExtractor`], [`VideoClipProcessor`] and [`PoseProcessor`] that were given.
        cache_dir (`str`, *optional*): Folder for files from the hub.
    """
    settings = {"audio": audio_settings, "video": video_settings, "pose": pose_settings}
    for modality, given in settings.items():
        if given and modality not in towers:
            logger.warning(f"Ignored in a model of {' and '.join(towers)}: {modality} settings ({', '.join(given)}).")
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
            problem = f"Cannot read a tokenizer from {tokenizer_name!r}, a folder or a name on the hub:"
            with reading(tokenizer_name, problem, cache_dir=cache_dir):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, cache_dir=cache_dir, trust_remote_code=False)
        else:
            tokenizer = train_tokenizer(captions())
        longest = min(tokenizer.model_max_length, text_encoder.max_tokens(towers["text"]))
        tokenizer.model_max_length = max_seq_length or longest
    further = {
        PARTS[m].name: PARTS[m].kind(**{**encoders[m].processor_values(config), **(settings.get(m) or {})})
        for m, config in towers.items()
        if m not in DEFAULT_MODALITIES
    }
    return MultimodalProcessor(audio, video, tokenizer, text_padding=text_padding, **further)  # type: ignore[arg-type]


def input_sizes(processor: MultimodalProcessor) -> dict[Modality, tuple[int, ...]]:
    """Return the size of the inputs that each part of a processor, except the tokenizer, makes for its tower."""
    return {m: processor.part(m).input_size for m in processor.modalities if m != "text"}


def _read_settings(
    read: Callable[..., tuple[dict, dict]], name: str, modality: Modality, cache_dir: str | None
) -> dict:
    """Return the values of a saved audio or video processor."""
    problem = (
        f"Cannot read {modality} settings from {name!r}: it needs a preprocessor_config.json or a "
        f"processor_config.json. Name another folder or hub name by --{modality}_processor_name."
    )
    with reading(name, problem, cache_dir=cache_dir):
        return read(name, cache_dir=cache_dir)[0]


def shared_checkpoint(
    towers: Mapping[Modality, PreTrainedConfig], pretrained: Mapping[str, str]
) -> tuple[str, int] | None:
    """Return the checkpoint into whose shared space all towers, including text, embed, and the size of that space;
    `None` if there is none.
    """
    sizes = {get_encoder_class(c.model_type, m).embedding_size(c) for m, c in towers.items()}
    names = {pretrained.get(m) for m in towers}
    (size, *others), name = sizes, next(iter(names))
    if "text" not in towers or len(towers) == 1 or len(names) > 1 or name is None or others or size is None:
        return None
    compared_with = towers["text"].to_dict().get("compared_with")  # PE-AV embeds texts separately for each modality
    return (name, size) if compared_with is None or set(towers) == {"text", compared_with} else None


def load_processor(
    source: str | os.PathLike,
    *,
    max_seq_length: int | None = None,
    audio_settings: Mapping | None = None,
    video_settings: Mapping | None = None,
    pose_settings: Mapping | None = None,
    cache_dir: str | None = None,
) -> MultimodalProcessor:
    """
    Load the processor of a saved model and apply settings to it; [`load_model`] fits the towers to it.

    Args:
        source (`str` or `os.PathLike`): Hub name or folder of the saved model.
        max_seq_length, audio_settings, video_settings, pose_settings (*optional*): As in [`build_processor`].
        cache_dir (`str`, *optional*): Folder for files from the hub.
    """
    refuse_part_of_run(source)
    with reading_model(source, cache_dir=cache_dir):
        processor = MultimodalProcessor.from_pretrained(source, cache_dir=cache_dir)
    for modality, settings in (("audio", audio_settings), ("video", video_settings), ("pose", pose_settings)):
        if settings and modality not in processor.modalities:
            raise InputError(
                f"{source} takes {' and '.join(processor.modalities)}, so {modality} settings would have no effect: "
                f"{', '.join(settings)}. Leave them out."
            )
    if pose_settings:
        processor.pose_processor = PoseProcessor.from_pretrained(source, cache_dir=cache_dir, **pose_settings)
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
    """Return the [`input_sizes`] of a processor of [`load_processor`] that differ from the saved ones."""
    saved = {m: PARTS[m].load(source, cache_dir=cache_dir).input_size for m in processor.modalities if m != "text"}
    return {m: size for m, size in input_sizes(processor).items() if size != saved[m]}


def _warn_of_unused_stride(video: VideoClipProcessor | None, settings: Mapping | None) -> None:
    if video is not None and "frame_stride" in (settings or {}):
        if "dense" not in (video.frame_sampling, video.train_frame_sampling):
            logger.warning("frame_stride is ignored: it only applies to frame_sampling='dense'.")


def check_inputs(
    model: TowerModel,
    processor: MultimodalProcessor,
    max_seq_length: int | None = None,
    config_settings: Mapping[str, object] | None = None,
    modalities: Sequence[Modality] = DEFAULT_MODALITIES,
) -> None:
    """
    Check that a model takes the outputs of its processor, and that a saved model has the given settings.

    Args:
        model (`TowerModel`): Saved or new model.
        processor (`MultimodalProcessor`): Processor of the model.
        max_seq_length (`int`, *optional*): Maximum text length in tokens, if different from the processor's.
        config_settings (`Mapping`, *optional*): Settings of [`MultimodalConfig`] that were given.
        modalities (`Sequence[str]`, *optional*): Modalities that the model must have; the default requires none.

    Raises:
        ValueError: If a tower cannot take the inputs, or the model has other settings or lacks a modality.
    """
    if tuple(modalities) != DEFAULT_MODALITIES and not set(modalities) <= set(model.config.modalities):
        raise InputError(
            f"--modalities is {' '.join(modalities)}, but the saved model has {' '.join(model.config.modalities)}. "
            "Leave the flag out, or give some of the latter."
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
                "model without --model_name_or_path in another --output_dir."
            )
    trained = model.loss_weights
    weights = {name: value for name, value in (config_settings or {}).items() if name.endswith("_loss_weight")}
    unused = {name for name, value in weights.items() if value and name.removesuffix("_loss_weight") not in trained}
    # The configuration has the weights that the modalities allow; the others are of another task.
    of_task = {name for name in unused if name.removesuffix("_loss_weight") in model.config.loss_weights}
    task, towers = f"with --task {model.config.task}", f"in a model of {' and '.join(model.config.modalities)}"
    for reason, names in ((task, of_task), (towers, unused - of_task)):
        if names:
            flags = ", ".join(f"--{name}" for name in weights if name in names)
            logger.warning(f"Ignored {reason}: {flags}. The objectives of this run: {', '.join(trained)}.")


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
    Build the config of a new model, whose towers fit the processor.

    Defaults depend on the towers: masked objectives need a decoder; `contrastive_dim` is the size of the towers' own
    embeddings, if they agree; and if all towers come from one checkpoint with a shared space, a clip's embedding is
    the mean of its modalities' embeddings, and the contrastive loss has the form that the checkpoint was trained with.

    Args:
        towers (`Mapping[Modality, PreTrainedConfig]`): Config of each tower.
        crossformer (`PreTrainedConfig`): ViT or BERT config of the fusion.
        processor (`MultimodalProcessor`): Processor of the same modalities.
        attn_implementation (`Mapping[str, str]`, *optional*): Attention of towers, by sub-config such as
            `text_config`; by default the best that the architecture supports.
        pretrained (`Mapping[str, str]`, *optional*): Hub name or folder of the weights, by pretrained tower.
        is_trained (`bool`, *optional*, defaults to `True`): Whether the model will be trained. If not, it has no
            matching head, as checkpoints of towers have none.
        settings: Further arguments of [`MultimodalConfig`].

    Raises:
        ValueError: If a tower cannot take the outputs of the processor or has no decoder for a given objective, or the
            model will not be trained and has no shared space.
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
                f"{weight}={settings[weight]}, but the {modality} tower {encoder_class.model_type!r} has no decoder "
                "for a masked objective. Leave it out, or use another tower."
            )
    own = {get_encoder_class(c.model_type, m).embedding_size(c) for m, c in towers.items()} - {None}
    if len(own) == 1:
        settings.setdefault("contrastive_dim", *own)
    shared = shared_checkpoint(towers, pretrained)
    if shared is not None:
        settings.setdefault("clip_embedding", "mean")
        settings.setdefault("contrastive_form", get_encoder_class(towers["text"].model_type, "text").contrastive_form)
    is_one_modality = settings.get("clip_embedding") == "mean" and "text" in towers and len(towers) == 2
    if is_one_modality and settings.get("contrastive_tav_loss_weight", 1.0) > 0:  # the same loss would count twice
        settings.setdefault("contrastive_tv_loss_weight" if "video" in towers else "contrastive_ta_loss_weight", 0.0)
    # This loss trains the embeddings of clips and their temperature.
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
    """Check that a new model can be used without training, and leave out its matching head."""
    remedy = "Train the model, or load a trained one."
    if shared is None:
        found = ", ".join(
            f"{m}: {config.model_type!r} {f'from {pretrained[m]}' if m in pretrained else 'with random weights'}"
            for m, config in towers.items()
        )
        raise InputError(
            "Without training, texts and clips can only be compared if all towers come from one checkpoint with a "
            f"shared space, such as CLIP; these do not ({found}). Use one checkpoint for all towers, with modalities "
            "that it compares with each other (such as text and video; PE-AV compares text with audio or with video). "
            f"Otherwise: {remedy}"
        )
    own = {"contrastive_dim": shared[1], "contrastive_loss_before_fusion": True, "clip_embedding": "mean"}
    for name, value in own.items():
        if settings.setdefault(name, value) != value:
            raise InputError(f"{name}={settings[name]}, but {shared[0]} has no weights for that. {remedy}")
    if settings.setdefault("matching_loss_weight", 0.0) > 0:
        raise InputError(f"matching_loss_weight is above 0, but there is no trained matching head. {remedy}")


def saved_config(source: str | os.PathLike, *, cache_dir: str | None = None) -> dict:
    """Return the values of the config of a saved model."""
    refuse_part_of_run(source)
    with reading_model(source, cache_dir=cache_dir):
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
    Load a saved model. If it has another task, its towers and fusion are used with a randomly initialised head.

    Args:
        model_classes (`Mapping[str, type[TowerModel]]`): Model classes of the task, by `model_type`.
        source (`str`): Hub name or folder.
        is_trained (`bool`): Whether the model will be trained.
        sizes (`Mapping[str, tuple[int, ...]]`, *optional*): [`changed_sizes`] to fit the towers to, as for pretrained
            towers.
        settings: Arguments of `from_pretrained`, including changes of the config.

    Raises:
        ValueError: If its architecture does not have this task or an objective with a given weight, if it lacks
            weights and will not be trained, or if a tower cannot be fitted to a size.
        OSError: If it has no safetensors weights.
    """
    model_type = saved_config(source).get("model_type") or ""
    if model_type not in model_classes:
        raise InputError(
            f"{source} is a model of type {model_type!r}, but this task only has models of type "
            f"{' and '.join(map(repr, model_classes))}. Give another task."
        )
    model_class = model_classes[model_type]
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    if unknown := [f"--{name}" for name in settings if name.endswith("_loss_weight") and name not in known]:
        weights = ", ".join(sorted(f"--{name}" for name in known if name.endswith("_loss_weight")))
        raise InputError(f"{source} has no such objective: {', '.join(unknown)}. Leave that out; it has {weights}.")
    with without_report():
        model, loaded = model_class.from_pretrained(source, output_loading_info=True, **settings)
    missing = sorted(loaded["missing_keys"])
    if missing and not is_trained:
        raise InputError(
            f"{source} has no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}: it was trained "
            f"for a different task than {model_class.__name__}. Give its task, or train it."
        )
    if missing or loaded["unexpected_keys"]:
        report = LoadingReport(os.fspath(source))
        for name in model.state_dict():
            (report.new if name in missing else report.loaded).append(name)
        report.unused = dict.fromkeys(sorted(loaded["unexpected_keys"]), NO_SUCH_TENSOR)
        warn_of_tensors([report])
    if sizes:
        model, reports = model.fit_inputs(sizes)
        warn_of_tensors(reports)
    return model


def warn_of_tensors(reports: Iterable[LoadingReport]) -> None:
    """Log in the first process how the tensors of checkpoints were used."""
    if int(os.environ.get("RANK", "0")) == 0:
        for report in reports:
            logger.warning(report.summary())
