"""The encoder of Whisper as an audio encoder."""

from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import check_window, shortest_remainder, split_windows
from simple_multimodal.models.base import Conversion, Encoder, EncoderOutput


class WhisperAudioEncoder(Encoder, WhisperEncoder):
    """
    The encoder of Whisper ([Radford et al., 2022](https://huggingface.co/papers/2212.04356)), which sees audio as
    windows of one length, one at a time, the last one padded with silence. As in the stock class, the padding takes
    part in attention; after the tower it is masked.

    Args:
        config ([`WhisperConfig`]): Sizes of the tower; a window has two frames per entry of `max_source_positions`.
    """

    modality = "audio"
    model_type = "whisper"
    pretrained_class = WhisperModel
    pretrained_names = {"encoder.": "encoder."}
    other_names = ("decoder.",)
    uses_own_processor = True
    untrained = ("embed_positions.",)  # sines, as in the stock class

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the front end, the size of a window, and how much audio a further one must hold."""
        size = {"num_mel_bins": config.num_mel_bins, "num_frames": 2 * config.max_source_positions}
        values = {"front_end": "whisper", "padding": "pad", "f_min": 0.0, "f_max": 8000.0}
        return {"min_window_frames": shortest_remainder(), **values, **size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config for windows of this size.

        Raises:
            ValueError: If the tower does not take them.
        """
        longest = 2 * config.max_source_positions
        if num_mel_bins != config.num_mel_bins or num_frames > longest or num_frames % 2:
            raise InputError(
                f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but Whisper's "
                f"encoder takes {config.num_mel_bins} by an even number, at most {longest}. Set `num_audio_frames` "
                "to such a number, or `audio_processor_name` to use the checkpoint's own settings."
            )
        config = deepcopy(config)
        config.max_source_positions = num_frames // 2
        return config

    @property
    def tokens_per_step(self) -> int:
        """Every token is a time step."""
        return 1

    def check_inputs(self, num_mel_bins: int, num_frames: int) -> None:
        """Raise a `ValueError` if the tower's window is not `num_mel_bins` by `num_frames`."""
        check_window(num_mel_bins, num_frames, (self.config.num_mel_bins, 2 * self.config.max_source_positions))

    def forward(
        self, audio_values: torch.Tensor, audio_attention_mask: torch.Tensor, audio_seconds: torch.Tensor
    ) -> EncoderOutput:
        """
        Args:
            audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_mel_bins, num_windows * num_frames)`):
                Log-mel.
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.
            audio_seconds (`torch.FloatTensor` of shape `(batch_size, num_windows * num_frames)`):
                Time of each frame's centre in the segment, in seconds.

        Returns:
            [`EncoderOutput`]: A token for every second frame, which is its centre.
        """
        size = (self.config.num_mel_bins, 2 * self.config.max_source_positions)
        windows = split_windows(audio_values, 1, *size)[:, 0]
        states = WhisperEncoder.forward(self, windows.to(self.dtype)).last_hidden_state
        tokens = states.reshape(len(audio_values), -1, states.shape[-1])
        return EncoderOutput(tokens, audio_attention_mask[:, ::2], audio_seconds[:, ::2])

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """Use the first positions for a shorter window."""
        if name != "encoder.embed_positions.weight" or len(source) <= len(target):
            return None
        return Conversion(source[: len(target)], f"the first {len(target)} of {len(source)} positions")
