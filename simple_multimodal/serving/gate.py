"""What every request passes first: token, limits, time to send its body, a client that leaves, and the log."""

import asyncio
import contextlib
import hmac
import json
import logging
import re
import secrets
import time
import traceback
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simple_multimodal.serving.refusals import Refused, refusal_of
from simple_multimodal.serving.service import Service

events = logging.getLogger(f"{__name__}.events")
"""Logger of lines that are JSON."""

OPEN_ROUTES = {"/v2/health/live", "/v2/health/ready"}
"""Routes without a token: a probe has none."""

REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
CLIENT_LEFT = 499  # in the log only; the status that nginx writes


class Gate:
    """
    ASGI middleware that admits requests.

    Args:
        app (`ASGIApp`): The application.
        service ([`Service`]): The service.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.service)
        try:
            exchange.check_token()
            num_bytes = exchange.check_body()
            with contextlib.nullcontext() if num_bytes is None else self.service.admitted(num_bytes):
                await exchange.run(self.app)
        except Exception as error:
            refused = refusal_of(error)
            if refused.status in (500, 503) and refused is not error:
                log_error(exchange.request_id, error)
            await exchange.refuse(refused)
        finally:
            exchange.log()


class _Exchange:
    """A request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: Service):
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.service = service
        self.status = 0
        self.num_received = 0
        self.begin = time.monotonic()
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self._receive = receive
        self._send = send
        self._is_received = asyncio.Event()

    def check_token(self) -> None:
        """Refuse a request without the token, except on the routes for probes."""
        token = self.service.token
        if token is None or self.scope["path"] in OPEN_ROUTES:
            return
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip(" ").encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise Refused(401)

    def check_body(self) -> int | None:
        """Return the memory to set aside for the body, in bytes; `None` if there is none, as of a GET."""
        largest = self.service.limits.body_bytes
        length = self.headers.get("content-length")
        is_chunked = "transfer-encoding" in self.headers
        if not is_chunked and length in (None, "0") and self.scope["method"] != "POST":
            return None
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Compressed bodies are not accepted; send the body without Content-Encoding.")
        num_bytes = largest if is_chunked else int(length or 0)  # the server has checked that it is a number
        if num_bytes > largest:
            raise Refused(413, f"The body is larger than {largest} bytes.")
        return num_bytes

    async def run(self, app: ASGIApp) -> None:
        """Run the application, until it has answered, the client has left, or takes too long to read the answer."""
        limits = self.service.limits
        patience = limits.send_seconds + limits.answer_seconds + limits.send_seconds
        work = asyncio.ensure_future(app(self.scope, self.receive, self.send))
        leaving = asyncio.ensure_future(self._client_leaves())
        try:
            await asyncio.wait({work, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.status = CLIENT_LEFT
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (work, leaving):
                task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    async def receive(self) -> Message:
        """Return the next part of the body, which must arrive in time and not be too large."""
        if self._is_received.is_set():
            return await asyncio.get_running_loop().create_future()  # until the client leaves, which ends this task
        limits = self.service.limits
        remaining = self.begin + limits.send_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(remaining, 0.0)):
                message = await self._receive()
        except TimeoutError as error:
            raise Refused(408) from error
        if message["type"] == "http.disconnect":
            self.status = CLIENT_LEFT
            raise asyncio.CancelledError
        self.num_received += len(message.get("body", b""))
        if self.num_received > limits.body_bytes:
            raise Refused(413, f"The body is larger than {limits.body_bytes} bytes.")
        if not message.get("more_body", False):
            self._is_received.set()
            self.service.metrics.stage_seconds.labels("receive").observe(time.monotonic() - self.begin)
        return message

    async def _client_leaves(self) -> None:
        await self._is_received.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            if self._has_unread_body():
                headers["Connection"] = "close"  # what is left of the body is not a request
        await self._send(message)

    def _has_unread_body(self) -> bool:
        has_body = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        return has_body and not self._is_received.is_set()

    async def refuse(self, refused: Refused) -> None:
        """Send a refusal, unless a response has begun or the client has left."""
        if self.status == 0:
            await refused.response()(self.scope, self._receive, self.send)

    def log(self) -> None:
        """Count the request, and write a line about it: neither what was sent nor its path, but its route."""
        seconds = time.monotonic() - self.begin
        route = self.scope.get("route")
        template = "none" if route is None else route.path
        self.service.metrics.requests.labels(template, str(self.status)).inc()
        self.service.metrics.request_seconds.labels(template).observe(seconds)
        log_event(
            "request",
            request_id=self.request_id,
            method=self.scope["method"] if self.scope["method"].isalpha() else "?",
            route=template,
            status=self.status,
            seconds=round(seconds, 4),
            bytes=self.num_received,
        )


def log_event(event: str, *, level: int = logging.INFO, **values: Any) -> None:
    """Log one line of JSON."""
    events.log(level, json.dumps({"time": round(time.time(), 3), "event": event, **values}))


def log_error(request_id: str, error: Exception) -> None:
    """Log an error by its type and place: its message may hold what a client sent."""
    places = [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_tb(error.__traceback__)]
    log_event("error", level=logging.ERROR, request_id=request_id, error=type(error).__name__, places=places[-8:])
