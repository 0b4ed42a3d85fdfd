"""User errors: invalid input, with a message that says what to do."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """
    Invalid input: an argument, a flag, a file or its content.

    The message says in one line what is wrong and how to fix it. `train.py` and `simple-multimodal` print that
    line, as they do for an `OSError`; any other exception is a bug and keeps its traceback.
    """


class MissingPackageError(InputError, ImportError):
    """An optional package is needed but not installed; the message has the command that installs it."""


@contextlib.contextmanager
def as_input_errors() -> Iterator[None]:
    """Convert a `ValueError` with which another library rejects the user's input to an [`InputError`]."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
