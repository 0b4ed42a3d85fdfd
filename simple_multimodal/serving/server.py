"""A server process: its log, and what signals do."""

import asyncio
import contextlib
import gc
import json
import logging
import math
import resource
import signal
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from simple_multimodal.errors import InputError
from simple_multimodal.serving.app import create_app
from simple_multimodal.serving.gate import events, log_event
from simple_multimodal.serving.models import ServedModel
from simple_multimodal.serving.service import Service

KEEP_ALIVE_SECONDS = 5
MAX_HEADER_BYTES = 2**14
ARRIVAL_SECONDS = 1.0  # from the end of accepting connections: requests on their way come
POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0  # after the longest request that is allowed


class Server(uvicorn.Server):
    """
    A server that is first not ready, and then closed, when it is told to end.

    The first SIGTERM or SIGINT makes it not ready, while it still answers. After `drain_seconds`, in which a load
    balancer has noticed, no connections are accepted, and what was accepted is answered. A second signal ends it at
    once. SIGHUP reloads the models.

    Args:
        service ([`Service`]): What answers the requests.
        load (`Callable`): Function that loads the models again.
        drain_seconds (`float`, *optional*, defaults to 5.0): Time between the signal and the end.

    Raises:
        ValueError: If `drain_seconds` is negative.
    """

    def __init__(self, service: Service, load: Callable[[], dict[str, ServedModel]], *, drain_seconds: float = 5.0):
        if not drain_seconds >= 0:
            raise InputError(f"`drain_seconds` must be 0 or more, got {drain_seconds}.")
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                create_app(service),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(limits.send_seconds + limits.answer_seconds + GRACE_SECONDS),
            )
        )
        self.service = service
        self.load = load
        self.drain_seconds = drain_seconds
        self._drained_at = float("inf")
        self._reloading: asyncio.Task | None = None
        self._reloads_again = False
        self._states: weakref.WeakKeyDictionary[Any, tuple[Any, float]] = weakref.WeakKeyDictionary()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and SIGHUP, and print the address."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.start_reload)
        for opened in sockets or []:
            address, number = opened.getsockname()[:2]
            print(f"http://{f'[{address}]' if ':' in address else address}:{number}", flush=True)
        log_event("started", models=list(self.service.models))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Become not ready, or at the second signal end. The signal is not raised again: the exit code is 0."""
        if self.service.is_draining:
            self.should_exit = self.force_exit = True
            return
        self.service.is_draining = True
        self._drained_at = time.monotonic() + self.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Close connections that send no header, and end when the time to drain is over; called every 0.1 seconds."""
        self._close_idle()
        if time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and answer the requests on those that clients have made."""
        waiting = [connection for opened in sockets or [] for connection in _accepted(opened)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)
        ends = time.monotonic() + ARRIVAL_SECONDS
        while not self.force_exit and time.monotonic() < ends and any(map(_is_idle, self.server_state.connections)):
            await asyncio.sleep(POLL_SECONDS)
        await super().shutdown(sockets)

    def _protocol(self) -> H11Protocol:
        return H11Protocol(self.config, self.server_state, self.lifespan.state)

    def _close_idle(self) -> None:
        """
        Close connections whose next header takes too long, or whose client does not read what was sent to it. The
        application sees neither.
        """
        now, limits = time.monotonic(), self.service.limits
        for connection in list(self.server_state.connections):
            assert isinstance(connection, H11Protocol)  # see the configuration
            cycle, num_unread = connection.cycle, connection.transport.get_write_buffer_size()
            is_answering = cycle is not None and not cycle.response_complete
            state = (cycle and weakref.ref(cycle), is_answering, num_unread)
            if self._states.get(connection, (None, now))[0] != state:
                self._states[connection] = state, now
            patience = limits.send_seconds if num_unread else math.inf if is_answering else limits.header_seconds
            if now - self._states[connection][1] > patience:
                connection.transport.abort()

    def start_reload(self) -> None:
        """Reload the models; if they are being reloaded, once more after that."""
        if self._reloading is not None and not self._reloading.done():
            self._reloads_again = True
            return
        self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        while True:
            self._reloads_again = False
            log_event("reload")
            try:
                await self.service.reload(self.load)
                log_event("reloaded", models=list(self.service.models))
            except Exception as error:  # the old models stay
                log_event("reload failed", level=logging.ERROR, error=f"{type(error).__name__}: {error}")
            if not self._reloads_again:
                return


def _is_idle(connection: Any) -> bool:
    """Return whether the server waits for a request on a connection."""
    return connection.cycle is None or connection.cycle.response_complete


def _accepted(opened: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that clients have made, and which closing the socket would reset."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield opened.accept()[0]


class JsonLines(logging.Formatter):
    """Formatter of one JSON object per line. Messages of [`log_event`] already are."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        message = record.getMessage()
        if record.name == events.name:
            return message
        values = {"time": round(record.created, 3), "event": "log", "level": record.levelname, "message": message}
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = record.exc_info[0].__name__
        return json.dumps({**values, "logger": record.name})


def allow_open_files() -> None:
    """Allow this process as many open files, and so connections, as the system lets it have: often far more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def log_as_json() -> None:
    """Write all log lines to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    events.setLevel(logging.INFO)


def run_server(
    service: Service,
    load: Callable[[], dict[str, ServedModel]],
    opened: socket.socket,
    *,
    drain_seconds: float = 5.0,
) -> None:
    """
    Serve until a signal ends it.

    Args:
        service ([`Service`]): What answers the requests; it is closed.
        load (`Callable`): Function that loads the models again.
        opened (`socket`): Socket that is bound.
        drain_seconds (`float`, *optional*, defaults to 5.0): As for [`Server`].
    """
    try:
        allow_open_files()
        gc.collect()
        gc.freeze()  # else collecting garbage looks through all that was imported and loaded, and takes 0.3 seconds
        Server(service, load, drain_seconds=drain_seconds).run([opened])
    finally:
        service.close()
        log_event("ended")
