"""Safe writing: one writer per folder, atomic files, and errors that name a full disk."""

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
"""File in a folder that is being written; the writing process locks it and writes its name into it."""

FULL_DISK = frozenset([errno.ENOSPC, errno.EDQUOT])
FULL_DISK_MESSAGES = tuple(os.strerror(number) for number in FULL_DISK)

_held: set[int] = set()  # descriptors of the locks that this process holds


@contextmanager
def writing_into(
    folder: str | os.PathLike[str], *, command: str, decide: Callable[[Callable[[], None]], None] = lambda take: take()
) -> Iterator[None]:
    """
    Lock a folder inside the context, so that no other process writes into it.

    The operating system releases the lock when the process ends, even if it is killed. On Linux this also works over
    NFS and other shared file systems; on file systems without locks, a warning is logged and nothing is checked.

    Args:
        folder (`str` or `os.PathLike`): Folder to lock; it is created if it does not exist.
        command (`str`): Name of the writing command, for the message in other processes.
        decide (`Callable`, *optional*): Function that calls its argument in one of several processes of a launch,
            which holds the lock for all of them, and raises its errors in every process.

    Raises:
        ValueError: If another process, which the message names, writes into the folder, **or** it is a file.
        OSError: If the folder cannot be created, or the disk becomes full; the message names the folder.
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
    """Return whether an error of Python, torch or safetensors means that the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in FULL_DISK or any(m in str(error) for m in FULL_DISK_MESSAGES)


def _free_space(folder: str | os.PathLike[str]) -> str:
    """Describe the free space of a folder's disk; a full disk may be that of another folder, such as a cache."""
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
            raise InputError(f"{self.folder} is a file; give a folder.")
        if sys.platform == "win32":
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        while self.descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # NFS only gives exclusive locks for files that are open for writing.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the previous writer has just removed the folder
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
                    f"{self.folder}: files cannot be locked there ({error.strerror}), so other processes could write "
                    "into this folder at the same time."
                )
                return
            if self._is_at(descriptor):
                self.descriptor = descriptor
            else:  # a writer that has finished removed this file
                os.close(descriptor)
        _held.add(self.descriptor)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        record = {"command": self.command, "host": socket.gethostname(), "process": os.getpid(), "since": since}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Remove the file while it is still locked; a process that waits with this file open then opens it again."""
        if self.descriptor in _held:  # not in a forked process
            if self._is_at(self.descriptor):
                self.path.unlink(missing_ok=True)
            _held.discard(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None
        if self.is_new:
            with suppress(OSError):  # unless something was written
                self.folder.rmdir()

    def _is_at(self, descriptor: int) -> bool:
        """Return whether an open file is still the lock file."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _refusal(self, holder: bytes) -> str:
        try:
            record = json.loads(holder)
            who = "{command} (process {process} on {host}, since {since})".format_map(record)
        except (ValueError, KeyError, TypeError):  # it is not written yet
            who = "another process"
        return (
            f"{self.folder} is being written by {who}. Wait until it is done, end that process, or give another "
            "folder."
        )


def _forget_locks() -> None:
    """Close the locks in a forked process, so that it does not hold them after its parent has ended."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Write a temporary file and rename it, so that `path` is never incomplete.

    Processes and threads can write the same file at the same time; the last one to finish wins. A killed process
    leaves a hidden file `.{name}.{process}.{thread}.tmp`.

    Args:
        path (`str` or `os.PathLike`): File to write or replace. Its folder must exist.

    Yields:
        `Path`: Temporary path to write to. If the block raises, it is removed, and `path` is unchanged.
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
    Give a file the default permissions of its folder (from the user's umask or the folder's access list).

    safetensors writes files that only their owner can read.
    """
    probe = path.with_name(f".{path.name}.mode")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.chmod(path, stat.S_IMODE(os.fstat(descriptor).st_mode))
    finally:
        os.close(descriptor)
        probe.unlink()
