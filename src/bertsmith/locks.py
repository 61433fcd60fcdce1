"""One process at a time writes to a folder: a lock that the kernel frees when its process ends, however it ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertsmith.errors import SettingsError, StorageError
from bertsmith.files import refusals_explained

LOCK = ".bertsmith.lock"
"""The file in a folder that is written to; it says by whom."""
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_TRIES = 100


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process until the block ends, and make it if it is not there.

    The lock (flock) is on a file in it, which goes when the block ends, as does the folder if it was made here and is
    empty. What a killed process left is no lock any more. On a file system that has no locks, nothing is held.

    Raises:
        SettingsError: another process holds it.
        StorageError: it cannot be made, or not be written to.
    """
    with refusals_explained(folder):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        descriptor = _opened(folder)
    try:
        with suppress(OSError):  # for people; the lock is what counts
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        # While it is held: after that the file may be the next one's.
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)
        with suppress(OSError):  # something is in it
            for place in made:
                place.rmdir()


def _opened(folder: Path) -> int:
    """The file, locked."""
    path = folder / LOCK
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the one before has just removed the folder, or the file
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor, folder)
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise StorageError(f"{folder} comes and goes, as other processes make and remove it. Choose another folder.")


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.read(descriptor, 200).decode(errors="replace")
        raise SettingsError(
            f"another process writes to {folder}{f' ({who})' if who else ''}. Let it end, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
