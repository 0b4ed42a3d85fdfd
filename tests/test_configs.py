"""Every shipped run config trains two steps and evaluates."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import simple_multimodal as smm
from simple_multimodal.cli import main
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.prepare.clips import clips_jsonl_to_manifests
from simple_multimodal.prepare.toy import make_sign_world, make_toy_world
from tests.media.media_files import write_media
from tests.models.alpro.tiny import write_folder
from tests.prepare import test_charades, test_phoenix
from tests.training.tiny_benchmark import TEXTS, write_benchmark
from tests.training.tiny_run import CONFIGS, flags, run

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = sorted(REPOSITORY.glob("configs/runs/*.yaml"))
BENCHMARKS = ("msrvtt_ret", "didemo_ret", "msrvtt_qa", "msvd_qa")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> list[str]:
    """Flags for a toy dataset of the smallest size."""
    sizes = {"num_train_clips": 4, "num_validation_videos": 2, "num_validation_audio": 2, "num_question_clips": 9}
    folder = make_toy_world(tmp_path_factory.mktemp("toy") / "toy", num_pairs=2, num_processes=1, **sizes)
    return ["--data_root", str(folder)]


@pytest.fixture(scope="session")
def clips_data(tmp_path_factory, shared_dir) -> list[str]:
    """Flags for the real clips."""
    manifests = clips_jsonl_to_manifests(shared_dir / "data/clips/clips.jsonl", tmp_path_factory.mktemp("clips"))
    flags = ["--data_root", str(shared_dir / "data/clips")]
    return [*flags, "--train_file", str(manifests["train"]), "--validation_file", str(manifests["validation"])]


@pytest.fixture(scope="session")
def signs_data(tmp_path_factory) -> list[str]:
    """Flags for a small toy world of signs."""
    sizes = {"num_train_clips": 30, "num_validation_clips": 3, "num_test_clips": 2, "num_signers": 2}
    folder = make_sign_world(tmp_path_factory.mktemp("signs") / "signs", **sizes, num_processes=1)
    return ["--data_root", str(folder)]


def short(path: Path, *argv: str, **values) -> dict[str, float]:
    """Train two steps of a run in the working directory."""
    values |= {"max_train_samples": 4, "max_eval_samples": 4, "max_steps": 2, "per_device_train_batch_size": 2}
    values |= {"dataloader_num_workers": 0, "cache_dir": "cache"}
    return run("--config", f"configs/runs/{path.name}", *argv, "--use_cpu", "--disable_tqdm", *flags(**values))


SIGNS = [path for path in RUNS if path.stem.startswith("signs")]
WITH_MODEL = (*BENCHMARKS, "charades", "toy_actions", "toy_captions", "toy_questions", "phoenix2014t")
WITHOUT_MODEL = [path for path in RUNS if path.stem not in WITH_MODEL and path not in SIGNS]


@pytest.mark.parametrize("path", WITHOUT_MODEL, ids=lambda path: path.stem)
def test_shipped_run(path, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A new run needs a fixture `<its name>_data`.
    metrics = short(path, *request.getfixturevalue(f"{path.stem}_data"), output_dir="out")
    assert 0 <= metrics["eval_text_to_video_R@1"] <= 1
    assert json.loads((tmp_path / "out/all_results.json").read_text())


def test_shipped_questions_and_captions(toy_data, tmp_path, monkeypatch):
    """Start from the model of the run that the headers of the configs name."""
    monkeypatch.chdir(tmp_path)
    short(REPOSITORY / "configs/runs/toy.yaml", *toy_data, output_dir="out")
    path = REPOSITORY / "configs/runs/toy_questions.yaml"
    metrics = short(path, *toy_data, model_name_or_path="out", output_dir="questions")
    assert 0 <= metrics["eval_accuracy"] <= 1
    path = REPOSITORY / "configs/runs/toy_captions.yaml"
    metrics = short(path, *toy_data, model_name_or_path="out", output_dir="captions", num_beams=1, max_new_tokens=3)
    assert metrics["eval_CIDEr-D"] >= 0


@pytest.mark.parametrize("path", SIGNS, ids=lambda path: path.stem)
def test_shipped_signs(path, signs_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--do_train", "--do_eval", "--do_predict", *signs_data]
    metrics = short(path, *given, output_dir="out", num_beams=1, max_new_tokens=3, max_predict_samples=2)
    assert 0 <= metrics["eval_BLEU"] <= 1 and 0 <= metrics["test_BLEU"] <= 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_shipped_fine_tuning(name, tmp_path, monkeypatch):
    """Runs the commands in the header of the config, with a tiny ALPRO and benchmark in the folders they name."""
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / f"configs/runs/{name}.yaml"
    settings = yaml.safe_load(path.read_text())
    head = dict(re.findall(r"^#   .*\b(convert|prepare|train\.py|infer) (.+)$", path.read_text(), flags=re.MULTILINE))
    write_benchmark(tmp_path, name, is_prepared=False)
    assert main(["prepare", *shlex.split(head["prepare"])]) == 1  # the size differs from the protocol's

    converted = write_folder(tmp_path / "alpro", "pretraining", TEXTS, num_frames=settings["num_frames"])
    _, model, *num_frames = shlex.split(head["convert"])[1:]
    assert num_frames == ["--num_frames", str(settings["num_frames"])]
    Path(model).parent.mkdir()
    Path(converted).rename(model)
    command = shlex.split(head["train.py"])
    assert command[:2] == ["--config", f"configs/runs/{name}.yaml"]
    metrics = short(path, *command[2:])
    out = Path(settings["output_dir"])
    assert f"eval_{settings['metric_for_best_model']}" in metrics
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] is not None and state["global_step"] == 2
    assert json.loads((out / "evaluation.json").read_text())["selection_split"] == "validation"

    assert main(["infer", *shlex.split(head["infer"])]) == 0
    results = Path(shlex.split(head["infer"])[-1])
    assert json.loads((results / "metrics.json").read_text())["selection_split"] == "validation"


@pytest.mark.parametrize("protocol", ["charades", "charades+script"])
def test_shipped_charades(protocol, tmp_path, monkeypatch):
    """Runs the commands in the header of the config, from a tiny model of three modalities."""
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / "configs/runs/charades.yaml"
    settings = yaml.safe_load(path.read_text())
    head = dict(re.findall(r"^#   .*\b(prepare|train\.py|infer) (.+)$", path.read_text(), flags=re.MULTILINE))
    for split, rows in (("train", test_charades.TRAIN), ("test", test_charades.TEST)):
        rows = [row | {"actions": "c000 0.00 1.00;c002 0.00 1.00"} for row in rows]
        test_charades.write_split(tmp_path / "annotations/charades", split, rows)
        (tmp_path / "videos/charades").mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows):
            write_media(tmp_path / f"videos/charades/{row['id']}.mp4", num_frames=20, first_number=300 * number)
    (tmp_path / "annotations/charades/Charades_v1_classes.txt").write_text("\n".join(test_charades.CLASSES))
    assert main(["prepare", *shlex.split(head["prepare"]), "--protocol", protocol]) == 1  # the size differs

    for tower, values in CONFIGS.items():
        further = {"num_frames": settings["num_frames"]} if tower == "video" else {}
        (tmp_path / f"{tower}.json").write_text(json.dumps(values | further))
    model, processor = smm.from_towers(
        **{tower: f"{tower}.json" for tower in CONFIGS}, task="pretraining", captions=["someone", "she says hi"]
    )
    command = shlex.split(head["train.py"])
    base = command[command.index("--model_name_or_path") + 1]
    model.save_pretrained(base)
    processor.save_pretrained(base)
    metrics = short(path, *command[2:])
    assert 0 <= metrics["eval_mAP"] <= 1
    assert (
        json.loads(Path(settings["output_dir"], "config.json").read_text())["id2label"]["2"] == "Laughing at something"
    )

    assert main(["infer", *shlex.split(head["infer"])]) == 0
    results = Path(shlex.split(head["infer"])[-1])
    assert json.loads((results / "metrics.json").read_text())["protocol"] == f"{protocol}+deviating"


def test_shipped_phoenix2014t(shared_dir, tmp_path, monkeypatch):
    """Runs the commands in the header of the config, with a tiny backbone and one pose as that of every clip."""
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / "configs/runs/phoenix2014t.yaml"
    settings = yaml.safe_load(path.read_text())
    head = dict(re.findall(r"^#   .*\b(prepare|train\.py|infer) (.+)$", path.read_text(), flags=re.MULTILINE))
    test_phoenix.write_tables(tmp_path / "data/phoenix2014t/annotations/manual")
    for split, clip in test_phoenix.names():
        (tmp_path / f"data/phoenix2014t/poses/{split}").mkdir(parents=True, exist_ok=True)
        shutil.copy(shared_dir / "data/poses/clip024.pose", f"data/phoenix2014t/poses/{split}/{clip}.pose")
    assert main(["prepare", *shlex.split(head["prepare"])]) == 1  # the size differs from the protocol's

    tokenizer = train_tokenizer(sum(test_phoenix.SENTENCES.values(), []), vocab_size=300)
    tokenizer.add_tokens(["__de__"], special_tokens=True)
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    config = AutoConfig.for_model(**test_phoenix.BACKBONE | ids, decoder_start_token_id=ids["eos_token_id"])
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained("m2m")
    tokenizer.save_pretrained("m2m")
    command = shlex.split(head["train.py"])
    given = {"backbone_model_name_or_path": "m2m", "fp16": False, "eval_steps": 1, "save_steps": 1}
    metrics = short(path, *command[2:], **given, max_new_tokens=3)
    out = Path(settings["output_dir"])
    assert f"eval_{settings['metric_for_best_model']}" in metrics
    assert json.loads((out / "trainer_state.json").read_text())["best_model_checkpoint"] is not None

    assert main(["infer", *shlex.split(head["infer"]), "--max_new_tokens", "3"]) == 0
    results = Path(shlex.split(head["infer"])[-1])
    measured = json.loads((results / "metrics.json").read_text())
    assert measured["protocol"] == "phoenix2014t+deviating" and {"BLEU", "unseen_BLEU"} <= measured["metrics"].keys()
    assert 0 <= json.loads((results / "predict_results.json").read_text())["predict_sacrebleu"] <= 100


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_configs(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == ("FSDP" if path.stem == "fsdp2" else "MULTI_GPU")
    assert config.num_processes % config.num_machines == 0
