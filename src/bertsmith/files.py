"""Files that are either whole or not there: atomic writes, atomic folders, hashes and free space.

A write goes to a temporary neighbour in the same folder, is forced to the disk (fsync), and is then
renamed over its name: POSIX promises that a reader sees the old file or the new one. The parent
folder is forced to the disk as well, or the rename itself may be lost in a power cut (see "Files are
hard", Pillai et al. 2014, "All File Systems Are Not Created Equal").
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bertsmith.errors import InputError, SettingsError, StorageError

RUN_MARK = "# bertsmith "
"""How the settings in the folder of a run begin."""
_LEFTOVER = re.compile(r"\..+\.(tmp|old)-.+")
OF_A_DISK = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not be as large here (a limit of the system or of ulimit)",
    errno.EIO: "the disk reported an error",
    errno.EROFS: "the file system is read-only",
}
"""What the system may refuse a write with, whatever is written to; in words."""
_REFUSALS = OF_A_DISK | {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
}


def free_bytes(path: Path) -> int:
    """Bytes that can still be written under `path`, or under its nearest folder that exists."""
    return shutil.disk_usage(path if path.is_dir() else _nearest_folder(path)).free


def ensure_free(path: Path, needed_bytes: int) -> None:
    """Raise StorageError now rather than half-way, if `needed_bytes` will not fit under `path`."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise StorageError(
            f"{path}: {format_size(needed_bytes)} needed, {format_size(free)} free. Free some space or choose another "
            "folder."
        )


def sha256(path: Path) -> str:
    """The file's SHA-256 in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file (text as UTF-8), creating its folder; on failure the old file stays.

    A name of a file that is not UTF-8 has "?" for what cannot be written of it.

    Raises:
        StorageError: no space, no permission, read-only; with the bytes needed and the bytes free.
    """
    content = data.encode("utf-8", "replace") if isinstance(data, str) else data
    with atomic_file(path, len(content)) as file:
        file.write(content)


def refuse_folder(path: Path) -> None:
    """Raise StorageError if a file is to be written where a folder is: before what costs time is done for it."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder. Give the name of a file.")


def refuse_overwriting(out: Path, sources: Iterable[str | Path]) -> None:
    """Make sure that a file which is to be written is none of those that are read; changes nothing.

    Args:
        sources: files, folders and patterns of what is read; what is none of these here, such as a name of the Hub, is
            passed over.

    Raises:
        SettingsError: `out` is one of them, or lies in one.
    """
    place = out.expanduser().resolve()
    if place.exists() and not place.is_file():  # a pipe or /dev/null loses nothing
        return
    for source in sources:
        for path in _found(source):
            if path == place or (place.exists() and path.exists() and path.samefile(place)):
                raise SettingsError(f"{out} would be overwritten, and {source} is read. Choose another file.")
            if place.is_relative_to(path):
                raise SettingsError(f"{out} lies in {source}, which is read. Choose another folder.")


def refuse_removing(folder: Path, sources: Iterable[str | Path]) -> None:
    """Make sure that nothing which is read lies in a folder that is to be replaced.

    Args:
        sources: as for `refuse_overwriting`.

    Raises:
        SettingsError: one of them does, or is the folder.
    """
    place = folder.resolve()
    for source in sources:
        if any(path.is_relative_to(place) for path in _found(source)):
            raise SettingsError(f"{source} is read, and lies in what --overwrite replaces. Choose another folder.")


def refuse_replacing(out: Path, names: Collection[str], what: str, sources: Iterable[str | Path]) -> None:
    """Make sure that a folder which is to be replaced holds what was written there before, and nothing that is read;
    changes nothing.

    Args:
        names: all that there may be in it.
        what: they are of, for the message: "a tokenizer".
        sources: as for `refuse_overwriting`.

    Raises:
        SettingsError: something else is in it, or one of the sources; it is the working directory.
        StorageError: it is a file.
    """
    place = out.expanduser().resolve()
    if place.exists() and not place.is_dir():
        raise StorageError(f"{out} is a file. Choose another folder.")
    refuse_removing(place, sources)
    if place == Path.cwd():
        raise SettingsError("--overwrite would remove the folder that you are in. Choose another folder.")
    others = sorted(path.name for path in place.iterdir() if path.name not in names) if place.is_dir() else []
    others = [name for name in others if not is_leftover(name)]
    if others:
        raise SettingsError(
            f"{out} holds {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''}, which is not of "
            f"{what}, and --overwrite would remove it. Choose another folder."
        )


def _found(source: str | Path) -> Iterator[Path]:
    """What a file, a folder or a pattern means, resolved; nothing where it is none of these here."""
    named = str(Path(source).expanduser())
    for found in [named] if os.path.exists(named) else glob.iglob(named, recursive=True):
        yield Path(found).resolve()


@contextmanager
def atomic_file(path: Path, needed_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Write a file piece by piece; it appears under its name when the `with` block ends without an error.

    A link is followed; what is no file, such as a pipe or /dev/null, is written to directly.

    Args:
        needed_bytes: the size, where it is known; only for messages.

    Raises:
        StorageError: the disk refused; the old file stays. Or `path` is a folder.
    """
    refuse_folder(path)
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    with refusals_explained(path, needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, replace: bool = False, needed_bytes: int | None = None) -> Iterator[Path]:
    """Fill a folder that appears under its name only when the `with` block ends without an error.

    The block writes into the yielded temporary sibling `.NAME.tmp-XXXX`. Afterwards every file and
    folder in it is forced to the disk and it is renamed to `path`. When the block raises, the
    temporary folder is removed and `path` is as it was.

    Args:
        replace: an existing folder is swapped out and removed after the new one is in place;
            without it, an existing `path` is an error (before the block runs, and after it).
        needed_bytes: the size, where it is known; only for messages.

    Raises:
        StorageError: `path` exists and `replace` is false, or the disk refused.
    """
    path = path.resolve()  # "." and "" have no name to put a sibling's beside
    _refuse_present(path, replace)
    with refusals_explained(path, needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _fsync_file(Path(folder) / name)
                _fsync_folder(Path(folder))
            _refuse_present(path, replace)  # another process may have been faster
            _move_into_place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync_folder(path.parent)


def _refuse_present(path: Path, replace: bool) -> None:
    if path.exists() and not replace:
        raise StorageError(f"{path} already exists. Choose another folder, or replace it with --overwrite.")


def bring_back(folder: Path) -> None:
    """Undo replacements that a killed process left half done: of a folder that had been moved aside in `folder` when
    the new one was not yet in its place. The next process wants this before it removes anything.

    Raises:
        StorageError: the folder cannot be written to.
    """
    with refusals_explained(folder, after=""):
        for old in folder.glob(".*.old-*/*"):
            if old.parent.name.startswith(f".{old.name}.old-") and not (folder / old.name).exists():
                os.rename(old, folder / old.name)


def is_leftover(name: str) -> bool:
    """Whether something of this name is what a process left that was killed in one of the writes above."""
    return _LEFTOVER.fullmatch(name) is not None


def clear_leftovers(folder: Path) -> None:
    """`bring_back`, and remove what else killed processes left in `folder`; no other process may be writing there.

    Raises:
        StorageError: the folder cannot be written to.
    """
    bring_back(folder)
    with refusals_explained(folder, after=""):
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_leftover(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_from(folder: Path, names: Iterable[str]) -> None:
    """Remove files and folders from a folder, where they are there; the folder itself, which may be a link, stays.

    Raises:
        StorageError: something may not be removed.
    """
    with refusals_explained(folder):
        for path in map(folder.joinpath, names):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: no such file, one that may not be read, or not JSON; names the line and column.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file", str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(path)) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} (column {error.colno})", f"{path}:{error.lineno}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason} at byte {error.start}", str(path)) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise InputError(f"not JSON: {error}", str(path)) from None
    except RecursionError:
        raise InputError("not JSON: nested too deeply", str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people to read: indented, keys in the given order, characters as they are."""
    atomic_write(path, _json_text(value))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest that tells damage to itself: `value` and, under "sha256", the hash of what `write_json` makes of it.

    >>> sealed({"step": 3})["sha256"][:8]
    'ab19be9c'
    """
    return {**value, "sha256": hashlib.sha256(_json_text(value)).hexdigest()}


def is_unchanged(path: Path, value: Mapping[str, Any]) -> bool:
    """Whether a file that reads as `value` is, to the last byte, what `write_json` wrote of a `sealed` mapping."""
    rest = {name: item for name, item in value.items() if name != "sha256"}
    return path.read_bytes() == _json_text(sealed(rest))


def _json_text(value: Any) -> bytes:
    # What was read from a file of others may hold lone surrogates, which have no UTF-8.
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _nearest_folder(path: Path) -> Path:
    """The closest parent of `path` that exists: what a write to `path` would touch first."""
    return next(place for place in path.absolute().parents if place.exists())


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`; an old folder there is moved aside first, then removed."""
    if not path.exists():
        os.rename(temporary, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent)) / path.name
    try:
        os.rename(path, old)
        os.rename(temporary, path)
    finally:
        if not path.exists():
            os.rename(old, path)
        shutil.rmtree(old.parent, ignore_errors=True)


@contextmanager
def refusals_explained(
    path: Path, needed_bytes: int | None = None, after: str = "Nothing half-written was left behind."
) -> Iterator[None]:
    """Turn the system's refusals to write at `path` into StorageError; other errors pass unchanged.

    A refusal that names a file elsewhere (an input that may not be read) is not about `path`.

    Args:
        needed_bytes: the size, where it is known.
        after: how things are now, for the end of the message.

    Raises:
        StorageError: with the bytes needed and the bytes free.
    """
    try:
        yield
    except OSError as error:
        named = Path(error.filename).absolute() if isinstance(error.filename, str) else None
        if error.errno not in _REFUSALS or (named and not named.is_relative_to(_nearest_folder(path))):
            raise
        needed = "" if needed_bytes is None else f"{format_size(needed_bytes)} needed, "
        why = f"{_REFUSALS[error.errno]} ({needed}{format_size(free_bytes(path))} free)"
        raise StorageError(f"cannot write {path}: {why}. {after}".rstrip()) from error


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    """Force a folder's entries to the disk; some file systems cannot do this for a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask, which mkstemp and mkdtemp ignore in favour of private files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def format_size(count: float) -> str:
    """Bytes for people, in binary units.

    >>> format_size(1536)
    '1.5 KiB'
    """
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
