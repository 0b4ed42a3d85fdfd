"""Answering questions, and training a model for it."""

import json

import pytest
import torch
from safetensors.torch import load_file

import simple_multimodal as smm
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS
from tests.training import tiny_run
from tests.training.tiny_run import flags


@pytest.fixture(scope="module")
def answerer(question_model) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(question_model)


def test_answers_are_those_of_training_sorted_by_frequency(answerer):
    assert answerer.model.config.id2label == {0: "cat", 1: "0", 2: "1", 3: "2"}


def test_answers_come_with_probabilities(answerer, clips):
    answers = answerer.answer("who is there?", clips / "video/1.mp4", top_k=4)
    assert {answer.text for answer in answers} == {"cat", "0", "1", "2"}
    assert sum(answer.probability for answer in answers) == pytest.approx(1, abs=1e-5)
    assert answers == sorted(answers, key=lambda answer: -answer.probability)
    both = answerer.answer(["what is it?", "who is there?"], clips / "video/1.mp4", top_k=4)
    assert [a.text for a in both[1]] == [a.text for a in answers]
    assert len(answerer.answer("who is there?", clips / "video/1.mp4")) == 1
    with pytest.raises(ValueError, match="blank"):
        answerer.answer("", clips / "video/1.mp4")


def test_a_clip_may_be_a_row(answerer, clips):
    file = clips / "video/1.mp4"
    rows = [{"video": str(file)}, {"video": str(clips / "video/0.mp4"), "start_seconds": 0.1}]
    assert answerer.answer("what is it?", rows[0], top_k=4) == answerer.answer("what is it?", file, top_k=4)
    requests = [{"question": "what is it?", "clip": clip} for clip in (file, *rows)]
    first, same, other = answerer(requests, top_k=4)
    assert first == same and first[0]["score"] != other[0]["score"]


def test_training_rows_for_the_baselines_may_be_of_every_kind(question_model, questions, clips):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [{**row, "video": str(clips / row["video"])} for row in rows]
    found = [
        smm.evaluate(question_model, questions, train_dataset=train_dataset).metrics
        for train_dataset in (rows, questions)
    ]
    assert found[0] == found[1] and found[0]["majority_accuracy"] == 0.5


def test_a_data_set_has_the_same_answers_as_single_questions_and_each_clip_is_read_once(
    answerer, questions, clips, monkeypatch
):
    encoded = []
    plain = QuestionAnswerer.encode_rows
    monkeypatch.setattr(
        QuestionAnswerer,
        "encode_rows",
        lambda self, rows, **further: encoded.append(rows) or plain(self, rows, **further),
    )
    logits = answerer.answer_rows(RowDataset.from_manifest(questions, **QUESTION_COLUMNS)).logits
    assert logits.shape == (6, 4) and [len(rows) for rows in encoded] == [3]
    alone = answerer.answer("who is there?", clips / "video/2.mp4", top_k=4)
    expected = {a.text: a.probability for a in alone}
    for label, probability in enumerate(logits[5].softmax(dim=0).tolist()):
        assert probability == pytest.approx(expected[answerer.model.config.id2label[label]], abs=1e-5)


def test_training_and_inference_report_the_same_accuracy_by_type(question_model, questions, answerer):
    results = json.loads(open(f"{question_model}/evaluation.json").read())
    metrics, counts = results["metrics"], results["counts"]
    assert counts["questions"] == 6 and counts["clips"] == 3 and metrics["what_num_questions"] == 3
    mean = (metrics["what_accuracy"] + metrics["who_accuracy"]) / 2
    assert metrics["accuracy"] == pytest.approx(mean)
    assert metrics["question_only_accuracy"] == pytest.approx(4 / 6)  # evaluated on the training questions
    dataset = RowDataset.from_manifest(questions, **QUESTION_COLUMNS)
    chosen = answerer.answer_rows(dataset).logits.argmax(dim=1).tolist()
    correct = [answerer.model.config.id2label[c] == row["answer"] for c, row in zip(chosen, dataset, strict=True)]
    assert metrics["accuracy"] == pytest.approx(sum(correct) / 6)


def test_a_retrieval_model_learns_to_answer(retrieval_model, questions, start, tmp_path):
    """Its towers and fusion are reused, and it learns at least the question whose answer is always the same."""
    data = flags(train_file=questions, validation_file=questions, task="question_answering")
    settings = flags(model_name_or_path=retrieval_model, output_dir=tmp_path / "out", learning_rate=3e-3)
    settings += flags("--use_cpu", "--disable_tqdm", max_steps=60, per_device_train_batch_size=6)
    metrics = tiny_run.run(*data, *settings)
    assert metrics["eval_who_accuracy"] == 1.0
    # Evaluate only, from the saved model.
    again = flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "eval", do_eval=True, do_train=False)
    evaluated = tiny_run.run(*data, *again, "--use_cpu", "--disable_tqdm")
    assert evaluated["eval_accuracy"] == metrics["eval_accuracy"]
    untrained = load_file(f"{retrieval_model}/model.safetensors")
    trained = load_file(tmp_path / "out/model.safetensors")
    shared = set(untrained) & set(trained)
    assert len(shared) > 50 and "classifier.0.weight" in set(trained) - shared


def test_answers_can_come_from_a_file(retrieval_model, questions, tmp_path):
    answers = tmp_path / "train_ans2label.json"
    answers.write_text(json.dumps({"1": 0, "dog": 1, "2": 2}))
    data = flags(train_file=questions, validation_file=questions, task="question_answering", answers_file=answers)
    settings = flags("--use_cpu", "--disable_tqdm", model_name_or_path=retrieval_model, max_steps=1)
    metrics = tiny_run.run(*data, *settings, *flags(output_dir=tmp_path / "out"))
    results = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert results["counts"]["known_answers"] == 2 and metrics["eval_who_accuracy"] == 0.0  # no "cat" there
    answers.write_text('{"a": 0, "b": 2}')
    with pytest.raises(ValueError, match="numbered from 0"):
        tiny_run.run(*data, *settings, *flags(output_dir=tmp_path / "other"))


@pytest.mark.parametrize(
    "answers", [(0, 2, 3, 2), (True, False, False, None), (0, "0", 1.5, True), ("0", 2, 2, "two")], ids=str
)
def test_answers_of_any_type_are_read_like_strings_in_a_table(clips, start, tmp_path, answers):
    """Numbers and booleans in JSONL give the same results in training, evaluation and use as their strings in CSV."""
    rows = [{"video": f"video/{n}.mp4", "question": "how often?", "answer": a} for n, a in enumerate(answers)]
    (clips / "typed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["" if answer is None else answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    (clips / "words.csv").write_text(
        "answer,question,video\n" + "".join(f"{word},how often?,video/{n}.mp4\n" for n, word in enumerate(words))
    )
    measured, weights = [], []
    for name in ("typed.jsonl", "words.csv"):
        data = flags(train_file=clips / name, validation_file=clips / name, task="question_answering")
        metrics = tiny_run.run(*data, *start, *flags(output_dir=tmp_path / name, per_device_train_batch_size=4))
        measured.append(
            {key: value for key, value in metrics.items() if "per_second" not in key and "runtime" not in key}
        )
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert set(config["label2id"]) == {word for word in words if word}
        answerer = QuestionAnswerer.from_pretrained(tmp_path / name)
        assert answerer.answer_rows(RowDataset.from_manifest(clips / name, **QUESTION_COLUMNS)).logits.shape == (
            4,
            len(config["label2id"]),
        )
        known = json.loads((tmp_path / name / "evaluation.json").read_text())["counts"]["known_answers"]
        assert known == sum(bool(word) for word in words)
    assert (
        measured[0] == measured[1] and measured[0]["train_loss"] > 0 and measured[0]["eval_question_only_accuracy"] > 0
    )
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_errors_name_invalid_input(retrieval_model, question_model, questions, clips, start, tmp_path):
    with pytest.raises(ValueError, match="MultimodalForPreTraining, a model of another task"):
        QuestionAnswerer.from_pretrained(retrieval_model)
    evaluation = flags("--use_cpu", do_eval=True, do_train=False, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="training questions"):
        data = flags(validation_file=questions, task="question_answering", model_name_or_path=retrieval_model)
        tiny_run.run(*data, *evaluation)
    with pytest.raises(ValueError, match="a different task than"):
        retrieval = flags(task="retrieval", model_name_or_path=question_model)
        tiny_run.run(*tiny_run.data_flags(clips), *retrieval, *evaluation)
    with pytest.raises(ValueError, match="no column for text: question is needed"):
        data = flags(train_file=clips / "train.csv", validation_file=questions, task="question_answering")
        tiny_run.run(*data, *start, *flags(output_dir=tmp_path / "out"))
    blank = tmp_path / "blank.jsonl"
    blank.write_text(json.dumps({"video": "0.mp4", "question": " "}) + "\n")
    with pytest.raises(ValueError, match=r"blank\.jsonl, line 1: `question` must be a text, but is empty"):
        list(
            RowDataset.from_manifest(
                blank,
                roots={"video": clips / "video"},
                **QUESTION_COLUMNS,
            )
        )


def test_a_question_without_an_answer_counts_as_wrong_but_not_in_the_loss(answerer):
    labels = torch.tensor([-1])
    assert answerer.model.count_items({"labels": labels})["answer"] == 0


def test_requests_of_one_call_read_each_clip_once(answerer, clips, monkeypatch):
    encoded = []
    plain = QuestionAnswerer.encode_rows
    monkeypatch.setattr(
        QuestionAnswerer,
        "encode_rows",
        lambda self, rows, **further: encoded.append(len(rows)) or plain(self, rows, **further),
    )
    asked = [("who is there?", 1), ("what is it?", 2), ("what is it?", 1), ("who is there?", 1)]
    requests = [{"question": question, "clip": f"{clips}/video/{n}.mp4"} for question, n in asked]
    results = answerer(requests, top_k=4)
    assert encoded == [2]
    for (question, n), found in zip(asked, results, strict=True):
        expected = answerer.answer(question, clips / f"video/{n}.mp4", top_k=4)
        assert [answer["answer"] for answer in found] == [answer.text for answer in expected]
        assert [answer["score"] for answer in found] == pytest.approx([a.probability for a in expected], abs=1e-5)
    assert answerer(requests[0]) == answerer(requests[:1]) and len(answerer(requests[0])[0]) == 1
    assert json.loads(json.dumps(results)) == results and answerer([]) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"question": "who?"}, "Request 0 must be a dictionary with question and clip, got question"),
        ({"question": "who?", "clip": "a.mp4", "top_k": 1}, "got question, clip, top_k"),
        (["who?"], "Request 0 must be a dictionary with question and clip, got str"),
        ({"question": 3, "clip": "a.mp4"}, "Request 0: `question` must be a string, got int"),
        ({"question": "who?", "clip": "no.mp4"}, "no.mp4"),
    ],
)
def test_errors_name_invalid_requests(answerer, request_, message):
    with pytest.raises(ValueError, match=message):
        answerer(request_)
