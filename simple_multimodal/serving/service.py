"""What a server consists of: its models, limits, uploads and measurements, whatever the dialect of a request."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.serving.batches import num_bytes
from simple_multimodal.serving.forms import Upload
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.metrics import Metrics
from simple_multimodal.serving.models import ServedModel, deadline_in
from simple_multimodal.serving.refusals import Refused
from simple_multimodal.serving.tasks import Query
from simple_multimodal.serving.uploads import UploadFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """
    One row that a client asks about, before its clip is read.

    Args:
        clip ([`Upload`], *optional*): The clip.
        audio ([`Upload`], *optional*): Its audio, if it is in another file.
        text (`str`, *optional*): Text, or question.
    """

    clip: Upload | None = None
    audio: Upload | None = None
    text: str | None = None


def check_number(num_inputs: int, limits: ServingLimits) -> None:
    """
    Check the number of inputs of a request.

    Raises:
        Refused: If there are none, or too many.
    """
    if not 0 < num_inputs <= limits.max_inputs:
        raise Refused(422, f"A request must have 1 to {limits.max_inputs} inputs, got {num_inputs}.")


class Service:
    """
    Models that answer clients.

    Args:
        models (`Mapping[str, ServedModel]`): Models by name.
        uploads ([`UploadFolder`]): Folder for clips of clients.
        limits ([`ServingLimits`], *optional*): Limits; by default their defaults.
        token (`str`, *optional*): Bearer token that clients need.

    Attributes:
        is_draining (`bool`): Whether the server is about to end: it answers, but is not ready.
        num_requests (`int`): Number of requests that are received or processed.
        body_bytes, clip_bytes (`int`): Memory that is set aside for what has arrived of their bodies, and for their
            clips once these are read.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        uploads: UploadFolder,
        *,
        limits: ServingLimits | None = None,
        token: str | None = None,
    ):
        self.models = dict(models)
        self.uploads = uploads
        self.limits = limits or ServingLimits()
        self.token = token
        self.is_draining = False
        self.num_requests = 0
        self.body_bytes = 0
        self.clip_bytes = 0
        self.metrics = Metrics(lambda: self.models)

    @property
    def is_ready(self) -> bool:
        """Whether new clients should come."""
        return not self.is_draining and all(model.is_running for model in self.models.values())

    @contextlib.contextmanager
    def admitted(self, body_bytes: int) -> Iterator[None]:
        """
        Return the context of a request that is received and processed.

        Args:
            body_bytes (`int`): Size of its body, for which there must be room now. It is only set aside as the body
                arrives ([`set_body_aside`]): clients that send slowly would otherwise take the room of all others.

        Raises:
            Refused: If there are too many.
        """
        if self.num_requests >= self.limits.max_requests or not self._has_room(body_bytes):
            raise Refused(429)
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    def _has_room(self, body_bytes: int) -> bool:
        return self.body_bytes + body_bytes <= self.limits.waiting_bytes

    def set_body_aside(self, num_bytes: int) -> None:
        """
        Set memory aside for a part of a body that has arrived; the caller subtracts it from `body_bytes` in the end.

        Raises:
            Refused: If there is not enough.
        """
        if not self._has_room(num_bytes):
            raise Refused(429)
        self.body_bytes += num_bytes

    def model(self, name: str) -> ServedModel:
        """
        Return the model of a name.

        Raises:
            Refused: If there is none.
        """
        if name not in self.models:
            raise Refused(404, "There is no model of this name.")
        return self.models[name]

    def only_model(self, kind: type[Pipeline], name: str | None, *, searches: bool = False) -> ServedModel:
        """
        Return the model with a kind of pipeline; without a name, the one that has an index if it is to search.

        Raises:
            Refused: If there is none, or there are several and no name is given.
        """
        found = [model for model in self.models.values() if issubclass(model.task.pipeline_class, kind)]
        if name is not None:
            found = [model for model in found if model.name == name]
        elif searches:
            found = [model for model in found if model.index is not None] or found
        if not found:
            raise Refused(404, "There is no model for this route, or not of this name.")
        if len(found) > 1:
            raise Refused(422, f"Name one of the models {', '.join(model.name for model in found)} as `model`.")
        return found[0]

    @contextlib.contextmanager
    def _set_aside(self, size: int) -> Iterator[None]:
        """Return a context in which there is memory for the clips of a request, each with one window of audio."""
        largest = self.limits.waiting_bytes
        if size > largest:
            raise Refused(413, "The clips of the request need more memory than is allowed; send fewer of them.")
        if self.clip_bytes + size > largest:
            raise Refused(429)
        self.clip_bytes += size
        try:
            yield
        finally:
            self.clip_bytes -= size

    async def ask(
        self, model: ServedModel, questions: Sequence[Question], *, top_k: int = 0, threshold: float | None = None
    ) -> list[Any]:
        """
        Return the result of each question of a request.

        Args:
            model ([`ServedModel`]): The model. The whole request is answered by this one, even if it is reloaded.
            questions (`Sequence[Question]`): The questions; clips that several of them name are read once.
            top_k, threshold: As for [`Query`].

        Raises:
            Refused: If there are too many questions, one lacks what the model needs, **or** time is up.
            ClipError: If a clip cannot be read.
        """
        limits = self.limits
        check_number(len(questions), limits)
        if any(len(question.text or "") > limits.max_text_characters for question in questions):
            raise Refused(422, f"A text is longer than {limits.max_text_characters} characters.")
        for question in questions:  # before any clip is read
            name = None if question.clip is None else question.clip.path.name
            model.check(Query(model.nothing, name, question.text, top_k))
        clips = list(dict.fromkeys((q.clip, q.audio) for q in questions if q.clip is not None))
        with model.in_use(), self._set_aside(len(clips) * num_bytes(model.nothing)):
            async with asyncio.timeout(limits.answer_seconds):
                deadline = deadline_in(limits.answer_seconds)
                batches = {}
                if clips:
                    with self._timed("read"):
                        batches = dict(zip(clips, await model.read(clips, deadline), strict=True))
                queries = []
                for question in questions:
                    clip = question.clip
                    batch = model.nothing if clip is None else batches[clip, question.audio]
                    name = None if clip is None else clip.path.name
                    queries.append(Query(batch, name, question.text, top_k, threshold))
                del batches
                with self._timed("model"):
                    return await model.answer(queries, deadline)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.metrics.stage_seconds.labels(stage).observe(time.monotonic() - begin)

    async def reload(self, load: Callable[[], dict[str, ServedModel]]) -> None:
        """
        Replace all models at once: those that `load` returns answer the requests that come from then on, and the old
        ones are closed when the requests that use them are answered. If `load` fails, the old ones stay.
        """
        models = await asyncio.to_thread(load)
        old, self.models = self.models, models
        await asyncio.gather(*(model.retire() for model in old.values()))

    def close(self) -> None:
        """Answer what was accepted, and end all processes."""
        for model in self.models.values():
            model.close()
