"""The model card: metadata that the hub reads, measured numbers, and text that cannot break out."""

import json

import pytest
from huggingface_hub import ModelCard

from simple_multimodal.evaluation.model_card import write_model_card


def write(folder, **changes):
    arguments = {
        "metrics": {"text_to_video_R@1": 0.9531, "text_to_video_mean_rank": 1.25},
        "protocol": "toy-heldout",
        "counts": {"queries": 240, "clips": 240},
        "training_counts": {"rows": 12000, "skipped_samples": 2},
        "run": {"command": "python train.py --seed 1", "versions": {"torch": "2.11.0"}, "arguments": {"seed": 1}},
        "dataset_name": "toy world",
        "base_models": ["google-bert/bert-base-uncased"],
        "intervals": {"text_to_video_R@1": (0.93, 0.97)},
        "license": "apache-2.0",
    }
    return ModelCard.load(write_model_card(folder, **(arguments | changes)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["MultimodalForRetrieval"]}))
    return folder


def test_metadata_holds_the_measured_numbers(folder):
    data = write(folder).data
    assert data.library_name == "transformers"
    assert data.license == "apache-2.0"
    assert data.base_model == ["google-bert/bert-base-uncased"]
    assert {"multimodal", "text", "audio", "video", "pre-training"} <= set(data.tags)
    assert data.model_name == "my-model"
    assert [(result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("text_to_video_R@1", 0.9531),
        ("text_to_video_mean_rank", 1.25),
    ]
    assert data.eval_results[0].task_type == "pre-training"
    assert data.eval_results[0].dataset_name == "toy world"
    assert data.eval_results[0].dataset_args == {"protocol": "toy-heldout", "counts": {"queries": 240, "clips": 240}}


def test_text_says_how_to_load_what_was_measured_and_how_to_repeat_it(folder):
    text = write(folder).text
    assert 'model = MultimodalForRetrieval.from_pretrained("my-model")' in text
    assert "| `text_to_video_R@1` | 0.9531 | 0.9300 – 0.9700 |" in text
    assert "| `text_to_video_mean_rank` | 1.25 |  |" in text
    assert "protocol `toy-heldout`, over 240 queries, 240 clips" in text
    assert "| rows | 12,000 |" in text
    assert "```bash\npython train.py --seed 1\n```" in text
    assert "| torch | 2.11.0 |" in text
    assert "| arguments.seed | 1 |" in text


def test_loading_takes_five_lines_that_compile(folder):
    code = write(folder).text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line]) <= 5


def test_local_base_model_is_named_without_its_path_and_not_in_the_metadata(folder, tmp_path, monkeypatch):
    tower = tmp_path / "my-tower"
    tower.mkdir()
    monkeypatch.chdir(tmp_path.parent)
    relative = f"{tmp_path.name}/my-tower"  # reads like a hub name
    card = write(folder, base_models=[str(tower), relative, "bert-base-uncased"])
    assert card.data.base_model == ["bert-base-uncased"]
    assert "Built on `my-tower`, `my-tower`, `bert-base-uncased`." in card.text
    assert str(tmp_path) not in card.content


def test_without_metrics_or_base_models_the_card_says_so(folder):
    card = write(folder, metrics={}, intervals={}, base_models=[])
    assert card.data.eval_results is None
    assert card.data.base_model is None
    assert "Nothing was measured." in card.text
    assert "random start" in card.text


def test_text_cannot_break_out(folder):
    hostile = "<img src=x>|`x`\n---\nlicense: other\n# title"
    card = write(
        folder,
        protocol=hostile,
        dataset_name=hostile,
        model_name=hostile,
        counts={hostile: 1},
        run={"command": "echo ```\n# not a title", "versions": {hostile: hostile}, "x": hostile},
    )
    assert card.data.license == "apache-2.0"
    assert card.data.model_name == hostile
    assert "````bash\necho ```\n# not a title\n````" in card.text
    assert "\n# title" not in card.text
    assert r"\# title" in card.text
    outside_code = card.text.split("## What was measured")[1]
    assert "<img" not in outside_code.replace("`<img src=x>x --- license: other # title`", "")


def test_wrong_input_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`command`.*`versions`.*got \\['seed'\\]"):
        write(folder, run={"seed": 1})
    with pytest.raises(ValueError, match="'loss' is inf"):
        write(folder, metrics={"loss": float("inf")}, intervals={})
    with pytest.raises(ValueError, match="holds no config.json"):
        write(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no model class"):
        write(folder)
