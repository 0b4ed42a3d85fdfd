"""Queries whose clips were read before get the results of the pipelines that read the files themselves."""

import pytest

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.requests import clips_alone, rows_of_clips
from simple_multimodal.serving.batches import ReadClips, batch_key
from simple_multimodal.serving.tasks import SERVED_TASKS, Query
from tests.closeness import assert_close
from tests.serving.models import assert_same_results, write_captioner

NAMES = ["0.mp4", "3.mp4", "5.mp4", "audio.wav"]  # of one key; clip 5 has no audio, the last one no video
TEXTS = ["a cat purrs", "two dogs", "", "cat"]


def open_pair(models, number):
    """Return a task, its pipeline, and the one that takes clips that were read."""
    task, folder = SERVED_TASKS[number], models / ("actions", "questions", "captions", "clips")[number]
    offline = task.pipeline_class.from_pretrained(folder)
    collator = MultimodalCollator(offline.processor, parallel=False)
    return task, offline, task.pipeline_class.from_pretrained(folder, collator=ReadClips(collator)), collator


@pytest.fixture(scope="module")
def reads(processor, clips):
    """Batches by name, whose files have been removed since: their rows name nothing that exists."""
    collator = MultimodalCollator(processor, parallel=False)
    rows = clips_alone(list(RowDataset.from_files([clips / name for name in NAMES])))
    batches = [collator([row]) for row in rows]
    assert len({batch_key(batch) for batch in batches}) == 1
    return dict(zip(NAMES, batches, strict=True))


def test_labels_are_those_of_the_pipeline(models, clips, reads):
    task, offline, online, collator = open_pair(models, 0)
    queries = [Query(reads[name], name, text, top_k=4) for name, text in zip(NAMES, TEXTS, strict=True)]
    queries += [Query(collator.empty_batch(1), text="two dogs", top_k=4)]
    found = task.run(online, queries, None)
    inputs = [{"clip": str(clips / name), "text": text} for name, text in zip(NAMES, TEXTS, strict=True)]
    expected = offline([*inputs, {"clip": {"video": None, "caption": "two dogs"}}], top_k=4)
    assert_same_results(found, expected)
    assert len({str(results) for results in found}) == 5
    for query, results in zip(queries, found, strict=True):  # alone
        assert_same_results(task.run(online, [query], None), [results])


def test_each_query_has_its_own_number_of_results(models, reads):
    task, _, online, _ = open_pair(models, 0)
    (whole,) = task.run(online, [Query(reads["0.mp4"], "0.mp4", top_k=4)], None)
    limits = [{"top_k": 1}, {"top_k": 10**9}, {"top_k": 4, "threshold": whole[1]["score"] - 1e-4}, {"top_k": 3}]
    found = task.run(online, [Query(reads["0.mp4"], "0.mp4", **own) for own in limits], None)
    for results, number in zip(found, (1, 4, 2, 3), strict=True):
        assert_same_results([results], [whole[:number]])


def test_answers_are_those_of_the_pipeline(models, clips, reads):
    task, offline, online, _ = open_pair(models, 1)
    pairs = [(name, text) for name in NAMES for text in ("what is it?", "who purrs?")]
    found = task.run(online, [Query(reads[name], name, text, top_k=2) for name, text in pairs], None)
    expected = offline([{"question": text, "clip": str(clips / name)} for name, text in pairs], top_k=2)
    assert_same_results(found, expected)


def test_texts_are_those_of_the_translator(processor, tmp_path, clips, reads):
    write_captioner(tmp_path / "captions", processor)
    task, offline, online, _ = open_pair(tmp_path, 2)
    queries = [Query(reads[name], name, text) for name, text in zip(NAMES, TEXTS, strict=True)]
    queries += [Query(reads[NAMES[0]], NAMES[0])]
    inputs = [{"clip": str(clips / name), "encoder_prompt": text} for name, text in zip(NAMES, TEXTS, strict=True)]
    found = task.run(online, queries, None)
    assert_same_results(found, offline([*inputs, str(clips / NAMES[0])]))
    assert len({results[0]["score"] for results in found}) == 5
    for query, results in zip(queries, found, strict=True):  # alone
        assert_same_results(task.run(online, [query], None), [results])


def test_embeddings_and_matches_are_those_of_the_retriever(models, clips, reads):
    task, offline, online, collator = open_pair(models, 3)
    index = offline.index([clips / f"{n}.mp4" for n in range(6)])
    own = offline.index([clips / name for name in NAMES])
    texts = ["a cat purrs", "two dogs", "cat"]
    found = task.run(online, [Query(collator.empty_batch(1), text=text) for text in texts], index)
    for embed, expected in zip(found, offline.embed_texts(texts), strict=True):
        assert_close(embed, expected)
    found = task.run(online, [Query(collator.empty_batch(1), text=text, top_k=2) for text in texts], index)
    assert_same_results(
        found, [[m.to_dict() for m in offline.search(text, index, top_k=2, rerank=0)] for text in texts]
    )
    found = task.run(online, [Query(reads[name], name) for name in (*NAMES, NAMES[0])], index)
    for embed, expected in zip(found, own.embeds[[0, 1, 2, 3, 0]], strict=True):
        assert_close(embed, expected)
    ((first, *_),) = task.run(online, [Query(reads["3.mp4"], "3.mp4", top_k=2)], index)
    assert first["clip"] == index.ids[3] and first["score"] == pytest.approx(1.0)


def test_a_finished_row_only_gets_a_new_index(reads):
    row = Query(reads["0.mp4"], "0.mp4").row
    rows, numbers = rows_of_clips([row, {**row, "video": "other"}, row])
    assert numbers == [0, 1, 0]
    assert rows == [{**row, "index": 0}, {**row, "video": "other", "index": 1}]
