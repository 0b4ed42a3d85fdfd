"""Pretrained weights are loaded, converted by rule, or named in the report."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DebertaV2ForMaskedLM,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    ViTMAEForPreTraining,
)

from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import (
    LoadingReport,
    fold_names,
    load_pretrained_tower,
    load_tower_config,
    transfer_tensors,
)
from simple_multimodal.models.patches import interpolate_grid, sinusoidal_grid, sinusoidal_sequence

from .test_encoders import audio_config, build_pair, randomize, text_config, video_config


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def save(model, folder) -> str:
    randomize(model).save_pretrained(folder)
    return str(folder)


def test_transfer_copies_converts_and_names_the_rest():
    target = nn.Linear(3, 2)
    source = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(5), "other": torch.ones(1)}
    report = transfer_tensors("here", source, target, rename=lambda name: name.removeprefix("a."))
    assert target.weight.tolist() == [[1.0] * 3] * 2
    assert report == LoadingReport(
        "here",
        loaded=["weight"],
        new=["bias"],
        unused={"a.bias": "has shape (5,), here (2,)", "other": "no such tensor in this model"},
    )
    assert report.summary().splitlines() == [
        "Weights from here: 1 tensors loaded, 0 converted, 1 new, 2 unused.",
        "  new: bias",
        "  unused: a.bias (has shape (5,), here (2,))",
        "  unused: other (no such tensor in this model)",
    ]


def test_names_are_folded_only_where_nothing_is_lost():
    names = [f"layer.{i}.{part}" for i in range(12) for part in ("weight", "bias")]
    assert fold_names([*names, "head"]) == ["layer.{0-11}.weight", "layer.{0-11}.bias", "head"]
    assert fold_names(["a.0.w", "a.2.w"]) == ["a.0.w", "a.2.w"]
    assert fold_names(["a.0.b.1.w", "a.0.b.2.w"]) == ["a.0.b.{1-2}.w"]


def test_vit_mae_for_images_becomes_one_for_audio(tmp_path):
    stock = ViTMAEForPreTraining(audio_config(image_size=16, num_channels=3))
    folder = save(stock, tmp_path)
    with torch.no_grad():  # pretrained checkpoints hold these tables; stock leaves them at zero
        stock.vit.embeddings.position_embeddings.copy_(sinusoidal_grid(4, 4, 16)[None])
        stock.decoder.decoder_pos_embed.copy_(sinusoidal_grid(4, 4, 12)[None])
    stock.save_pretrained(folder)
    source = stock.state_dict()

    config = load_tower_config(folder, "audio")
    config = get_encoder_class("vit_mae", "audio").fit_config(config, num_mel_bins=8, num_frames=20)
    assert (config.num_channels, config.image_size) == (1, [8, 20])
    encoder, decoder = build_pair(config, "audio")
    report = load_pretrained_tower(encoder, decoder, folder)

    rule = "interpolated from 4x4 to 2x5 patches"
    assert report.converted == {
        "encoder.embeddings.position_embeddings": rule,
        "encoder.embeddings.patch_embeddings.projection.weight": "summed over 3 channels",
        "decoder.decoder_pos_embed": rule,
        "decoder.decoder_pred.weight": "averaged over 3 channels",
        "decoder.decoder_pred.bias": "averaged over 3 channels",
    }
    assert report.new == [] and report.unused == {}
    assert f"  converted: decoder.decoder_pos_embed ({rule})" in report.summary().splitlines()

    kernel = source["vit.embeddings.patch_embeddings.projection.weight"]
    own = encoder.embeddings.patch_embeddings
    torch.testing.assert_close(own.projection.weight, kernel[:, 0:1] + kernel[:, 1:2] + kernel[:, 2:3])
    grey = torch.randn(1, 1, 8, 20)  # as a grey image would have been embedded
    torch.testing.assert_close(
        own(grey)[0], nn.functional.conv2d(grey.expand(-1, 3, -1, -1), kernel, own.projection.bias, 4)[0].flatten(1).T
    )
    table = encoder.embeddings.position_embeddings[0]
    assert torch.equal(table[1:], interpolate_grid(sinusoidal_grid(4, 4, 16)[1:], (1, 4, 4), (1, 2, 5)))
    assert table[0].abs().sum() == 0
    prediction = source["decoder.decoder_pred.bias"].view(16, 3)  # (pixels of a patch, RGB)
    torch.testing.assert_close(decoder.decoder_pred.bias, prediction.mean(dim=1))


def test_old_tensor_names_of_vit_mae_are_understood(tmp_path):
    """Use the names that `facebook/vit-mae-base` has on the hub."""
    stock = ViTMAEForPreTraining(audio_config(image_size=16, num_channels=3))
    folder = save(stock, tmp_path)
    renames = {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    old = {}
    for name, tensor in stock.state_dict().items():
        for new_part, old_part in renames.items():
            name = name.replace(new_part, old_part)
        old[name] = tensor
    assert "vit.encoder.layer.0.attention.attention.query.weight" in old
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder, decoder = build_pair(audio_config(image_size=16, num_channels=3), "audio")
    report = load_pretrained_tower(encoder, decoder, folder)
    assert report.new == [] and report.unused == {} and report.converted == {}
    assert torch.equal(encoder.layers[1].mlp.fc2.weight, stock.vit.layers[1].mlp.fc2.weight)


def test_video_mae_tables_are_interpolated_from_the_checkpoints_own_grid(tmp_path):
    folder = save(VideoMAEForPreTraining(video_config()), tmp_path)  # 2 x 2 x 3 patches
    encoder_class = get_encoder_class("videomae", "video")
    config = encoder_class.fit_config(load_tower_config(folder, "video"), num_frames=8, height=12, width=12)
    encoder, decoder = build_pair(config, "video")
    report = load_pretrained_tower(encoder, decoder, folder)
    rule = "interpolated from 2x2x3 to 4x3x3 patches"
    assert report.converted == {
        "encoder.embeddings.position_embeddings": rule,
        "decoder.position_embeddings": rule,
    }
    assert report.new == [] and report.unused == {}
    expected = interpolate_grid(sinusoidal_sequence(12, 16), (2, 2, 3), (4, 3, 3))
    assert torch.equal(encoder.embeddings.position_embeddings[0], expected)


def test_video_mae_tables_of_another_grid_are_converted_even_with_as_many_patches(tmp_path):
    folder = save(VideoMAEForPreTraining(video_config(num_frames=4, image_size=[8, 12])), tmp_path)
    encoder, decoder = build_pair(video_config(num_frames=6, image_size=8), "video")  # 3 x 2 x 2: 12 patches, too
    report = load_pretrained_tower(encoder, decoder, folder)
    assert set(report.converted) == {"encoder.embeddings.position_embeddings", "decoder.position_embeddings"}


def test_fine_tuned_video_mae_has_no_decoder(tmp_path):
    folder = save(VideoMAEForVideoClassification(video_config(use_mean_pooling=True)), tmp_path)
    encoder, decoder = build_pair(video_config(use_mean_pooling=True), "video")
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    report = load_pretrained_tower(encoder, decoder, folder)
    table = "decoder.position_embeddings"
    assert set(report.new) == {f"decoder.{name}" for name in before} - {table} and table in report.loaded
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
    assert set(report.unused) == {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"}
    assert "  new: decoder.decoder_layers.{0-1}.layernorm_after.weight" in report.summary().splitlines()


def test_without_a_decoder_its_weights_are_named_unused(tmp_path):
    folder = save(VideoMAEForPreTraining(video_config()), tmp_path)
    encoder, _ = build_pair(video_config(), "video")
    report = load_pretrained_tower(encoder, None, folder)
    assert report.new == [] and "mask_token" in report.unused


def test_tensors_that_only_bert_has_are_named_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = save(BertForPreTraining(text_config("bert")), tmp_path)
    encoder, decoder = build_pair(text_config("bert"), "text")
    report = load_pretrained_tower(encoder, decoder, folder)
    assert report.new == []
    assert set(report.unused) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    assert "LOAD REPORT" not in caplog.text  # ours is the only summary


def test_bert_without_a_head_leaves_the_decoder_new(tmp_path):
    stock = BertModel(text_config("bert"))
    folder = save(stock, tmp_path)
    encoder, decoder = build_pair(text_config("bert"), "text")
    report = load_pretrained_tower(encoder, decoder, folder)
    assert set(report.new) == {f"decoder.{name}" for name in decoder.state_dict()}
    assert torch.equal(encoder.word_embeddings, stock.embeddings.word_embeddings.weight)


def test_another_vocabulary_is_never_copied_even_where_shapes_agree(tmp_path):
    folder = save(BertForMaskedLM(text_config("bert")), tmp_path)
    encoder, decoder = build_pair(text_config("bert"), "text")
    before = encoder.word_embeddings.clone()
    report = load_pretrained_tower(encoder, decoder, folder, same_vocabulary=False)
    assert report.new == ["encoder.embeddings.word_embeddings.weight", "decoder.bias"]
    reason = "belongs to another vocabulary"
    assert report.unused == {"bert.embeddings.word_embeddings.weight": reason, "cls.predictions.bias": reason}
    assert torch.equal(encoder.word_embeddings, before)


@pytest.mark.parametrize(("vocab_size", "new_rows"), [(36, 0), (43, 3)])
def test_rows_of_one_vocabulary_survive_another_padding(tmp_path, vocab_size, new_rows):
    stock = BertForMaskedLM(text_config("bert"))
    folder = save(stock, tmp_path)  # 40 rows
    config = get_encoder_class("bert", "text").fit_config(load_tower_config(folder, "text"), vocab_size=vocab_size)
    encoder, decoder = build_pair(config, "text")
    before, rows = encoder.word_embeddings.clone(), min(vocab_size, 40)
    report = load_pretrained_tower(encoder, decoder, folder)
    rule = f"first {rows} rows of 40 copied, {new_rows} rows are new"
    assert report.converted == {"encoder.embeddings.word_embeddings.weight": rule, "decoder.bias": rule}
    assert torch.equal(encoder.word_embeddings[:rows], stock.bert.embeddings.word_embeddings.weight[:rows])
    assert torch.equal(encoder.word_embeddings[rows:], before[rows:])


@pytest.mark.parametrize("legacy_file", [False, True])
def test_deberta_head_is_found_whatever_the_config_says(tmp_path, legacy_file):
    """Hub checkpoints of DeBERTa-v2 and v3 hold `lm_predictions`, but their configs leave `legacy` at its default."""
    stock = DebertaV2ForMaskedLM(text_config("deberta-v2", legacy=legacy_file))
    folder = save(stock, tmp_path)
    stock.config.legacy = not legacy_file
    stock.config.save_pretrained(folder)
    encoder, decoder = build_pair(load_tower_config(folder, "text"), "text")
    report = load_pretrained_tower(encoder, decoder, folder)
    assert report.new == [] and report.unused == {}
    head = stock.cls.predictions.transform if legacy_file else stock.lm_predictions.lm_head
    assert torch.equal(decoder.dense.weight, head.dense.weight)


def test_tensors_of_other_sizes_are_reported_as_new_and_as_unused(tmp_path):
    folder = save(BertForMaskedLM(text_config("bert", intermediate_size=32)), tmp_path)
    encoder, decoder = build_pair(text_config("bert", num_hidden_layers=1), "text")
    report = load_pretrained_tower(encoder, decoder, folder)
    assert "encoder.encoder.layer.0.intermediate.dense.weight" in report.new
    unused = report.unused
    assert unused["bert.encoder.layer.0.intermediate.dense.weight"] == "has shape (32, 16), here (24, 16)"
    assert unused["bert.encoder.layer.1.attention.self.key.bias"] == "no such tensor in this model"
    assert "encoder.encoder.layer.0.attention.self.key.weight" in report.loaded


def test_half_precision_checkpoints_are_converted_in_full_precision(tmp_path):
    stock = randomize(ViTMAEForPreTraining(audio_config(image_size=16, num_channels=3))).half()
    stock.save_pretrained(tmp_path)
    encoder, decoder = build_pair(audio_config(image_size=16), "audio")
    load_pretrained_tower(encoder, decoder, str(tmp_path))
    kernel = stock.vit.embeddings.patch_embeddings.projection.weight.float()
    assert torch.equal(encoder.embeddings.patch_embeddings.projection.weight, kernel.sum(dim=1, keepdim=True))


def test_wrong_checkpoints_are_refused(tmp_path):
    encoder, decoder = build_pair(text_config("bert"), "text")
    with pytest.raises(ValueError, match="(?s)text config from .*nothing_here.*folder with config.json"):
        load_pretrained_tower(encoder, decoder, str(tmp_path / "nothing_here"))
    folder = save(DebertaV2ForMaskedLM(text_config("deberta-v2")), tmp_path / "deberta")
    with pytest.raises(ValueError, match="'deberta-v2' model.*'bert'"):
        load_pretrained_tower(encoder, decoder, folder)
    text_config("bert").save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="(?s)Cannot read weights of the text tower from .*empty"):
        load_pretrained_tower(encoder, decoder, str(tmp_path / "empty"))
