"""A modality outside the package: sensor readings with each clip, a list of the same number of values in every row.

Importing this file registers it. docs/adding_modalities.md explains the code below.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from simple_multimodal.data.readers import READERS, Reader, ReadSettings
from simple_multimodal.data.records import MODALITY_COLUMNS
from simple_multimodal.modalities import INPUT_KEYS, PRESENCE_KEYS, TOKEN_KEYS
from simple_multimodal.models.base import Encoder, EncoderOutput
from simple_multimodal.models.encoders import ENCODERS
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.processing.processing_multimodal import PARTS, Part


class SensorReader(Reader):
    """Reads the numbers of a row; the processor handles rows without them."""

    column = "sensors"

    def __init__(self, settings: ReadSettings):
        self.processor = settings.processor.part("sensors")

    def read(self, row, out) -> torch.Tensor:
        return self.processor.read(row["sensors"])

    def collate(self, parts, batch) -> dict[str, torch.Tensor]:
        return self.processor(parts)


class SensorProcessor:
    """Converts `num_values` numbers per row to tensors."""

    def __init__(self, num_values: int):
        self.num_values = num_values

    @property
    def input_size(self) -> tuple[int]:
        return (self.num_values,)

    def to_dict(self) -> dict:
        return {"num_values": self.num_values}

    @classmethod
    def from_pretrained(cls, folder, **settings) -> "SensorProcessor":
        return cls(**MultimodalProcessor.get_processor_dict(folder)[0]["sensor_processor"])

    def read(self, values) -> torch.Tensor:
        if len(values) != self.num_values:
            raise ValueError(f"`sensors` has {len(values)} numbers; {self.num_values} are expected.")
        return torch.as_tensor(values, dtype=torch.float32)

    def __call__(self, sensors) -> dict[str, torch.Tensor]:
        """Batch the numbers of rows; a row with `None` gets zeros, and `False` in the mask."""
        values = [torch.zeros(self.num_values) if row is None else self.read(row) for row in sensors]
        return {
            "sensor_values": torch.stack(values),
            "sensors_mask": torch.tensor([row is not None for row in sensors]),
        }


@strict
class SensorConfig(PreTrainedConfig):
    model_type = "sensors"

    num_values: int = 4
    hidden_size: int = 16


class SensorEncoder(Encoder, PreTrainedModel):
    """Two layers that convert the numbers of a row to one token."""

    modality = "sensors"
    model_type = "sensors"
    config_class = SensorConfig

    def __init__(self, config: SensorConfig):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Linear(config.num_values, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.post_init()

    @classmethod
    def processor_values(cls, config) -> dict:
        return {"num_values": config.num_values}

    def check_inputs(self, num_values: int) -> None:
        if num_values != self.config.num_values:
            raise ValueError(
                f"The rows have {num_values} numbers, but the tower of sensors takes {self.config.num_values}."
            )

    def forward(self, sensor_values: torch.Tensor) -> EncoderOutput:
        tokens = self.layers(sensor_values)[:, None]  # (batch, 1, hidden)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return EncoderOutput(tokens, mask, seconds=None)


AutoConfig.register("sensors", SensorConfig)
INPUT_KEYS["sensors"] = ("sensor_values",)
PRESENCE_KEYS["sensors"] = "sensors_mask"
TOKEN_KEYS["sensors"] = ("sensors_tokens", "sensors_token_mask", "sensors_token_seconds")
MODALITY_COLUMNS["sensors"] = ("sensors",)
READERS["sensors"] = SensorReader
PARTS["sensors"] = Part("sensor_processor", "sensors", SensorProcessor, SensorProcessor.from_pretrained)
ENCODERS["sensors", "sensors"] = SensorEncoder
