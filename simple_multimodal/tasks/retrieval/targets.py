"""Random targets for the objectives of pre-training and retrieval, sampled while a batch is collated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from simple_multimodal.data.masking import mlm_mask, patch_mask, tube_mask
from simple_multimodal.data.randomness import GeneratorOf, stable_hash
from simple_multimodal.data.rows import Row
from simple_multimodal.errors import InputError
from simple_multimodal.processing import MultimodalProcessor


class PretrainingTargets:
    """Samples masks and pairs for the pre-training objectives; `None` leaves an objective's entries out.

    Args:
        processor ([`MultimodalProcessor`]):
            Processor that makes the batches.
        mlm_probability (`float`, *optional*):
            Fraction of the tokens to predict.
        audio_mask_ratio (`float`, *optional*):
            Fraction of the patches of each audio window to mask; requires `audio_patches_per_window`.
        audio_patches_per_window (`int`, *optional*):
            Number of patches per window of the audio encoder.
        video_mask_ratio (`float`, *optional*):
            Fraction of the spatial positions of a clip to mask; requires `video_patch_grid`.
        video_patch_grid (`tuple[int, int, int]`, *optional*):
            Number of the video encoder's tubelets in time, height and width.
        vt_match_ratio (`float`, *optional*):
            Probability that a row keeps its own text in the matching objective.

    Raises:
        ValueError: If a mask ratio is given without its patches or vice versa, `vt_match_ratio` is not between 0 and
            1, **or** `mlm_probability` is given and the processor has no tokenizer with a mask token.
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        *,
        mlm_probability: float | None = None,
        audio_mask_ratio: float | None = None,
        audio_patches_per_window: int | None = None,
        video_mask_ratio: float | None = None,
        video_patch_grid: tuple[int, int, int] | None = None,
        vt_match_ratio: float | None = None,
    ):
        if (audio_mask_ratio is None) != (audio_patches_per_window is None):
            raise InputError("Pass `audio_mask_ratio` and `audio_patches_per_window` together, or neither.")
        if (video_mask_ratio is None) != (video_patch_grid is None):
            raise InputError("Pass `video_mask_ratio` and `video_patch_grid` together, or neither.")
        if vt_match_ratio is not None and not 0 <= vt_match_ratio <= 1:
            raise InputError(f"`vt_match_ratio` must be between 0 and 1, got {vt_match_ratio}.")
        self.mlm_probability = mlm_probability
        self.audio_mask_ratio = audio_mask_ratio
        self.audio_patches_per_window = audio_patches_per_window
        self.video_mask_ratio = video_mask_ratio
        self.video_patch_grid = video_patch_grid
        self.vt_match_ratio = vt_match_ratio
        if audio_mask_ratio is not None:
            self._window_frames = processor.feature_extractor.num_frames
        if mlm_probability is not None:
            tokenizer = processor.tokenizer
            if tokenizer is None or tokenizer.mask_token_id is None:
                raise InputError("Predicting masked tokens needs a tokenizer with a mask token.")
            specials = set(tokenizer.all_special_ids)
            self._mask_token_id = tokenizer.mask_token_id
            self._replacement_ids = np.array([i for i in range(len(tokenizer)) if i not in specials])
            self._special_ids = np.array(sorted(specials))

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """Sample the targets of each row from its own generators.

        Returns:
            `dict[str, torch.Tensor]`: The requested entries among `mlm_input_ids` and `mlm_labels` of shape
            `(batch_size, sequence_length)`; `audio_masked_patches` of shape `(batch_size, num_windows *
            masked_per_window)`; `video_masked_patches` of shape `(batch_size, num_masked)`; `match_aligned` (`bool`),
            `match_uniform` (`float32` in [0, 1)) and `text_ids` (`int64`, 63-bit hashes of the tokens) of shape
            `(batch_size,)`.
        """
        targets: dict[str, torch.Tensor] = {}
        if self.mlm_probability is not None:
            ids, attended = batch["input_ids"].numpy(), batch["attention_mask"].numpy() == 1
            maskable = attended & ~np.isin(ids, self._special_ids)
            pairs = [
                mlm_mask(
                    ids[number],
                    maskable[number],
                    probability=self.mlm_probability,
                    mask_token_id=self._mask_token_id,
                    replacement_ids=self._replacement_ids,
                    generator=generator_of(row, "mlm"),
                )
                for number, row in enumerate(rows)
            ]
            targets["mlm_input_ids"] = torch.from_numpy(np.stack([ids for ids, _ in pairs]))
            targets["mlm_labels"] = torch.from_numpy(np.stack([labels for _, labels in pairs]))
        if self.audio_mask_ratio is not None and self.audio_patches_per_window is not None:
            num_windows = batch["audio_values"].shape[-1] // self._window_frames
            patches, ratio = self.audio_patches_per_window, self.audio_mask_ratio
            targets["audio_masked_patches"] = _positions(
                [patch_mask(num_windows, patches, ratio=ratio, generator=generator_of(r, "audio_mask")) for r in rows]
            )
        if self.video_mask_ratio is not None and self.video_patch_grid is not None:
            grid, ratio = self.video_patch_grid, self.video_mask_ratio
            targets["video_masked_patches"] = _positions(
                [tube_mask(*grid, ratio=ratio, generator=generator_of(row, "video_mask")) for row in rows]
            )
        if self.vt_match_ratio is not None:
            # Sampled row by row, so that a row depends neither on its batch nor on the number of processes; the
            # fraction of aligned rows is therefore exact only in expectation.
            uniform = np.array([generator_of(row, "match").random(2) for row in rows])
            targets["match_aligned"] = torch.from_numpy(uniform[:, 0] < self.vt_match_ratio)
            targets["match_uniform"] = torch.from_numpy(_below_one(uniform[:, 1]))
            # Hashes of the tokens, not of the captions: texts that the model cannot tell apart are equal.
            texts = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            targets["text_ids"] = torch.tensor([stable_hash(str(ids[real].tolist())) for ids, real in texts])
        return targets


def _positions(masks: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the positions of the masked patches of each row."""
    return torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in masks]))


def _below_one(values: np.ndarray) -> np.ndarray:
    """Convert to `float32` without rounding up to 1."""
    return np.minimum(values.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))
