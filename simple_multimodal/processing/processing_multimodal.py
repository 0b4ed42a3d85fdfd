"""One processor for text, audio, video and poses: all that a model needs to read its inputs, except weights."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from simple_multimodal.errors import InputError
from simple_multimodal.modalities import DEFAULT_MODALITIES, INPUT_KEYS, PRESENCE_KEYS, Modality
from simple_multimodal.processing.feature_extraction_audio import AudioFeatureExtractor
from simple_multimodal.processing.pose_processing import PoseProcessor
from simple_multimodal.processing.video_processing import VideoClipProcessor


class Part(NamedTuple):
    """A part of a [`MultimodalProcessor`], which reads one modality.

    Args:
        name (`str`): Attribute of the processor, and argument of its constructor.
        argument (`str`): Argument of a call, for the inputs.
        kind (`type`): Class of the part.
        load (`Callable`): Loads the part from the folder of a saved processor, or from its hub name.
    """

    name: str
    argument: str
    kind: type
    load: Callable[..., Any]


def _load_tokenizer(name_or_path: str | os.PathLike[str], **settings: Any) -> PreTrainedTokenizerBase:
    # `config.json` next to a saved tokenizer belongs to the whole model. `AutoTokenizer` would read it if no
    # configuration was given, and warn about an unknown model type if the models are not imported.
    return AutoTokenizer.from_pretrained(name_or_path, config=PreTrainedConfig(), **settings)


BACKBONE_TOKENIZER_FOLDER = "backbone_tokenizer"
"""Folder of the tokenizer of the model that writes text, inside that of a processor."""

PARTS: dict[Modality, Part] = {
    "text": Part("tokenizer", "text", PreTrainedTokenizerBase, _load_tokenizer),
    "audio": Part("feature_extractor", "audio", AudioFeatureExtractor, AudioFeatureExtractor.from_pretrained),
    "video": Part("video_processor", "videos", VideoClipProcessor, VideoClipProcessor.from_pretrained),
    "pose": Part("pose_processor", "poses", PoseProcessor, PoseProcessor.from_pretrained),
}
"""The part of each modality, in the order of `MODALITIES`."""


class MultimodalProcessor(ProcessorMixin):
    """Processor with the tokenizer, the audio feature extractor and the video processor of a model.

    It saves into one folder and loads from it, by itself or through `AutoProcessor` (after `import
    simple_multimodal.processing`, which registers it). A component is `None` if the model lacks the modality.

    Args:
        feature_extractor ([`AudioFeatureExtractor`], *optional*):
            Component for audio.
        video_processor ([`VideoClipProcessor`], *optional*):
            Component for video.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*):
            Component for text; must have a padding token.
        text_padding (`str`, *optional*, defaults to `"longest"`):
            Default padding of texts: to the `"longest"` of the batch, or to `"max_length"`, which text towers need
            that pool the last position.
        backbone_tokenizer ([`PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model that writes text, if there is one. It is saved in a folder of its own.
        parts:
            Components for further modalities, by their names in `PARTS`: `pose_processor`, a [`PoseProcessor`] for
            poses, and those of modalities from outside the package.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained("checkpoint")
    >>> batch = processor(text=["a dog barks"], audio=[waveform], videos=[frames], sampling_rate=16000, video_fps=25.0)
    >>> {key: tuple(value.shape) for key, value in batch.items()}
    {'input_ids': (1, 6), 'attention_mask': (1, 6), 'text_mask': (1,), 'audio_values': (1, 1, 128, 1024),
     'audio_attention_mask': (1, 1024), 'audio_seconds': (1, 1024), 'audio_mask': (1,),
     'pixel_values_videos': (1, 16, 3, 224, 224), 'video_seconds': (1, 16), 'video_mask': (1,)}
    ```
    """

    feature_extractor: Any  # as `ProcessorMixin` declares them; None if the modality is not read
    video_processor: Any
    tokenizer: Any

    def __init__(
        self,
        feature_extractor: AudioFeatureExtractor | None = None,
        video_processor: VideoClipProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_padding: Literal["longest", "max_length"] = "longest",
        backbone_tokenizer: PreTrainedTokenizerBase | None = None,
        **parts: Any,
    ):
        # `ProcessorMixin.__init__` requires every component, so they are set here.
        parts |= {"feature_extractor": feature_extractor, "video_processor": video_processor, "tokenizer": tokenizer}
        kinds = {part.name: part.kind for part in PARTS.values()}
        if unknown := sorted(parts.keys() - kinds.keys()):
            raise TypeError(f"Got {', '.join(unknown)}; the parts of a processor are {', '.join(kinds)}.")
        for name, kind in kinds.items():
            component = parts.get(name)
            if component is not None and not isinstance(component, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {type(component).__name__}.")
            setattr(self, name, component)
        if not self.modalities:
            raise InputError(f"A processor needs at least one of {', '.join(kinds)}.")
        if tokenizer is not None and tokenizer.pad_token_id is None:
            raise InputError("The tokenizer has no padding token; set `tokenizer.pad_token` first.")
        self.text_padding = text_padding
        self.backbone_tokenizer = backbone_tokenizer
        self.chat_template = None

    def part(self, modality: Modality) -> Any:
        """Return the component for a modality; `None` if the processor lacks it."""
        return getattr(self, PARTS[modality].name)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities that this processor reads, in the order text, audio, video, pose."""
        return tuple(modality for modality in PARTS if self.part(modality) is not None)

    @property
    def model_input_names(self) -> list[str]:
        """Entries of the batch, in the order of `modalities`."""
        return [name for m in self.modalities for name in (*INPUT_KEYS[m], PRESENCE_KEYS[m])]

    def max_seq_length(self, limit: int = 512) -> int:
        """Return the maximum number of tokens of a text: the tokenizer's limit, but at most `limit`."""
        return min(limit, self.tokenizer.model_max_length)

    def tokenize(
        self,
        captions: Sequence[str | None],
        *,
        max_length: int | None = None,
        padding: bool | str | None = None,
        truncation: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Tokenize a batch of texts.

        Args:
            captions (`Sequence[str | None]`):
                One text per row; `None` for a row without text (which gets the ids of an empty text).
            max_length (`int`, *optional*):
                Maximum length of a text in tokens, including special ones; by default
                [`MultimodalProcessor.max_seq_length`].
            padding (`bool` or `str`, *optional*):
                `True` or `"longest"` pads to the longest text of the batch, `"max_length"` to `max_length`. By default
                `text_padding` of the processor.
            truncation (`bool`, *optional*, defaults to `True`):
                Whether to truncate longer texts.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`,
            `text_mask` of shape `(batch_size,)`.
        """
        encoded = self.tokenizer(
            [caption or "" for caption in captions],
            padding=self.text_padding if padding is None else padding,
            truncation=truncation,
            max_length=self.max_seq_length() if max_length is None else max_length,
            return_tensors="pt",
            return_token_type_ids=False,
            return_attention_mask=True,
        )
        return {
            "input_ids": encoded["input_ids"].long(),  # an empty text without special tokens gives floats
            "attention_mask": encoded["attention_mask"].long(),
            "text_mask": torch.tensor([caption is not None for caption in captions], dtype=torch.bool),
        }

    def __call__(
        self,
        text: str | Sequence[str | None] | None = None,
        audio: np.ndarray | torch.Tensor | Sequence[Any] | None = None,
        videos: np.ndarray | torch.Tensor | Sequence[Any] | None = None,
        *,
        sampling_rate: int | None = None,
        video_fps: float | Sequence[float | None] | None = None,
        padding: bool | str | None = None,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
        **further: Any,
    ) -> BatchFeature:
        """Process inputs in memory. To read files, use the collator.

        Args:
            text (`str` or `Sequence[str | None]`, *optional*):
                One text, or one per row.
            audio (`np.ndarray` of shape `(num_samples,)` or a list of them, *optional*):
                Mono waveforms at the feature extractor's rate; see [`AudioFeatureExtractor.__call__`].
            videos (`np.ndarray` of shape `(n, height, width, 3)` or a list of them, *optional*):
                Decoded frames; see [`VideoClipProcessor.__call__`].
            sampling_rate (`int`, *optional*):
                Sampling rate of `audio` in Hz; it must be that of the feature extractor.
            video_fps (`float` or `Sequence[float]`, *optional*):
                Frame rate of `videos` in frames per second.
            padding, truncation, max_length:
                Settings for text; see [`MultimodalProcessor.tokenize`].
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.
            further:
                Inputs for further modalities, by their arguments in `PARTS`: `poses`, see [`PoseProcessor.__call__`],
                and those of modalities from outside the package.

        Returns:
            [`BatchFeature`]: Entries of the given modalities. In a list, `None` marks a row that lacks the modality.
        """
        given = {"text": text, "audio": audio, "videos": videos, **further}
        arguments = {part.argument: modality for modality, part in PARTS.items()}
        if unknown := sorted(given.keys() - arguments.keys()):
            raise TypeError(f"Got {', '.join(unknown)}; the inputs of a processor are {', '.join(arguments)}.")
        if all(value is None for value in given.values()):
            raise InputError(f"Nothing to process: give at least one of {', '.join(f'`{name}`' for name in given)}.")
        settings: dict[Modality, dict[str, Any]] = {
            "audio": {"sampling_rate": sampling_rate},
            "video": {"video_fps": video_fps},
        }
        batch: dict[str, torch.Tensor] = {}
        for name, modality in arguments.items():
            if (values := given.get(name)) is None:
                continue
            process = self.part(modality)
            if process is None:
                raise InputError(f"Got `{name}`, but this processor reads only {', '.join(self.modalities)}.")
            if process is self.tokenizer:
                values = [values] if isinstance(values, str) else values
                process = partial(self.tokenize, max_length=max_length, padding=padding, truncation=truncation)
            batch |= process(values, **settings.get(modality, {}))
        sizes = {len(value) for value in batch.values()}
        if len(sizes) > 1:
            rows = {m: len(batch[PRESENCE_KEYS[m]]) for m in self.modalities if PRESENCE_KEYS[m] in batch}
            raise InputError(f"Got different numbers of rows: {rows}. Use None for a row that lacks a modality.")
        if return_tensors == "np":
            return BatchFeature({key: value.numpy() for key, value in batch.items()})
        return BatchFeature(batch, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the content of `processor_config.json`. Of the components that the processor lacks, those of text, audio
        and video are null and others are left out: what is stored with a processor's fingerprint stays valid when
        there are new ones.
        """
        output = super().to_dict()
        output["tokenizer"] = None if self.tokenizer is None else type(self.tokenizer).__name__
        for modality, part in PARTS.items():
            if modality not in DEFAULT_MODALITIES:  # the mixin knows the components of its own library alone
                output.pop(part.name, None)
                if (own := self.part(modality)) is not None:
                    output[part.name] = own.to_dict()
        output.pop("backbone_tokenizer", None)
        if self.backbone_tokenizer is not None:
            output["backbone_tokenizer"] = type(self.backbone_tokenizer).__name__
        return output

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save `processor_config.json` and the files of the tokenizer, if there is one, to a folder.

        Args:
            save_directory (`str` or `os.PathLike`):
                Output folder, which is created if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Upload to the hub as well; `kwargs` are passed to `push_to_hub` (`repo_id` defaults to the folder's
                name).
        """
        # The mixin's own method calls every component, even those that are None.
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        files: list[str] = []
        if self.tokenizer is not None:
            files += self.tokenizer.save_pretrained(folder)
        if self.backbone_tokenizer is not None:
            files += self.backbone_tokenizer.save_pretrained(folder / BACKBONE_TOKENIZER_FOLDER)
        self.to_json_file(folder / "processor_config.json")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*files, str(folder / "processor_config.json")]

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, processor_dict: dict[str, Any] | None = None, **kwargs
    ) -> dict[str, Any]:
        """Load the parts listed in `processor_config.json` (called by `from_pretrained`)."""
        config = processor_dict or {}
        if config.get("processor_class") != cls.__name__:
            raise InputError(
                f"{str(pretrained_model_name_or_path)!r} does not contain a {cls.__name__} (its processor is "
                f"{config.get('processor_class')!r}). Build one from parts: MultimodalProcessor(feature_extractor="
                "AudioFeatureExtractor.from_pretrained(…), video_processor=…, tokenizer=…)."
            )
        kwargs = {**kwargs, "trust_remote_code": False}  # otherwise transformers offers to run code named in a config
        named = [part for part in PARTS.values() if config.get(part.name) is not None]
        try:
            parts = {part.name: part.load(pretrained_model_name_or_path, **kwargs) for part in named}
            if config.get("backbone_tokenizer") is not None:
                source = os.path.join(pretrained_model_name_or_path, BACKBONE_TOKENIZER_FOLDER)
                if not os.path.isdir(source):  # on the hub
                    source, kwargs["subfolder"] = os.fspath(pretrained_model_name_or_path), BACKBONE_TOKENIZER_FOLDER
                parts["backbone_tokenizer"] = _load_tokenizer(source, **kwargs)
            return parts
        except RecursionError as error:
            raise InputError(f"{pretrained_model_name_or_path}: one of its files is nested too deeply.") from error

    @classmethod
    def from_args_and_dict(
        cls, args: dict[str, Any], processor_dict: dict[str, Any], **kwargs: Any
    ) -> "MultimodalProcessor":
        """Build a processor from loaded parts and its saved settings (called by `from_pretrained`)."""
        settings = {**processor_dict, **kwargs}
        return cls(**args, text_padding=settings.get("text_padding", "longest"))
