"""Shared parts of towers that read waveforms through convolutions: windows, and which tokens stand for real audio."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedConfig

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import check_window, shortest_remainder, split_windows
from simple_multimodal.models.base import Encoder, EncoderOutput

SAMPLING_RATE = 16000
"""Sampling rate of the waveforms, in Hz, unless a feature extractor gives it; no config does."""

WINDOW_SECONDS = 10
"""Default length of a window."""


def convolved_length(length: Any, kernels: Sequence[int], strides: Sequence[int]) -> Any:
    """Return how many positions are left of `length` (a number or a tensor) after convolutions without padding; 0 or
    less if there are none.
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        length = (length - kernel) // stride + 1
    return length


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return the number of samples that one token sees, and the distance of neighbouring tokens in samples."""
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field, step


class WaveformEncoder(Encoder):
    """
    Base of audio encoders that read waveforms through convolutions without padding. A subclass also inherits from the
    stock tower and defines `encode_waveforms`.

    Audio longer than a window is split into several, each of which the tower sees as a separate clip. The batch has
    the samples in frames of the first convolution's stride: samples left over at the end never reach that
    convolution's output, so that cutting them off changes nothing.

    Args:
        config (`PreTrainedConfig`): Sizes of the tower, with `conv_kernel` and `conv_stride`; also `num_frames` of a
            window, which `fit_config` stores there.
    """

    modality = "audio"
    uses_own_processor = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        default = WINDOW_SECONDS * SAMPLING_RATE // config.conv_stride[0]
        self.num_frames: int = config.to_dict().get("num_frames", default)

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the front end, the size of a window, and how much audio a further one must hold."""
        hop, (field, _) = config.conv_stride[0], receptive_field(config.conv_kernel, config.conv_stride)
        shortest = shortest_remainder(-(-field // hop), hop_seconds=hop / SAMPLING_RATE)
        size = {"num_mel_bins": hop, "hop_seconds": hop / SAMPLING_RATE, "window_seconds": hop / SAMPLING_RATE}
        size |= {"num_frames": WINDOW_SECONDS * SAMPLING_RATE // hop, "sampling_rate": SAMPLING_RATE}
        return {"front_end": "waveform", "padding": "pad", "min_window_frames": shortest, **size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config for windows of `num_frames` frames of `num_mel_bins` samples.

        Raises:
            ValueError: If the tower does not take them.
        """
        hop, (field, _) = config.conv_stride[0], receptive_field(config.conv_kernel, config.conv_stride)
        shortest = -(-field // hop)
        if num_mel_bins != hop or num_frames < shortest:
            raise InputError(
                f"The audio tower {cls.model_type!r} takes waveforms in frames of {hop} samples, at least {shortest} "
                f"of them, but the audio processor makes windows of {num_frames} frames of {num_mel_bins} values. "
                "Leave `num_mel_bins` out, and set `audio_processor_name` to use the checkpoint's own settings."
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
        """Raise a `ValueError` if the tower's window is not `num_frames` frames of `num_mel_bins` samples."""
        check_window(num_mel_bins, num_frames, (self.config.conv_stride[0], self.num_frames))

    def encode_waveforms(self, waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        """
        Run the tower.

        Args:
            waveforms (`torch.FloatTensor` of shape `(num_windows, samples of a window)`): Waveforms, zero after the
                audio.
            num_samples (`torch.LongTensor` of shape `(num_windows,)`): Number of samples of each that are audio;
                enough for one token. Samples after them must not change the tokens of the audio.

        Returns:
            `torch.FloatTensor` of shape `(num_windows, num_tokens, hidden_size)`: Output like the stock tower's
            `last_hidden_state`.
        """
        raise NotImplementedError

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
            [`EncoderOutput`]: Tokens window by window, at the time of the centre of what each of them sees. A token is
            real if everything that it sees is.
        """
        batch_size, hop = len(audio_values), self.config.conv_stride[0]
        kernels, strides = self.config.conv_kernel, self.config.conv_stride
        windows = split_windows(audio_values, 1, hop, self.num_frames)
        waveforms = windows[:, 0].transpose(1, 2).flatten(1)  # (windows of the batch, samples)
        num_samples = audio_attention_mask.view(-1, self.num_frames).sum(dim=1) * hop
        num_real = convolved_length(num_samples, kernels, strides)
        # A window without a single real token counts as silence: nothing is normalised or attended over no value.
        num_samples = torch.where(num_real > 0, num_samples, self.num_frames * hop)
        tokens = self.encode_waveforms(waveforms.to(self.dtype), num_samples)

        numbers = torch.arange(tokens.shape[1], device=tokens.device)
        field, step = receptive_field(kernels, strides)
        frames = (numbers * step + field // 2) // hop  # that contain the centre of what a token sees
        seconds = audio_seconds.view(batch_size, -1, self.num_frames)[:, :, frames]
        return EncoderOutput(
            tokens=tokens.reshape(batch_size, -1, tokens.shape[-1]),
            mask=(numbers < num_real[:, None]).view(batch_size, -1),
            seconds=seconds.flatten(1),
        )
