"""The errors of users: wrong input, with a message that says what to do."""


class InputError(ValueError):
    """
    Input is wrong: an argument, a flag, a file or what it contains.

    The message says in one line what is wrong and how to mend it. `train.py` and `simple-multimodal` print that line;
    any other exception is a fault of the program and keeps its traceback.
    """


class MissingPackageError(InputError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""
