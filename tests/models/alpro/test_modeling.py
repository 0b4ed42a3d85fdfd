"""A tiny ALPRO: its parts compared with `transformers`, invariances, losses, gradients, saving and errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, TimesformerConfig

from simple_multimodal.alpro import AlproConfig, AlproForQuestionAnswering, AlproForRetrieval, AlproModel
from simple_multimodal.models.losses import draw_hard_negatives
from tests.closeness import assert_close
from tests.models.alpro.tiny import FRAMES, PATCH, SIDE, SIZES, build, make_batch, tiny_config

ANSWERS = {"id2label": {0: "red", 1: "green", 2: "blue"}}


def rows_of(batch: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """Return some rows of a batch, in the given order."""
    return {key: value[rows] for key, value in batch.items()}


@torch.no_grad()
def outputs(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return everything that depends on a row alone, from both models."""
    retrieval, answering = build(), build(AlproForQuestionAnswering, **ANSWERS)
    text_embeds, text = retrieval.encode_text(batch)
    clip_embeds, clip = retrieval.encode_clip(batch)
    logits = answering.answer_logits(answering.encode_text(batch)[1], answering.encode_clip(batch)[1])
    return [text_embeds, clip_embeds, retrieval.matching_logits(text, clip), logits]


# ---- Parts ----
@torch.no_grad()
def test_text_layers_equal_a_shorter_bert():
    model, batch = build().alpro, make_batch()
    config = model.config.text_config.to_dict() | {"num_hidden_layers": 2}
    stock = BertModel(BertConfig(**config), add_pooling_layer=False).eval()
    missing, _ = stock.load_state_dict(model.text_encoder.state_dict(), strict=False)
    assert missing == []
    expected = stock(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    text = model.encode_text(batch)
    assert torch.equal(text.mask, batch["attention_mask"].bool())
    assert_close(text.states[text.mask], expected[text.mask])


@torch.no_grad()
def test_video_tokens_are_means_over_the_times_of_a_patch():
    model, batch = build().alpro, make_batch()
    video = model.encode_video(batch)
    patches = (SIDE // PATCH) ** 2
    assert video.states.shape == (5, 1 + patches, 16)
    assert video.mask.tolist() == [[True] * (1 + patches)] * 4 + [[False] * (1 + patches)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    normalised = (batch["pixel_values_videos"] / 255 - mean) / std
    tokens = model.video_encoder(normalised).last_hidden_state
    for patch in range(patches):
        expected = sum(tokens[:, 1 + patch * FRAMES + time] for time in range(FRAMES)) / FRAMES
        assert_close(video.states[:, 1 + patch], expected)
    assert_close(video.states[:, 0], tokens[:, 0])
    assert_close(model.encode_video({**batch, "pixel_values_videos": normalised}).states, video.states)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fusion_is_self_attention_over_text_and_video(attention):
    model, batch = build(attn_implementation={"text_config": attention}).alpro, make_batch()
    text, video = model.encode_text(batch), model.encode_video(batch)
    states, mask = torch.cat([text.states, video.states], dim=1), torch.cat([text.mask, video.mask], dim=1)
    additive = (1.0 - mask.float())[:, None, None] * -10000.0  # as the original masks
    for layer in model.text_encoder.encoder.layer[2:]:
        states = layer(states, additive)
    assert_close(model.fuse(text, {"video": video}), states[:, 0])
    assert_close(model(**batch).last_hidden_state[:, 0], states[:, 0])


@torch.no_grad()
def test_embeddings_are_unit_projections_of_the_class_tokens():
    model, batch = build(), make_batch()
    text_embeds, text = model.encode_text(batch)
    clip_embeds, clip = model.encode_clip(batch)
    for embeds, states, head in (
        (text_embeds, text.states, model.text_projection),
        (clip_embeds, clip["video"].states, model.video_projection),
    ):
        projected = states[:, 0] @ head.weight.T + head.bias
        assert_close(embeds, projected / projected.norm(dim=1, keepdim=True))
    output = model(**batch)
    for embeds, expected in (
        (output.text_embeds, text_embeds),
        (output.video_embeds, clip_embeds),
        (output.clip_embeds, clip_embeds),
    ):
        assert_close(embeds, expected)


# ---- Invariances ----
def test_neither_padding_nor_other_rows_change_a_row():
    batch = make_batch()
    expected = outputs(batch)
    order = [3, 0, 4, 2, 1]
    for index, values in enumerate(outputs(make_batch(num_words=12))):
        assert_close(values, expected[index])
    for index, values in enumerate(outputs(rows_of(batch, order))):
        assert_close(values, expected[index][order])
    for row in range(5):
        for index, values in enumerate(outputs(rows_of(batch, [row]))):
            assert_close(values[0], expected[index][row])


@torch.no_grad()
def test_rows_without_video_or_text_take_no_part_in_losses():
    model, batch = build(), make_batch()
    expected = model(**batch)
    assert torch.isfinite(expected.logits).all()
    noisy = {**batch, "pixel_values_videos": batch["pixel_values_videos"].clone()}
    noisy["pixel_values_videos"][4] = 200
    without = model(**rows_of(batch, [0, 1, 2, 3]))
    for name, value in expected.losses.items():
        assert_close(model(**noisy).losses[name], value)
        assert_close(without.losses[name], value)
    assert torch.equal(without.metrics["matching_accuracy"], expected.metrics["matching_accuracy"])
    assert expected.metrics["matching_accuracy"][1] == 4

    no_text = {**batch, "text_mask": torch.tensor([True, True, True, False, True])}
    counts = model.count_items(no_text)
    assert counts == {"contrastive_tv": 3.0, "matching": 3.0}
    changed = {**no_text, "input_ids": no_text["input_ids"].clone()}
    changed["input_ids"][3] = 9
    for name, value in model(**no_text).losses.items():
        assert_close(model(**changed).losses[name], value)
        assert abs(value - expected.losses[name]) > 1e-3


@torch.no_grad()
def test_a_batch_without_masks_has_every_modality():
    model, batch = build(), rows_of(make_batch(), [0, 1, 2, 3])
    bare = {key: value for key, value in batch.items() if key not in ("text_mask", "video_mask", "video_seconds")}
    assert_close(model(**bare).loss, model(**batch).loss)
    assert model.count_items(bare) == {"contrastive_tv": 4.0, "matching": 4.0}


# ---- Losses ----
@torch.no_grad()
def test_losses_equal_ones_computed_by_hand():
    model, batch = build(), make_batch()
    output = model(**batch)
    cosines = output.text_embeds[:4] @ output.clip_embeds[:4].T / 0.2
    same = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    targets = same / same.sum(dim=1, keepdim=True)
    contrast = (F.cross_entropy(cosines, targets) + F.cross_entropy(cosines.T, targets)) / 2
    assert_close(output.losses["contrastive_tv"], contrast)

    negatives, _ = draw_hard_negatives(
        output.text_embeds,
        output.clip_embeds,
        query_groups=batch["group_ids"],
        candidate_groups=batch["group_ids"],
        query_texts=batch["text_ids"],
        candidate_texts=batch["text_ids"],
        candidate_present=batch["video_mask"],
        logit_scale=torch.tensor(5.0),
        hard_ratio=1.0,  # as ALPRO samples them
        uniform=batch["match_uniform"],
    )
    chosen = [1 if row == 1 else int(negatives[row]) for row in range(4)]  # row 1 keeps its clip
    assert all(batch["group_ids"][row] != batch["group_ids"][chosen[row]] for row in (0, 2, 3))
    _, text = model.encode_text(rows_of(batch, [0, 1, 2, 3]))
    _, clip = model.encode_clip(rows_of(batch, chosen))
    logits = model.matching_logits(text, clip)
    assert logits.dtype == torch.float32
    labels = torch.tensor([0, 1, 0, 0])
    assert_close(output.losses["matching"], F.cross_entropy(logits, labels))
    assert output.metrics["matching_accuracy"].tolist() == [int((logits.argmax(dim=1) == labels).sum()), 4]
    assert_close(output.logits[:4], logits)
    assert_close(output.loss, contrast + output.losses["matching"])

    alone = model(**rows_of(batch, [0]))  # there is no other clip, so it keeps its own
    _, clip = model.encode_clip(rows_of(batch, [0]))
    own = model.matching_logits(text.select(torch.tensor([0])), clip)
    assert_close(alone.losses["matching"], F.cross_entropy(own, torch.tensor([1])))


@torch.no_grad()
def test_objectives_are_weighted_counted_and_switched_off():
    batch = make_batch()
    full = build()(**batch)
    weighted = build(contrastive_tv_loss_weight=0.5)(**batch)
    assert_close(weighted.loss, 0.5 * full.losses["contrastive_tv"] + full.losses["matching"])
    model = build(matching_loss_weight=0.0)
    random_entries = ("match_aligned", "match_uniform", "text_ids")
    alone = model(**{key: value for key, value in batch.items() if key not in random_entries})
    assert alone.losses.keys() == model.count_items(batch).keys() == {"contrastive_tv"} and alone.logits is None
    assert_close(alone.loss, full.losses["contrastive_tv"])
    halved = model(**batch, num_items={"contrastive_tv": torch.tensor(8.0)})
    assert_close(halved.loss, alone.loss / 2)


@pytest.mark.parametrize(("temperature", "scale"), [(0.1, 10.0), (0.0, 1000.0), (3.0, 2.0)])
def test_the_temperature_is_limited(temperature, scale):
    model = build()
    torch.nn.init.constant_(model.temperature, temperature)
    model.limit_temperature()
    assert_close(model.logit_scale.detach(), torch.tensor(scale), 1e-4)
    torch.manual_seed(0)
    assert AlproForRetrieval(tiny_config(temperature_init_value=0.3)).temperature.item() == pytest.approx(0.3)


@torch.no_grad()
def test_question_answering_scores_answers_and_skips_unknown_ones():
    model, batch = build(AlproForQuestionAnswering, **ANSWERS), make_batch()
    labels = torch.tensor([0, 2, -1, 1, -1])
    output = model(labels=labels, **batch)
    fused = model.alpro(**batch).last_hidden_state[:, 0]
    first, _, second = model.classifier
    logits = second(first(fused).clamp(min=0))
    assert_close(output.logits, logits)
    assert logits.shape == (5, 3) and first.out_features == 32
    known = labels >= 0
    assert_close(output.loss, F.cross_entropy(logits[known], labels[known]))
    assert output.metrics["answer_accuracy"].tolist() == [int((logits.argmax(dim=1) == labels).sum()), 5]
    assert model.count_items({"labels": labels}) == {"answer": 3.0}
    assert_close(model(labels=labels, num_items={"answer": torch.tensor(6.0)}, **batch).loss, output.loss / 2)
    assert model(**batch).loss is None
    assert model.encode_text(batch)[0] is None and model.encode_clip(batch)[0] is None


# ---- Training ----
@pytest.mark.parametrize("model_class", [AlproForRetrieval, AlproForQuestionAnswering])
def test_every_parameter_gets_a_gradient(model_class):
    model = build(model_class, **ANSWERS).train()
    model(
        **make_batch(), **({} if model_class is AlproForRetrieval else {"labels": torch.arange(5) % 3})
    ).loss.backward()
    for name, parameter in model.named_parameters():
        # A bias of all keys cancels in the softmax.
        assert parameter.grad.abs().max() > 0 or "key.bias" in name, name


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.alpro.video_encoder.encoder.layer[0].gradient_checkpointing
        model(**make_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def test_losses_under_autocast_are_finite_and_close():
    model, batch = build(), make_batch()
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for name, value in output.losses.items():
        assert value.dtype == torch.float32
        assert_close(value, expected.losses[name], 0.05)  # bfloat16 has steps of 0.008 of a value


def test_the_video_tower_drops_more_residuals_with_depth_only_in_training():
    video = TimesformerConfig(**SIZES, num_hidden_layers=3, image_size=SIDE, patch_size=PATCH, num_frames=FRAMES)
    model = AlproModel(tiny_config(video_config=video, drop_path_rate=0.4))
    drops = [layer.drop_path for layer in model.video_encoder.encoder.layer]
    assert [drop.p for drop in drops] == [0.0, 0.2, 0.4] and {drop.mode for drop in drops} == {"row"}
    batch = make_batch()
    torch.manual_seed(0)
    assert not torch.equal(model.train().encode_video(batch).states, model.encode_video(batch).states)
    assert torch.equal(model.eval().encode_video(batch).states, model.encode_video(batch).states)
    assert AlproConfig().drop_path_rate == 0.1


# ---- Saving and errors ----
LOAD = """
import sys
import torch
from simple_multimodal.alpro import AlproForQuestionAnswering, AlproForRetrieval
torch.set_num_threads(1)
folder = sys.argv[1]
batch = torch.load(f"{folder}/batch.pt")
with torch.no_grad():
    found = [model_class.from_pretrained(f"{folder}/{model_class.__name__}").eval()(**batch).logits
             for model_class in (AlproForRetrieval, AlproForQuestionAnswering)]
torch.save(found, f"{folder}/found.pt")
"""


def test_a_fresh_process_computes_the_same_after_loading(tmp_path):
    batch, expected = make_batch(), []
    torch.save(batch, tmp_path / "batch.pt")
    for model_class in (AlproForRetrieval, AlproForQuestionAnswering):
        model = build(model_class, **ANSWERS)
        model.save_pretrained(tmp_path / model_class.__name__)
        with torch.no_grad():
            expected.append(model(**batch).logits)
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, cwd=root)
    assert all(torch.equal(a, b) for a, b in zip(torch.load(tmp_path / "found.pt"), expected, strict=True))


def test_auto_classes_load_a_saved_model(tmp_path):
    model = build(AlproForQuestionAnswering, **ANSWERS, image_mean=[0.1, 0.2, 0.3])
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AlproConfig) and config.id2label == ANSWERS["id2label"]
    assert (config.video_config.num_frames, config.fusion_layer, config.image_mean) == (FRAMES, 2, [0.1, 0.2, 0.3])
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, AlproModel)
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(base(**batch).last_hidden_state, model.alpro(**batch).last_hidden_state)


def test_the_defaults_are_the_published_sizes():
    config = AlproConfig()
    text, video = config.text_config, config.video_config
    assert (text.num_hidden_layers, text.hidden_size, config.fusion_layer, config.contrastive_dim) == (12, 768, 6, 256)
    assert (video.num_hidden_layers, video.hidden_size, video.image_size, video.patch_size) == (12, 768, 224, 16)
    assert (video.layer_norm_eps, video.qkv_bias, text.layer_norm_eps) == (1e-6, True, 1e-12)


def test_bad_inputs_give_clear_errors():
    model, batch = build(), make_batch()
    with pytest.raises(ValueError, match="2 frames of 12 by 12 pixels, but this ALPRO takes 3 frames of 12 by 12"):
        model(**{**batch, "pixel_values_videos": batch["pixel_values_videos"][:, :2]})
    with pytest.raises(ValueError, match="3 frames of 8 by 12 pixels"):
        model(**{**batch, "pixel_values_videos": batch["pixel_values_videos"][:, :, :, :8]})
    long = torch.ones(5, 17, dtype=torch.long)
    with pytest.raises(ValueError, match="17 tokens, but this ALPRO takes 16"):
        model(**{**batch, "input_ids": long, "attention_mask": long})
    with pytest.raises(ValueError, match="`fusion_layer` is 4, but the BERT has the layers 0 to 3"):
        AlproModel(tiny_config(fusion_layer=4))
    with pytest.raises(ValueError, match="`hidden_size` must be the same, but it is 16 in text_config and 24"):
        AlproModel(tiny_config(video_config=TimesformerConfig(hidden_size=24, num_attention_heads=2)))
