"""A client of an ASGI application, in the same process, which may send slowly or leave."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

LIMIT_SECONDS = 60.0
BOUNDARY = "a1b2c3"


class Answer(NamedTuple):
    """What the application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def multipart(*parts: tuple[str, str | bytes]) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a form. Values that are bytes are files."""
    lines: list[bytes] = []
    for name, value in parts:
        file = '; filename="../clip.mp4"' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode()
        lines += [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode(), content]
        lines.append(b"\r\n")
    return b"".join([*lines, f"--{BOUNDARY}--\r\n".encode()]), {
        "content-type": f"multipart/form-data; boundary={BOUNDARY}"
    }


def refused(answer: Answer, status: int) -> str:
    """Check that an answer is a refusal, and return its reason, which holds no path."""
    assert answer.status == status, (answer.status, answer.body)
    assert set(answer.json) == {"error"} and answer.headers["x-request-id"]
    assert "/" not in answer.json["error"].replace("multipart/form-data", "").replace("application/", "")
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    return answer.json["error"]


class Client:
    """
    Client of an application.

    Args:
        app: ASGI application.
        headers (`dict[str, str]`, *optional*): Headers of every request.
    """

    def __init__(self, app, headers: dict[str, str] | None = None):
        self.app = app
        self.headers = headers or {}

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        pause_seconds: float = 0.0,
        leaves: asyncio.Event | None = None,
        reads: bool = True,
    ) -> Answer | None:
        """Send a request and return the answer; `None` to a client that has left. A body in pieces has no length; a
        pause follows each piece.
        """
        pieces = [body or b""] if body is None or isinstance(body, bytes) else list(body)
        sent = {**self.headers, **(headers or {})}
        if isinstance(body, bytes):
            sent = {"content-length": str(len(body)), **sent}
        elif body is not None:
            sent = {"transfer-encoding": "chunked", **sent}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1),
        }
        answer: dict[str, Any] = {"status": 0, "headers": [], "body": b""}
        left, ended = leaves or asyncio.Event(), asyncio.Event()
        remaining = iter([*((piece, True) for piece in pieces[:-1]), (pieces[-1], False)])

        async def receive():
            for piece, more in remaining:
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
                return {"type": "http.request", "body": piece, "more_body": more}
            waits = [asyncio.ensure_future(event.wait()) for event in (left, ended)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()
            return {"type": "http.disconnect"}

        async def send(message):
            if not reads:
                await ended.wait()
            if message["type"] == "http.response.start":
                answer["status"], answer["headers"] = message["status"], message.get("headers", [])
            else:
                answer["body"] += message.get("body", b"")
                if not message.get("more_body", False):
                    ended.set()

        await asyncio.wait_for(self.app(scope, receive, send), LIMIT_SECONDS)
        if answer["status"] == 0:
            return None
        return Answer(
            answer["status"],
            {name.decode().lower(): value.decode() for name, value in answer["headers"]},
            answer["body"],
        )

    async def get(self, path: str, **headers: str) -> Answer:
        """Send a GET."""
        return await self.send("GET", path, headers=headers)  # type: ignore[return-value]

    async def form(self, path: str, *parts: tuple[str, str | bytes], **options: Any) -> Answer:
        """Send a multipart form."""
        body, headers = multipart(*parts)
        return await self.send("POST", path, body, headers, **options)  # type: ignore[return-value]

    async def json(self, path: str, value: Any, **options: Any) -> Answer:
        """Send JSON; bytes are sent as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.send("POST", path, body, {"content-type": "application/json"}, **options)  # type: ignore
