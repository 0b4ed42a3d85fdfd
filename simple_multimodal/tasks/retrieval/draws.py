"""What is drawn for the objectives of pre-training and retrieval while batches are made."""

from simple_multimodal.data.collator import PretrainingDraws
from simple_multimodal.models.base import TowerModel


def build_draws(
    model: TowerModel,
    *,
    mlm_probability: float,
    audio_mask_ratio: float,
    video_mask_ratio: float,
    vt_match_ratio: float,
) -> PretrainingDraws:
    """What the collator draws for the objectives that the model has; arguments as in [`PretrainingDraws`]."""
    draws: dict = {}
    if "mlm" in model.loss_weights:
        draws["mlm_probability"] = mlm_probability
    if "mam" in model.loss_weights:
        draws["audio_mask_ratio"] = audio_mask_ratio
        draws["audio_patches_per_window"] = model.towers["audio"].num_patches
    if "mvm" in model.loss_weights:
        draws["video_mask_ratio"] = video_mask_ratio
        draws["video_patch_grid"] = model.towers["video"].patch_grid
    if "matching" in model.loss_weights:
        draws["vt_match_ratio"] = vt_match_ratio
    return PretrainingDraws(**draws)
