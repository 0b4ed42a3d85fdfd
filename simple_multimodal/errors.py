"""The errors of users: wrong input, with a message that says what to do."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """
    Input is wrong: an argument, a flag, a file or what it contains.

    The message says in one line what is wrong and how to mend it. `train.py` and `simple-multimodal` print that line;
    any other exception is a fault of the program and keeps its traceback.
    """


class MissingPackageError(InputError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""


@contextlib.contextmanager
def as_input_errors() -> Iterator[None]:
    """Raise as [`InputError`] a `ValueError` by which another library refuses what the user chose."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
