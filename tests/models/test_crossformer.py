"""The three forms of the fusion: what attends to what, compared with naive layers and with stock ViT and BERT."""

import math

import pytest
import torch
from torch import nn
from transformers import BertModel, DebertaV2Config, ViTModel

from simple_multimodal.models.fusion.crossformer import (
    ClipCache,
    Crossformer,
    FusionLayer,
    Stream,
    concatenate,
    load_pretrained_fusion,
    split,
)
from simple_multimodal.models.times import time_embedding
from tests.closeness import assert_close
from tests.models.tiny import fusion_config, randomize

FORMS = ("merge", "co_attention", "cross_attention")
KINDS = ("vit", "bert")
LENGTHS = {"text": 4, "audio": 5, "video": 3}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("form", FORMS)


def build(form: str, kind: str, sizes: dict[str, int] | None = None, **changes) -> Crossformer:
    torch.manual_seed(0)
    sizes = dict.fromkeys(LENGTHS, 16) if sizes is None else sizes
    return randomize(Crossformer(fusion_config(kind, **changes), form=form, token_sizes=sizes))


def streams(seed: int = 0, rows: int = 2, size: int = 24) -> dict[str, Stream]:
    """Return streams whose tokens are all real but the last of each modality in row 0."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for modality, length in LENGTHS.items():
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[0, -1] = False
        made[modality] = Stream(torch.randn(rows, length, size, generator=generator), mask)
    return made


def clip_of(all_streams: dict[str, Stream]) -> dict[str, Stream]:
    return {m: all_streams[m] for m in ("audio", "video")}


def changed(stream: Stream, row: int, token: int) -> Stream:
    states = stream.states.clone()
    states[row, token, ::2] += 1  # not all by the same amount, which a norm would undo
    return Stream(states, stream.mask)


def fuse(crossformer: Crossformer, all_streams: dict[str, Stream]) -> torch.Tensor:
    clip = clip_of(all_streams)
    return crossformer.fuse(all_streams["text"], crossformer.clip_side(clip, crossformer.encode_clip(clip)))


def naive_attention(attention, states, context, mask):
    """Attend one row, one head, one query at a time."""
    heads, size = attention.num_attention_heads, states.shape[-1] // attention.num_attention_heads
    query, key, value = attention.q_proj(states), attention.k_proj(context), attention.v_proj(context)
    attended = torch.zeros_like(query)
    for row in range(len(states)):
        real = mask[row].nonzero().flatten()
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for position in range(states.shape[1]):
                scores = torch.stack([query[row, position, part] @ key[row, j, part] for j in real]) / math.sqrt(size)
                attended[row, position, part] = scores.softmax(dim=0) @ value[row, real][:, part]
    return attention.o_proj(attended)


def naive_layer(layer, pre_norm, states, mask, context=None, context_mask=None):
    feed_forward = nn.Sequential(layer.mlp.fc1, nn.GELU(), layer.mlp.fc2)
    if pre_norm:
        normed = layer.layernorm_before(states)
        states = states + naive_attention(layer.attention, normed, normed, mask)
        if context is not None:
            states = states + naive_attention(
                layer.cross_attention, layer.layernorm_cross(states), layer.layernorm_context(context), context_mask
            )
        return states + feed_forward(layer.layernorm_after(states))
    states = layer.layernorm_before(states + naive_attention(layer.attention, states, states, mask))
    if context is not None:
        states = layer.layernorm_cross(states + naive_attention(layer.cross_attention, states, context, context_mask))
    return layer.layernorm_after(states + feed_forward(states))


def test_gradients_of_rows_taken_several_times_are_reproducible_bit_for_bit():
    """Also with several threads. Matching takes clips like this, each with its own text and with those of others."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(16, 64, 64, generator=generator)
    rows = torch.randint(0, 16, (512,), generator=generator)
    weights = torch.randn(512, 64, 64, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = set()
    for _ in range(5):
        leaf = states.clone().requires_grad_()
        Stream(leaf, torch.ones(16, 64, dtype=torch.bool)).select(rows).states.backward(weights)
        found.add(leaf.grad.numpy().tobytes())
    torch.set_num_threads(threads)
    assert len(found) == 1


@torch.no_grad()
@every_kind
def test_layer_equals_a_naive_one(kind):
    layer = randomize(FusionLayer(fusion_config(kind), attends_to_context=True))
    text, audio = streams()["text"], streams()["audio"]
    assert_close(layer(*text), naive_layer(layer, kind == "vit", *text))
    assert_close(layer(*text, *audio), naive_layer(layer, kind == "vit", *text, *audio))


@torch.no_grad()
@every_kind
def test_merge_is_a_stack_of_layers_over_all_tokens(kind):
    crossformer, given = build("merge", kind), streams()
    states = torch.cat([given[m].states for m in ("text", "audio", "video")], dim=1)
    mask = torch.cat([given[m].mask for m in ("text", "audio", "video")], dim=1)
    for layer in crossformer.stacks["all"]:
        states = naive_layer(layer, kind == "vit", states, mask)
    assert_close(fuse(crossformer, given), crossformer.output_norms["all"](states)[:, :4])


@torch.no_grad()
@every_kind
def test_co_attention_attends_to_the_others_of_the_layer_below(kind):
    crossformer, given = build("co_attention", kind), streams()
    for depth in range(2):
        below = given
        given = {}
        for name, stream in below.items():
            others = [below[m] for m in ("text", "audio", "video") if m != name]
            context = torch.cat([s.states for s in others], dim=1), torch.cat([s.mask for s in others], dim=1)
            layer = crossformer.stacks[name][depth]
            given[name] = Stream(naive_layer(layer, kind == "vit", *stream, *context), stream.mask)
    assert_close(fuse(crossformer, streams()), crossformer.output_norms["text"](given["text"].states))


@torch.no_grad()
@every_kind
def test_cross_attention_reads_the_encoded_clip(kind):
    crossformer, given = build("cross_attention", kind), streams()
    clip = concatenate(clip_of(given))
    states = clip.states
    for layer in crossformer.stacks["clip"]:
        states = naive_layer(layer, kind == "vit", states, clip.mask)
    states = crossformer.output_norms["clip"](states)
    encoded = crossformer.encode_clip(clip_of(given))
    assert_close(torch.cat([encoded["audio"].states, encoded["video"].states], dim=1), states)
    text = given["text"].states
    for layer in crossformer.stacks["text"]:
        text = naive_layer(layer, kind == "vit", text, given["text"].mask, states, clip.mask)
    assert_close(fuse(crossformer, given), crossformer.output_norms["text"](text))


@every_form
@every_kind
def test_first_tokens_computed_alone_equal_those_computed_with_all(form, kind):
    crossformer, given = build(form, kind), streams()
    clip = clip_of(given)
    side = crossformer.clip_side(clip, crossformer.encode_clip(clip))
    for part in (side, {}):
        first = crossformer.fuse(given["text"], part, num_queries=1)
        assert first.shape[1] == 1
        assert_close(first, crossformer.fuse(given["text"], part)[:, :1])


@every_form
@every_kind
def test_a_cached_clip_serves_several_texts(form, kind):
    crossformer, given = build(form, kind), streams()
    given["audio"].mask[1] = given["video"].mask[1] = False  # the second clip has neither
    clip = clip_of(given)
    cached = crossformer.cache_clip(crossformer.clip_side(clip, crossformer.encode_clip(clip)))
    assert isinstance(cached, ClipCache) == (form == "cross_attention")
    if form != "cross_attention":
        return
    texts = streams(seed=1, rows=6)["text"]
    fused = crossformer.fuse(texts, cached, num_queries=1)
    for row in range(6):
        own = {m: stream.select(torch.tensor([row // 3])) for m, stream in clip.items()}
        alone = fuse(crossformer, {"text": texts.select(torch.tensor([row])), **own})
        assert_close(fused[row], alone[0, :1])


@torch.no_grad()
@every_kind
def test_cross_attention_computes_the_clip_once_for_every_text(kind):
    crossformer, given, other = build("cross_attention", kind), streams(), streams(seed=1)
    clip = clip_of(given)
    side = crossformer.clip_side(clip, crossformer.encode_clip(clip))
    for texts in (given, other):
        expected = fuse(crossformer, {"text": texts["text"], **clip})
        assert torch.equal(crossformer.fuse(texts["text"], side), expected)
        swapped = torch.tensor([1, 0])
        reused = crossformer.fuse(texts["text"].select(swapped), {m: s.select(swapped) for m, s in side.items()})
        assert_close(reused[swapped], expected)


@torch.no_grad()
@every_form
@every_kind
def test_text_sees_audio_and_video_and_only_real_tokens(form, kind):
    crossformer, given = build(form, kind), streams()
    before = fuse(crossformer, given)
    for modality in LENGTHS:
        after = fuse(crossformer, {**given, modality: changed(given[modality], row=1, token=0)})
        assert (after[1] - before[1]).abs().amax(dim=-1).min() > 1e-4  # every text token
        assert torch.equal(after[0], before[0])
        padded = fuse(crossformer, {**given, modality: changed(given[modality], row=0, token=-1)})
        if modality == "text":
            assert torch.equal(padded[0, :-1], before[0, :-1])
        else:
            assert torch.equal(padded, before)


@torch.no_grad()
@every_form
@every_kind
def test_clip_streams_see_each_other(form, kind):
    crossformer, clip = build(form, kind), clip_of(streams())
    before = crossformer.encode_clip(clip)
    for modality, other in (("audio", "video"), ("video", "audio")):
        after = crossformer.encode_clip({**clip, modality: changed(clip[modality], row=1, token=0)})
        assert (after[other].states[1] - before[other].states[1]).abs().amax(dim=-1).min() > 1e-4
        assert torch.equal(after[other].states[0], before[other].states[0])
        padded = crossformer.encode_clip({**clip, modality: changed(clip[modality], row=0, token=-1)})
        assert torch.equal(padded[other].states, before[other].states)


@torch.no_grad()
@every_form
@every_kind
def test_a_row_without_a_clip_is_fused_as_if_there_were_none(form, kind):
    crossformer, given = build(form, kind), streams()
    for modality in ("audio", "video"):
        given[modality].mask[1] = False
    expected = crossformer.encode_text(given["text"]) if form != "co_attention" else None
    if form == "co_attention":
        expected = crossformer.fuse(given["text"], {})
    assert_close(fuse(crossformer, given)[1], expected[1])
    assert not torch.allclose(fuse(crossformer, given)[0], expected[0], atol=1e-3)


@torch.no_grad()
@every_form
@every_kind
def test_a_row_without_audio_is_encoded_as_if_there_were_none(form, kind):
    crossformer, clip = build(form, kind), clip_of(streams())
    clip["audio"].mask[1] = False
    alone = crossformer.encode_clip({"video": clip["video"]})
    assert_close(crossformer.encode_clip(clip)["video"].states[1], alone["video"].states[1])


@every_form
@every_kind
def test_a_row_without_any_token_has_finite_outputs_and_gradients(form, kind):
    crossformer, given = build(form, kind), streams()
    for stream in given.values():
        stream.mask[1] = False
        stream.states.requires_grad_()
    fused = fuse(crossformer, given)
    fused.sum().backward()
    assert torch.isfinite(fused).all()
    assert all(torch.isfinite(s.states.grad).all() for s in given.values())
    assert all(torch.isfinite(p.grad).all() for p in crossformer.parameters() if p.grad is not None)


@torch.no_grad()
@every_form
def test_audio_and_video_share_the_embedding_of_time_and_text_has_none(form):
    crossformer = build(form, "vit", hidden_size=16)
    crossformer.input_norm = nn.Identity()
    for projection in crossformer.projections.values():
        projection.weight.copy_(torch.eye(16))
        projection.bias.zero_()
    tokens, mask = torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    seconds = torch.tensor([[0.3, 7.0]])
    for index, modality in enumerate(LENGTHS):
        times = None if modality == "text" else seconds
        expected = crossformer.modality_embeddings.weight[index].expand(1, 2, -1)
        if times is not None:
            expected = expected + time_embedding(seconds, 16)
        stream = crossformer.embed(modality, tokens, mask, times)
        assert_close(stream.states, expected)
        assert torch.equal(stream.mask, mask)


def test_split_undoes_concatenate_in_canonical_order():
    given = streams()
    joined = concatenate({m: given[m] for m in ("video", "text", "audio")})
    assert torch.equal(joined.states[:, :4], given["text"].states)
    assert torch.equal(joined.mask[:, 9:], given["video"].mask)
    parts = split(joined.states, given)
    assert all(torch.equal(parts[m].states, given[m].states) for m in LENGTHS)


def stock_model(kind: str, **changes):
    torch.manual_seed(1)
    if kind == "vit":
        config = fusion_config(kind, image_size=8, patch_size=4, **changes)
        return randomize(ViTModel(config, add_pooling_layer=False))
    return randomize(BertModel(fusion_config(kind, vocab_size=20, **changes), add_pooling_layer=False))


@torch.no_grad()
@every_form
@every_kind
def test_pretrained_layers_fill_every_stack(tmp_path, form, kind):
    stock, crossformer = stock_model(kind), build(form, kind)
    stock.save_pretrained(tmp_path)
    report = load_pretrained_fusion(crossformer, str(tmp_path))

    states = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 5, dtype=torch.bool)
    if kind == "vit":
        expected = states
        for layer in stock.layers:
            expected = layer(expected)
        expected = stock.layernorm(expected)
    else:
        mask[0, 3:] = False
        bias = torch.zeros(2, 1, 1, 5).masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
        expected = stock.encoder(states, attention_mask=bias).last_hidden_state
    for name, stack in crossformer.stacks.items():
        actual = states
        for layer in stack:
            actual = layer(actual, mask)
        assert_close(crossformer.output_norms[name](actual)[mask], expected[mask])
        for layer in stack:
            if layer.attends_to_context:
                own, cross = layer.attention.state_dict(), layer.cross_attention.state_dict()
                assert all(torch.equal(own[key], cross[key]) for key in own)
                assert torch.equal(layer.layernorm_cross.weight, layer.layernorm_before.weight)

    # The report names every tensor of both sides.
    filled = [name for name in crossformer.state_dict() if name.startswith(("stacks.", "output_norms."))]
    assert sorted(report.loaded) == sorted(filled)
    assert sorted(report.new) == sorted(crossformer.state_dict().keys() - set(filled))
    assert sorted(report.unused) == sorted(name for name in stock.state_dict() if name.startswith("embeddings."))
    assert report.converted == {}


@every_kind
def test_layers_missing_in_the_model_or_the_checkpoint_are_reported(tmp_path, kind):
    stock_model(kind, num_hidden_layers=3).save_pretrained(tmp_path / "deep")
    report = load_pretrained_fusion(build("merge", kind), str(tmp_path / "deep"))
    prefix = "layers.2." if kind == "vit" else "encoder.layer.2."
    assert len([name for name in report.unused if name.startswith(prefix)]) == 16

    stock_model(kind, num_hidden_layers=1).save_pretrained(tmp_path / "shallow")
    report = load_pretrained_fusion(build("merge", kind), str(tmp_path / "shallow"))
    assert len([name for name in report.new if name.startswith("stacks.all.1.")]) == 16


def test_a_size_that_does_not_fit_is_reported(tmp_path):
    stock_model("bert", intermediate_size=40).save_pretrained(tmp_path)
    report = load_pretrained_fusion(build("merge", "bert"), str(tmp_path))
    assert report.unused["stacks.all.0.mlp.fc1.weight"] == "has shape (40, 24), here (24, 24)"
    assert "stacks.all.0.mlp.fc1.weight" in report.new


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path):
    stock_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'bert' model"):
        load_pretrained_fusion(build("merge", "vit"), str(tmp_path))


def test_a_missing_checkpoint_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="fusion config"):
        load_pretrained_fusion(build("merge", "vit"), str(tmp_path / "nothing"))
    fusion_config("vit").save_pretrained(tmp_path / "config_only")
    with pytest.raises(ValueError, match="weights of the fusion"):
        load_pretrained_fusion(build("merge", "vit"), str(tmp_path / "config_only"))


def test_unsuitable_configurations_are_refused():
    with pytest.raises(ValueError, match=r"'deberta-v2'.*\['bert', 'vit'\]"):
        Crossformer(DebertaV2Config(), form="merge", token_sizes={"text": 16})
    with pytest.raises(ValueError, match="24 is not a multiple of its num_attention_heads 5"):
        build("merge", "vit", num_attention_heads=5)


def test_attention_has_no_query_bias_if_the_vit_has_none():
    attention = build("merge", "vit", qkv_bias=False).stacks["all"][0].attention
    assert attention.q_proj.bias is None and attention.k_proj.bias is None and attention.v_proj.bias is None
    assert attention.o_proj.bias is not None


@every_form
def test_a_model_of_one_modality_has_only_the_layers_that_it_uses(form):
    text_only = build(form, "vit", sizes={"text": 16})
    assert not any("cross" in name for name, _ in text_only.named_parameters())
    video_only = build(form, "vit", sizes={"video": 16})
    assert not any("cross" in name for name, _ in video_only.named_parameters())
