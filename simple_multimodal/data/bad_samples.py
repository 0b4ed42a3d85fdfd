"""What is known of a sample that cannot be read, and how often reading is tried."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from simple_multimodal.data.rows import Row
from simple_multimodal.media.errors import MediaError

RETRY_SECONDS = (0.1, 0.4)
"""How long to wait before each further try, where the file system may have been at fault."""

Result = TypeVar("Result")

_given_up: set[str | None] = set()  # files that this process has waited for in vain


class BadSample(NamedTuple):
    """A sample that could not be read.

    Args:
        row (`int`): number of its row.
        epoch (`int`): in which it was to be read.
        id (`str`): of the row.
        file (`str`, *optional*): the file at fault, an absolute path; `None` where that could not be told.
        reason (`str`): what is wrong with it.
    """

    row: int
    epoch: int
    id: str
    file: str | None
    reason: str

    def __str__(self) -> str:
        return f"row {self.row} (id {self.id!r}): {self.reason}"


def as_json(samples: Iterable[BadSample]) -> list[dict[str, str | None]]:
    """How a metrics file lists bad samples."""
    return [{"id": sample.id, "file": sample.file, "reason": sample.reason} for sample in samples]


class BadSampleError(MediaError):
    """A sample cannot be read; the message names the row, and `sample` is the [`BadSample`]."""

    sample: BadSample

    @classmethod
    def of(cls, row: Row, file: str | None, reason: str) -> "BadSampleError":
        """The error of a row."""
        sample = BadSample(row["index"], row["epoch"], row["id"], file, reason)
        error = cls(str(sample))
        error.sample = sample  # survives pickling
        return error


def with_retries(read: Callable[[], Result], file: str | None = None) -> Result:
    """
    Call `read`; where the file system may be at fault (a file that vanished, an error of input or output), call it
    again, some time later. A process waits for a file once, and from then on only looks.

    Args:
        read (`Callable`): reads something.
        file (`str`, *optional*): what it reads, if that is known before.
    """
    for delay in RETRY_SECONDS:
        try:
            return read()
        except (ValueError, OSError) as error:
            if not any(isinstance(cause, OSError) for cause in _causes(error)):
                raise
            file = file_of(error) or file
            if file in _given_up:
                raise
        time.sleep(delay)
    try:
        return read()
    except (ValueError, OSError):
        _given_up.add(file)
        raise


def file_of(error: BaseException) -> str | None:
    """The file that an error, or what caused it, names."""
    return next(
        (str(cause.filename) for cause in _causes(error) if isinstance(cause, OSError) and cause.filename), None
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
