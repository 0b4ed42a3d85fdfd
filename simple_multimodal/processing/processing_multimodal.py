"""One processor for text, audio and video: what a model needs besides its weights to read its inputs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from simple_multimodal.modalities import Modality
from simple_multimodal.processing.feature_extraction_audio import AudioFeatureExtractor
from simple_multimodal.processing.video_processing import VideoClipProcessor


class MultimodalProcessor(ProcessorMixin):
    """Holds the tokenizer, the audio feature extractor and the video processor of a model.

    Saves into one folder and loads from it, by itself or through `AutoProcessor` (after `import
    simple_multimodal.processing`, which registers it). A component that is `None` means that the model does not take
    that modality.

    Args:
        feature_extractor ([`AudioFeatureExtractor`], *optional*):
            For sound.
        video_processor ([`VideoClipProcessor`], *optional*):
            For video.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*):
            For text; must have a padding token.
        text_padding (`str`, *optional*, defaults to `"longest"`):
            To what texts are padded where a call does not say it: `"longest"` of the batch, or `"max_length"`, which
            text towers need that pool the last place.

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

    feature_extractor: Any  # as `ProcessorMixin` declares them; None where the modality is not read
    video_processor: Any
    tokenizer: Any

    def __init__(
        self,
        feature_extractor: AudioFeatureExtractor | None = None,
        video_processor: VideoClipProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_padding: Literal["longest", "max_length"] = "longest",
    ):
        # `ProcessorMixin.__init__` demands every component, so the three are set here.
        expected = (
            ("feature_extractor", feature_extractor, AudioFeatureExtractor),
            ("video_processor", video_processor, VideoClipProcessor),
            ("tokenizer", tokenizer, PreTrainedTokenizerBase),
        )
        for name, component, kind in expected:
            if component is not None and not isinstance(component, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {type(component).__name__}.")
        if feature_extractor is None and video_processor is None and tokenizer is None:
            raise ValueError("A processor needs at least one of feature_extractor, video_processor and tokenizer.")
        if tokenizer is not None and tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token; set `tokenizer.pad_token` before.")
        self.feature_extractor = feature_extractor
        self.video_processor = video_processor
        self.tokenizer = tokenizer
        self.text_padding = text_padding
        self.chat_template = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that this processor reads, in the order text, audio, video."""
        components = (self.tokenizer, self.feature_extractor, self.video_processor)
        names: tuple[Modality, ...] = ("text", "audio", "video")
        return tuple(name for name, component in zip(names, components, strict=True) if component is not None)

    @property
    def model_input_names(self) -> list[str]:
        """Entries of the batch, in the order text, audio, video."""
        names = ["input_ids", "attention_mask", "text_mask"] if self.tokenizer is not None else []
        for component in (self.feature_extractor, self.video_processor):
            if component is not None:
                names += component.model_input_names
        return names

    def max_seq_length(self, limit: int = 512) -> int:
        """Tokens that a text may have: the tokenizer's limit, at most `limit`."""
        return min(limit, self.tokenizer.model_max_length)

    def tokenize(
        self,
        captions: Sequence[str | None],
        *,
        max_length: int | None = None,
        padding: bool | str | None = None,
        truncation: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Token ids of a batch of texts.

        Args:
            captions (`Sequence[str | None]`):
                One text per row; `None` where a row has none (its ids are those of an empty text).
            max_length (`int`, *optional*):
                Longest text in tokens, special ones included; [`MultimodalProcessor.max_seq_length`] by default.
            padding (`bool` or `str`, *optional*):
                `True` or `"longest"`: to the longest of the batch; `"max_length"`: to `max_length`. By default
                `text_padding` of the processor.
            truncation (`bool`, *optional*, defaults to `True`):
                Whether longer texts are cut.

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
            "input_ids": encoded["input_ids"].long(),  # an empty text without special tokens would give floats
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
    ) -> BatchFeature:
        """Process inputs that are in memory. To read files, use the collator.

        Args:
            text (`str` or `Sequence[str | None]`, *optional*):
                One text or one per row.
            audio (`np.ndarray` of shape `(num_samples,)` or a list of such, *optional*):
                Mono waveforms at the feature extractor's rate; see [`AudioFeatureExtractor.__call__`].
            videos (`np.ndarray` of shape `(n, height, width, 3)` or a list of such, *optional*):
                Decoded frames; see [`VideoClipProcessor.__call__`].
            sampling_rate (`int`, *optional*):
                Of `audio`, in Hz; another than the feature extractor's is an error.
            video_fps (`float` or `Sequence[float]`, *optional*):
                Frames per second of `videos`.
            padding, truncation, max_length:
                Of the text; see [`MultimodalProcessor.tokenize`].
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`]: Entries of the modalities that were given. In a list, `None` marks a row that lacks the
            modality.
        """
        given = {"text": text, "audio": audio, "videos": videos}
        if all(value is None for value in given.values()):
            raise ValueError("Nothing to process: give at least one of `text`, `audio` and `videos`.")
        owners = {"text": self.tokenizer, "audio": self.feature_extractor, "videos": self.video_processor}
        for name, value in given.items():
            if value is not None and owners[name] is None:
                raise ValueError(f"Got `{name}`, but this processor reads {', '.join(self.modalities)} only.")

        batch: dict[str, torch.Tensor] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            batch |= self.tokenize(texts, max_length=max_length, padding=padding, truncation=truncation)
        if audio is not None:
            batch |= self.feature_extractor(audio, sampling_rate=sampling_rate)
        if videos is not None:
            batch |= self.video_processor(videos, video_fps=video_fps)
        sizes = {len(value) for value in batch.values()}
        if len(sizes) > 1:
            rows = {name: len(batch[f"{name}_mask"]) for name in self.modalities if f"{name}_mask" in batch}
            raise ValueError(f"Got different numbers of rows: {rows}. Put None where a row lacks a modality.")
        if return_tensors == "np":
            return BatchFeature({key: value.numpy() for key, value in batch.items()})
        return BatchFeature(batch, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """Content of `processor_config.json`; a component that the processor lacks is null there."""
        output = super().to_dict()
        output["tokenizer"] = None if self.tokenizer is None else type(self.tokenizer).__name__
        return output

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write `processor_config.json` and, with a tokenizer, its files into a folder.

        Args:
            save_directory (`str` or `os.PathLike`):
                Made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Upload as well; `kwargs` go to `push_to_hub` (`repo_id` defaults to the folder's name).
        """
        # The mixin's own method calls every component, also those that are None.
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        files: list[str] = []
        if self.tokenizer is not None:
            files += self.tokenizer.save_pretrained(folder)
        self.to_json_file(folder / "processor_config.json")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*files, str(folder / "processor_config.json")]

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, processor_dict: dict[str, Any] | None = None, **kwargs
    ) -> list[Any]:
        """Load the components that `processor_config.json` names (called by `from_pretrained`)."""
        config = processor_dict or {}
        if config.get("processor_class") != cls.__name__:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds no {cls.__name__} (its processor is "
                f"{config.get('processor_class')!r}). Build one from parts: MultimodalProcessor(feature_extractor="
                "AudioFeatureExtractor.from_pretrained(…), video_processor=…, tokenizer=…)."
            )
        loaders = {
            "feature_extractor": AudioFeatureExtractor,
            "video_processor": VideoClipProcessor,
            "tokenizer": AutoTokenizer,
        }
        kwargs = {**kwargs, "trust_remote_code": False}  # else the code that a tokenizer's config names is offered
        try:
            return [
                None if config.get(name) is None else loader.from_pretrained(pretrained_model_name_or_path, **kwargs)
                for name, loader in loaders.items()
            ]
        except RecursionError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: a file of it is nested too deeply.") from error
