"""The audio tower of PE-AV as an audio encoder."""

from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.pe_audio.configuration_pe_audio import PeAudioEncoderConfig
from transformers.models.pe_audio.modeling_pe_audio import PeAudioContrastiveHead, PeAudioEncoder

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import check_window, shortest_remainder, split_windows
from simple_multimodal.models.base import EncoderOutput, mean_direction
from simple_multimodal.models.pe_av import PEAVEncoder

SAMPLING_RATE = 48000
"""Sampling rate of the waveforms, in Hz, unless a feature extractor gives it; the codec's config has another one."""

DEFAULT_NUM_FRAMES = 250
"""Default number of frames of a window: 10 seconds with the codec of the published checkpoints."""


class PEAVAudioEncoder(PEAVEncoder, PeAudioEncoder):
    """
    The audio tower of PE-AV, which reads waveforms through a frozen codec; see [`PEAVEncoder`]. The stock pipeline
    takes audio as a whole; here, audio longer than a window is split into several, each encoded as a separate clip.
    The embedding is the mean of theirs, each scaled to length one first, weighted by their real frames.

    Args:
        config ([`PeAudioEncoderConfig`]): Sizes of the tower; also `projection_dim`, the size of its embedding, and
            `num_frames` of a window, which `fit_config` stores there.
    """

    modality = "audio"
    model_type = "pe_audio_encoder"
    pretrained_names = {"audio_encoder.": "encoder.", "audio_head.": "encoder.audio_head."}
    other_names = ("text_", "video_", "audio_video_", "audio_plus_text_")
    tokens_are_all = False
    untrained = ("embedder.dac_encoder.", "embedder.bottleneck.")  # the codec, which runs without gradients

    def __init__(self, config: PeAudioEncoderConfig):
        super().__init__(config)
        self.num_frames: int = config.to_dict().get("num_frames", DEFAULT_NUM_FRAMES)
        size = self.embedding_size(config)
        self.audio_head = None if size is None else PeAudioContrastiveHead(config.hidden_size, size)
        self.post_init()

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the front end, the size of a window, and how much audio a further one must hold."""
        hop, rate = config.dac_config.hop_length, SAMPLING_RATE
        size = {"num_mel_bins": hop, "num_frames": DEFAULT_NUM_FRAMES, "hop_seconds": hop / rate}
        shortest = shortest_remainder(hop_seconds=hop / rate)
        return {
            "front_end": "waveform",
            "padding": "reflect",
            "sampling_rate": rate,
            "min_window_frames": shortest,
            **size,
        }

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config for windows of `num_frames` frames of `num_mel_bins` samples.

        Raises:
            ValueError: If the codec's frames have another number of samples.
        """
        hop = config.dac_config.hop_length
        if num_mel_bins != hop:
            raise InputError(
                f"PE-AV's audio tower takes waveforms in frames of {hop} samples, but the audio processor makes "
                f"frames of {num_mel_bins} values. Set `audio_processor_name` to use the checkpoint's own settings, "
                "and leave `num_mel_bins` out."
            )
        config = deepcopy(config)
        config.num_frames = num_frames
        return config

    @property
    def window_frames(self) -> int:
        """Number of frames of a window."""
        return self.num_frames

    @property
    def tokens_per_step(self) -> int:
        """Every token is a time step."""
        return 1

    def check_inputs(self, num_mel_bins: int, num_frames: int) -> None:
        """Raise a `ValueError` if the tower's window is not `num_mel_bins` by `num_frames`."""
        check_window(num_mel_bins, num_frames, (self.config.dac_config.hop_length, self.num_frames))

    def forward(
        self, audio_values: torch.Tensor, audio_attention_mask: torch.Tensor, audio_seconds: torch.Tensor
    ) -> EncoderOutput:
        """
        Args:
            audio_values (`torch.FloatTensor` of shape `(batch_size, 1, hop_length, num_windows * num_frames)`):
                Waveform, frame by frame.
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.
            audio_seconds (`torch.FloatTensor` of shape `(batch_size, num_windows * num_frames)`):
                Time of each frame's centre in the segment, in seconds.

        Returns:
            [`EncoderOutput`]: One token per frame.
        """
        batch_size, hop = len(audio_values), self.config.dac_config.hop_length
        windows = split_windows(audio_values, 1, hop, self.num_frames)
        real = audio_attention_mask.view(-1, self.num_frames)
        heard = real | ~real.any(dim=1, keepdim=True)  # a window of nothing but padding is silence: no mean is empty
        outputs = PeAudioEncoder.forward(
            self,
            windows.transpose(2, 3).flatten(2).to(self.dtype),
            padding_mask=heard.repeat_interleave(hop, dim=1),
        )
        embedding = None
        if self.audio_head is not None:
            embedding = self.audio_head(outputs.pooler_output).unflatten(0, (batch_size, -1))
            embedding = mean_direction(embedding, real.view(batch_size, -1, self.num_frames).sum(dim=-1))
        tokens = outputs.last_hidden_state.reshape(batch_size, -1, self.hidden_size)
        return EncoderOutput(tokens, audio_attention_mask, audio_seconds, embedding=embedding)
