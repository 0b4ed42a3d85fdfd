"""Every route answers what the pipelines answer, also for many clients at once."""

import asyncio
import base64
import contextlib
import gc
import itertools
import json
import random
import struct
import threading
import time

import numpy as np
import pytest

from simple_multimodal.data.reading import ModalityReading
from simple_multimodal.serving.tasks import Query
from simple_multimodal.serving.waiting import Job
from simple_multimodal.tasks.generation.translator import Translator
from tests.serving.asgi import Client
from tests.serving.clips import NAMES
from tests.serving.models import assert_same_results, write_captioner

TEXTS = ["a cat purrs", "two dogs", "cat"]


def run(coroutine):
    return asyncio.run(coroutine)


def test_clips_of_many_clients_get_the_labels_of_the_pipeline(client, pipelines, clips, files):
    """Each clip and text have scores of their own, so that an answer to another request would differ."""
    asked = [(name, text) for name in NAMES for text in ("", *TEXTS)]
    inputs = [{"clip": str(clips / name), "text": text} for name, text in asked]
    expected = pipelines["actions"](inputs, top_k=4)
    order = [*range(len(asked))] * 2
    random.Random(0).shuffle(order)

    async def ask_all():
        asking = (
            client.form(
                "/predictions/actions", ("data", files[name]), ("script", text), ("labels", "x"), ("top_k", "4")
            )
            for name, text in (asked[number] for number in order)
        )
        return await asyncio.gather(*asking)

    answers = run(ask_all())
    assert {answer.status for answer in answers} == {200}
    assert_same_results([answer.json for answer in answers], [expected[number] for number in order])


def test_clients_that_hang_up_midway_leave_the_answers_of_others_right(client, service, pipelines, clips, files):
    """A third of them, at any time: while their clip waits, is read, or is in a batch."""
    asked = [(name, text) for name in NAMES for text in TEXTS] * 3
    expected = pipelines["actions"]([{"clip": str(clips / name), "text": text} for name, text in asked], top_k=4)
    generator = random.Random(0)

    async def ask(name, text, leaves_after):
        leaves = asyncio.Event()
        if leaves_after is not None:
            asyncio.get_running_loop().call_later(leaves_after, leaves.set)
        parts = ("data", files[name]), ("text", text), ("top_k", "4")
        return await client.form("/predictions/actions", *parts, leaves=leaves)

    async def ask_all():
        times = [generator.uniform(0.0, 0.5) if number % 3 == 0 else None for number in range(len(asked))]
        return await asyncio.gather(*(ask(*own, time) for own, time in zip(asked, times, strict=True)))

    answers = run(ask_all())
    assert all(answer is not None and answer.status == 200 for n, answer in enumerate(answers) if n % 3)
    assert any(answer is None for answer in answers)
    stayed = [n for n, answer in enumerate(answers) if answer is not None]
    assert_same_results([answers[n].json for n in stayed], [expected[n] for n in stayed])
    assert (service.num_requests, service.body_bytes, service.clip_bytes) == (0, 0, 0)


@contextlib.contextmanager
def model_held(served):
    """Let a model run only after the context; one batch may be in its hands then."""
    go, run = threading.Event(), served.batcher.run
    served.batcher.run = lambda queries: (go.wait(60), run(queries))[1]
    try:
        yield go
    finally:
        go.set()
        served.batcher.run = run


@pytest.mark.parametrize("is_refused", [False, True])
def test_bodies_and_clips_are_let_go_of_at_once(client, files, is_refused):
    """They are in no reference cycle, which would take any amount of memory until garbage is collected."""
    second = b"no media file" if is_refused else files["2.mp4"]
    clips = [base64.b64encode(content).decode() for content in (files["1.mp4"], second)]
    inputs = [{"name": "video", "datatype": "BYTES", "shape": [2], "data": clips}]
    text = "x" * 10_001 if is_refused else "a cat"

    async def ask():
        answers = [
            await client.json("/v2/models/actions/infer", {"inputs": inputs}),
            await client.json("/v1/embeddings", {"input": text}),
            await client.form("/v1/embeddings", ("data", second)),
            await client.form("/answer", ("data", second), ("question", "which one?")),
            await client.form("/predictions/actions", ("data", files["1.mp4"]), ("text", text)),
        ]
        assert [answer.status for answer in answers] == [422 if is_refused else 200] * 5

    Request = pytest.importorskip("starlette.requests").Request
    Form = pytest.importorskip("simple_multimodal.serving.forms").Form
    gc.collect()
    gc.disable()
    try:
        run(ask())
        kinds = {Request, Form, Job, Query, ModalityReading}
        for _ in range(100):  # the threads of the model and of the readers go on
            found = [type(held) for held in gc.get_objects() if type(held) in kinds]
            if not found:
                break
            time.sleep(0.01)
        assert found == []
    finally:
        gc.enable()


def test_requests_share_batches(client, service, pipelines):
    """Different limits do not matter; what came in while the first one ran is the next batch."""
    served = service.models["actions"]
    (expected,) = pipelines["actions"]({"clip": {"video": None, "caption": "two dogs"}}, top_k=4)
    before = served.batcher.batch_sizes.copy()

    async def ask_all():
        with model_held(served):
            asking = [
                asyncio.ensure_future(
                    client.form("/predictions/actions", ("text", "two dogs"), ("top_k", str(n % 4 + 1)))
                )
                for n in range(9)
            ]
            while served.batcher.waiting.num_accepted - accepted < 9:
                await asyncio.sleep(0.001)
        return await asyncio.gather(*asking)

    accepted = served.batcher.waiting.num_accepted
    answers = run(ask_all())
    assert_same_results([answer.json for answer in answers], [expected[: n % 4 + 1] for n in range(9)])
    made = served.batcher.batch_sizes - before
    assert sum(size * number for size, number in made.items()) == 9 and sum(made.values()) <= 2


def test_predictions_of_every_task(client, pipelines, clips, files):
    (expected,) = pipelines["actions"]({"clip": {"video": None, "caption": "two dogs"}})
    answer = run(client.form("/predictions/actions", ("text", "two dogs")))
    assert_same_results([answer.json], [expected])
    threshold = (expected[1]["score"] + expected[2]["score"]) / 2
    answer = run(client.form("/predictions/actions", ("text", "two dogs"), ("threshold", str(threshold))))
    assert_same_results([answer.json], [expected[:2]])
    (expected,) = pipelines["questions"]({"question": "what is it?", "clip": str(clips / "1.mp4")}, top_k=1)
    answer = run(client.form("/predictions/questions", ("data", files["1.mp4"]), ("text", "what is it?")))
    assert_same_results([answer.json], [expected])
    answer = run(client.form("/predictions/clips", ("text", "two dogs")))
    expected = pipelines["clips"].embed_texts(["two dogs"])[0]
    np.testing.assert_allclose(answer.json["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(client, pipelines, clips, files, encoding):
    def decoded(answer):
        assert answer.json["object"] == "list" and answer.json["model"] == "clips"
        assert [entry["index"] for entry in answer.json["data"]] == [*range(len(answer.json["data"]))]
        found = [entry["embedding"] for entry in answer.json["data"]]
        return [np.frombuffer(base64.b64decode(own), "<f4") for own in found] if encoding == "base64" else found

    answer = run(client.json("/v1/embeddings", {"input": TEXTS, "model": "clips", "encoding_format": encoding}))
    np.testing.assert_allclose(decoded(answer), pipelines["clips"].embed_texts(TEXTS), atol=1e-5)
    answer = run(client.json("/v1/embeddings", {"input": TEXTS[0], "encoding_format": encoding}))
    np.testing.assert_allclose(decoded(answer), pipelines["clips"].embed_texts(TEXTS[:1]), atol=1e-5)
    expected = pipelines["clips"].index([clips / name for name in NAMES]).embeds
    for name, embed in zip(NAMES, expected, strict=True):
        answer = run(client.form("/v1/embeddings", ("data", files[name]), ("encoding_format", encoding)))
        np.testing.assert_allclose(decoded(answer), embed[None], atol=1e-5)


def test_search(client, pipelines, index, files):
    for text, top_k in itertools.product(TEXTS, (1, 3.0, 100)):  # in JSON, 3.0 is an integer
        expected = [match.to_dict() for match in pipelines["clips"].search(text, index, top_k=int(top_k))]
        answer = run(client.json("/search", {"text": text, "top_k": top_k}))
        assert_same_results([answer.json], [expected])
        answer = run(client.form("/search", ("text", text), ("top_k", str(int(top_k))), ("model", "clips")))
        assert_same_results([answer.json], [expected])
    answer = run(client.form("/search", ("data", files["3.mp4"]), ("top_k", "1")))
    assert answer.json[0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert answer.json == [{"clip": pipelines["clips"].load_index(index).ids[3], "score": answer.json[0]["score"]}]


def test_answers_to_several_questions_about_one_clip(client, service, pipelines, clips, files):
    questions = ["what is it?", "who purrs?", "what is it?"]
    expected = pipelines["questions"](
        [{"question": question, "clip": str(clips / "2.mp4")} for question in questions], top_k=2
    )
    before = service.models["questions"].readers.num_read
    parts = [("question", question) for question in questions]
    answer = run(client.form("/answer", ("data", files["2.mp4"]), *parts, ("top_k", "2")))
    assert_same_results(answer.json, expected)
    assert service.models["questions"].readers.num_read == before + 1


def infer_body(inputs, **further):
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data} for name, data in inputs.items()
    ]
    return {"inputs": tensors, **further}


def outputs_of(answer):
    assert answer.status == 200, answer.body
    return {output["name"]: (output["datatype"], output["shape"], output["data"]) for output in answer.json["outputs"]}


@pytest.mark.parametrize("prefix", ["/v2/models/actions", "/v2/models/actions/versions/1"])
def test_inference_protocol(client, pipelines, clips, files, prefix):
    names, texts = ["0.mp4", "1.mp4"], ["", "two dogs"]
    expected = pipelines["actions"](
        [{"clip": str(clips / name), "text": text} for name, text in zip(names, texts, strict=True)], top_k=4
    )
    labels = list(pipelines["actions"].model.config.id2label.values())
    scores = [
        next(result["score"] for result in results if result["label"] == label)
        for results in expected
        for label in labels
    ]
    encoded = {"video": [base64.b64encode(files[name]).decode() for name in names], "text": texts}
    answer = run(client.json(f"{prefix}/infer", infer_body(encoded, id="a", parameters={"top_k": 2})))
    found = outputs_of(answer)
    assert (answer.json["id"], answer.json["model_name"], answer.json["model_version"]) == ("a", "actions", "1")
    assert found["scores"] == ("FP32", [2, 4], pytest.approx(scores, abs=1e-5))
    assert found["labels"] == ("BYTES", [2, 2], [result["label"] for own in expected for result in own[:2]])
    answer = run(client.json(f"{prefix}/infer", infer_body(encoded, outputs=[{"name": "labels"}])))
    assert list(outputs_of(answer)) == ["labels"]
    # The binary tensor extension, as tritonclient sends it.
    tensors = [b"".join(struct.pack("<I", len(files[name])) + files[name] for name in names)]
    tensors += [b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)]
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [2, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(tensor)},
                }
                for name, tensor in zip(("video", "text"), tensors, strict=True)
            ],
            "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
        }
    ).encode()
    body, length = header + b"".join(tensors), {"Inference-Header-Content-Length": str(len(header))}
    answer = run(client.send("POST", f"{prefix}/infer", body, length))
    assert outputs_of(answer)["scores"] == ("FP32", [2, 4], pytest.approx(scores, abs=1e-5))


def test_inference_protocol_of_other_tasks(client, pipelines, clips, files):
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    found = outputs_of(run(client.json("/v2/models/clips/infer", infer_body({"text": TEXTS}))))
    embeds = pipelines["clips"].embed_texts(TEXTS)
    assert found["embedding"] == ("FP32", list(embeds.shape), pytest.approx(embeds.flatten().tolist(), abs=1e-5))
    row = {"video": str(clips / "5.mp4"), "audio": str(clips / "audio.wav")}
    embeds = pipelines["clips"].index([row]).embeds
    body = infer_body({"video": [encoded["5.mp4"]], "audio": [encoded["audio.wav"]]})
    found = outputs_of(run(client.json("/v2/models/clips/infer", body)))
    assert found["embedding"] == ("FP32", list(embeds.shape), pytest.approx(embeds.flatten().tolist(), abs=1e-5))
    (expected,) = pipelines["questions"]({"question": "what is it?", "clip": str(clips / "0.mp4")}, top_k=1)
    body = infer_body({"video": [encoded["0.mp4"]], "text": ["what is it?"]})
    found = outputs_of(run(client.json("/v2/models/questions/infer", body)))
    assert found["labels"] == ("BYTES", [1, 1], [expected[0]["answer"]])


def test_texts(processor, clips, files, tmp_path, needs_serve):
    from simple_multimodal.serving.app import create_app
    from simple_multimodal.serving.models import ServedModel
    from simple_multimodal.serving.service import Service
    from simple_multimodal.serving.uploads import UploadFolder

    folder = write_captioner(tmp_path / "captions", processor)
    translator = Translator.from_pretrained(folder)
    served = ServedModel.load(str(folder), num_readers=1)
    with contextlib.closing(Service({"captions": served}, UploadFolder(tmp_path))) as service:
        client = Client(create_app(service))
        ((expected,),) = translator({"clip": str(clips / "0.mp4"), "encoder_prompt": "two"})
        answer = run(client.form("/predictions/captions", ("data", files["0.mp4"]), ("text", "two")))
        assert answer.json == [{**expected, "score": pytest.approx(expected["score"], abs=1e-5)}]
        (plain,) = translator(str(clips / "1.mp4"))
        encoded = [base64.b64encode(files["1.mp4"]).decode()]
        found = outputs_of(run(client.json("/v2/models/captions/infer", infer_body({"video": encoded}))))
        assert found["text"] == ("BYTES", [1], [plain[0]["text"]])
        assert found["score"] == ("FP32", [1], [pytest.approx(plain[0]["score"], abs=1e-5)])
        described = run(client.get("/v2/models/captions")).json["outputs"]
        assert [(entry["name"], entry["datatype"]) for entry in described] == [("text", "BYTES"), ("score", "FP32")]
        assert run(client.form("/predictions/captions", ("text", "two"))).status == 422


def test_descriptions(client, service):
    assert run(client.get("/v2/health/live")).json == {"live": True}
    assert run(client.get("/v2/health/ready")).json == {"ready": True}
    assert run(client.get("/health")).json == {"ready": True, "models": ["actions", "questions", "clips"]}
    assert run(client.get("/v2")).json["name"] == "simple_multimodal"
    for prefix in ("/v2/models/actions", "/v2/models/actions/versions/1"):
        described = run(client.get(prefix)).json
        assert [entry["name"] for entry in described["inputs"]] == ["video", "audio", "text"]
        assert described["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 4]}
        assert run(client.get(f"{prefix}/ready")).json == {"name": "actions", "ready": True}
    schema = run(client.get("/openapi.json")).json
    assert set(schema["paths"]["/predictions/{model}"]["post"]["responses"]) >= {"200", "401", "413", "429", "504"}
    metrics = run(client.get("/metrics")).body.decode()
    assert 'simple_multimodal_requests_total{route="/predictions/{model}",status="200"}' in metrics
    assert 'simple_multimodal_batches_total{model="actions",size="1"}' in metrics
    service.is_draining = True
    try:
        for path in ("/v2/health/ready", "/v2/models/actions/ready", "/health"):
            answer = run(client.get(path))
            assert (answer.status, answer.json["ready"], answer.headers["retry-after"]) == (503, False, "1")
        assert run(client.get("/v2/health/live")).status == 200
        assert run(client.json("/v1/embeddings", {"input": "a cat"})).status == 200
    finally:
        service.is_draining = False
