"""wav2vec 2.0, HuBERT and WavLM as audio encoders, which read waveforms."""

from typing import Any

import torch
from torch import nn
from transformers import HubertModel, PreTrainedConfig, Wav2Vec2Model, WavLMModel
from transformers.modeling_layers import GradientCheckpointingLayer

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.waveforms import WaveformEncoder, convolved_length


class MaskedGroupNormConvLayer(GradientCheckpointingLayer):
    """
    The first convolution of these towers, with the mean and deviation of each channel taken over real audio only. The
    stock layer includes the padding of a window, so that its tokens depend on it.

    Args:
        layer (`nn.Module`): The stock layer, whose parts this one keeps.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv, self.layer_norm, self.activation = layer.conv, layer.layer_norm, layer.activation

    def forward(self, waveforms: torch.Tensor, num_real: torch.Tensor) -> torch.Tensor:
        """
        Args:
            waveforms (`torch.FloatTensor` of shape `(num_windows, 1, num_samples)`): Waveforms, zero after the audio.
            num_real (`torch.LongTensor` of shape `(num_windows,)`): Number of positions of the result that are audio.

        Returns:
            `torch.FloatTensor` of shape `(num_windows, num_channels, num_positions)`.
        """
        states = self.conv(waveforms)  # (windows, channels, positions)
        real = (torch.arange(states.shape[-1], device=states.device) < num_real[:, None])[:, None]
        count = num_real[:, None, None].float()
        values = states.float()
        mean = (values * real).sum(dim=-1, keepdim=True) / count
        variance = ((values - mean).square() * real).sum(dim=-1, keepdim=True) / count
        values = (values - mean) * (variance + self.layer_norm.eps).rsqrt()
        values = values.to(states.dtype) * self.layer_norm.weight[:, None] + self.layer_norm.bias[:, None]
        return self.activation(values)


class Wav2Vec2Encoder(WaveformEncoder):
    """
    Base of the three, and of others whose stock class has `feature_extractor.conv_layers`, `feature_projection` and an
    `encoder` that takes `attention_mask`. In training there is no SpecAugment, which uses NumPy's random generator,
    and no layer is left out at random.
    """

    other_names = ("masked_spec_embed",)

    feature_extractor: Any  # of the stock classes
    feature_projection: Any
    encoder: Any

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        layers = self.feature_extractor.conv_layers
        if any(isinstance(part, nn.GroupNorm) for part in layers[0].children()):  # `feat_extract_norm` is "group"
            layers[0] = MaskedGroupNormConvLayer(layers[0])

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config; see [`WaveformEncoder.fit_config`].

        Raises:
            ValueError: Also if the checkpoint has an adapter of convolutions, or batch normalisation of positions.
        """
        values = config.to_dict()
        for name in ("add_adapter", "conv_pos_batch_norm"):
            if values.get(name):
                raise InputError(
                    f"The config of the audio tower {cls.model_type!r} has {name}, which is not supported. Use a "
                    "checkpoint without it."
                )
        config = super().fit_config(config, num_mel_bins, num_frames)
        config.mask_time_prob = config.mask_feature_prob = config.layerdrop = 0.0
        return config

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Return those of the transformer: the convolutions are layers, too, and there may be more of them."""
        return [list(layer.parameters()) for layer in self.encoder.layers]

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Normalise outputs of convolutions, `(num_windows, num_tokens, size)`, and project them to `hidden_size`."""
        return self.feature_projection(states)[0]

    def encode_waveforms(self, waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        """See [`WaveformEncoder.encode_waveforms`]."""
        kernels, strides = self.config.conv_kernel, self.config.conv_stride
        states = waveforms[:, None]
        for number, layer in enumerate(self.feature_extractor.conv_layers):
            if isinstance(layer, MaskedGroupNormConvLayer):
                states = layer(states, convolved_length(num_samples, kernels[: number + 1], strides[: number + 1]))
            else:
                states = layer(states)
        states = self.project(states.transpose(1, 2))  # (windows, tokens, hidden)
        num_real = convolved_length(num_samples, kernels, strides)
        mask = torch.arange(states.shape[1], device=states.device) < num_real[:, None]
        return self.encoder(states, attention_mask=mask).last_hidden_state


class Wav2Vec2AudioEncoder(Wav2Vec2Encoder, Wav2Vec2Model):
    """
    wav2vec 2.0 ([Baevski et al., 2020](https://huggingface.co/papers/2006.11477)); see [`WaveformEncoder`].

    Args:
        config ([`Wav2Vec2Config`]): Sizes of the tower.
    """

    model_type = "wav2vec2"
    pretrained_class = Wav2Vec2Model
    pretrained_names = {"": "encoder."}


class HubertAudioEncoder(Wav2Vec2Encoder, HubertModel):
    """
    HuBERT ([Hsu et al., 2021](https://huggingface.co/papers/2106.07447)); see [`WaveformEncoder`].

    Args:
        config ([`HubertConfig`]): Sizes of the tower.
    """

    model_type = "hubert"
    pretrained_class = HubertModel
    pretrained_names = {"": "encoder."}

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """See [`Wav2Vec2Encoder.project`]."""
        return self.feature_projection(states)


class WavLMAudioEncoder(Wav2Vec2Encoder, WavLMModel):
    """
    WavLM ([Chen et al., 2021](https://huggingface.co/papers/2110.13900)), whose attention is eager only; see
    [`WaveformEncoder`].

    Args:
        config ([`WavLMConfig`]): Sizes of the tower.
    """

    model_type = "wavlm"
    pretrained_class = WavLMModel
    pretrained_names = {"": "encoder."}
    uncalled = ("q_proj", "k_proj", "v_proj", "out_proj")  # attention reads their weights
