"""Translation, captioning and transcription from the command line to texts: training, prompts, scores and errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import simple_multimodal as smm
from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.tasks.generation.targets import IGNORED, TEXT_COLUMNS, TextTargets
from simple_multimodal.tasks.generation.translator import clip_size
from tests.processes import launch
from tests.training import tiny_run
from tests.training.tiny_run import flags

BACKBONE = {
    "model_type": "m2m_100", "vocab_size": 300, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "max_position_embeddings": 128, "dropout": 0.0,
}  # fmt: skip
TASKS = {"translation": "BLEU", "captioning": "CIDEr-D", "transcription": "WER"}
NUM_WRITTEN = 6  # the last row has no text


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return tiny_run.write_clips(tmp_path_factory.mktemp("generation") / "clips")


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("configs")
    configs = tiny_run.write_configs(folder)
    del configs["text"]
    (folder / "backbone.json").write_text(json.dumps(BACKBONE))
    settings = flags(
        cache_dir=tmp_path_factory.mktemp("cache"), max_steps=2, backbone_config_name=folder / "backbone.json"
    )
    return [*tiny_run.config_flags(configs), *settings, *flags(max_target_length=12, num_beams=2)]


def rows_of(clips: Path, **changes) -> list[dict]:
    """Rows with audio, video and prompts, of which some lack one; the last one has no text, the second has two."""
    rows = []
    for number, caption in enumerate(tiny_run.CAPTIONS):
        row = {"id": f"r{number}", "video": str(clips / f"video/{number}.mp4"), "captions": [caption], **changes}
        row |= {"audio": None if number == 2 else str(clips / f"audio/{number}.wav")}
        rows.append(row)
    rows[1] |= {"captions": ["two dogs bark", "dogs bark"], "decoder_prompt": "a"}
    rows[2] |= {"encoder_prompt": "rain"}
    del rows[-1]["captions"]
    return rows


def data_of(folder: Path, clips: Path, rows: list[dict] | None = None, **given) -> list[str]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or rows_of(clips)))
    return flags(train_file=file, validation_file=file, video_root=clips, audio_root=clips, **given)


@pytest.fixture(scope="session")
def model(clips, start, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_run.run(*data_of(folder, clips), *start, *flags(output_dir=folder / "model", task="translation"))
    return folder / "model"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_model_keeps_its_tokenizer_and_settings_and_is_scored_over_rows_with_a_text(model):
    config, results = read(model / "config.json"), read(model / "evaluation.json")
    assert config["task"] == "translation" and config["text_config"] is None
    assert config["text_backbone_config"]["model_type"] == "m2m_100" and config["max_target_length"] == 12
    assert (model / "backbone_tokenizer/tokenizer.json").is_file() and not (model / "tokenizer.json").exists()
    generation = read(model / "generation_config.json")
    assert (generation["num_beams"], generation["max_new_tokens"]) == (2, 12) and not generation.get("do_sample")
    assert results["counts"] == {"rows": NUM_WRITTEN, "clips": NUM_WRITTEN, "rows_without_text": 1} | {
        name: value for name, value in results["counts"].items() if name.startswith("unseen")
    }
    assert (
        results["primary_metric"] == "BLEU" and {"chrF", "chrF++", "BLEU-4", "ROUGE-L"} <= results["intervals"].keys()
    )
    assert results["signatures"]["BLEU"].startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert results["metrics"]["generation_loss"] > 0
    assert "Translator" in (model / "README.md").read_text() and "r0" in (model / "report.html").read_text()


@pytest.mark.parametrize("task", ["captioning", "transcription"])
def test_the_other_tasks_have_their_own_scores(task, model, clips, tmp_path):
    out = flags(
        "--use_cpu", "--disable_tqdm", "--do_eval", model_name_or_path=model, output_dir=tmp_path / "out", task=task
    )
    tiny_run.run(*data_of(tmp_path, clips), *out)
    results = read(tmp_path / "out/evaluation.json")
    assert results["primary_metric"] == TASKS[task] and TASKS[task] in results["intervals"]


def test_only_the_loss_is_measured_between_steps_on_request(clips, start, tmp_path):
    settings = flags("--do_train", output_dir=tmp_path / "out", task="captioning", eval_strategy="steps", eval_steps=1)
    settings += flags(predict_with_generate=False)
    tiny_run.run(*data_of(tmp_path, clips), *start, *settings)
    logs = [entry for entry in read(tmp_path / "out/trainer_state.json")["log_history"] if "eval_loss" in entry]
    assert len(logs) == 2 and all("eval_CIDEr-D" not in entry for entry in logs)


def test_texts_of_rows_are_those_of_single_clips_and_of_the_evaluation(model, clips, capsys, tmp_path):
    translator = smm.Translator.from_pretrained(model)
    rows = rows_of(clips)
    several = [found[0]["text"] for found in translator(rows)]
    assert several == [translator(row)[0][0]["text"] for row in rows]
    asked = {"clip": {"video": rows[2]["video"]}, "encoder_prompt": "rain"}
    assert translator(asked)[0][0]["text"] == several[2]  # that row has no other audio, and this prompt
    evaluation = smm.evaluate(model, rows, batch_size=2)
    assert [row["text"] for row in evaluation.rows] == several
    (less,) = translator(rows[0], num_beams=1, max_new_tokens=3)
    assert len(less[0]["text"]) < len(several[0]) and less[0]["score"] < 0
    with pytest.raises(ValueError, match="Request 0: `encoder_prompt` must be a string, got int"):
        translator({"clip": rows[0]["video"], "encoder_prompt": 3})
    assert translator([]) == []

    assert main(["translate", str(model), str(clips / "video/0.mp4"), str(clips / "video/2.mp4")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    alone = translator([str(clips / "video/0.mp4"), str(clips / "video/2.mp4")])
    assert [line["text"] for line in lines] == [found[0]["text"] for found in alone]
    data_of(tmp_path, clips)
    roots = ["--video_root", str(clips), "--audio_root", str(clips)]
    assert (
        main(["translate", str(model), str(tmp_path / "rows.jsonl"), *roots, "--output_dir", str(tmp_path / "out")])
        == 0
    )
    assert "BLEU" in capsys.readouterr().out
    written = (tmp_path / "out/generated_predictions.txt").read_text().split("\n")[:-1]
    assert written == several
    assert read(tmp_path / "out/predict_results.json")["predict_samples"] == NUM_WRITTEN


def test_several_processes_write_the_same(model, clips, tmp_path):
    data = data_of(tmp_path, clips)
    tokens = [
        *data,
        *flags("--use_cpu", "--disable_tqdm", "--do_eval", model_name_or_path=model, per_device_eval_batch_size=1),
    ]
    tiny_run.run(*tokens, *flags(output_dir=tmp_path / "1"))
    expected = read(tmp_path / "1/evaluation.json")["metrics"]
    for number in (2, 3):
        ended = launch(number, tiny_run.run, *tokens, *flags(output_dir=tmp_path / str(number)))
        assert ended.returncode == 0, ended.stderr
        assert read(tmp_path / str(number) / "evaluation.json")["metrics"] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_run_gives_the_same_weights(clips, start, tmp_path):
    tokens = [*data_of(tmp_path, clips, task="captioning"), *start, "--do_train"]
    tokens += flags(save_steps=1, max_steps=3, save_strategy="steps")
    tiny_run.run(*tokens, *flags(output_dir=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(tmp_path / "part" / name)
    (tmp_path / "part/model.safetensors").unlink()
    tiny_run.run(*tokens, *flags(output_dir=tmp_path / "part"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_a_clip_that_cannot_be_read_counts_as_an_empty_text(model, clips, tmp_path):
    rows = rows_of(clips)
    good = smm.evaluate(model, rows)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows[0] |= {"video": str(tmp_path / "broken.mp4")}
    found = smm.evaluate(model, rows)
    assert found.counts["bad_samples"] == 1 and found.counts["rows"] == good.counts["rows"]
    assert [row["text"] for row in found.rows][1:] == [row["text"] for row in good.rows][1:]
    assert found.rows[0]["text"] == "" and found.rows[0]["score"] is None


def test_towers_come_from_a_model_of_another_task_and_the_backbone_from_a_folder(clips, start, model, tmp_path):
    data = data_of(tmp_path, clips)
    text = tiny_run.write_configs(tmp_path)["text"]
    base = flags("--do_train", output_dir=tmp_path / "base", task="retrieval", max_steps=1, text_config_name=text)
    backbone = [
        place
        for place, token in enumerate(start)
        if token in ("--backbone_config_name", "--max_target_length", "--num_beams")
    ]
    plain = [token for place, token in enumerate(start) if place not in backbone and place - 1 not in backbone]
    tiny_run.run(*data_of(tmp_path, clips, rows_of(clips)[:-1]), *plain, *base)
    source = smm.MultimodalForConditionalGeneration.from_pretrained(model)
    source.backbone.save_pretrained(tmp_path / "backbone")
    smm.Translator.from_pretrained(model).processor.backbone_tokenizer.save_pretrained(tmp_path / "backbone")
    settings = flags("--use_cpu", "--disable_tqdm", "--do_train", model_name_or_path=tmp_path / "base")
    settings += flags(output_dir=tmp_path / "out", task="captioning", max_steps=1, learning_rate=0)
    settings += flags(
        backbone_model_name_or_path=tmp_path / "backbone", new_tokens=["__dgs__"], encoder_prompt="__dgs__"
    )
    tiny_run.run(*data, *settings)
    found = smm.MultimodalForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert found.config.modalities == ("audio", "video") and found.config.encoder_prompt == "__dgs__"
    weights = found.state_dict()
    for name, value in smm.MultimodalModel.from_pretrained(tmp_path / "base").state_dict().items():
        if name.startswith(("audio_encoder", "video_encoder")):
            assert torch.equal(weights[f"multimodal.{name}"], value), name
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(weights[f"multimodal.backbone.{name}"][: len(value)], value), name
    known = source.backbone.get_input_embeddings().num_embeddings
    assert found.backbone.get_input_embeddings().num_embeddings == known + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modalities": ["text", "video"]}, "--modalities names text, but --task translation writes the text"),
        ({"num_beams": 0}, "--num_beams is 0"),
        (
            {"task": "retrieval", "num_beams": 2, "max_target_length": 128},
            "--num_beams is an option of --task translation",
        ),
    ],
)
def test_wrong_settings_are_refused(given, message, clips, start, tmp_path, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        tiny_run.run(
            *data_of(tmp_path, clips), *start, *flags(output_dir=tmp_path / "out", **{"task": "translation", **given})
        )
    assert message in str(error.value) + capsys.readouterr().err


def test_t5_is_refused_in_float16(clips, start, tmp_path):
    backbone = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    (tmp_path / "t5.json").write_text(json.dumps(backbone))
    settings = flags("--fp16", output_dir=tmp_path / "out", task="translation")
    settings += flags(backbone_config_name=tmp_path / "t5.json")
    with pytest.raises(ValueError, match="fp16: the t5 backbone overflows in float16. Use bf16"):
        tiny_run.run(*data_of(tmp_path, clips), *start, *settings)


def test_targets_are_tokens_with_an_end_and_prompts_of_rows_come_before_those_of_the_run(clips):
    tokenizer = train_tokenizer(tiny_run.CAPTIONS, lowercase=False)
    tokenizer.eos_token = "[SEP]"
    targets = TextTargets(tokenizer, max_length=4, encoder_prompt="a dog")
    rows = list(RowDataset(rows_of(clips), modalities=("video",), **TEXT_COLUMNS).rows(files="named"))
    batch = targets(rows, {}, lambda row, purpose: __import__("numpy").random.default_rng(0))
    assert batch["labels"].shape == (7, 4) and (batch["labels"][6] == IGNORED).all()
    assert (
        batch["labels"][2].tolist()
        == [*tokenizer("rain falls", add_special_tokens=False)["input_ids"], 3, IGNORED][:4]
    )
    prompts = [
        ids[mask].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_attention_mask"], strict=True)
    ]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a dog", "rain")]
    assert prompts == [encoded[0], encoded[0], encoded[1], *[encoded[0]] * 4]
    assert batch["decoder_prompt_attention_mask"].sum(dim=1).tolist() == [0, 1, 0, 0, 0, 0, 0]
    warning = targets.warning_about(RowDataset(rows_of(clips), modalities=("video",), **TEXT_COLUMNS))
    assert "1 of 7 have no text" in warning and "r6" in warning
    assert "have a text of more than 4 tokens" in warning and "Raise max_target_length" in warning


def test_clips_are_sorted_by_the_length_of_their_segment_or_the_size_of_their_files(tmp_path):
    for name, size in (("a", 30), ("b", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    row = {"start_seconds": None, "end_seconds": None, "audio": None, "video": str(tmp_path / "absent")}
    large, small = ({**row, "video": str(tmp_path / name)} for name in "ab")
    short, long = ({**row, "start_seconds": start, "end_seconds": 9.0} for start in (8.0, 2.0))
    rows = [long, large, short, small, row]
    found = sorted(rows, key=lambda row: clip_size(row, ("audio", "video")))
    assert found == [row, small, large, short, long]
