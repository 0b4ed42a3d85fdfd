"""A server on the loopback address: connections, signals, and what is lost by them: nothing."""

import asyncio
import contextlib
import functools
import gc
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simple_multimodal.errors import InputError
from simple_multimodal.tasks.retrieval.retriever import Retriever
from tests.serving.asgi import multipart
from tests.serving.models import assert_same_results, write_models
from tests.serving.test_app import TEXTS, model_held

LIMIT_SECONDS = 120.0
TOKEN = "s3cret"


async def raw(port, data, *, is_read=True):
    """Send bytes on a connection of its own, and return what comes back until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), LIMIT_SECONDS) if is_read else (reader, writer)
    finally:
        if is_read:
            writer.close()


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def post(path, *parts):
    body, headers = multipart(*parts)
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, f"Content-Type: {headers['content-type']}", "", ""]).encode() + body


@pytest.fixture
def served(service, monkeypatch):
    """Return a function that runs a coroutine of a server and its port; the server must then have ended."""
    from simple_multimodal.serving.limits import ServingLimits
    from simple_multimodal.serving.listening import open_socket
    from simple_multimodal.serving.server import Server

    monkeypatch.setattr(service, "limits", ServingLimits(header_seconds=0.5))

    def serve(client):
        async def both():
            server = Server(service, lambda: {}, drain_seconds=0.3)
            with open_socket("127.0.0.1", 0, has_token=False) as opened:
                port = opened.getsockname()[1]
                serving = asyncio.ensure_future(server.serve([opened]))
                while not server.started:
                    await asyncio.sleep(0.001)
                try:
                    await asyncio.wait_for(client(server, port), LIMIT_SECONDS)
                finally:
                    server.should_exit = True
                    await asyncio.wait_for(serving, LIMIT_SECONDS)

        asyncio.run(both())

    yield serve
    service.is_draining = False


def test_connections_without_a_whole_header_are_closed(served):
    """Idle, a byte a second, and within a second request; honest clients are answered meanwhile."""

    async def client(server, port):
        idle = asyncio.ensure_future(raw(port, b""))
        started = asyncio.ensure_future(raw(port, b"POST /search HTTP/1.1\r\nHost:"))
        keeps = get("/v2/health/live").replace(b"close", b"keep-alive")
        second = asyncio.ensure_future(raw(port, keeps + b"GET /v2/health"))
        reader, writer = await raw(port, b"", is_read=False)
        assert b'{"live":true}' in await raw(port, get("/v2/health/live"))
        while not reader.at_eof():
            writer.write(b"G")
            await asyncio.sleep(0.1)
            if server.server_state.connections == set():
                break
        assert await idle == await started == b""
        assert (await second).count(b"200 OK") == 1
        writer.close()

    served(client)


def test_connections_whose_client_does_not_read_are_closed(served, service, monkeypatch):
    """Also if the next request was answered, and waits for room to be sent."""
    from simple_multimodal.serving.limits import ServingLimits

    async def client(server, port):
        monkeypatch.setattr(service, "limits", ServingLimits(send_seconds=0.5, answer_seconds=0.5))
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", port))
            request = get("/openapi.json").replace(b"close", b"keep-alive")
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(deaf, request * 1000))
            while not server.server_state.connections:
                await asyncio.sleep(0.001)
            while server.server_state.connections:
                await asyncio.sleep(0.01)
            sending.cancel()
        assert b'{"live":true}' in await raw(port, get("/v2/health/live"))

    served(client)


def test_connections_with_short_requests_are_kept(served):
    """For longer than a header may take, though the connection is idle whenever it is looked at."""

    async def client(server, port):
        reader, writer = await raw(port, b"", is_read=False)
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            writer.write(get("/v2/health/live").replace(b"close", b"keep-alive"))
            assert b'{"live":true}' in await reader.readuntil(b"}")
            await asyncio.sleep(0.02)
        writer.close()

    served(client)


def test_a_refusal_reaches_a_client_that_sends_all_before_it_reads(served, service, monkeypatch):
    """More than the buffers of a connection hold: without a token, for another host, and too much."""
    from simple_multimodal.serving.limits import ServingLimits

    def ask(port, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)
        try:
            connection.request("POST", "/predictions/actions", bytes(30 * 10**6), headers)
            answer = connection.getresponse()
            assert json.loads(answer.read())["error"]
            return answer.status
        finally:
            connection.close()

    async def client(server, port):
        monkeypatch.setattr(service, "limits", ServingLimits(max_body_megabytes=20.0))
        assert await asyncio.to_thread(ask, port) == 413
        assert await asyncio.to_thread(ask, port, Host="example.org") == 421
        monkeypatch.setattr(service, "token", TOKEN)
        assert await asyncio.to_thread(ask, port) == 401

    served(client)


def test_as_many_open_files_as_the_system_allows(needs_serve):
    from simple_multimodal.serving.server import allow_open_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_small_answers_do_not_wait_for_an_acknowledgement(served):
    async def client(server, port):
        _, writer = await raw(port, b"G", is_read=False)
        while not server.server_state.connections:
            await asyncio.sleep(0.001)
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()

    served(client)


def test_broken_requests_are_refused_and_the_server_goes_on(served):
    async def client(server, port):
        both = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\n"
        header = b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000
        wrong = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"
        for data in (b"\0\1\2\r\n\r\n", both, wrong, header):
            answer = await raw(port, data)
            assert answer.startswith(b"HTTP/1.1 4") or answer == b"", answer
        large = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        answer = await raw(port, large)  # without waiting for its body
        assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()
        assert b"200 OK" in await raw(port, get("/v2"))

    served(client)


def test_a_client_that_closes_its_connection_is_not_computed(served, service):
    model = service.models["actions"]

    async def client(server, port):
        with model_held(model) as go:
            before, accepted = model.batcher.waiting.num_cancelled, model.batcher.waiting.num_accepted
            first = asyncio.ensure_future(raw(port, post("/predictions/actions", ("text", "a"))))
            while model.batcher.waiting.num_accepted == accepted or model.batcher.waiting.num_waiting:
                await asyncio.sleep(0.001)
            _, writer = await raw(port, post("/predictions/actions", ("text", "b")), is_read=False)
            while not model.batcher.waiting.num_waiting:
                await asyncio.sleep(0.001)
            writer.close()
            while model.batcher.waiting.num_waiting:
                await asyncio.sleep(0.001)
            assert model.batcher.waiting.num_cancelled == before + 1
            go.set()
            assert b"200 OK" in await first

    served(client)


def test_the_client_in_run_scripts(served, service, pipelines, clips, tmp_path, monkeypatch):
    """With a clip and a text, with an `info.json` and a token, and what it says if it is refused."""
    script = Path(__file__).parents[2] / "run_scripts/request.py"
    (tmp_path / "info.json").write_text(json.dumps({"script": "two dogs", "length": 3.0}))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setattr(service, "token", TOKEN)
    expected = pipelines["actions"]({"clip": str(clips / "1.mp4"), "text": "two dogs"})

    async def client(server, port):
        async def ask(*argv):
            url = f"http://127.0.0.1:{port}/predictions/actions"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(script), url, *argv, cwd=tmp_path, stdout=-1, stderr=-1
            )
            return [part.decode() for part in await process.communicate()], process.returncode

        token = ["--token_file", "token"]
        for text in (["--text", "two dogs"], ["--info", "info.json"]):
            (out, err), code = await ask(str(clips / "1.mp4"), *text, *token)
            assert code == 0, err
            assert json.loads(out) == json.loads((tmp_path / "response.txt").read_text())
            assert_same_results([json.loads(out)], expected)
        for argv, reason in ((["--text", "a"], "401 "), (token, "422 "), (["--text", "x" * 10_001, *token], "422 ")):
            (out, err), code = await ask(*argv)
            assert (code, out) == (1, "") and err.startswith(f"request.py: {reason}") and "error" in err
            assert not (tmp_path / "response.txt").exists()  # that of an earlier request
        (out, _), _ = await ask("--text", "a", *token, "--top_k", "1")
        assert len(json.loads(out)) == 1

    served(client)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["localhost:8000/predictions/a", "--text", "b"], "the URL begins with http://"),
        (["http://127.0.0.1:9/predictions/a", "absent.mp4"], "absent.mp4: No such file or directory"),
        (["http://127.0.0.1:9/predictions/a", "--info", "a.json"], 'a.json must hold {"script": "a text"} as JSON'),
        (["http://127.0.0.1:9/predictions/a", "--text", "b"], "Connection refused>; is the server running?"),
        (["http://127.0.0.1:9/predictions/a", "--text", "b", "--info", "a.json"], "not allowed with argument"),
    ],
)
def test_mistakes_of_clients_are_one_line(argv, message, tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a"}')
    script = str(Path(__file__).parents[2] / "run_scripts/request.py")
    done = subprocess.run([sys.executable, "-I", script, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2) and message in done.stderr.splitlines()[-1]


def test_at_the_first_signal_the_server_is_not_ready_but_answers(served, service):
    model = service.models["actions"]

    async def client(server, port):
        with model_held(model) as go:
            waiting = [asyncio.ensure_future(raw(port, post("/predictions/actions", ("text", "a")))) for _ in range(5)]
            while service.num_requests < 5:
                await asyncio.sleep(0.001)
            server.handle_exit(signal.SIGTERM, None)
            assert b"503" in (await raw(port, get("/v2/health/ready"))).splitlines()[0]
            assert b"200" in (await raw(port, get("/v2/health/live"))).splitlines()[0]
            waiting.append(asyncio.ensure_future(raw(port, post("/predictions/actions", ("text", "new")))))
            while service.num_requests < 6:
                await asyncio.sleep(0.001)
            while not server.should_exit:
                await asyncio.sleep(0.01)
            while True:
                try:
                    await raw(port, get("/v2/health/live"))
                except OSError:  # it accepts no connection any more
                    break
                await asyncio.sleep(0.01)
            go.set()
            assert all(b"200 OK" in answer for answer in await asyncio.gather(*waiting))
        assert not server._captured_signals  # none is raised again, which would be the exit code

    served(client)


def test_requests_on_their_way_are_answered_at_the_end(served, service):
    """On a connection that was not accepted when the socket was closed, and on one without a request until then."""

    async def client(server, port):
        loop = asyncio.get_running_loop()
        reader, writer = await raw(port, b"", is_read=False)
        while not server.server_state.connections:
            await asyncio.sleep(0.001)
        (listening,) = server.servers[0].sockets
        loop.remove_reader(listening.fileno())
        waiting = asyncio.ensure_future(raw(port, post("/predictions/actions", ("text", "a"))))
        await asyncio.sleep(0.05)
        assert len(server.server_state.connections) == 1
        service.is_draining = server.should_exit = True
        while listening.fileno() != -1:
            await asyncio.sleep(0.001)
        writer.write(post("/predictions/actions", ("text", "b")))
        assert b"200 OK" in await reader.read() and b"200 OK" in await waiting
        writer.close()

    served(client)


def test_connections_are_closed_by_the_answers_of_a_server_that_ends(served, service):
    async def client(server, port):
        keeps = get("/v2/health/live").replace(b"close", b"keep-alive")
        service.is_draining = True
        assert b"connection: close" in (await raw(port, keeps)).lower()

    served(client)


def test_the_address_is_printed_when_the_server_listens(served, models, capsys, monkeypatch):
    from simple_multimodal.cli import main

    async def client(server, port):
        assert capsys.readouterr().out == f"http://127.0.0.1:{port}\n"

    served(client)
    frozen, before = [], gc.get_freeze_count()
    monkeypatch.setattr("uvicorn.Server.run", lambda *args: frozen.append(gc.get_freeze_count()))
    assert main(["serve", str(models / "actions"), "--port", "0", "--num_readers", "1"]) == 0
    assert capsys.readouterr().out == ""
    assert frozen[0] > before  # garbage collection does not look through the model and the libraries


def test_a_refusal_reaches_a_client_that_still_sends_its_body(served):
    """Closing the connection before the body has been received resets it."""

    async def client(server, port):
        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)
            connection.request("POST", "/predictions/nothing", bytes(20_000_000))
            return connection.getresponse().status

        assert await asyncio.to_thread(ask) == 404

    served(client)


def test_a_second_signal_ends_at_once(served, service):
    async def client(server, port):
        server.drain_seconds = 1000.0
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.2)
        assert not server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit and server.force_exit

    served(client)


def test_a_failed_reload_keeps_the_models(served, service, caplog):
    models = dict(service.models)

    async def client(server, port):
        def fail():
            raise InputError("not a saved model")

        server.load = fail
        server.start_reload()
        await server._reloading
        assert service.models == models
        assert b"200 OK" in await raw(port, post("/predictions/actions", ("text", "a")))

    served(client)
    assert "not a saved model" in caplog.text


def test_addresses_and_tokens(needs_serve, tmp_path, monkeypatch):
    from simple_multimodal.serving.listening import TOKEN_VARIABLE, open_socket, read_token

    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        open_socket(host, 0, has_token=False).close()
    open_socket("0.0.0.0", 0, has_token=True).close()
    with pytest.raises(InputError, match="`host=0.0.0.0` can be reached from other machines"):
        open_socket("0.0.0.0", 0, has_token=False)
    with pytest.raises(InputError, match="is neither a name nor an address"):
        open_socket("not a host", 0, has_token=False)
    with open_socket("127.0.0.1", 0, has_token=False) as taken:
        taken.listen()
        with pytest.raises(InputError, match="is not available: Address already in use. Choose another one."):
            open_socket("127.0.0.1", taken.getsockname()[1], has_token=False)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from_environment")
    assert read_token(None) == "from_environment"
    assert TOKEN_VARIABLE not in os.environ  # processes that read clips do not see it
    file = tmp_path / "token"
    file.write_text(" from_file\n")
    assert read_token(file) == "from_file"
    for wrong in ("", " \n", "two words"):
        file.write_text(wrong)
        with pytest.raises(InputError, match="must be one word"):
            read_token(file)


class Process:
    """`simple-multimodal serve` in a process of its own."""

    def __init__(self, folder, *argv, token=TOKEN):
        self.log = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if token is not None:
            environment["SIMPLE_MULTIMODAL_TOKEN"] = token
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simple_multimodal", "serve", *argv, "--port", "0", "--drain_seconds", "0.5"],
                env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.port = int(self.process.stdout.readline().strip().rpartition(":")[2] or 0)
        assert self.port, self.log.read_text()
        self.wait_for("started")

    def events(self):
        lines = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]

    def wait_for(self, event, number=1):
        ends = time.monotonic() + LIMIT_SECONDS
        while self.events().count(event) < number:
            assert time.monotonic() < ends and self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    def ask(self, text):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        body, headers = multipart(("text", text), ("top_k", "4"))
        try:
            connection.request("POST", "/predictions/actions", body, {**headers, "Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def test_reload_and_end_under_load(needs_serve, models, processor, tmp_path):
    """SIGHUP twice and SIGTERM, while eight clients ask: every answer is of the old or of the new model."""
    from simple_multimodal.tasks.video_classification.classifier import VideoClassifier

    folder = tmp_path / "actions"
    os.symlink(models / "actions", folder)
    new = write_models(tmp_path / "new", processor, seed=1, names=["actions"]) / "actions"
    server = Process(tmp_path, str(folder), "--num_readers", "1", "--upload_dir", str(tmp_path / "uploads"))
    expected = [
        VideoClassifier.from_pretrained(path)([{"clip": {"video": None, "caption": text}} for text in TEXTS], top_k=4)
        for path in (models / "actions", new)
    ]
    assert [own[0]["score"] for own in expected[0]] != pytest.approx(
        [own[0]["score"] for own in expected[1]], abs=1e-3
    )
    stops = threading.Event()

    def ask_on(number):
        found = []
        while not stops.is_set():
            try:
                found.append((number % 3, *server.ask(TEXTS[number % 3])))
            except OSError:  # it does not accept any connections
                assert stops.wait(LIMIT_SECONDS)
        return found

    def model_of(number, results):
        for which, own in enumerate(expected):
            try:
                assert_same_results([results], [own[number]])
                return which
            except AssertionError:
                pass
        raise AssertionError(f"neither the old nor the new model: {results}")

    try:
        with ThreadPoolExecutor(8) as clients:
            asking = [clients.submit(ask_on, number) for number in range(8)]
            try:
                time.sleep(0.2)
                folder.unlink()
                os.symlink(new, folder)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for("reloaded", 1)
                status, results = server.ask(TEXTS[0])
                assert status == 200 and model_of(0, results) == 1
                server.process.send_signal(signal.SIGHUP)
                server.wait_for("reloaded", 2)
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(LIMIT_SECONDS) == 0
            finally:
                stops.set()
            found = [entry for own in asking for entry in own.result()]
    finally:
        server.process.kill()
        server.process.wait()
    assert {status for _, status, _ in found} == {200}
    assert {model_of(number, results) for number, _, results in found} == {0, 1}
    assert server.events()[-1] == "ended"
    assert not os.listdir(tmp_path / "uploads")
    assert TOKEN not in server.log.read_text() and "purrs" not in server.log.read_text()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["{models}/actions", "{models}/../{name}/actions"], "Two models are named actions."),
        (["{models}/actions", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["{models}/actions", "--port", "65536"], "--port must be from 0 to 65535"),
        (["{models}/actions", "--port", "-1"], "--port must be from 0 to 65535"),
        (["{models}/actions", "--drain_seconds", "-1"], "--drain_seconds must be 0 or more"),
        (["{models}/actions", "--num_readers", "0"], "--num_readers must be 1 or more"),
        (["{models}/actions", "--max_parts", "0"], "--max_parts must be positive"),
        (["{models}/actions", "--max_body_megabytes", "5000"], "--max_body_megabytes 5000 is more than"),
        (["{models}"], "is not a saved model"),
        (["{models}/nothing"], "no such folder"),
        (["{models}/actions", "--index", "{index}"], "--index needs a model that compares embeddings, and none"),
        (["{other}/clips", "--index", "{index}"], "was made with another model"),
        (["{models}/clips", "--index", "{models}"], "wrote: it has no index.json"),
        (["{models}/clips", "--upload_dir", "{index}/index.json"], "upload_dir"),
        (["{models}/clips", "--token_file", "{models}/actions/empty"], "must be one word"),
        (["{models}/clips", "--token_file", "{models}/nothing"], "no such file."),
    ],
)
def test_wrong_arguments(needs_serve, models, index, processor, tmp_path, capsys, monkeypatch, argv, reason):
    from simple_multimodal.cli import main

    monkeypatch.delenv("SIMPLE_MULTIMODAL_TOKEN", raising=False)
    monkeypatch.setattr("uvicorn.Server.run", lambda *args: pytest.fail("it serves"))
    (models / "actions/empty").touch()
    places = {"models": models, "name": models.name, "index": index, "other": tmp_path}
    if any("{other}" in token for token in argv):
        write_models(tmp_path, processor, seed=1, names=["clips"])
    argv = [token.format(**places) for token in argv]
    assert main(["serve", *argv, *([] if "--port" in argv else ["--port", "0"])]) == 2
    assert reason in capsys.readouterr().err


def test_mistakes_of_the_address_are_found_before_torch_is_imported(needs_serve, tmp_path):
    code = "import sys; from simple_multimodal.cli import main; code = main(sys.argv[1:])"
    argv = ["serve", str(tmp_path), "--host", "0.0.0.0"]
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules; sys.exit(code)", *argv],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr


def test_an_index_is_searched_by_the_model_that_made_it(needs_serve, models, index, processor, tmp_path):
    from simple_multimodal.serving.models import ServedModel, load_all
    from simple_multimodal.serving.refusals import Refused
    from simple_multimodal.serving.service import Service
    from simple_multimodal.serving.uploads import UploadFolder

    write_models(tmp_path / "further", processor, seed=1, names=["clips"])
    (tmp_path / "further/clips").rename(tmp_path / "other")
    folders = [str(tmp_path / "other"), str(models / "clips")]
    served = load_all(folders, str(index), functools.partial(ServedModel.load, num_readers=1))
    with contextlib.closing(Service(served, UploadFolder(tmp_path))) as service:
        assert [model.index is None for model in served.values()] == [True, False]
        assert service.only_model(Retriever, None, searches=True).name == "clips"
        assert service.only_model(Retriever, "other", searches=True).name == "other"
        with pytest.raises(Refused, match="Name one of the models other, clips"):
            service.only_model(Retriever, None)
    load = functools.partial(ServedModel.load, num_readers=1, precision="bf16")
    with pytest.raises(InputError, match="computed in fp32, but this model computes in bf16"):
        load_all(folders[::-1], str(index), load)  # the model that made it is asked, not the last one


def test_a_model_that_is_replaced_is_let_go_of_without_collecting_garbage(needs_serve, models, index):
    """What a server has loaded when it starts is never looked at by the garbage collector."""
    from simple_multimodal.serving.models import ServedModel, load_all

    gc.collect()
    gc.disable()
    try:
        folders = [str(models / name) for name in ("actions", "clips")]
        served = load_all(folders, str(index), functools.partial(ServedModel.load, num_readers=1))
        held = [weakref.ref(weight) for model in served.values() for weight in model.pipeline.model.parameters()]
        for model in served.values():
            asyncio.run(model.retire())
        del model, served
        assert [weight() for weight in held if weight() is not None] == []
    finally:
        gc.enable()


def test_without_the_extra(monkeypatch, capsys, tmp_path):
    from simple_multimodal.cli import main

    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'simple-multimodal[serve]'" in capsys.readouterr().err
