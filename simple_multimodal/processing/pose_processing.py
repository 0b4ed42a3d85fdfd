"""Turn the points of a pose, or features of its frames, into the numbers per frame that the pose encoder reads."""

import inspect
import json
import math
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_features import FeatureHeader, FrameFeatures
from simple_multimodal.media.pose import MAX_RATE, MIN_RATE, Pose, PoseHeader, are_finite
from simple_multimodal.processing.batch_memory import batch_tensor
from simple_multimodal.processing.pose_layouts import select_points

PosePoints = Literal["reduced", "all"]
PoseDepth = Literal["as_is", "scaled", "drop"]

MAX_UPSAMPLING = 16  # frames per frame of a file; its rate must be wrong if more are needed
FACTOR_RANGE = 0.5, 2.0  # of a random scale or rate, which must neither mirror nor stop


class PoseSequence(NamedTuple):
    """The processed frames of one pose.

    Args:
        values (`torch.FloatTensor` of shape `(num_frames, num_features)`):
            Normalised coordinates, or features; 0 where a point is missing.
        seconds (`torch.FloatTensor` of shape `(num_frames,)`):
            Time of each frame from the start of the segment, in seconds.
    """

    values: torch.Tensor
    seconds: torch.Tensor


class PoseProcessor:
    """Processor that normalises the points of a person by the shoulders, and puts those of each frame into a row.

    The default values are those of multimodalhugs with pose-format
    ([code](https://github.com/GerrySant/multimodalhugs)): the legs count as missing, MediaPipe Holistic is reduced to
    178 points, the mean of the shoulders' middle over the segment becomes the origin and the mean distance between
    the shoulders the unit, and missing points are 0. A segment is cut before it is normalised, so a frame has other
    values in another segment. Files of features are used as they are, without normalisation.

    Augmentation, in training, transforms all frames of a segment alike, as pose-format's `augment2d` does; it never
    mirrors, which would exchange the hands.

    Args:
        num_features (`int`, *optional*, defaults to 534):
            Numbers per frame, the input size of the tower: points times coordinates, or the size of features. Files
            with another number are refused.
        points (`str`, *optional*, defaults to `"reduced"`):
            Points to use of MediaPipe Holistic: `"reduced"`, hands, arms, hips and the outlines of the face (178), or
            `"all"`. All points of other estimators are used.
        depth (`str`, *optional*, defaults to `"as_is"`):
            Third coordinate: `"as_is"`, in the unit of the estimator, beside pixels; `"scaled"`, multiplied by the
            width of the frame, which is MediaPipe's unit, so that it is about as large as the others; or `"drop"`.
        person (`int`, *optional*, defaults to 0):
            Which person of a file to use, counted from 0.
        target_rate (`float`, *optional*):
            Rate to which frames are resampled, in frames per second, by linear interpolation in time; by default the
            file's rate is kept. A point that is missing in one of two neighbouring frames is taken from the nearer
            one, and is missing if it is missing there.
        frame_stride (`int`, *optional*, defaults to 1):
            Keep every so many-th frame.
        max_frames (`int`, *optional*):
            Maximum number of frames; longer rows are refused, never cut. By default there is no limit.
        features_rate (`float`, *optional*, defaults to 25.0):
            Frames per second of files of features, which do not contain it.
        rotation_std (`float`, *optional*, defaults to 0.0):
            Augmentation: standard deviation of a rotation around the origin, in radians.
        shear_std (`float`, *optional*, defaults to 0.0):
            Augmentation: standard deviation of a shear of x along y.
        scale_std (`float`, *optional*, defaults to 0.0):
            Augmentation: standard deviation of a scale of y, around 1 and within 0.5 to 2.
        rate_std (`float`, *optional*, defaults to 0.0):
            Augmentation: standard deviation of the speed, around 1 and within 0.5 to 2; frames are resampled. A row is
            not slowed down beyond `max_frames`.
        frame_dropout (`float`, *optional*, defaults to 0.0):
            Augmentation: largest share of frames that is left out; a random share up to it of random frames. The
            others keep their times.

    Example:

    ```python
    >>> processor = PoseProcessor(depth="scaled", target_rate=25.0)
    >>> batch = processor([read_pose("clip.pose", start_seconds=1.0, end_seconds=3.0), None])
    >>> {key: tuple(value.shape) for key, value in batch.items()}
    {'pose_values': (2, 50, 534), 'pose_attention_mask': (2, 50), 'pose_seconds': (2, 50), 'pose_mask': (2,)}
    ```
    """

    model_input_names = ["pose_values", "pose_attention_mask", "pose_seconds", "pose_mask"]

    def __init__(
        self,
        *,
        num_features: int = 534,
        points: PosePoints = "reduced",
        depth: PoseDepth = "as_is",
        person: int = 0,
        target_rate: float | None = None,
        frame_stride: int = 1,
        max_frames: int | None = None,
        features_rate: float = 25.0,
        rotation_std: float = 0.0,
        shear_std: float = 0.0,
        scale_std: float = 0.0,
        rate_std: float = 0.0,
        frame_dropout: float = 0.0,
    ):
        for name, value, known in (("points", points, PosePoints), ("depth", depth, PoseDepth)):
            if value not in get_args(known):
                raise InputError(f"Unknown `{name}` {value!r}; known are {', '.join(get_args(known))}.")
        if num_features < 1 or frame_stride < 1 or (max_frames is not None and max_frames < 1):
            raise InputError(
                "`num_features`, `frame_stride` and `max_frames` must be 1 or more, got "
                f"{num_features}, {frame_stride} and {max_frames}."
            )
        if person < 0:
            raise InputError(f"`person` must be 0 or more, got {person}; the first person is 0.")
        for name, rate in (("target_rate", target_rate), ("features_rate", features_rate)):
            if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
                raise InputError(
                    f"`{name}` must be {MIN_RATE:g} to {MAX_RATE:g} frames per second, got {rate!r}; 25 is common."
                )
        deviations = rotation_std, shear_std, scale_std, rate_std
        if not all(0 <= deviation < math.inf for deviation in deviations) or not 0 <= frame_dropout < 1:
            raise InputError(
                "`rotation_std`, `shear_std`, `scale_std` and `rate_std` must be 0 or more, and `frame_dropout` at "
                f"least 0 and less than 1, got {', '.join(map(str, deviations))} and {frame_dropout}."
            )
        self.num_features = num_features
        self.points = points
        self.depth = depth
        self.person = person
        self.target_rate = target_rate
        self.frame_stride = frame_stride
        self.max_frames = max_frames
        self.features_rate = features_rate
        self.rotation_std = rotation_std
        self.shear_std = shear_std
        self.scale_std = scale_std
        self.rate_std = rate_std
        self.frame_dropout = frame_dropout

    @property
    def input_size(self) -> tuple[int]:
        """Numbers per frame: the input size of the tower."""
        return (self.num_features,)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments from which an equal processor can be built."""
        return dict(vars(self))

    def to_json_string(self) -> str:
        """Return [`PoseProcessor.to_dict`] as JSON, like the other parts of a processor."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any], **kwargs: Any) -> "PoseProcessor":
        """Build from the result of [`PoseProcessor.to_dict`]; keyword arguments replace values."""
        return cls(**{**values, **kwargs})

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **kwargs: Any) -> "PoseProcessor":
        """Load from `processor_config.json` of a saved processor with this part.

        Args:
            name_or_path (`str` or `os.PathLike`):
                Folder of the processor, or its name on the hub.
            kwargs:
                Arguments that replace saved ones; others are passed on to the loading function.
        """
        own = {name: kwargs.pop(name) for name in inspect.signature(cls.__init__).parameters if name in kwargs}
        values = ProcessorMixin.get_processor_dict(name_or_path, **kwargs)[0].get("pose_processor")
        if values is None:
            raise InputError(f"The processor in {str(name_or_path)!r} does not read poses; build a PoseProcessor.")
        return cls.from_dict(values, **own)

    def count_features(self, header: PoseHeader | FeatureHeader) -> int:
        """Return how many numbers per frame a file gives, from its header alone.

        Raises:
            MediaError: If the estimator is unknown, see [`select_points`].
        """
        if isinstance(header, FeatureHeader):
            return header.size
        num_dims = 2 if self.depth == "drop" else header.num_dims
        return num_dims * len(select_points(header, reduced=self.points == "reduced").points)

    def check_features(self, header: PoseHeader | FeatureHeader) -> None:
        """Raise a [`MediaError`] if a file does not give `num_features` numbers per frame, from its header alone."""
        found = self.count_features(header)
        if found != self.num_features:
            raise MediaError(
                f"{header.path!r}: has {found} numbers per frame, but {self.num_features} are expected; set "
                f"`num_features` (`pose_features`) to {found}, or give poses of the same estimator, `points` and "
                "`depth`"
            )

    def extract(self, pose: Pose | FrameFeatures, generator: np.random.Generator | None = None) -> PoseSequence:
        """Process the frames of one segment.

        Args:
            pose ([`Pose`] or [`FrameFeatures`]):
                Segment of a file.
            generator (`np.random.Generator`, *optional*):
                Generator of the sample, in training: draws the augmentation, if any.

        Returns:
            [`PoseSequence`].

        Raises:
            MediaError: If the file does not fit: no frame has both shoulders, the estimator is unknown, the person is
                not in it, a frame has another number of features, the rate is too low to be resampled, or there are
                more than `max_frames` frames.
        """
        path, rate = pose.header.path, pose.header.rate
        self.check_features(pose.header)
        # All are drawn whatever is on, so that turning one on does not change the others.
        shear, rotation, scale, speed = (0.0,) * 4 if generator is None else generator.normal(size=4)
        if isinstance(pose, Pose):
            matrix = self._matrix(shear, rotation, scale)
            values, is_missing, num_dims = self._normalised(pose, matrix)
        else:
            values, is_missing, num_dims = pose.values, None, 1
        target_rate = self.target_rate or rate
        if target_rate > MAX_UPSAMPLING * rate:
            raise MediaError(
                f"{path!r}: has {rate:g} frames per second, which cannot be resampled to `target_rate` (`pose_rate`), "
                f"{target_rate:g}; at most {MAX_UPSAMPLING} times its rate is possible"
            )
        step = rate / target_rate  # frames of the file per frame of the result
        self._check_length(path, _num_resampled(len(values), step))
        if generator is not None and self.rate_std > 0:
            step *= float(np.clip(1 + speed * self.rate_std, *FACTOR_RANGE))
            if self.max_frames is not None:
                step = max(step, len(values) / (self.max_frames * self.frame_stride))
        if step != 1:
            values = _resampled(values, is_missing, num_dims, step)
        chosen = np.arange(0, len(values), self.frame_stride)
        if generator is not None and self.frame_dropout > 0:
            num_kept = max(math.ceil(len(chosen) * (1 - generator.uniform(0, self.frame_dropout))), 1)
            chosen = chosen[np.sort(generator.permutation(len(chosen))[:num_kept])]
        if len(chosen) < len(values):
            values = values[chosen]
        seconds = np.maximum(chosen / target_rate + pose.offset_seconds, 0.0).astype(np.float32)
        return PoseSequence(torch.from_numpy(values), torch.from_numpy(seconds))

    def _check_length(self, path: str, num_frames: int) -> None:
        """Check the number of frames before `frame_stride` and augmentation."""
        num_frames = math.ceil(num_frames / self.frame_stride)
        if self.max_frames is not None and num_frames > self.max_frames:
            raise MediaError(
                f"{path!r}: has {num_frames} frames, more than `max_frames` (`max_pose_frames`), {self.max_frames}; "
                "raise it, or divide the row by `start_seconds` and `end_seconds`"
            )

    def _matrix(self, shear: float, rotation: float, scale: float) -> np.ndarray | None:
        """Return the matrix of shape `(2, 2)` by which x and y are multiplied, from the right; `None` if it is one."""
        if not any((shear * self.shear_std, rotation * self.rotation_std, scale * self.scale_std)):
            return None
        sine, cosine = math.sin(rotation * self.rotation_std), math.cos(rotation * self.rotation_std)
        matrix = np.array([[1.0, shear * self.shear_std], [0.0, 1.0]]) @ [[cosine, -sine], [sine, cosine]]
        matrix[:, 1] *= np.clip(1 + scale * self.scale_std, *FACTOR_RANGE)
        return matrix.astype(np.float32)

    def _normalised(self, pose: Pose, matrix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the normalised coordinates, of shape `(num_frames, num_points * num_dims)`; which points are missing,
        of shape `(num_frames, num_points)`; and the number of coordinates of a point."""
        header = pose.header
        if self.person >= header.num_people:
            raise MediaError(
                f"{header.path!r}: has {header.num_people} people, but `person` (`pose_person`) is {self.person}, "
                "counted from 0"
            )
        selection = select_points(header, reduced=self.points == "reduced")
        num_dims = 2 if self.depth == "drop" else header.num_dims
        data, confidence = pose.data[:, self.person, :, :num_dims], pose.confidence[:, self.person]
        shoulders = data[:, selection.shoulders]
        shoulders = shoulders[(confidence[:, selection.shoulders] != 0).all(axis=1)].astype(np.float64)
        values = data.take(selection.points, axis=1)  # (num_frames, num_points, num_dims)
        if self.depth == "scaled" and num_dims == 3:
            if header.width == 0:
                raise MediaError(
                    f"{header.path!r}: has no width, by which `depth` (`pose_depth`) 'scaled' multiplies; use 'as_is' "
                    "or 'drop'"
                )
            shoulders[..., 2] *= header.width
            values[..., 2] *= np.where(selection.in_metres, 1, header.width).astype(np.float32)
        if len(shoulders) == 0:
            raise MediaError(
                f"{header.path!r}: no frame of the segment has both shoulders, by which poses are normalised; leave "
                "the row out, or estimate its poses again"
            )
        distance = np.sqrt(np.square(shoulders[:, 0] - shoulders[:, 1]).sum(axis=1)).mean()
        if not 0 < distance < math.inf:
            raise MediaError(f"{header.path!r}: its shoulders are {distance:g} apart; estimate its poses again")
        rows = values.reshape(len(values), -1)  # the same memory; numpy is slow where the last axis is short
        with np.errstate(over="ignore", invalid="ignore"):  # of points that are missing, or found below
            rows -= np.tile(shoulders.mean(axis=(0, 1)).astype(np.float32), len(selection.points))
            rows *= np.float32(1 / distance)
            if matrix is not None:
                values[..., :2] = values[..., :2] @ matrix
        is_missing = (confidence.take(selection.points, axis=1) == 0) | selection.hidden
        values.reshape(-1, num_dims)[np.flatnonzero(is_missing)] = 0
        if not are_finite(rows):
            raise MediaError(f"{header.path!r}: has points too far away to be normalised; estimate its poses again")
        return rows, is_missing, num_dims

    def collate(self, poses: Sequence[PoseSequence | None]) -> dict[str, torch.Tensor]:
        """Stack the poses of a batch, padded with zeros to the longest.

        Args:
            poses (`Sequence[PoseSequence | None]`):
                One entry per row; `None` for a row without a pose.

        Returns:
            `dict[str, torch.Tensor]`: `pose_values` of shape `(batch_size, num_frames, num_features)`,
            `pose_attention_mask` (`bool`) and `pose_seconds` of shape `(batch_size, num_frames)`, `pose_mask` (`bool`)
            of shape `(batch_size,)`. The entries of padding, and of a row without a pose, are zeros and `False`.
        """
        num_frames = max((len(pose.values) for pose in poses if pose is not None), default=1)
        batch = {
            "pose_values": batch_tensor(len(poses), num_frames, self.num_features, dtype=torch.float32).zero_(),
            "pose_attention_mask": torch.zeros(len(poses), num_frames, dtype=torch.bool),
            "pose_seconds": torch.zeros(len(poses), num_frames),
            "pose_mask": torch.tensor([pose is not None for pose in poses], dtype=torch.bool),
        }
        for row, pose in enumerate(poses):
            if pose is not None:
                batch["pose_values"][row, : len(pose.values)] = pose.values
                batch["pose_attention_mask"][row, : len(pose.values)] = True
                batch["pose_seconds"][row, : len(pose.values)] = pose.seconds
        return batch

    def __call__(self, poses: Pose | FrameFeatures | Sequence[Pose | FrameFeatures | None]) -> BatchFeature:
        """Process one or several poses.

        Args:
            poses ([`Pose`], [`FrameFeatures`] or `Sequence`):
                Segments of files; in a sequence, `None` stands for a row without a pose.

        Returns:
            [`BatchFeature`] with the entries of [`PoseProcessor.collate`].
        """
        batch = [poses] if isinstance(poses, (Pose, FrameFeatures)) else list(poses)
        return BatchFeature(self.collate([None if pose is None else self.extract(pose) for pose in batch]))


def _num_resampled(num_frames: int, step: float) -> int:
    """Return how many frames of the result begin in `num_frames` frames of the input."""
    return math.ceil(num_frames / step - 1e-9)  # rounding must not add a frame


def _resampled(values: np.ndarray, is_missing: np.ndarray | None, num_dims: int, step: float) -> np.ndarray:
    """
    Resample frames by linear interpolation.

    Args:
        values (`np.ndarray` of shape `(num_frames, num_points * num_dims)`): Values, `float32`; 0 in missing points.
        is_missing (`np.ndarray` of shape `(num_frames, num_points)`, *optional*): Points that are missing, `bool`.
        num_dims (`int`): Number of values of a point.
        step (`float`): Distance between frames of the result, in frames of the input.

    Returns:
        `np.ndarray` of shape `(ceil(num_frames / step), num_points * num_dims)`: Values, `float32`.
    """
    last = len(values) - 1  # on screen until the end
    positions = np.minimum(np.arange(_num_resampled(len(values), step)) * step, last)
    before = positions.astype(np.intp)
    after = np.minimum(before + 1, last)
    shares = (positions - before).astype(np.float32)[:, None]  # of the frame after
    result = values[before] * (1 - shares) + values[after] * shares
    if is_missing is not None:
        nearest = np.where(shares[:, 0] < 0.5, before, after)
        is_single = np.repeat(is_missing[before] | is_missing[after], num_dims, axis=1)
        result[is_single] = values[nearest][is_single]
    return result
