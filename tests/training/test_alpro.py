"""Fine-tuning of a converted ALPRO with `train.py`: learning, resuming and evaluation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.cli import main
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.models.alpro.tiny import write_folder
from tests.training.tiny_benchmark import TEXTS, write_benchmark
from tests.training.tiny_run import flags, run

TASKS = {"msrvtt_ret": "retrieval", "msvd_qa": "question_answering"}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Folder with both benchmarks."""
    folder = tmp_path_factory.mktemp("alpro")
    for task in TASKS:
        write_benchmark(folder, task)
    return folder


@pytest.fixture(scope="module")
def retrieval_model(tmp_path_factory) -> str:
    return write_folder(tmp_path_factory.mktemp("retrieval"), "retrieval", TEXTS, drop_path_rate=0.2)


@pytest.fixture(scope="module")
def question_model(tmp_path_factory) -> str:
    return write_folder(tmp_path_factory.mktemp("qa"), "qa", TEXTS)


@pytest.fixture(scope="module")
def start(work, retrieval_model):
    """Function that returns the flags for fine-tuning on a benchmark, with two rows per batch."""

    def start(benchmark: str, **values) -> list[str]:
        manifests = work / "datasets" / benchmark
        settings = {
            "task": TASKS[benchmark],
            "model_name_or_path": retrieval_model,
            "train_file": manifests / "train.jsonl",
            "validation_file": manifests / "validation.jsonl",
            "video_root": work / "data" / benchmark / "videos",
            "cache_dir": work / "cache",
            "dataloader_num_workers": 0,
            "per_device_train_batch_size": 2,
        }
        return ["--use_cpu", "--disable_tqdm", *flags(**(settings | values))]

    return start


@pytest.fixture
def trainers(monkeypatch) -> list[MultimodalTrainer]:
    """Trainers that the runs of this test make; each keeps its initial weights."""
    made = []

    class KeptTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
            made.append(self)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeptTrainer)
    return made


def changed(trainer: MultimodalTrainer) -> set[str]:
    after = trainer.model.state_dict()
    return {name for name in after if not torch.equal(after[name], trainer.before[name])}


@pytest.mark.parametrize("task", TASKS)
def test_alpro_learns_and_is_evaluated_on_the_test_split(start, work, tmp_path, trainers, capfd, task):
    out = tmp_path / "out"
    learn = {"max_steps": 40, "learning_rate": 3e-3, "per_device_train_batch_size": 10, "logging_steps": 1}
    metrics = run(*start(task, output_dir=out, **learn))
    losses = [log["loss"] for log in trainers[0].state.log_history if "loss" in log]
    assert sum(losses[-4:]) / 4 < 0.8 * losses[0]
    # A key's bias shifts all scores of a query equally.
    still = {name for name in trainers[0].before if name not in changed(trainers[0]) and "key.bias" not in name}
    assert still == set()
    is_retrieval = task == "msrvtt_ret"
    kind = "AlproForRetrieval" if is_retrieval else "AlproForQuestionAnswering"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [kind] and config["drop_path_rate"] == 0.2
    if is_retrieval:
        assert metrics["eval_matching_text_to_video_num_queries"] == 1 and metrics["eval_contrastive_tv_loss"] >= 0
    else:
        assert sorted(config["label2id"]) == ["bird", "cat", "cow", "dog", "fish", "man"]
        assert metrics["eval_accuracy"] in (0, 0.5, 1) and metrics["eval_answer_loss"] > 0
    capfd.readouterr()
    argv = ["infer", str(out), str(work / "datasets" / task), "--video_root", str(work / "data" / task / "videos")]
    assert main([*argv, "--output_dir", str(tmp_path / "test")]) == 0
    printed = capfd.readouterr().out
    measured = json.loads((tmp_path / "test/metrics.json").read_text())
    assert measured["selection_split"] is None
    assert measured["counts"] == (
        {"captions": 2, "clips": 2, "duplicate_captions": 0} if is_retrieval else {"questions": 4, "clips": 2}
    )
    assert ("matching text to video R@1" in printed) == is_retrieval
    assert main([*argv, "--output_dir", str(tmp_path / "test"), "--split", "train"]) == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(start, work, tmp_path, task):
    steps = {"max_steps": 4, "save_steps": 2}
    if task == "msvd_qa":
        steps["answers_file"] = work / "data/msvd_qa/txt/train_ans2label.json"
    run(*start(task, output_dir=tmp_path / "straight", **steps), "--do_train")
    resumed = {"output_dir": tmp_path / "other", "resume_from_checkpoint": tmp_path / "straight/checkpoint-2"}
    run(*start(task, **resumed, **steps), "--do_train")
    straight, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "other"))
    assert straight.keys() == other.keys()
    assert [name for name in straight if not torch.equal(straight[name], other[name])] == []


def test_question_answering_uses_towers_and_fusion_with_a_new_random_head(start, retrieval_model, tmp_path, trainers):
    run(*start("msvd_qa", output_dir=tmp_path, max_steps=1, learning_rate=0), "--do_train")
    source = load_file(Path(retrieval_model) / "model.safetensors")
    before = trainers[0].before
    own = {name for name in before if name not in source}
    assert own == {f"classifier.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")}
    assert all(torch.equal(before[name], source[name]) for name in before if name not in own)
    assert before["classifier.2.weight"].std() > 0


def test_a_question_answering_model_keeps_its_answers_or_provides_towers_for_retrieval(
    start, question_model, work, tmp_path, trainers
):
    run(*start("msvd_qa", output_dir=tmp_path / "qa", model_name_or_path=question_model, max_steps=1), "--do_train")
    assert trainers[0].model.config.id2label == {number: f"LABEL_{number}" for number in range(3)}
    run(
        *start("msrvtt_ret", output_dir=tmp_path / "ret", model_name_or_path=question_model, max_steps=1), "--do_train"
    )
    assert trainers[1].before["temperature"] == pytest.approx(0.07)
    with pytest.raises(
        ValueError, match="already trained for this task, with other labels than those of answers_file="
    ):
        answers = work / "data/msvd_qa/txt/train_ans2label.json"
        run(*start("msvd_qa", output_dir=tmp_path / "no", model_name_or_path=question_model, answers_file=answers))


@pytest.mark.parametrize("frozen", ["text", "video", "fusion"])
def test_each_tower_can_be_frozen_and_has_its_own_learning_rate(start, tmp_path, trainers, frozen):
    rates = {"learning_rate": 0.03, "text_learning_rate": 0.01, "video_learning_rate": 0.02}
    rates.pop(f"{frozen}_learning_rate", None)
    run(*start("msrvtt_ret", output_dir=tmp_path, max_steps=1, freeze=frozen, **rates), "--do_train")
    trainer = trainers[0]
    text = "alpro.text_encoder."
    towers = {
        "text": (f"{text}embeddings.", f"{text}encoder.layer.0.", f"{text}encoder.layer.1."),
        "video": ("alpro.video_encoder.",),
        "fusion": (f"{text}encoder.layer.2.", f"{text}encoder.layer.3."),
    }
    assert not [name for name in changed(trainer) if name.startswith(towers[frozen])]
    for name, starts in towers.items():
        assert name == frozen or [weight for weight in changed(trainer) if weight.startswith(starts)]
    expected = {"text": 0.01, "video": 0.02, "fusion": 0.03}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = 0
    for group in trainer.optimizer.optimizer.param_groups:
        for parameter in group["params"]:
            tower = next((t for t, starts in towers.items() if names[id(parameter)].startswith(starts)), "fusion")
            assert group["initial_lr"] == expected[tower], names[id(parameter)]
            found += 1
    assert found == sum(parameter.requires_grad for parameter in trainer.model.parameters()) > 50


def test_activation_checkpointing_does_not_change_results(start, tmp_path, question_model, trainers):
    for name, is_on in (("a", False), ("b", True)):
        values = {"output_dir": tmp_path / name, "activation_checkpointing": is_on, "max_steps": 1}
        run(*start("msvd_qa", model_name_or_path=question_model, **values), "--do_train")
    assert [trainer.model.is_activation_checkpointing for trainer in trainers] == [False, True]
    plain, checkpointed = (trainer.model.state_dict() for trainer in trainers)
    assert_close(checkpointed, plain, 1e-4)  # Adam turns rounding errors of small gradients into full steps


def test_evaluation_alone_does_not_depend_on_the_batch_size(start, tmp_path):
    rows = {"validation_file": "train.jsonl", "output_dir": tmp_path}
    metrics = []
    for size in (1, 3):
        argv = start("msrvtt_ret", per_device_eval_batch_size=size, rerank_top_k=2, **rows)
        root = Path(argv[argv.index("--train_file") + 1]).parent
        metrics.append(run(*argv, "--do_eval", "--data_root", str(root)))
    one, three = ({k: v for k, v in m.items() if not k.endswith(("_runtime", "_per_second"))} for m in metrics)
    assert one == pytest.approx(three, rel=1e-5) and one["eval_text_to_video_num_candidates"] == 5
    assert one["eval_loss"] == pytest.approx(one["eval_contrastive_tv_loss"] + one["eval_matching_loss"])
    assert json.loads((tmp_path / "evaluation.json").read_text())["selection_split"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "pretraining"},
            "of type 'alpro', but this task only has models of type 'simple_multimodal'",
        ),
        (
            {"mlm_loss_weight": 1},
            "has no such objective: --mlm_loss_weight. .* it has --contrastive_tv_loss_weight, --mat",
        ),
        ({"fusion_form": "merge"}, "--fusion_form is 'merge', but the saved model has no such setting"),
        ({"modalities": ["text", "audio"]}, "--modalities is text audio, but the saved model has text video"),
        ({"num_mel_bins": 64}, r"takes text and video, so audio settings would have no effect: num_mel_bins"),
        ({"num_frames": 8}, "8 frames of 12 by 12 pixels, but this ALPRO takes 3 .* convert the checkpoint"),
        ({"max_seq_length": 65}, "65 tokens, but this ALPRO takes 64. Set `max_seq_length`"),
        ({"freeze": "audio"}, "Cannot freeze 'audio': this model has text, video, fusion"),
        ({"audio_learning_rate": 0.1}, "audio_learning_rate would have no effect: this model has text"),
    ],
)
def test_unsupported_settings_are_errors(start, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(*start("msrvtt_ret", output_dir=tmp_path, max_steps=1, **changes))


def test_modalities_of_the_model_can_be_named(start, tmp_path):
    run(*start("msrvtt_ret", output_dir=tmp_path, max_steps=1, modalities=["text", "video"]), "--do_train")
    assert (tmp_path / "model.safetensors").exists()
