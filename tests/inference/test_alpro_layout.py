"""`infer` on ALPRO's own folders, which it converts on first use, and the scripts that find them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from simple_multimodal import assembly
from simple_multimodal.alpro import folder
from simple_multimodal.alpro.layout import SOURCE_FILE
from simple_multimodal.cli import main
from simple_multimodal.data.tokenization import train_tokenizer
from tests.models.alpro.tiny import original_tensors, tiny_config
from tests.training.tiny_benchmark import TEXTS, write_benchmark

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = {"msrvtt_ret": "retrieval", "didemo_ret": "retrieval", "msrvtt_qa": "qa", "msvd_qa": "qa"}


@pytest.fixture
def converted(monkeypatch) -> list[Path]:
    """The checkpoints that are converted; they are tiny ones."""
    converted = []
    load = folder.load_alpro

    def load_tiny(checkpoint, **settings):
        converted.append(checkpoint)
        config = tiny_config()
        words = torch.load(checkpoint)["text_encoder.bert.embeddings.word_embeddings.weight"]
        config.text_config.vocab_size = len(words)
        config.text_config.max_position_embeddings = 64
        return load(checkpoint, **{**settings, "config": config})

    monkeypatch.setattr(folder, "load_alpro", load_tiny)
    return converted


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, vocab_size=300).save_pretrained(folder)
    return str(folder)


def write_checkpoint(root: Path, task: str, tokenizer: str, *, name: str = "model_step_best.pt") -> Path:
    """`output/downstreams/<task>/public/ckpt`, of which the folder above is returned."""
    folder = root / "output/downstreams" / task / "public"
    (folder / "ckpt").mkdir(parents=True, exist_ok=True)
    size = len(assembly.AutoTokenizer.from_pretrained(tokenizer))
    torch.save(original_tensors(TASKS[task], vocab_size=size, num_positions=64), folder / "ckpt" / name)
    return folder


@pytest.mark.parametrize("task", ["didemo_ret", "msvd_qa"])
def test_the_original_layout_is_measured_and_converted_once(converted, tokenizer, tmp_path, capfd, task):
    write_benchmark(tmp_path, task, is_prepared=False)
    folder, out = write_checkpoint(tmp_path, task, tokenizer, name="model_step_20.pt"), tmp_path / "out"
    write_checkpoint(tmp_path, task, tokenizer, name="model_step_3.pt")
    argv = ["infer", str(folder), str(tmp_path / "data" / task), "--output_dir", str(out), "--tokenizer", tokenizer]
    metrics = []
    for _ in range(2):
        assert main(argv) == 0
        metrics.append((out / "metrics.json").read_bytes())
    assert converted == [folder / "ckpt/model_step_20.pt"] and metrics[0] == metrics[1]
    modes = [(out / "model" / name).stat().st_mode for name in ("model.safetensors", "config.json")]
    assert modes[0] == modes[1]  # the umask's
    saved = json.loads((out / "model/tokenizer_config.json").read_text())
    assert saved["model_max_length"] == (50 if task == "didemo_ret" else 40)
    if task == "msvd_qa":
        assert json.loads((out / "model/config.json").read_text())["label2id"]["cow"] == 4
    write_checkpoint(tmp_path, task, tokenizer)  # the one that was chosen comes first
    assert main(argv) == 0
    assert converted[1:] == [folder / "ckpt/model_step_best.pt"]
    assert main(argv[:-1] + [str(shutil.copytree(tokenizer, tmp_path / "other"))]) == 0 and len(converted) == 3
    assert not list(out.glob(".*"))


def test_bad_folders_are_named(converted, tokenizer, tmp_path, capfd):
    def error(model: Path, *flags: str) -> str:
        assert (
            main(
                ["infer", str(model), str(tmp_path / "data/msrvtt_ret"), "--output_dir", str(tmp_path / "out"), *flags]
            )
            == 2
        )
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("simple-multimodal: error")]
        return line

    assert f"{tmp_path}/data/msrvtt_ret: no such folder." in error(tmp_path)
    write_benchmark(tmp_path, "msrvtt_ret", is_prepared=False)
    absent = tmp_path / "output/downstreams/msrvtt_ret/public"
    assert f"{absent}: no such folder." in error(absent)
    (absent / "log").mkdir(parents=True)
    assert f"{absent}/ckpt/model_step_best.pt: there is no such checkpoint" in error(absent)
    (absent / "log").rmdir()
    write_checkpoint(tmp_path, "msrvtt_ret", tokenizer)
    assert "Cannot read a tokenizer from 'absent/tokenizer'" in error(absent, "--tokenizer", "absent/tokenizer")
    assert not (tmp_path / "out/model").exists()
    (tmp_path / "out/model").mkdir(parents=True)
    (tmp_path / "out/model/mine").touch()
    assert "out/model was not converted from an ALPRO checkpoint and is not replaced" in error(absent)
    assert (tmp_path / "out/model/mine").exists() and not (tmp_path / "out/model" / SOURCE_FILE).exists()


@pytest.mark.parametrize("task", TASKS)
def test_the_scripts_find_the_layout_from_any_working_directory(tmp_path, task):
    """Beside the scripts, or in the working directory first; a model that is named is taken."""
    root, here = tmp_path / "our repository", tmp_path / "work"
    (root / "run_scripts").mkdir(parents=True)
    here.mkdir()
    script = shutil.copy(REPOSITORY / f"run_scripts/inf_{task}.sh", root / "run_scripts")
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    python.chmod(0o755)

    def words(*argv: str) -> list[str]:
        done = subprocess.run(["bash", script, *argv], cwd=here, capture_output=True, text=True, check=True)
        head, rest = (lines := done.stdout.splitlines())[:3], lines[3:]
        assert head == ["-m", "simple_multimodal", "infer"] and rest[2:4] == ["--output_dir", f"outputs/inf_{task}"]
        return rest[:2] + rest[4:]

    model, data = f"output/downstreams/{task}/public", f"data/{task}"
    assert words() == [f"{root}/{model}", f"{root}/{data}"]
    assert words("--alpro", "--batch_size", "2") == [
        f"{root}/{model}",
        f"{root}/{data}",
        "--alpro",
        "--batch_size",
        "2",
    ]
    assert words("my model", "--alpro") == ["my model", f"{root}/{data}", "--alpro"]
    (here / data).mkdir(parents=True)
    (here / model).mkdir(parents=True)
    assert words() == [model, data] and words("mine") == ["mine", data]
