"""ModernBERT as a text encoder, on its own or as the text tower of PE-AV."""

import torch
from transformers import ModernBertConfig, ModernBertModel, PreTrainedConfig, PreTrainedModel
from transformers.models.pe_audio.modeling_pe_audio import PeAudioContrastiveHead

from simple_multimodal.models.base import EncoderOutput, load_weights
from simple_multimodal.models.pe_av import PEAVEncoder
from simple_multimodal.models.text.sentences import SentenceEncoder


class ModernBertTextEncoder(PEAVEncoder, SentenceEncoder, ModernBertModel):
    """
    ModernBERT ([Warner et al., 2024](https://huggingface.co/papers/2412.13663)), from its own checkpoint or from
    PE-AV's, see [`PEAVEncoder`]. In PE-AV a text's embedding is the state of its first token, passed through one of
    the two text heads: one for comparisons with audio, one for comparisons with video.

    Args:
        config ([`ModernBertConfig`]): Sizes of the tower; for PE-AV also `projection_dim`, the size of its embedding,
            and `compared_with`, `"audio"` or `"video"`, the modality that the head is for.
    """

    model_type = "modernbert"
    pretrained_class = ModernBertModel
    pretrained_names = {
        "text_model.": "encoder.",
        "text_audio_head.": "encoder.text_head.",
        "text_video_head.": "encoder.text_head.",
        "": "encoder.",
    }
    other_names = ("audio_", "video_", "text_audio_logit_", "text_video_logit_", "text_audio_video_")

    def __init__(self, config: ModernBertConfig):
        super().__init__(config)
        size = PEAVEncoder.embedding_size(config)
        self.text_head = None if size is None else PeAudioContrastiveHead(config.hidden_size, size)
        self.post_init()

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Return the size of PE-AV's common space, or of a sentence embedding; `None` if the tower pools none."""
        return PEAVEncoder.embedding_size(config) or SentenceEncoder.embedding_size(config)

    def read_pretrained(self, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """
        Read a checkpoint; see [`Encoder.read_pretrained`].

        Raises:
            ValueError: If the checkpoint is ModernBERT alone, but the config is for PE-AV's tower.
        """
        model_type = PreTrainedConfig.get_config_dict(name_or_path)[0]["model_type"]
        if model_type == self.model_type and self.text_head is None:
            return load_weights(self.pretrained_class, name_or_path, **kwargs)
        return super().read_pretrained(name_or_path, **kwargs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncoderOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            [`EncoderOutput`] with `sequence_length` tokens.
        """
        tokens = ModernBertModel.forward(self, input_ids, attention_mask=attention_mask).last_hidden_state
        if self.text_head is None:
            embedding = self.pool_sentence(tokens, attention_mask)
        else:
            embedding = self.text_head(tokens[:, 0])
        return EncoderOutput(tokens, attention_mask.bool(), None, embedding=embedding)
