"""What is written: folders of one writer at a time, files that are whole or not there, a full disk that is named."""

import errno
import json
import logging
import os
import shutil
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from simple_multimodal.errors import InputError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""File in the folder that is being written: locked by the process that writes, which it names."""

FULL_DISK = frozenset([errno.ENOSPC, errno.EDQUOT])
FULL_DISK_MESSAGES = tuple(os.strerror(number) for number in FULL_DISK)

_held: set[int] = set()  # descriptors of the locks that this process holds


@contextmanager
def writing_into(
    folder: str | os.PathLike[str], *, command: str, decide: Callable[[Callable[[], None]], None] = lambda take: take()
) -> Iterator[None]:
    """
    Be the only process that writes into a folder, for as long as the context lasts.

    The operating system holds the lock for this process and releases it however the process ends, so that a killed
    one is in nobody's way. On Linux this also works over NFS and other shared file systems; where the file system has
    no locks, a warning says so, and nothing is checked.

    Args:
        folder (`str` or `os.PathLike`): made if it does not exist.
        command (`str`): what writes, for the message that another process shows.
        decide (`Callable`, *optional*): calls the function that it is given in one of several processes of a launch,
            which holds the lock for all of them, and raises in every process what that raises.

    Raises:
        ValueError: Another process writes into the folder, which the message names, **or** it is a file.
        OSError: The folder cannot be made, or the disk becomes full meanwhile; the message names the folder.
    """
    lock = _Lock(Path(folder), command)
    try:
        decide(lock.take)
        yield
    except Exception as error:
        if is_full_disk(error):
            raise OSError(f"{error} ({_free_space(folder)})") from error
        raise
    finally:
        lock.release()


def is_full_disk(error: BaseException) -> bool:
    """Whether an error of Python, torch or safetensors is that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in FULL_DISK or any(m in str(error) for m in FULL_DISK_MESSAGES)


def _free_space(folder: str | os.PathLike[str]) -> str:
    """What is free where a folder is: other folders, such as caches, may be the ones that are full."""
    existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    return f"{os.fspath(folder)} has {shutil.disk_usage(existing).free / 1e9:.2f} GB free"


class _Lock:
    def __init__(self, folder: Path, command: str):
        self.folder = folder
        self.path = folder / LOCK_FILE
        self.command = command
        self.descriptor: int | None = None
        self.is_new = False

    def take(self) -> None:
        self.is_new = not self.folder.exists()
        if not self.is_new and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file. Give a folder.")
        if sys.platform == "win32":
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        while self.descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # NFS locks exclusively only what is open for writing.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the writer before has just removed the folder
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 4096, 0)
                os.close(descriptor)
                raise InputError(self._refusal(holder)) from error
            except OSError as error:
                os.close(descriptor)
                logger.warning(
                    f"{self.folder}: files cannot be locked there ({error.strerror}), so that nothing keeps another "
                    "process from writing into this folder at the same time."
                )
                return
            if self._is_at(descriptor):
                self.descriptor = descriptor
            else:  # the file of a writer that removed it when it was done
                os.close(descriptor)
        _held.add(self.descriptor)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        record = {"command": self.command, "host": socket.gethostname(), "process": os.getpid(), "since": since}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Remove the file while it is still locked; whoever waits for it with this file open looks again."""
        if self.descriptor in _held:  # in a process that was forked it is not
            if self._is_at(self.descriptor):
                self.path.unlink(missing_ok=True)
            _held.discard(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None
        if self.is_new:
            with suppress(OSError):  # unless something was written
                self.folder.rmdir()

    def _is_at(self, descriptor: int) -> bool:
        """Whether an open file is the one that bears the lock's name."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _refusal(self, holder: bytes) -> str:
        try:
            record = json.loads(holder)
            who = "{command} (process {process} on {host}, since {since})".format_map(record)
        except (ValueError, KeyError, TypeError):  # it has not said yet
            who = "another process"
        return (
            f"{self.folder} is being written by {who}. Wait until that is done, end that process, or give "
            "another folder."
        )


def _forget_locks() -> None:
    """Close the locks in a process that was forked, so that it does not hold them when its parent is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Write a file beside its place and rename it, so that its name never stands for a part of it.

    Processes and threads that write the same file at the same time do not disturb each other; the last one to finish
    wins. A killed process leaves a hidden file `.{name}.{process}.{thread}.tmp`.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced. Its folder must exist.

    Yields:
        `Path`: Where to write. If the block raises, what is there is removed, and `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def give_umask(path: Path) -> None:
    """
    Give a file the permissions that a new one gets there (the user's umask, or the folder's access list).

    safetensors writes files that nobody but their owner can read.
    """
    probe = path.with_name(f".{path.name}.mode")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.chmod(path, stat.S_IMODE(os.fstat(descriptor).st_mode))
    finally:
        os.close(descriptor)
        probe.unlink()
