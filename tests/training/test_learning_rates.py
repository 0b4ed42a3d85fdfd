"""Learning rates by layer, against values computed by hand."""

import pytest
import torch

from simple_multimodal.models.encoders import ENCODERS
from simple_multimodal.models.lora import add_lora
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.learning_rates import number_layers, parameter_rates, set_learning_rates
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.models import tiny, tiny_towers
from tests.models.alpro import tiny as tiny_alpro
from tests.training.tiny_run import flags, run


def rates_by_name(model, **values) -> dict[str, float]:
    """Return the rates by parameter name; the run's rate is 0.8."""
    rates = parameter_rates(model, MultimodalTrainingArguments(output_dir="out", use_cpu=True, **values), 0.8)
    return {name: rates[parameter] for name, parameter in model.named_parameters() if parameter in rates}


def test_rates_decrease_from_layer_to_layer():
    model = MultimodalForPreTraining(tiny.tiny_config())  # towers of two layers
    found = rates_by_name(model, layer_decay=0.5, text_learning_rate=0.4)
    starts = {
        "multimodal.text_encoder.embeddings.": 0.05,  # 0.4 * 0.5 ** 3
        "multimodal.text_encoder.encoder.layer.0.": 0.1,
        "multimodal.text_encoder.encoder.layer.1.": 0.2,
        "multimodal.audio_encoder.embeddings.": 0.1,  # 0.8 * 0.5 ** 3
        "multimodal.audio_encoder.layers.0.": 0.2,
        "multimodal.audio_encoder.layers.1.": 0.4,
        "multimodal.audio_encoder.layernorm.": 0.8,
        "multimodal.video_encoder.embeddings.": 0.1,
        "multimodal.video_encoder.encoder.layer.0.": 0.2,
        "multimodal.video_encoder.encoder.layer.1.": 0.4,
    }
    for start, rate in starts.items():
        assert {value for name, value in found.items() if name.startswith(start)} == {rate}, start
    assert all(name.startswith(tuple(starts)) for name in found)  # the fusion and the heads keep the run's rate
    towers = [parameter for name in ("text", "audio", "video") for parameter in model.towers[name].parameters()]
    assert len(found) == len(towers)


def test_a_tower_with_its_own_rate_has_a_single_rate_without_decay():
    found = rates_by_name(MultimodalForPreTraining(tiny.tiny_config()), video_learning_rate=0.3)
    assert set(found.values()) == {0.3} and all(".video_encoder." in name for name in found)


def test_relative_positions_count_as_embeddings():
    tower = MultimodalForPreTraining(tiny.tiny_config(text="deberta-v2")).towers["text"]
    numbers = {name: number_layers(tower)[parameter] for name, parameter in tower.named_parameters()}
    assert numbers["encoder.rel_embeddings.weight"] == numbers["embeddings.word_embeddings.weight"] == 0
    assert numbers["encoder.layer.1.attention.self.query_proj.weight"] == 2


def test_log_mel_normalisation_of_clap_counts_as_embeddings():
    tower = ENCODERS["audio", "clap_audio_model"](tiny_towers.tiny_config("clap").audio_config)
    numbers = {name: number_layers(tower)[parameter] for name, parameter in tower.named_parameters()}
    assert numbers["audio_encoder.batch_norm.weight"] == numbers["audio_encoder.patch_embed.proj.weight"] == 0
    assert numbers["audio_encoder.norm.weight"] == numbers["audio_projection.linear1.weight"] == 3  # after two stages


def test_layers_of_alpro_are_counted_by_tower():
    model = tiny_alpro.build()
    found = rates_by_name(model, layer_decay=0.5)
    assert found["alpro.text_encoder.embeddings.word_embeddings.weight"] == 0.1
    assert (
        found["alpro.text_encoder.encoder.layer.1.attention.self.query.weight"] == 0.4
    )  # the last of two text layers
    assert "alpro.text_encoder.encoder.layer.2.attention.self.query.weight" not in found  # a fusion layer
    assert found["alpro.video_encoder.encoder.layer.0.temporal_dense.weight"] == 0.2
    assert found["alpro.video_encoder.layernorm.weight"] == 0.8


def test_adapters_have_the_rate_of_their_layer():
    model = MultimodalForPreTraining(tiny.tiny_config())
    add_lora(model, rank=2, alpha=4, towers=["video"])
    found = rates_by_name(model, layer_decay=0.5)
    adapter = "multimodal.video_encoder.encoder.layer.{}.attention.attention.query.lora_A.default.weight"
    assert [found[adapter.format(layer)] for layer in (0, 1)] == [0.2, 0.4]


def test_groups_keep_their_weight_decay():
    first, second, third = (torch.nn.Parameter(torch.zeros(())) for _ in range(3))
    optimizer = torch.optim.AdamW(
        [{"params": [first, second], "weight_decay": 0.1}, {"params": [third], "weight_decay": 0.0}], lr=1.0
    )
    set_learning_rates(optimizer, {second: 0.5, third: 0.5})
    groups = [(group["params"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [([first], 1.0, 0.1), ([second], 0.5, 0.1), ([third], 0.5, 0.0)]


def test_parameter_groups_of_a_run(start, tmp_path, monkeypatch):
    made = []

    class KeptTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeptTrainer)
    rates = {"learning_rate": 0.8, "text_learning_rate": 0.4, "layer_decay": 0.5, "weight_decay": 0.01}
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=1, freeze="audio", **rates))
    groups = {
        (group["initial_lr"], group["weight_decay"]): len(group["params"])
        for group in made[0].optimizer.optimizer.param_groups
    }
    # Towers have one layer: 0.25 times a tower's rate for embeddings, 0.5 times for the layer.
    assert {key for key in groups} == {(rate, decay) for rate in (0.1, 0.2, 0.4, 0.8) for decay in (0.01, 0.0)}
    # Text tower (0.4): three tables and the norm in the embeddings; six matrices and ten others in the layer.
    # Video tower (0.8): one kernel and its bias; six matrices and nine others in the layer (no bias of keys).
    assert groups[0.1, 0.01] == 3 and groups[0.1, 0.0] == 2
    assert groups[0.2, 0.01] == 6 + 1 and groups[0.2, 0.0] == 10 + 1
    assert groups[0.4, 0.01] == 6 and groups[0.4, 0.0] == 9
    assert sum(groups.values()) == sum(parameter.requires_grad for parameter in made[0].model.parameters())


@pytest.mark.parametrize("decay", [0, -0.5, 1.5])
def test_invalid_decays_are_errors(decay):
    with pytest.raises(ValueError, match=f"--layer_decay is {decay}; give a factor above 0, up to 1"):
        MultimodalTrainingArguments(output_dir="out", use_cpu=True, layer_decay=decay)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freeze": "video", "video_learning_rate": 1e-3, "layer_decay": 0.5}, "video_learning_rate would have no"),
        ({"freeze": ["text", "audio", "video"], "layer_decay": 0.5}, "layer_decay would have no effect: nothing is"),
        ({"modalities": ["text", "video"], "audio_learning_rate": 1e-3}, "audio_learning_rate would have no effect"),
        (
            {"freeze": "text", "gradient_checkpointing_towers": "text"},
            "_towers would have no effect on text: the tower",
        ),
        (
            {
                "lora_rank": 2,
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": '{"use_reentrant": true}',
            },
            "LoRA needs non-reentrant activation checkpointing",
        ),
    ],
)
def test_settings_of_untrained_parts_are_errors_before_anything_is_written(start, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        run(*start, "--do_train", *flags(output_dir=tmp_path / "out", **values))
    assert not list(tmp_path.glob("out/*"))


def test_training_settings_do_not_affect_an_evaluation(start, tmp_path):
    run(*start, "--do_train", *flags(output_dir=tmp_path / "model", max_steps=1, save_strategy="no"))
    values = {"model_name_or_path": tmp_path / "model", "freeze": ["text", "audio", "video"], "layer_decay": 0.5}
    assert run(*start, "--do_eval", *flags(output_dir=tmp_path / "out", **values))


def test_activation_checkpointing_kwargs_need_activation_checkpointing():
    with pytest.raises(ValueError, match="_kwargs would have no effect without --activation_checkpointing True"):
        MultimodalTrainingArguments(
            output_dir="out", use_cpu=True, activation_checkpointing_kwargs={"use_reentrant": False}
        )
