"""A task outside the package trains, resumes, evaluates in several processes, reports and loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import simple_multimodal as smm
from simple_multimodal.tasks.flags import OPTIONS
from simple_multimodal.tasks.registry import TASKS, Task, get_task, register_task
from tests.processes import launch, run_script
from tests.training.tiny_run import flags, write_clips, write_configs

SCRIPT = Path(__file__).parent / "own/train_regression.py"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> list[str]:
    """Flags of a run of the task on tiny towers and clips."""
    folder = write_clips(tmp_path_factory.mktemp("clips"))
    rows = [{"video": f"{row}.mp4", "audio": f"{row}.wav", "level": row / 7} for row in range(6)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = write_configs(tmp_path_factory.mktemp("configs"))
    return [
        *("--task", "regression", "--modalities", "audio", "video", "--use_cpu", "--disable_tqdm"),
        *flags(
            number_column="level",
            **{f"{tower}_config_name": configs[tower] for tower in ("audio", "video", "fusion")},
            train_file=folder / "train.jsonl",
            validation_file=folder / "train.jsonl",
            video_root=folder / "video",
            audio_root=folder / "audio",
            cache_dir=folder / "cache",
            learning_rate=0.01,
            per_device_train_batch_size=3,
            dataloader_num_workers=0,
            save_steps=2,
            lr_scheduler_type="constant",
        ),
    ]


def run(*argv: str, num_processes: int = 1) -> dict[str, float]:
    """Run the script and return the metrics of its evaluation."""
    output = Path(argv[argv.index("--output_dir") + 1])
    done = launch(num_processes, run_script, SCRIPT, [*argv])
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((output / "eval_results.json").read_text())
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("run") / "straight"
    return folder, run(*start, *flags(output_dir=folder, max_steps=4))


def test_a_custom_task_trains_reports_and_saves_its_name(straight):
    folder, metrics = straight
    assert metrics["mean_absolute_error"] > 0
    assert json.loads((folder / "config.json").read_text())["task"] == "regression"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["primary_metric"] == "mean_absolute_error" and evaluation["counts"] == {"rows": 6, "clips": 6}
    assert "mean absolute error" in (folder / "report.html").read_text()
    assert "regression" in (folder / "README.md").read_text()


def test_a_resumed_run_equals_an_uninterrupted_one(start, straight, tmp_path):
    run(*start, *flags(output_dir=tmp_path, max_steps=2))
    run(*start, *flags(output_dir=tmp_path, max_steps=4))
    first, second = (load_file(folder / "model.safetensors") for folder in (straight[0], tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_compute_the_same_metrics(start, straight, tmp_path):
    folder, metrics = straight
    again = ["--do_train", "False", *flags(model_name_or_path=folder, output_dir=tmp_path / "out")]
    tokens = [token for name, token in zip(["", *start], start, strict=False) if "_config_name" not in name + token]
    measured = run(*tokens, *again, num_processes=2)
    for name in ("loss", "mean_absolute_error"):
        assert measured[name] == pytest.approx(metrics[name], rel=1e-6)


def test_an_unreadable_clip_counts(start, straight, tmp_path):
    values = dict(zip(start, start[1:], strict=False))
    good = Path(values["--train_file"]).read_text()
    (Path(values["--video_root"]) / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.jsonl").write_text(good + json.dumps({"video": "bad.mp4", "level": 7.0}) + "\n")
    argv = flags(
        "--do_eval", "--use_cpu", task="regression", number_column="level", model_name_or_path=straight[0],
        output_dir=tmp_path / "out",
        modalities=["audio", "video"], validation_file=tmp_path / "bad.jsonl", dataloader_num_workers=0,
        **{name: values[f"--{name}"] for name in ("video_root", "audio_root", "cache_dir")},
    )  # fmt: skip
    error = run(*argv)["mean_absolute_error"]
    assert error == pytest.approx((6 * straight[1]["mean_absolute_error"] + 7) / 7)
    assert len(json.loads((tmp_path / "out/evaluation.json").read_text())["bad_samples"]) == 1


def test_the_model_can_be_loaded_and_used(start, straight, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import regression

    try:
        model, processor = smm.load(straight[0])
        assert type(model) is regression.MultimodalForRegression and processor.modalities == ("audio", "video")
        values = dict(zip(start, start[1:], strict=False))
        roots = {"video": values["--video_root"], "audio": values["--audio_root"]}
        rows = smm.Dataset.from_manifest(values["--train_file"], roots=roots, modalities=("audio", "video"))
        encoded = regression.Estimator.from_pretrained(straight[0]).estimate_rows(list(rows.rows(files="named")))
        estimates = encoded.values["estimates"].tolist()
        requests = [{"clip": rows[number]["video"]} for number in (1, 0, 1)]
        served = regression.Estimator.from_pretrained(straight[0], drop_modalities=("audio",))(requests)
        assert [len(found) for found in served] == [1, 1, 1] and served[0] == served[2] != served[1]
        errors = [abs(estimate - row["level"]) for estimate, row in zip(estimates, rows, strict=True)]
        assert sum(errors) / 6 == pytest.approx(straight[1]["mean_absolute_error"])
    finally:
        TASKS.pop("regression", None)
        OPTIONS.pop("regression", None)


def test_a_task_name_can_be_registered_only_once():
    class Another(Task):
        name = "retrieval"

    with pytest.raises(ValueError, match="There already is a task 'retrieval': Retrieval"):
        register_task(Another)
    assert get_task("retrieval") is not Another
