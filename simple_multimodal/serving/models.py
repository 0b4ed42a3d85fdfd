"""A model that is served: its pipeline, the processes that read clips for it, and its batches."""

import asyncio
import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from transformers import AutoConfig

from simple_multimodal.errors import InputError
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.missing import reading_model, refuse_part_of_run
from simple_multimodal.serving.batcher import Batcher
from simple_multimodal.serving.batches import ReadClips, batch_key, num_bytes
from simple_multimodal.serving.forms import Upload
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.readers import ClipReaders
from simple_multimodal.serving.reading import ReadingLimits
from simple_multimodal.serving.refusals import Refused
from simple_multimodal.serving.tasks import SERVED_TASKS, Query, ServedTask
from simple_multimodal.serving.waiting import Job, result_of
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Retriever

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
POLL_SECONDS = 0.02
WARM_UP_TEXT = "a"


class ServedModel:
    """
    A model that answers queries of many clients.

    Args:
        name (`str`): Name in routes.
        task ([`ServedTask`]): How its pipeline is served.
        pipeline ([`Pipeline`]): The pipeline.
        limits ([`ServingLimits`], *optional*): Limits; by default their defaults.
        max_batch_size (`int`, *optional*, defaults to 16): Maximum number of rows that the model runs on at once.
        num_readers (`int`, *optional*, defaults to 2): Number of processes that read clips.

    Attributes:
        index ([`ClipIndex`], *optional*): Clips to search.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        name: str,
        task: ServedTask,
        pipeline: Pipeline,
        *,
        limits: ServingLimits | None = None,
        max_batch_size: int = 16,
        num_readers: int = 2,
    ):
        for setting, value in (("max_batch_size", max_batch_size), ("num_readers", num_readers)):
            if value < 1:
                raise InputError(f"`{setting}` must be 1 or more, got {value}.")
        limits = limits or ServingLimits()
        self.name = name
        self.task = task
        self.pipeline = pipeline
        self.index: ClipIndex | None = None
        self.num_used = 0
        collator = pipeline.collator
        self.nothing = collator.empty_batch(1)  # the batch of a row without a clip
        max_waiting = limits.max_requests * limits.max_inputs  # the requests themselves are limited
        self.readers = ClipReaders(
            collator,
            num_processes=num_readers,
            limits=ReadingLimits(
                read_seconds=limits.read_seconds,
                memory_gigabytes=limits.read_memory_gigabytes,
                clip_seconds=limits.max_clip_seconds,
                frames=limits.max_clip_frames,
                pixels=limits.max_clip_pixels,
            ),
            max_waiting=max_waiting,
        )
        pipeline.collator = ReadClips(collator)
        pipeline.batch_size = max_batch_size
        self.batcher: Batcher[Query, Any] = Batcher(
            functools.partial(task.run, pipeline, index=None),
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            max_waiting_bytes=limits.waiting_bytes,
        )

    @classmethod
    def load(cls, folder: str, *, precision: Any = None, **settings: Any) -> Self:
        """
        Load a model, read a clip and run the model once. Returns when it can answer.

        Args:
            folder (`str`): Folder or hub name of the model.
            precision (`str`, *optional*): As for [`Pipeline.from_pretrained`].
            settings: Further arguments of the class.

        Raises:
            ValueError: If it is not a model that can be served, **or** the processes that read clips fail.
        """
        task = task_of_model(folder)
        pipeline = task.pipeline_class.from_pretrained(folder, precision=precision)
        model = cls(model_name(folder), task, pipeline, **settings)
        try:
            model.readers.check()
            task.run(pipeline, [Query(model.nothing, "nothing", WARM_UP_TEXT, top_k=1)], None)
        except BaseException:
            model.close()
            raise
        return model

    def search_in(self, index: ClipIndex) -> None:
        """Answer queries for results with the clips of an index from now on."""
        self.index = index
        # Not a function that refers to this object: a cycle would keep the model after it is replaced.
        self.batcher.run = functools.partial(self.task.run, self.pipeline, index=index)

    @property
    def labels(self) -> list[str]:
        """Names of the model's outputs, in their order; none for embeddings and texts."""
        config = self.pipeline.model.config
        return [config.id2label[n] for n in range(config.num_labels)] if self.task.has_labels else []

    @property
    def is_running(self) -> bool:
        """Whether the model answers."""
        return self.batcher.is_running and not self.readers.waiting.is_closed

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Return a context in which the model is not closed by [`retire`]."""
        self.num_used += 1
        try:
            yield
        finally:
            self.num_used -= 1

    def close(self) -> None:
        """Answer what was accepted, and end the processes that read clips."""
        self.readers.close()
        self.batcher.close()

    async def retire(self) -> None:
        """Close the model once no request uses it any more."""
        while self.num_used:
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.to_thread(self.close)

    async def read(self, clips: Sequence[tuple[Upload, Upload | None]], deadline: float) -> list[dict[str, Any]]:
        """
        Read clips.

        Args:
            clips (`Sequence[tuple]`): File of each clip, and that of its audio if it is another one.
            deadline (`float`): Time by `time.monotonic` after which nobody waits for them.
        """

        def submit(video: Upload, audio: Upload | None) -> Job:
            job = self.readers.submit(video.path, audio=None if audio is None else audio.path, deadline=deadline)
            for upload in (video, audio):
                if upload is not None:
                    upload.job = job
            return job

        return await results_of(submit(*clip) for clip in clips)

    async def answer(self, queries: Iterable[Query], deadline: float) -> list[Any]:
        """
        Return the result of each query.

        Args:
            queries (`Iterable[Query]`): The queries.
            deadline (`float`): Time by `time.monotonic` after which nobody waits for them.

        Raises:
            Refused: If a query lacks what the model needs.
        """

        def submit(query: Query) -> Job:
            self.check(query)
            is_text = self.task.item is None and query.name is None  # texts alone
            key = None if is_text else batch_key(query.batch)
            size = 0 if query.name is None else num_bytes(query.batch)
            return self.batcher.submit(query, key=key, num_bytes=size, deadline=deadline)

        return await results_of(map(submit, queries))

    def check(self, query: Query) -> None:
        """
        Check that a query has what the model needs.

        Raises:
            Refused: If it has not.
        """
        has_clip, has_text = query.name is not None, bool((query.text or "").strip())
        if self.task.needs_clip and not has_clip:
            raise Refused(422, f"{self.name} needs a clip.")
        if self.task.needs_text and not has_text:
            raise Refused(422, f"{self.name} needs a text that is not blank.")
        if self.task.item is None:
            if has_clip and query.text is not None:
                raise Refused(422, f"{self.name} takes a clip or a text, not both.")
            if not has_clip and not has_text:
                raise Refused(422, f"{self.name} needs a clip, or a text that is not blank.")
        elif not has_clip and not (has_text and self.pipeline.takes("text")):
            raise Refused(422, f"{self.name} needs {'a clip or a text' if self.pipeline.takes('text') else 'a clip'}.")
        if query.top_k and self.task.item is None and self.index is None:
            raise Refused(404, f"{self.name} has no index of clips.")


async def results_of(jobs: Iterable[Job]) -> list[Any]:
    """Return the results of jobs; after an error all others are cancelled, and no more are made."""
    made: list[Job] = []
    try:
        made.extend(jobs)
        return [await result_of(job) for job in made]
    except BaseException:
        for job in made:
            job.cancel()
        raise


def model_name(folder: str) -> str:
    """
    Return the name of a model in routes: that of its folder.

    Raises:
        ValueError: If it cannot be a part of a URL.
    """
    name = Path(os.path.abspath(folder)).name
    if not NAME.fullmatch(name):
        raise InputError(
            f"{folder}: the name of a served model may have letters, digits, `_`, `.` and `-`; rename the folder."
        )
    return name


def task_of_model(folder: str) -> ServedTask:
    """
    Return how a model is served.

    Raises:
        ValueError: If there is no model, **or** models of its kind are not served.
    """
    refuse_part_of_run(folder)
    with reading_model(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    saved_class = (config.architectures or ["an unknown class"])[0]
    known: list[str] = []
    for task in SERVED_TASKS:
        classes = task.pipeline_class.model_classes or {}
        if saved_class in classes:
            return task
        known += classes
    raise InputError(f"{folder} holds {saved_class}, which cannot be served; {', '.join(known)} can.")


def load_all(folders: Sequence[str], index: str | None, load: Callable[..., ServedModel]) -> dict[str, ServedModel]:
    """
    Load models by name; all or none.

    Args:
        folders (`Sequence[str]`): Folders or hub names of the models.
        index (`str`, *optional*): Folder of the clips to search, for the model that made it.
        load (`Callable`): Function of a folder that returns the model.

    Raises:
        ValueError: If one cannot be loaded, two have one name, **or** the index is not one of theirs.
    """
    names = [model_name(folder) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two models are named {name}. Rename one of the folders, or give a link to it.")
    tasks = [task_of_model(folder) for folder in folders]
    if index is not None and not any(issubclass(task.pipeline_class, Retriever) for task in tasks):
        raise InputError("`index` needs a model that compares embeddings, and none of these does.")
    found = None if index is None else ClipIndex.load(index)  # before the models, which take longer
    models: dict[str, ServedModel] = {}
    try:
        for name, folder in zip(names, folders, strict=True):
            models[name] = load(folder)
        if found is not None:
            _owner(found, models.values()).search_in(found)
    except BaseException:
        for model in models.values():
            model.close()
        raise
    return models


def _owner(index: ClipIndex, models: Iterable[ServedModel]) -> ServedModel:
    """Return the model that made an index."""
    searching = {model: model.pipeline for model in models if isinstance(model.pipeline, Retriever)}
    makers = [model for model, pipeline in searching.items() if pipeline.has_made(index)]
    owner = [*makers, *searching][0]
    searching[owner].check_index(index)
    return owner


def deadline_in(seconds: float) -> float:
    """Return the time by `time.monotonic` in some seconds."""
    return time.monotonic() + seconds
