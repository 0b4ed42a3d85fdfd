"""The head for video classification."""

import torch
from torch import nn
from transformers import AutoModelForVideoClassification
from transformers import initialization as init

from simple_multimodal.errors import InputError
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.models.losses import asymmetric_loss, label_smoothed_loss, masked_mean
from simple_multimodal.models.modeling import MultimodalModel, MultimodalPreTrainedModel
from simple_multimodal.models.outputs import Batch, MultimodalOutput

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"

LARGEST_START = 0.999
"""Largest frequency that the bias of a label starts from: that of a label that every row has is infinite."""


class LabelClassifier(nn.Linear):
    """The linear layer from a pooled clip to the logits, whose bias starts from the labels' frequencies."""


class MultimodalForVideoClassification(MultimodalPreTrainedModel):
    """Recognise labels from the mean of all tokens of a clip after the fusion: those of its text, audio and video.

    A modality that a row lacks has no tokens, so it needs no special treatment. The labels are the configuration's
    `id2label`; its `problem_type` says whether a clip has one of them or any number.
    """

    loss_weights = {"classification": 1.0}
    label_smoothing = 0.0
    _keys_to_ignore_on_load_unexpected = [
        r"^(text|audio|video)_decoder\.",
        r"^fusion_to_text\.",
        r"^matching_head\.",
    ]

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        self.multimodal = MultimodalModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = LabelClassifier(self.multimodal.fusion.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LabelClassifier) and self.config.label_frequencies is not None:
            shares = torch.tensor(self.config.label_frequencies).clamp(1 - LARGEST_START, LARGEST_START)
            init.copy_(module.bias, shares.logit() if self.has_many_labels else shares.log())

    @property
    def has_many_labels(self) -> bool:
        """Whether a clip has any number of labels instead of one."""
        return self.config.problem_type == MULTI_LABEL

    def smooth_labels(self, factor: float) -> None:
        """Spread a share of each target over all labels in training, see [`label_smoothed_loss`].

        Raises:
            ValueError: If a clip has any number of labels.
        """
        if self.has_many_labels:
            raise InputError(
                "--label_smoothing_factor is for one label per clip. For the column `labels`, "
                "--multi_label_loss asymmetric keeps a model from being too sure."
            )
        self.label_smoothing = factor

    def class_logits(self, batch: Batch) -> torch.Tensor:
        """Return logits `(batch_size, num_labels)`, float32, of the clips of a collator's batch."""
        states, mask = self.multimodal.fuse_all(batch)
        return self.classifier(self.dropout(masked_mean(states, mask))).float()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count what the loss of a batch is averaged over: rows with a label, or known entries of all rows."""
        labels = batch["labels"]
        known = ~labels.isnan() if labels.is_floating_point() else labels >= 0
        return {"classification": known.sum().float()}

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items: dict[str, torch.Tensor] | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Score every label.

        Args:
            labels (`torch.Tensor`, *optional*): For one label per clip its number, of shape `(batch_size,)` and int64,
                negative where it is unknown. For any number of labels 1 or 0 for each, of shape `(batch_size,
                num_labels)` and floating, NaN where they are unknown.
            num_items (`dict[str, torch.Tensor]`, *optional*): Global number of labelled rows or entries: the sum of
                [`count_items`].
            batch: A collator's batch.
        """
        logits = self.class_logits(batch)
        if labels is None:
            return MultimodalOutput(logits=logits)
        count = num_items or {
            "classification": sum_over_processes(self.count_items({"labels": labels})["classification"])
        }
        if labels.is_floating_point():
            names = ("positive_focus", "negative_focus", "negative_margin")
            total = asymmetric_loss(logits, labels, **{name: getattr(self.config, name) for name in names})
        else:
            total = label_smoothed_loss(logits, labels, smoothing=self.label_smoothing if self.training else 0.0)
        loss = total / count["classification"].to(total.device).clamp(min=1)
        return MultimodalOutput(loss=loss, logits=logits, losses={"classification": loss.detach()}, metrics={})


AutoModelForVideoClassification.register(MultimodalConfig, MultimodalForVideoClassification)
