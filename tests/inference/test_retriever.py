"""Tests of searching clips by text."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from simple_multimodal.cli import main
from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.media.errors import MediaError
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.pairs import ranking_scores
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Match, Retriever
from tests.closeness import assert_close


@pytest.fixture(scope="module")
def retriever(retrieval_model) -> Retriever:
    return Retriever.from_pretrained(retrieval_model, batch_size=2)


@pytest.fixture(scope="module")
def index(retriever, clips) -> ClipIndex:
    return retriever.index(clips / "video")


def test_an_index_holds_the_clips_of_a_folder_by_name(index):
    assert index.ids == [f"{n}.mp4" for n in range(7)]
    torch.testing.assert_close(index.embeds.norm(dim=1), torch.ones(7))


def test_embeddings_are_those_of_the_model(retriever, index, clips):
    rows = retriever.rows(clips / "video")
    batch = MultimodalCollator(retriever.processor)(rows)
    with torch.no_grad():
        expected = retriever.model.multimodal(**{k: v for k, v in batch.items() if k not in ("row_ids", "group_ids")})
    assert_close(index.embeds, expected.clip_embeds)


def test_a_search_returns_clips_by_their_cosine(retriever, index):
    results = retriever.search("a cat purrs", index, top_k=3)
    text = retriever.encode_texts(["a cat purrs"])[0].embed
    scores = index.embeds @ text
    assert [match.id for match in results] == [index.ids[n] for n in scores.argsort(descending=True)[:3]]
    assert results == sorted(results, key=lambda match: -match.score) and results[0].matching is None
    assert results[0].score == pytest.approx(float(scores.max()), abs=1e-6)
    several = retriever.search(["rain falls", "a cat purrs"], index, top_k=3)
    assert [match.id for match in several[1]] == [match.id for match in results]
    assert len(retriever.search("rain falls", index, top_k=99)) == 7 and retriever.search([], index) == []


def test_whatever_can_be_indexed_can_be_searched_as_on_the_command_line(
    retrieval_model, retriever, index, clips, tmp_path, capfd
):
    index.save(tmp_path / "of-no-model.safetensors")
    saved = str(tmp_path / "clips.safetensors")
    assert main(["encode", retrieval_model, str(clips / "video"), "--out", saved]) == 0
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps({"id": f"{n}.mp4", "video": f"{n}.mp4"}) + "\n" for n in range(7)))
    for n in range(7):
        (tmp_path / f"{n}.mp4").hardlink_to(clips / f"video/{n}.mp4")
    expected = retriever.search("a cat purrs", index, top_k=3)
    for searched in (clips / "video", f"{clips}/video/", saved, manifest, str(manifest)):
        found = retriever.search("a cat purrs", searched, top_k=3)
        assert [match.id for match in found] == [match.id for match in expected]
        assert [match.score for match in found] == pytest.approx([match.score for match in expected], abs=1e-6)
        capfd.readouterr()
        assert main(["search", retrieval_model, "a cat purrs", str(searched), "--top_k", "3"]) == 0
        printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [match["id"] for match in printed] == [match.id for match in expected]
    (one,) = retriever.search("rain falls", clips / "video/0.mp4")
    assert one.id == str(clips / "video/0.mp4")
    assert all(match.matching is not None for match in retriever.search("rain", clips / "video", top_k=2, rerank=2))
    deeper = retriever.search("a cat purrs", clips, recursive=True, top_k=99)
    assert {match.id for match in deeper} == {name for n in range(7) for name in (f"video/{n}.mp4", f"audio/{n}.wav")}
    with pytest.raises(ValueError, match="of another model"):
        retriever.search("rain", tmp_path / "of-no-model.safetensors")
    with pytest.raises(ValueError, match="blank"):
        retriever.search(" ", clips / "absent")
    with pytest.raises(ValueError, match="a manifest names its files. Leave it out"):
        retriever.search("rain", manifest, recursive=True)


def test_an_index_is_shown_in_one_line(index):
    assert repr(index) == f"ClipIndex(7 clips, {index.embeds.shape[1]} dimensions)"
    spoiled = ClipIndex(["a"], ["a"], index.embeds[:1], bad_samples=[BadSample(1, 0, "b", "b.mp4", "empty")] * 2)
    assert repr(spoiled) == f"ClipIndex(1 clips, {index.embeds.shape[1]} dimensions, 2 could not be read)"


def test_the_first_ones_are_ordered_anew_by_matching(retriever, index):
    plain = retriever.search("a cat purrs", index)
    anew = retriever.search("a cat purrs", index, rerank=4)
    assert {m.id for m in anew[:4]} == {m.id for m in plain[:4]}
    encoded = retriever.encode_texts(["a cat purrs"])
    pairs = np.array([(0, index.ids.index(m.id)) for m in anew[:4]])
    logits = retriever.score(retriever.model.matching_logits, ["a cat purrs"], encoded, index.clips, pairs)
    scores = ranking_scores(retriever.model, logits, torch.tensor([m.score for m in anew[:4]]))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert [m.matching for m in anew[:4]] == pytest.approx(logits.softmax(dim=1)[:, 1].tolist())
    assert [m.id for m in anew[4:]] == [m.id for m in plain[4:]] and all(m.matching is None for m in anew[4:])
    assert retriever.search("a cat purrs", index, top_k=2, rerank=4) == anew[:2]


def test_what_was_better_on_the_validation_split_is_the_default(retriever, index, monkeypatch):
    plain = retriever.search("a cat purrs", index, rerank=0)
    for saved, expected in ((None, plain), (0, plain), (4, retriever.search("a cat purrs", index, rerank=4))):
        monkeypatch.setattr(retriever.model.config, "rerank_top_k", saved)
        assert retriever.search("a cat purrs", index) == expected
        assert retriever.search("a cat purrs", index, rerank=0) == plain
        assert retriever.search("a cat purrs", replace(index, clips=None)) == plain  # which cannot be re-ranked


def test_an_index_is_made_once_for_a_model_and_its_clips(retriever, clips, tmp_path, monkeypatch):
    saved = tmp_path / "index/clips.safetensors"
    made = retriever.index(clips / "video", saved=saved)
    monkeypatch.setattr(Retriever, "encode_rows", None)  # not called again
    again = retriever.index(clips / "video", saved=saved)
    assert again.ids == made.ids and torch.equal(again.embeds, made.embeds) and again.clips is None
    assert retriever.search("rain falls", again, top_k=1) == retriever.search("rain falls", made, top_k=1)
    with pytest.raises(ValueError, match="make it anew to re-rank"):
        retriever.search("rain falls", again, rerank=2)
    with pytest.raises(TypeError):  # other clips: would have to be made
        retriever.index([clips / "video/0.mp4"], saved=saved)
    monkeypatch.undo()
    with torch.no_grad():
        retriever.model.matching_head.bias.add_(1)
    try:
        assert retriever.index([clips / "video/0.mp4"], saved=saved).ids == [str(clips / "video/0.mp4")]
    finally:
        with torch.no_grad():
            retriever.model.matching_head.bias.sub_(1)


def test_the_key_is_of_the_model_the_settings_and_the_clips(retrieval_model, clips, tmp_path):
    """A copy of the folder is the same model; one whose weights alone are the same is not."""
    retriever = Retriever.from_pretrained(retrieval_model)
    rows = retriever.rows(clips / "video")
    shutil.copytree(retrieval_model, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    copy = Retriever.from_pretrained(tmp_path / "copy")
    assert copy.key(rows) == retriever.key(rows)
    assert copy.key(rows[1:]) != retriever.key(rows)
    copy.model.config.video_config.num_attention_heads = 1
    assert copy.key(rows) != retriever.key(rows)
    assert Retriever(retriever.model, retriever.processor, drop_modalities=["video"]).key(rows) != retriever.key(rows)


def test_each_text_runs_through_its_tower_once(retriever, monkeypatch):
    seen = []
    plain = retriever.processor.tokenize
    monkeypatch.setattr(retriever.processor, "tokenize", lambda texts: seen.extend(texts) or plain(texts))
    encoded = retriever.encode_texts(["a cat purrs", "rain", "a cat purrs"])
    assert sorted(seen) == ["a cat purrs", "rain"]
    assert torch.equal(encoded[0].embed, encoded[2].embed) and not torch.equal(encoded[0].embed, encoded[1].embed)


def test_a_saved_index_belongs_to_its_model(retriever, clips, tmp_path, capsys):
    saved = tmp_path / "clips.safetensors"
    made = retriever.index(clips / "video", saved=saved)
    assert torch.equal(retriever.load_index(saved).embeds, made.embeds)
    other = MultimodalForRetrieval(retriever.model.config)
    with pytest.raises(ValueError, match="clips.safetensors: holds embeddings of another model; make them anew"):
        Retriever(other, retriever.processor).load_index(saved)
    for folder, model in (("same", retriever.model), ("other", other)):
        model.save_pretrained(tmp_path / folder)
        retriever.processor.save_pretrained(tmp_path / folder)
    assert main(["search", str(tmp_path / "same"), "rain falls", str(saved)]) == 0
    assert main(["search", str(tmp_path / "other"), "rain falls", str(saved)]) == 2
    assert "holds embeddings of another model" in capsys.readouterr().err


def test_a_model_without_matching_is_refused_before_clips_are_read(retriever, clips, monkeypatch):
    config = MultimodalConfig.from_dict(retriever.model.config.to_dict() | {"matching_loss_weight": 0.0})
    monkeypatch.setattr(Retriever, "encode_rows", None)
    with pytest.raises(ValueError, match="made without matching .* --matching_top_k 0"):
        Retriever(MultimodalForRetrieval(config), retriever.processor).index(clips / "video", for_matching=True)


def test_saved_embeddings_hold_no_tokens_in_memory(retriever, clips, tmp_path):
    assert retriever.index(clips / "video", saved=tmp_path / "clips.safetensors").clips is None
    assert retriever.index(clips / "video", saved=tmp_path / "clips.safetensors", for_matching=True).clips is not None


def test_rows_of_one_clip_count_once(retriever, clips):
    dataset = RowDataset.from_manifest(clips / "train.csv", roots={n: clips / n for n in ("audio", "text", "video")})
    rows = retriever.rows([*[clips / "video/0.mp4"], clips / "audio/0.wav"])
    assert [(row["video"] is None, row["audio"] is None) for row in rows] == [(False, False), (True, False)]
    assert len(retriever.rows(dataset)) == 7
    assert retriever.index(dataset).ids == [str(n) for n in range(7)]


def test_bad_input_is_named(retriever, index, clips, question_model, tmp_path):
    with pytest.raises(ValueError, match=r"MultimodalForQuestionAnswering, a model of another task"):
        Retriever.from_pretrained(question_model)
    with pytest.raises(ValueError, match="absent: is no saved model"):
        Retriever.from_pretrained(tmp_path / "absent")
    with pytest.raises(MediaError, match=r"absent\.mp4"):
        retriever.index(clips / "video/absent.mp4")
    with pytest.raises(MediaError, match=r"0\.txt"):
        retriever.index([clips / "text/0.txt"])
    with pytest.raises(ValueError, match="no media file there"):
        retriever.index(clips / "text")
    with pytest.raises(ValueError, match="given twice"):
        retriever.index([clips / "video/0.mp4"] * 2)
    with pytest.raises(ValueError, match="blank"):
        retriever.search("  ", index)
    (tmp_path / "other.safetensors").write_text("no index")
    with pytest.raises(ValueError, match="is no index of clips"):
        ClipIndex.load(tmp_path / "other.safetensors")


def test_a_match_is_plain_data():
    assert Match("a", 0.5)._asdict() == {"id": "a", "score": 0.5, "matching": None}
    assert np.isscalar(Match("a", 0.5).score)


def test_requests_of_one_call_encode_each_clip_once(retriever, index, clips, tmp_path, monkeypatch):
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps({"id": f"clip {n}", "video": f"{n}.mp4"}) + "\n" for n in (3, 5)))
    for n in (3, 5):
        (tmp_path / f"{n}.mp4").hardlink_to(clips / f"video/{n}.mp4")
    files = [str(clips / f"video/{n}.mp4") for n in (2, 0)]
    encoded = []
    plain = Retriever.encode_rows
    monkeypatch.setattr(
        Retriever,
        "encode_rows",
        lambda self, rows, **further: encoded.append(len(rows)) or plain(self, rows, **further),
    )
    searched = [str(clips / "video"), files, str(manifest), index, files]
    texts = ["a cat purrs", "rain falls", "a cat purrs", "rain falls", "a bell rings"]
    requests = [{"text": text, "clips": where} for text, where in zip(texts, searched, strict=True)]
    results = retriever(requests, top_k=3)
    assert encoded == [7 + 2]  # the folder, which has the files, and the manifest's links
    for text, where, found in zip(texts, searched, results, strict=True):
        expected = retriever.search(text, where, top_k=3)
        assert [match["clip"] for match in found] == [match.id for match in expected]
        assert [match["score"] for match in found] == pytest.approx([match.score for match in expected], abs=1e-5)
        assert all(set(match) == {"clip", "score"} for match in found)
    assert retriever({"text": "rain falls", "clips": index}, top_k=2) == [
        [{"clip": m.id, "score": m.score} for m in retriever.search("rain falls", index, top_k=2)]
    ]
    assert json.loads(json.dumps(results)) == results and retriever([]) == []


def test_requests_can_be_re_ranked_and_name_files_that_must_be_there(retriever, clips):
    found = retriever({"text": "rain falls", "clips": str(clips / "video")}, top_k=3, rerank=2)[0]
    assert ["matching" in match for match in found] == [True, True, False]
    with pytest.raises(ValueError, match="Request 1 must be a dictionary with text and clips, got text"):
        retriever([{"text": "a", "clips": str(clips / "video")}, {"text": "b"}])
    with pytest.raises(MediaError, match="no.mp4"):
        retriever({"text": "a", "clips": ["no.mp4"]})


def test_a_clip_of_a_folder_that_cannot_be_read_is_left_out_of_requests(retriever, clips, tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.mp4").hardlink_to(clips / f"video/{n}.mp4")
    (tmp_path / "2a.mp4").write_bytes(b"no video")
    results = retriever([{"text": text, "clips": str(tmp_path)} for text in ("a cat purrs", "rain falls")])
    expected = retriever.search("a cat purrs", [str(tmp_path / f"{n}.mp4") for n in range(5)])
    assert [match["clip"] for match in results[0]] == [match.id.rpartition("/")[2] for match in expected]
    assert sorted(match["clip"] for match in results[1]) == [f"{n}.mp4" for n in range(5)]
