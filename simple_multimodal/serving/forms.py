"""Bodies of requests: multipart forms, whose clips go to files as they arrive, and JSON."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.serving.refusals import Refused
from simple_multimodal.serving.uploads import UploadFolder
from simple_multimodal.serving.waiting import Job

FILE_PART = "data"
MAX_FIELD_BYTES = 4  # of a character in UTF-8
MIN_CLIP_BYTES = 256  # a part without a file name that is shorter is the name of a file
MAX_HEADERS = 8
MAX_HEADER_BYTES = 4096
MAX_VALUES = 100_000  # of a JSON body, beside its inputs; each takes up to 600 times the memory of its character
PART_NAME = re.compile(r"\w{1,30}", re.ASCII)
BAD_FORM = "The body is not a valid multipart form."

Body = TypeVar("Body", bound=BaseModel)


class Upload:
    """
    A clip that a client has sent.

    Args:
        path (`Path`): Its file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.job: Job | None = None  # that reads it

    def remove(self) -> None:
        """Remove the file, once nothing reads it."""
        if self.job is None:
            self.path.unlink(missing_ok=True)
        else:
            path, job, self.job = self.path, self.job, None  # whose result takes megabytes
            job.add_done_callback(lambda _: path.unlink(missing_ok=True))


class Uploads(list[Upload]):
    """
    The clips of one request.

    Args:
        folder ([`UploadFolder`]): Folder of their files.
    """

    def __init__(self, folder: UploadFolder):
        super().__init__()
        self.folder = folder

    def new(self) -> Upload:
        """Return a further clip, whose file does not exist yet."""
        self.append(Upload(self.folder.new()))
        return self[-1]

    def add(self, content: bytes) -> Upload:
        """Write a clip."""
        upload = self.new()
        upload.path.write_bytes(content)
        return upload

    def remove(self) -> None:  # type: ignore[override]
        """Remove all files, once nothing reads them."""
        for upload in self:
            upload.remove()


class Form:
    """
    Parser of a multipart form. The part `data` is a clip, and all others are texts. Names of files are ignored.

    Args:
        boundary (`bytes`): Boundary of the parts.
        names (`Sequence[str]`): Names of the parts that are accepted; those that may occur several times end in `*`.
        limits ([`ServingLimits`]): Limits.
        uploads ([`Uploads`]): Clips of the request, to which those of the form are added.

    Attributes:
        texts (`dict[str, list[str]]`): Values of the texts by name.
        clip ([`Upload`], *optional*): The clip.

    Raises:
        Refused: If the boundary is invalid.
    """

    def __init__(self, boundary: bytes, names: Sequence[str], limits: ServingLimits, uploads: Uploads):
        self.names = {name.rstrip("*"): name.endswith("*") for name in names}
        self.limits = limits
        self.uploads = uploads
        self.texts: dict[str, list[str]] = {}
        self.clip: Upload | None = None
        self.is_complete = False
        self._num_parts = 0
        self._file: BinaryIO | None = None
        self._name = ""
        self._has_file_name = False
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._content = bytearray()
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.append(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.append(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._start,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": lambda: setattr(self, "is_complete", True),
        }
        if not boundary:
            raise Refused(422, BAD_FORM)
        try:
            self._parser = MultipartParser(
                boundary,
                callbacks,  # type: ignore[arg-type]
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise Refused(422, BAD_FORM) from error

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        """
        Parse a body.

        Raises:
            Refused: If it is not a form, has parts that are not accepted, **or** exceeds a limit.
        """
        try:
            async for chunk in chunks:
                self._parser.write(chunk)
            self._parser.finalize()
        except FormParserError as error:
            raise Refused(422, BAD_FORM) from error
        finally:
            if self._file is not None:
                self._file.close()
            del self._parser  # which refers to this form
        if not self.is_complete:
            raise Refused(422, "The multipart form ends before its last boundary.")

    def text(self, *names: str) -> str | None:
        """Return the text of a part that has one of these names.

        Raises:
            Refused: If there are several.
        """
        found = [value for name in names for value in self.texts.get(name, [])]
        if len(found) > 1:
            raise Refused(422, f"Only one part may be named {' or '.join(names)}.")
        return found[0] if found else None

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > self.limits.max_parts:
            raise Refused(422, f"The form has more than {self.limits.max_parts} parts.")
        self._name = ""
        self._has_file_name = False
        self._content = bytearray()

    def _end_header(self) -> None:
        if b"".join(self._header).lower() == b"content-disposition":
            kind, options = parse_options_header(b"".join(self._value))
            if kind == b"form-data":
                self._name = options.get(b"name", b"").decode(errors="replace")
                self._has_file_name = b"filename" in options
        self._header, self._value = [], []

    def _start(self) -> None:
        if self._name not in self.names:
            raise unknown_part(self._name, self.names)
        if self._name == FILE_PART:
            if self.clip is not None:
                raise Refused(422, f"The form has several parts named {FILE_PART}.")
            self.clip = self.uploads.new()
            self._file = open(self.clip.path, "xb")
        elif self._name in self.texts and not self.names[self._name]:
            raise Refused(422, f"The form has several parts named {self._name}.")

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._content += data[start:end]
        if len(self._content) > self.limits.max_text_characters * MAX_FIELD_BYTES:
            raise Refused(422, f"The part {self._name} is longer than {self.limits.max_text_characters} characters.")

    def _end(self) -> None:
        if self._file is not None:
            is_short = self._file.tell() < MIN_CLIP_BYTES
            self._file.close()
            self._file = None
            if is_short and not self._has_file_name:
                raise Refused(422, f"The part {FILE_PART} is not a file; with curl, write {FILE_PART}=@clip.mp4.")
            return
        try:
            text = self._content.decode()
        except UnicodeDecodeError as error:
            raise Refused(422, f"The part {self._name} is not UTF-8.") from error
        self.texts.setdefault(self._name, []).append(text)


def unknown_part(name: str, known: Iterable[str]) -> Refused:
    """Return the refusal of a part, which repeats a name only if it is a word."""
    named = f", {name}" if PART_NAME.fullmatch(name) else ""
    return Refused(422, f"A request may have the parts {', '.join(known)}; it has another one{named}.")


def content_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """Return the media type of a body, in lower case, and its options."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1").lower(), options


def is_form(request: Request) -> bool:
    """Return whether the body is a multipart form."""
    return content_type(request)[0] == "multipart/form-data"


@contextlib.asynccontextmanager
async def uploads_of(folder: UploadFolder) -> AsyncIterator[Uploads]:
    """Return the clips of a request, which are removed after the context, once nothing reads them."""
    uploads = Uploads(folder)
    try:
        yield uploads
    finally:
        uploads.remove()


async def read_form(request: Request, names: Sequence[str], limits: ServingLimits, uploads: Uploads) -> Form:
    """
    Read a multipart form.

    Args:
        request (`Request`): The request.
        names, limits, uploads: As for [`Form`].

    Raises:
        Refused: If the body is not a form, or the form is not accepted.
    """
    kind, options = content_type(request)
    if kind != "multipart/form-data":
        raise Refused(415, "The body must be multipart/form-data.")
    form = Form(options.get(b"boundary", b""), names, limits, uploads)
    await form.read(request.stream())
    return form


def has_many_values(body: bytes, most: int) -> bool:
    """Return whether JSON has more values than that, without parsing it."""
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")  # every quotation mark now begins or ends a string
    if bare.count(b'"') > 2 * most:
        return True
    outside = b"".join(bare.split(b'"')[::2])
    return sum(map(outside.count, (b",", b"[", b"{"))) > most


def parse_json(kind: type[Body], body: bytes, limits: ServingLimits) -> Body:
    """
    Parse a JSON body.

    Raises:
        Refused: If it is not JSON, has many more values than a request needs, **or** is not what is expected. The
            reason does not repeat what was sent.
    """
    if has_many_values(body, MAX_VALUES + 4 * limits.max_inputs):
        raise Refused(422, "The body has too many values.")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        reason = "The body is not valid JSON." if first["type"] == "json_invalid" else f"{place}: {first['msg']}"
        raise Refused(422, reason) from None


async def read_json(request: Request, kind: type[Body], limits: ServingLimits) -> Body:
    """
    Read a JSON body.

    Raises:
        Refused: If the body has another type, or is not what is expected.
    """
    if content_type(request)[0] not in ("application/json", ""):
        raise Refused(415, "The body must be application/json.")
    return parse_json(kind, await read_all(request), limits)


async def read_all(request: Request) -> bytes:
    """Read a body; unlike `request.body()`, it is not kept until the request is answered."""
    return b"".join([chunk async for chunk in request.stream()])
