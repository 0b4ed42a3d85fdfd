"""What the towers of PE-AV share: where they stand in its checkpoints, and how these are read."""

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.pe_audio.modeling_pe_audio import PeAudioModel

from simple_multimodal.models.base import Encoder, load_weights


class PEAVEncoder(Encoder):
    """
    Base of the towers of PE-AV ([Vyas et al., 2025](https://huggingface.co/papers/2512.19687)) for sound and its
    texts, out of checkpoints of these (`pe_audio`) or of pictures, too (`pe_audio_video`). Those trained to compare
    texts with single frames (`PeAudioFrameLevelModel`) give tokens alone.
    """

    pretrained_class = PeAudioModel
    contrastive_form = "sigmoid"
    uses_own_processor = True

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """Every `model_type` of a config that holds this tower's."""
        return cls.model_type, "pe_audio", "pe_audio_video"

    @classmethod
    def tower_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """This tower's part of a checkpoint's config, with the size of the space that it embeds into."""
        if config.model_type == cls.model_type:
            return config
        pair = config.audio_config if config.model_type == "pe_audio_video" else config
        tower = getattr(pair, f"{cls.modality}_config")
        if config.architectures != ["PeAudioFrameLevelModel"]:  # which compares texts with frames, not with sounds
            tower.projection_dim = pair.text_config.hidden_size
        return tower

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Size of the common space; `None` in the config of a tower without a head."""
        return config.to_dict().get("projection_dim")

    @classmethod
    def read_pretrained(cls, name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
        """
        See [`Encoder.read_pretrained`]; of pictures, nothing is built.

        Raises:
            `ValueError` if the checkpoint holds a tower without its head.
        """
        values, _ = PreTrainedConfig.get_config_dict(name_or_path)
        if values["model_type"] == cls.model_type:
            raise ValueError(
                f"{name_or_path!r} holds a {cls.model_type!r} alone, without the head that embeds. Name a whole "
                "checkpoint of PE-AV."
            )
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
        pair = config.audio_config if config.model_type == "pe_audio_video" else config
        return load_weights(cls.pretrained_class, name_or_path, config=pair, **kwargs)
