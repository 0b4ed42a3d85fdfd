"""User errors: invalid input, with a message that says what to do."""

import contextlib
import re
import sys
from collections.abc import Collection, Iterator


class InputError(ValueError):
    """
    Invalid input: an argument, a flag, a file or its content.

    The message says in one line what is wrong and how to fix it, and names parameters in backticks. `train.py` and
    `simple-multimodal` print that line with flags in place of parameters, see [`with_flags`], as they do for an
    `OSError`; any other exception is a bug and keeps its traceback.
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


@contextlib.contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """End `train.py` with one line and exit code 130, as a shell reports it, if Ctrl-C interrupts the context."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            "train.py: interrupted; run the same command to resume from the newest checkpoint, if any.",
            file=sys.stderr,
        )
        sys.exit(130)


def with_flags(message: str, flags: Collection[str]) -> str:
    """
    Return a message as a command prints it: flags, such as `--follow_links` or `--epoch 3`, in place of parameters in
    backticks, such as `follow_links=True` or `epoch=3`.

    Args:
        message (`str`): Message of the library.
        flags (`Collection[str]`): Names of the command's flags; other words in backticks are not changed.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        return found[0] if name not in flags else f"--{name}" + ("" if value in (None, "True") else f" {value}")

    return re.sub(r"`(\w+)(?:=([^`\s]+))?`", flag, message)
