"""Searching clips by text."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import save_file

import simple_multimodal as smm
from simple_multimodal.cli import main
from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.media.errors import MediaError
from simple_multimodal.models.base import hash_weights
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.pairs import ranking_scores
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Match, Retriever
from tests.closeness import assert_close
from tests.processes import launch, run_command
from tests.training.tiny_run import CAPTIONS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def retriever(retrieval_model) -> Retriever:
    return Retriever.from_pretrained(retrieval_model, batch_size=2)


@pytest.fixture(scope="module")
def index(retriever, clips) -> ClipIndex:
    return retriever.index(clips / "video")


def test_an_index_lists_the_clips_of_a_folder_by_name(index):
    assert index.ids == [f"{n}.mp4" for n in range(7)]
    torch.testing.assert_close(index.embeds.norm(dim=1), torch.ones(7))


def test_embeddings_equal_those_of_the_model(retriever, index, clips):
    rows = retriever.rows(clips / "video")
    batch = MultimodalCollator(retriever.processor)(rows)
    with torch.no_grad():
        expected = retriever.model.multimodal(**{k: v for k, v in batch.items() if k not in ("row_ids", "group_ids")})
    assert_close(index.embeds, expected.clip_embeds)


def test_a_search_sorts_clips_by_cosine(retriever, index):
    results = retriever.search("a cat purrs", index, top_k=3)
    text = retriever.encode_texts(["a cat purrs"])[0].embed
    scores = index.embeds @ text
    assert [match.id for match in results] == [index.ids[n] for n in scores.argsort(descending=True)[:3]]
    assert results == sorted(results, key=lambda match: -match.score) and results[0].matching is None
    assert results[0].score == pytest.approx(float(scores.max()), abs=1e-6)
    several = retriever.search(["rain falls", "a cat purrs"], index, top_k=3)
    assert [match.id for match in several[1]] == [match.id for match in results]
    assert len(retriever.search("rain falls", index, top_k=99)) == 7 and retriever.search([], index) == []


def test_search_accepts_the_inputs_of_index_like_the_command_line(
    retrieval_model, retriever, index, clips, tmp_path, capfd
):
    save_as_before(index, tmp_path / "of-no-model.safetensors", model="")
    saved = str(tmp_path / "embeddings")
    assert main(["encode", retrieval_model, str(clips / "video"), "--out", saved]) == 0
    assert f"Next: simple-multimodal search {retrieval_model} 'a dog barks' {saved}" in capfd.readouterr().err
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
        assert [match["clip"] for match in printed] == [match.id for match in expected]
        assert all("matching" not in match and Path(match["file"]).name == match["clip"] for match in printed)
    (one,) = retriever.search("rain falls", clips / "video/0.mp4")
    assert one.id == str(clips / "video/0.mp4")
    assert all(match.matching is not None for match in retriever.search("rain", clips / "video", top_k=2, rerank=2))
    deeper = retriever.search("a cat purrs", clips, recursive=True, top_k=99)
    assert {match.id for match in deeper} == {name for n in range(7) for name in (f"video/{n}.mp4", f"audio/{n}.wav")}
    with pytest.raises(ValueError, match="was made with another model"):
        retriever.search("rain", tmp_path / "of-no-model.safetensors")
    with pytest.raises(ValueError, match="blank"):
        retriever.search(" ", clips / "absent")
    with pytest.raises(ValueError, match="rows name their files. Leave it out"):
        retriever.search("rain", manifest, recursive=True)
    with pytest.raises(ValueError, match="embeddings holds saved embeddings. Leave it out"):
        retriever.search("rain", saved, recursive=True)


def test_the_repr_of_an_index_is_one_line(index):
    assert repr(index) == f"ClipIndex(7 clips, {index.embeds.shape[1]} dimensions)"
    spoiled = ClipIndex(["a"], ["a"], index.embeds[:1], bad_samples=[BadSample(1, 0, "b", "b.mp4", "empty")] * 2)
    assert repr(spoiled) == f"ClipIndex(1 clips, {index.embeds.shape[1]} dimensions, 2 could not be read)"


def test_first_candidates_are_reranked_by_matching(retriever, index):
    plain = retriever.search("a cat purrs", index)
    reranked = retriever.search("a cat purrs", index, rerank=4)
    assert {m.id for m in reranked[:4]} == {m.id for m in plain[:4]}
    encoded = retriever.encode_texts(["a cat purrs"])
    pairs = np.array([(0, index.ids.index(m.id)) for m in reranked[:4]])
    logits = retriever.score(retriever.model.matching_logits, ["a cat purrs"], encoded, index.clips, pairs)
    scores = ranking_scores(retriever.model, logits, torch.tensor([m.score for m in reranked[:4]]))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert [m.matching for m in reranked[:4]] == pytest.approx(logits.softmax(dim=1)[:, 1].tolist())
    assert [m.id for m in reranked[4:]] == [m.id for m in plain[4:]] and all(m.matching is None for m in reranked[4:])
    assert retriever.search("a cat purrs", index, top_k=2, rerank=4) == reranked[:2]


def test_re_ranking_is_the_default_if_it_was_better_on_the_validation_split(retriever, index, monkeypatch):
    plain = retriever.search("a cat purrs", index, rerank=0)
    for saved, expected in ((None, plain), (0, plain), (4, retriever.search("a cat purrs", index, rerank=4))):
        monkeypatch.setattr(retriever.model.config, "rerank_top_k", saved)
        assert retriever.search("a cat purrs", index) == expected
        assert retriever.search("a cat purrs", index, rerank=0) == plain
        assert retriever.search("a cat purrs", replace(index, clips=None)) == plain  # cannot be re-ranked


@pytest.mark.parametrize("kind", ["manifest", "dictionaries", "table", "data set", "one row"])
def test_clips_are_rows_of_every_kind(retriever, index, clips, tmp_path, kind):
    records = [{"id": f"clip {n}", "video": str(clips / f"video/{n}.mp4")} for n in range(3)]
    for n in range(3):
        (tmp_path / f"{n}.mp4").hardlink_to(clips / f"video/{n}.mp4")
    (tmp_path / "clips.csv").write_text("id,video\n" + "".join(f"clip {n},{n}.mp4\n" for n in range(3)))
    sources = {
        "manifest": tmp_path / "clips.csv",
        "dictionaries": records,
        "table": pandas.DataFrame(records),
        "data set": datasets.Dataset.from_list(records),
        "one row": records[1],
    }
    ids = ["clip 1"] if kind == "one row" else ["clip 0", "clip 1", "clip 2"]
    assert retriever.index(sources[kind]).ids == ids
    matches = retriever.search("a cat purrs", sources[kind])
    assert sorted(match.id for match in matches) == ids
    (found,) = retriever({"text": "a cat purrs", "clips": sources[kind]})
    assert [result["clip"] for result in found] == [match.id for match in matches]


def test_evaluation_in_python_takes_the_options_of_the_task(retrieval_model, clips):
    rows = [{"video": str(clips / f"video/{n}.mp4"), "caption": caption} for n, caption in enumerate(CAPTIONS[:4])]
    assert not any("matching_text" in name for name in smm.evaluate(retrieval_model, rows, rerank_top_k=0).metrics)
    reranked = smm.evaluate(retrieval_model, rows, rerank_top_k=2)
    assert reranked.primary_metric == "matching_text_to_video_R@1" and reranked.chance[reranked.primary_metric] == 0.25
    with pytest.raises(TypeError, match="rerank"):
        smm.evaluate(retrieval_model, rows, rerank=2)


def test_an_index_is_reused_for_the_same_model_and_clips(retriever, clips, tmp_path, monkeypatch):
    saved = tmp_path / "index/embeddings"
    made = retriever.index(clips / "video", saved=saved)
    monkeypatch.setattr(Retriever, "encode_rows", None)  # must not be called again
    again = retriever.index(clips / "video", saved=saved)
    assert again.ids == made.ids and torch.equal(again.embeds, made.embeds) and again.clips is None
    assert retriever.search("rain falls", again, top_k=1) == retriever.search("rain falls", made, top_k=1)
    with pytest.raises(ValueError, match="To re-rank, index the clips without"):
        retriever.search("rain falls", again, rerank=2)
    with pytest.raises(TypeError):  # other clips would have to be encoded
        retriever.index([clips / "video/0.mp4"], saved=saved)
    monkeypatch.undo()
    with torch.no_grad():
        retriever.model.matching_head.bias.add_(1)
    try:
        assert retriever.index([clips / "video/0.mp4"], saved=saved).ids == [str(clips / "video/0.mp4")]
    finally:
        with torch.no_grad():
            retriever.model.matching_head.bias.sub_(1)


def encoded_ids(monkeypatch) -> list[str]:
    """Record the ids of clips that are encoded from now on."""
    ids, plain = [], Retriever.encode_rows

    def counted(self, rows, **settings):
        ids.extend(row["id"] for row in rows)
        return plain(self, rows, **settings)

    monkeypatch.setattr(Retriever, "encode_rows", counted)
    return ids


def test_only_new_and_changed_clips_are_encoded_again(retriever, clips, tmp_path, monkeypatch):
    folder, saved = tmp_path / "clips", tmp_path / "embeddings"
    folder.mkdir()
    for n in range(4):
        shutil.copy(clips / f"video/{n}.mp4", folder)
    first = retriever.index(folder, saved=saved)
    ids = encoded_ids(monkeypatch)
    shutil.copy(clips / "video/5.mp4", folder / "0.mp4")
    (folder / "2.mp4").unlink()
    shutil.copy(clips / "video/6.mp4", folder / "1a.mp4")
    second = retriever.index(folder, saved=saved)
    assert ids == ["0.mp4", "1a.mp4"] and second.ids == ["0.mp4", "1.mp4", "1a.mp4", "3.mp4"]
    assert torch.equal(second.embeds[[1, 3]], first.embeds[[1, 3]])
    assert_close(second.embeds, retriever.index(folder).embeds)
    loaded = retriever.load_index(saved)
    assert sorted(loaded.ids) == second.ids  # removed clips are not found
    assert torch.equal(loaded.embeds, second.embeds[[second.ids.index(name) for name in loaded.ids]])
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    ids.clear()
    again = retriever.index(folder, saved=saved)
    assert ids == [] and again.ids == second.ids and torch.equal(again.embeds, second.embeds)
    assert before == {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}  # nothing is written
    assert retriever.index(folder, saved=saved, for_matching=True).clips is not None  # tokens are not saved
    assert ids == second.ids


@pytest.mark.slow
def test_several_processes_save_the_same_embeddings(retrieval_model, clips, tmp_path):
    """Both from scratch and if they encode only new clips."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for numbers in (range(5), range(5, 7)):
        for n in numbers:
            shutil.copy2(clips / f"video/{n}.mp4", folder)
        encode = ["encode", retrieval_model, str(folder), "--batch_size", "2", "--out"]
        assert main([*encode, str(tmp_path / "one")]) == 0
        done = launch(2, run_command, [*encode, str(tmp_path / "two")])
        assert done.returncode == 0, done.stderr
        names = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert names[-1] == "index.json" and len(names) == 5


def test_the_fraction_of_bad_clips_includes_saved_ones(retriever, clips, tmp_path, monkeypatch):
    folder, saved = tmp_path / "clips", tmp_path / "embeddings"
    shutil.copytree(clips / "video", folder)
    retriever.index(folder, saved=saved)
    (folder / "bad1.mp4").touch()
    ids = encoded_ids(monkeypatch)
    for _ in range(2):  # the second time it is known to be bad
        index = retriever.index(folder, saved=saved)
        assert len(index.ids) == 7 and [sample.id for sample in index.bad_samples] == ["bad1.mp4"]
    assert ids == ["bad1.mp4"]
    (folder / "bad2.mp4").touch()
    with pytest.raises(ValueError, match="2 of 9 samples could not be read, more than `max_bad_fraction=0.2`"):
        retriever.index(folder, saved=saved)


def save_as_before(index: ClipIndex, path, **values) -> None:
    """Write an index in the format of earlier versions."""
    names = {"ids": index.ids, "groups": index.groups, "key": "k", "precision": "fp32", "bad_samples": []}
    save_file({"embeds": index.embeds}, path, {"index": json.dumps({**names, **values})})


def test_a_file_of_an_earlier_version_is_searched_and_replaced(retriever, index, clips, tmp_path):
    path = tmp_path / "clips.safetensors"
    save_as_before(index, path, model=hash_weights(retriever.model), bad_samples=[[1, 0, "b", "b.mp4", "empty"]])
    loaded = retriever.load_index(path)
    assert loaded.ids == index.ids and torch.equal(loaded.embeds, index.embeds)
    assert loaded.bad_samples == [BadSample(1, 0, "b", "b.mp4", "empty")]
    found = retriever.search("rain", index, rerank=0)
    assert retriever.search("rain", path) == [match._replace(file=None) for match in found]
    retriever.index(clips / "video", saved=path)
    again = retriever.search("rain", path)
    # The clips were encoded again, in other batches.
    assert path.is_dir() and again == [m._replace(score=pytest.approx(m.score, abs=1e-5)) for m in found]


def test_files_that_are_not_an_index_are_not_overwritten(retriever, retrieval_model, clips, tmp_path, monkeypatch):
    TowerFeatures.from_pretrained(retrieval_model).write(
        "video",
        [RowDataset.from_manifest(clips / "train.csv", roots={n: clips / n for n in ("audio", "text", "video")})],
        tmp_path,
    )
    (tmp_path / "notes.safetensors").write_text("not an index")
    monkeypatch.setattr(Retriever, "encode_rows", None)  # raises the error before encoding
    for name in ("video", "notes.safetensors"):
        with pytest.raises(ValueError, match=f"{name}"):
            retriever.index(clips / "video", saved=tmp_path / name)


def test_the_key_depends_on_the_model_the_settings_and_the_clips(retrieval_model, clips, tmp_path):
    """A copy of the folder is the same model; a model with only the same weights is not."""
    retriever = Retriever.from_pretrained(retrieval_model)
    rows = retriever.rows(clips / "video")
    shutil.copytree(retrieval_model, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    copy = Retriever.from_pretrained(tmp_path / "copy")
    assert copy.key(rows) == retriever.key(rows)
    assert copy.key(rows[1:]) != retriever.key(rows)
    copy.model.config.video_config.num_attention_heads = 1
    assert copy.key(rows) != retriever.key(rows)
    assert Retriever(retriever.model, retriever.processor, drop_modalities=["video"]).key(rows) != retriever.key(rows)


def test_each_text_is_encoded_once(retriever, monkeypatch):
    seen = []
    plain = retriever.processor.tokenize
    monkeypatch.setattr(retriever.processor, "tokenize", lambda texts: seen.extend(texts) or plain(texts))
    encoded = retriever.encode_texts(["a cat purrs", "rain", "a cat purrs"])
    assert sorted(seen) == ["a cat purrs", "rain"]
    assert torch.equal(encoded[0].embed, encoded[2].embed) and not torch.equal(encoded[0].embed, encoded[1].embed)


def test_a_saved_index_belongs_to_its_model(retriever, clips, tmp_path, capsys):
    saved = tmp_path / "embeddings"
    made = retriever.index(clips / "video", saved=saved)
    assert torch.equal(retriever.load_index(saved).embeds, made.embeds)
    other = MultimodalForRetrieval(retriever.model.config)
    with pytest.raises(ValueError, match="embeddings: The index was made with another model; encode the clips"):
        Retriever(other, retriever.processor).load_index(saved)
    for folder, model in (("same", retriever.model), ("other", other)):
        model.save_pretrained(tmp_path / folder)
        retriever.processor.save_pretrained(tmp_path / folder)
    assert main(["search", str(tmp_path / "same"), "rain falls", str(saved)]) == 0
    assert main(["search", str(tmp_path / "other"), "rain falls", str(saved)]) == 2
    assert "was made with another model" in capsys.readouterr().err


def test_a_model_without_matching_is_refused_before_clips_are_read(retriever, clips, monkeypatch):
    config = MultimodalConfig.from_dict(retriever.model.config.to_dict() | {"matching_loss_weight": 0.0})
    monkeypatch.setattr(Retriever, "encode_rows", None)
    with pytest.raises(ValueError, match="no matching head .* rerank_top_k=0"):
        Retriever(MultimodalForRetrieval(config), retriever.processor).index(clips / "video", for_matching=True)


def test_an_index_with_saved_embeddings_holds_no_tokens_in_memory(retriever, clips, tmp_path):
    assert retriever.index(clips / "video", saved=tmp_path / "embeddings").clips is None
    assert retriever.index(clips / "video", saved=tmp_path / "embeddings", for_matching=True).clips is not None


def test_rows_of_one_clip_count_once(retriever, clips):
    dataset = RowDataset.from_manifest(clips / "train.csv", roots={n: clips / n for n in ("audio", "text", "video")})
    rows = retriever.rows([*[clips / "video/0.mp4"], clips / "audio/0.wav"])
    assert [(row["video"] is None, row["audio"] is None) for row in rows] == [(False, False), (True, False)]
    assert len(retriever.rows(dataset)) == 7
    assert retriever.index(dataset).ids == [str(n) for n in range(7)]


def test_errors_name_invalid_input(retriever, index, clips, question_model, tmp_path):
    with pytest.raises(ValueError, match=r"MultimodalForQuestionAnswering, a model of another task"):
        Retriever.from_pretrained(question_model)
    with pytest.raises(ValueError, match="absent is not a saved model: no such folder"):
        Retriever.from_pretrained(tmp_path / "absent")
    with pytest.raises(MediaError, match=r"absent\.mp4"):
        retriever.index(clips / "video/absent.mp4")
    with pytest.raises(MediaError, match=r"0\.txt"):
        retriever.index([clips / "text/0.txt"])
    with pytest.raises(ValueError, match="no media files found"):
        retriever.index(clips / "text")
    with pytest.raises(ValueError, match="given twice"):
        retriever.index([clips / "video/0.mp4"] * 2)
    with pytest.raises(ValueError, match="blank"):
        retriever.search("  ", index)
    (tmp_path / "other.safetensors").write_text("no index")
    with pytest.raises(ValueError, match="is not a clip index"):
        ClipIndex.load(tmp_path / "other.safetensors")


def test_a_match_can_be_converted_to_a_dictionary():
    assert Match("a", 0.5, file="/a.mp4").to_dict() == {"clip": "a", "score": 0.5}
    assert Match("a", 0.5, 0.9).to_dict() == {"clip": "a", "score": 0.5, "matching": 0.9}
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
    assert encoded == [7 + 2]  # the folder, which has the single files, and the manifest's links
    for text, where, found in zip(texts, searched, results, strict=True):
        expected = retriever.search(text, where, top_k=3)
        assert [match["clip"] for match in found] == [match.id for match in expected]
        assert [match["score"] for match in found] == pytest.approx([match.score for match in expected], abs=1e-5)
        assert all(set(match) == {"clip", "score"} for match in found)
    assert retriever({"text": "rain falls", "clips": index}, top_k=2) == [
        [{"clip": m.id, "score": m.score} for m in retriever.search("rain falls", index, top_k=2)]
    ]
    assert json.loads(json.dumps(results)) == results and retriever([]) == []


def test_requests_can_be_reranked_and_their_files_must_exist(retriever, clips):
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
