"""The precision of inference: by default that of the evaluations during training."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.precision import autocast, effective_precision
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.tasks.retrieval.evaluate import evaluate_retrieval
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.inference.conftest import unseen
from tests.training import tiny_run
from tests.training.tiny_run import flags


@pytest.fixture(scope="module")
def bf16_model(clips, start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "bf16"
    tiny_run.run(*tiny_run.data_flags(clips), *start, *flags(output_dir=folder, fusion_form="merge", bf16=True))
    return str(folder)


def manifest(clips: Path) -> RowDataset:
    roots = {column: clips / column for column in ("video", "audio", "text")}
    return RowDataset.from_manifest(clips / "validation.csv", roots=roots)


def embeds(model: str, clips: Path, **settings) -> torch.Tensor:
    return Retriever.from_pretrained(model, **settings).index(clips / "video/0.mp4").embeds


def test_the_default_precision_is_that_of_the_selection(bf16_model, retrieval_model, clips):
    assert Retriever.from_pretrained(bf16_model).precision == "bf16"
    assert Retriever.from_pretrained(retrieval_model).precision == "fp32"
    by_default = embeds(bf16_model, clips)
    assert torch.equal(by_default, embeds(bf16_model, clips, precision="bf16"))
    exact = embeds(bf16_model, clips, precision="fp32")
    assert not torch.equal(by_default, exact)
    torch.testing.assert_close(by_default, exact, atol=0.05, rtol=0)


def test_inference_and_training_compute_the_same_metrics(bf16_model, clips, tmp_path):
    trained = json.loads(Path(bf16_model, "evaluation.json").read_text())
    assert trained["precision"] == "bf16"
    measured = evaluate_retrieval(Retriever.from_pretrained(bf16_model), manifest(clips))
    for name in ("text_to_video_R@1", "text_to_video_mean_rank", "matching_text_to_video_mean_rank"):
        assert measured.metrics[name] == trained["metrics"][name], name


def test_the_result_contains_the_precision_and_a_mismatch_is_logged(bf16_model, data, tmp_path, caplog):
    model = unseen(bf16_model, tmp_path)
    command = [
        "infer",
        model,
        str(data / "msrvtt_ret"),
        "--output_dir",
        str(tmp_path / "out"),
        "--rerank_top_k",
        "0",
    ]
    for given, written, is_said in (((), "bf16", False), (("--precision", "fp32"), "fp32", True)):
        assert main([*command, *given]) == 0
        assert json.loads((tmp_path / "out/metrics.json").read_text())["precision"] == written
        said = [message for message in caplog.messages if "was evaluated in bf16" in message]
        assert len(said) == is_said
        assert all("is used in fp32 here" in line and "\n" not in line for line in said)


def test_a_run_that_only_evaluates_logs_a_mismatch(bf16_model, clips, tmp_path, caplog):
    common = [*tiny_run.data_flags(clips), "--do_eval", *flags(model_name_or_path=bf16_model, report_to="none")]
    common += flags(max_eval_samples=2, cache_dir=tmp_path / "cache", use_cpu=True, dataloader_num_workers=0)
    tiny_run.run(*common, *flags(output_dir=tmp_path / "fp32"))
    assert "was evaluated in bf16 during training but is used in fp32" in caplog.text
    caplog.clear()
    tiny_run.run(*common, *flags(output_dir=tmp_path / "bf16", bf16=True))
    assert "was evaluated in" not in caplog.text


def test_saved_embeddings_and_features_record_their_precision(bf16_model, clips, tmp_path):
    saved = tmp_path / "embeddings"
    Retriever.from_pretrained(bf16_model).index(clips / "video", saved=saved)
    assert Retriever.from_pretrained(bf16_model).load_index(saved).precision == "bf16"
    with pytest.raises(ValueError, match="computed in bf16, but this model computes in fp32. Set precision='bf16'"):
        Retriever.from_pretrained(bf16_model, precision="fp32").load_index(saved)
    rows = manifest(clips)
    TowerFeatures.from_pretrained(bf16_model).write("video", [rows], tmp_path / "features")
    assert json.loads((tmp_path / "features/video/index.json").read_text())["fingerprint"]["precision"] == "bf16"
    with pytest.raises(ValueError, match="precision 'bf16' there and 'fp32' here"):
        TowerFeatures.from_pretrained(bf16_model, precision="fp32").write("video", [rows], tmp_path / "features")


def test_fp16_on_a_cpu_is_fp32_by_default_and_an_error_on_request(retrieval_model, tmp_path, caplog):
    assert effective_precision(bf16=False, fp16=True, device_type="cpu") == "fp32"
    assert effective_precision(bf16=False, fp16=True, device_type="cuda") == "fp16"
    shutil.copytree(retrieval_model, tmp_path / "model")
    record = json.loads((tmp_path / "model/run.json").read_text())
    assert record["precision"] == "fp32"
    (tmp_path / "model/run.json").write_text(json.dumps({**record, "precision": "fp16"}))
    assert Retriever.from_pretrained(tmp_path / "model").precision == "fp32"
    assert "is used in fp32 here (fp16 needs a GPU)" in caplog.text
    with pytest.raises(ValueError, match="precision: fp16 needs a GPU; on a CPU use bf16 or fp32"):
        Retriever.from_pretrained(retrieval_model, precision="fp16")
    with pytest.raises(ValueError, match="precision='int8' is unknown; choose one of fp32, bf16, fp16"):
        Retriever.from_pretrained(retrieval_model, precision="int8")
    # On a GPU, every precision uses torch's autocast.
    with autocast("fp16", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
