"""Views of a clip: which frames and which part of the frame each shows, and how their predictions are combined."""

import numpy as np
import pytest
import torch

import simple_multimodal as smm
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.video_classification.views import Views, each_view, pool_views, with_views
from tests.closeness import assert_close
from tests.media.media_files import HEIGHT, WIDTH, write_media


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """Sixteen different frames, wider than high."""
    path = tmp_path_factory.mktemp("views") / "clip.mp4"
    write_media(path, num_frames=16)
    return str(path)


@pytest.fixture(scope="module")
def collator() -> smm.MultimodalCollator:
    processor = MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=4, size=16))
    return smm.MultimodalCollator(processor)


def pixels_of(collator, video: str, **settings) -> torch.Tensor:
    processor = VideoClipProcessor(**{"num_frames": 4, "size": 16, **settings})
    single = smm.MultimodalCollator(MultimodalProcessor(video_processor=processor))
    return single(list(RowDataset([{"video": video}], modalities=["video"])))["pixel_values_videos"][0]


def test_views_interleave_the_frames_of_a_longer_clip(collator, video):
    views = Views(views=3)
    batch = with_views(collator, views)(list(RowDataset([{"video": video}], modalities=["video"])))
    longer = pixels_of(collator, video, num_frames=12)
    found = list(each_view(batch, views))
    assert len(found) == 3
    for number, view in enumerate(found):
        assert torch.equal(view["pixel_values_videos"][0], longer[number::3])
        assert view["video_seconds"].shape == (1, 4)
    seconds = torch.cat([view["video_seconds"] for view in found]).T.flatten()
    assert (seconds.diff() > 0).all()


def test_crops_are_spread_along_the_longer_side(collator, video):
    views = Views(views=2, crops=3)
    batch = with_views(collator, views)(list(RowDataset([{"video": video}], modalities=["video"])))
    found = [view["pixel_values_videos"][0] for view in each_view(batch, views)]
    assert len(found) == 6
    width = 16 * WIDTH // HEIGHT
    whole = pixels_of(collator, video, num_frames=8, size={"height": 16, "width": width}, resize_mode="squash")
    lefts = (0, round((width - 16) / 2), width - 16)
    assert len(set(lefts)) == 3
    for number, view in enumerate(found):
        crop, first = divmod(number, 2)
        assert torch.equal(view, whole[first::2, :, :, lefts[crop] : lefts[crop] + 16])
    centre = pixels_of(collator, video, num_frames=8)
    assert torch.equal(found[2], centre[::2])


def test_a_single_view_is_the_plain_batch(collator, video):
    batch = collator(list(RowDataset([{"video": video}], modalities=["video"])))
    (view,) = each_view(batch, Views())
    assert view is batch and Views().name is None and Views(10, 3, "max").name == "views10x3max"


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_probabilities_are_pooled(many, pooling):
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    probabilities = logits.sigmoid() if many else logits.softmax(dim=-1)
    expected = probabilities.mean(dim=0) if pooling == "mean" else probabilities.amax(dim=0)
    pooled = pool_views(logits, Views(5, 1, pooling), many=many)
    found = pooled.sigmoid() if many else pooled.softmax(dim=-1)
    assert_close(found, expected if many else expected / expected.sum(dim=-1, keepdim=True))
    assert np.array_equal(found.argsort(dim=0), expected.argsort(dim=0)) or not many
    extreme = pool_views(torch.tensor([[[200.0]], [[-200.0]]]), Views(2, 1, pooling), many=True)
    assert extreme.isfinite().all()


def test_wrong_views_are_refused(collator, video):
    rows = list(RowDataset([{"video": video}], modalities=["video"]))
    with pytest.raises(ValueError, match="has only 16 frames, fewer than the 20 of 5 views. Lower eval_views"):
        with_views(collator, Views(views=5))(rows)
    assert len(with_views(collator, Views(views=4))(rows)["pixel_values_videos"][0]) == 16  # exactly
    with pytest.raises(ValueError, match="`eval_views` and `eval_crops` must be 1 or more, got 0 and 1"):
        Views(0).check()
    with pytest.raises(ValueError, match="`view_pooling` must be mean or max, got 'min'"):
        Views(2, 1, "min").check()  # type: ignore[arg-type]
    without = smm.MultimodalCollator(MultimodalProcessor(feature_extractor=AudioFeatureExtractor()))
    dropped = smm.MultimodalCollator(collator.processor, drop_modalities=["video"])
    for other in (without, dropped):
        with pytest.raises(ValueError, match="this model has no frames"):
            with_views(other, Views(2))
