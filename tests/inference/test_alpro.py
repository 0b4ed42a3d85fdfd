"""Every command that uses a model accepts an ALPRO model from `simple-multimodal convert alpro`."""

import ast
import json
from pathlib import Path

import pytest

from simple_multimodal.cli import main
from tests.models.alpro.tiny import write_folder
from tests.training.tiny_benchmark import TEXTS, write_benchmark


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return {kind: write_folder(tmp_path_factory.mktemp(kind), kind, TEXTS) for kind in ("retrieval", "qa")}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for task in ("msrvtt_ret", "msvd_qa"):
        write_benchmark(folder, task)
    return folder


def test_encode_search_and_answer(models, work, tmp_path, capfd):
    def lines(*argv: str) -> list[dict]:
        assert main(list(argv)) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]

    videos, index = str(work / "data/msrvtt_ret/videos"), str(tmp_path / "embeddings")
    lines("encode", models["retrieval"], videos, "--out", index)
    found = lines("search", models["retrieval"], TEXTS[0], index)
    assert len(found) == 8 and found == lines("search", models["retrieval"], TEXTS[0], videos)
    reranked = lines("search", models["retrieval"], TEXTS[0], videos, "--rerank", "3")
    assert {match["clip"] for match in reranked[:3]} == {match["clip"] for match in found[:3]}
    assert [match["matching"] for match in reranked[:3]] == sorted((m["matching"] for m in reranked[:3]), reverse=True)
    (answered,) = lines("answer", models["qa"], "what is it?", f"{videos}/video0.mp4", "--top_k", "3")
    assert sorted(answer["answer"] for answer in answered["answers"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert main(["search", models["qa"], TEXTS[0], videos]) == 2
    assert "a model of another task; Retriever takes" in capfd.readouterr().err


@pytest.mark.parametrize(("kind", "task"), [("retrieval", "msrvtt_ret"), ("qa", "msvd_qa")])
@pytest.mark.parametrize("alpro", [False, True])
def test_infer_over_the_original_layout(models, work, tmp_path, capfd, kind, task, alpro):
    argv = ["infer", models[kind], str(work / "data" / task), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, *["--alpro"] * alpro]) == 0
    printed = ast.literal_eval(capfd.readouterr().out.strip().splitlines()[-1])
    assert ("text2video" if kind == "retrieval" else "overall_acc") in printed
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written["selection_split"] is None and written["protocol"].startswith("alpro" if alpro else "ms")
    assert written["counts"]["clips"] == 2
