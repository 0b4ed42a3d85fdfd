"""Clients of a server under test, which record what becomes of every request, and their requests."""

import asyncio
import base64
import collections
import json
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving import BOUNDARY, post


@dataclass
class Answer:
    """What became of a request: a status, or `refused` (no connection), `left` (by the client) or `lost`."""

    status: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    begin: float = 0.0
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A client with one connection, which it keeps as long as the server allows it."""

    def __init__(self, port: int):
        self.port = port
        self.streams: Any = None

    async def ask(self, request: bytes, *, leaves_after: float | None = None) -> Answer:
        """Send a request, and return the answer; after some seconds, leave instead."""
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(leaves_after):
                answer = await self._answer(request)
        except TimeoutError:
            answer = Answer("left")
        except (OSError, EOFError):
            answer = Answer("refused" if self.streams is None else "lost")
        if not answer.status.isdigit() or answer.headers.get("connection") == "close":
            self.close()
        answer.begin, answer.seconds = begin, time.perf_counter() - begin
        return answer

    async def _answer(self, request: bytes) -> Answer:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        return Answer(first.split(" ")[1], body, headers)

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].transport.abort()
        self.streams = None


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def form(path: str, *parts: tuple[str, Any]) -> bytes:
    """Return a multipart request; values that are bytes are files."""
    body = b""
    for name, value in parts:
        file = '; filename="clip"' if isinstance(value, bytes) else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else str(value).encode()) + b"\r\n"
    return post(path, f"multipart/form-data; boundary={BOUNDARY}", body + f"--{BOUNDARY}--\r\n".encode())


def send_json(path: str, value: Any) -> bytes:
    return post(path, "application/json", json.dumps(value).encode())


def infer(model: str, *, binary: bool = False, **inputs: list[Any]) -> bytes:
    """Return a request of the Open Inference Protocol; values that are bytes are files."""
    tensors, tail = [], b""
    for name, values in inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
        if binary:
            encoded = [value if isinstance(value, bytes) else value.encode() for value in values]
            data = b"".join(struct.pack("<I", len(value)) + value for value in encoded)
            tensor["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            tensor["data"] = [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in values]
        tensors.append(tensor)
    path, head = f"/v2/models/{model}/infer", json.dumps({"inputs": tensors}).encode()
    kind = (
        f"application/octet-stream\r\nInference-Header-Content-Length: {len(head)}" if binary else "application/json"
    )
    return post(path, kind, head + tail)


async def load(
    port: int,
    requests: Iterable[Any],
    num_clients: int,
    *,
    request_of: Callable[[Any], bytes] = lambda request: request,
    keeps: bool = True,
    leaves: Callable[[], float | None] | None = None,
) -> list[tuple[Any, Answer]]:
    """Return the answers to requests that clients share, each sending one after the other until all connections are
    refused. Without `keeps`, every request has a connection of its own."""
    shared, found = iter(requests), []

    async def run() -> None:
        client = Client(port)
        for request in shared:
            found.append(
                (request, await client.ask(request_of(request), leaves_after=None if leaves is None else leaves()))
            )
            if not keeps:
                client.close()
            if found[-1][1].status == "refused":
                break
        client.close()

    await asyncio.gather(*(run() for _ in range(num_clients)))
    return found


def counts(answers: Iterable[Answer]) -> dict[str, int]:
    return dict(sorted(collections.Counter(answer.status for answer in answers).items()))


async def metrics(port: int) -> dict[str, float]:
    """Return the server's measurements by name and labels."""
    client = Client(port)
    lines = (await client.ask(get("/metrics"))).body.decode().splitlines()
    client.close()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
