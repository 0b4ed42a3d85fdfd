"""The audio tower of CLAP as an audio encoder."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ClapAudioConfig, ClapAudioModel, ClapAudioModelWithProjection, ClapModel, PreTrainedConfig
from transformers.models.clap.modeling_clap import ClapProjectionLayer

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import check_window, column_steps, shortest_remainder, split_windows
from simple_multimodal.models.base import Encoder, EncoderOutput, mean_direction


def longest_window(config: PreTrainedConfig) -> int:
    """Return the number of frames of the longest window that the tower takes; it stretches shorter ones to that."""
    return config.spec_size * (config.spec_size // config.num_mel_bins)


class CLAPAudioEncoder(Encoder, ClapAudioModel):
    """
    The HTSAT of CLAP ([Wu et al., 2022](https://huggingface.co/papers/2211.06687)), whose attention is eager only.

    Audio longer than a window is split into several, each of which the tower takes as a short clip: where the stock
    pipeline crops one window at random, or shrinks the audio (`enable_fusion`), the embedding here is the mean of the
    windows' embeddings, each scaled to length one first, weighted by their real frames. Batch normalisation keeps the
    statistics of the checkpoint in training, too, so that no row depends on its neighbours.

    Args:
        config ([`ClapAudioConfig`]): Sizes of the tower and of its embedding, and `num_frames` of a window, which
            `fit_config` stores there; by default, the longest.
    """

    modality = "audio"
    model_type = "clap_audio_model"
    pretrained_class = ClapAudioModelWithProjection
    composite_class = ClapModel
    composite_values = ("projection_dim", "projection_hidden_act")
    sub_config = "audio_config"
    pretrained_names = {"audio_model.": "encoder.", "audio_projection.": "encoder.audio_projection."}
    other_names = ("text_model.", "text_projection.", "logit_scale_")
    logit_scale_name = "logit_scale_t"
    tokens_are_all = False
    uses_own_processor = True
    late_embeddings = ("audio_encoder.batch_norm.",)  # of the log-mel
    # These fuse parts of long audio with the whole, but every window here is short.
    untrained = ("audio_encoder.patch_embed.fusion_model.", "audio_encoder.patch_embed.mel_conv2d.")

    def __init__(self, config: ClapAudioConfig):
        super().__init__(config)
        self.num_frames: int = config.to_dict().get("num_frames", longest_window(config))
        self.audio_projection = ClapProjectionLayer(config)
        self.post_init()

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return how much audio a further window must hold; its size is that of the checkpoint's own processor."""
        frames_per_step = config.patch_stride[-1] * 2 ** (len(config.depths) - 1)
        return {"min_window_frames": shortest_remainder(frames_per_step)}

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int:
        """Return the size of the common space with text."""
        return config.projection_dim

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config for windows of this size.

        Raises:
            ValueError: If the tower does not take them.
        """
        if num_mel_bins != config.num_mel_bins or num_frames > longest_window(config):
            raise InputError(
                f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but CLAP's "
                f"tower takes {config.num_mel_bins} by at most {longest_window(config)}. Set `audio_processor_name` "
                "to use the checkpoint's own settings."
            )
        config = deepcopy(config)
        config.num_frames = num_frames
        return config

    @property
    def token_grid(self) -> tuple[int, int]:
        """Tokens of a window over (frequency, time); the tower places the window's parts one below the other."""
        encoder = self.audio_encoder
        height, width = (length // 2 ** (encoder.num_layers - 1) for length in encoder.patch_embed.grid_size)
        return height // encoder.freq_ratio, width * encoder.freq_ratio

    @property
    def window_frames(self) -> int:
        """Number of frames of a window."""
        return self.num_frames

    @property
    def tokens_per_step(self) -> int:
        """Tokens per column of the grid."""
        return self.token_grid[0]

    def time_steps(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """Return the columns of the token grid, counted through all windows; see [`Encoder.time_steps`]."""
        return column_steps(num_tokens, *self.token_grid, device=device)

    def check_inputs(self, num_mel_bins: int, num_frames: int) -> None:
        """Raise a `ValueError` if the tower's window is not `num_mel_bins` by `num_frames`."""
        check_window(num_mel_bins, num_frames, (self.config.num_mel_bins, self.num_frames))

    def forward(
        self, audio_values: torch.Tensor, audio_attention_mask: torch.Tensor, audio_seconds: torch.Tensor
    ) -> EncoderOutput:
        """
        Args:
            audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_mel_bins, num_windows * num_frames)`):
                Log-mel in decibels.
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.
            audio_seconds (`torch.FloatTensor` of shape `(batch_size, num_windows * num_frames)`):
                Time of each frame's centre in the segment, in seconds.

        Returns:
            [`EncoderOutput`]: Tokens window by window, in a window row by row over (frequency, time).
        """
        batch_size = len(audio_values)
        windows = split_windows(audio_values, 1, self.config.num_mel_bins, self.num_frames).transpose(2, 3)
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=windows.device)
        outputs = ClapAudioModel.forward(self, windows.to(self.dtype), is_longer=is_longer)
        tokens = outputs.last_hidden_state.flatten(2).transpose(1, 2)  # (windows of the batch, tokens, hidden)

        # The tower stretches a window's frames to `longest` columns, the same number for each time step.
        (height, width), longest = self.token_grid, longest_window(self.config)
        stretch = (longest - 1) / max(self.num_frames - 1, 1)
        frames = torch.arange(self.num_frames, device=windows.device)
        steps = F.one_hot((frames * stretch).round().long() * width // longest, width).float()  # (frames, steps)
        real = audio_attention_mask.view(batch_size, -1, self.num_frames)
        mask = (real.float()[..., None] * steps).sum(dim=2) > 0  # (batch, windows, steps)
        columns = (torch.arange(width, device=windows.device) + 0.5) * (longest / width) - 0.5
        seconds = audio_seconds.view(batch_size, -1, self.num_frames)
        first, last = seconds[..., :1], seconds[..., -1:]
        seconds = first + (last - first) * (columns / (longest - 1))
        embedding = self.audio_projection(outputs.pooler_output).unflatten(0, (batch_size, -1))
        return EncoderOutput(
            tokens=tokens.reshape(batch_size, -1, tokens.shape[-1]),
            mask=mask[:, :, None].expand(-1, -1, height, -1).flatten(1),
            seconds=seconds[:, :, None].expand(-1, -1, height, -1).flatten(1),
            embedding=mean_direction(embedding, real.sum(dim=-1)),
        )
