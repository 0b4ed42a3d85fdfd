"""Puts a model together: which class, the processor out of its parts, the configuration that fits it, and what
its batches need besides.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from simple_multimodal.data.features import FeatureReader, open_features
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.data.targets import QUESTION_COLUMNS, AnswerLabels, PretrainingTargets, Targets, question_pairs
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.missing import explain
from simple_multimodal.modalities import MODALITIES, Modality
from simple_multimodal.models.alpro import AlproConfig, AlproForQuestionAnswering, AlproForRetrieval, load_alpro
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import LoadingReport, load_tower_config
from simple_multimodal.models.lora import add_lora, merge_lora, refuse_adapter
from simple_multimodal.models.modeling import (
    MASKED_OBJECTIVES,
    MultimodalForPreTraining,
    MultimodalForQuestionAnswering,
    MultimodalForRetrieval,
)
from simple_multimodal.models.text.masked_lm import TextEncoder
from simple_multimodal.output_folder import give_umask
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.training.answering import answer_vocabulary

logger = logging.get_logger(__name__)

MODEL_CLASSES: dict[str, dict[str, type[TowerModel]]] = {
    MultimodalConfig.model_type: {
        "pretraining": MultimodalForPreTraining,
        "retrieval": MultimodalForRetrieval,
        "question_answering": MultimodalForQuestionAnswering,
    },
    AlproConfig.model_type: {"retrieval": AlproForRetrieval, "question_answering": AlproForQuestionAnswering},
}
"""What is trained, by `model_type` and task."""

MASKED_OBJECTIVE_OF: dict[Modality, str] = {modality: name for name, modality in MASKED_OBJECTIVES.items()}
"""The masked objective of each modality."""

ROW_SETTINGS: dict[str, dict] = {"question_answering": QUESTION_COLUMNS}
"""Settings of a task's rows, where it has some."""


def open_manifest(task: str, manifest_file: str | os.PathLike, **settings) -> RowDataset:
    """
    The rows of a run. No media file is opened, but where links lead is checked before the run begins.

    Args:
        task (`str`): of the run.
        manifest_file (`str`): the manifest.
        settings: arguments of [`RowDataset.from_manifest`].

    Raises:
        ValueError: If the manifest is wrong, **or** links lead out of the roots.
    """
    dataset = RowDataset.from_manifest(manifest_file, **ROW_SETTINGS.get(task, {}), **settings)
    dataset.check_links()
    return dataset


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
        key = PROCESSOR_NAMES[modality]
        encoder_class = get_encoder_class(config.model_type, modality)
        if names[key] is None and encoder_class.takes_own_processor(config):
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
            try:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, cache_dir=cache_dir, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"Cannot read a tokenizer from {tokenizer_name!r}. Give a folder or a name on the hub. "
                    f"{explain(tokenizer_name, error)}"
                ) from error
        else:
            tokenizer = train_tokenizer(captions())
        longest = min(tokenizer.model_max_length, text_encoder.max_tokens(towers["text"]))
        tokenizer.model_max_length = max_seq_length or longest
    return MultimodalProcessor(audio, video, tokenizer, text_padding=text_padding)  # type: ignore[arg-type]


def _read_settings(
    read: Callable[..., tuple[dict, dict]], name: str, modality: Modality, cache_dir: str | None
) -> dict:
    """Values of a saved audio or video processor."""
    try:
        return read(name, cache_dir=cache_dir)[0]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read {modality} settings from {name!r}: it needs a preprocessor_config.json or a "
            f"processor_config.json. Name another folder or hub name by --{modality}_processor_name. "
            f"{explain(name, error)}"
        ) from error


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
    The processor of a saved model, changed where settings say so; [`check_inputs`] tells whether the model can take
    that.

    Args:
        source (`str` or `os.PathLike`): folder or hub name of the saved model.
        max_seq_length, audio_settings, video_settings (*optional*): as in [`build_processor`].
        cache_dir (`str`, *optional*): where files from the hub are kept.
    """
    refuse_adapter(source)
    try:
        processor = MultimodalProcessor.from_pretrained(source, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: is no saved model: {explain(source, error)}") from error
    for modality, settings in (("audio", audio_settings), ("video", video_settings)):
        if settings and modality not in processor.modalities:
            raise ValueError(
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


def _warn_of_unused_stride(video: VideoClipProcessor | None, settings: Mapping | None) -> None:
    if video is not None and "frame_stride" in (settings or {}):
        if "dense" not in (video.frame_sampling, video.train_frame_sampling):
            logger.warning("Without effect: frame_stride, which is for --frame_sampling dense.")


def check_inputs(
    model: TowerModel,
    processor: MultimodalProcessor,
    max_seq_length: int | None = None,
    config_settings: Mapping[str, object] | None = None,
    modalities: Sequence[Modality] = MODALITIES,
) -> None:
    """
    Check that a model takes what its processor delivers, and that a saved one is what was asked for.

    Args:
        model (`TowerModel`): saved or new.
        processor (`MultimodalProcessor`): its processor.
        max_seq_length (`int`, *optional*): longest text in tokens, if not the processor's own.
        config_settings (`Mapping`, *optional*): settings of [`MultimodalConfig`] that were asked for.
        modalities (`Sequence[str]`, *optional*, defaults to all): modalities that were asked for.

    Raises:
        ValueError: If a tower cannot take the inputs, or the model has other settings or lacks a modality.
    """
    if len(modalities) < len(MODALITIES) and not set(modalities) <= set(model.config.modalities):
        raise ValueError(
            f"--modalities is {' '.join(modalities)}, but the saved model has {' '.join(model.config.modalities)}. "
            "Leave the flag out, or name some of these."
        )
    audio, video = processor.feature_extractor, processor.video_processor
    sizes: dict[Modality, tuple[int, ...]] = {}
    if processor.tokenizer is not None:
        sizes["text"] = (max_seq_length or processor.max_seq_length(),)
    if audio is not None:
        sizes["audio"] = (audio.num_mel_bins, audio.num_frames)
    if video is not None:
        sizes["video"] = (video.num_frames, video.height, video.width)
    for modality, size in sizes.items():
        model.base_model.check_inputs(modality, *size)
    own = model.config.to_dict()
    for name, value in (config_settings or {}).items():
        if name not in own or own[name] != value:
            has = f"has {own[name]!r}" if name in own else "has no such setting"
            raise ValueError(
                f"--{name} is {value!r}, but the saved model {has}. Leave the flag out, or train a new "
                "model: without --model_name_or_path and in another --output_dir."
            )
    trained = model.loss_weights if isinstance(model, (MultimodalForPreTraining, AlproForRetrieval)) else {}
    weights = {name: value for name, value in (config_settings or {}).items() if name.endswith("_loss_weight")}
    unused = [name for name, value in weights.items() if value and name.removesuffix("_loss_weight") not in trained]
    if unused:
        logger.warning(f"Without effect: {', '.join(unused)}; this run has {', '.join(trained) or 'answers'} alone.")


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
    audio, video = processor.feature_extractor, processor.video_processor
    sizes: dict[Modality, tuple[int | None, ...]] = {}
    if processor.tokenizer is not None:
        ids = processor.tokenizer("")["input_ids"]
        end = ids[-1] if ids and ids[-1] == processor.tokenizer.eos_token_id else None
        sizes["text"] = (len(processor.tokenizer), processor.tokenizer.pad_token_id, end)
    if audio is not None:
        sizes["audio"] = (audio.num_mel_bins, audio.num_frames)
    if video is not None:
        sizes["video"] = (video.num_frames, video.height, video.width)
        settings |= {"image_mean": list(video.image_mean), "image_std": list(video.image_std)}
    for modality, config in towers.items():
        encoder_class = get_encoder_class(config.model_type, modality)
        settings[f"{modality}_config"] = encoder_class.fit_config(  # type: ignore[attr-defined]  # each kind has its own
            config, *sizes[modality]
        )
        weight = f"{MASKED_OBJECTIVE_OF[modality]}_loss_weight"
        if encoder_class.decoder_class is None and settings.setdefault(weight, 0.0) > 0:
            raise ValueError(
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
        raise ValueError(
            "Without training, texts and clips can be compared only if all towers come from one checkpoint with a "
            f"common space, such as CLIP's; these do not ({found}). Name one checkpoint for all, and the modalities "
            "that it compares with each other (--modalities text video; PE-AV compares texts with sound or with "
            f"pictures). Otherwise: {remedy}"
        )
    own = {"contrastive_dim": shared[1], "contrastive_loss_before_fusion": True, "clip_embedding": "mean"}
    for name, value in own.items():
        if settings.setdefault(name, value) != value:
            raise ValueError(f"--{name} is {settings[name]}, for which {shared[0]} has no weights. {remedy}")
    if settings.setdefault("matching_loss_weight", 0.0) > 0:
        raise ValueError(f"--matching_loss_weight is above 0, but there is no trained matching head. {remedy}")


def answer_settings(
    task: str, source: str | os.PathLike | None, answers_file: str | None, train_set: RowDataset | None
) -> dict[str, dict]:
    """
    The answers that a model for question answering is to know, as settings of its configuration.

    Args:
        task (`str`): of the run; other tasks have no answers.
        source (`str`, *optional*): saved model that the run starts from; one that answers questions keeps its answers.
        answers_file (`str`, *optional*): JSON object of answers and their numbers, such as ALPRO's
            `train_ans2label.json`.
        train_set (`RowDataset`, *optional*): where the answers come from if there is no such file.

    Raises:
        ValueError: If there is nothing to take answers from, or the file is something else.
    """
    if task != "question_answering":
        if answers_file is not None:
            logger.warning("Without effect: answers_file, which is for --task question_answering.")
        return {}
    if answers_file is not None:
        try:
            label2id = json.loads(Path(answers_file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"--answers_file {answers_file} cannot be read as JSON: {error}") from error
    config = {} if source is None else _saved_config(source)
    if config.get("architectures") in [[classes[task].__name__] for classes in MODEL_CLASSES.values()]:
        if answers_file is not None and label2id != config.get("label2id"):
            raise ValueError(
                f"{source} answers questions already, with other answers than those of --answers_file {answers_file}. "
                "It keeps its own: leave the flag out."
            )
        return {}
    if answers_file is not None:
        is_numbered = isinstance(label2id, dict) and sorted(label2id.values()) == list(range(len(label2id)))
        if not is_numbered or len(label2id) < 2:
            raise ValueError(f"--answers_file {answers_file} must hold an object of answers numbered from 0.")
    elif train_set is not None:
        given = answer_vocabulary(answer for _, answer in question_pairs(train_set))
        label2id = {answer: number for number, answer in enumerate(given)}
    else:
        raise ValueError(
            "A model that answers questions takes its answers from the training questions: train it (--do_train), or "
            "name one that was trained (--model_name_or_path)."
        )
    return {"label2id": label2id, "id2label": {number: answer for answer, number in label2id.items()}}


def _saved_config(source: str | os.PathLike) -> dict:
    """Values of the configuration of a saved model."""
    try:
        return PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: is no saved model: {explain(source, error)}") from error


def load_model(task: str, source: str | os.PathLike, *, is_trained: bool, **settings) -> TowerModel:
    """
    A saved model; one of another task lends its towers and fusion, and the new head is drawn at random.

    Args:
        task (`str`): of the run.
        source (`str`): folder or hub name.
        is_trained (`bool`): whether it will be trained.
        settings: arguments of `from_pretrained`, among them changes of the configuration.

    Raises:
        ValueError: If its architecture is unknown or has not this task or an objective that a setting weighs, or if
            it lacks weights and will not be trained.
        OSError: If it has no weights as safetensors.
    """
    model_type = _saved_config(source).get("model_type")
    classes = MODEL_CLASSES.get(model_type or "", {})
    if task not in classes:
        there_is = {name: " or ".join(f"--task {task}" for task in tasks) for name, tasks in MODEL_CLASSES.items()}
        raise ValueError(
            f"{source} holds a model of the type {model_type!r}, for which there is no --task {task}; there is "
            f"{' and '.join(f'{name!r} with {tasks}' for name, tasks in there_is.items())}."
        )
    model_class = classes[task]
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    if unknown := [f"--{name}" for name in settings if name.endswith("_loss_weight") and name not in known]:
        weights = ", ".join(sorted(f"--{name}" for name in known if name.endswith("_loss_weight")))
        raise ValueError(
            f"{source} has no such objective: {', '.join(unknown)}. Leave that out; what it has is {weights}."
        )
    model, loaded = model_class.from_pretrained(source, output_loading_info=True, **settings)
    missing = sorted(loaded["missing_keys"])
    if missing and not is_trained:
        raise ValueError(
            f"{source} holds no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}: it is a "
            f"model of another task than {model_class.__name__}. Choose its --task, or train it."
        )
    return model


def choose_trained(model: TowerModel, freeze: Sequence[str], lora: Mapping | None, *, resumes: bool) -> None:
    """
    Freeze towers, and add LoRA adapters to others or merge those that a saved model has.

    Args:
        model (`TowerModel`): changed in place.
        freeze (`Sequence[str]`): towers whose weights stay as they are.
        lora (`Mapping`, *optional*): arguments of [`add_lora`]; no `towers`: all but `fusion` and frozen ones.
        resumes (`bool`): whether the model is a checkpoint of the run that goes on.

    Raises:
        ValueError: If the model lacks a tower or layer that is named, or goes on with other adapters than it has.
    """
    model.freeze(freeze)
    if resumes and (lora is None) != (model.config.lora is None):
        raise ValueError(
            f"The run in --output_dir {'has no' if lora else 'has'} LoRA adapters. Give the --lora_… flags that it "
            "began with to go on with it, or another --output_dir."
        )
    if lora is not None:
        towers = lora["towers"] or [name for name in model.towers if name not in (*freeze, "fusion")]
        if not towers:
            raise ValueError(
                f"--lora_rank has no tower to put adapters into: --freeze names {', '.join(freeze)}. Take a tower out "
                "of it, name the fusion in --lora_towers, or leave --lora_rank out."
            )
        add_lora(model, **{**lora, "towers": towers})
    elif model.config.lora is not None:
        merge_lora(model)


def build_targets(
    model: TowerModel,
    processor: MultimodalProcessor,
    *,
    task: str,
    mlm_probability: float,
    audio_mask_ratio: float,
    video_mask_ratio: float,
    vt_match_ratio: float,
) -> Targets | None:
    """Return what the collator adds to a batch for a task and the objectives of the model; the mask settings are those
    of [`PretrainingTargets`].
    """
    if task == "question_answering":
        return AnswerLabels(model.config.label2id)
    if not isinstance(model, (MultimodalForPreTraining, AlproForRetrieval)):
        return None
    settings: dict = {}
    if "mlm" in model.loss_weights:
        settings["mlm_probability"] = mlm_probability
    if "mam" in model.loss_weights:
        settings["audio_mask_ratio"] = audio_mask_ratio
        settings["audio_patches_per_window"] = model.towers["audio"].num_patches
    if "mvm" in model.loss_weights:
        settings["video_mask_ratio"] = video_mask_ratio
        settings["video_patch_grid"] = model.towers["video"].patch_grid
    if "matching" in model.loss_weights:
        settings["vt_match_ratio"] = vt_match_ratio
    return PretrainingTargets(processor, **settings)


def load_features(
    model: TowerModel,
    processor: MultimodalProcessor,
    datasets: Iterable[RowDataset | None],
    is_trained: bool,
    *,
    folder: str | os.PathLike | None,
    video_backend: str,
    decode_device: str,
) -> dict[Modality, FeatureReader]:
    """
    Features that take the place of towers and of decoding for them, made sure to be those of this run.

    Args:
        model (`TowerModel`): after what is to be frozen was.
        processor (`MultimodalProcessor`), video_backend, decode_device (`str`): what would read clips.
        datasets (`Iterable[RowDataset | None]`): every row must have features, but for those whose file is
            missing.
        is_trained (`bool`): whether the model will be.
        folder (`str`, *optional*): of the features; none if it is not given.

    Raises:
        ValueError: If they are of another tower, were read in another way, or are of files that were changed; if a
            clip has none; if the run would train one of these towers, or has an objective that needs what it reads.
    """
    if folder is None:
        return {}

    def frozen_tower_hash(modality: Modality) -> str:
        names = [name for name, parameter in model.towers[modality].named_parameters() if parameter.requires_grad]
        if is_trained and names:
            what = "train LoRA adapters in that tower" if ".lora_" in names[0] else "train that tower"
            raise ValueError(
                f"--features {folder} holds what the {modality} tower gave, but this run would {what}. Add "
                f"{modality} to --freeze (and to no --lora_towers), or leave --features out."
            )
        return model.tower_hash(modality)

    decoder = {"video_backend": video_backend, "decode_device": decode_device}
    readers = open_features(folder, frozen_tower_hash, processor, **decoder)
    weights = model.loss_weights if isinstance(model, MultimodalForPreTraining) else {}
    for modality, reader in readers.items():
        for name in weights:
            if MASKED_OBJECTIVES.get(name) == modality:
                raise ValueError(
                    f"--features {folder} holds no input of the {modality} tower, which the objective {name} needs. "
                    f"Pass --{name}_loss_weight 0, or leave --features out."
                )
        for dataset in datasets:
            if dataset is not None:
                reader.check_rows(_readable_rows(dataset))
    video = processor.video_processor
    if is_trained and "video" in readers:
        drawn = {
            "random_crop": video.random_crop,
            "random_flip": video.random_flip,
            f"frame_sampling {video.train_frame_sampling}": video.train_frame_sampling != video.frame_sampling,
        }
        if unused := [name for name, is_on in drawn.items() if is_on]:
            logger.warning(
                f"Without effect: {', '.join(unused)}. --features {folder} are of the frames that evaluation takes, "
                "in every epoch."
            )
    return readers


def _readable_rows(dataset: RowDataset) -> Iterator[Row]:
    """Rows whose files are there; the others are bad samples."""
    for index in range(len(dataset)):
        try:
            yield dataset[index]
        except (ValueError, OSError):
            continue


def convert_alpro(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tokenizer_name: str,
    num_frames: int | None = None,
    max_seq_length: int | None = None,
    answers_file: str | os.PathLike | None = None,
    config: AlproConfig | None = None,
) -> LoadingReport:
    """
    Turn an original ALPRO checkpoint into a folder from which `from_pretrained` loads the model and its processor.

    Args:
        checkpoint (`str` or `os.PathLike`): ALPRO's `model_step_best.pt`, see [`load_alpro`].
        out (`str` or `os.PathLike`): the folder; made if it does not exist.
        tokenizer_name (`str`): hub name or local folder; ALPRO's is `google-bert/bert-base-uncased`.
        num_frames, config: see [`load_alpro`].
        max_seq_length (`int`, *optional*): tokens after which texts are cut; ALPRO's are 40, for DiDeMo 50.
        answers_file (`str` or `os.PathLike`, *optional*): ALPRO's `train_ans2label.json`, `{answer: number}`.

    Returns:
        [`LoadingReport`]: what became of every tensor.

    Raises:
        ValueError: If the checkpoint, the answers or the tokenizer are not ALPRO's, or texts may be too long.
    """
    answers = None
    if answers_file is not None:
        try:
            answers = json.loads(Path(answers_file).read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            pass
        if not isinstance(answers, dict) or not all(type(number) is int for number in answers.values()):
            raise ValueError(f"{os.fspath(answers_file)!r} is not a JSON object of answers and their numbers.")
    model, report = load_alpro(checkpoint, num_frames=num_frames, answers=answers, config=config)
    towers: dict[Modality, PreTrainedConfig] = {
        "text": model.config.text_config,
        "video": model.config.video_config,
    }
    processor = build_processor(
        towers,
        captions=tuple,
        tokenizer_name=tokenizer_name,
        max_seq_length=max_seq_length,
        video_settings={
            "geometry": "squash",
            "resize_kernel": "decord",
            "frame_sampling": "alpro",
            "image_mean": model.config.image_mean,
            "image_std": model.config.image_std,
        },
    )
    if len(processor.tokenizer) != model.config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer {tokenizer_name!r} has {len(processor.tokenizer)} tokens, the checkpoint "
            f"{model.config.text_config.vocab_size}. Give the one that the checkpoint was trained with."
        )
    check_inputs(model, processor)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    for path in Path(out).glob("*.safetensors"):
        give_umask(path)
    return report
