"""Why a request is not answered: a status and a reason, which names nothing of the server."""

import json
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from simple_multimodal.errors import InputError
from simple_multimodal.serving.reading import ReaderLostError
from simple_multimodal.serving.waiting import ClosedError, DeadlineError, QueueFullError

RETRY = {"Retry-After": "1"}  # seconds

STATUSES = {
    401: "There is no bearer token (`Authorization: Bearer TOKEN`), or a wrong one.",
    404: "There is no such route, model, version or index.",
    405: "The route does not have this method.",
    408: "The body was not sent in time.",
    413: "The body is too large.",
    415: "The body has a type or an encoding that is not accepted.",
    421: "The header Host does not name this machine, as it must if no token is needed.",
    422: "The request or its clip is invalid; the reason says why.",
    429: "Too many requests are waiting; send the request again after `Retry-After` seconds.",
    500: "The model, or reading the clip, failed; the log of the server says why.",
    503: "The server or a part of it is not ready, or was lost; send the request again after `Retry-After` seconds.",
    504: "The request was not answered in time.",
}
"""Statuses of refusals, and what they mean."""


class JsonResponse(Response):
    """A response with JSON, which is written several times as fast as by the standard library."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """
        Return the content as JSON.

        Raises:
            ValueError: If a number is not finite, which JSON cannot express.
        """
        body = to_json(content, inf_nan_mode="constants")
        if b"NaN" in body or b"Infinity" in body:
            json.dumps(content, allow_nan=False)  # an error, unless it is a text that says so
        return body


class Refused(Exception):
    """
    A request that is not answered.

    Args:
        status (`int`): One of `STATUSES`.
        reason (`str`, *optional*): The reason; by default what the status means.
        headers (`dict[str, str]`, *optional*): Further headers of the response.
    """

    def __init__(self, status: int, reason: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(reason or STATUSES[status])
        self.status = status
        self.headers = dict(headers or {})
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 503):
            self.headers |= RETRY

    def response(self) -> JsonResponse:
        """Return the response to the client."""
        return JsonResponse({"error": str(self)}, self.status, headers=self.headers)


def readiness(is_ready: bool, **further: Any) -> JsonResponse:
    """Return the response to a probe of what is ready or not."""
    content = {"ready": is_ready, **further}
    return JsonResponse(content) if is_ready else JsonResponse(content, 503, headers=RETRY)


def refusal_of(error: Exception) -> Refused:
    """Return what a client is told about an error. Reasons of errors that are not the client's are not passed on."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InputError):
        return Refused(422, str(error))
    if isinstance(error, HTTPException):  # of routing
        return Refused(error.status_code, headers=dict(error.headers or {}))
    if isinstance(error, QueueFullError):
        return Refused(429)
    if isinstance(error, (DeadlineError, TimeoutError)):
        return Refused(504)
    if isinstance(error, (ClosedError, ReaderLostError, OSError)):  # OSError: a full disk
        return Refused(503)
    return Refused(500)
