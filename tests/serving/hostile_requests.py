"""Requests that a server does not expect, as the bytes that a client sends, with the statuses of the answers."""

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.serving.asgi import BOUNDARY, multipart
from tests.serving.test_app import infer_body

FORM = "/predictions/actions"
INFER = "/v2/models/clips/infer"
EMBED = "/v1/embeddings"
JSON = {"Content-Type": "application/json"}
TEXT = ("text", "a cat")
CAT = {"text": ["cat"]}

NOT_HTTP = {400}  # answered by the HTTP parser, as plain text
CLOSED = 0  # without an answer
INVALID = {422}


class Case(NamedTuple):
    """
    What a client sends, and which statuses may be the answer.

    Args:
        name (`str`): What is wrong with it.
        data (`bytes`): All that is sent on the connection.
        statuses (`set[int]`): Statuses; `CLOSED` if the connection may be closed without one.
    """

    name: str
    data: bytes
    statuses: set[int]


def request(
    target: str | bytes,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    method: str | None = None,
    version: str = "1.1",
) -> bytes:
    """Return the bytes of a request; one with a body is a POST, and has a length unless it is chunked."""
    method = method or ("GET" if body is None else "POST")
    sent = {"Host": "localhost", "Connection": "close"}
    if body is not None and "Transfer-Encoding" not in (headers or {}):
        sent["Content-Length"] = str(len(body))
    lines = [f"{name}: {value}".encode("latin-1") for name, value in {**sent, **(headers or {})}.items()]
    target = target.encode() if isinstance(target, str) else target
    return b"\r\n".join([method.encode() + b" " + target + f" HTTP/{version}".encode(), *lines, b"", body or b""])


def form(path: str, *parts: tuple[str, str | bytes], headers: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a request with a form."""
    body, own = multipart(*parts)
    return request(path, body, {**own, **(headers or {})})


def as_json(path: str, value: Any) -> bytes:
    """Return the bytes of a request with JSON; bytes are sent as they are."""
    return request(path, value if isinstance(value, bytes) else json.dumps(value).encode(), JSON)


def chunked(*chunks: bytes) -> bytes:
    """Return a body in chunks."""
    return b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in (*chunks, b""))


def hostile_requests(address: str, max_body_bytes: int) -> Iterator[Case]:
    """
    Yield the cases.

    Args:
        address (`str`): Host and port of a listener that nothing may connect to.
        max_body_bytes (`int`): Largest body that the server accepts.
    """
    yield from _not_http()
    yield from _lengths(max_body_bytes)
    yield from _targets(address)
    yield from _hosts(address)
    yield from _forms()
    yield from _values()
    yield from _tensors()
    yield from _urls(address)


def _not_http() -> Iterator[Case]:
    live = b"GET /v2/health/live HTTP/1.1\r\n"
    lines = {
        "noise": bytes(range(256)),
        "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/0.9": b"GET /v2\r\n\r\n",
        "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "no host": live + b"\r\n",
        "two hosts": live + b"Host: localhost\r\nHost: localhost\r\n\r\n",
        "a space before the colon": live + b"Host : localhost\r\n\r\n",
        "no colon": live + b"Host localhost\r\n\r\n",
        "NUL in a header": live + b"Host: localhost\r\nX: a\0b\r\n\r\n",
        "a folded header alone": live + b" Host: localhost\r\n\r\n",
        "a header of 100 KB": live + b"Host: localhost\r\nX: " + b"x" * 100_000,
        "a target of 100 KB": b"GET /" + b"x" * 100_000,
        "a space in the target": b"GET /v2 /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "bytes in the target": request(b"/predictions/\xff\xfe", b""),
        "NUL in the target": request(b"/predictions/\0", b""),
    }
    for name, data in lines.items():
        yield Case(name, data, {"TLS": {*NOT_HTTP, CLOSED}, "HTTP/2": {404, *NOT_HTTP}}.get(name, NOT_HTTP))
    for value in ("x", "-1", "+1", "0x10", "1.5", "1 1", "1, 2", "9" * 21, "9" * 5000):
        yield Case(f"length {value[:30]}", request(FORM, b"", {"Content-Length": value}), NOT_HTTP)
    for value in ("x", "gzip", "gzip, chunked", "chunked, chunked", "identity"):
        yield Case(f"transfer {value}", request(FORM, b"", {"Transfer-Encoding": value}), NOT_HTTP)
    _, kind = multipart()
    for value in (b"x\r\n", b"-1\r\n", b"f" * 30 + b"\r\n", b"\r\n\r\n", b"5;" + b"x" * 100_000, b"2\r\nabcd\r\n"):
        data = request(FORM, value, {**kind, "Transfer-Encoding": "chunked"})
        yield Case(f"chunk {value[:9]!r}", data, {*NOT_HTTP, 422, CLOSED})


def _lengths(most: int) -> Iterator[Case]:
    body, kind = multipart(TEXT)
    large, _ = multipart(("data", b"x" * most))
    chunks = {**kind, "Transfer-Encoding": "chunked"}
    yield Case("empty form", request(FORM, b"", kind), INVALID)
    yield Case("empty form in chunks", request(FORM, chunked(), chunks), INVALID)
    yield Case("no length", request(FORM, None, kind, method="POST"), INVALID)
    yield Case("length 0 of a body", request(FORM, body, {**kind, "Content-Length": "0"}), INVALID)
    yield Case("shorter length", request(FORM, body, {**kind, "Content-Length": "50"}), INVALID)
    yield Case("longer length", request(FORM, body, {**kind, "Content-Length": str(len(body) + 9)}), {408})
    yield Case("too large", request(FORM, large, kind), {413})
    yield Case("too large by its length", request(FORM, b"", {**kind, "Content-Length": str(most + 1)}), {413})
    yield Case("too large in chunks", request(FORM, chunked(*[large[:65536]] * (most // 65536 + 1)), chunks), {413})
    yield Case("chunks without an end", request(FORM, chunked(body)[:-5], chunks), {408})
    both = {**chunks, "Content-Length": str(len(chunked(body)))}
    yield Case("length and chunks", request(FORM, chunked(body), both), INVALID)
    yield Case("length 0 and chunks", request(FORM, chunked(body), {**both, "Content-Length": "0"}), INVALID)
    for path, content, own in ((FORM, body, kind), (EMBED, b'{"input": "a"}', JSON), (INFER, b"{}", JSON)):
        for encoding in ("gzip", "identity, gzip", "br", "x"):
            yield Case(f"{encoding} {path}", request(path, content, {**own, "Content-Encoding": encoding}), {415})


def _targets(address: str) -> Iterator[Case]:
    body, kind = multipart(TEXT)
    names = ["nothing", "..", "../..", "%2e%2e%2f", "..%2f..%2fetc%2fpasswd", "..%5c", "%00", "%ff", "%ED%A0%80"]
    names += [
        "x" * 4096,
        "actions%2f",
        "actions/",
        "Actions",
        "actions;x",
        "%7Bmodel%7D",
        "con",
        "*",
        f"http:%2f%2f{address}",
    ]
    for name in names:
        yield Case(f"model {name[:20]}", request(f"/predictions/{name}", body, kind), {404})
        yield Case(f"model {name[:20]} by OIP", as_json(f"/v2/models/{name}/infer", infer_body(CAT)), {404})
        yield Case(f"description of {name[:20]}", request(f"/v2/models/{name}"), {404})
    for path in (
        "/",
        "//",
        "/docs",
        "/redoc",
        "/search/",
        "//v2/health/live",
        "/v2/../metrics",
        "/static/../etc",
        "/.env",
    ):
        yield Case(path, request(path), {404})
    yield Case("absolute target", request(f"http://{address}/metrics"), {404})
    yield Case("asterisk", request("*", method="OPTIONS"), {404})
    yield Case("proxy", request(address, method="CONNECT"), {404, *NOT_HTTP})
    for version in ("2", "-1", "1%00", "x" * 4096):
        yield Case(f"version {version[:9]}", request(f"/v2/models/clips/versions/{version}"), {404})
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND", "get", "SECRET", "X" * 9000):
        for path in ("/metrics", FORM):
            yield Case(f"{method[:9]} {path}", request(path, method=method), {405})
    yield Case("a target of 4 KB", request("/search?" + "x" * 4096), {405})
    yield Case("model in JSON", as_json(EMBED, {"input": "a", "model": "../.."}), {404})
    yield Case("a long model in JSON", as_json(EMBED, {"input": "a", "model": "x" * 4096}), INVALID)


def _hosts(address: str) -> Iterator[Case]:
    live = "/v2/health/live"
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:8000", "[::1]", "[::1]:8000"):
        yield Case(f"host {host}", request(live, headers={"Host": host}), {200})
    names = [
        "example.org",
        "example.org:8000",
        "localhost.example.org",
        "127.0.0.1.example.org",
        "localhost@example.org",
    ]
    names += [
        "169.254.169.254",
        "0.0.0.0",
        "[::]",
        "10.0.0.1:8000",
        "2130706433",
        "[::1",
        "localhost:x:y",
        "x" * 4096,
        "",
    ]
    for host in names:
        yield Case(f"host {host[:30]}", request(live, headers={"Host": host}), {421})
    yield Case("foreign host, body", form(FORM, TEXT, headers={"Host": "example.org"}), {421})
    yield Case("HTTP/1.0 without a host", b"GET /v2/health/live HTTP/1.0\r\n\r\n", {200})
    forged = {
        "X-Forwarded-For": address,
        "X-Forwarded-Host": address,
        "X-Forwarded-Proto": "gopher",
        "Forwarded": f"for={address};host={address}",
        "X-Original-URL": "/metrics",
        "X-HTTP-Method-Override": "DELETE",
        "X-Request-Id": "../../x",
        "Upgrade": "websocket",
        "Referer": f"http://{address}/",
        "Expect": "200-ok",
        "Range": "bytes=0-1,5-",
    }
    for name, value in forged.items():
        yield Case(name, request(live, headers={name: value}), {200})
    upgrade = {
        "Connection": "Upgrade, close",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x",
        "Sec-WebSocket-Version": "13",
    }
    yield Case("websocket", request("/search", headers=upgrade), {405})
    yield Case("h2c", request(live, headers={**upgrade, "Upgrade": "h2c", "HTTP2-Settings": "x"}), {200})
    yield Case("1,000 headers", request(live, headers={f"X-{n}": "x" for n in range(1000)}), {200, *NOT_HTTP})


def _forms() -> Iterator[Case]:
    def head(disposition: str, *further: str) -> bytes:
        lines = [
            f"--{BOUNDARY}",
            f"Content-Disposition: form-data; {disposition}",
            *further,
            "",
            "a cat",
            f"--{BOUNDARY}--",
        ]
        return "\r\n".join([*lines, ""]).encode()

    _, kind = multipart()
    for name, parts in {
        "1,000 parts": [("text", "a")] * 1000,
        "1,000 questions": [("question", "a")] * 1000,
        "1,000 unknown parts": [(f"x{n}", "a") for n in range(1000)],
        "no part": [],
        "a part twice": [TEXT, TEXT],
        "a clip twice": [("data", b"x"), ("data", b"x")],
        "both names of a text": [TEXT, ("script", "a")],
        "unknown part": [TEXT, ("x", "a")],
        "a text of 1 MB": [("text", "x" * 10**6)],
        "a setting of 1 MB": [TEXT, ("top_k", "1" * 10**6)],
        "labels of 1 MB": [TEXT, ("labels", "x" * 10**6)],
        "a text of 10,001 characters": [("text", "\N{CAT FACE}" * 10_001)],
        "blank": [("text", " \t\r\n\u3000")],
        "an empty clip": [("data", b"")],
        "an empty clip and a text": [("data", b""), TEXT],
    }.items():
        for path in (FORM, "/answer"):
            yield Case(f"{name} {path}", form(path, *parts), INVALID)
    for value in ("0", "-1", str(10**9), "9" * 5000, "x", "", "1e999", "1.5", "NaN", "\uff11", "0x1", "--1"):
        yield Case(f"top_k {value[:9]}", form(FORM, TEXT, ("top_k", value)), INVALID)
        yield Case(f"threshold {value[:9]}x", form(FORM, TEXT, ("threshold", f"{value}x")), INVALID)
    for value in ("nan", "-inf", "inf", "1e999", "1.0000001", "-0.1"):
        yield Case(f"threshold {value}", form(FORM, TEXT, ("threshold", value)), INVALID)
    yield Case("a text of NUL", form(FORM, ("text", "\0")), {200})
    yield Case("a long word", form(FORM, ("text", "a" * 10_000)), {200})
    yield Case("marks without letters", form(FORM, ("text", "\u0301" * 10_000)), {200})
    yield Case("right to left", form(FORM, ("text", "\u202e\u0645\U0001f408\ufeff\uffff")), {200})
    dispositions = {
        "file name with ../": ('name="text"; filename="../../etc/passwd"', {200}),
        "absolute file name": ('name="text"; filename="/etc/passwd"', {200}),
        "NUL in a file name": ('name="text"; filename="a\0.mp4"', {200, 422}),
        "a file name of 4 KB": (f'name="text"; filename="{"x" * 4096}"', INVALID),
        "a file name of RFC 2231": ("name=\"text\"; filename*=utf-8''%2e%2e%2f%00", {200}),
        "an unknown charset": ("name*=x''text", {200, 422}),
        "no name": ("", INVALID),
        "a name of 4 KB": (f'name="{"x" * 4096}"', INVALID),
        "a name with NUL": ('name="text\0"', INVALID),
        "a name with ../": ('name="../text"', INVALID),
        "an open quote": ('name="text', {200, 422}),
    }
    for name, (disposition, statuses) in dispositions.items():
        yield Case(name, request(FORM, head(disposition), kind), statuses)
    yield Case("1,000 headers of a part", request(FORM, head('name="text"', *["X: y"] * 1000), kind), INVALID)
    yield Case("gzip of a part", request(FORM, head('name="text"', "Content-Transfer-Encoding: gzip"), kind), {200})
    body, _ = multipart(TEXT)
    yield Case("bytes that are not UTF-8", request(FORM, body.replace(b"cat", b"\xff\xfe"), kind), INVALID)
    yield Case("a surrogate in UTF-8", request(FORM, body.replace(b"cat", b"\xed\xa0\x80"), kind), INVALID)
    yield Case("cut before the end", request(FORM, body[:-10], kind), INVALID)
    yield Case("cut within a header", request(FORM, body[:30], kind), INVALID)
    yield Case("bytes after the end", request(FORM, body + b"x" * 1000, kind), {200, 422})
    yield Case("bytes before the beginning", request(FORM, b"x" * 1000 + body, kind), {200, 422})
    yield Case("1 MB of line ends before it", request(FORM, b"\r\n" * 500_000 + body, kind), {200, 422})
    yield Case("almost boundaries", form(FORM, ("data", f"\r\n--{BOUNDARY[:-1]}".encode() * 50_000)), INVALID)
    for boundary in ("", "x", '"', f'"{BOUNDARY}', "x" * 300, "\xff", f"{BOUNDARY}; boundary=x", f" {BOUNDARY[:-1]}"):
        data = request(FORM, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        yield Case(f"boundary {boundary[:20]!r}", data, {200, 422} if BOUNDARY in boundary else INVALID)
    yield Case("no boundary", request(FORM, body, {"Content-Type": "multipart/form-data"}), INVALID)
    numbered = {"Content-Type": f"multipart/form-data; boundary*{'9' * 5000}=x"}
    yield Case("a boundary in 10^5000 parts", request(FORM, body, numbered), INVALID)
    for own in ("multipart/mixed", "application/json", "application/x-www-form-urlencoded", "video/mp4", "\xff", ""):
        yield Case(f"form as {own!r}", request(FORM, body, {"Content-Type": own}), {415})
    yield Case("form as JSON", request(EMBED, body, JSON), INVALID)
    yield Case("form as tensors", request(INFER, body, kind), {415})
    yield Case("JSON as form", request(FORM, b'{"text": "a"}', kind), INVALID)
    yield Case("a clip without a form", request(FORM, bytes(1000), {"Content-Type": "video/mp4"}), {415})


def _values() -> Iterator[Case]:
    def cases(path: str, key: str, known: bytes) -> Iterator[tuple[str, bytes]]:
        yield "10,000 deep", b'{"%s": ' % key.encode() + b"[" * 10_000 + b"]" * 10_000 + b"}"
        yield "10,000 objects deep", b'{"%s": ' % key.encode() + b'{"a":' * 10_000 + b"1" + b"}" * 10_001
        yield "open lists", b"[" * 10**6
        for value in (
            b"NaN",
            b"Infinity",
            b"1e999",
            b"-1e999",
            b"9" * 100_000,
            b"1." + b"9" * 10**6,
            b"null",
            b"{}",
            b"01",
        ):
            yield f"value {value[:9].decode()}", b'{"%s": %s}' % (key.encode(), value)
        many = (("lists", b"[],"), ("objects", b"{},"), ("numbers", b"1,"), ("texts", b'"",'), ("escapes", b'"\\"",'))
        for name, element in many:
            yield (
                f"500,000 {name}",
                b'{"%s": [' % key.encode() + (element * 500_000)[:1_900_000].rpartition(b",")[0] + b"]}",
            )
        yield "100,000 keys", b"{" + b",".join(b'"%d":1' % n for n in range(100_000)) + b"}"
        yield "a key of 1 MB", b'{"%s": 1, ' % (b"x" * 10**6) + known[1:]
        yield "a key twice", known[:-1] + b', "%s": 1}' % key.encode()
        yield "not UTF-8", known.replace(b"cat", b"\xff")
        yield "UTF-16", known.decode().encode("utf-16")
        yield "a lone surrogate", known.replace(b"cat", b"\\ud800")
        yield "cut", known[:-3]
        yield "twice", known * 2
        yield "empty", b""
        yield "blank", b" " * 10**6
        yield "NUL", b"\0" * 1000

    known = json.dumps({"input": ["cat"]}).encode()
    for name, body in cases(EMBED, "input", known):
        yield Case(f"embeddings: {name}", as_json(EMBED, body), INVALID)
    known = json.dumps(infer_body(CAT)).encode()
    for name, body in cases(INFER, "inputs", known):
        statuses = {200} if name == "a key of 1 MB" else INVALID  # further entries are extensions of the protocol
        yield Case(f"tensors: {name}", as_json(INFER, body), statuses)
    for name, value in {
        "10,000 inputs": ["a"] * 10_000,
        "no input": [],
        "a blank text": " \n",
        "a blank among others": ["a", ""],
        "a text of 1 MB": "x" * 10**6,
        "tokens": [1, 2],
        "lists of tokens": [[1, 2]],
        "an image": {"image": "x"},
    }.items():
        yield Case(f"embeddings: {name}", as_json(EMBED, {"input": value}), INVALID)
    for top_k in (0, -1, 10**9, 10**30, 1.5, "1x", None, [1], True):
        statuses = {200, 422} if top_k in (None, True) else INVALID
        yield Case(f"search: top_k {top_k}", as_json("/search", {"text": "a", "top_k": top_k}), statuses)
        value = infer_body(CAT, parameters={"top_k": top_k})
        yield Case(f"tensors: top_k {top_k}", as_json(INFER, value), statuses)
    for value in ({}, {"text": ""}, {"text": 1}, {"text": "x" * 10**6}, {"text": "a", "x": 1}, {"text": ["a"]}, []):
        yield Case(f"search: {str(value)[:20]}", as_json("/search", value), INVALID)


def _tensors() -> Iterator[Case]:
    cat = infer_body(CAT)["inputs"][0]
    for change in (
        {"name": "image"}, {"name": "x" * 10_000}, {"name": "../text"}, {"datatype": "FP32"}, {"datatype": "bytes"},
        {"shape": [2]}, {"shape": [-1]}, {"shape": [0]}, {"shape": []}, {"shape": [1, 2]}, {"shape": [1] * 1000},
        {"shape": [10**30]}, {"shape": [2**63]}, {"shape": ["1x"]}, {"shape": [1.5]}, {"data": None}, {"data": []},
        {"data": "cat"}, {"data": {"a": 1}}, {"data": [1]}, {"data": [None]}, {"data": [["a"], ["b"]]},
        {"data": [[["a"]]]},
        {"data": [""]}, {"data": ["x" * 10**6]}, {"data": ["a"] * 10_000, "shape": [10_000]},
        {"parameters": {"binary_data_size": -1}}, {"parameters": {"binary_data_size": 1}},
        {"parameters": {"binary_data_size": 2**63}}, {"parameters": {"binary_data_size": 1.5}},
        {"parameters": {"binary_data_size": True}}, {"parameters": {"binary_data_size": "1"}}, {"parameters": [1]},
    ):  # fmt: skip
        value = {"inputs": [{**cat, **change}]}
        yield Case(f"tensor {str(change)[:50]}", as_json(INFER, value), INVALID)
    yield Case("an input twice", as_json(INFER, {"inputs": [cat, cat]}), INVALID)
    yield Case("1,000 inputs", as_json(INFER, {"inputs": [cat] * 1000}), INVALID)
    yield Case("1,000 outputs", as_json(INFER, infer_body(CAT, outputs=[{"name": "x"}] * 1000)), INVALID)
    yield Case("an unknown output", as_json(INFER, infer_body(CAT, outputs=[{"name": "/etc/passwd"}])), INVALID)
    yield Case("different rows", as_json(INFER, infer_body({"text": ["a"], "video": ["AA==", "AA=="]})), INVALID)
    rows = infer_body({"video": ["AA=="] * 100_000})
    yield Case("100,000 clips", as_json(INFER, rows), INVALID)
    for video in ("x", "AA=", "\U0001f408", base64.b64encode(b"no clip").decode()):
        yield Case(f"clip {video}", as_json(INFER, infer_body({"video": [video]})), INVALID)

    def binary(data: bytes, size: Any, shape: int = 1, length: str | None = None) -> bytes:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [shape], "parameters": {"binary_data_size": size}}
        header = json.dumps({"inputs": [tensor]}).encode()
        return request(INFER, header + data, {"Inference-Header-Content-Length": length or str(len(header))})

    yield Case("a length past the end", binary(b"\x04\0\0\0cat", 7), INVALID)
    yield Case("a length of 4 GB", binary(b"\xff\xff\xff\xffcat", 7), INVALID)
    yield Case("a part of a length", binary(b"\x03\0", 2), INVALID)
    yield Case("nothing", binary(b"", 0), INVALID)
    yield Case("a size past the end", binary(b"\x03\0\0\0cat", 8), INVALID)
    yield Case("a negative size", binary(b"\x03\0\0\0cat", -7), INVALID)
    yield Case("a larger body", binary(b"\x03\0\0\0catxx", 7), INVALID)
    yield Case("elements that are not UTF-8", binary(b"\x03\0\0\0\xff\xff\xff", 7), INVALID)
    yield Case("400,000 empty elements", binary(bytes(1_600_000), 1_600_000, 400_000), INVALID)
    yield Case("400,000 elements for one", binary(bytes(1_600_000), 1_600_000), INVALID)
    for length in ("1000", "-1", "x", "9" * 5000, "3", "0", "\xb2", "1 1", ""):
        yield Case(f"header length {length[:9]}", binary(b"\x03\0\0\0cat", 7, length=length or " "), INVALID)


def _urls(address: str) -> Iterator[Case]:
    port = address.rpartition(":")[2]
    urls = [f"http://{address}/x.mp4", f"https://{address}/x.mp4", f"rtmp://{address}/x", f"tcp://{address}"]
    urls += [f"http://[::1]:{port}/x.mp4", f"http://2130706433:{port}/", "http://169.254.169.254/latest/meta-data/"]
    urls += [
        "file:///etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "../../../etc/passwd",
        "data:video/mp4;base64,AA==",
    ]
    urls += ["concat:/etc/passwd|/etc/passwd", "subfile,,start,0,end,9,,:/etc/passwd", f"crypto:http://{address}/x"]
    for url in urls:
        encoded = base64.b64encode(url.encode()).decode()
        yield Case(f"clip {url}", form(FORM, ("data", url.encode())), INVALID)
        yield Case(f"clip by OIP {url}", as_json(INFER, infer_body({"video": [url]})), INVALID)
        yield Case(f"encoded {url}", as_json(INFER, infer_body({"audio": [encoded]})), INVALID)
        yield Case(f"model {url}", as_json(EMBED, {"input": "a", "model": url}), {404})
        yield Case(f"text {url}", as_json("/search", {"text": url}), {200})
