"""A modality defined outside the package: training, rows without it, saving and loading, search and evaluation."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, set_seed

import simple_multimodal as smm
from simple_multimodal.data import readers, records
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.inference.requests import ClipKey
from simple_multimodal.modalities import BUILT_IN_MODALITIES, INPUT_KEYS, MODALITIES, PRESENCE_KEYS, TOKEN_KEYS
from simple_multimodal.models.encoders import ENCODERS
from simple_multimodal.processing import processing_multimodal
from simple_multimodal.tasks.registry import get_task
from tests.training.tiny_run import CAPTIONS, CONFIGS, flags, write_clips

SCRIPT = Path(__file__).parent / "own/train_sensors.py"
TABLES = (INPUT_KEYS, PRESENCE_KEYS, TOKEN_KEYS, ENCODERS, records.MODALITY_COLUMNS, readers.READERS)
TAKEN = ("text", "video", "sensors")


@pytest.fixture(scope="module", autouse=True)
def own():
    """The module that adds the modality, which is removed after the tests of this file."""
    tables = (*TABLES, processing_multimodal.PARTS)
    before = [dict(table) for table in tables]
    sys.path.insert(0, str(SCRIPT.parent))
    import sensors

    yield sensors
    sys.path.remove(str(SCRIPT.parent))
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips, `rows.jsonl` and configs of towers. Rows 1 and 3 have no numbers, row 4 has no video."""
    folder = write_clips(tmp_path_factory.mktemp("clips"))
    rows = [{"video": f"{row}.mp4", "caption": caption} for row, caption in enumerate(CAPTIONS)]
    rows[4]["video"] = None
    for number in (0, 2, 4, 5, 6):
        rows[number]["sensors"] = [number / 3, 1.0, -number, 0.5]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, values in (CONFIGS | {"sensors": {"model_type": "sensors", "num_values": 4, "hidden_size": 8}}).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def dataset(folder) -> smm.Dataset:
    return smm.Dataset.from_manifest(folder / "rows.jsonl", roots=folder / "video", modalities=TAKEN)


def make(folder: Path, dataset, *towers: str, **settings):
    set_seed(0)
    places = {name: str(folder / f"{name}.json") for name in (*(towers or TAKEN), "fusion")}
    return smm.from_towers(**places, task="retrieval", train_dataset=dataset, contrastive_dim=8, **settings)


def train(model, processor, dataset, output_dir: Path, **settings) -> smm.Trainer:
    args = smm.TrainingArguments(
        str(output_dir), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", learning_rate=0.01,
        per_device_train_batch_size=4, lr_scheduler_type="constant", dataloader_num_workers=0, **settings
    )  # fmt: skip
    trainer = smm.Trainer(model, args, processor=processor, train_dataset=dataset)
    trainer.train()
    return trainer


def run(*argv: str) -> subprocess.CompletedProcess:
    """Run `train.py` in a process that has imported the module."""
    return subprocess.run([sys.executable, SCRIPT, *argv], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(folder, dataset, tmp_path_factory) -> Path:
    """A model that was trained for four steps and saved."""
    model, processor = make(folder, dataset)
    output = tmp_path_factory.mktemp("run")
    trainer = train(model, processor, dataset, output, max_steps=4)
    trainer.save_model()
    return output


def outputs(model, batch) -> dict[str, torch.Tensor]:
    """Return all outputs of a model that depend on single rows."""
    text = model.multimodal.encode_text({name: batch[name] for name in ("input_ids", "attention_mask")})
    embeds, clip = model.encode_clip(batch)
    return {"text": text[0], "clip": embeds, "matching": model.matching_logits(text[1], clip)}


@pytest.mark.parametrize("clip_embedding", ["fusion", "mean"])
def test_training_changes_the_tower_of_a_custom_modality(folder, dataset, tmp_path, clip_embedding):
    model, processor = make(folder, dataset, clip_embedding=clip_embedding)
    assert model.config.modalities == processor.modalities == TAKEN
    before = {name: tensor.clone() for name, tensor in model.multimodal.sensors_encoder.state_dict().items()}
    trainer = train(model, processor, dataset, tmp_path, max_steps=3)
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    after = model.multimodal.sensors_encoder.state_dict()
    assert sorted(after) == ["layers.0.bias", "layers.0.weight", "layers.2.bias", "layers.2.weight"]
    for name, tensor in after.items():
        assert not torch.equal(tensor, before[name]), f"{name} has not changed"


@pytest.mark.parametrize("form", ["merge", "co_attention", "cross_attention"])
@pytest.mark.parametrize("clip_embedding", ["fusion", "mean"])
@torch.no_grad()
def test_values_of_rows_that_lack_the_modality_have_no_effect(folder, dataset, form, clip_embedding):
    model, processor = make(folder, dataset, fusion_form=form, clip_embedding=clip_embedding, fusion_pool="time")
    batch = MultimodalCollator(processor)(list(dataset))
    assert batch["sensors_mask"].tolist() == [True, False, True, False, True, True, True]
    assert batch["sensor_values"][2].tolist() == pytest.approx([2 / 3, 1.0, -2.0, 0.5])
    garbage = {**batch, "sensor_values": batch["sensor_values"].clone()}
    garbage["sensor_values"][~batch["sensors_mask"]] = 1e4
    changed = {**batch, "sensor_values": batch["sensor_values"] + 1}
    first, same, other = (outputs(model.eval(), rows) for rows in (batch, garbage, changed))
    for name, values in first.items():
        assert values.isfinite().all() and torch.equal(values, same[name])
    has, lacks = batch["sensors_mask"], ~batch["sensors_mask"]
    assert not torch.equal(first["clip"][has], other["clip"][has])
    assert torch.equal(first["clip"][lacks], other["clip"][lacks])


def test_a_batch_without_the_modality_reaches_the_same_parameters(folder, dataset):
    model, processor = make(folder, dataset)
    targets = get_task("retrieval")().build_targets(model, processor)
    collator = MultimodalCollator(processor, training=True, targets=targets)
    reached = []
    for batch in (collator(list(dataset)), collator([dataset[1], dataset[3]])):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        assert loss.isfinite()
        reached.append({name for name, weights in model.named_parameters() if weights.grad is not None})
    assert reached[0] == reached[1]
    assert {name for name in reached[0] if "sensors" in name} > {"multimodal.fusion.projections.sensors.weight"}


def test_clips_with_the_modality_can_be_searched(trained, dataset):
    retriever = smm.Retriever.from_pretrained(trained)
    index = retriever.index(dataset)
    assert index.ids == [str(number) for number in range(7)]  # row 4 has only numbers
    dropped = smm.Retriever.from_pretrained(trained, drop_modalities=("sensors",)).index(dataset)
    same = [torch.allclose(a, b) for a, b in zip(index.embeds, dropped.embeds, strict=True)]
    assert same == [number in (1, 3) for number in range(7)]
    assert len(retriever.search("a cat purrs", index, top_k=3, rerank=2)) == 3


def test_rows_that_differ_only_in_the_modality_are_different_clips(trained, folder):
    rows = [{"video": "0.mp4", "sensors": [n, 0, 0, 0]} for n in (1, 2, 1)]
    dataset = smm.Dataset(rows, roots=folder / "video", modalities=("sensors",))
    retriever = smm.Retriever.from_pretrained(trained)
    own = retriever.rows(dataset)
    assert [row["id"] for row in own] == ["0", "1"]
    assert retriever.key(own[:1]) != retriever.key([{**own[0], "sensors": [2, 0, 0, 0]}])
    assert ClipKey.of({**own[0], "sensors": None}) == ClipKey.of({**own[0], "sensors": ""})  # an empty cell


def test_a_saved_model_can_be_evaluated_in_a_new_process(trained, dataset, folder, tmp_path):
    evaluation = smm.evaluate(trained, dataset)
    argv = flags(
        "--do_eval", "--use_cpu", "--disable_tqdm", task="retrieval", modalities=list(TAKEN), output_dir=tmp_path,
        model_name_or_path=trained, validation_file=folder / "rows.jsonl", video_root=folder / "video",
        cache_dir=folder / "cache", dataloader_num_workers=0,
    )  # fmt: skip
    done = run(*argv)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "all_results.json").read_text())
    assert math.isfinite(metrics["eval_loss"])
    for name in ("text_to_video_R@1", "text_to_video_mean_rank", "video_to_text_R@5"):
        assert metrics[f"eval_{name}"] == evaluation.metrics[name]


def test_loading_names_a_modality_that_is_not_registered(trained, monkeypatch):
    monkeypatch.delitem(INPUT_KEYS, "sensors")
    assert tuple(MODALITIES) == BUILT_IN_MODALITIES
    with pytest.raises(ValueError, match="`sensors_config` is for a tower of an unknown modality.* Import the module"):
        AutoConfig.from_pretrained(trained)


def test_a_row_with_the_wrong_number_of_values_is_refused(trained, folder):
    model, processor = smm.load(trained)
    dataset = smm.Dataset([{"caption": "a", "sensors": [1, 2]}], modalities=("text", "sensors"))
    with pytest.raises(ValueError, match="row 0 .*`sensors` has 2 numbers; 4 are expected"):
        MultimodalCollator(processor)([dataset[0]])


def test_models_without_the_modality_do_not_change(folder, dataset):
    """The fusion has one modality embedding per built-in modality, and one more for this modality."""
    without, _ = make(folder, dataset, "text", "video")
    model, _ = make(folder, dataset)
    assert len(without.multimodal.fusion.modality_embeddings.weight) == 3
    assert len(model.multimodal.fusion.modality_embeddings.weight) == 4
    further = set(model.state_dict()) - set(without.state_dict())
    assert all("sensors" in name for name in further) and without.config.modalities == ("text", "video")


def test_a_custom_tower_has_no_flags(folder, tmp_path):
    done = run(
        "--do_train", *flags(modalities=["text", "sensors"], train_file=folder / "rows.jsonl", output_dir=tmp_path)
    )
    assert done.returncode == 2
    assert "--modalities names sensors, but train.py has no flags for such a tower" in done.stderr


def test_a_row_can_have_only_the_modality_and_empty_cells_are_missing_values(trained):
    rows = [{"sensors": [1, 2, 3, 4]}, {"sensors": "", "caption": "rain falls"}]
    dataset = smm.Dataset(rows, modalities=("sensors",))
    batch = MultimodalCollator(smm.load(trained)[1])(list(dataset))
    assert batch["sensors_mask"].tolist() == [True, False] and batch["text_mask"].tolist() == [False, True]
    retriever = smm.Retriever.from_pretrained(trained)
    assert retriever.index(dataset).ids == ["0"]
    with pytest.raises(ValueError, match="the row is empty"):
        smm.Dataset([{"sensors": ""}], modalities=("sensors",))


def test_features_of_a_modality_without_files_are_refused(trained, dataset, tmp_path):
    with pytest.raises(ValueError, match="Features need the files of clips, and sensors has none"):
        TowerFeatures.from_pretrained(trained).write("sensors", [dataset], tmp_path)
