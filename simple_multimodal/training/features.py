"""Features of frozen towers that a run uses in place of these towers."""

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
    Features that take the place of towers and of decoding for them, made sure to be those of this run.

    Args:
        folder (`str`): of the features.
        model (`TowerModel`): with its frozen towers already frozen.
        processor (`MultimodalProcessor`), video_backend, decode_device (`str`): what would read clips.
        datasets (`Iterable[RowDataset | None]`): every row must have features, but for those whose file is
            missing.
        is_trained (`bool`): whether the model will be.

    Raises:
        ValueError: If they are of another tower, were read in another way, or are of files that were changed; if a
            clip has none; if the run would train one of these towers, or has an objective that needs what it reads.
    """

    def frozen_tower_hash(modality: Modality) -> str:
        names = [name for name, parameter in model.towers[modality].named_parameters() if parameter.requires_grad]
        if is_trained and names:
            what = "train LoRA adapters in that tower" if ".lora_" in names[0] else "train that tower"
            raise InputError(
                f"--features {folder} holds what the {modality} tower gave, but this run would {what}. Add "
                f"{modality} to --freeze (and to no --lora_towers), or leave --features out."
            )
        return model.tower_hash(modality)

    decoder = {"video_backend": video_backend, "decode_device": decode_device}
    readers = open_features(folder, frozen_tower_hash, processor, **decoder)
    weights = model.loss_weights
    for modality, reader in readers.items():
        for name in weights:
            if MASKED_OBJECTIVES.get(name) == modality:
                raise InputError(
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
