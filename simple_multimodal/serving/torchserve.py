"""Archives for TorchServe, and their handler, which answers as `/predictions/{model}` of the server does."""

import asyncio
import json
import os
import tempfile
import zipfile
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

import simple_multimodal
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import selection_precision
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.serving.app import PREDICTION_PARTS, settings_of
from simple_multimodal.serving.forms import FILE_PART, Uploads, unknown_part, uploads_of
from simple_multimodal.serving.gate import log_error
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.models import ServedModel, deadline_in, model_name, task_of_model
from simple_multimodal.serving.refusals import Refused, refusal_of
from simple_multimodal.serving.tasks import Query
from simple_multimodal.serving.uploads import UploadFolder

MODEL_FOLDER = "model"
IGNORED_PART = "labels"
HANDLER = '''"""Handler of an archive that `simple-multimodal export_mar` wrote."""

from simple_multimodal.serving.torchserve import TorchServeHandler


class Handler(TorchServeHandler):
    """TorchServe takes the only class that is defined in this file."""
'''


def export_mar(model: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """
    Write an archive of a model for TorchServe: a zip file with the model as it is loaded here, a handler, and a
    manifest. Nothing else of the model's folder is in it, such as checkpoints, reports or the command of its training.
    torch-model-archiver is not needed. It would put all files into one folder, and is not maintained any more.

    Args:
        model (`str`): Folder or hub name of a model that can be served.
        output (`str`): Folder for the archive, which is created if it does not exist.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace an archive of the same name.

    Returns:
        `Path`: The archive, named after the model's folder.

    Raises:
        ValueError: If it is not a model that can be served, **or** the archive exists.
        OSError: If the archive cannot be written.
    """
    task, name = task_of_model(os.fspath(model)), model_name(os.fspath(model))
    folder, archive = Path(output), Path(output, f"{name}.mar")
    if archive.exists() and not overwrite:
        raise InputError(f"{archive} exists. Replace it with `overwrite=True`, or give another folder.")
    manifest = {
        "createdOn": datetime.now().isoformat(timespec="seconds"),
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": "1.0", "handler": "handler.py"},
        "archiverVersion": f"simple_multimodal {simple_multimodal.__version__}",
    }
    pipeline = task.pipeline_class.from_pretrained(model)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as saved:
        pipeline.model.save_pretrained(saved)
        pipeline.processor.save_pretrained(saved)
        if (precision := selection_precision(model)) is not None:
            Path(saved, "run.json").write_text(json.dumps({"precision": precision}), encoding="utf-8")
        with write_atomically(archive) as temporary, zipfile.ZipFile(temporary, "w") as file:
            file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest, indent=2))
            file.writestr("handler.py", HANDLER)
            for path in sorted(Path(saved).rglob("*")):
                file.write(path, Path(MODEL_FOLDER, path.relative_to(saved)))
    return archive


class Context(Protocol):
    """What the handler uses of TorchServe's context of a batch."""

    model_name: str
    system_properties: Mapping[str, Any]

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of a request."""

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of the response to a request."""

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the type of the response to a request."""


class TorchServeHandler:
    """
    Handler of an archive that [`export_mar`] wrote. Requests have the parts of `/predictions/{model}`, and get its
    answers and its refusals.

    The clips of a batch are read first, in processes of their own as those of the server, see [`ClipReaders`], and
    then the model runs on all of them. One that cannot be read, or is invalid, costs its own request only.
    """

    def initialize(self, context: Context) -> None:
        """
        Load the model of the archive, and run it once.

        Args:
            context ([`Context`]): Says where the archive was unpacked, and how large batches are.
        """
        properties = context.system_properties
        if properties["gpu_id"] is not None and torch.cuda.is_available():
            torch.cuda.set_device(int(properties["gpu_id"]))  # of those that TorchServe shares out among its workers
        self.limits = ServingLimits()
        self.model = ServedModel.load(
            os.path.join(properties["model_dir"], MODEL_FOLDER),
            limits=self.limits,
            max_batch_size=properties["batch_size"],
        )
        self.model.name = context.model_name
        self.uploads = UploadFolder()

    def handle(self, requests: Sequence[Mapping[str, Any]], context: Context) -> list[Any]:
        """
        Answer a batch of requests.

        Args:
            requests (`Sequence[Mapping]`): Parts of each request by name: bytes, texts, or decoded JSON.
            context ([`Context`]): Receives the status of each request: 200, or that of a refusal.

        Returns:
            `list`: For each request what `/predictions/{model}` answers, or `{"error": reason}`.
        """
        answers = asyncio.run(self._answer_all(requests))
        for number, answer in enumerate(answers):
            context.set_response_content_type(number, "application/json")
            if isinstance(answer, Exception):
                refused = refusal_of(answer)
                if refused.status in (500, 503):
                    log_error(str(context.get_request_id(number)), answer)
                context.set_response_status(refused.status, idx=number)
                answers[number] = {"error": str(refused)}
        return answers

    async def _answer_all(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the answer to each request, or its error."""
        deadline = deadline_in(self.limits.answer_seconds)
        async with uploads_of(self.uploads) as uploads:
            queries = await _all_of(self._read(parts, uploads, deadline) for parts in requests)
            return await _all_of(self._answer(query, deadline) for query in queries)

    async def _read(self, parts: Mapping[str, Any], uploads: Uploads, deadline: float) -> Query:
        """Return what a request asks, with its clip."""
        known = (FILE_PART, *PREDICTION_PARTS)
        if unknown := [name for name in parts if name not in known]:
            raise unknown_part(unknown[0], known)
        contents = {name: _content(name, value) for name, value in parts.items() if name != IGNORED_PART}
        texts = {name: _text(name, contents[name]) for name in contents if name != FILE_PART}
        if "script" in texts and "text" in texts:
            raise Refused(422, "Only one part may be named script or text.")
        text = texts.get("script", texts.get("text"))
        if len(text or "") > self.limits.max_text_characters:
            raise Refused(422, f"A text is longer than {self.limits.max_text_characters} characters.")
        settings = settings_of({name: [value] for name, value in texts.items()})
        upload = uploads.add(contents[FILE_PART]) if FILE_PART in contents else None
        query = Query(
            self.model.nothing,
            None if upload is None else upload.path.name,
            text,
            0 if self.model.task.item is None else settings.top_k or self.model.task.top_k,
            settings.threshold,
        )
        self.model.check(query)  # before the clip is read
        if upload is None:
            return query
        (batch,) = await self.model.read([(upload, None)], deadline)
        return replace(query, batch=batch)

    async def _answer(self, query: Query | Exception, deadline: float) -> Any:
        if isinstance(query, Exception):
            raise query
        (result,) = await self.model.answer([query], deadline)
        return {"embedding": result.tolist()} if isinstance(result, torch.Tensor) else result


async def _all_of(coroutines: Iterable[Coroutine]) -> list[Any]:
    """Return the results of coroutines, and the errors of those that fail."""
    return await asyncio.gather(*coroutines, return_exceptions=True)


def _content(name: str, value: Any) -> bytes:
    """Return a part as it was sent: TorchServe decodes those that claim to be text or JSON."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if not isinstance(value, bytes | bytearray):
        raise Refused(422, f"The part {name} must not be JSON.")
    return bytes(value)


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Refused(422, f"The part {name} is not UTF-8.") from error
