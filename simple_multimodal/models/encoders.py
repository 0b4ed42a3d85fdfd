"""The one registry of encoders; to add an encoder, write its file and put its class into `ENCODERS`."""

from simple_multimodal.modalities import Modality
from simple_multimodal.models.audio.vit_mae import ViTMAEAudioEncoder
from simple_multimodal.models.base import Encoder, EncoderOutput
from simple_multimodal.models.text.bert import BertTextEncoder
from simple_multimodal.models.text.deberta_v2 import DebertaV2TextEncoder
from simple_multimodal.models.video.videomae import VideoMAEVideoEncoder

__all__ = ["ENCODERS", "Encoder", "EncoderOutput", "get_encoder_class", "known_model_types"]

ENCODERS: dict[str, type[Encoder]] = {
    encoder.model_type: encoder
    for encoder in (BertTextEncoder, DebertaV2TextEncoder, ViTMAEAudioEncoder, VideoMAEVideoEncoder)
}
"""Encoder classes by the `model_type` of their Hugging Face config."""


def known_model_types(modality: Modality) -> list[str]:
    """The `model_type` of every encoder of one modality."""
    return [name for name, encoder in ENCODERS.items() if encoder.modality == modality]


def get_encoder_class(model_type: str, modality: Modality) -> type[Encoder]:
    """
    Look up an encoder.

    Args:
        model_type (`str`): `model_type` of the tower's Hugging Face config, such as `"videomae"`.
        modality (`str`): `"text"`, `"audio"` or `"video"`.

    Raises:
        `ValueError` if there is no such encoder of that modality.
    """
    known = known_model_types(modality)
    if model_type not in known:
        raise ValueError(
            f"There is no {modality} encoder for model_type {model_type!r}; known are {', '.join(map(repr, known))}. "
            f"To add one, write an adapter in simple_multimodal/models/{modality}/ and put its class into ENCODERS in "
            "simple_multimodal/models/encoders.py."
        )
    return ENCODERS[model_type]
