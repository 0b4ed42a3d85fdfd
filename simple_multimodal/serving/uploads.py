"""Files that clients have sent, in a private folder."""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from simple_multimodal.errors import InputError

PREFIX = "server-"


def default_folder() -> str:
    """Return the folder for uploads of this user's servers."""
    return os.path.join(tempfile.gettempdir(), f"simple_multimodal_uploads_{os.getuid()}")


class UploadFolder:
    """
    A folder of files with random names that only this user may enter. Servers may share the folder above it, from
    which folders of servers that have ended, even by SIGKILL, are removed at the start.

    Args:
        folder (`str`, *optional*): Folder above it, which is created; by default [`default_folder`].

    Raises:
        ValueError: If the folder is not a folder of this user, **or** cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        above = Path(default_folder() if folder is None else folder)
        try:
            above.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = above.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise InputError(f"`upload_dir={above}` is not a folder of this user. Give another one.")
            with _locked(above):  # no other server creates its folder now
                for other in above.glob(f"{PREFIX}*"):
                    if (lock := _try_lock(other)) is not None:  # its server has ended
                        shutil.rmtree(other, ignore_errors=True)
                        os.close(lock)
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))  # of mode 700
                lock = _try_lock(self.path)
                assert lock is not None
                self._lock = lock
        except OSError as error:
            raise InputError(f"`upload_dir={above}` cannot be used: {error.strerror}.") from error

    def new(self) -> Path:
        """Return the path of a new file, which does not exist."""
        return self.path / secrets.token_hex(16)

    def close(self) -> None:
        """Remove the folder with all files."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor that is returned is closed; return `None` if another process has done so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path):
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
