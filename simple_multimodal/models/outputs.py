"""Inputs and outputs of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from simple_multimodal.models.fusion.crossformer import Clip

Batch = dict[str, torch.Tensor]
"""A batch as the collator makes it."""


@dataclass
class MultimodalOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Weighted sum of the objectives.
        logits (`torch.FloatTensor`, *optional*): Prediction of the head: answers `(batch_size, num_answers)` or
            matching `(batch_size, 2)`.
        text_embeds, audio_embeds, video_embeds, pose_embeds, clip_embeds (`torch.FloatTensor`, *optional*):
            Unit-length embeddings of shape `(batch_size, contrastive_dim)`; meaningless (but finite) for rows that
            lack the modality.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_text_tokens, hidden_size)`, *optional*):
            Text states that have attended to the clip.
        losses (`dict[str, torch.FloatTensor]`, *optional*): Value of each objective, unweighted, detached.
        metrics (`dict[str, torch.FloatTensor]`, *optional*): `(sum, count)` of each metric, of shape `(2,)`, detached.
        clip (`dict[Modality, Stream]`, *optional*): The clip as [`MultimodalForPreTraining.matching_logits`] takes it;
            empty where rows were encoded in chunks and nothing reads it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    pose_embeds: torch.Tensor | None = None
    clip_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    metrics: dict[str, torch.Tensor] | None = None
    clip: Clip | None = None
