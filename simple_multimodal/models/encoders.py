"""The registry of encoders. To add one, write its file, import its class here and add it to `ENCODER_CLASSES`."""

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.audio.ast import ASTAudioEncoder
from simple_multimodal.models.audio.clap import CLAPAudioEncoder
from simple_multimodal.models.audio.pe_av import PEAVAudioEncoder
from simple_multimodal.models.audio.vit_mae import ViTMAEAudioEncoder
from simple_multimodal.models.audio.wav2vec2 import HubertAudioEncoder, Wav2Vec2AudioEncoder, WavLMAudioEncoder
from simple_multimodal.models.audio.whisper import WhisperAudioEncoder
from simple_multimodal.models.base import Encoder, EncoderOutput
from simple_multimodal.models.pose.pose import PoseEncoder
from simple_multimodal.models.text.bert import BertTextEncoder
from simple_multimodal.models.text.clap import CLAPTextEncoder
from simple_multimodal.models.text.clip import CLIPTextEncoder
from simple_multimodal.models.text.deberta_v2 import DebertaV2TextEncoder
from simple_multimodal.models.text.distilbert import DistilBertTextEncoder
from simple_multimodal.models.text.modernbert import ModernBertTextEncoder
from simple_multimodal.models.text.mpnet import MPNetTextEncoder
from simple_multimodal.models.text.roberta import RobertaTextEncoder, XLMRobertaTextEncoder
from simple_multimodal.models.text.siglip import SiglipTextEncoder
from simple_multimodal.models.text.siglip2 import Siglip2TextEncoder
from simple_multimodal.models.video.clip import CLIPVideoEncoder
from simple_multimodal.models.video.dino import (
    Dinov2VideoEncoder,
    Dinov2WithRegistersVideoEncoder,
    DINOv3ConvNextVideoEncoder,
    DINOv3VideoEncoder,
)
from simple_multimodal.models.video.pe_av import PEAVVideoEncoder
from simple_multimodal.models.video.siglip import SiglipVideoEncoder
from simple_multimodal.models.video.siglip2 import Siglip2VideoEncoder
from simple_multimodal.models.video.timesformer import TimesformerVideoEncoder
from simple_multimodal.models.video.timm import TimmVideoEncoder
from simple_multimodal.models.video.videomae import VideoMAEVideoEncoder
from simple_multimodal.models.video.vjepa2 import VJEPA2VideoEncoder

__all__ = ["ENCODERS", "Encoder", "EncoderOutput", "get_encoder_class", "known_model_types"]

ENCODER_CLASSES: tuple[type[Encoder], ...] = (
    # text
    BertTextEncoder,
    CLAPTextEncoder,
    CLIPTextEncoder,
    DebertaV2TextEncoder,
    DistilBertTextEncoder,
    ModernBertTextEncoder,
    MPNetTextEncoder,
    RobertaTextEncoder,
    SiglipTextEncoder,
    Siglip2TextEncoder,
    XLMRobertaTextEncoder,
    # audio
    ASTAudioEncoder,
    CLAPAudioEncoder,
    HubertAudioEncoder,
    PEAVAudioEncoder,
    ViTMAEAudioEncoder,
    Wav2Vec2AudioEncoder,
    WavLMAudioEncoder,
    WhisperAudioEncoder,
    # video
    CLIPVideoEncoder,
    Dinov2VideoEncoder,
    Dinov2WithRegistersVideoEncoder,
    DINOv3ConvNextVideoEncoder,
    DINOv3VideoEncoder,
    PEAVVideoEncoder,
    SiglipVideoEncoder,
    Siglip2VideoEncoder,
    TimesformerVideoEncoder,
    TimmVideoEncoder,
    VideoMAEVideoEncoder,
    VJEPA2VideoEncoder,
    # pose
    PoseEncoder,
)
"""The encoders of this package, by modality and name."""


def _by_model_type(classes: tuple[type[Encoder], ...]) -> dict[tuple[Modality, str], type[Encoder]]:
    found: dict[tuple[Modality, str], type[Encoder]] = {}
    for encoder in classes:
        for model_type in encoder.model_types():
            other = found.setdefault((encoder.modality, model_type), encoder)
            if other is not encoder:
                raise TypeError(f"{other.__name__} and {encoder.__name__} have the same model_type {model_type!r}.")
    return found


ENCODERS = _by_model_type(ENCODER_CLASSES)
"""Encoder classes by modality and `model_type` of the Hugging Face config. Models with several towers, such as CLIP,
have one `model_type` under several modalities. An encoder of another package is one more entry.
"""


def known_model_types(modality: Modality) -> list[str]:
    """Return the model types that have an encoder of a modality."""
    return [model_type for known, model_type in ENCODERS if known == modality]


def get_encoder_class(model_type: str, modality: Modality) -> type[Encoder]:
    """
    Look up the class of an encoder.

    Args:
        model_type (`str`): `model_type` of the Hugging Face config, such as `"videomae"` or `"clip"`.
        modality (`str`): One of `MODALITIES`.

    Raises:
        ValueError: If there is no such encoder of that modality.
    """
    if (modality, model_type) not in ENCODERS:
        raise InputError(
            f"There is no {modality} encoder for model_type {model_type!r}; known are "
            f"{', '.join(map(repr, known_model_types(modality)))}. To add one, write an encoder in "
            f"simple_multimodal/models/{modality}/ and add its class to ENCODER_CLASSES in "
            "simple_multimodal/models/encoders.py."
        )
    return ENCODERS[modality, model_type]
