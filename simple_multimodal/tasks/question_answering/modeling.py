"""The head for question answering."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.fusion.crossformer import Clip, ClipCache, Stream
from simple_multimodal.models.losses import answer_loss
from simple_multimodal.models.modeling import MultimodalModel, MultimodalPreTrainedModel
from simple_multimodal.models.outputs import Batch, MultimodalOutput


class MultimodalForQuestionAnswering(MultimodalPreTrainedModel):
    """Choose an answer from a fixed list, from the fused states of question and clip.

    The head is ALPRO's (Li et al. 2022): two linear layers with a ReLU between them on the first fused text token. The
    list of answers is the configuration's `id2label`.
    """

    loss_weights = {"answer": 1.0}
    _keys_to_ignore_on_load_unexpected = [
        r"^(text|audio|video)_decoder\.",
        r"^fusion_to_text\.",
        r"^matching_head\.",
    ]

    def __init__(self, config: MultimodalConfig):
        super().__init__(config)
        self.multimodal = MultimodalModel(config)
        size = self.multimodal.fusion.hidden_size
        self.classifier = nn.Sequential(
            nn.Linear(size, 2 * size), ACT2FN["relu"], nn.Linear(2 * size, config.num_labels)
        )
        self.post_init()

    def encode_text(self, batch: Batch) -> tuple[torch.Tensor, Stream]:
        """Encode questions with [`MultimodalModel.encode_text`]."""
        return self.multimodal.encode_text(batch)

    def encode_clip(self, batch: Batch) -> tuple[None, Clip]:
        """Encode clips with [`MultimodalModel.encode_clip`], without embeddings."""
        return None, self.multimodal.encode_clip(batch, with_embeds=False)[1]

    def cache_clip(self, clip: Clip) -> Clip | ClipCache:
        """Cache a clip for several questions, see [`Crossformer.cache_clip`]."""
        return self.multimodal.fusion.cache_clip(clip)

    def answer_logits(self, text: Stream, clip: Clip | ClipCache) -> torch.Tensor:
        """Return logits `(batch_size, num_labels)`, float32, of every answer to questions about clips."""
        return self.classifier(self.multimodal.fusion.fuse(text, clip, num_queries=1)[:, 0]).float()

    def count_items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Count the questions with a known answer in a batch."""
        return {"answer": (batch["labels"] >= 0).sum().float()}

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items: dict[str, torch.Tensor] | None = None,
        **batch: torch.Tensor,
    ) -> MultimodalOutput:
        """Score every answer.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Index of the answer; negative if it is
                not in the list, which leaves the question out of the loss.
            num_items (`dict[str, torch.Tensor]`, *optional*): Global number of questions with a known answer: the sum
                of [`count_items`].
            batch: A collator's batch whose text is the question.
        """
        text, clip = self.encode_text(batch)[1], self.encode_clip(batch)[1]
        logits = self.answer_logits(text, clip)
        if labels is None:
            return MultimodalOutput(logits=logits, clip=clip)
        loss, accuracy = answer_loss(logits, labels, num_items)
        return MultimodalOutput(
            loss=loss,
            logits=logits,
            losses={"answer": loss.detach()},
            metrics={"answer_accuracy": accuracy},
            clip=clip,
        )
