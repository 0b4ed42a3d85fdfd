"""Choose the frames of a video to decode, and turn them into the fixed-size clip that the video encoder reads."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.utils import logging
from transformers.video_processing_utils import VideoProcessorMixin

from simple_multimodal.errors import InputError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.sampling import SAMPLING_STRATEGIES, SamplingStrategy, sample_positions
from simple_multimodal.processing.batch_memory import batch_tensor

logger = logging.get_logger(__name__)

ResizeMode = Literal["short_side_center_crop", "squash", "pad"]
ResizeKernel = Literal["fast", "antialias", "bicubic", "decord"]

IN_MEMORY_KERNELS = {"antialias": tvF.InterpolationMode.BILINEAR, "bicubic": tvF.InterpolationMode.BICUBIC}
"""Kernels that scale RGB frames in memory, after decoding."""

ASSUMED_FPS = 24.0  # what transformers assumes for frames without metadata


class VideoClip(NamedTuple):
    """The processed frames of one video.

    Args:
        pixel_values (`torch.ByteTensor` of shape `(num_frames, 3, height, width)`):
            RGB values, 0 to 255.
        seconds (`torch.FloatTensor` of shape `(num_frames,)`):
            Time of each frame from the start of the segment, in seconds.
    """

    pixel_values: torch.Tensor
    seconds: torch.Tensor


class Fit(NamedTuple):
    """How the frames of a clip are fitted to `size`: scaled, cropped or padded with black, and flipped.

    Args:
        height, width (`int`):
            Size of the scaled frame in pixels.
        top, left (`int`):
            Where the result begins in it; negative if black is added before it.
        is_flipped (`bool`, *optional*, defaults to `False`):
            Whether it is flipped horizontally.
    """

    height: int
    width: int
    top: int
    left: int
    is_flipped: bool = False


class VideoClipProcessor(VideoProcessorMixin):
    """Video processor that samples frames and fits them to one size; bytes in, bytes out.

    Pixels stay `uint8`: the model's video encoder scales and normalises them on the device with `image_mean` and
    `image_std`.

    Args:
        num_frames (`int`, *optional*, defaults to 16):
            Number of frames per clip.
        size (`dict[str, int]` or `int`, *optional*, defaults to `{"height": 224, "width": 224}`):
            Size of the output frames.
        resize_mode (`str`, *optional*, defaults to `"short_side_center_crop"`):
            `"short_side_center_crop"` scales until the frame covers `size` and keeps the centre; `"squash"` scales
            both sides to `size` without keeping the aspect ratio; `"pad"` scales until the frame fits and adds black.
        resize_kernel (`str`, *optional*, defaults to `"fast"`):
            `"fast"` scales during colour conversion (swscale's bilinear kernel, which averages when shrinking);
            `"antialias"` scales RGB frames with torchvision's antialiased bilinear kernel, as VideoMAE's image
            processor does; on real clips the PSNR between the two is 45 dB (median). `"bicubic"` is torchvision's
            antialiased bicubic kernel, which CLIP's and SigLIP's image processors use. `"decord"` scales like
            `"fast"`, but to exactly the pixels of decord's `VideoReader(path, width=…, height=…)`, which ALPRO was
            trained on. Frames in memory are scaled with `"antialias"` unless the kernel is `"bicubic"`.
        short_side (`int`, *optional*):
            Length to which the short side is scaled before the centre crop; by default just enough to cover `size`.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's):
            Mean per channel, for values between 0 and 1.
        image_std (`list[float]`, *optional*, defaults to ImageNet's):
            Standard deviation per channel, likewise.
        frame_sampling (`str`, *optional*, defaults to `"uniform"`):
            Strategy in evaluation: `"uniform"`, the centre of each of `num_frames` equal parts of the segment,
            `"dense"`, every `frame_stride`-th frame in the middle of the segment, or `"alpro"`, the frames that ALPRO
            uses (see [`sample_positions`]).
        train_frame_sampling (`str`, *optional*, defaults to `"jittered"`):
            Strategy in training: also `"jittered"`, a random frame of each part; `"dense"` starts at random.
        frame_stride (`int`, *optional*, defaults to 4):
            Step of `"dense"`, in frames.
        random_crop (`bool`, *optional*, defaults to `False`):
            In training, crop a random part with a random aspect ratio instead of applying `resize_mode`.
        random_crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.5, 1.0)`):
            Share of the area that a random crop keeps.
        random_flip (`bool`, *optional*, defaults to `False`):
            In training, flip half of the clips horizontally.
    """

    model_input_names = ["pixel_values_videos", "video_seconds", "video_mask"]

    def __init__(
        self,
        *,
        num_frames: int = 16,
        size: dict[str, int] | int | None = None,
        resize_mode: ResizeMode = "short_side_center_crop",
        resize_kernel: ResizeKernel = "fast",
        short_side: int | None = None,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        frame_sampling: SamplingStrategy = "uniform",
        train_frame_sampling: SamplingStrategy = "jittered",
        frame_stride: int = 4,
        random_crop: bool = False,
        random_crop_scale: Sequence[float] = (0.5, 1.0),
        random_flip: bool = False,
        **kwargs: Any,
    ):
        for key in ("video_processor_type", "image_processor_type"):
            kwargs.pop(key, None)
        super().__init__(**kwargs)
        size = 224 if size is None else size
        size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        if set(size) != {"height", "width"} or min(size.values()) < 1:
            raise InputError(f'`size` must be {{"height": h, "width": w}} in pixels, got {size!r}.')
        if resize_mode not in get_args(ResizeMode):
            raise InputError(f"Unknown `resize_mode` {resize_mode!r}; known are {', '.join(get_args(ResizeMode))}.")
        if resize_kernel not in get_args(ResizeKernel):
            raise InputError(
                f"Unknown `resize_kernel` {resize_kernel!r}; known are {', '.join(get_args(ResizeKernel))}."
            )
        if frame_sampling == "jittered" or frame_sampling not in SAMPLING_STRATEGIES:  # evaluation is never random
            raise InputError(f"`frame_sampling` must be uniform, dense or alpro, got {frame_sampling!r}.")
        if train_frame_sampling not in SAMPLING_STRATEGIES:
            raise InputError(
                f"`train_frame_sampling` must be one of {', '.join(SAMPLING_STRATEGIES)}, "
                f"got {train_frame_sampling!r}."
            )
        if num_frames < 1 or frame_stride < 1:
            raise InputError(f"`num_frames` and `frame_stride` must be 1 or more, got {num_frames}, {frame_stride}.")
        if short_side is not None and short_side < max(size.values()):
            raise InputError(f"`short_side` is {short_side}, less than the crop {size}; leave it out or raise it.")
        if not 0 < random_crop_scale[0] <= random_crop_scale[1] <= 1:
            raise InputError(f"`random_crop_scale` must be 0 < low <= high <= 1, got {tuple(random_crop_scale)}.")
        self.num_frames = num_frames
        self.size = size
        self.resize_mode = resize_mode
        self.resize_kernel = resize_kernel
        self.short_side = short_side
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.frame_sampling = frame_sampling
        self.train_frame_sampling = train_frame_sampling
        self.frame_stride = frame_stride
        self.random_crop = random_crop
        self.random_crop_scale = list(random_crop_scale)
        self.random_flip = random_flip

    @property
    def height(self) -> int:
        """Height of the output frames in pixels."""
        return self.size["height"]

    @property
    def width(self) -> int:
        """Width of the output frames in pixels."""
        return self.size["width"]

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a saved configuration, or from that of an image processor such as VideoMAE's or CLIP's.

        The latter provides size, crop, bicubic resampling, scale, mean and deviation, but not the number of frames,
        which must be given.
        """
        values = dict(video_processor_dict)
        if values.get("video_processor_type") != cls.__name__:
            values = _from_image_processor(values)
        elif "geometry" in values:  # the name of `resize_mode` in earlier versions
            values["resize_mode"] = values.pop("geometry")
        unused = kwargs.pop("return_unused_kwargs", False)
        own_names = inspect.signature(cls.__init__).parameters
        values |= {key: value for key, value in kwargs.items() if key in own_names}
        processor = cls(**values)
        return (processor, {k: v for k, v in kwargs.items() if k not in own_names}) if unused else processor

    @classmethod
    def get_video_processor_dict(
        cls, pretrained_model_name_or_path, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a saved configuration, also from within the processor of an image-text model."""
        try:
            return super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            return ImageProcessingMixin.get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Number of frames in a clip, their height and their width: the input size of the tower."""
        return self.num_frames, self.height, self.width

    @property
    def scales_in_memory(self) -> bool:
        """Whether frames are decoded at their original size and scaled afterwards."""
        return self.resize_kernel in IN_MEMORY_KERNELS

    def sample(
        self,
        index: FrameIndex,
        *,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        generator: np.random.Generator | None = None,
    ) -> list[int]:
        """Choose the frames of a clip with the training strategy if there is a generator, else that of evaluation.

        Returns:
            `list[int]`: `num_frames` ascending positions in the file's index; repeated if the clip is too short.
        """
        return sample_positions(
            index,
            self.num_frames,
            self.frame_sampling if generator is None else self.train_frame_sampling,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            stride=self.frame_stride,
            generator=generator,
        )

    def fit(self, height: int, width: int, *, generator: np.random.Generator | None = None) -> Fit:
        """Determine how to fit the frames of a video to `size`.

        Args:
            height, width (`int`):
                Size of the video in pixels.
            generator (`np.random.Generator`, *optional*):
                Generator of the sample, in training: chooses one crop and one flip for the whole clip, if enabled.

        Returns:
            [`Fit`]: The fit of all frames of the clip.
        """
        if generator is not None and self.random_crop:
            top, left, part_height, part_width = self._sample_crop(height, width, generator)
            vertical, horizontal = self.height / part_height, self.width / part_width
            scaled = max(round(height * vertical), self.height), max(round(width * horizontal), self.width)
            top = min(round(top * vertical), scaled[0] - self.height)
            left = min(round(left * horizontal), scaled[1] - self.width)
        else:
            scaled = self._scaled_size(height, width)
            # Half pixels are rounded as in torchvision's centre crop; an odd black pixel is added at the end.
            top, left = (
                int(round((length - goal) / 2)) if length > goal else -((goal - length) // 2)
                for length, goal in zip(scaled, (self.height, self.width), strict=True)
            )
        is_flipped = generator is not None and self.random_flip and generator.random() < 0.5
        return Fit(*scaled, top, left, is_flipped)

    def transform(
        self, frames: np.ndarray | torch.Tensor, fit: Fit, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scale, crop or pad, and flip frames.

        Args:
            frames (`np.ndarray` or `torch.Tensor` of shape `(num_frames, 3, height, width)`):
                RGB frames, `uint8`, on any device; frames that already have the scaled size are not scaled.
            fit ([`Fit`]):
                Result of [`VideoClipProcessor.fit`].
            out (`torch.ByteTensor` of shape `(num_frames, 3, height, width)`, *optional*):
                Tensor for the result.

        Returns:
            `torch.ByteTensor` of shape `(num_frames, 3, height, width)`.
        """
        clip = torch.as_tensor(frames)
        if clip.shape[-2:] != (fit.height, fit.width):
            kernel = IN_MEMORY_KERNELS.get(self.resize_kernel, tvF.InterpolationMode.BILINEAR)
            clip = tvF.resize(clip, [fit.height, fit.width], interpolation=kernel, antialias=True)
        if (fit.height, fit.width) != (self.height, self.width):
            # Beyond its edges the frame is padded with black.
            clip = tvF.crop(clip, fit.top, fit.left, self.height, self.width)
        clip = tvF.horizontal_flip(clip) if fit.is_flipped else clip
        return clip.contiguous() if out is None else out.copy_(clip)

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which `resize_mode` scales a frame."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "pad":
            scale = min(self.height / height, self.width / width)
            return min(max(round(height * scale), 1), self.height), min(max(round(width * scale), 1), self.width)
        if self.short_side is not None:
            scale = self.short_side / min(height, width)
        else:
            scale = max(self.height / height, self.width / width)
        # Rounded down, as torchvision and transformers do for the long side.
        return max(int(height * scale + 1e-6), self.height), max(int(width * scale + 1e-6), self.width)

    def _sample_crop(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a random crop, as in Inception's training ("random resized crop")."""
        for _ in range(10):
            area = height * width * generator.uniform(self.random_crop_scale[0], self.random_crop_scale[1])
            ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(generator.integers(height - crop_height + 1))
                left = int(generator.integers(width - crop_width + 1))
                return top, left, crop_height, crop_width
        side = min(height, width)  # the frame is too long for any allowed crop: use the centre
        return (height - side) // 2, (width - side) // 2, side, side

    def new_batch(self, batch_size: int, *, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return the entries of [`VideoClipProcessor.collate`] for the caller to fill.

        Args:
            batch_size (`int`):
                Number of rows.
            device (`str`, *optional*, defaults to `"cpu"`):
                Device of the pixels; the rest stays on the CPU.

        Returns:
            `dict[str, torch.Tensor]`: Tensors with arbitrary pixels; all other values are zero.
        """
        shape = batch_size, self.num_frames, 3, self.height, self.width
        return {
            "pixel_values_videos": (
                batch_tensor(*shape, dtype=torch.uint8)
                if device == "cpu"
                else torch.empty(shape, dtype=torch.uint8, device=device)
            ),
            "video_seconds": torch.zeros(batch_size, self.num_frames),
            "video_mask": torch.zeros(batch_size, dtype=torch.bool),
        }

    def collate(self, clips: Sequence[VideoClip | None]) -> dict[str, torch.Tensor]:
        """Stack the clips of a batch.

        Args:
            clips (`Sequence[VideoClip | None]`):
                One entry per row; `None` for a row without video.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values_videos` (`uint8`) of shape `(batch_size, num_frames, 3, height,
            width)`, `video_seconds` of shape `(batch_size, num_frames)`, `video_mask` of shape `(batch_size,)`. The
            entries of a row without video are zeros and `False`.
        """
        batch = self.new_batch(len(clips))
        for row, clip in enumerate(clips):
            if clip is None:
                batch["pixel_values_videos"][row] = 0
            else:
                batch["pixel_values_videos"][row] = clip.pixel_values
                batch["video_seconds"][row] = clip.seconds
                batch["video_mask"][row] = True
        return batch

    def __call__(
        self,
        videos: np.ndarray | torch.Tensor | Sequence[Any],
        *,
        video_fps: float | Sequence[float | None] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Process one or several decoded videos.

        Args:
            videos (`np.ndarray` or `torch.Tensor` of shape `(n, height, width, 3)` or `(n, 3, height, width)`):
                `uint8` RGB frames of one video, or a list of videos (an entry may be a list of frames or `None`). If a
                video does not have `num_frames` frames, that many are sampled from it.
            video_fps (`float` or `Sequence[float]`, *optional*):
                Frame rate of the videos in frames per second; if it is not given, 24 is assumed, with a warning.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with the entries of [`VideoClipProcessor.collate`].
        """
        if isinstance(videos, (np.ndarray, torch.Tensor)):
            is_single = videos.ndim == 4
        else:
            is_single = _is_frame(videos[0])
        batch = [videos] if is_single else list(videos)
        rates = list(video_fps) if isinstance(video_fps, Sequence) else [video_fps] * len(batch)
        if len(rates) != len(batch):
            raise InputError(f"Got {len(batch)} videos and {len(rates)} values of `video_fps`; give one per video.")
        clips = [None if video is None else self._clip(video, fps) for video, fps in zip(batch, rates, strict=True)]
        output = self.collate(clips)
        if return_tensors == "np":
            return BatchFeature({key: value.numpy() for key, value in output.items()})
        return BatchFeature(output, tensor_type=return_tensors)

    preprocess = __call__

    def _clip(self, video: np.ndarray | torch.Tensor | Sequence[Any], fps: float | None) -> VideoClip:
        """Process one decoded video."""
        frames = np.stack([np.asarray(f) for f in video]) if isinstance(video, (list, tuple)) else np.asarray(video)
        if frames.ndim == 4 and frames.shape[-1] == 3:
            frames = frames.transpose(0, 3, 1, 2)
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
            raise InputError(
                f"A video must be uint8 of shape (n, height, width, 3) or (n, 3, height, width) with n >= 1, "
                f"got {frames.dtype} of shape {frames.shape}."
            )
        if fps is None:
            logger.warning_once(f"`video_fps` was not given: {ASSUMED_FPS} frames per second are assumed.")
            fps = ASSUMED_FPS
        seconds = np.arange(len(frames), dtype=np.float64) / fps
        index = FrameIndex(
            num_frames=len(frames),
            seconds=seconds,
            width=frames.shape[3],
            height=frames.shape[2],
            duration_seconds=len(frames) / fps,
        )
        positions = list(range(len(frames))) if len(frames) == self.num_frames else self.sample(index)
        pixels = self.transform(np.ascontiguousarray(frames[positions]), self.fit(index.height, index.width))
        return VideoClip(pixels, torch.from_numpy(seconds[positions]).float())


def _is_frame(value: object) -> bool:
    """Return whether `value` is one image: an array of three dimensions or a PIL image."""
    return value is not None and not isinstance(value, (list, tuple)) and np.asarray(value).ndim == 3


def _from_image_processor(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the configuration of a Hugging Face image processor to our parameters."""
    result = {key: values[key] for key in ("num_frames", "image_mean", "image_std") if values.get(key) is not None}
    size = values.get("size")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
    if values.get("do_center_crop", "crop_size" in values) and values.get("crop_size"):
        crop = values["crop_size"]
        result["size"] = crop
        result["resize_mode"] = "short_side_center_crop"
        longest = crop if isinstance(crop, int) else max(crop.values())
        if size.get("shortest_edge", longest) > longest:
            result["short_side"] = size["shortest_edge"]
    elif {"height", "width"} <= set(size):
        result["size"] = {"height": size["height"], "width": size["width"]}
        result["resize_mode"] = "squash"
    elif "shortest_edge" in size:
        result["size"] = size["shortest_edge"]
    elif "max_num_patches" in values:  # SigLIP 2 keeps each image's aspect ratio; our clips have one size
        result["size"] = math.isqrt(values["max_num_patches"]) * values["patch_size"]
        result["resize_mode"] = "squash"
        result["resize_kernel"] = "antialias"
    if values.get("video_processor_type") == "PeVideoVideoProcessor":
        result["resize_kernel"] = "antialias"
    if values.get("resample") == PILImageResampling.BICUBIC:
        result["resize_kernel"] = "bicubic"
    # Our mean and deviation are for values between 0 and 1.
    factor = 255 * values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 255.0
    if not values.get("do_normalize", True):
        result |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if not math.isclose(factor, 1.0):
        for key, default in (("image_mean", IMAGENET_DEFAULT_MEAN), ("image_std", IMAGENET_DEFAULT_STD)):
            result[key] = [value / factor for value in result.get(key, default)]
    return result
