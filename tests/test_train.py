"""Documented commands of `train.py` on small clips, and errors for bad input."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.processes import launch, run_script
from tests.training import tiny_run
from tests.training.tiny_run import flags

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = str(REPOSITORY / "train.py")
RESULTS = {"train_results.json", "eval_results.json", "all_results.json", "trainer_state.json", "run.json"}
MODEL = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md", "report.html"}

ACCELERATE = ["accelerate.commands.launch", "--config_file", str(REPOSITORY / "configs/accelerate/cpu.yaml")]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCHERS = [  # number of processes, and launch command
    pytest.param(2, ACCELERATE, id="accelerate"),
    pytest.param(3, [*ACCELERATE, "--num_processes", "3"], id="accelerate-3", marks=pytest.mark.slow),
    pytest.param(2, TORCHRUN, id="torchrun", marks=pytest.mark.slow),
    pytest.param(
        2, ["torch.distributed.launch", "--standalone", "--nproc_per_node", "2"], id="launch", marks=pytest.mark.slow
    ),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return tiny_run.write_clips(tmp_path_factory.mktemp("train") / "clips")


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    return tiny_run.write_configs(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def start(clips, configs, tmp_path_factory) -> list[str]:
    """Flags of a run on the clips with tiny towers and two rows per batch."""
    settings = flags(per_device_train_batch_size=2, cache_dir=tmp_path_factory.mktemp("cache"))
    return [*tiny_run.data_flags(clips), *tiny_run.config_flags(configs), *settings]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, str]:
    return tiny_run.write_hub_folders(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def full_run(clips, configs, hub) -> list[str]:
    """The documented full run, with folders instead of hub names and fewer steps."""
    command = f"""
        --fusion_model_name_or_path {hub["fusion"]} --fusion_config_name {configs["fusion"]}
        --text_model_name_or_path {hub["text"]} --text_config_name {hub["text"]}/config.json
        --tokenizer_name {hub["text"]}
        --audio_model_name_or_path {hub["audio"]} --audio_config_name {configs["audio"]}
        --mae_feature_extractor_name {hub["audio"]}
        --video_model_name_or_path {hub["video"]} --video_config_name {configs["video"]}
        --videomae_feature_extractor_name {hub["video"]} --cache_dir cache_dir
        --audio_root {clips}/audio --text_root {clips}/text --video_root {clips}/video
        --train_file {clips}/train.csv --validation_file {clips}/validation.csv
        --per_device_train_batch_size 4 --per_device_eval_batch_size 4
        --learning_rate 2e-5 --num_train_epochs 50.0 --warmup_ratio 0.1 --lr_scheduler_type cosine --fp16 True
        --output_dir output_dir --logging_strategy steps --logging_steps 500
        --max_steps 2 --dataloader_num_workers 0"""
    return command.split()


def shell(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def results(folder: Path, name: str) -> dict[str, float]:
    return json.loads((folder / f"{name}_results.json").read_text())


def test_smoke_run_as_documented(clips, tmp_path, configs):
    """Trains and evaluates on four rows of `train.csv` and `validation.csv` in the working directory."""
    for folder in ("audio", "text", "video"):
        shutil.copytree(clips / folder, tmp_path / folder)
    for name in ("train", "validation"):
        lines = (clips / f"{name}.csv").read_text().splitlines()
        cells = [",".join(c and f"{folder}/{c}" for folder, c in zip(("audio", "text", "video"), line.split(","),
                 strict=True)) for line in lines[1:5]]  # fmt: skip
        # Rows after the first four name missing files, which are not opened.
        (tmp_path / f"{name}.csv").write_text("\n".join([lines[0], *cells, "no.wav,text/0.txt,no.mp4"]))
    smoke = """--max_train_samples 4 --max_eval_samples 4 --cache_dir cache_dir --output_dir output_dir
        --num_train_epochs 2.0 --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --logging_steps 1
        --fp16 True"""
    result = shell([sys.executable, TRAIN, *smoke.split()], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = results(tmp_path / "output_dir", "all")
    assert metrics["epoch"] == 2 and math.isfinite(metrics["train_loss"])
    assert metrics["eval_text_to_video_num_queries"] == 4
    assert "text to video R@1" in result.stdout and "matching_accuracy" not in result.stdout  # only the main metrics
    written = {path.name for path in (tmp_path / "output_dir").iterdir()}
    assert written >= RESULTS | MODEL | {"checkpoint-4", "evaluation.json"}
    for noise in ("Traceback", "Warning", "has been deprecated", "Generating train split"):
        assert noise not in result.stderr
    architecture = json.loads((tmp_path / "output_dir/config.json").read_text())
    assert architecture["text_config"]["hidden_size"] == 256  # the small configs
    state = json.loads((tmp_path / "output_dir/trainer_state.json").read_text())
    assert len([log for log in state["log_history"] if "matching_loss" in log]) == 4  # every step


@pytest.fixture(scope="module")
def one_process(full_run, tmp_path_factory) -> Path:
    """Working directory after the full run in one process."""
    folder = tmp_path_factory.mktemp("one")
    # Six rows, so that batches are the same: several processes fill up incomplete batches.
    whole = flags("--use_cpu", logging_steps=1, max_train_samples=6, per_device_train_batch_size=6)
    result = shell([sys.executable, TRAIN, *full_run, *whole], folder)
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "stderr.txt").write_text(result.stderr)
    return folder


def test_full_run_names_every_pretrained_tensor(one_process, hub):
    said = (one_process / "stderr.txt").read_text()
    for folder in hub.values():
        assert said.count(f"Weights from {folder}: ") == 1
    assert "multimodal.video_encoder" not in said  # names are relative to the tower
    weights = load_file(one_process / "output_dir/model.safetensors")
    table = load_file(Path(hub["text"]) / "model.safetensors")["deberta.embeddings.word_embeddings.weight"]
    own = weights["multimodal.text_encoder.embeddings.word_embeddings.weight"]
    # Two steps with a rate of 2e-5 change little; the checkpoint has more rows than the tokenizer's vocabulary.
    torch.testing.assert_close(own, table[: len(own)], rtol=0, atol=1e-4)
    kernel = load_file(Path(hub["audio"]) / "model.safetensors")["vit.embeddings.patch_embeddings.projection.weight"]
    own = weights["multimodal.audio_encoder.embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(own, kernel.sum(dim=1, keepdim=True), rtol=0, atol=1e-4)


def test_full_run_takes_settings_from_the_named_parts(one_process):
    folder = one_process / "output_dir"
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["video_processor"]["image_mean"] == [0.4] * 3
    assert processor["video_processor"]["size"] == {"height": 32, "width": 32}
    assert processor["video_processor"]["num_frames"] == 2
    assert processor["feature_extractor"]["num_mel_bins"] == 16
    arguments = json.loads((folder / "run.json").read_text())["arguments"]
    assert (arguments["warmup_steps"], arguments["lr_scheduler_type"]) == (0.1, "cosine")


def test_full_run_writes_its_metrics_into_the_model_card(one_process):
    folder = one_process / "output_dir"
    assert {path.name for path in folder.iterdir()} >= RESULTS | MODEL
    evaluated = results(folder, "eval")
    assert results(folder, "all").items() >= (results(folder, "train") | evaluated).items()
    card = (folder / "README.md").read_text()
    assert "text_to_video_R@1" in card and "text-base" in card and str(folder) not in card
    report = (folder / "report.html").read_text()
    assert "R@1" in report and "data:image" in report


@pytest.mark.parametrize(("num_processes", "launcher"), LAUNCHERS)
def test_launchers_train_like_one_process(num_processes, launcher, full_run, one_process, tmp_path):
    """Two processes with three rows each have the same losses as one with six, and evaluate every row once."""
    share = flags("--use_cpu", logging_steps=1, max_train_samples=6, per_device_train_batch_size=6 // num_processes)
    script = tmp_path / "train_and_end.py"
    script.write_text(f"""import runpy
import torch.distributed as dist
runpy.run_path({TRAIN!r}, run_name="__main__")
assert not dist.is_initialized()  # otherwise threads that outlive the interpreter abort one process in hundreds
""")
    result = shell([sys.executable, "-m", *launcher, str(script), *full_run, *share], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "output_dir"
    assert result.stdout.count("Evaluation: ") == 1  # only the first process prints
    assert result.stderr.count("Weights from") == 4
    states = [json.loads((f / "trainer_state.json").read_text()) for f in (folder, one_process / "output_dir")]
    logs = [[log for log in state["log_history"] if "loss" in log] for state in states]
    assert len(logs[0]) == 2
    for own, known in [
        *zip(*logs, strict=True),
        (results(folder, "eval"), results(one_process / "output_dir", "eval")),
    ]:
        for key in known:
            if not key.endswith(("_runtime", "_per_second", "data_wait_share")):
                assert own[key] == pytest.approx(known[key], rel=1e-4), key


def test_two_processes_resume_within_an_epoch_that_one_started(full_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [*full_run, *flags("--use_cpu", "--do_train", logging_steps=1, max_train_samples=4, max_steps=4)]
    tiny_run.run(*common, *flags(per_device_train_batch_size=2, save_steps=1, output_dir="straight"))
    resumed = flags(
        per_device_train_batch_size=1, output_dir="resumed", resume_from_checkpoint="straight/checkpoint-1"
    )
    result = launch(2, run_script, Path(TRAIN), [*common, *resumed], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("straight", "resumed")]
    logs = [[log for log in state["log_history"] if "loss" in log] for state in states]
    assert [log["step"] for log in logs[1]] == [1, 2, 3, 4]
    for straight, again in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "mlm_loss", "contrastive_tv_loss", "matching_loss"):
            assert again[key] == pytest.approx(straight[key], rel=1e-4), (straight["step"], key)


def test_accelerate_on_a_cpu_warns_that_it_starts_one_process(full_run, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", TRAIN]
    result = shell([*command, *full_run, *flags("--use_cpu", "--do_train")], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("starts one process only") == 1 and "torchrun --nproc_per_node N" in result.stderr
    assert (tmp_path / "output_dir/model.safetensors").exists()


def test_bf16_tensorboard_and_accumulation_in_one_run(start, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    reported = flags(report_to="tensorboard", logging_steps=1, gradient_accumulation_steps=2)
    metrics = tiny_run.run(*start, *reported, *flags(bf16=True, output_dir=tmp_path / "out", max_steps=2))
    assert math.isfinite(metrics["train_loss"])
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert names >= {"train/loss", "train/matching_loss", "train/data_wait_share", "eval/text_to_video_R@1"}


def test_evaluation_alone_gives_the_metrics_of_the_run(start, clips, tmp_path):
    trained = tiny_run.run(*start, *flags(output_dir=tmp_path / "out", max_steps=2, save_steps=2))
    folder, cache = tmp_path / "alone", tmp_path / "cache"
    for model in (tmp_path / "out", tmp_path / "out/checkpoint-2"):
        again = tiny_run.run(
            "--do_eval", "True", "--use_cpu", "--disable_tqdm", *tiny_run.data_flags(clips),
            *flags(model_name_or_path=model, output_dir=folder, cache_dir=cache),
            *flags(dataloader_num_workers=0, train_file="missing.csv"),
        )  # fmt: skip
        for name in ("eval_loss", "eval_text_to_video_R@1", "eval_matching_loss"):
            assert again[name] == pytest.approx(trained[name], rel=1e-6)
    assert {path.name for path in folder.iterdir()} == {
        "eval_results.json", "all_results.json", "evaluation.json", "report.html",
    }  # fmt: skip


def test_a_test_set_is_evaluated_at_the_end(start, clips, tmp_path):
    """Evaluates the final weights on it, in addition to the evaluation set, without side effects."""
    test_file = clips / "test.csv"
    test_file.write_text("".join((clips / "validation.csv").read_text().splitlines(keepends=True)[:4]))
    settings = flags(output_dir=tmp_path / "out", max_steps=2, save_steps=1)
    plain = tiny_run.run(*start, *settings)
    predicts = flags("--do_predict", test_file=test_file)
    # The run is complete; adding a test set does not make it a different run.
    both = tiny_run.run(*start, *settings, *predicts, "--do_train", "--do_eval")
    assert both["eval_loss"] == plain["eval_loss"] and both["test_loss"] != both["eval_loss"]
    assert (both["eval_text_to_video_num_queries"], both["test_text_to_video_num_queries"]) == (7, 3)
    folder = tmp_path / "alone"
    alone = tiny_run.run(*start, *predicts, *flags(model_name_or_path=tmp_path / "out", output_dir=folder))
    assert alone["test_loss"] == both["test_loss"] and "eval_loss" not in alone and "train_loss" not in alone
    assert {path.name for path in folder.iterdir()} == {
        "test_results.json", "all_results.json", "test_evaluation.json"
    }  # fmt: skip
    few = tiny_run.run(*start, *predicts, *flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "few"),
                       *flags(max_predict_samples=2))  # fmt: skip
    assert few["test_loss"] != alone["test_loss"]


def test_retrieval_has_no_decoders(start, tmp_path):
    metrics = tiny_run.run(*start, *flags(task="retrieval", output_dir=tmp_path, max_steps=1))
    assert "eval_matching_loss" in metrics and "eval_mlm_loss" not in metrics
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "decoder" in name]


@pytest.mark.parametrize("modalities", [["text", "video"], ["text", "audio"], ["audio", "video"]])
def test_two_modalities(start, tmp_path, modalities):
    metrics = tiny_run.run(*start, *flags(modalities=modalities, output_dir=tmp_path, max_steps=1))
    assert math.isfinite(metrics["train_loss"])
    assert ("eval_text_to_video_R@1" in metrics) == ("text" in modalities)


# ---- Bad input ----
@pytest.fixture
def error_of(monkeypatch, capsys):
    """Function that runs `main` with a command line and returns its one-line error."""

    def error_of(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        with pytest.raises(SystemExit) as exit_info:
            train.main()
        assert exit_info.value.code not in (0, None)
        said = exit_info.value.code if isinstance(exit_info.value.code, str) else capsys.readouterr().err.strip()
        assert said.startswith("train.py: error: ") and "\n" not in said and "Traceback" not in said
        return said

    return error_of


@pytest.fixture
def bad_clip(clips, tmp_path):
    """Function that takes the name and content of a video and returns the flags of a run whose second row names it."""

    def bad_clip(name: str, content: bytes | None) -> list[str]:
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / "0.mp4").write_bytes((clips / "video/0.mp4").read_bytes())
        if content is not None:
            (folder / name).write_bytes(content)
        manifest = tmp_path / "bad.csv"
        manifest.write_text(f"video,caption\n0.mp4,good\n{name},bad\n")
        return flags(train_file=manifest, validation_file=manifest, video_root=folder, output_dir=tmp_path / "out")

    return bad_clip


def test_bad_videos_are_named(bad_clip, clips, start, error_of, subtests):
    whole = (clips / "video/1.mp4").read_bytes()
    cases = {
        "missing.mp4": (None, "does not exist"),
        "empty.mp4": (b"", "the file is empty (0 bytes)"),
        "cut.mp4": (whole[: len(whole) // 2], "cannot be read as media"),
        "noise.mp4": (bytes(range(256)) * 8, "cannot be read as media"),
        "audio.wav": ((clips / "audio/1.wav").read_bytes(), "audio.wav"),
    }
    for name, (content, reason) in cases.items():
        with subtests.test(name):
            argv = bad_clip(name, content)
            error = error_of(*start, *argv, "--do_train", "--overwrite_output_dir", "--on_bad_sample", "fail")
            assert name in error and reason in error


def test_errors_of_loader_processes_are_one_line(bad_clip, start, error_of):
    values = flags("--do_train", dataloader_num_workers=1, on_bad_sample="fail")
    error = error_of(*start, *bad_clip("empty.mp4", b""), *values)
    assert error.startswith("train.py: error: row 1 (id '1'): '") and "empty.mp4': the file is empty" in error


def manifest_flags(folder: Path, text: str, name: str = "bad.csv") -> list[str]:
    (folder / name).write_text(text)
    return flags(train_file=folder / name, validation_file=folder / name, output_dir=folder / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,captoin\n0.mp4,a cat\n", "no column for text: one of text, caption, captions is needed"),
        ("video,captoin\n0.mp4,a cat\n", "Did you mean 'caption' instead of 'captoin'?"),
        ("video,caption\n", "the manifest has 0 rows"),
        ("", "the manifest has 0 rows"),
        ("video,caption\n0.mp4\n", "line 2: 1 cells, but the header has 2"),
        ("video,text\n0.mp4,no.txt\n", "no.txt does not exist"),
        (
            "video,text\n0.mp4,a cat\n",
            "rename the column to `caption` (`train.py --dataset_name`: add `--rename_columns",
        ),
        ("0.mp4,a cat\n1.mp4,a dog\n", "the first line seems to be a row instead of a header: 0.mp4, a cat."),
        ("video,caption\n.,a cat\n", "is not a regular file"),
    ],
)
def test_bad_manifests(start, tmp_path, error_of, text, message):
    assert message in error_of(*start, *manifest_flags(tmp_path, text))


def test_a_root_without_any_of_the_files_is_an_error_before_the_model_is_made(start, tmp_path, error_of, monkeypatch):
    monkeypatch.setattr("arguments.inputs.make_model", lambda *_: pytest.fail("the model was made"))
    values = manifest_flags(tmp_path, "video,caption\n0.mp4,a cat\n1.mp4,a dog\n")
    (tmp_path / "elsewhere").mkdir()
    error = error_of(*start, *values, *flags(video_root=tmp_path / "elsewhere"))
    assert "elsewhere/0.mp4 does not exist." in error and "elsewhere (--video_root). None of the 2 rows" in error
    assert "\n" not in error.strip() and ".." not in error and not (tmp_path / "out").exists()


def test_links_are_checked_before_training(start, clips, tmp_path, error_of):
    (tmp_path / "videos").mkdir()
    for n in range(3):
        (tmp_path / f"videos/{n}.mp4").symlink_to(clips / f"video/{n}.mp4")
    values = manifest_flags(tmp_path, "video,caption\n" + "".join(f"{n}.mp4,a cat\n" for n in range(3)))
    roots = flags(video_root=tmp_path / "videos", audio_root=tmp_path, text_root=tmp_path)
    error = error_of(*start, *values, *roots)
    assert (
        "bad.csv, row 0 (line 2, id '0'), column 'video': '0.mp4' goes through a link that leaves its folder for "
        in error
    )
    assert "Set --follow_links to follow it" in error and "2 other rows have such links, too." in error
    assert not (tmp_path / "out").exists()
    metrics = tiny_run.run(*start, *values, *roots, *flags(follow_links=True, max_steps=1))
    assert math.isfinite(metrics["train_loss"])


def test_unusual_but_valid_rows(start, clips, tmp_path):
    """One frame, audio shorter than a window, an empty caption, and a caption with only punctuation."""
    tiny_run.write_media(tmp_path / "one.mp4", num_frames=1)
    tiny_run.write_media(tmp_path / "short.wav", waveform=lambda times: times, audio_seconds=0.01)
    text = "video,audio,caption\none.mp4,short.wav,a frame\none.mp4,,\n,short.wav,...\n"
    roots = flags(video_root=tmp_path, audio_root=tmp_path, num_train_epochs=1)
    metrics = tiny_run.run(*start, *manifest_flags(tmp_path, text), *roots)
    assert math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["eval_loss"])
    assert metrics["eval_text_to_video_num_queries"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_file": "missing.csv"}, "--train_file missing.csv: no such file"),
        ({"train_file": "."}, "is a folder, whose files have no captions"),
        ({"num_frames": 3}, "3"),
        ({"video_size": 30}, "30"),
        ({"num_audio_frames": 70}, "70"),
        ({"text_config_name": "missing.json"}, "--text_config_name missing.json: no such file"),
        ({"tokenizer_name": "missing"}, "--tokenizer_name missing: no such folder"),
        ({"video_processor_name": "missing"}, "--video_processor_name missing: no such folder"),
        ({"model_name_or_path": "missing"}, "--model_name_or_path missing: no such folder"),
        ({"video_model_name_or_path": "missing"}, "--video_model_name_or_path missing: no such folder"),
        ({"pair_files": "missing.jsonl"}, "missing.jsonl"),
        ({"video_attn_implementation": "magic"}, "magic"),
        ({"max_seq_length": 33}, "Set --max_seq_length to 32 or less"),
        ({"resume_from_checkpoint": "missing"}, "'missing' is not a complete checkpoint"),
        ({"learning_rte": 1}, "did you mean '--learning_rate'?"),
    ],
)
def test_bad_flags(start, tmp_path, error_of, values, message):
    named = [f"--{name}" for name in values]
    rest = [token for token, before in zip(start, ["", *start], strict=False) if not {token, before} & set(named)]
    if "video_model_name_or_path" in values:
        rest = [token for token in rest if not token.endswith("video.json") and token != "--video_config_name"]
    assert message in error_of(*rest, *flags(output_dir=tmp_path / "out", **values))


@pytest.mark.parametrize(
    ("tower", "model_type", "message"),
    [
        ("audio", "data2vec-audio", "no audio encoder for model_type 'data2vec-audio'; known are 'audio-spectrogram"),
        ("video", "not-invented", "There is no video encoder for model_type 'not-invented'; known are 'clip_v"),
        ("text", None, "has no model_type"),
        ("fusion", "gpt2", "'gpt2'"),
    ],
)
def test_unknown_encoders(start, tmp_path, error_of, tower, model_type, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type} if model_type else {}))
    config = flags(**{f"{tower}_config_name": tmp_path / "config.json"})
    assert message in error_of(*start, *config, *flags(output_dir=tmp_path / "out"))


def test_an_output_folder_with_other_files_is_an_error(start, tmp_path, error_of):
    (tmp_path / "notes.txt").write_text("mine")
    error = error_of(*start, *flags(output_dir=tmp_path))
    assert "is not empty" in error and "--overwrite_output_dir" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_bad_command_ends_with_one_line(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rat: 1\n")
    result = shell([sys.executable, TRAIN, "--config", "run.yaml"], tmp_path)
    assert result.returncode == 2
    assert result.stderr == ("train.py: error: run.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?\n")
