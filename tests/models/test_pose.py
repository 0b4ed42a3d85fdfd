"""The pose tower: its checkpoints, frames without layers, rows without a pose, and models that have none."""

import json

import pytest
import torch
from transformers import AutoConfig

from simple_multimodal.media.pose import read_pose_header
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.fusion.crossformer import Crossformer
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.models.pose.pose import PoseConfig, PoseEncoder, PoseModel
from simple_multimodal.models.times import time_embedding
from simple_multimodal.processing import PoseProcessor
from simple_multimodal.processing.pose_layouts import select_points
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.media.pose_files import HOLISTIC, write_pose
from tests.models.tiny import SIZES, fusion_config, make_batch, tiny_config

NUM_FEATURES = 6


def pose_config(**changes) -> PoseConfig:
    return PoseConfig(num_features=NUM_FEATURES, **(SIZES | {"initializer_range": 0.5} | changes))


def frames(num_rows: int = 3, num_frames: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows of different lengths; the last one has no pose."""
    lengths = torch.tensor([num_frames - 3 * row for row in range(num_rows - 1)] + [0])
    mask = torch.arange(num_frames) < lengths[:, None]
    values = torch.randn(num_rows, num_frames, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    return values * mask[..., None], mask, torch.arange(num_frames) * 0.04 * mask


def tower(**changes) -> PoseEncoder:
    torch.manual_seed(0)
    return PoseEncoder(pose_config(**changes)).eval()


@torch.no_grad()
def test_a_saved_tower_is_a_checkpoint_for_a_new_model(tmp_path):
    """Also one whose class has no adapter, as another program would save it."""
    saved = tower()
    saved.save_pretrained(tmp_path / "encoder")
    stock = PoseModel(pose_config())
    stock.save_pretrained(tmp_path / "stock")
    for folder, source in (("encoder", saved), ("stock", stock)):
        assert isinstance(AutoConfig.from_pretrained(tmp_path / folder), PoseConfig)
        config = load_tower_config(str(tmp_path / folder), "pose")
        torch.manual_seed(1)
        loaded = PoseEncoder(config)
        report = load_pretrained_tower(loaded, None, str(tmp_path / folder))
        assert report.new == report.converted == [] or (report.new == [] and report.converted == {})
        assert report.unused == {}
        for name, tensor in source.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])


@torch.no_grad()
def test_without_layers_frames_are_projected_and_normalised():
    encoder, (values, mask, seconds) = tower(num_hidden_layers=0), frames()
    output = encoder(values, mask, seconds)
    expected = encoder.norm(encoder.projection(values) + time_embedding(seconds, SIZES["hidden_size"]))
    assert torch.equal(output.tokens, expected) and output.mask.equal(mask) and output.seconds.equal(seconds)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"projection", "norm"}


@torch.no_grad()
def test_attention_implementations_agree_and_rows_without_frames_are_finite():
    inputs, eager, sdpa = frames(), tower(attn_implementation="eager"), tower(attn_implementation="sdpa")
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    first, second = eager(*inputs), sdpa(*inputs)
    torch.testing.assert_close(first.tokens[inputs[1]], second.tokens[inputs[1]], rtol=1e-5, atol=1e-5)
    assert first.tokens.isfinite().all() and second.tokens.isfinite().all()


def test_the_times_of_frames_matter_and_are_not_limited():
    encoder, (values, mask, seconds) = tower(), frames()
    with torch.no_grad():
        output, later = encoder(values, mask, seconds), encoder(values, mask, seconds + 1000.0)
    assert later.tokens.isfinite().all() and not torch.allclose(output.tokens[mask], later.tokens[mask], atol=1e-2)


def test_frames_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"have 9 numbers per frame, but the pose tower takes 6.*\(`pose_features`\)"):
        tower()(torch.zeros(1, 2, 9), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="`hidden_size` of the pose tower is 15; give an even number"):
        PoseEncoder(pose_config(hidden_size=15, num_attention_heads=1))
    assert PoseEncoder.fit_config(pose_config(), 9).num_features == 9


def test_the_default_width_is_that_of_reduced_mediapipe_holistic(tmp_path):
    header = read_pose_header(write_pose(tmp_path / "a.pose", components=HOLISTIC))
    assert PoseConfig().num_features == PoseProcessor().num_features == 534
    assert PoseProcessor().count_features(header) == 3 * len(select_points(header, reduced=True).points)
    assert PoseProcessor(depth="drop").count_features(header) == 2 * len(select_points(header, reduced=True).points)


@pytest.mark.parametrize("form", ["merge", "co_attention", "cross_attention"])
def test_only_models_with_poses_have_an_embedding_for_them(form):
    """The row of a further modality follows those that every model has."""
    sizes = {"text": 8, "video": 8}
    torch.manual_seed(0)
    without = Crossformer(fusion_config("vit"), form=form, token_sizes=sizes)
    assert without.embedded_modalities == ("text", "audio", "video")
    assert without.modality_embeddings.weight.shape == (3, 24)
    both = Crossformer(fusion_config("vit"), form=form, token_sizes={**sizes, "sensors": 8, "pose": 8})
    assert both.embedded_modalities == ("text", "audio", "video", "pose", "sensors")


def test_a_checkpoint_from_before_poses_loads_unchanged(tmp_path):
    """Its configuration has no entry for a pose tower, and its fusion has three embeddings."""
    torch.manual_seed(0)
    model = MultimodalForPreTraining(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values.pop("pose_config", None)
    path.write_text(json.dumps(values))
    again, info = MultimodalForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert again.config.modalities == ("text", "audio", "video") and again.config.pose_config is None
    assert not [name for name in again.state_dict() if "pose" in name]
    batch = make_batch()
    with torch.no_grad():
        for name, tensor in again.multimodal(**batch).items():
            assert torch.equal(tensor, model.multimodal(**batch)[name])


def test_a_pose_tower_leaves_the_other_towers_their_initial_weights():
    """Towers are built in the order of modalities, so that the draws of those before the pose tower are the same."""

    def make(**towers):
        torch.manual_seed(0)
        return MultimodalForPreTraining(tiny_config(**towers)).multimodal

    without, model = make(), make(pose_config=pose_config())
    assert isinstance(model.config, MultimodalConfig) and model.config.modalities[-1] == "pose"
    for name in ("text", "audio", "video"):
        own = model.encoder(name).state_dict()
        assert all(torch.equal(tensor, own[key]) for key, tensor in without.encoder(name).state_dict().items())
