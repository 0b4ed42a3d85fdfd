"""The model that writes text: losses, prompts and padding, with backbones of every shape."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, PreTrainedConfig

from simple_multimodal.models.backbone import add_embeddings, build_backbone, embedding_scale
from simple_multimodal.tasks.generation.modeling import MultimodalForConditionalGeneration, Sequences, join
from simple_multimodal.tasks.generation.targets import IGNORED
from tests.models.tiny import make_batch, naming_windows, randomize, tiny_config

VOCABULARY = 60
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SEQ2SEQ = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0,
    "decoder_start_token_id": 2, "max_position_embeddings": 64, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
      "decoder_start_token_id": 0}  # fmt: skip
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
BACKBONES = {
    "m2m_100": SEQ2SEQ | {"scale_embedding": True},
    "mbart": SEQ2SEQ,
    "bart": SEQ2SEQ,
    "t5": T5,
    "mt5": T5,
    "llama": LLAMA,
}
PROMPTS = ((2, 0), (0, 1), (1, 2), (2, 1), (0, 0), (1, 1))  # lengths of each row's prompts
LENGTHS = (4, 7, 2, 5, 1, 0)  # of the texts


def backbone_config(name: str, **changes) -> PreTrainedConfig:
    return AutoConfig.for_model(name, **{**IDS, **BACKBONES[name], **changes})


def build(name: str, **changes) -> MultimodalForConditionalGeneration:
    torch.manual_seed(0)
    settings = {"text_config": None, "text_backbone_config": backbone_config(name), "mapper_dropout": 0.0, **changes}
    model = MultimodalForConditionalGeneration(tiny_config(**settings))
    randomize(model, 0.5)
    # A model with random weights would write padding, which real ones do not.
    model.generation_config.suppress_tokens = [0]
    return model.eval()


def ids_of(lengths, generator) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(max(lengths), 1)), generator=generator)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 0), mask


def batch_of(rows: list[int] | None = None) -> dict[str, torch.Tensor]:
    """The rows of `make_batch`, of which one lacks both audio and video, with prompts and texts of all lengths."""
    generator = torch.Generator().manual_seed(1)
    batch = {k: v for k, v in make_batch().items() if not k.startswith(("input_ids", "attention_mask", "text_"))}
    ids, mask = ids_of(LENGTHS, generator)
    batch["labels"] = ids.masked_fill(~mask, IGNORED)
    for column, entry in enumerate(("prompt", "decoder_prompt")):
        ids, mask = ids_of([lengths[column] for lengths in PROMPTS], generator)
        batch |= {f"{entry}_ids": ids, f"{entry}_attention_mask": mask}
    batch["row_ids"] = torch.arange(len(LENGTHS))
    return batch if rows is None else {name: value[rows] for name, value in batch.items()}


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def written(tokens: torch.Tensor) -> list[int]:
    return [number for number in tokens.tolist() if number not in (0, 1)]


@pytest.mark.parametrize("pads_left", [False, True])
def test_real_tokens_move_together(pads_left):
    first = Sequences(torch.tensor([[[1], [2]], [[3], [4]]]), torch.tensor([[True, False], [False, False]]))
    second = Sequences(torch.tensor([[[5], [6]], [[7], [8]]]), torch.tensor([[True, True], [False, True]]))
    joined = join([first, second], pads_left=pads_left)
    rows = [states[mask][:, 0].tolist() for states, mask in zip(*joined, strict=True)]
    assert rows == [[1, 5, 6], [8]]
    expected = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    assert torch.equal(joined.mask, expected.flip(1) if pads_left else expected)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("strides", [0, 2])
def test_a_row_does_not_depend_on_its_batch(name, strides):
    model = build(name, mapper_strides=strides)
    batch = batch_of()
    losses = model.token_losses(**naming_windows(batch))
    assert losses[:, 1].tolist() == list(LENGTHS)
    for beams in (1, 5):
        settings = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False}
        tokens, scores = model.generate(naming_windows(without_labels(batch)), **settings)
        assert len({tuple(written(own)) for own in tokens}) > 1
        for row in range(len(LENGTHS)):
            one = naming_windows(batch_of([row]))
            torch.testing.assert_close(model.token_losses(**one)[0], losses[row], rtol=1e-5, atol=1e-5)
            (alone,), (score,) = model.generate(without_labels(one), **settings)
            assert written(alone) == written(tokens[row])
            assert score.item() == pytest.approx(scores[row].item(), abs=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_loss_is_the_mean_over_all_tokens_and_generation_continues_what_it_measures(name):
    model = build(name)
    batch = batch_of()
    sums = model.token_losses(**batch).sum(dim=0)
    torch.testing.assert_close(model(**batch).loss, sums[0] / sums[1])
    assert model.count_items(batch)["generation"] == sum(LENGTHS)
    # The loss of what greedy search writes is minus its score, unless it writes padding.
    model.generation_config.suppress_tokens = None
    tokens, scores = model.generate(without_labels(batch), num_beams=1, max_new_tokens=5, do_sample=False)
    width = max(len(own) for own in tokens)
    labels = torch.stack([F.pad(own, (0, width - len(own)), value=IGNORED) for own in tokens])
    ended = labels == 1  # padding follows the end token
    labels = labels.masked_fill(ended.cumsum(dim=1) - ended.long() > 0, IGNORED)
    losses = model.token_losses(**{**batch, "labels": labels})
    compared = ~(labels == 0).any(dim=1)
    assert compared.any()
    torch.testing.assert_close((-losses[:, 0] / losses[:, 1])[compared], scores[compared], rtol=1e-4, atol=1e-5)


def test_a_text_depends_on_the_clip_and_on_both_prompts():
    model = build("m2m_100")
    batch = batch_of()
    logits = model(**batch).logits
    for name in ("audio_values", "pixel_values_videos", "prompt_ids", "decoder_prompt_ids"):
        value = batch[name]
        other = value.flip(0) if name != "pixel_values_videos" else 255 - value
        changed = model(**{**batch, name: other}).logits
        assert not torch.equal(changed[0], logits[0]), name


def test_smoothing_spreads_a_share_of_each_target_over_the_vocabulary():
    model = build("t5")
    batch = batch_of()
    model.smooth_labels(0.1)
    plain = model(**batch).loss
    logits, wanted = model._predict(batch["labels"], without_labels(batch))
    log_p = logits.float().log_softmax(dim=-1)[wanted != IGNORED]
    wanted = wanted[wanted != IGNORED]
    nll = -log_p.gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(plain, nll.mean())  # not in evaluation
    torch.testing.assert_close(model.train()(**batch).loss, 0.9 * nll.mean() - 0.1 * log_p.mean())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_new_mapper_has_the_scale_of_the_word_embeddings(name):
    torch.manual_seed(0)
    settings = {"text_config": None, "text_backbone_config": backbone_config(name), "mapper_dropout": 0.0}
    model = MultimodalForConditionalGeneration(tiny_config(**settings)).eval()
    model.fit_mapper()
    expected = embedding_scale(model.backbone)
    clips = model._clip(batch_of([0, 1]))
    found = clips.states[clips.mask].square().mean().sqrt().item()
    assert math.log2(found / expected) == pytest.approx(0, abs=0.7)


def test_new_tokens_get_the_mean_of_the_known_embeddings():
    torch.manual_seed(0)
    backbone = build_backbone(backbone_config("m2m_100"))
    before = backbone.get_input_embeddings().weight.detach().clone()
    add_embeddings(backbone, VOCABULARY - 3)  # the vocabulary of the weights is larger: nothing to do
    assert backbone.get_input_embeddings().num_embeddings == VOCABULARY
    add_embeddings(backbone, VOCABULARY + 2)
    after = backbone.get_input_embeddings().weight.detach()
    assert torch.equal(after[:VOCABULARY], before) and len(after) == VOCABULARY + 2
    mean = before.mean(dim=0).expand(2, -1)
    torch.testing.assert_close(after[VOCABULARY:], mean, atol=0.06 * before.std().item(), rtol=0)
    assert not torch.equal(after[-1], after[-2])
    assert backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight


def test_a_model_without_a_backbone_or_with_a_text_tower_is_refused():
    for settings in ({"text_config": None}, {"text_backbone_config": backbone_config("t5")}):
        with pytest.raises(ValueError, match="needs a `text_backbone_config`, and no `text_config`"):
            MultimodalForConditionalGeneration(tiny_config(**settings))
    with pytest.raises(ValueError, match="'vit' does not write text"):
        build_backbone(AutoConfig.for_model("vit"))


def test_a_saved_model_writes_the_same(tmp_path):
    model = build("llama")
    model.generation_config.update(num_beams=2, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    loaded = MultimodalForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.generation_config.num_beams == 2
    batch = without_labels(batch_of())
    for first, second in zip(model.generate(batch)[0], loaded.generate(batch)[0], strict=True):
        assert torch.equal(first, second)
