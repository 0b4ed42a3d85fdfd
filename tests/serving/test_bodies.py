"""Bodies that are refused: forms, JSON, and tensors of the Open Inference Protocol."""

import base64
import json

import pytest

from tests.serving.asgi import BOUNDARY, multipart, refused
from tests.serving.test_app import infer_body, run

FORM = "/predictions/actions"
TEXT = ("text", "a cat")
MANY = "\r\nX: y" * 20
HEAD = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="


@pytest.mark.parametrize(
    ("path", "parts", "reason"),
    [
        (FORM, [], "needs a clip or a text"),
        (FORM, [("text", " \n")], "needs a clip or a text"),
        (FORM, [("labels", "x")], "needs a clip or a text"),
        (FORM, [TEXT, ("name", "x")], "another one, name."),
        (FORM, [TEXT, TEXT], "several parts named text"),
        (FORM, [TEXT, ("script", "a dog")], "Only one part"),
        (FORM, [("data", b"x"), ("data", b"x")], "several parts named data"),
        (FORM, [("text", "x" * 51)], "longer than 50 characters"),
        (FORM, [("text", "x" * 1000)], "longer than 50 characters"),
        (FORM, [("labels", "x")] * 7, "several parts"),
        ("/answer", [("question", "x")] * 7, "more than 6 parts"),
        ("/answer", [("data", b"x"), *[("question", "x")] * 4], "1 to 3 inputs, got 4"),
        ("/answer", [("data", b"x")], "1 to 3 inputs, got 0"),
        ("/answer", [("data", b"x"), ("question", " ")], "not blank"),
        ("/answer", [("question", "what?")], "needs a clip"),
        *((FORM, [TEXT, ("top_k", value)], "`top_k` must") for value in ("0", "-1", "1000000000", "x", "", "1e999")),
        *((FORM, [TEXT, ("threshold", value)], "`threshold`") for value in ("nan", "inf", "-0.1", "1.1", "x")),
        ("/v1/embeddings", [TEXT, ("data", b"x")], "not both"),
        ("/v1/embeddings", [TEXT, ("encoding_format", "x")], "float or base64"),
        ("/search", [("text", "")], "not blank"),
        (FORM, [("data", b"")], "empty"),
        (FORM, [("data", b"not a clip")], "Invalid data"),
        (FORM, [("data", b"https://example.org/a.mp4")], "Invalid data"),
        (FORM, [("data", b"#EXTM3U\nfile:///etc/passwd\n")], ""),
    ],
)
def test_invalid_forms(client, small, path, parts, reason):
    assert reason in refused(run(client.form(path, *parts)), 422)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "ends before"),
        (multipart(("text", "a"))[0][:-10], "ends before"),
        (multipart(("data", b"x" * 100))[0][:100], "ends before"),
        (b'{"text": "a"}', "not a valid multipart"),
        (f'{HEAD}"text"\r\n\r\n'.encode() + b"\xff\xfe" + f"\r\n--{BOUNDARY}--\r\n".encode(), "not UTF-8"),
        (f'{HEAD}"{"x" * 5000}"\r\n\r\na\r\n--{BOUNDARY}--\r\n'.encode(), "not a valid multipart"),
        (f"{HEAD}text{MANY}\r\n\r\na\r\n--{BOUNDARY}--\r\n".encode(), "not a valid multipart"),
        (f'{HEAD}"data"\r\n\r\nclip.mp4\r\n--{BOUNDARY}--\r\n'.encode(), "data=@clip.mp4"),
        (f"--{BOUNDARY}\r\n\r\na\r\n--{BOUNDARY}--\r\n".encode(), "another one."),
        (
            f'--{BOUNDARY}\r\nContent-Disposition: x; name="text"\r\n\r\na\r\n--{BOUNDARY}--\r\n'.encode(),
            "another one.",
        ),
    ],
)
def test_broken_forms(client, small, body, reason):
    assert reason in refused(run(client.send("POST", FORM, body, multipart()[1])), 422)


def test_forms_in_pieces_of_a_byte(client, small):
    body, headers = multipart(("text", "a cat\r\n--a1b2"), ("top_k", "1"))
    answer = run(client.send("POST", FORM, [body[n : n + 1] for n in range(len(body))], headers))
    assert answer.status == 200 and len(answer.json) == 1


def test_wrong_types_of_bodies(client, small):
    body, headers = multipart(TEXT)
    for kind in ("application/json", "text/plain", "", "multipart/mixed; boundary=a1b2c3"):
        refused(run(client.send("POST", FORM, body, {"content-type": kind})), 415)
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 300}",
    ):
        refused(run(client.send("POST", FORM, body, {"content-type": kind})), 422)
    for path in ("/v1/embeddings", "/search", "/v2/models/clips/infer"):
        refused(run(client.send("POST", path, b"{}", {"content-type": "application/x-www-form-urlencoded"})), 415)
    refused(run(client.send("POST", FORM, body, {**headers, "content-encoding": "gzip"})), 415)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "input: "),
        ([], "object"),
        ({"input": []}, "1 to 3 inputs, got 0"),
        ({"input": ["a"] * 4}, "1 to 3 inputs, got 4"),
        ({"input": ["a"] * 10_000}, "1 to 3 inputs, got 10000"),
        ({"input": ["a", " "]}, "not blank"),
        ({"input": "x" * 51}, "longer than 50 characters"),
        ({"input": [1, 2]}, "input."),
        ({"input": 1}, "input."),
        ({"input": "a", "dimensions": 3}, "dimensions: "),
        ({"input": "a", "encoding_format": "x"}, "encoding_format: "),
        ({"input": "a", "model": "x" * 5000}, "model: "),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"input": NaN}', "input"),
        (b'{"input": "\xff"}', "not valid JSON"),
        (b'{"input": "\\ud800"}', "not valid JSON"),
        (b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not valid JSON"),
        (b'{"input": 1e999}', "input"),
    ],
)
def test_invalid_json(client, small, value, reason):
    assert reason in refused(run(client.json("/v1/embeddings", value)), 422)


CAT = {"text": ["cat"]}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "inputs: "),
        (infer_body({}), "inputs: "),
        (infer_body({"image": ["a"]}), "'video', 'audio' or 'text'"),
        (infer_body({"text": ["a"] * 4}), "got 4"),
        (infer_body({"text": [""]}), "not blank"),
        (infer_body({"text": ["a"], "video": ["abcd", "abcd"]}), "different numbers"),
        (infer_body({"text": [1]}), "valid string"),
        (infer_body({"text": ["\ud800"]}), "JSON"),
        (infer_body({"video": ["http://127.0.0.1/clip.mp4"]}), "base64"),
        (infer_body({"video": ["file:///etc/passwd"]}), "base64"),
        (infer_body({"video": [base64.b64encode(b"no clip").decode()]}), "Invalid data"),
        (infer_body(CAT, outputs=[{"name": "x"}]), "'scores', 'labels' or 'embedding'"),
        (infer_body(CAT, outputs=[{"name": "scores"}]), "The outputs are embedding."),
        *((infer_body(CAT, parameters={"top_k": value}), "top_k") for value in (0, "1", 1.5, True)),
        ({"inputs": infer_body(CAT)["inputs"] * 2}, "twice"),
        *(
            ({"inputs": [{**infer_body(CAT)["inputs"][0], **change}]}, reason)
            for change, reason in (
                ({"datatype": "FP32"}, "BYTES"),
                ({"shape": [2]}, "n elements"),
                ({"shape": [-1]}, "shape"),
                ({"shape": []}, "shape"),
                ({"shape": [1, 2]}, "n elements"),
                ({"shape": [10**30]}, "1 to 3 inputs"),
                ({"data": None}, "n elements"),
                ({"data": {"a": 1}}, "data"),
                ({"data": [["cat"], ["dog"]]}, "n elements"),
                ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
                ({"parameters": {"binary_data_size": 1}}, "binary_data_size"),
                ({"parameters": {"binary_data_size": "1"}}, "binary_data_size"),
            )
        ),
    ],
)
def test_invalid_inference_requests(client, small, value, reason):
    assert reason in refused(run(client.json("/v2/models/clips/infer", value)), 422)


@pytest.mark.parametrize(
    ("binary", "size", "length", "reason"),
    [
        (b"\x03\0\0\0cat", 7, None, ""),
        (b"\x04\0\0\0cat", 7, None, "within an element"),
        (b"\xff\xff\xff\xffcat", 7, None, "within an element"),
        (b"\x03\0", 2, None, "within an element"),
        (b"", 0, None, "n elements"),
        (b"\x03\0\0\0cat", 8, None, "binary_data_size"),
        (b"\x03\0\0\0catxx", 7, None, "longer"),
        (b"\x03\0\0\0\xff\xff\xff", 7, None, "UTF-8"),
        (b"\x03\0\0\0cat", 7, "1000", "Inference-Header-Content-Length"),
        (b"\x03\0\0\0cat", 7, "-1", "Inference-Header-Content-Length"),
        (b"\x03\0\0\0cat", 7, "9" * 5000, "Inference-Header-Content-Length"),
        (b"\x03\0\0\0cat", 7, "3", "JSON"),
    ],
)
def test_binary_tensors(client, small, binary, size, length, reason):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(header))}
    answer = run(client.send("POST", "/v2/models/clips/infer", header + binary, headers))
    if reason:
        assert reason in refused(answer, 422)
    else:
        assert answer.status == 200


def test_json_of_many_values_is_not_parsed(client):
    """Each takes hundreds of bytes, and an error of its own; what is in texts is not counted."""
    from simple_multimodal.serving.forms import has_many_values

    for value in (b"1", b"[]", b"{}", b'""'):
        body = b'{"input": [' + b",".join([value] * 101_000) + b"]}"
        for path in ("/v1/embeddings", "/search", "/v2/models/clips/infer"):
            assert "too many values" in refused(run(client.json(path, body)), 422)
    texts = [',[{"\\' * 1000, "\\", '\\"', '"' * 1000, ""]
    body = json.dumps({"input": texts}).encode()
    assert not has_many_values(body, 6)
    assert has_many_values(body, 5)
    assert has_many_values(json.dumps(texts * 2).encode(), 6)


def test_rows_beyond_the_limit_cost_nothing(client, small, monkeypatch):
    """No file of theirs is written, and no element is taken out of binary data."""
    from simple_multimodal.serving.protocol_v2 import _split

    monkeypatch.setattr(small.uploads, "new", lambda: pytest.fail("a file is written"))
    rows = infer_body({"video": ["AA=="] * 1000})
    assert "1 to 3 inputs, got 1000" in refused(run(client.json("/v2/models/clips/infer", rows)), 422)
    assert len(_split(memoryview(bytes(4000)), "video", 2)) == 3
