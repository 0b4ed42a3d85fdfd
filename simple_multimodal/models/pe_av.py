"""Shared parts of the towers of PE-AV: where they are in its checkpoints, and how these are read."""

import contextlib
import io
from collections.abc import Sequence

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.pe_audio.modeling_pe_audio import PeAudioModel
from transformers.models.pe_video.modeling_pe_video import PeVideoModel
from transformers.utils import is_timm_available

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import Encoder, load_weights

PAIR_CLASSES: dict[Modality, type[PreTrainedModel]] = {"audio": PeAudioModel, "video": PeVideoModel}
"""The stock class that compares texts with one modality."""


class PEAVEncoder(Encoder):
    """
    Base of the towers of PE-AV ([Vyas et al., 2025](https://huggingface.co/papers/2512.19687)), from checkpoints of
    audio and text (`pe_audio`), of video and text (`pe_video`), or of all three (`pe_audio_video`). Those trained to
    compare texts with single frames of audio (`PeAudioFrameLevelModel`) only provide tokens.
    """

    contrastive_form = "sigmoid"
    uses_own_processor = True

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Return every `model_type` of a config that contains this tower's."""
        pairs = PAIR_CLASSES if cls.modality == "text" else (cls.modality,)
        return cls.model_type, *(f"pe_{clip}" for clip in pairs), "pe_audio_video"

    @classmethod
    def tower_config(cls, config: PreTrainedConfig, modalities: Sequence[Modality] = ()) -> PreTrainedConfig:
        """
        Return this tower's part of a checkpoint's config, with the size of the space that it embeds into; for text
        also `compared_with`, the modality that texts are embedded for: audio, unless the model only has video.
        """
        if config.model_type == cls.model_type:
            return config
        clip: Modality = "video" if cls.modality == "video" or config.model_type == "pe_video" else "audio"
        if cls.modality == "text" and config.model_type == "pe_audio_video":
            clip = "video" if "video" in modalities and "audio" not in modalities else "audio"
        pair = pair_config(config, clip)
        tower = getattr(pair, f"{cls.modality}_config")
        if config.architectures != ["PeAudioFrameLevelModel"]:  # which compares texts with frames, not with clips
            tower.projection_dim = pair.text_config.hidden_size
        if cls.modality == "text":
            tower.compared_with = clip
        return tower

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Return the size of the common space; `None` in the config of a tower without a head."""
        return config.to_dict().get("projection_dim")

    @property
    def compared_with(self) -> Modality:
        """The modality that this tower compares texts with."""
        return self.config.to_dict().get("compared_with", "audio") if self.modality == "text" else self.modality

    def read_pretrained(self, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """
        Read a checkpoint; see [`Encoder.read_pretrained`].

        Raises:
            ValueError: If the checkpoint holds a tower without its head, or is for another modality.
        """
        values, _ = PreTrainedConfig.get_config_dict(name_or_path)
        if values["model_type"] == self.model_type:
            raise InputError(
                f"{name_or_path!r} only holds a {self.model_type!r}, without the head that embeds. Give a complete "
                "checkpoint of PE-AV."
            )
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
        if config.model_type not in ("pe_audio_video", f"pe_{self.compared_with}"):
            raise InputError(
                f"{name_or_path!r} is {config.model_type!r}, but this {self.modality} tower is for comparisons "
                f"with {self.compared_with}. Give a config and a checkpoint of the same kind."
            )
        pair = pair_config(config, self.compared_with)
        if self.compared_with == "video":
            prepare_images(pair.video_config)
        with contextlib.redirect_stdout(io.StringIO()):  # the video class prints about its own docstrings
            return load_weights(PAIR_CLASSES[self.compared_with], name_or_path, config=pair, **kwargs)


def pair_config(config: PreTrainedConfig, clip: Modality) -> PreTrainedConfig:
    """Return the config of a checkpoint's towers for texts and one other modality: all of it, unless it has both."""
    return getattr(config, f"{clip}_config") if config.model_type == "pe_audio_video" else config


def require_timm() -> None:
    """Raise a `ValueError` if `timm` is not installed, which the image tower runs on."""
    if not is_timm_available():
        raise InputError(
            "PE-AV's video checkpoint, and its text tower for video, need the package timm: pip install "
            "'simple-multimodal[timm]', or pip install timm."
        )


def prepare_images(config: PreTrainedConfig) -> None:
    """
    Complete a config of the video tower so that it can be built.

    Raises:
        ValueError: If `timm` is not installed.
    """
    require_timm()
    frames = config.vision_config
    # The stock class takes the size of a frame's embedding from num_labels, but only saves it as num_classes.
    frames.num_labels = frames.to_dict()["num_classes"]
