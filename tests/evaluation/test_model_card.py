"""The model card: metadata for the hub, metrics, and escaped text."""

import json

import pytest
from huggingface_hub import ModelCard

from simple_multimodal.evaluation.model_card import write_model_card


def write(folder, **changes):
    arguments = {
        "task": "question_answering",
        "modalities": ("text", "video"),
        "metrics": {
            "text_to_video_mean_rank": 1.25,
            "text_to_video_R@1": 0.9531,
            "text_to_video_num_candidates": 240,
        },
        "primary_metric": "text_to_video_R@1",
        "protocol": "toy-heldout",
        "counts": {"queries": 240, "clips": 240},
        "training_counts": {"rows": 12000, "skipped_samples": 2},
        "settings": {"learning_rate": 1e-4, "freeze": ["audio"]},
        "run": {"command": "train.py --seed 1", "versions": {"torch": "2.11.0"}, "arguments": {"seed": 1}},
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


def test_metadata_contains_the_metrics(folder):
    data = write(folder).data
    assert data.library_name == "transformers"
    assert data.license == "apache-2.0"
    assert data.base_model == ["google-bert/bert-base-uncased"]
    assert data.tags == ["multimodal", "simple-multimodal", "text", "video", "question_answering"]
    assert data.model_name == "my-model"
    assert [(result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("text_to_video_R@1", 0.9531),
        ("text_to_video_mean_rank", 1.25),
    ]  # the primary metric first, and no counts
    assert data.eval_results[0].task_type == "question_answering"
    assert data.eval_results[0].dataset_name == "toy world"
    assert data.eval_results[0].dataset_args == {"protocol": "toy-heldout", "counts": {"queries": 240, "clips": 240}}


def test_text_says_how_to_load_the_model_its_metrics_and_how_to_reproduce_it(folder):
    text = write(folder).text
    assert 'model = MultimodalForRetrieval.from_pretrained("my-model")' in text
    assert "**text to video R@1: 0.9531**, 95 % interval 0.9300 – 0.9700 (chance: 0.0042), on toy world." in text
    assert "over text and video, trained with simple_multimodal; task: question answering." in text
    assert "| `text_to_video_R@1` | 0.9531 | 0.9300 – 0.9700 | 0.0042 |" in text
    assert "| `text_to_video_mean_rank` | 1.25 |  | 120.5 |" in text
    assert "over 240 queries, 240 clips. Protocol: `toy-heldout`." in text
    assert "| learning rate | 0.0001 |" in text and '| freeze | \\["audio"\\] |' in text
    assert "| rows | 12,000 |" in text
    assert "```bash\npython train.py --seed 1\n```" in text
    assert "| torch | 2.11.0 |" in text
    assert "| arguments.seed | 1 |" in text


def test_chance_of_losses_is_shown_and_few_queries_have_few_decimals(folder):
    metrics = {"text_to_video_R@1": 1 / 3, "text_to_video_num_queries": 3, "answer_loss": 1.0}
    intervals = {"text_to_video_R@1": (0.0, 2 / 3)}
    text = write(folder, metrics=metrics, intervals=intervals, chance={"answer_loss": 0.6931}).text
    assert "**text to video R@1: 0.33**, 95 % interval 0.00 – 0.67, on toy world." in text
    assert "| `answer_loss` | 1 |  | 0.6931 |" in text


def test_a_model_trained_in_a_notebook_has_no_command(folder):
    text = write(folder, run={"command": "", "versions": {"torch": "2.11.0"}}).text
    assert "The model was trained in a notebook or an interactive session" in text and "```bash" not in text


def test_usage_comes_before_loading_with_the_name_of_the_model(folder):
    usage = "searcher = load({model})\nsearcher.search('a {thing}')"
    blocks = write(folder, usage=usage, model_name='a "name"').text.split("```python\n")[1:]
    assert blocks[0].startswith('searcher = load("a \\"name\\"")\nsearcher.search(\'a {thing}\')\n```')
    assert "from_pretrained" in blocks[1]


def test_inputs_are_described_from_the_processor(folder):
    assert "| input | format |" not in write(folder).text
    audio = {"num_frames": 1024, "hop_seconds": 0.01, "max_windows": None, "sampling_rate": 16000}
    video = {"num_frames": 16, "size": {"height": 112, "width": 224}}
    processor = {"feature_extractor": audio, "video_processor": video}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    text = write(folder).text
    assert "| audio | mono, 16,000 Hz, windows of 10.24 seconds |" in text
    assert "| video | 16 frames of 224 × 112 pixels, RGB |" in text
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": {**audio, "max_windows": 6}}))
    text = write(folder).text
    assert "at most 6 windows" in text and "| video |" not in text


def test_loading_takes_five_lines_of_valid_code(folder):
    code = write(folder).text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line]) <= 5


def test_a_local_base_model_is_named_without_its_path_and_not_in_the_metadata(folder, tmp_path, monkeypatch):
    tower = tmp_path / "my-tower"
    tower.mkdir()
    monkeypatch.chdir(tmp_path.parent)
    relative = f"{tmp_path.name}/my-tower"  # looks like a hub name
    card = write(folder, base_models=[str(tower), relative, "bert-base-uncased"])
    assert card.data.base_model == ["bert-base-uncased"]
    assert "Built on `my-tower`, `my-tower`, `bert-base-uncased`." in card.text
    assert str(tmp_path) not in card.content


def test_the_card_says_if_there_are_no_metrics_or_base_models(folder):
    card = write(folder, metrics={}, intervals={}, primary_metric=None, base_models=[])
    assert card.data.eval_results is None
    assert card.data.base_model is None
    assert "Nothing was measured." in card.text
    assert "trained from scratch" in card.text


def test_hostile_text_is_escaped(folder):
    hostile = "<img src=x>|`x`\n---\nlicense: other\n# title"
    card = write(
        folder,
        protocol=hostile,
        dataset_name=hostile,
        model_name=hostile,
        counts={hostile: 1},
        training_counts={hostile: 1},
        settings={hostile: hostile},
        task=hostile,
        modalities=(hostile,),
        run={"command": "echo ```\n# not a title", "versions": {hostile: hostile}, "x": hostile},
    )
    assert card.data.license == "apache-2.0"
    assert card.data.model_name == hostile
    assert "````bash\necho ```\n# not a title\n````" in card.text
    assert "\n# title" not in card.text
    assert r"\# title" in card.text
    outside_code = card.text.split("## Evaluation")[1]
    assert "<img" not in outside_code.replace("`<img src=x>x --- license: other # title`", "")


def test_invalid_input_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`command`.*`versions`.*got \\['seed'\\]"):
        write(folder, run={"seed": 1})
    with pytest.raises(ValueError, match="'loss' is inf"):
        write(folder, metrics={"loss": float("inf")}, intervals={}, primary_metric=None)
    with pytest.raises(ValueError, match="'R@1' is not one of the metrics"):
        write(folder, primary_metric="R@1")
    with pytest.raises(ValueError, match="has no config.json"):
        write(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no model class"):
        write(folder)
