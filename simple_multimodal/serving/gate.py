"""What every request passes first: token, limits, time to send its body, a client that leaves, and the log."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
import traceback
from http import HTTPMethod
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simple_multimodal.serving.refusals import Refused, refusal_of
from simple_multimodal.serving.service import Service

events = logging.getLogger(f"{__name__}.events")
"""Logger of lines that are JSON."""

OPEN_ROUTES = {"/v2/health/live", "/v2/health/ready"}
"""Routes without a token: a probe has none."""

REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
DISCARD_SECONDS = 1.0  # to wait for a further part of a body that is refused
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
            exchange.check_host()
            exchange.check_token()
            num_bytes = exchange.check_body()
            with contextlib.nullcontext() if num_bytes is None else self.service.admitted(num_bytes):
                await exchange.run(self.app)
        except Refused as refused:
            _forget_frames(refused)
            await exchange.refuse(refused)
        finally:
            self.service.body_bytes -= exchange.num_received
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
        self._time: asyncio.Timeout
        self._leaving: asyncio.Future | None = None  # from the end of the body on

    def check_host(self) -> None:
        """
        Refuse a request to another host than this machine if clients need no token. A browser on this machine sends
        it for a web site whose name resolves to this machine (DNS rebinding), and lets the site read the answer.
        """
        host = self.headers.get("host")  # which every browser sends
        if self.service.token is None and host is not None and not _is_loopback(host):
            raise Refused(421)

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
        if is_chunked and length is not None:  # a proxy may take another part of it for the next request
            raise Refused(422, "A request has either Content-Length or Transfer-Encoding, not both.")
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
        try:
            async with asyncio.timeout(patience) as self._time:
                try:
                    await app(self.scope, self.receive, self.send)
                except Exception as error:
                    refused = refusal_of(error)
                    if refused.status in (500, 503) and refused is not error:
                        log_error(self.request_id, error)
                    _forget_frames(error)  # what the request held is let go of before another one runs
                    raise refused from None
        except TimeoutError:
            self.status = CLIENT_LEFT
        finally:
            if self._leaving is not None:
                self._leaving.cancel()

    async def receive(self) -> Message:
        """Return the next part of the body, which must arrive in time and not be too large."""
        if self._leaving is not None:
            return await asyncio.get_running_loop().create_future()  # until the client leaves, which ends this request
        limits = self.service.limits
        remaining = self.begin + limits.send_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(remaining, 0.0)):
                message = await self._receive()
        except TimeoutError as error:
            raise Refused(408) from error
        if message["type"] == "http.disconnect":
            self._end()
            return await asyncio.get_running_loop().create_future()
        if not message.get("more_body", False):
            self._leaving = asyncio.ensure_future(self._client_leaves())
            self.service.metrics.stage_seconds.labels("receive").observe(time.monotonic() - self.begin)
        num_bytes = len(message.get("body", b""))
        if self.num_received + num_bytes > limits.body_bytes:
            raise Refused(413, f"The body is larger than {limits.body_bytes} bytes.")
        self.service.set_body_aside(num_bytes)
        self.num_received += num_bytes
        return message

    async def _client_leaves(self) -> None:
        """Wait until the client leaves, and end the request then."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        if not self._time.expired():
            self._time.reschedule(0.0)

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            if self._has_unread_body() or self.service.is_draining:
                # What is left of the body is not a request; and a next request would find the connection closed.
                headers["Connection"] = "close"
        elif not message.get("more_body", False) and self._has_unread_body():
            await self._send({**message, "more_body": True})
            await self._discard_body()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _discard_body(self) -> None:
        """
        Receive what is left of the body after the answer was sent, as if it were accepted. Many clients send all of it
        before they read: closed at once, the connection would be reset, and they would never see the answer.
        """
        limits = self.service.limits
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            while num_bytes <= 2 * limits.body_bytes:  # others are far from what is accepted
                remaining = self.begin + limits.send_seconds - time.monotonic()
                async with asyncio.timeout(min(max(remaining, 0.0), DISCARD_SECONDS)):
                    message = await self._receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):  # the end, or the client has left
                    return

    def _has_unread_body(self) -> bool:
        has_body = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        return has_body and self._leaving is None

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
            method=self.scope["method"] if self.scope["method"] in HTTPMethod.__members__ else "?",
            route=template,
            status=self.status,
            seconds=round(seconds, 4),
            bytes=self.num_received,
        )


def _is_loopback(host: str) -> bool:
    """Return whether the value of a `Host` header names this machine, whatever the port."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port  # an error if it is not a number
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def log_event(event: str, *, level: int = logging.INFO, **values: Any) -> None:
    """Log one line of JSON."""
    events.log(level, json.dumps({"time": round(time.time(), 3), "event": event, **values}))


def log_error(request_id: str, error: Exception) -> None:
    """Log an error by its type and place: its message may hold what a client sent."""
    places = [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_tb(error.__traceback__)]
    log_event("error", level=logging.ERROR, request_id=request_id, error=type(error).__name__, places=places[-8:])


def _forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an error: in a cycle with it, they keep the body of the request and its clips until
    garbage is collected."""
    errors: list[BaseException | None] = [error]
    while errors:
        if (one := errors.pop()) is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            errors += [one.__cause__, one.__context__]
