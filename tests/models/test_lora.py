"""Adapters in towers: where they go, that only they are trained, and that every way to save them is equivalent."""

import json
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import nn

from simple_multimodal.alpro import AlproForQuestionAnswering, AlproForRetrieval
from simple_multimodal.models.base import TowerModel, transformer_layers
from simple_multimodal.models.loading import fold_names
from simple_multimodal.models.lora import (
    ADAPTER_FOLDER,
    add_lora,
    find_targets,
    merge_lora,
    require_peft,
    save_adapter,
)
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.closeness import assert_close
from tests.models import tiny
from tests.models.alpro import tiny as tiny_alpro

ANSWERS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def multimodal(model_class=MultimodalForPreTraining, **changes) -> TowerModel:
    torch.manual_seed(0)
    return tiny.randomize(model_class(tiny.tiny_config(**changes)))


MODELS: dict[str, tuple[Callable[[], TowerModel], Callable[[], dict[str, torch.Tensor]]]] = {
    "pretraining": (multimodal, tiny.make_batch),
    "answers": (lambda: multimodal(MultimodalForQuestionAnswering, **ANSWERS), tiny.make_batch),
    "deberta": (lambda: multimodal(text="deberta-v2"), tiny.make_batch),
    "alpro": (tiny_alpro.build, tiny_alpro.make_batch),
    "alpro answers": (lambda: tiny_alpro.build(AlproForQuestionAnswering, **ANSWERS), tiny_alpro.make_batch),
}


def adapted(model: TowerModel, towers=("text", "video"), **changes) -> TowerModel:
    """Return the model with adapters whose effect shows, and with other weights in all other trained parts."""
    add_lora(model, **{"rank": 2, "alpha": 6, "towers": towers, **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_the_default_targets_are_the_projections_of_attention():
    expected = {
        "text": [f"text_encoder.encoder.layer.{{0-1}}.attention.self.{name}" for name in ("query", "key", "value")]
        + ["text_encoder.encoder.layer.{0-1}.attention.output.dense"],
        "audio": [f"audio_encoder.layers.{{0-1}}.attention.{name}_proj" for name in "qkvo"],
        "video": [f"video_encoder.encoder.layer.{{0-1}}.attention.attention.{n}" for n in ("query", "key", "value")]
        + ["video_encoder.encoder.layer.{0-1}.attention.output.dense"],
    }
    model = multimodal()
    for tower, names in expected.items():
        assert fold_names(find_targets(model, [tower])) == names
    fusion = find_targets(model, ["fusion"])
    assert len(fusion) == 4 * 2 * 3 and {name.split(".")[0] for name in fusion} == {"fusion"}
    deberta = find_targets(MODELS["deberta"][0](), ["text"])
    assert [name.rsplit(".", 1)[1] for name in deberta[:4]] == ["query_proj", "key_proj", "value_proj", "dense"]


def test_the_default_targets_of_alpro_are_the_projections_of_attention():
    model = tiny_alpro.build()
    names = [".attention.self.query", ".attention.self.key", ".attention.self.value", ".attention.output.dense"]
    assert fold_names(find_targets(model, ["text"])) == [f"text_encoder.encoder.layer.{{0-1}}{n}" for n in names]
    assert fold_names(find_targets(model, ["fusion"])) == [f"text_encoder.encoder.layer.{{2-3}}{n}" for n in names]
    ends = ["attention.attention.qkv", "attention.output.dense"]
    ends += ["temporal_attention.attention.qkv", "temporal_attention.output.dense"]
    assert fold_names(find_targets(model, ["video"])) == [f"video_encoder.encoder.layer.{{0-1}}.{end}" for end in ends]


def test_targets_can_be_named():
    model = multimodal()
    names = find_targets(model, ["text", "audio"], ["self.query", "fc1"])
    text, audio = "text_encoder.encoder.layer.{0-1}.attention.self.query", "audio_encoder.layers.{0-1}.mlp.fc1"
    assert fold_names(names) == [text, audio]


@pytest.mark.parametrize(
    ("towers", "targets", "message"),
    [
        (["speech"], [], r"Cannot add LoRA to speech: this model has text, audio, video, fusion. Name some of these"),
        (["text"], ["q_proj"], r"text tower has no q_proj .*; there are text_encoder.encoder.layer.\{0-1\}.attention"),
        (["text"], ["uery"], "text tower has no uery"),
        (
            ["text"],
            ["query", "q_proj"],
            r"`lora_target_modules` q_proj: no linear layer of text .* There are text_enc",
        ),
        (["audio"], ["projection"], "audio tower has no projection"),  # a convolution
    ],
)
def test_unknown_towers_and_layers_are_refused(towers, targets, message):
    with pytest.raises(ValueError, match=message) as error:
        add_lora(multimodal(), rank=2, alpha=4, towers=towers, target_modules=targets)
    assert "\n" not in str(error.value)


def test_other_adapters_than_the_saved_ones_are_refused():
    model = adapted(multimodal())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, rank=2, alpha=6, towers=["text", "video"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="has LoRA adapters with a different r, target_modules"):
        add_lora(model, rank=4, alpha=6, towers=["text"])


def test_the_error_names_peft_if_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'simple-multimodal\[lora\]'"):
        require_peft()


@pytest.mark.parametrize("kind", MODELS)
def test_new_adapters_change_no_output_and_only_they_are_trained(kind):
    build, make_batch = MODELS[kind]
    model = build()
    names = {name for name, _ in model.named_parameters()}
    before = model(**make_batch()).logits
    model.freeze(["fusion"])
    add_lora(model, rank=2, alpha=4, towers=["text"])
    assert_close(model(**make_batch()).logits, before)
    inside = {id(parameter) for tower in ("text", "fusion") for parameter in model.towers[tower].parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in inside or ".lora_" in name), name
    assert {name.replace(".base_layer", "") for name, _ in model.named_parameters() if ".lora_" not in name} == names


@pytest.mark.parametrize("kind", MODELS)
def test_every_way_to_save_adapters_gives_the_same_model(kind, tmp_path):
    build, make_batch = MODELS[kind]
    model, batch = build(), make_batch()
    model_class = type(model)
    model.save_pretrained(tmp_path / "base")
    untrained = model(**batch).logits
    adapted(model)
    with torch.no_grad():
        expected = model(**batch).logits
    assert (expected - untrained).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "injected")
    injected = model_class.from_pretrained(tmp_path / "injected").eval()
    assert_close(injected(**batch).logits, expected)
    saved = injected.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())

    save_adapter(model, tmp_path / ADAPTER_FOLDER, base_model=str(tmp_path / "base"))
    prefix = f"{model.base_model_prefix}."
    written = json.loads((tmp_path / ADAPTER_FOLDER / "adapter_config.json").read_text())["target_modules"]
    assert written == [prefix + name for name in model.config.lora["target_modules"]]
    merge_lora(model)
    model.save_pretrained(tmp_path / "merged")
    merged, info = model_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and merged.config.lora is None
    assert type(merged.eval()).__name__ == model_class.__name__
    assert_close(merged(**batch).logits, expected)

    base = model_class.from_pretrained(tmp_path / "base")
    alone = PeftModel.from_pretrained(base, tmp_path / ADAPTER_FOLDER).eval()
    assert_close(alone(**batch).logits, expected)
    if kind == "pretraining":
        found, wanted = alone(**batch), merged(**batch)
        for name in ("text_embeds", "audio_embeds", "video_embeds", "clip_embeds"):
            assert_close(found[name], wanted[name])


def count_attention(model: TowerModel) -> dict[str, int]:
    """Count how often the layers of each tower, and of the video decoder, run in one step; leave gradients behind."""
    counts: dict[str, int] = {}
    hooks = []
    stacks = {name: transformer_layers(tower) for name, tower in model.towers.items()}
    if isinstance(model, MultimodalForPreTraining):
        stacks["decoder"] = transformer_layers(model.video_decoder)

    for name, layers in stacks.items():
        part: nn.Module = layers[0].attention

        def count(*_, name=name):
            counts[name] = counts.get(name, 0) + 1

        hooks.append(part.register_forward_hook(count))
    model.train()
    model(**(tiny_alpro if isinstance(model, AlproForRetrieval) else tiny).make_batch()).loss.backward()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize(
    ("build", "towers"),
    [
        (multimodal, ["video", "audio"]),
        (multimodal, ["fusion"]),
        (multimodal, ["text"]),
        (tiny_alpro.build, ["text"]),
        (tiny_alpro.build, ["video"]),
    ],
)
def test_only_named_towers_are_recomputed_with_the_same_gradients(build, towers):
    plain, checkpointed = build(), build()
    checkpointed.checkpoint_activations(towers)
    once, again = count_attention(plain), count_attention(checkpointed)
    assert again == {name: (2 if name in towers else 1) * number for name, number in once.items()}
    found, expected = ({n: p.grad for n, p in model.named_parameters()} for model in (checkpointed, plain))
    assert_close(found, expected)


def test_a_frozen_tower_gets_no_gradients_from_checkpointing():
    model = multimodal()
    model.freeze(["text"])
    model.checkpoint_activations(["text"])
    assert count_attention(model)["text"] == count_attention(multimodal())["text"]


def test_a_missing_tower_cannot_be_checkpointed():
    with pytest.raises(ValueError, match="activations of 'audio': this model has text, video, fusion"):
        tiny_alpro.build().checkpoint_activations(["audio"])
