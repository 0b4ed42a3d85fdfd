"""Results of a run for people to read: report, model card, previews of clips, and console output."""

import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import wave
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from tqdm import tqdm

import simple_multimodal as smm
import train
from simple_multimodal.cli import main
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.preview import PREVIEW_SAMPLING_RATE, ClipPreview
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS
from simple_multimodal.tasks.retrieval.retriever import Retriever
from simple_multimodal.tasks.retrieval.task import Retrieval
from simple_multimodal.training.console import log_line, main_metrics, results_table
from simple_multimodal.training.results import count_rows, describe_disk_usage
from simple_multimodal.training.run_control import ending_in_one_line, running
from simple_multimodal.training.run_record import make_run_record
from tests.training.tiny_run import CAPTIONS, NUM_ROWS, flags, run


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory) -> Path:
    """Output folder of a retrieval run."""
    folder = tmp_path_factory.mktemp("finished") / "my run"
    schedule = flags(max_steps=2, save_strategy="no", logging_steps=1, learning_rate=0.001)
    run(*start, "--task", "retrieval", *flags(output_dir=folder), *schedule)
    return folder


def test_the_report_has_curves_data_examples_with_audio_and_chance(finished):
    page = (finished / "report.html").read_text()
    labels = re.findall(r'aria-label="([a-z ]+): training', page)
    # Two rows per batch; six of seven rows have text and video.
    chances = r"chance 0.6931 in training, 1.792 in "
    assert re.search(rf"contrastive tv loss</strong> last in training \S+; last in evaluation \S+; {chances}", page)
    assert labels[0] == "loss" and labels[-3:] == ["learning rate", "samples per second", "data wait share"]
    assert "contrastive tv loss" in labels and "Contrastive losses grow with the number of candidates" in page
    for name in ("training", "evaluation"):
        row = re.search(rf'<th scope="row">{name}</th>(.*?)</tr>', page).group(1)
        assert re.findall("<td>(.*?)</td>", row) == ["7", "7", "7", "0"]  # rows, clips, captions, bad samples
    metrics = json.loads((finished / "evaluation.json").read_text())["metrics"]
    assert metrics["text_to_video_num_candidates"] == NUM_ROWS and "chance 0.14" in page
    wavs = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    with wave.open(io.BytesIO(b64decode(wavs[0]))) as file:
        assert file.getframerate() == PREVIEW_SAMPLING_RATE
    # Row 3 has no audio and row 4 no video, wherever they occur.
    for element in re.findall(r"<li.*?</li>", page, re.DOTALL):
        name = re.search(r'<span class="name">(\d)\.(mp4|wav)</span>', element).group(1)  # rows without an id
        assert ("<audio" in element, "<img" in element) == (name != "3", name != "4")
        assert CAPTIONS[int(name)] in element


def test_the_card_has_the_task_the_primary_metric_and_code_that_uses_the_model(finished):
    card = ModelCard.load(finished / "README.md")
    assert card.data.tags == ["multimodal", "simple-multimodal", "text", "audio", "video", "retrieval"]
    assert card.data.eval_results[0].metric_name == "text_to_video_R@1"
    assert card.data.eval_results[0].task_type == "retrieval"
    assert "`MultimodalForRetrieval` over text, audio and video" in card.text and "task: retrieval." in card.text
    assert "from scratch" in card.text and "**text to video R@1: " in card.text and "chance: 0.14" in card.text
    assert 'Retriever.from_pretrained("my run")' in card.text
    assert "| rows | 7 |" in card.text and "| captions | 7 |" in card.text
    assert "| steps | 2 |" in card.text and "| rows per step | 2 |" in card.text and "| parameters | " in card.text
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(code, "README.md", "exec")


def test_the_card_of_a_fine_tuned_model_names_its_base_model(finished, start, clips, tmp_path, capsys):
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"video": f"{row}.mp4", "audio": f"{row}.wav", "question": "a cat?", "answer": answer}
        for row, answer in enumerate(("yes", "no", "yes"))
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    source = finished.rename(finished.with_name("my_start"))
    tokens = [token for name, token in zip(["", *start], start, strict=False) if "_config_name" not in name + token]
    try:
        task = flags(task="question_answering", train_file=questions, validation_file=questions)
        run(*tokens, *task, *flags(model_name_or_path=source, output_dir=tmp_path / "out", max_steps=1))
    finally:
        source.rename(finished)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.tags[-1] == "question_answering" and card.data.eval_results[0].metric_name == "accuracy"
    assert "Built on `my_start`." in card.text and str(tmp_path) not in card.text.split("## How to reproduce it")[0]
    assert 'QuestionAnswerer.from_pretrained("out")' in card.text
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<td>0.6931</td>") == 2 and "of 3 questions" in report  # two answers; the loss has one term
    command = next_command(capsys.readouterr().err)
    assert command[1:3] == ["answer", str(tmp_path / "out")] and command[3].endswith("?")
    assert main(command[1:]) == 0 and set(json.loads(capsys.readouterr().out)) == {"clip", "answers"}


def next_command(printed: str) -> list[str]:
    """Return the command that a run recommends in its last line."""
    label, _, command = printed.splitlines()[-1].partition(" ")
    assert label == "Next:"
    return shlex.split(command)


def test_the_last_lines_name_disk_usage_report_model_and_next_command(finished, start, clips, tmp_path, capsys):
    tokens = [token for name, token in zip(["", *start], start, strict=False) if "_config_name" not in name + token]
    model = str(finished)
    run(*tokens, "--do_eval", *flags(model_name_or_path=model, output_dir=tmp_path / "out"))
    captured = capsys.readouterr()
    disk, *others = captured.err.splitlines()[-4:]
    assert re.fullmatch(rf"Disk:   {re.escape(str(tmp_path / 'out'))} holds \d\.\d MB", disk)  # the model is elsewhere
    assert others[:2] == [f"Report: {tmp_path / 'out/report.html'}", f"Model:  {model}"]
    assert "Report:" not in captured.out
    command = next_command(captured.err)  # its text is the first caption of the validation set, from a text file
    assert command[:5] == ["simple-multimodal", "search", model, CAPTIONS[0], str(clips / "validation.csv")]
    assert main(command[1:]) == 0
    matches = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(matches) == NUM_ROWS and {"clip", "score", "file"} <= set(matches[0])
    assert {match["file"] for match in matches} >= {str(clips / "video/0.mp4"), str(clips / "audio/4.wav")}


def test_a_run_without_evaluation_prints_the_same_lines_and_reports_its_curves(start, tmp_path, capsys):
    run(
        *start, "--do_train", *flags(task="retrieval", output_dir=tmp_path, max_steps=2, save_steps=2, logging_steps=1)
    )
    disk, *others = capsys.readouterr().err.splitlines()[-4:]
    assert re.match(rf"Disk:   {re.escape(str(tmp_path))} holds .* MB \(model .* MB, checkpoints .* MB\)", disk)
    assert others[:2] == [f"Report: {tmp_path / 'report.html'}", f"Model:  {tmp_path}"]
    assert others[2].startswith(f"Next:   simple-multimodal search {tmp_path} '{CAPTIONS[0]}' ")
    page = (tmp_path / "report.html").read_text()
    assert 'aria-label="loss: training' in page and "Nothing was measured after training." in page
    assert not (tmp_path / "evaluation.json").exists()


def test_the_console_shows_the_main_metrics_and_the_files_have_all(start, tmp_path, capsys):
    evaluates = flags(eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_matching_loss")
    settings = flags(task="retrieval", max_steps=2, logging_steps=1, save_strategy="no")
    run(*start, *settings, *evaluates, *flags(output_dir=tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1/2  epoch 0.25  loss \S+  grad_norm \S+  learning_rate 5e-05", lines[0])
    assert re.fullmatch(
        r"step 2/2  epoch 0.50  eval_text_to_video_R@1 \S+  eval_matching_loss \S+  eval_loss \S+", lines[2]
    )
    assert re.fullmatch(r"Training: 2 steps \(epoch 0.5\), 0:00:\d\d, \S+ samples/s, mean loss \S+", lines[3])
    assert lines[6].split()[-1] == "0.14" and lines[6].split()[5] in ("0.00", "0.14", "0.29", "0.43")  # of 7
    assert lines[4] == "Evaluation: 7 rows, 7 captions, 7 clips"
    assert lines[5].split() == ["value", "95", "%", "interval", "chance"]
    assert lines[6].startswith("text to video R@1 ") and len(lines) < 18
    assert any(line.startswith("loss ") for line in lines[-2:])  # a model at chance has a line that says so
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "matching_loss", "samples_per_second"} < logged[0].keys()
    assert {"eval_text_to_video_num_queries", "eval_matching_accuracy"} < logged[2].keys()
    evaluated = json.loads((tmp_path / "eval_results.json").read_text())
    assert {name for name in logged[2] if name.startswith("eval_")} <= evaluated.keys()


@pytest.mark.parametrize("low", [0.1, 0.3])
def test_the_table_says_if_the_primary_metric_may_be_chance_and_leaves_out_recalls_over_all_clips(low):
    metrics = {"text_to_video_R@1": 0.5, "text_to_video_R@5": 1.0, "text_to_video_num_candidates": 5}
    intervals = {"text_to_video_R@1": (low, 0.8), "text_to_video_R@5": (1.0, 1.0)}
    table = results_table("Test", Evaluation(metrics, intervals, {"clips": 5}, "p", "text_to_video_R@1", 5))
    assert ("The interval of text to video R@1 includes chance: the model may be guessing." in table) == (low == 0.1)
    assert "R@5" not in table  # of five clips


def test_the_main_metrics_are_the_primary_one_related_ones_and_the_loss():
    interval = (0.0, 1.0)

    def main(primary, *names):
        metrics = dict.fromkeys(("loss", "num", *names), 0.5)
        return main_metrics(Evaluation(metrics, dict.fromkeys(names, interval), {}, "p", primary, 1))

    found = main(
        "text_to_video_R@1", "video_to_text_R@1", "video_to_text_R@5", "text_to_video_R@5", "text_to_video_R@1"
    )
    assert found == ["text_to_video_R@1", "video_to_text_R@1", "text_to_video_R@5", "loss"]
    assert main("accuracy", "what_accuracy", "accuracy", "entropy") == ["accuracy", "what_accuracy", "loss"]
    names = ["mAP", "mAP_all_rows", "micro_F1", "text_only_mAP"]
    assert main("mAP", *names, "entropy") == [*names, "loss"]
    names = ["top1_accuracy", "top5_accuracy", "mean_class_accuracy"]
    assert main("top1_accuracy", *names, "entropy") == [*names, "loss"]
    assert main(None, "accuracy") == ["loss"]


def test_a_log_line_of_one_of_several_sets_shows_its_own_metrics():
    evaluation = Evaluation({}, {}, {}, "p", "accuracy", 1)
    logs = {"eval_a_accuracy": 0.5, "eval_a_loss": 2.0, "eval_a_what": 1.0, "eval_a_runtime": 3.0}
    assert log_line(logs, evaluation) == "eval_a_accuracy 0.5000  eval_a_loss 2"
    assert log_line({"train_runtime": 1.0, "train_loss": 2.0}, evaluation) == ""


def test_training_in_python_writes_the_same_files_as_train_py(start, clips, tmp_path):
    """Except the command line; a model that starts from the result also counts its clips as training clips."""
    run(
        *start, "--do_train", *flags(task="retrieval", output_dir=tmp_path / "first", max_steps=1, max_train_samples=2)
    )
    model, processor = smm.load(tmp_path / "first")
    roots = {name: clips / name for name in ("audio", "text", "video")}
    header, *lines = (clips / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "others.csv").write_text("".join([header, *lines[-3:]]))
    train = smm.Dataset.from_manifest(tmp_path / "others.csv", roots=roots)
    validation = smm.Dataset.from_manifest(clips / "validation.csv", roots=roots)
    folder = tmp_path / "second"
    (folder / "checkpoint-9").mkdir(parents=True)
    args = smm.TrainingArguments(
        str(folder),
        use_cpu=True,
        bf16=True,
        max_steps=1,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = smm.Trainer(model, args, processor=processor, train_dataset=train, eval_dataset=validation)
    trainer.train()
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())
    record = json.loads((folder / "run.json").read_text())
    assert record["precision"] == "bf16" and record["selection_split"] is None
    assert record["arguments"]["model_name_or_path"] == str(tmp_path / "first")
    assert record["data"].keys() == {"training", "evaluation"} and record["model"]["parameters"]["text"]["total"] > 0
    for written in (folder, folder / "checkpoint-1"):
        seen = json.loads((written / "training_clips.json").read_text())["clips"]
        assert len(seen) == 5 and set(seen) > set(train.clip_names())
    assert Retriever.from_pretrained(folder).precision == "bf16"
    assert "Built on `first`." in (folder / "README.md").read_text()
    assert json.loads((folder / "evaluation.json").read_text())["precision"] == "bf16"
    assert "text to video R@1" in (folder / "report.html").read_text()
    assert (folder / "checkpoint-9").is_dir()  # it may not belong to this run


def test_several_evaluation_sets_only_have_results_files(start, clips, tmp_path):
    run(*start, "--do_train", *flags(task="retrieval", output_dir=tmp_path / "first", max_steps=1))
    model, processor = smm.load(tmp_path / "first")
    roots = {name: clips / name for name in ("audio", "text", "video")}
    rows = smm.Dataset.from_manifest(clips / "validation.csv", roots=roots)
    args = smm.TrainingArguments(str(tmp_path / "out"), use_cpu=True, dataloader_num_workers=0, report_to="none")
    trainer = smm.Trainer(model, args, processor=processor, eval_dataset={"a": rows, "b": rows})
    assert trainer.run_record["data"].keys() == {"a", "b"}
    trainer.save_metrics("eval", trainer.evaluate())
    assert "eval_a_text_to_video_R@1" in json.loads((tmp_path / "out/eval_results.json").read_text())
    assert not (tmp_path / "out/evaluation.json").exists()


def test_a_notebook_has_no_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    program = sys.modules["__main__"]
    monkeypatch.setattr(program, "__file__", "ipykernel_launcher.py", raising=False)
    assert make_run_record({}, data={})["command"] == "ipykernel_launcher.py -f kernel.json"
    monkeypatch.delattr(program, "__file__")
    assert make_run_record({}, data={})["command"] == ""


def test_disk_usage_counts_every_file_once_and_names_weights_and_checkpoints(tmp_path):
    sizes = {
        "model.safetensors": 12_400_000,
        "checkpoint-2/model.safetensors": 2_000_000,
        "checkpoint-2/optimizer.pt": 500_000,
        "checkpoint-4/global/optimizer.pt": 25_000,
        "runs/events": 1_000_000,
        "report.html": 100_000,
    }
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "latest").symlink_to(tmp_path / "model.safetensors")
    hint = " in 2 folders; save_total_limit sets how many are kept"
    assert describe_disk_usage(tmp_path) == f"{tmp_path} holds 16 MB (model 12 MB, checkpoints 2.5 MB{hint})"
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert describe_disk_usage(tmp_path) == f"{tmp_path} holds 16 MB (model 12 MB, checkpoints 2.5 MB)"


def test_examples_do_not_change_the_collator_of_evaluation(start, tmp_path, trainers, monkeypatch):
    before = {}
    plain = Retrieval.examples

    def examples(self, evaluation, collator):
        before.update(vars(collator))
        found = plain(self, evaluation, collator)
        assert vars(collator) == before
        return found

    monkeypatch.setattr(Retrieval, "examples", examples)
    run(*start, "--task", "retrieval", *flags(output_dir=tmp_path, max_steps=1, save_strategy="no"))
    assert before


def test_rows_are_counted_without_opening_files(tmp_path):
    manifest = tmp_path / "rows.jsonl"
    rows = [
        {"video": "a.mp4", "captions": ["one", "two"], "question": "what?"},
        {"video": "a.mp4", "caption": "three", "question": "who?"},
        {"video": "b.mp4", "text": "b.txt", "question": "why?"},
        {"audio": "c.wav", "question": "how?"},
        {"video": "d.mp4", "caption": "left out", "question": "when?"},
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    counts = count_rows(RowDataset.from_manifest(manifest, max_samples=4), 2)
    assert counts == {"rows": 4, "clips": 3, "captions": 4, "bad_samples": 2}
    assert count_rows(RowDataset.from_manifest(manifest, max_samples=3, **QUESTION_COLUMNS), 0)["captions"] == 3


def preview_of(row: dict, folder: Path, **settings):
    processor = MultimodalProcessor(AudioFeatureExtractor(), VideoClipProcessor(num_frames=8, size=32))
    preview = ClipPreview(MultimodalCollator(processor, **settings))
    roots = {"video": folder / "video", "audio": folder / "audio"}
    sample = RowDataset([row], roots=roots, modalities=())[0]
    return preview.frames(sample), preview.audio(sample)


def test_a_preview_is_a_few_frames_and_the_first_seconds_of_the_segment(clips):
    row = {"video": "6.mp4", "audio": "6.wav", "caption": "x"}
    frames, audio = preview_of(row, clips)
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    assert len(audio) == pytest.approx(1.6 * PREVIEW_SAMPLING_RATE, abs=20)
    _, part = preview_of({**row, "start_seconds": 0.25, "end_seconds": 0.5}, clips)
    assert len(part) == PREVIEW_SAMPLING_RATE // 4
    np.testing.assert_array_equal(part, audio[PREVIEW_SAMPLING_RATE // 4 : PREVIEW_SAMPLING_RATE // 2])


def test_modalities_that_the_model_does_not_take_have_no_preview(clips):
    row = {"video": "6.mp4", "audio": "6.wav", "caption": "x"}
    assert [part is None for part in preview_of(row, clips, drop_modalities=["video"])] == [True, False]
    assert [part is None for part in preview_of(row, clips, drop_modalities=["audio"])] == [False, True]
    assert preview_of({"caption": "x"}, clips) == (None, None)
    silent = {"video": "6.mp4", "caption": "x"}  # without an audio column, and without an audio track
    assert preview_of(silent, clips)[1] is None


@pytest.mark.parametrize("error", [InputError("a wrong flag"), OSError("a full disk")])
def test_a_run_ends_in_one_line_for_errors_of_users(error):
    with pytest.raises(SystemExit, match=f"train.py: error: {error}"), ending_in_one_line():
        raise error


@pytest.mark.parametrize("name", ["simple_multimodal.data", "transformers.trainer"])
def test_warnings_are_printed_above_the_progress_bar(tmp_path, capsys, name):
    args = smm.TrainingArguments(str(tmp_path), report_to="none")
    with running(args, ()), tqdm(total=2, desc="Training", file=sys.stderr) as bar:
        bar.update()
        logging.getLogger(name).warning("a file is missing")
    lines = re.split("[\r\n]", capsys.readouterr().err)
    assert "a file is missing" in lines and any("50%" in line for line in lines)


def test_ctrl_c_during_the_imports_ends_in_one_line():
    interrupting = """
import runpy, sys
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
runpy.run_path("train.py", run_name="__main__")
"""
    folder = Path(train.__file__).parent
    result = subprocess.run([sys.executable, "-c", interrupting], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr == (
        "train.py: interrupted; run the same command to resume from the newest checkpoint, if any.\n"
    )


def test_a_run_keeps_the_traceback_of_a_bug():
    with pytest.raises(ValueError, match="a bug"), ending_in_one_line():
        raise ValueError("a bug")
