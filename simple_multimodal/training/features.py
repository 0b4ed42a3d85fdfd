"""Precomputed features of frozen towers, which a run uses instead of the towers."""

import os
from collections.abc import Iterable, Iterator

from transformers.utils import logging

from simple_multimodal.data.features import FeatureReader, open_features
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.defaults import DECODE_DEVICE, VIDEO_BACKEND
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import MASKED_OBJECTIVES
from simple_multimodal.processing import MultimodalProcessor

logger = logging.get_logger(__name__)


def load_features(
    folder: str | os.PathLike,
    model: TowerModel,
    processor: MultimodalProcessor,
    datasets: Iterable[RowDataset | None],
    *,
    is_trained: bool,
    video_backend: str = VIDEO_BACKEND,
    decode_device: str = DECODE_DEVICE,
) -> dict[Modality, FeatureReader]:
    """
    Open features that replace towers and the decoding for them, and check that they belong to this run.

    Args:
        folder (`str`): Folder of the features.
        model (`TowerModel`): Model with its frozen towers already frozen.
        processor (`MultimodalProcessor`), video_backend, decode_device (`str`): How clips would be read.
        datasets (`Iterable[RowDataset | None]`): Datasets of the run; every row must have features, unless its file is
            missing.
        is_trained (`bool`): Whether the model will be trained.

    Raises:
        ValueError: If the features belong to another tower, were read differently, or belong to files that have
            changed since; if a clip has no features; if the run would train one of the towers, or has an objective
            that needs its input.
    """

    def frozen_tower_hash(modality: Modality) -> str:
        names = [name for name, parameter in model.towers[modality].named_parameters() if parameter.requires_grad]
        if is_trained and names:
            what = "train LoRA adapters in that tower" if ".lora_" in names[0] else "train that tower"
            raise InputError(
                f"--features {folder} has outputs of the {modality} tower, but this run would {what}. Add {modality} "
                "to --freeze (and not to --lora_towers), or leave --features out."
            )
        return model.tower_hash(modality)

    decoder = {"video_backend": video_backend, "decode_device": decode_device}
    readers = open_features(folder, frozen_tower_hash, processor, **decoder)
    weights = model.loss_weights
    for modality, reader in readers.items():
        for name in weights:
            if MASKED_OBJECTIVES.get(name) == modality:
                raise InputError(
                    f"--features {folder} has no inputs of the {modality} tower, which the objective {name} needs. "
                    f"Pass --{name}_loss_weight 0, or leave --features out."
                )
        for dataset in datasets:
            if dataset is not None:
                reader.check_rows(_readable_rows(dataset))
    video = processor.video_processor
    if is_trained and "video" in readers:
        augmentations = {
            "random_crop": video.random_crop,
            "random_flip": video.random_flip,
            f"frame_sampling {video.train_frame_sampling}": video.train_frame_sampling != video.frame_sampling,
        }
        if unused := [name for name, is_on in augmentations.items() if is_on]:
            logger.warning(
                f"Ignored: {', '.join(unused)}. --features {folder} were computed from the frames of evaluation, "
                "which every epoch uses."
            )
    return readers


def _readable_rows(dataset: RowDataset) -> Iterator[Row]:
    """Yield the rows whose files exist; the others are bad samples."""
    for index in range(len(dataset)):
        try:
            yield dataset[index]
        except (ValueError, OSError):
            continue
