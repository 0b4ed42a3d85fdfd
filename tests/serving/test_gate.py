"""What is refused, with its status and reason, and what that leaves behind: nothing."""

import asyncio
import base64
import json
import logging
import math
import os
import resource
import signal
import weakref

import pytest

from simple_multimodal.serving.limits import ServingLimits
from tests.serving.asgi import Client, multipart, refused
from tests.serving.conftest import SMALL_LIMITS
from tests.serving.test_app import infer_body, model_held, run

TOKEN = "s3cret-Tøken"


def all_routes(app):
    """Return the path and method of each route, found in the table of the application."""
    return [(route.path, method) for route in app.routes for method in route.methods]


def test_every_route_but_two_needs_the_token(client, service, monkeypatch):
    from simple_multimodal.serving.app import create_app

    monkeypatch.setattr(service, "token", TOKEN)
    app = create_app(service)
    routes = [(path.replace("{model}", "clips").replace("{version}", "1"), method) for path, method in all_routes(app)]
    assert len(routes) == 17, routes
    routes += [("/docs", "GET"), ("/nothing", "GET"), ("/v2/health/live/", "GET"), ("/metrics", "HEAD")]
    routes += [("/metrics", "TRACE"), ("/search", "OPTIONS")]
    wrong = ["", "Bearer", "Bearer ", f"Basic {TOKEN}", "Bearer s3cret", f"Bearer {TOKEN}x", TOKEN, "Bearer \xff"]
    bare = Client(app)
    is_open = set()
    for path, method in routes:
        for header in wrong:
            answer = run(bare.send(method, path, headers={"authorization": header} if header else {}))
            if answer.status == 200:
                is_open.add(path)
            else:
                refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert is_open == {"/v2/health/live", "/v2/health/ready"}
    assert run(bare.get(f"/metrics?token={TOKEN}")).status == 401
    right = {"authorization": f"bearer {TOKEN}".encode().decode("latin-1")}
    assert run(bare.send("GET", "/metrics", headers=right)).status == 200
    assert run(bare.send("GET", "/nothing", headers=right)).status == 404


FORM = "/predictions/actions"
TEXT = ("text", "a cat")
CAT = {"text": ["cat"]}


def test_unknown_routes_models_and_methods(client, small):
    names = ["nothing", "..%2f..", "%2e%2e%2f", "../..", "\0", "x" * 4096, "actions/", "Actions"]
    for name in names:
        refused(run(client.form(f"/predictions/{name}", TEXT)), 404)
        refused(run(client.json(f"/v2/models/{name}/infer", infer_body(CAT))), 404)
    refused(run(client.json("/v2/models/clips/versions/2/infer", infer_body(CAT))), 404)
    refused(run(client.json("/v1/embeddings", {"input": "a", "model": "actions"})), 404)
    for path in ("/docs", "/redoc", "/", "/ping", "/search/"):
        refused(run(client.get(path)), 404)
    for method, path in (
        ("GET", "/search"),
        ("PUT", FORM),
        ("HEAD", "/metrics"),
        ("TRACE", "/v2"),
        ("OPTIONS", "/v2"),
    ):
        assert "allow" in run(client.send(method, path)).headers
        refused(run(client.send(method, path)), 405)


def test_a_model_without_an_index_cannot_be_searched(client, service, monkeypatch):
    monkeypatch.setattr(service.models["clips"], "index", None)
    assert "index" in refused(run(client.json("/search", {"text": "a"})), 404)


def test_bodies_at_the_limit(client, small):
    """With and without a length; a wrong length is found when the body exceeds the limit."""
    body, headers = multipart(("data", b"x" * (200_000 - len(multipart(("data", b""))[0]))))
    assert len(body) == 200_000
    pieces = [body[:150_000], body[150_000:]]
    refused(run(client.send("POST", FORM, body, headers)), 422)  # no clip
    refused(run(client.send("POST", FORM, pieces, headers)), 422)
    refused(run(client.send("POST", FORM, body + b"x", headers)), 413)
    answer = run(client.send("POST", FORM, [*pieces, b"x"], headers))
    refused(answer, 413)
    refused(run(client.send("POST", FORM, body + b"x", {**headers, "content-length": "10"})), 413)
    assert run(client.send("POST", FORM, body + b"x", headers)).headers["connection"] == "close"


def test_a_body_that_is_sent_too_slowly(client, small):
    body, headers = multipart(TEXT)
    pieces = [body[n : n + 1] for n in range(len(body))]
    refused(run(client.send("POST", FORM, pieces, headers, pause_seconds=0.05)), 408)


def test_overload(client, small):
    """Of six requests at once two are accepted, and the next one after them is answered."""

    async def flood():
        with model_held(small.models["actions"]) as go:
            asking = [asyncio.ensure_future(client.form(FORM, TEXT)) for _ in range(6)]
            done = 0
            while done < 4:
                await asyncio.sleep(0.001)
                done = sum(task.done() for task in asking)
            assert (await client.get("/v2/health/ready")).status == 200  # probes are answered
            go.set()
            return await asyncio.gather(*asking), await client.form(FORM, TEXT)

    answers, last = run(flood())
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429, 429, 429]
    for answer in answers:
        if answer.status == 429:
            refused(answer, 429)
    assert last.status == 200


def test_the_memory_of_bodies_is_limited(client, small, monkeypatch):
    """What has arrived of bodies without a length is counted, until they are answered: two of these fit."""
    monkeypatch.setattr(small, "limits", ServingLimits(**{**vars(SMALL_LIMITS), "max_requests": 100}))
    body, headers = multipart(TEXT)
    pieces = [b"\r\n" * 60_000, b"\r\n" * 30_000, body]  # line ends before the form are passed over

    async def flood():
        with model_held(small.models["actions"]) as go:
            asking = [asyncio.ensure_future(client.send("POST", FORM, pieces, headers)) for _ in range(4)]
            while sum(task.done() for task in asking) < 2:
                await asyncio.sleep(0.001)
            assert small.body_bytes == 2 * sum(map(len, pieces))
            late = await client.send("POST", FORM, body, {**headers, "content-length": "190000"})
            go.set()
            return await asyncio.gather(*asking), late

    answers, late = run(flood())
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429]
    refused(late, 429)  # by its length, before it is read
    assert small.body_bytes == 0


def test_clients_that_send_slowly_take_no_room(client, small, monkeypatch):
    """Bodies that may become as large as any, and have not arrived yet, together more than is allowed."""
    monkeypatch.setattr(small, "limits", ServingLimits(**{**vars(SMALL_LIMITS), "max_requests": 100}))
    body, headers = multipart(TEXT)

    async def ask():
        slowly = [
            asyncio.ensure_future(client.send("POST", FORM, [body[:9], b""], headers, pause_seconds=0.2))
            for _ in range(10)
        ]
        while small.body_bytes < 90 and not any(task.done() for task in slowly):
            await asyncio.sleep(0.001)
        honest = await client.form(FORM, TEXT)
        return honest, await asyncio.gather(*slowly)

    honest, slow = run(ask())
    assert honest.status == 200
    assert {answer.status for answer in slow} <= {408, 422}


def test_hosts_without_and_with_a_token(client, service, monkeypatch):
    """Without a token only names of this machine are accepted, so that no web site reads answers by DNS rebinding."""
    refused(run(client.get("/v2", Host="example.org:8000")), 421)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert run(client.get("/v2", Host=host)).status == 200
    monkeypatch.setattr(service, "token", TOKEN)
    right = f"Bearer {TOKEN}".encode().decode("latin-1")
    assert run(client.get("/v2", Host="example.org", authorization=right)).status == 200
    refused(run(client.get("/v2", Host="example.org")), 401)


def test_the_memory_of_clips_is_limited(client, service, files, monkeypatch):
    """Also of those that are read while others of their request are still to be read."""
    size = 100_000
    monkeypatch.setattr("simple_multimodal.serving.service.num_bytes", lambda batch: size)
    monkeypatch.setattr(service, "limits", ServingLimits(max_body_megabytes=0.2, max_waiting_megabytes=0.25))
    clips = [base64.b64encode(files[f"{n}.mp4"]).decode() for n in range(3)]

    async def flood():
        with model_held(service.models["actions"]) as go:
            asking = asyncio.ensure_future(client.form(FORM, ("data", files["0.mp4"])))
            while not service.clip_bytes:
                await asyncio.sleep(0.001)
            assert service.clip_bytes == size
            late = await client.json("/v2/models/actions/infer", infer_body({"video": clips[:2]}))
            go.set()
            return await asking, late, await client.json("/v2/models/actions/infer", infer_body({"video": clips}))

    accepted, late, large = run(flood())
    assert accepted.status == 200
    refused(late, 429)
    assert "send fewer" in refused(large, 413)


def test_an_answer_that_nobody_reads_ends(client, service, monkeypatch):
    monkeypatch.setattr(service, "limits", ServingLimits(answer_seconds=0.1, send_seconds=0.1))

    assert run(client.send("GET", "/v2/health/live", reads=False)) is None
    assert service.num_requests == 0


def test_a_client_that_leaves_is_not_computed(client, service, files):
    served = service.models["actions"]

    async def leave():
        before = served.batcher.waiting.num_cancelled, sum(served.batcher.batch_sizes.values())
        with model_held(served) as go:
            first = asyncio.ensure_future(client.form(FORM, TEXT))
            while served.batcher.waiting.num_waiting or sum(served.batcher.batch_sizes.values()) == before[1]:
                await asyncio.sleep(0.001)
            leaving = asyncio.Event()
            accepted = served.batcher.waiting.num_accepted
            gone = [asyncio.ensure_future(client.form(FORM, TEXT, leaves=leaving)) for _ in range(3)]
            stays = asyncio.ensure_future(client.form(FORM, ("text", "two dogs")))
            while served.batcher.waiting.num_accepted < accepted + 4:
                await asyncio.sleep(0.001)
            leaving.set()
            assert await asyncio.gather(*gone) == [None] * 3
            go.set()
            assert (await first).status == (await stays).status == 200
        after = served.batcher.waiting.num_cancelled, sum(served.batcher.batch_sizes.values())
        assert (after[0] - before[0], after[1] - before[1]) == (3, 2)

    run(leave())


def test_what_a_refused_request_held_is_let_go_of_before_the_next_one_runs(needs_serve, service):
    from simple_multimodal.serving.gate import Gate
    from simple_multimodal.serving.refusals import Refused

    class Content:
        pass

    held = []

    async def app(scope, receive, send):
        assert [own() for own in held if own() is not None] == []
        content = Content()
        held.append(weakref.ref(content))
        try:
            raise ValueError
        except ValueError as error:
            raise Refused(422) from error

    async def ask():
        client = Client(Gate(app, service))
        return await asyncio.gather(*(client.get("/") for _ in range(3)))

    assert [answer.status for answer in run(ask())] == [422] * 3 and len(held) == 3


def test_a_request_that_takes_too_long(client, service, monkeypatch):
    monkeypatch.setattr(service, "limits", ServingLimits(answer_seconds=0.1))

    async def wait():
        with model_held(service.models["actions"]):
            return await client.form(FORM, TEXT)

    refused(run(wait()), 504)


def test_errors_of_the_model_cost_their_own_request(client, service, caplog):
    """An error in a batch: its requests are tried apart. What was sent is not in the log."""
    served = service.models["actions"]
    original = served.batcher.run

    def fail(queries):
        if any(query.text == "secret words" for query in queries):
            raise MemoryError("secret words")
        return original(queries)

    async def ask():
        with model_held(served):
            accepted = served.batcher.waiting.num_accepted
            asking = [
                asyncio.ensure_future(client.form(FORM, ("text", text)))
                for text in ("a", "secret words", "a", "secret words", "b")
            ]
            while served.batcher.waiting.num_accepted < accepted + 5:
                await asyncio.sleep(0.001)
        return await asyncio.gather(*asking)

    served.batcher.run = fail
    try:
        with caplog.at_level(logging.INFO, "simple_multimodal.serving"):
            answers = run(ask())
    finally:
        served.batcher.run = original
    assert [answer.status for answer in answers] == [200, 500, 200, 500, 200]
    assert refused(answers[1], 500) == "The model, or reading the clip, failed; the log of the server says why."
    lines = [json.loads(record.message) for record in caplog.records if record.name.endswith("events")]
    assert [line["event"] for line in lines].count("error") == 2
    assert "secret" not in caplog.text and "MemoryError" in caplog.text


def test_the_log_has_the_route_and_an_id_but_nothing_of_the_client(client, service, caplog):
    with caplog.at_level(logging.INFO, "simple_multimodal.serving"):
        answer = run(client.form(f"{FORM}?q=secret", ("text", "secret")))
        run(client.send("secret", "/secret"))
        given = run(client.get("/v2/health/live", **{"X-Request-Id": "abc-1"}))
        forged = run(client.get("/v2/health/live", **{"X-Request-Id": 'a"\nb'}))
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["route"], line["status"]) for line in lines[:2]] == [("/predictions/{model}", 200), ("none", 404)]
    assert lines[0]["request_id"] == answer.headers["x-request-id"]
    assert given.headers["x-request-id"] == lines[2]["request_id"] == "abc-1"
    assert len(forged.headers["x-request-id"]) == 16
    assert "secret" not in caplog.text
    assert "secret" not in run(client.get("/metrics")).body.decode()


def test_a_full_disk(client, service, monkeypatch):
    monkeypatch.setattr(service.uploads, "path", service.uploads.path / "missing")
    refused(run(client.form(FORM, ("data", b"x"))), 503)


def test_a_disk_that_fills_up(client, service):
    """Files of this process may not become larger for a while."""
    large = b"x" * 500_000
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, sizes[1]))
    try:
        refused(run(client.form(FORM, ("data", large))), 503)
        body = infer_body({"video": [base64.b64encode(large).decode()]})
        refused(run(client.json("/v2/models/clips/infer", body)), 503)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    assert not os.listdir(service.uploads.path)


def test_uploads_are_private_and_removed(client, service, files):
    path = service.uploads.path
    assert path.stat().st_mode & 0o777 == 0o700

    async def look():
        with model_held(service.models["actions"]) as go:
            asking = asyncio.ensure_future(client.form(FORM, ("data", files["0.mp4"])))
            while not (found := list(path.iterdir())):
                await asyncio.sleep(0.001)
            go.set()
            assert (await asking).status == 200
            return found

    (file,) = run(look())
    assert "clip" not in file.name and len(file.name) == 32
    assert not os.listdir(path)


def test_folders_of_servers_that_have_ended_are_removed(needs_serve, tmp_path):
    from simple_multimodal.errors import InputError
    from simple_multimodal.serving.uploads import UploadFolder

    (tmp_path / "server-left").mkdir()
    (tmp_path / "server-left/clip").touch()
    (tmp_path / "other").touch()
    first, second = UploadFolder(tmp_path), UploadFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"other", first.path.name, second.path.name}
    first.close()
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "link").symlink_to(tmp_path)
    for wrong in (tmp_path / "other", tmp_path / "link"):
        with pytest.raises(InputError, match="`upload_dir="):
            UploadFolder(wrong)


def test_what_clients_are_told_about_errors(needs_serve):
    """Nothing of errors that are not the client's."""
    from simple_multimodal.errors import InputError
    from simple_multimodal.serving.reading import ClipError, ReaderLostError
    from simple_multimodal.serving.refusals import STATUSES, Refused, refusal_of
    from simple_multimodal.serving.waiting import ClosedError, DeadlineError, QueueFullError

    for error, status in (
        (ClipError("why"), 422),
        (InputError("why"), 422),
        (QueueFullError("/why"), 429),
        (DeadlineError("/why"), 504),
        (TimeoutError("/why"), 504),
        (ClosedError("/why"), 503),
        (ReaderLostError("/why"), 503),
        (OSError(28, "No space left on device", "/why"), 503),
        (RuntimeError("/why"), 500),
        (Refused(404, "why"), 404),
    ):
        told = refusal_of(error)
        assert told.status == status
        assert str(told) == ("why" if status in (404, 422) else STATUSES[status])
        assert ("Retry-After" in told.headers) == (status in (429, 503))


def test_a_killed_reading_process_is_replaced(client, service, files):
    """While it is stopped, before it has the clip: nothing is lost."""
    readers = service.models["actions"].readers

    async def kill():
        (pid,) = readers.pids
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(client.form(FORM, ("data", files["0.mp4"])))
        while readers.waiting.num_waiting or not service.num_requests:
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return await asking

    before = readers.num_restarts
    assert run(kill()).status == 200
    assert readers.num_restarts == before + 1


def test_numbers_that_are_not_finite_are_an_error_and_not_invalid_json(needs_serve):
    from simple_multimodal.serving.refusals import JsonResponse

    assert json.loads(JsonResponse({"label": "NaN", "score": 0.1}).body) == {"label": "NaN", "score": 0.1}
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            JsonResponse([{"score": number}])
