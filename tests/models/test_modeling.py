"""The whole model: invariances of a row's outputs, values of the losses, gradients, saving, and freezing."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, ViTModel

from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS, OBJECTIVES, MultimodalConfig
from simple_multimodal.models.encoders import EncoderOutput
from simple_multimodal.models.losses import contrastive_loss, draw_hard_negatives
from simple_multimodal.models.modeling import MultimodalModel, pool_time_steps, token_steps
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from tests.closeness import assert_close
from tests.models.tiny import (
    ROWS,
    WINDOW_FRAMES,
    WINDOW_PATCHES,
    Row,
    fusion_config,
    make_batch,
    randomize,
    tiny_config,
)

FORMS = ("merge", "co_attention", "cross_attention")
every_form = pytest.mark.parametrize("form", FORMS)
every_fusion = pytest.mark.parametrize("fusion", ["vit", "bert"])
OFF = {f"{name}_loss_weight": 0.0 for name in OBJECTIVES}


def build(*arguments, model_class=MultimodalForPreTraining, **changes):
    torch.manual_seed(0)
    return randomize(model_class(tiny_config(*arguments, **changes)))


def only(*names: str) -> dict[str, float]:
    """Return configuration entries that switch off all other objectives."""
    return OFF | {f"{name}_loss_weight": 1.0 for name in names}


@torch.no_grad()
def outputs_by_row(model: MultimodalForPreTraining, batch: dict[str, torch.Tensor], rows: tuple[Row, ...]):
    """Return everything that depends on a row alone, cut to its real words."""
    base = model.multimodal
    output = base(**batch)
    embeds = {"text": output.text_embeds, "audio": output.audio_embeds, "video": output.video_embeds}
    embeds["clip"] = output.clip_embeds
    text = base.enter_fusion("text", base.encode("text", batch))
    encoded = {m: base.enter_fusion(m, base.encode(m, batch)) for m in base.clip_modalities}
    clip = base.fusion.clip_side(encoded, base.fusion.encode_clip(encoded))
    matching = model.matching_logits(text, clip)
    words = base.encoder("text").word_embeddings
    tokens = model.text_decoder(model.fusion_to_text(output.last_hidden_state), words)
    found = []
    for position, row in enumerate(rows):
        length = int(batch["attention_mask"][position].sum())
        has = {"text": row.text, "audio": row.audio, "video": row.video, "clip": row.audio or row.video}
        values = {name: value[position] for name, value in embeds.items() if has[name]}
        if row.text:
            values["fused"] = output.last_hidden_state[position, :length]
            values["matching"] = matching[position]
            values["mlm"] = tokens[position, :length]
        found.append(values)
    return found


@every_form
@every_fusion
@pytest.mark.parametrize(
    "changes",
    [
        {"fusion_pool": "none"},
        {"fusion_pool": "time", "contrastive_loss_before_fusion": False},
        {"fusion_pool": "none", "contrastive_loss_before_fusion": False, "text": "deberta-v2"},
    ],
    ids=["plain", "pooled", "after_fusion"],
)
def test_neither_padding_nor_other_rows_change_a_row(form, fusion, changes):
    model = build(form, fusion, **changes)
    expected = outputs_by_row(model, make_batch(), ROWS)

    padded = outputs_by_row(model, make_batch(num_words=14, num_windows=4), ROWS)
    order = (5, 3, 0, 1, 4, 2)
    shuffled = outputs_by_row(model, make_batch([ROWS[i] for i in order]), tuple(ROWS[i] for i in order))
    shuffled = [shuffled[order.index(i)] for i in range(len(ROWS))]
    alone = [outputs_by_row(model, make_batch([row]), (row,))[0] for row in ROWS]
    for i, values in enumerate(expected):
        for other in (padded[i], shuffled[i], alone[i]):
            assert other.keys() == values.keys()
            for name in values:
                assert_close(other[name], values[name])


@every_form
def test_an_absent_modality_of_a_neighbour_does_not_change_a_row(form):
    model = build(form)
    rows = (Row(0), Row(1, num_windows=2), Row(2))
    expected = outputs_by_row(model, make_batch(rows), rows)
    for change in ({"audio": False}, {"video": False}, {"text": False}, {"audio": False, "video": False}):
        changed = (rows[0], replace(rows[1], **change), replace(rows[2], **change))
        values = outputs_by_row(model, make_batch(changed), changed)[0]
        for name in expected[0]:
            assert_close(values[name], expected[0][name])


@torch.no_grad()
@every_form
def test_values_of_an_absent_modality_do_not_matter(form):
    model, batch = build(form), make_batch()
    noisy = dict(batch)
    noisy["audio_values"] = torch.where(batch["audio_mask"][:, None, None, None], batch["audio_values"], 3.0)
    noisy["audio_attention_mask"] = batch["audio_attention_mask"] | ~batch["audio_mask"][:, None]
    noisy["pixel_values_videos"] = torch.where(
        batch["video_mask"][:, None, None, None, None], batch["pixel_values_videos"], 200
    )
    first, second = model(**batch), model(**noisy)
    assert first.losses.keys() == set(OBJECTIVES)
    for name in OBJECTIVES:
        assert_close(second.losses[name], first.losses[name])


@torch.no_grad()
@every_form
def test_a_missing_entry_equals_an_absent_modality(form):
    model = build(form)
    rows = tuple(replace(row, audio=False) for row in ROWS)
    batch = make_batch(rows)
    without = {key: value for key, value in batch.items() if not key.startswith("audio")}
    first, second = model.multimodal(**batch), model.multimodal(**without)
    assert second.audio_embeds is None
    has_video = batch["video_mask"]
    assert_close(second.clip_embeds[has_video], first.clip_embeds[has_video])
    assert_close(second.last_hidden_state, first.last_hidden_state)


def test_embeddings_have_length_one():
    output = build(contrastive_dim=7).multimodal(**make_batch(ROWS[:2]))
    for embeds in (output.text_embeds, output.audio_embeds, output.video_embeds, output.clip_embeds):
        assert_close(embeds.norm(dim=-1), torch.ones(2))
        assert embeds.shape == (2, 7)


# ---- Losses ----
def test_items_are_counted_by_objective():
    counts = build().count_items(make_batch())
    batch = make_batch()
    # Row 1 ends 7 frames into its second window, row 3 after 5: the last of three columns of patches is padding.
    columns = torch.zeros(6, 12).scatter(1, batch["audio_masked_patches"], 1).view(6, 2, 2, 3)
    audio = columns[0, 0].sum() + columns[1, 0].sum() + columns[1, 1, :, :2].sum() + columns[3, 0, :, :2].sum()
    audio = audio + columns[4, 0].sum()
    expected = {
        "mlm": 2 * 5,  # two words in each row with a caption
        "mam": int(audio),
        "mvm": 4 * 8,
        "contrastive_tv": 3,
        "contrastive_ta": 3,
        "contrastive_av": 3,
        "contrastive_tav": 4,
        "matching": 4,
    }
    assert {name: int(count) for name, count in counts.items()} == expected


@torch.no_grad()
def test_masked_language_loss_equals_one_computed_by_hand():
    model, batch = build(**only("mlm")), make_batch()
    output = model(**batch)
    masked = {**batch, "input_ids": batch["mlm_input_ids"]}
    fused = model.multimodal(**masked).last_hidden_state  # audio and video are clean
    logits = model.text_decoder(model.fusion_to_text(fused), model.multimodal.text_encoder.word_embeddings)
    total, correct, count = 0.0, 0, 0
    for row in range(6):
        for position, label in enumerate(batch["mlm_labels"][row].tolist()):
            if label != -100:
                total -= float(logits[row, position].log_softmax(dim=-1)[label])
                correct += int(logits[row, position].argmax() == label)
                count += 1
    assert output.loss.item() == pytest.approx(total / count, abs=1e-5)
    assert output.metrics["mlm_accuracy"].tolist() == [correct, count]


@torch.no_grad()
@pytest.mark.parametrize(("objective", "modality"), [("mam", "audio"), ("mvm", "video")])
def test_reconstruction_losses_equal_ones_computed_by_hand(objective, modality):
    model, batch = build(**only(objective)), make_batch()
    output = model(**batch)
    encoder, decoder = model.multimodal.encoder(modality), model.get_submodule(f"{modality}_decoder")
    keys = {"audio": ("audio_values", "audio_attention_mask", "audio_seconds")}
    keys["video"] = ("pixel_values_videos", "video_seconds")
    masked = batch[f"{modality}_masked_patches"]
    predictions = decoder(encoder(*(batch[key] for key in keys[modality]), masked), masked)
    targets = encoder.patch_targets(batch[keys[modality][0]], masked)
    real = torch.ones(6, 12).bool() if modality == "video" else encoder.token_mask(batch["audio_attention_mask"])
    total, count = 0.0, 0
    for row in range(6):
        if not batch[f"{modality}_mask"][row]:
            continue
        for k, patch in enumerate(masked[row]):
            if real[row, patch]:
                total += float(((predictions[row, k] - targets[row, k]) ** 2).mean())
                count += 1
    assert count == int(model.count_items(batch)[objective])
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_contrastive_losses_compare_the_right_sides(form):
    names = list(CONTRASTIVE_PAIRS)
    model, batch = build(contrastive_form=form, **only(*names)), make_batch()
    scales = [0.5, 1.0, 1.5, 2.0]
    model.multimodal.logit_scale.copy_(torch.tensor(scales))
    if form == "sigmoid":
        assert model.multimodal.logit_bias.tolist() == [-10.0] * 4
        model.multimodal.logit_bias.copy_(torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    output = model(**batch)
    embeds = {"text": output.text_embeds, "audio": output.audio_embeds}
    embeds |= {"video": output.video_embeds, "clip": output.clip_embeds}
    has = {m: batch[f"{m}_mask"] for m in ("text", "audio", "video")}
    has["clip"] = has["audio"] | has["video"]
    sides = {"tv": ("text", "video"), "ta": ("text", "audio"), "av": ("audio", "video"), "tav": ("text", "clip")}
    for index, (short, (first, second)) in enumerate(sides.items()):
        present = has[first] & has[second]
        expected = contrastive_loss(
            embeds[first],
            embeds[second],
            present=present,
            group_ids=batch["group_ids"],
            logit_scale=torch.tensor(scales[index]).exp(),
            logit_bias=torch.tensor(-1.0 - index) if form == "sigmoid" else None,
            form=form,
        )
        assert_close(output.losses[f"contrastive_{short}"], expected / present.sum())


def test_temperature_is_limited_after_each_step():
    model = build()
    base, optimizer = model.multimodal, torch.optim.Adam([model.multimodal.logit_scale], lr=1e-2)
    values = []
    for step in range(500):
        optimizer.zero_grad()
        scale = base.scale_and_bias("contrastive_tv")[0]
        (scale.log() * (-1 if step < 450 else 1)).backward()
        optimizer.step()
        model.limit_temperature()
        values.append(scale.item())
    assert values[0] < 3 and max(values) == values[440] == pytest.approx(100)
    assert values[-1] < 80  # at once, without first undoing the steps beyond the limit
    assert base.logit_scale.tolist()[1:] == [1.0] * 3


def test_temperature_of_a_saved_model_is_within_the_limit(tmp_path):
    for form, limit in (("softmax", 100), ("sigmoid", math.exp(6))):
        model = MultimodalForRetrieval(tiny_config(contrastive_form=form, logit_scale_init_value=6.0))
        model.save_pretrained(tmp_path / form)
        loaded = MultimodalForRetrieval.from_pretrained(tmp_path / form)
        assert loaded.scale_and_bias("contrastive_tv")[0].item() == pytest.approx(limit)


@torch.no_grad()
@every_form
def test_matching_pairs_rows_with_their_own_clip_or_a_hard_negative(form):
    rows = (*ROWS, Row(6, aligned=True), Row(7, num_windows=2))
    model, batch = build(form, **only("matching"), hard_negative_ratio=0.3), make_batch(rows)
    model.multimodal.logit_scale.copy_(torch.tensor([0.0, 0.0, 0.0, 4.6]))  # negatives use the scale of text and clip
    output = model(**batch)
    scale = model.multimodal.scale_and_bias("contrastive_tav")[0]
    has_clip = batch["audio_mask"] | batch["video_mask"]
    negatives, exists = draw_hard_negatives(
        output.text_embeds,
        output.clip_embeds,
        query_groups=batch["group_ids"],
        candidate_groups=batch["group_ids"],
        query_texts=batch["text_ids"],
        candidate_texts=batch["text_ids"],
        candidate_present=has_clip,
        logit_scale=scale,
        hard_ratio=0.3,
        uniform=batch["match_uniform"],
    )
    assert exists.all()
    total, correct, count = 0.0, 0, 0
    for i, row in enumerate(rows):
        partner = i if row.aligned else int(negatives[i])
        assert row.aligned or batch["group_ids"][partner] != batch["group_ids"][i]
        if not (row.text and (row.audio or row.video)):
            continue
        # The pair as a row of its own: this row's text, the partner's clip.
        pair = make_batch([row], num_windows=2)
        other = make_batch([rows[partner]], num_windows=2)
        pair |= {key: value for key, value in other.items() if key.startswith(("audio", "video", "pixel"))}
        logits = model.matching_head(model.multimodal(**pair).last_hidden_state[:, 0])[0]
        assert_close(output.logits[i], logits)
        total -= float(logits.log_softmax(dim=-1)[int(row.aligned)])
        correct += int(logits.argmax() == int(row.aligned))
        count += 1
    assert output.losses["matching"].item() == pytest.approx(total / count, abs=1e-5)
    assert output.metrics["matching_accuracy"].tolist() == [correct, count]


@torch.no_grad()
def test_a_row_without_a_possible_negative_counts_as_aligned():
    rows = (Row(0, group=1), Row(1, group=1))
    model, batch = build(**only("matching")), make_batch(rows)
    aligned = {**batch, "match_aligned": torch.ones(2, dtype=torch.bool)}
    assert torch.equal(model(**batch).loss, model(**aligned).loss)


def test_loss_is_the_weighted_sum_and_a_weight_of_zero_drops_the_objective():
    weights = {f"{name}_loss_weight": 0.5 * index for index, name in enumerate(OBJECTIVES)}  # the first is 0: mlm
    model = build(**weights)
    assert not any(name.startswith(("text_decoder", "fusion_to_text")) for name, _ in model.named_parameters())
    output = model(**make_batch())
    assert list(output.losses) == list(OBJECTIVES[1:])
    expected = sum(0.5 * index * output.losses[name] for index, name in enumerate(OBJECTIVES) if index)
    assert_close(output.loss.detach(), expected)


def test_only_selected_objectives_are_computed():
    model, batch = build(), make_batch()
    every = model(**batch)
    some = model(objectives=("mvm", "contrastive_av"), **batch)
    assert set(some.losses) == {"mvm", "contrastive_av"}
    assert_close(some.loss.detach(), every.losses["mvm"] + every.losses["contrastive_av"])


@every_form
def test_objectives_without_any_item_are_zero(form):
    model = build(form).train()
    rows = tuple(replace(row, audio=False, video=False) for row in ROWS)
    output = model(**make_batch(rows))
    assert {name for name, value in output.losses.items() if value != 0} == {"mlm"}
    rows = tuple(replace(row, text=False) for row in ROWS[:2])
    output = model(**make_batch(rows))
    assert {name for name, value in output.losses.items() if value == 0} == {
        "mlm",
        "contrastive_tv",
        "contrastive_ta",
        "contrastive_tav",
        "matching",
    }
    assert torch.isfinite(output.loss)


ABSENT = ({}, {"text": False}, {"audio": False}, {"video": False}, {"audio": False, "video": False})


@every_form
@every_fusion
@pytest.mark.parametrize("absent", ABSENT, ids=lambda change: "no_" + "_".join(change) if change else "all")
def test_every_parameter_gets_a_finite_gradient(form, fusion, absent):
    for changes in (
        {},
        {"fusion_pool": "time", "contrastive_loss_before_fusion": False, "contrastive_form": "sigmoid"},
    ):
        model = build(form, fusion, **changes).train()
        model(**make_batch(tuple(replace(row, **absent) for row in ROWS))).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        assert [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()] == []
        if not absent:
            # A bias of keys has no effect on a softmax.
            zero = {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-12}
            assert {name for name in zero if "k_proj.bias" not in name and "key.bias" not in name} == set()


def test_masked_losses_of_two_halves_add_up_to_the_loss_of_the_whole_batch():
    model = build(**only("mlm", "mam", "mvm"))
    whole, halves = make_batch(), (make_batch(ROWS[:3]), make_batch(ROWS[3:]))
    expected = model(**whole).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    counts = [model.count_items(half) for half in halves]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert total == model.count_items(whole)
    losses = [model(num_items=total, **half).loss for half in halves]
    assert_close(sum(losses), expected)
    for loss in losses:
        loss.backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, gradients)


class Calls:
    """Counts how often each tower runs."""

    def __init__(self, model: MultimodalForPreTraining):
        self.counts = dict.fromkeys(("text", "audio", "video"), 0)
        for modality in self.counts:
            model.multimodal.encoder(modality).register_forward_hook(lambda *_, name=modality: self._count(name))

    def _count(self, name: str):
        self.counts[name] += 1


@every_form
@pytest.mark.parametrize("pool", ["none", "time"])
def test_shared_masked_pass_runs_each_tower_once_in_training(form, pool):
    model = build(form, share_masked_pass=True, fusion_pool=pool).train()
    separate = build(form, fusion_pool=pool).train()
    calls, separate_calls = Calls(model), Calls(separate)
    batch = make_batch()
    output, other = model(**batch), separate(**batch)
    assert set(calls.counts.values()) == {1} and set(separate_calls.counts.values()) == {2}
    for name in ("mam", "mvm"):
        assert_close(output.losses[name], other.losses[name])
    for name in ("mlm", *CONTRASTIVE_PAIRS, "matching"):
        assert abs(output.losses[name] - other.losses[name]) > 1e-6, name
    # Only contrast: nothing is masked.
    assert_close(
        model(objectives=["contrastive_tav"], **batch).loss, separate(objectives=["contrastive_tav"], **batch).loss
    )
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval(), separate.eval()
    with torch.no_grad():
        assert_close(model(**batch).loss, separate(**batch).loss)


@torch.no_grad()
def test_shared_masked_pass_pools_visible_patches_by_their_time():
    model, batch = build(share_masked_pass=True, fusion_pool="time").train(), make_batch(ROWS[:1])
    base = model.multimodal
    clip = {}
    for modality in ("audio", "video"):
        visible = base.encode(modality, batch, batch[f"{modality}_masked_patches"])
        times = visible.seconds[0].unique()  # ascending
        tokens = torch.stack([visible.tokens[0, visible.seconds[0] == time].mean(dim=0) for time in times])
        clip[modality] = base.fusion.embed(modality, tokens[None], torch.ones(1, len(times)).bool(), times[None])
    assert_close(model(**batch).clip_embeds, base.embed_clip(base.fusion.encode_clip(clip)))


def test_pooling_averages_tokens_of_the_same_moment():
    tokens = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    seconds = torch.tensor([[0.1, 0.3, 0.5, 0.3, 9.0, 9.0]])
    steps = torch.tensor([0, 1, 2, 0, 1, 2])
    pooled = pool_time_steps(EncoderOutput(tokens, mask, seconds), steps, 3)
    assert_close(pooled.tokens, torch.tensor([[[2.5], [2.0], [3.0]]]))
    assert_close(pooled.seconds, torch.tensor([[0.2, 0.3, 0.5]]))
    assert pooled.mask.tolist() == [[True, True, True]]

    # Without patches 0, 1 and 3: the tokens are those of patches 2, 4 and 5, of which 4 and 5 are padding.
    left = torch.tensor([2, 4, 5])
    output = EncoderOutput(tokens[:, left], mask[:, left], seconds[:, left])
    pooled = pool_time_steps(output, steps[left][None], 3)
    assert pooled.tokens.tolist() == [[[0.0], [0.0], [3.0]]]
    assert pooled.mask.tolist() == [[False, False, True]]
    assert pooled.seconds.tolist() == [[0.0, 0.0, 0.5]]


def test_time_steps_have_equally_many_tokens():
    encoder = build().multimodal.encoder("video")
    steps, num_steps = token_steps(encoder, 6, 3, torch.device("cpu"))
    assert (steps.tolist(), num_steps) == ([0, 0, 1, 1, 2, 2], 3)
    with pytest.raises(ValueError, match="'videomae' returned 7 tokens for num_steps=3"):
        token_steps(encoder, 7, 3, torch.device("cpu"))
    # Without num_steps the tower decides: here two tubelets of 2 x 2 patches. One token is a batch without any clip.
    size = encoder.tokens_per_step
    steps, num_steps = token_steps(encoder, 2 * size, None, torch.device("cpu"))
    assert (steps.tolist(), num_steps) == ([0] * size + [1] * size, 2)
    assert token_steps(encoder, 1, None, torch.device("cpu"))[1] == 1


def test_pooled_times_are_not_rounded_under_autocast():
    output = EncoderOutput(torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[100.11, 100.11]]))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool_time_steps(output, torch.tensor([0, 0]), 1)
    assert_close(pooled.seconds, torch.tensor([[100.11]]))


def test_pooling_leaves_one_token_per_column_of_patches_and_per_tubelet():
    base = build(fusion_pool="time").multimodal
    batch = make_batch()
    audio = base.enter_fusion("audio", base.encode("audio", batch))
    video = base.enter_fusion("video", base.encode("video", batch))
    assert audio.states.shape == (6, 2 * 3, 24) and video.states.shape == (6, 2, 24)
    # 12 frames of a window make 3 columns; row 1 ends after 7 frames of its second window.
    assert audio.mask[:2].tolist() == [[True] * 3 + [False] * 3, [True] * 5 + [False]]
    assert 2 * WINDOW_PATCHES == base.encode("audio", batch).tokens.shape[1] and WINDOW_FRAMES == 12


def test_losses_under_autocast_are_finite_and_close():
    model = build().train()
    expected = model(**make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**make_batch())
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    for name, value in output.losses.items():
        assert value.dtype == torch.float32
        assert_close(value, expected.losses[name], 0.05)  # bfloat16 has steps of 0.008 of a value


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = build("co_attention").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.multimodal.fusion.stacks["text"][0].gradient_checkpointing
        model(**make_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


# ---- Saving, loading, parts ----
LOAD = """
import sys
import torch
from simple_multimodal import MultimodalForPreTraining
torch.set_num_threads(1)
folder = sys.argv[1]
batch, found = torch.load(f"{folder}/batch.pt"), {}
for name in sys.argv[2:]:
    model = MultimodalForPreTraining.from_pretrained(f"{folder}/{name}").eval()
    with torch.no_grad():
        output = model(**batch)
    found[name] = [output.loss, output.logits, output.text_embeds, output.clip_embeds, model.multimodal(**batch)[-1]]
torch.save(found, f"{folder}/found.pt")
"""


def test_a_fresh_process_computes_the_same_after_loading(tmp_path):
    batch = make_batch()
    torch.save(batch, tmp_path / "batch.pt")
    expected = {}
    for form in FORMS:
        model = build(form, "bert" if form == "merge" else "vit", text="deberta-v2", contrastive_form="sigmoid")
        model.save_pretrained(tmp_path / form)
        with torch.no_grad():
            output = model(**batch)
            last = model.multimodal(**batch)[-1]
        expected[form] = [output.loss, output.logits, output.text_embeds, output.clip_embeds, last]
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), *FORMS], check=True, cwd=root)
    found = torch.load(tmp_path / "found.pt")
    for form in FORMS:
        assert all(torch.equal(a, b) for a, b in zip(found[form], expected[form], strict=True))


def test_auto_classes_and_the_base_model_load_a_pretraining_checkpoint(tmp_path):
    model = build(image_mean=[0.1, 0.2, 0.3])
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MultimodalConfig) and config.audio_config.image_size == [8, 12]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "simple_multimodal"
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, MultimodalModel) and base.video_encoder.image_mean == (0.1, 0.2, 0.3)
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(base(**batch).clip_embeds, model.multimodal(**batch).clip_embeds)


def test_retrieval_has_contrastive_and_matching_losses_without_decoders(tmp_path):
    model, batch = build(), make_batch()
    model.save_pretrained(tmp_path)
    retrieval = MultimodalForRetrieval.from_pretrained(tmp_path).eval()
    assert not any("decoder" in name or "fusion_to_text" in name for name, _ in retrieval.named_parameters())
    assert retrieval.decoded_modalities == () and model.decoded_modalities == ("text", "audio", "video")
    with torch.no_grad():
        output, expected = retrieval(**batch), model(**batch)
    assert list(output.losses) == [*CONTRASTIVE_PAIRS, "matching"]
    for name, value in output.losses.items():
        assert_close(value, expected.losses[name])


@pytest.mark.parametrize("frozen", [["text"], ["audio", "video"], ["fusion"]])
def test_freeze_keeps_weights(frozen):
    model = build().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.freeze(frozen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**make_batch()).loss.backward()
    optimizer.step()
    starts = tuple(f"multimodal.{name}." if name == "fusion" else f"multimodal.{name}_encoder." for name in frozen)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(starts)
        if name.startswith(starts):
            assert torch.equal(parameter, before[name])
        elif "k_proj.bias" not in name and "key.bias" not in name:
            assert not torch.equal(parameter, before[name]), name


def test_freeze_refuses_a_tower_that_the_model_lacks():
    model = build(audio_config=None)
    with pytest.raises(ValueError, match="'audio': this model has text, video, fusion"):
        model.freeze(["audio"])


@every_form
@pytest.mark.parametrize("missing", ["text", "audio", "video"])
def test_a_model_without_a_modality_trains_the_remaining_objectives(form, missing):
    model = build(form, **{f"{missing}_config": None}).train()
    batch = {key: value for key, value in make_batch().items() if not key.startswith((missing, "nothing"))}
    output = model(**batch)
    output.loss.backward()
    expected = {
        "text": {"mam", "mvm", "contrastive_av"},
        "audio": {"mlm", "mvm", "contrastive_tv", "contrastive_tav", "matching"},
        "video": {"mlm", "mam", "contrastive_ta", "contrastive_tav", "matching"},
    }
    assert set(output.losses) == set(model.count_items(batch)) == expected[missing]
    assert torch.isfinite(output.loss)


def test_a_text_only_model_predicts_masked_words():
    model = build(audio_config=None, video_config=None)
    batch = {
        key: value for key, value in make_batch().items() if key.startswith(("input", "attention", "text", "mlm"))
    }
    assert set(model(**batch).losses) == {"mlm"}


@torch.no_grad()
@every_form
def test_a_text_only_model_has_no_clip_embeddings(form):
    base = build(form, audio_config=None, video_config=None).multimodal
    with pytest.raises(ValueError, match="a model that only has text. Pass with_embeds=False, or .* audio or video"):
        base.encode_clip(make_batch())
    assert base.encode_clip(make_batch(), with_embeds=False) == (None, {}) == (None, base.embed_all({}, {})[1])


def test_a_fitted_model_keeps_weights_decoders_and_frozen_parameters():
    model = build()
    model.freeze(["audio"])
    model.video_decoder.mask_token.requires_grad_(False)
    fitted, (report,) = model.fit_inputs({"video": (8, 8, 8)})
    assert fitted is not model and report.name == "the saved video tower"
    assert set(report.converted) == {"encoder.embeddings.position_embeddings", "decoder.position_embeddings"}
    frozen = {name for name, parameter in fitted.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "video_decoder.mask_token" in frozen and len(frozen) > 1
    own = fitted.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if own[name].shape != tensor.shape}
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items() if name not in changed)
    assert MultimodalForRetrieval(model.config).masked_decoder("video") is None


def test_a_model_needs_a_tower_and_a_fusion():
    with pytest.raises(ValueError, match="at least one of"):
        MultimodalModel(tiny_config(text_config=None, audio_config=None, video_config=None))
    with pytest.raises(ValueError, match="crossformer_config"):
        MultimodalModel(tiny_config(crossformer_config=None))
    with pytest.raises(ValueError, match="`text_config` has no `model_type`"):
        MultimodalConfig(text_config={"hidden_size": 8})


def test_new_heads_are_initialised_like_the_fusion():
    wide = fusion_config("vit", initializer_range=0.5)
    assert tiny_config(crossformer_config=wide).initializer_range == 0.5
    assert tiny_config(crossformer_config=wide, initializer_range=0.02).initializer_range == 0.02
    torch.manual_seed(0)
    head = MultimodalForQuestionAnswering(tiny_config(crossformer_config=wide)).classifier[0].weight
    assert 0.45 < float(head.std()) < 0.55


def test_from_encoders_loads_the_fusion_and_leaves_the_rest_random(tmp_path):
    torch.manual_seed(1)
    stock = ViTModel(fusion_config("vit", image_size=8, patch_size=4), add_pooling_layer=False)
    stock.save_pretrained(tmp_path)
    model, reports = MultimodalForPreTraining.from_encoders(tiny_config(), {"fusion": str(tmp_path)})
    assert [report.name for report in reports] == [str(tmp_path)]
    expected = stock.layers[1].mlp.fc1.weight
    assert torch.equal(model.multimodal.fusion.stacks["clip"][1].mlp.fc1.weight, expected)
    assert torch.equal(model.multimodal.fusion.stacks["text"][1].mlp.fc1.weight, expected)


@torch.no_grad()
def test_question_answering_scores_answers_and_skips_unknown_ones():
    config = tiny_config(id2label={0: "red", 1: "green", 2: "blue"})
    torch.manual_seed(0)
    model, batch = randomize(MultimodalForQuestionAnswering(config)), make_batch()
    labels = torch.tensor([0, 2, -1, 1, -1, 2])
    output = model(labels=labels, **batch)
    fused = model.multimodal(**batch).last_hidden_state[:, 0]
    first, _, second = model.classifier
    logits = second(first(fused).clamp(min=0))
    assert_close(output.logits, logits)
    assert logits.shape == (6, 3)
    known = labels >= 0
    assert_close(output.loss, F.cross_entropy(logits[known], labels[known]))
    assert output.metrics["answer_accuracy"].tolist() == [int((logits.argmax(dim=-1) == labels).sum()), 6]
    assert model.count_items({"labels": labels})["answer"] == 4
    halved = model(labels=labels, num_items={"answer": torch.tensor(8.0)}, **batch)
    assert_close(halved.loss, output.loss / 2)
    unknown = model(labels=torch.full((6,), -1), **batch)
    assert unknown.loss == 0
    assert model(**batch).loss is None
