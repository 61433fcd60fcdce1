"""One process at a time writes to a folder, and nobody else is kept waiting."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bertsmith import locks
from bertsmith.errors import SettingsError, StorageError
from bertsmith.locks import LOCK, only_writer

HOLD = """
import sys
from pathlib import Path
from bertsmith.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until it is spoken to."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with another(folder) as process:
        with pytest.raises(SettingsError) as caught, only_writer(folder):
            pytest.fail("the block must not run")
        who = f"process {process.pid} on {socket.gethostname()}"
        assert str(caught.value) == f"another process writes to {folder} ({who}). Let it end, or choose another folder."
        assert [path.name for path in folder.iterdir()] == [LOCK], "the one that is refused changes nothing"
        process.communicate("")
        assert process.returncode == 0
    assert not (tmp_path / "runs").exists(), "what was made and stayed empty goes"
    with only_writer(folder):
        (folder / "model").touch()
    assert [path.name for path in folder.iterdir()] == ["model"]
    with only_writer(folder):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK).is_file()
    with only_writer(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(SettingsError, match="another process writes"), only_writer(tmp_path):
            pytest.fail("the block must not run")
    assert not list(tmp_path.iterdir())


def test_a_file_that_has_lost_its_name_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before lets go after we have opened its file, and before we lock it: the next would lock another."""
    lock = locks._lock
    tries = []

    def slow(descriptor: int, folder: Path) -> None:
        tries.append(descriptor)
        if len(tries) == 1:
            (folder / LOCK).unlink()
            folder.rmdir()
        lock(descriptor, folder)

    monkeypatch.setattr(locks, "_lock", slow)
    with only_writer(tmp_path / "run"):
        assert len(tries) == 2
        with pytest.raises(SettingsError), only_writer(tmp_path / "run"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_where_there_are_no_locks_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_writer(tmp_path), only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*file: a part of the path is a file"):
        only_writer(tmp_path / "file").__enter__()

    def refused(path: Path, flags: int, mode: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StorageError, match=r"cannot write .*: the file system is read-only \(.* free\)"):
        only_writer(tmp_path).__enter__()
