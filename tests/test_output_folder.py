"""Output folders: one writer at a time, killed writers, full disks, and permissions."""

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simple_multimodal import output_folder
from simple_multimodal.output_folder import LOCK_FILE, give_umask, write_atomically, writing_into

FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def writer(folder: Path, *, forks: bool = False):
    """Run a process that writes into a folder until the context ends. Its `child` is the id of its child, if any."""
    ready = FORK.SimpleQueue()
    over, ends = os.pipe()

    def write() -> None:
        os.close(ends)
        with writing_into(folder, command="first"):
            is_child = forks and os.fork() == 0
            if is_child or not forks:  # a forked child reports its own id
                ready.put(os.getpid())
            os.read(over, 1)
            if is_child:
                os._exit(0)

    process = FORK.Process(target=write)
    process.start()
    try:
        process.child = ready.get()
        yield process
    finally:
        os.close(ends)
        process.join()
        os.close(over)


def test_a_second_writer_gets_a_one_line_error_that_names_the_first(tmp_path):
    folder = tmp_path / "out"
    with writer(folder) as first:
        with pytest.raises(ValueError) as refused, writing_into(folder, command="second"):
            raise AssertionError("not reached")
        assert re.fullmatch(
            rf"{folder} is being written by first \(process {first.pid} on \S+, since \d{{4}}-\d\d-\d\d "
            r"\d\d:\d\d:\d\d\S+\)\. Wait until it is done, end that process, or give another folder\.",
            str(refused.value),
        )
        with writing_into(tmp_path, command="second"):  # the parent folder has its own lock
            pass
    assert not folder.exists()  # nothing was written
    with writing_into(folder, command="second"):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_second_lock_of_the_same_process_is_an_error_and_errors_release_the_lock(tmp_path):
    with writing_into(tmp_path, command="first"), pytest.raises(ValueError, match="being written by first"):
        with writing_into(tmp_path, command="second"):
            pass
    with pytest.raises(KeyError), writing_into(tmp_path, command="first"):
        raise KeyError
    with writing_into(tmp_path, command="second"):
        pass


@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_writer_releases_the_lock_even_if_its_child_is_alive(tmp_path, forks):
    with writer(tmp_path, forks=forks) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        assert (tmp_path / LOCK_FILE).exists()
        if forks:
            os.kill(first.child, 0)  # it is alive
        with writing_into(tmp_path, command="second"):
            assert f'"process": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_removed_lock_file_does_not_lock_the_folder(tmp_path):
    """A process that opened the lock file before it was removed does not share the folder with the next writer."""
    entered = []

    def take_turns() -> None:
        for _ in range(200):
            with contextlib.suppress(ValueError), writing_into(tmp_path, command="one of three"):
                os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                (tmp_path / "alone").unlink()

    for _ in range(3):
        entered.append(FORK.Process(target=take_turns))
        entered[-1].start()
    for process in entered:
        process.join()
    assert [process.exitcode for process in entered] == [0, 0, 0]


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(output_folder.logger, "warning", said.append)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):

        def flock(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(output_folder.fcntl, "flock", flock)
        with writing_into(tmp_path, command="first"), writing_into(tmp_path, command="second"):
            pass
    assert len(said) == 6 and all(str(tmp_path) in text and "cannot be locked" in text for text in said)


def test_a_file_instead_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "out").touch()
    with (
        pytest.raises(ValueError, match="out is a file; give a folder"),
        writing_into(tmp_path / "out", command="first"),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # from a write, which does not name a file
        OSError(errno.EDQUOT, "Disk quota exceeded", "/some/file"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as safetensors reports it
    ],
)
def test_the_error_of_a_full_disk_names_the_folder(tmp_path, error):
    with pytest.raises(OSError, match=rf"{re.escape(str(error))} \({tmp_path}/out has [\d.]+ GB free\)"):
        with writing_into(tmp_path / "out", command="first"):
            raise error
    with pytest.raises(PermissionError, match="^[^(]*$"), writing_into(tmp_path, command="first"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_file_is_renamed_when_it_is_complete(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("earlier")
    with write_atomically(str(path)) as temporary:
        temporary.write_text("whole")
        assert path.read_text() == "earlier" and temporary.parent == tmp_path
        assert temporary.name.startswith(".")  # a folder with only hidden files counts as empty
    assert path.read_text() == "whole"
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), write_atomically(path):
        pass  # nothing was written
    assert path.read_text() == "whole" and [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_threads_that_write_the_same_file_do_not_interfere(tmp_path):
    def write(number: int) -> None:
        with write_atomically(tmp_path / "same") as temporary, open(temporary, "w") as file:
            for _ in range(200):
                file.write(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [file.name for file in tmp_path.iterdir()] == ["same"]
    assert (tmp_path / "same").read_text() in {str(number) * 200 for number in range(8)}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_saved_files_have_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_file({"values": torch.ones(1)}, tmp_path / "a.safetensors")
        give_umask(tmp_path / "a.safetensors")
        (tmp_path / "b").touch()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.safetensors", "b"), 0o666 & ~umask)
