"""Model and processor of a task: new ones out of towers, or saved ones."""

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig, ViTConfig

from simple_multimodal import assembly
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.defaults import DEFAULT_TASK
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import MODALITIES, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.fusion.crossformer import load_fusion_config
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Rows, Task
from simple_multimodal.tasks.registry import get_task, task_of

NOTHING: Mapping[str, Any] = MappingProxyType({})


def from_towers(
    *,
    text: str | None = None,
    audio: str | None = None,
    video: str | None = None,
    fusion: str | PreTrainedConfig | None = None,
    task: str | Task = DEFAULT_TASK,
    train_dataset: Rows | None = None,
    roots: Any = None,
    follow_links: bool = False,
    captions: Iterable[str] | None = None,
    is_trained: bool = True,
    processor_settings: Mapping[str, Any] = NOTHING,
    cache_dir: str | None = None,
    **settings,
) -> tuple[TowerModel, MultimodalProcessor]:
    """
    Build a new model out of pretrained towers, and the processor that fits it. What no checkpoint gives is drawn at
    random: call [`~transformers.set_seed`] before.

    Args:
        text, audio, video (`str`, *optional*): hub name or folder of the tower's weights, or the path of a JSON config
            for a tower with random weights. A modality that is not named is not part of the model.
        fusion (`str` or `PreTrainedConfig`, *optional*): the same for the crossformer, or a configuration of it; by
            default four ViT layers of width 256.
        task (`str` or [`Task`], *optional*, defaults to `"pretraining"`): what the model is for.
        train_dataset (*optional*): rows to train on, as [`Task.open_rows`] takes them, such as the path of a manifest;
            for what the task finds out from them, such as the answers of question answering.
        roots (*optional*): folders of the files of a `train_dataset` that is not a [`RowDataset`], see there.
        follow_links (`bool`, *optional*, defaults to `False`): follow links wherever they lead, likewise.
        captions (`Iterable[str]`, *optional*): texts to train a tokenizer on. Needed only if `text` is a JSON config,
            which has no tokenizer, and there is no `train_dataset`, whose captions are the default. A text tower with
            weights brings its own tokenizer.
        is_trained (`bool`, *optional*, defaults to `True`): whether the model will be trained; one that will not needs
            towers of one checkpoint with a common space.
        processor_settings (`Mapping`, *optional*): arguments of [`build_processor`].
        cache_dir (`str`, *optional*): where files from the hub are kept.
        settings: towers of further modalities by their names, and further arguments of [`MultimodalConfig`], such as
            `fusion_form="merge"`.

    Returns:
        `tuple[TowerModel, MultimodalProcessor]`: the model and its processor.

    Raises:
        ValueError: If no tower is named, a tokenizer is to be trained without captions, **or** towers, processor and
            settings do not fit each other.

    Example:

    ```python
    >>> model, processor = from_towers(
    ...     text="microsoft/deberta-v3-base", video="MCG-NJU/videomae-base", task="retrieval"
    ... )
    ```
    """
    named = {"text": text, "audio": audio, "video": video, **{m: settings.pop(m) for m in MODALITIES if m in settings}}
    places: dict[str, str] = {modality: place for modality, place in named.items() if place is not None}
    if not places:
        raise InputError("A model needs a tower: name one of `text`, `audio` and `video`.")
    task = get_task(task)() if isinstance(task, str) else task
    if train_dataset is not None:
        train_dataset = task.open_rows(train_dataset, modalities=tuple(places), roots=roots, follow_links=follow_links)
        captions = train_dataset.captions() if captions is None else captions
    trains_tokenizer = text is not None and text.endswith(".json")
    if trains_tokenizer and (captions is None or isinstance(captions, str)):
        raise InputError(
            f"`text` is {text!r}, a config without a tokenizer. To train one, pass `train_dataset`, or a list of "
            "texts as `captions`; or name a text tower with weights, which has its own."
        )
    if isinstance(fusion, str):
        places["fusion"] = fusion
    return build(
        task,
        configs={name: place for name, place in places.items() if name != "fusion"},  # type: ignore[misc]
        fusion=fusion or _default_fusion(),
        pretrained={name: place for name, place in places.items() if not place.endswith(".json")},
        train_dataset=train_dataset,
        captions=lambda: captions or (),
        processor_names={} if text is None or trains_tokenizer else {"tokenizer_name": text},
        is_trained=is_trained,
        processor_settings=processor_settings,
        cache_dir=cache_dir,
        **settings,
    )


def _default_fusion() -> PreTrainedConfig:
    return ViTConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)


def build(
    task: Task,
    *,
    configs: Mapping[Modality, str],
    fusion: str | PreTrainedConfig,
    pretrained: Mapping[str, str],
    captions: Callable[[], Iterable[str]],
    train_dataset: RowDataset | None = None,
    processor_names: Mapping[str, str | None] = NOTHING,
    processor_settings: Mapping[str, Any] = NOTHING,
    is_trained: bool = True,
    cache_dir: str | None = None,
    **settings,
) -> tuple[TowerModel, MultimodalProcessor]:
    """
    [`from_towers`] with configuration and weights of each tower named apart.

    Args:
        configs (`Mapping[str, str]`): where the configuration of each tower is read from.
        fusion (`str` or `PreTrainedConfig`): configuration of the crossformer, or where it is read from.
        pretrained (`Mapping[str, str]`): hub name or folder of the weights of each tower, and of `fusion`, that has
            such.
        processor_names (`Mapping[str, str]`, *optional*): see [`processor_names`].
        task, train_dataset, captions, processor_settings, is_trained, cache_dir, settings: as there.
    """
    if settings.get("frame_pooling_layers") and not task.reads_embeddings:
        raise InputError(
            f"--frame_pooling_layers is {settings['frame_pooling_layers']}, but {task.name} reads tokens, not the "
            "embedding that these layers make. Leave it out."
        )
    towers = assembly.load_towers(configs)
    named = {**dict.fromkeys(assembly.PROCESSOR_NAMES.values()), **processor_names}
    names = assembly.processor_names(towers, named, pretrained)
    parts: dict[str, Any] = {**names, **processor_settings}
    processor = assembly.build_processor(towers, captions=captions, cache_dir=cache_dir, **parts)
    config = assembly.build_config(
        towers,
        load_fusion_config(fusion) if isinstance(fusion, str) else fusion,
        processor,
        is_trained=is_trained,
        pretrained=pretrained,
        task=task.name,
        **task.config_settings(None, train_dataset),
        **settings,
    )
    model_class: Any = task.model_classes[config.model_type]
    model, reports = model_class.from_encoders(
        config, dict(pretrained), same_vocabulary=names["tokenizer_name"] is not None, cache_dir=cache_dir
    )
    assembly.warn_of_tensors(reports)
    return model, processor


def load(
    source: str | os.PathLike[str],
    *,
    task: str | Task | None = None,
    train_dataset: RowDataset | None = None,
    is_trained: bool = True,
    processor_settings: Mapping[str, Any] = NOTHING,
    cache_dir: str | None = None,
    **settings,
) -> tuple[TowerModel, MultimodalProcessor]:
    """
    A saved model and its processor. Where `processor_settings` change the number of frames or their size, the towers'
    position tables are converted as those of pretrained towers are.

    Args:
        source (`str`): folder or hub name.
        task (`str` or [`Task`], *optional*): what the model is to be for; by default what it was trained for. One of
            another task lends its towers and fusion, and the new head is drawn at random.
        train_dataset ([`RowDataset`], *optional*): as for [`from_towers`].
        is_trained (`bool`, *optional*, defaults to `True`): whether it will be trained; one that will not must have
            all of its weights.
        processor_settings (`Mapping`, *optional*): arguments of [`load_processor`].
        cache_dir (`str`, *optional*): where files from the hub are kept.
        settings: arguments of `from_pretrained`, among them changes of the configuration.

    Raises:
        ValueError: If there is no such model, it cannot be used for the task, **or** a tower cannot take inputs of the
            size that `processor_settings` ask for.
        OSError: If it has no weights as safetensors.

    Example:

    ```python
    >>> model, processor = load("outputs/mine")
    ```
    """
    processor = assembly.load_processor(source, cache_dir=cache_dir, **processor_settings)
    sizes = assembly.changed_sizes(source, processor, cache_dir=cache_dir)
    if task is None:
        task = saved_task(source, cache_dir=cache_dir)()
    elif isinstance(task, str):
        task = get_task(task)()
    own = {"task": task.name, **task.config_settings(source, train_dataset)}
    model = assembly.load_model(
        task.model_classes, source, is_trained=is_trained, sizes=sizes, cache_dir=cache_dir, **settings, **own
    )
    return model, processor


def saved_task(
    source: str | os.PathLike[str], *, default: type[Task] | None = None, cache_dir: str | None = None
) -> type[Task]:
    """
    The task that a saved model was trained for.

    Args:
        source (`str`): folder or hub name.
        default (`type[Task]`, *optional*): what to return if no task has such a model, instead of raising an error.
        cache_dir (`str`, *optional*): where files from the hub are kept.

    Raises:
        ValueError: If there is no such model, **or** no task has one of its class and there is no `default`.
    """
    config = assembly.saved_config(source, cache_dir=cache_dir)
    return task_of(config.get("task"), (config.get("architectures") or [""])[0], default=default)
