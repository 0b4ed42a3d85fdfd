"""Bad samples (samples that cannot be read) and retries."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar, cast

from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_features import read_header
from simple_multimodal.processing import PoseProcessor

RETRY_SECONDS = (0.1, 0.4)
"""Delay before each further attempt, for errors that may come from the file system."""

MAX_ROWS_CHECKED = 32  # few enough for a slow file system, and enough that not all are bad by chance

Result = TypeVar("Result")

_given_up: set[str | None] = set()  # files that this process has waited for in vain


class BadSample(NamedTuple):
    """A sample that could not be read.

    Args:
        row (`int`): Number of its row.
        epoch (`int`): Epoch in which it was needed.
        id (`str`): Id of the row.
        file (`str`, *optional*): Absolute path of the file at fault; `None` if unknown.
        reason (`str`): What is wrong with the file.
    """

    row: int
    epoch: int
    id: str
    file: str | None
    reason: str

    def __str__(self) -> str:
        return f"row {self.row} (id {self.id!r}): {self.reason}"


def as_json(samples: Iterable[BadSample]) -> list[dict[str, str | None]]:
    """Return bad samples as a metrics file lists them."""
    return [{"id": sample.id, "file": sample.file, "reason": sample.reason} for sample in samples]


class BadSampleError(MediaError):
    """A sample cannot be read; the message names the row, and `sample` is the [`BadSample`]."""

    sample: BadSample

    @classmethod
    def of(cls, row: Row, file: str | None, reason: str) -> "BadSampleError":
        """Make the error of a row."""
        sample = BadSample(row["index"], row["epoch"], row["id"], file, reason)
        error = cls(str(sample))
        error.sample = sample  # survives pickling
        return error


def check_files(dataset: RowDataset) -> None:
    """
    Check that files of a data set exist: of some rows, spread over the set, at least one must have all of its files.

    Args:
        dataset ([`RowDataset`]): Rows to check.

    Raises:
        ValueError: If all of these rows lack a file; the message names the first one and the root of its column.
    """
    num_checked = min(len(dataset), MAX_ROWS_CHECKED)
    first = ""
    for number in range(num_checked):
        try:
            dataset.row(number * len(dataset) // num_checked)
            return
        except (ValueError, OSError) as error:
            first = first or str(error)
    others = f" None of the {num_checked} rows that were checked has its files." if num_checked > 1 else ""
    raise InputError(f"{first}{others}")


def check_poses(dataset: RowDataset, processor: PoseProcessor) -> None:
    """
    Check that poses of a data set fit a processor, from the headers of their files: of some rows, spread over the set,
    at least one must do so.

    Args:
        dataset ([`RowDataset`]): Rows to check.
        processor ([`PoseProcessor`]): Processor of the model.

    Raises:
        ValueError: If all of these poses are unreadable, of an unknown estimator or of another number of features; the
            message names the first one.
    """
    rows = [number for number, cell in enumerate(dataset.column("pose")) if cell is not None]
    num_checked = min(len(rows), MAX_ROWS_CHECKED)
    first = ""
    for number in range(num_checked):
        try:
            path = cast(str, dataset.row(rows[number * len(rows) // num_checked])["pose"])
            processor.check_features(read_header(path, processor.features_rate))
            return
        except (ValueError, OSError) as error:
            first = first or str(error)
    if num_checked:
        raise InputError(f"{first}. None of the {num_checked} poses that were checked fits the model.")


def with_retries(read: Callable[[], Result], file: str | None = None) -> Result:
    """
    Call `read`, and retry after a delay if the file system may be at fault (a vanished file, an I/O error). Each
    process waits for a file only once; after that, its errors are raised at once.

    Args:
        read (`Callable`): Function to call.
        file (`str`, *optional*): File that it reads, if known in advance.
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
    """Return the file named by an error or its causes."""
    return next(
        (str(cause.filename) for cause in _causes(error) if isinstance(cause, OSError) and cause.filename), None
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
