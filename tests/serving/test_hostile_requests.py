"""Hostile input over connections: each is refused for a reason, nothing is left behind, and others are answered."""

import asyncio
import contextlib
import json
import os
import socket
import sys

import pytest

from simple_multimodal.serving.limits import ServingLimits
from tests.faults.hostile import Listener
from tests.serving.asgi import Answer
from tests.serving.hostile_requests import CLOSED, FORM, NOT_HTTP, TEXT, Case, form, hostile_requests
from tests.serving.test_server import LIMIT_SECONDS, served  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs processes that may crash")
CONCURRENT = 16
LIMITS = ServingLimits(max_body_megabytes=2.0, send_seconds=3.0, header_seconds=3.0)


async def exchange(port: int, data: bytes) -> Answer:
    """Send bytes on a connection of its own and return what comes back; the status is `CLOSED` if nothing does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send():
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()

    sending = asyncio.ensure_future(send())
    content = b""
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(65536):
                    content += piece
    finally:
        sending.cancel()
        writer.close()
    if not content:
        return Answer(CLOSED, {}, b"")
    head, _, body = content.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]), headers, body[: int(headers.get("content-length", len(body)))])


def problem_of(case: Case, answer: Answer) -> str | None:
    """Return what is wrong with an answer, if anything is."""
    if answer.status not in case.statuses:
        return f"{answer.status} {answer.body[:200]!r}, not {sorted(case.statuses)}"
    if answer.status in (CLOSED, 200) or NOT_HTTP == {answer.status}:
        return None
    if b"HEAD " == case.data[:5]:
        return None if answer.body == b"" else "a body"
    reason = json.loads(answer.body)["error"]
    told = reason
    for known in ("multipart/form-data", "application/", "Input/output error"):
        told = told.replace(known, "")
    if not reason or "/" in told or "\\" in told or len(reason) > 300:
        return f"reason {reason!r}"
    return None


async def ask_all(port: int, cases: list[Case]) -> str:
    """Send all cases, some at once, each followed by an honest request; return what is wrong, in lines."""
    room = asyncio.Semaphore(CONCURRENT)

    async def ask(case):
        async with room:
            answer = await exchange(port, case.data)
            honest = await exchange(port, form(FORM, TEXT))
        problem = problem_of(case, answer)
        return problem or (f"then {honest.status} {honest.body[:200]!r}" if honest.status != 200 else None)

    problems = await asyncio.gather(*map(ask, cases))
    return "\n".join(f"{case.name}: {problem}" for case, problem in zip(cases, problems, strict=True) if problem)


def test_hostile_requests(served, service, monkeypatch, index_dir, caplog):  # noqa: F811
    monkeypatch.setattr(service, "limits", LIMITS)
    listener = Listener()
    cases = list(hostile_requests(f"127.0.0.1:{listener.port}", service.limits.body_bytes))
    readers = [model.readers for model in service.models.values()]
    before = [own.pids for own in readers], sorted(index_dir.rglob("*"))
    connect, connected = socket.socket.connect, []
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, address: connected.append(address) or connect(self, address)
    )

    async def client(server, port):
        assert await ask_all(port, cases) == ""
        assert set(connected) == {("127.0.0.1", port)}  # by the clients of this test

    served(client)
    assert listener.connections == 0
    assert ([own.pids for own in readers], sorted(index_dir.rglob("*"))) == before
    assert not os.listdir(service.uploads.path)
    assert (service.num_requests, service.body_bytes, service.clip_bytes) == (0, 0, 0)
    assert len({case.name for case in cases}) == len(cases) >= 200


def test_clients_that_leave_at_any_byte_leave_nothing_behind(served, service, files):  # noqa: F811
    """Within the header, within the body, and while their clip is read or in a batch."""
    data = form(FORM, ("data", files["1.mp4"]), TEXT)
    places = [
        *range(0, len(data), len(data) // 40),
        *(len(data) - number for number in (1, 2, 10, 60)),
        *[len(data)] * 5,
    ]

    async def leave(port, place, pause_seconds):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data[:place])
        await writer.drain()
        await asyncio.sleep(pause_seconds)
        writer.transport.abort() if place % 2 else writer.close()

    async def client(server, port):
        leaving = [leave(port, place, number % 5 / 50) for number, place in enumerate(places)]
        honest = [exchange(port, data) for _ in range(5)]
        _, answers = await asyncio.gather(asyncio.gather(*leaving), asyncio.gather(*honest))
        assert {answer.status for answer in answers} == {200}
        while server.server_state.connections or service.num_requests or os.listdir(service.uploads.path):
            await asyncio.sleep(0.01)

    served(client)
    assert (service.body_bytes, service.clip_bytes) == (0, 0)
