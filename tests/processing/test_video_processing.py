"""Tests of the video processor."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoVideoProcessor

from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.processing import VideoClipProcessor


def frames(num_frames: int = 4, height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def fitted(processor: VideoClipProcessor, video: np.ndarray, seed: int | None = None) -> torch.Tensor:
    """Fit frames of shape `(num_frames, height, width, 3)`, in training mode if there is a seed."""
    fit = processor.fit(*video.shape[1:3], generator=None if seed is None else np.random.default_rng(seed))
    return processor.transform(np.ascontiguousarray(video.transpose(0, 3, 1, 2)), fit)


def index_of(num_frames: int, fps: float = 10.0) -> FrameIndex:
    return FrameIndex(num_frames, np.arange(num_frames) / fps, 60, 40, num_frames / fps)


@pytest.mark.parametrize("resize_mode", ["short_side_center_crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 48), (7, 5), (100, 3)])
def test_every_resize_mode_returns_the_size(resize_mode, shape):
    clip = fitted(VideoClipProcessor(size={"height": 32, "width": 48}, resize_mode=resize_mode), frames(2, *shape))
    assert clip.shape == (2, 3, 32, 48) and clip.dtype == torch.uint8 and clip.is_contiguous()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (33, 71), (32, 32), (21, 64)])
def test_the_default_resize_mode_equals_that_of_videomae(shape):
    from transformers import VideoMAEImageProcessor

    reference = VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False
    )
    video = frames(3, *shape)
    expected = reference(list(video), return_tensors="np")["pixel_values"][0]  # (3, 3, 32, 32)
    clip = fitted(VideoClipProcessor(size=32), video).numpy()
    # Both resize bytes with antialiasing; memory layouts may round one level apart.
    assert np.abs(clip.astype(int) - expected.astype(int)).max() <= 1


def test_the_crop_keeps_the_centre():
    video = np.zeros((1, 32, 64, 3), dtype=np.uint8)
    video[:, :, 16:48] = 255
    assert bool((fitted(VideoClipProcessor(size=32), video) == 255).all())


def test_short_side_scales_before_the_crop():
    video = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    video[:, 16:48, 16:48] = 255
    assert bool((fitted(VideoClipProcessor(size=32, short_side=64), video) == 255).all())
    assert not bool((fitted(VideoClipProcessor(size=32), video) == 255).all())


def test_pad_adds_black_on_both_sides_without_cropping():
    clip = fitted(VideoClipProcessor(size=32, resize_mode="pad"), np.full((1, 10, 20, 3), 200, dtype=np.uint8))
    rows = (clip[0, 0] == 200).all(dim=1)
    assert rows.tolist() == [False] * 8 + [True] * 16 + [False] * 8
    assert not clip[0, :, ~rows].any()


def test_squash_keeps_the_whole_frame():
    video = np.zeros((1, 10, 40, 3), dtype=np.uint8)
    video[:, :, 20:] = 255
    clip = fitted(VideoClipProcessor(size=16, resize_mode="squash"), video)
    assert bool((clip[..., :6] == 0).all()) and bool((clip[..., 10:] == 255).all())


def test_training_crop_and_flip_are_the_same_for_all_frames_of_a_clip():
    video = np.repeat(frames(1), 5, axis=0)  # one image five times
    processor = VideoClipProcessor(size=16, random_crop=True, random_flip=True)
    clips = [fitted(processor, video, seed) for seed in range(8)]
    for clip in clips:
        assert all(torch.equal(clip[0], frame) for frame in clip[1:])
    assert len({clip.numpy().tobytes() for clip in clips}) > 4
    again = fitted(processor, video, 3)
    assert torch.equal(again, clips[3])


def test_half_of_the_clips_are_flipped():
    video = frames(2, 16, 16)
    processor = VideoClipProcessor(size=16, random_flip=True)
    plain = fitted(processor, video)
    flipped = 0
    for seed in range(100):
        clip = fitted(processor, video, seed)
        is_flipped = torch.equal(clip, plain.flip(-1))
        assert is_flipped or torch.equal(clip, plain)
        flipped += is_flipped
    assert 30 < flipped < 70


def test_augmentation_is_off_by_default():
    video = frames(2)
    processor = VideoClipProcessor(size=16)
    assert torch.equal(fitted(processor, video, 0), fitted(processor, video))


def test_the_random_crop_of_an_extreme_shape_falls_back_to_the_centre():
    processor = VideoClipProcessor(size=16, random_crop=True, random_crop_scale=(1.0, 1.0))
    assert fitted(processor, frames(1, 4, 400), 0).shape == (1, 3, 16, 16)


def test_sampling_uses_the_training_strategy_with_a_generator_only():
    processor = VideoClipProcessor(num_frames=4)
    assert processor.sample(index_of(8)) == [1, 3, 5, 7]
    samples = {tuple(processor.sample(index_of(8), generator=np.random.default_rng(seed))) for seed in range(20)}
    assert len(samples) > 5
    dense = VideoClipProcessor(num_frames=3, frame_sampling="dense", train_frame_sampling="dense", frame_stride=2)
    assert np.diff(dense.sample(index_of(50))).tolist() == [2, 2]
    starts = {dense.sample(index_of(50), generator=np.random.default_rng(seed))[0] for seed in range(20)}
    assert len(starts) > 5
    alpro = VideoClipProcessor(num_frames=4, frame_sampling="alpro")
    assert alpro.sample(index_of(50)) == [0, 12, 24, 36]


@pytest.mark.parametrize("num_frames", [1, 3, 64])
def test_clips_of_any_length_are_sampled(num_frames):
    processor = VideoClipProcessor(num_frames=16, size=8)
    for generator in (None, np.random.default_rng(0)):
        positions = processor.sample(index_of(num_frames), generator=generator)
        assert len(positions) == 16 and sorted(positions) == positions and positions[-1] < num_frames


def test_a_call_processes_frames_in_memory():
    processor = VideoClipProcessor(num_frames=4, size=16)
    video = frames(8)
    single = processor(video, video_fps=10.0)
    assert single["pixel_values_videos"].shape == (1, 4, 3, 16, 16)
    torch.testing.assert_close(single["video_seconds"], torch.tensor([[0.1, 0.3, 0.5, 0.7]]))
    batch = processor([video, None, list(video[:4])], video_fps=[10.0, None, 2.0])
    assert batch["video_mask"].tolist() == [True, False, True]
    assert torch.equal(batch["pixel_values_videos"][0], single["pixel_values_videos"][0])
    assert not batch["pixel_values_videos"][1].any()
    torch.testing.assert_close(batch["video_seconds"][2], torch.tensor([0.0, 0.5, 1.0, 1.5]))
    channels_first = processor(torch.from_numpy(video).permute(0, 3, 1, 2), video_fps=10.0)
    assert torch.equal(channels_first["pixel_values_videos"], single["pixel_values_videos"])
    with pytest.raises(ValueError, match="uint8 of shape"):
        processor(video.astype(np.float32), video_fps=10.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize_kernel": "lanczos"}, "fast, antialias, bicubic, decord"),
        ({"resize_mode": "stretch"}, "short_side_center_crop, squash, pad"),
        ({"frame_sampling": "jittered"}, "uniform, dense or alpro"),
        ({"frame_sampling": "all"}, "uniform, dense or alpro"),
        ({"train_frame_sampling": "all"}, "uniform, jittered, dense, alpro"),
        ({"size": {"shortest_edge": 3}}, "height"),
        ({"size": 224, "short_side": 200}, "less than the crop"),
        ({"random_crop_scale": (0.9, 0.1)}, "low <= high"),
        ({"num_frames": 0}, "1 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoClipProcessor(**arguments)


def test_save_and_load(tmp_path):
    processor = VideoClipProcessor(num_frames=8, size={"height": 16, "width": 24}, resize_mode="pad", random_flip=True)
    processor.save_pretrained(tmp_path)
    for loaded in (VideoClipProcessor.from_pretrained(tmp_path), AutoVideoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, VideoClipProcessor)
        assert loaded.to_dict() == processor.to_dict()
    assert VideoClipProcessor.from_pretrained(tmp_path, num_frames=4).num_frames == 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
            ({"height": 224, "width": 224}, "short_side_center_crop", None),
        ),
        ({"size": 224, "crop_size": 224}, ({"height": 224, "width": 224}, "short_side_center_crop", None)),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            ({"height": 224, "width": 224}, "short_side_center_crop", 256),
        ),
        (
            {"size": {"height": 64, "width": 96}, "do_center_crop": False},
            ({"height": 64, "width": 96}, "squash", None),
        ),
    ],
)
def test_the_configuration_of_videomae_is_read(tmp_path, config, expected):
    config |= {"image_processor_type": "VideoMAEImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    loaded = VideoClipProcessor.from_pretrained(tmp_path, num_frames=4)
    assert (loaded.size, loaded.resize_mode, loaded.short_side) == expected
    assert (loaded.image_mean, loaded.image_std, loaded.num_frames) == ([0.5, 0.4, 0.3], [1, 2, 3], 4)
