"""The text tower of PE-AV."""

import torch
from transformers import ModernBertConfig, ModernBertModel
from transformers.models.pe_audio.modeling_pe_audio import PeAudioContrastiveHead

from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.models.pe_av import PEAVEncoder
from simple_multimodal.models.text.masked_lm import TextEncoder


class PEAVTextEncoder(PEAVEncoder, TextEncoder, ModernBertModel):
    """
    The ModernBERT of PE-AV, see [`PEAVEncoder`]. A text's embedding is the state of its first token through one of the
    heads that texts have there: that for comparisons with sound, or that for pictures.

    Args:
        config ([`ModernBertConfig`]): sizes of the tower; besides, `projection_dim`, the size of its embedding, and
            `compared_with`, `"audio"` or `"video"`, the modality that the head is for.
    """

    model_type = "modernbert"
    pretrained_names = {
        "text_model.": "encoder.",
        "text_audio_head.": "encoder.text_head.",
        "text_video_head.": "encoder.text_head.",
    }
    other_names = ("audio_", "video_", "text_audio_logit_", "text_video_logit_", "text_audio_video_")

    def __init__(self, config: ModernBertConfig):
        super().__init__(config)
        size = self.embedding_size(config)
        self.text_head = None if size is None else PeAudioContrastiveHead(config.hidden_size, size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        tokens = ModernBertModel.forward(self, input_ids, attention_mask=attention_mask).last_hidden_state
        embedding = None if self.text_head is None else self.text_head(tokens[:, 0])
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
