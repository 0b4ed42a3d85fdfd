"""Hostile input to `simple-multimodal serve` in a process of its own: all of the corpus, and slow connections."""

import asyncio
import base64
import itertools
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.corpus import _media
from tests.faults.hostile import Listener
from tests.serving.asgi import refused
from tests.serving.hostile_requests import CLOSED, FORM, INFER, TEXT, Case, as_json, form, hostile_requests, request
from tests.serving.test_app import infer_body
from tests.serving.test_hostile_requests import LIMITS, ask_all, exchange
from tests.serving.test_server import LIMIT_SECONDS, Process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs processes that may crash, and reads /proc"),
]
LONG = {"media/frames_20000.mp4", "media/silence_13_minutes_8_channels.flac"}  # but readable
STATUSES = {"reads": {200}, "refused": {422}, "either": {200, 422}}
MAX_GROWTH_MEGABYTES = 1000.0  # of all processes, of which two begin to decode clips: far from the limit for one clip
FLAGS = ("--max_body_megabytes", "2", "--send_seconds", "4", "--header_seconds", "3")


class Watcher:
    """
    Looks at a server and its processes again and again.

    Attributes:
        megabytes (`float`): Largest resident memory of all of them together, without pages that they share.
        peers (`set[str]`): Addresses that they have connected to, as far as they were connected at that time.
        pids (`set[int]`): All process ids.
    """

    def __init__(self, pid: int, port: int):
        self.pid = pid
        self.port = port
        self.megabytes = 0.0
        self.peers: set[str] = set()
        self.pids: set[int] = set()
        self._stops = threading.Event()

    @contextmanager
    def watching(self):
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._stops.set()
            thread.join()

    def tree(self, pid: int | None = None, *, depth: int = 10) -> list[int]:
        """Return the process ids of a process and of those below it, down to a depth."""
        pid = pid or self.pid
        if not depth:
            return [pid]
        try:
            lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
        except OSError:
            return []
        return [pid, *(own for child in " ".join(lists).split() for own in self.tree(int(child), depth=depth - 1))]

    def look(self) -> float:
        """Return the memory now, in MB, and note connections."""
        kilobytes, sockets = 0, set()
        for pid in (tree := self.tree()):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
                sockets |= {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
            except OSError:  # it has ended, or the file is closed
                pass
        self.pids |= set(tree)
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, peer, *_ = fields = line.split()
                own = int(local.rpartition(":")[2], 16) == self.port
                if f"socket:[{fields[9]}]" in sockets and not own:
                    self.peers.add(f"{table} {peer}")
        return kilobytes / 1000

    def _watch(self) -> None:
        while not self._stops.wait(0.05):
            self.megabytes = max(self.megabytes, self.look())


@pytest.fixture
def serving(needs_serve, models, index, tmp_path, monkeypatch):
    """Return a function that starts a server; in the end it must stop with exit code 0, and have left no file."""
    monkeypatch.setenv("SIMPLE_MULTIMODAL_INDEX_DIR", str(tmp_path / "index"))
    started = []

    def start(*argv, token=None):
        folders = [str(models / name) for name in ("actions", "questions", "clips")]
        places = ["--index", str(index), "--upload_dir", str(tmp_path / "uploads")]
        started.append(Process(tmp_path, *folders, *places, "--num_readers", "1", *argv, token=token))
        return started[0]

    yield start
    for server in started:
        server.process.send_signal(signal.SIGTERM)
        try:
            assert server.process.wait(LIMIT_SECONDS) == 0
        finally:
            server.process.kill()
            server.process.wait()
        assert not os.listdir(tmp_path / "uploads")
        assert not list((tmp_path / "index").rglob("*"))


def test_all_hostile_input(serving, shared_dir, tmp_path, capsys):
    """
    Each case as a request, among honest ones. The server and the processes that read clips stay the same; only their
    children, which open the files, may be replaced.
    """
    listener = Listener()
    address = f"127.0.0.1:{listener.port}"
    server = serving(*FLAGS, "--read_seconds", "10")
    cases = list(hostile_requests(address, LIMITS.body_bytes))
    clips = [(case.name, case.path, case.expected) for case in _media(tmp_path / "media", address, False)]
    damaged = [*(shared_dir / "data/media").rglob("*.*"), *(shared_dir / "data/reported").rglob("*.*")]
    clips += [(f"shared {path.relative_to(shared_dir)}", path, "either") for path in damaged]
    seen = set()
    for name, path, expected in clips:
        if path in seen or not path.is_file() or not 0 < path.stat().st_size < 1.4e6:
            continue
        seen.add(path)
        statuses = {422} if name in LONG else STATUSES[expected]
        content = path.read_bytes()
        cases.append(Case(name, form(FORM, ("data", content), TEXT), statuses))
        value = infer_body({"video": [base64.b64encode(content).decode()]})
        cases.append(Case(f"{name} by OIP", as_json(INFER, value), statuses))
    watcher = Watcher(server.process.pid, server.port)
    assert asyncio.run(ask_all(server.port, [Case("warm-up", form(FORM, TEXT), {200})] * 50)) == ""
    before, begin = watcher.look(), time.monotonic()
    fixed = set(watcher.tree(depth=2))  # not the children of those that read clips
    with watcher.watching():
        problems = asyncio.run(ask_all(server.port, cases))
    seconds, num_children = time.monotonic() - begin, len(watcher.pids - fixed)
    with capsys.disabled():
        print(f"\n{len(cases)} cases with {len(seen)} media in {seconds:.0f} s, {num_children} children opened files")
        print(f"{before:.0f} MB before, at most {watcher.megabytes:.0f} MB, {watcher.look():.0f} MB after")
    assert problems == ""
    assert len(fixed) > 4 and fixed <= set(watcher.tree())  # the server, that of processes, and one for each model
    assert num_children
    assert listener.connections == 0 and watcher.peers == set()
    assert watcher.megabytes < before + MAX_GROWTH_MEGABYTES
    assert not server.events().count("error")


async def drip(port: int, data: bytes, head: bytes = b"") -> int:
    """Send the beginning at once and the rest a byte a second; return the status of the answer, or `CLOSED`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)

    async def send():
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.sleep(1.0)

    sending = asyncio.ensure_future(send())
    try:
        answer = await asyncio.wait_for(reader.read(64), LIMIT_SECONDS)
    except ConnectionError:
        answer = b""
    finally:
        sending.cancel()
        writer.close()
    return int(answer[9:12]) if answer else CLOSED


def test_slow_and_idle_connections(serving, capsys):
    """200 that send a byte a second, and 1,000 that send nothing, more than a process may have files by default."""
    server = serving(*FLAGS)
    body = form(FORM, TEXT).partition(b"\r\n\r\n")[2]
    kind = {"Content-Type": "multipart/form-data; boundary=a1b2c3"}
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    kinds = {
        "header": (form(FORM, TEXT), b"", CLOSED),
        "body": (body, request(FORM, b"", {**kind, "Content-Length": str(len(body))}), 408),
        "large body": (body, request(FORM, b"", {**kind, "Content-Length": "2000000"}), 408),
        "chunks": (chunks, request(FORM, b"", {**kind, "Transfer-Encoding": "chunked"}), 408),
        "idle": (b"", b"", CLOSED),
    }
    stops = asyncio.Event()

    async def ask_on():
        times = []
        while not stops.is_set():
            begin = time.monotonic()
            assert (await exchange(server.port, form(FORM, TEXT))).status == 200
            times.append(time.monotonic() - begin)
            await asyncio.sleep(0.05)
        return times

    async def flood(names, count):
        stops.clear()
        honest = [asyncio.ensure_future(ask_on()) for _ in range(4)]
        chosen = [kinds[names[number % len(names)]] for number in range(count)]
        found = await asyncio.gather(*(drip(server.port, data, head) for data, head, _ in chosen))
        stops.set()
        times = sorted(time for own in await asyncio.gather(*honest) for time in own)
        with capsys.disabled():
            print(f"\n{count} {names}: {len(times)} honest answers, the median in {times[len(times) // 2]:.3f} s,")
            print(f"all within {times[-1]:.3f} s")
        assert found == [expected for _, _, expected in chosen]

    asyncio.run(flood(["header", "body", "large body", "chunks"], 200))
    asyncio.run(flood(["idle"], 1000))
    assert set(server.events()) == {"started", "request"}


def test_every_route_needs_the_token(serving):
    """Those of the description, and others, on connections; with a body that is never sent, too."""
    server = serving(token="s3cret")

    async def ask():
        right = {"Authorization": "Bearer s3cret"}
        described = (await exchange(server.port, request("/openapi.json", headers=right))).json["paths"]
        paths = [path.replace("{model}", "clips").replace("{version}", "1") for path in described]
        assert len(paths) > 10
        paths += ["/openapi.json", "/docs", "/redoc", "/", "/metrics?token=s3cret", "//v2/health/live"]
        wrong = (None, "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer", "Bearer \xff")
        asked = itertools.product(paths, ("GET", "POST", "HEAD", "OPTIONS", "TRACE", "PUT"), wrong)
        room = asyncio.Semaphore(50)

        async def is_open(path, method, value):
            headers = {"Host": "example.org", **({} if value is None else {"Authorization": value})}
            headers |= {"Content-Length": "60000000"} if method == "POST" else {}
            async with room:
                answer = await exchange(server.port, request(path, None, headers, method=method))
            if answer.status != 401:
                return path
            assert method == "HEAD" or refused(answer, 401)

        found = await asyncio.gather(*(is_open(*given) for given in asked))
        assert set(found) - {None} == {"/v2/health/live", "/v2/health/ready"}

    asyncio.run(ask())
