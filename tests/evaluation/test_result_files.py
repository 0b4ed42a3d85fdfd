"""Result files: their contents, and that a failure keeps the old file."""

import json
import math

import pytest

from simple_multimodal.evaluation.result_files import write_metrics, write_rows, write_whole


def test_rows_are_written_as_one_list_with_a_row_per_line(tmp_path):
    rows = [{"txt_id": 0, "score": 0.5}, {"txt_id": 1, "vid_id": "ä"}]
    write_rows(tmp_path / "results.json", iter(rows))
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text) == rows
    assert len(text.splitlines()) == len(rows) + 2
    write_rows(tmp_path / "results.json", [])
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_a_failure_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_whole(path, ["old"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(path, [{"score": 0.5}, {"score": float("nan")}])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_a_partial_file(tmp_path):
    path = tmp_path / "results.json"
    write_whole(path, ["old"])

    def pieces():
        yield "new"
        assert path.read_text() == "old"
        yield "er"

    write_whole(path, pieces())
    assert path.read_text() == "newer"


def test_the_metrics_file_contains_protocol_counts_metrics_and_intervals(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(
        path,
        metrics={"text_to_video_R@1": 0.5},
        protocol="toy",
        counts={"queries": 2},
        intervals={"text_to_video_R@1": (0.25, 0.75)},
        primary_metric="text_to_video_R@1",
        selection_split="validation",
    )
    assert json.loads(path.read_text()) == {
        "protocol": "toy",
        "selection_split": "validation",
        "precision": None,
        "decoder": None,
        "primary_metric": "text_to_video_R@1",
        "counts": {"queries": 2},
        "metrics": {"text_to_video_R@1": 0.5},
        "intervals": {"text_to_video_R@1": [0.25, 0.75]},
    }
    signatures = {"BLEU": "BLEU|nrefs:1|case:mixed = 41.690"}
    write_metrics(path, metrics={"BLEU": 0.4169}, protocol="toy", counts={}, signatures=signatures)
    assert json.loads(path.read_text())["signatures"] == signatures
    with pytest.raises(ValueError, match="'loss' is nan"):
        write_metrics(path, metrics={"loss": math.nan}, protocol="toy", counts={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, metrics={"loss": 1.0}, protocol="toy", counts={}, intervals={"loss": (math.nan, 1.0)})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"] and "toy" in path.read_text()
