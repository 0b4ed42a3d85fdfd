"""Several views of a clip: interleaved frames and crops along its longer side, from one decode."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.errors import InputError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.processing import VideoClipProcessor
from simple_multimodal.processing.video_processing import Fit

ViewPooling = Literal["mean", "max"]


class Views(NamedTuple):
    """
    Views of each clip that a prediction is made from.

    Args:
        views (`int`, *optional*, defaults to 1): Number of sets of frames. As many frames as all views have are
            sampled; view `v` of `n` has every `n`-th of them, beginning with `v`.
        crops (`int`, *optional*, defaults to 1): Number of crops, evenly spaced along the longer side of the frame;
            with 1, the one that the model was trained with.
        pooling (`str`, *optional*, defaults to `"mean"`): How the probabilities of the views are combined: `"mean"` or
            `"max"`.
    """

    views: int = 1
    crops: int = 1
    pooling: ViewPooling = "mean"

    @property
    def name(self) -> str | None:
        """Name for a protocol, such as `"views10x3max"`; `None` for a single view."""
        return None if self.views * self.crops == 1 else f"views{self.views}x{self.crops}{self.pooling}"

    def check(self) -> None:
        """Raise a `ValueError` if a value is out of range."""
        if self.views < 1 or self.crops < 1:
            raise InputError(f"`eval_views` and `eval_crops` must be 1 or more, got {self.views} and {self.crops}.")
        if self.pooling not in get_args(ViewPooling):
            raise InputError(f"`view_pooling` must be mean or max, got {self.pooling!r}.")


class ViewsProcessor(VideoClipProcessor):
    """
    Video processor whose clips hold the frames of all views, crop by crop.

    Args:
        processor ([`VideoClipProcessor`]): Processor of a single view.
        views ([`Views`]): Number of views and crops.
    """

    def __init__(self, processor: VideoClipProcessor, views: Views):
        self.__dict__.update(processor.__dict__)
        self.views = views
        self.num_frames = processor.num_frames * views.views

    def sample(self, index: FrameIndex, **segment: Any) -> list[int]:
        """Choose the frames of all views, see [`VideoClipProcessor.sample`].

        Raises:
            ValueError: If the video has too few.
        """
        if self.views.views > 1 and index.num_frames < self.num_frames:
            raise InputError(
                f"A video has only {index.num_frames} frames, fewer than the {self.num_frames} of {self.views.views} "
                "views. Lower eval_views."
            )
        return super().sample(index, **segment)

    def new_batch(self, batch_size: int, *, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return empty entries as [`VideoClipProcessor.new_batch`], with `crops * num_frames` frames per row."""
        batch = super().new_batch(batch_size, device=device)
        pixels = batch["pixel_values_videos"]
        shape = (batch_size, self.views.crops * self.num_frames, *pixels.shape[2:])
        return {**batch, "pixel_values_videos": pixels.new_empty(shape)}

    def transform(self, frames: Any, fit: Fit, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Fit frames to each crop, see [`VideoClipProcessor.transform`]."""
        num_frames = len(frames)
        if out is None:
            out = torch.empty(self.views.crops * num_frames, 3, self.height, self.width, dtype=torch.uint8)
        for number, crop in enumerate(self._crops(fit)):
            super().transform(frames, crop, out=out[number * num_frames : (number + 1) * num_frames])
        return out

    def _crops(self, fit: Fit) -> list[Fit]:
        spare = fit.height - self.height, fit.width - self.width
        if self.views.crops == 1:
            return [fit]
        if max(spare) <= 0:  # nothing is cut off
            return [fit] * self.views.crops
        places = [round(number * max(spare) / (self.views.crops - 1)) for number in range(self.views.crops)]
        if spare[0] >= spare[1]:
            return [fit._replace(top=place) for place in places]
        return [fit._replace(left=place) for place in places]


def with_views(collator: MultimodalCollator, views: Views) -> MultimodalCollator:
    """
    Return a collator like another one, whose batches hold all views of each clip.

    Raises:
        ValueError: If the model takes no video, or features, which hold a single view, replace the frames.
    """
    processor = copy.copy(collator.processor)
    if processor.video_processor is None or "video" in collator.drop_modalities:
        raise InputError(f"{views.name}: this model has no frames to take several views of. Leave eval_views out.")
    if "video" in collator.features:
        raise InputError(f"{views.name}: features hold a single view. Leave them or eval_views out.")
    processor.video_processor = ViewsProcessor(processor.video_processor, views)
    return MultimodalCollator(
        processor,
        drop_modalities=collator.drop_modalities,
        max_seq_length=collator.max_seq_length,
        pad_to_max_length=collator.pad_to_max_length,
        num_threads=collator.num_threads,
        parallel=collator.parallel,
        video_backend=collator.video_backend,
        decode_device=collator.decode_device,
        index_dir=collator.index_dir,
        features=collator.features,
    )


SINGLE_VIEW = Views()


def each_view(batch: dict[str, torch.Tensor], views: Views) -> Iterator[dict[str, torch.Tensor]]:
    """Iterate over the batches of single views in a batch of [`with_views`]."""
    if views.name is None:
        yield batch
        return
    pixels = batch["pixel_values_videos"].unflatten(1, (views.crops, -1))  # (batch, crops, frames of all views, ...)
    for crop in range(views.crops):
        for first in range(views.views):
            yield {
                **batch,
                "pixel_values_videos": pixels[:, crop, first :: views.views],
                "video_seconds": batch["video_seconds"][:, first :: views.views],
            }


def pool_views(logits: torch.Tensor, views: Views, *, many: bool) -> torch.Tensor:
    """
    Combine the probabilities of views.

    Args:
        logits (`torch.FloatTensor` of shape `(num_views, batch_size, num_labels)`): Logits of each view.
        views ([`Views`]): How to combine them.
        many (`bool`): Whether labels are independent (sigmoid) or exclude each other (softmax).

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_labels)`: Logits of the combined probabilities; with softmax and
        `"max"` their softmax adds up to 1 again.
    """
    if len(logits) == 1:
        return logits[0]
    log_p = torch.nn.functional.logsigmoid(logits) if many else logits.log_softmax(dim=-1)
    if views.pooling == "max":
        return logits.amax(dim=0) if many else log_p.amax(dim=0)
    log_mean = log_p.logsumexp(dim=0) - torch.tensor(len(logits)).log()
    if not many:
        return log_mean
    log_not = torch.nn.functional.logsigmoid(-logits).logsumexp(dim=0) - torch.tensor(len(logits)).log()
    return log_mean - log_not
