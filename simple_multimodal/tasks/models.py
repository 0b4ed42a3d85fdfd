"""Build or load the model and processor of a task."""

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
from simple_multimodal.models.loading import without_bars
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Rows, Task
from simple_multimodal.tasks.registry import get_task, task_of

NOTHING: Mapping[str, Any] = MappingProxyType({})


def from_towers(
    *,
    text: str | None = None,
    audio: str | None = None,
    video: str | None = None,
    pose: str | None = None,
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
    Build a new model from pretrained towers, and its processor. Weights that no checkpoint contains are initialized at
    random: call [`~transformers.set_seed`] before.

    Args:
        text, audio, video, pose (`str`, *optional*): Hub name or folder of the tower's weights, or the path of a JSON
            config for a tower with random weights. The model has only the modalities that are given.
        fusion (`str` or `PreTrainedConfig`, *optional*): The same for the crossformer, or its configuration; by
            default four ViT layers of width 256.
        task (`str` or [`Task`], *optional*, defaults to `"pretraining"`): Task of the model.
        train_dataset (*optional*): Training rows in any form that [`Task.open_rows`] accepts, such as the path of a
            manifest. The task derives settings from them, such as the answers of question answering.
        roots (*optional*): Folders that the files of `train_dataset` lie in, see [`RowDataset`]; ignored if
            `train_dataset` is one.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead outside the roots,
            see [`RowDataset`]; ignored if `train_dataset` is one.
        captions (`Iterable[str]`, *optional*): Texts to train a tokenizer on; by default the captions of
            `train_dataset`. Needed only if `text` is a JSON config, which has no tokenizer; a text tower with weights
            has its own.
        is_trained (`bool`, *optional*, defaults to `True`): Whether the model will be trained. A model that will not
            be trained needs towers from one checkpoint with a shared embedding space.
        processor_settings (`Mapping`, *optional*): Arguments of [`build_processor`].
        cache_dir (`str`, *optional*): Cache folder for files from the hub.
        settings: Towers of further modalities by name, and further arguments of [`MultimodalConfig`], such as
            `fusion_form="merge"`.

    Returns:
        `tuple[TowerModel, MultimodalProcessor]`: The model and its processor.

    Raises:
        ValueError: If no tower is given, a tokenizer must be trained without captions, **or** towers, processor and
            settings do not match.

    Example:

    ```python
    >>> model, processor = from_towers(
    ...     text="microsoft/deberta-v3-base", video="MCG-NJU/videomae-base", task="retrieval"
    ... )
    ```
    """
    named = {"text": text, "audio": audio, "video": video, "pose": pose}
    named |= {modality: settings.pop(modality) for modality in MODALITIES if modality in settings}
    places: dict[str, str] = {modality: place for modality, place in named.items() if place is not None}
    if not places:
        raise InputError(
            "A model needs at least one tower. Pass `text`, `audio`, `video` or `pose`: the hub name or folder of "
            "pretrained weights, or the path of a JSON config for random weights, such as those in configs/ of the "
            "repository."
        )
    task = get_task(task)() if isinstance(task, str) else task
    if train_dataset is not None:
        train_dataset = task.open_rows(train_dataset, modalities=tuple(places), roots=roots, follow_links=follow_links)
        captions = train_dataset.captions() if captions is None else captions
    trains_tokenizer = text is not None and text.endswith(".json")
    if trains_tokenizer and (captions is None or isinstance(captions, str)):
        raise InputError(
            f"text={text!r} is a config without a tokenizer. To train one, pass `train_dataset`, or a list of texts "
            "as `captions`; or pass a text tower with weights, which has its own."
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


@without_bars()
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
    Build a model like [`from_towers`], with configurations and weights of the towers given separately.

    Args:
        configs (`Mapping[str, str]`): Hub name, folder or JSON file of the configuration of each tower.
        fusion (`str` or `PreTrainedConfig`): Configuration of the crossformer, or where to read it from.
        pretrained (`Mapping[str, str]`): Hub name or folder of the weights of each pretrained tower, and of `fusion`.
        processor_names (`Mapping[str, str]`, *optional*): See [`processor_names`].
        task, train_dataset, captions, processor_settings, is_trained, cache_dir, settings: As for [`from_towers`].
    """
    if settings.get("frame_pooling_layers") and not task.reads_embeddings:
        raise InputError(
            f"`frame_pooling_layers` is {settings['frame_pooling_layers']}, but {task.name} does not use the "
            "embedding that these layers compute. Leave it out."
        )
    if not task.reads_text and "text" in configs:
        raise InputError(f"A model for {task.name} writes the text of a row, which it must not see. Leave `text` out.")
    towers = assembly.load_towers(configs)
    named = {**dict.fromkeys(assembly.PROCESSOR_NAMES.values()), **processor_names}
    names = assembly.processor_names(towers, named, pretrained)
    parts: dict[str, Any] = {**names, **processor_settings}
    processor = assembly.build_processor(towers, captions=captions, cache_dir=cache_dir, **parts)
    task.prepare(processor, None, train_dataset, cache_dir=cache_dir)
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
    task.finish(model, None)
    return model, processor


@without_bars()
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
    Load a saved model and its processor. If `processor_settings` change the number of frames or their size, the
    towers' position embeddings are converted as for pretrained towers.

    Args:
        source (`str`): Folder or hub name.
        task (`str` or [`Task`], *optional*): Task of the model; by default the one it was trained for. For another
            task, its towers and fusion are loaded and the new head is initialized at random.
        train_dataset ([`RowDataset`], *optional*): As for [`from_towers`].
        is_trained (`bool`, *optional*, defaults to `True`): Whether the model will be trained. A model that will not
            be trained must have all of its weights.
        processor_settings (`Mapping`, *optional*): Arguments of [`load_processor`].
        cache_dir (`str`, *optional*): Cache folder for files from the hub.
        settings: Arguments of `from_pretrained`, including changes to the configuration.

    Raises:
        ValueError: If there is no such model, it cannot be used for the task, **or** a tower does not accept inputs of
            the size that `processor_settings` request.
        OSError: If the model has no weights as safetensors.

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
    task.prepare(processor, source, train_dataset, cache_dir=cache_dir)
    own = {"task": task.name, **task.config_settings(source, train_dataset)}
    model = assembly.load_model(
        task.model_classes, source, is_trained=is_trained, sizes=sizes, cache_dir=cache_dir, **settings, **own
    )
    task.finish(model, source)
    return model, processor


def saved_task(
    source: str | os.PathLike[str], *, default: type[Task] | None = None, cache_dir: str | None = None
) -> type[Task]:
    """
    Return the task that a saved model was trained for.

    Args:
        source (`str`): Folder or hub name.
        default (`type[Task]`, *optional*): Value to return if no task has such a model, instead of raising an error.
        cache_dir (`str`, *optional*): Cache folder for files from the hub.

    Raises:
        ValueError: If there is no such model, **or** no task has its class and there is no `default`.
    """
    config = assembly.saved_config(source, cache_dir=cache_dir)
    return task_of(config.get("task"), (config.get("architectures") or [""])[0], default=default)
