"""Files are whole or not there, whatever goes wrong on the way."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from bertsmith import files
from bertsmith.errors import InputError, StorageError


class Refusal:
    """Stands for os.fsync on a disk that refuses with one error number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, descriptor: int) -> None:
        raise OSError(self.number, os.strerror(self.number))


def names(folder: Path) -> set[str]:
    """Everything in a folder, hidden names too."""
    return {path.name for path in folder.iterdir()}


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    files.atomic_write(path, "naïve 词")
    assert path.read_bytes() == "naïve 词".encode()
    files.atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == {"file.txt"}


def test_new_files_have_the_modes_that_open_would_give(tmp_path: Path) -> None:
    files.atomic_write(tmp_path / "file", "x")
    with files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
    (tmp_path / "plain").write_text("x")
    (tmp_path / "plain-folder").mkdir()
    mode = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert mode["file"] == mode["plain"]
    assert mode["folder"] == mode["plain-folder"]


def test_all_is_on_the_disk_before_it_has_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder is forced to the disk under its temporary name; after the renaming the folder around it."""
    events: list[tuple[str, int]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def forced(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def named(move: Callable[[Any, Any], None], source: Any, target: Any) -> None:
        events.append(("name", os.stat(source).st_ino))
        move(source, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "rename", partial(named, rename))
    monkeypatch.setattr(os, "replace", partial(named, replace))
    around = ("fsync", tmp_path.stat().st_ino)
    with files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        (folder / "file").write_text("y")
    whole = tmp_path / "folder"
    *before, name, after = events
    assert set(before) == {("fsync", path.stat().st_ino) for path in (whole, *whole.rglob("*"))}
    assert (name, after) == (("name", whole.stat().st_ino), around)
    events.clear()
    files.atomic_write(tmp_path / "file", "x")
    inode = (tmp_path / "file").stat().st_ino
    assert events == [("fsync", inode), ("name", inode), around]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_refused_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", Refusal(number))
    with pytest.raises(StorageError, match=r"2\.0 KiB needed, .* free"):
        files.atomic_write(path, b"x" * 2048)
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_a_file_written_in_pieces_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with files.atomic_file(path) as file:
        file.write(b"1\n")
        file.write(b"2\n")
        assert not path.exists()
    assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(ValueError), files.atomic_file(path) as file:
        file.write(b"3\n")
        raise ValueError
    assert path.read_bytes() == b"1\n2\n" and names(tmp_path) == {"answers.jsonl"}


def test_what_is_no_file_is_written_to_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.atomic_write(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        files.atomic_write(tmp_path / "pipe", "y")
        assert read.result() == "y"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder is a folder\. Give the name of a file"):
        files.atomic_write(tmp_path / "folder", "z")


def test_a_name_that_has_no_utf8_is_written_with_question_marks(tmp_path: Path) -> None:
    files.atomic_write(tmp_path / "card.md", "data: r\udce9views.csv")
    assert (tmp_path / "card.md").read_text() == "data: r?views.csv"


def test_what_is_named_is_removed_and_a_link_to_the_folder_stays(tmp_path: Path) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept"
    (run / "model").mkdir(parents=True)
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    (run / "config.yaml").write_text("x")
    (run / "data").symlink_to(kept)
    (tmp_path / "link").symlink_to(run)
    (run / "mine.txt").write_text("y")
    files.remove_from(tmp_path / "link", ["model", "config.yaml", "data", "nothing"])
    files.remove_from(tmp_path / "nowhere", ["model"])
    assert (tmp_path / "link").is_symlink() and names(run) == {"mine.txt"} and names(kept) == {"thesis.txt"}


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        files.atomic_write(tmp_path / "file" / "below", "y")


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", Refusal(errno.EBADF))
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        files.atomic_write(tmp_path / "file", "x")
    assert not isinstance(caught.value, StorageError)
    assert names(tmp_path) == set()


def test_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "store"
    with files.atomic_folder(target) as folder:
        assert folder.parent == target.parent and folder.name.startswith(".store.tmp-")
        (folder / "train").mkdir()
        (folder / "train" / "a.npy").write_bytes(b"1")
        assert not target.exists()
    assert (target / "train" / "a.npy").read_bytes() == b"1"
    assert names(target.parent) == {"store"}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_folder_vanishes_when_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("kept")
    with pytest.raises(type(error)), files.atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("lost")
        raise error
    assert names(tmp_path) == {"store"} and names(target) == {"old"}


def test_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(StorageError, match="already exists"), files.atomic_folder(target):
        pytest.fail("the block must not run")
    with files.atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("y")
    assert names(target) == {"new"} and names(tmp_path) == {"store"}


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "store"
    with pytest.raises(StorageError, match="already exists"), files.atomic_folder(target) as folder:
        (folder / "ours").touch()
        with files.atomic_folder(target) as theirs:
            (theirs / "theirs").touch()
    assert names(target) == {"theirs"} and names(tmp_path) == {"store"}


@pytest.mark.parametrize("name", [".", "", "./", "../here"])
def test_a_folder_is_replaced_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """ "." has no name of its own, and nothing but that folder may be touched."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "old").touch()
    (tmp_path / "beside").touch()
    monkeypatch.chdir(tmp_path / "here")
    with files.atomic_folder(Path(name), replace=True) as folder:
        (folder / "new").touch()
    monkeypatch.chdir(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["beside", "here", "here/new"]


@pytest.mark.parametrize(
    ("failure", "error"),
    [(OSError(errno.ENOSPC, "No space left on device"), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_the_old_folder_comes_back_when_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, error: type[BaseException]
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("x")
    rename = os.rename

    def refuse_the_new_one(source: Path, destination: Path) -> None:
        if Path(source).name.startswith(".store.tmp-"):
            raise failure
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse_the_new_one)
    with pytest.raises(error), files.atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("y")
    assert names(target) == {"old"} and names(tmp_path) == {"store"}


KILLED = """
import os, sys
from pathlib import Path
from bertsmith import files

rename, count = os.rename, [0]

def last(source, destination):
    rename(source, destination)
    count[0] += 1
    if count[0] == int(sys.argv[2]):
        os._exit(9)

os.rename = last
with files.atomic_folder(Path(sys.argv[1]), replace=True) as folder:
    (folder / "new").write_text("y")
"""


@pytest.mark.parametrize(("renames", "there"), [(1, "old"), (2, "new")])
def test_a_process_that_was_killed_in_the_swap_loses_nothing(tmp_path: Path, renames: int, there: str) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("x")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target), str(renames)], check=False)
    assert killed.returncode == 9
    assert target.exists() == (renames == 2)
    files.bring_back(tmp_path)
    assert names(target) == {there}
    files.bring_back(tmp_path / "none")


# The first argument is a folder; the process ends when it first forces something to the disk.
KILLED_WRITING = """
import os, sys
from pathlib import Path
from bertsmith import files
os.fsync = lambda descriptor: os._exit(9)
place = Path(sys.argv[1])
if sys.argv[2] == "file":
    files.atomic_write(place / "config.yaml", "x")
with files.atomic_folder(place / "model") as folder:
    (folder / "new").write_text("y")
"""


def test_what_killed_processes_left_is_known_and_cleared(tmp_path: Path) -> None:
    for what in ("file", "folder"):
        killed = subprocess.run([sys.executable, "-c", KILLED_WRITING, str(tmp_path), what], check=False)
        assert killed.returncode == 9
    assert len(names(tmp_path)) == 2 and all(map(files.is_leftover, names(tmp_path)))
    kept = {"config.yaml", ".hidden", "a.tmp-b", ".git.tmp"}
    for name in kept:
        (tmp_path / name).touch()
    assert not any(map(files.is_leftover, kept))
    old = tmp_path / ".model.old-abc"
    (old / "model").mkdir(parents=True)
    files.clear_leftovers(tmp_path)
    assert names(tmp_path) == {*kept, "model"}, "what had been moved aside is back"
    files.clear_leftovers(tmp_path / "none")


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_what_killed_processes_left_where_nothing_may_be_written_is_an_error_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / ".config.yaml.tmp-abc").touch()
    (tmp_path / ".model.old-abc" / "model").mkdir(parents=True)

    def refuse(path: Path, *others: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match=rf"cannot write {tmp_path}: the file system is read-only \(.* free\)\.$"):
        files.clear_leftovers(tmp_path)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4), st.data())
def test_every_change_in_a_sealed_file_is_found(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object], data: st.DataObject
) -> None:
    value.pop("sha256", None)
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    try:
        files.write_json(path, files.sealed(value))
    except UnicodeEncodeError:
        reject()  # a lone surrogate
    whole = path.read_bytes()
    assert files.is_unchanged(path, files.read_json(path))
    rest = {name: item for name, item in files.read_json(path).items() if name != "sha256"}
    assert rest == value
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from((flipped, whole[:place]))))
    try:
        changed = files.read_json(path)
    except InputError:
        return
    assert not isinstance(changed, dict) or not files.is_unchanged(path, changed)


def test_no_space_inside_the_block_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left"), files.atomic_folder(tmp_path / "store"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == set()


def test_an_unreadable_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PermissionError), files.atomic_folder(tmp_path / "out" / "store"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input.txt")


@given(st.binary(max_size=300))
def test_sha256_is_that_of_hashlib(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(data)
    assert files.sha256(path) == hashlib.sha256(data).hexdigest()


def test_free_space_is_asked_of_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> shutil._ntuple_diskusage:
        asked.append(Path(path))
        return shutil._ntuple_diskusage(10 * 2**30, 9 * 2**30, 2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert files.free_bytes(tmp_path / "not" / "yet" / "there") == 2**30
    files.free_bytes(tmp_path)
    assert asked == [tmp_path, tmp_path]
    files.ensure_free(tmp_path / "x", 2**30)
    with pytest.raises(StorageError, match=r"3\.0 GiB needed, 1\.0 GiB free"):
        files.ensure_free(tmp_path / "x", 3 * 2**30)


def test_json_round_trip_keeps_order_and_characters(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"词": "naïve"}}
    files.write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "v.json") == value
    assert text.index('"b"') < text.index('"a"') and "词" in text and text.endswith("}\n")
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', r"v\.json:2: not JSON"),
        (b'{"a": "\xff"}', "not UTF-8.*byte 7"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"9" * 5000, "not JSON: .*digits"),
        (None, "no such file"),
        ("a folder", r"v\.json: cannot be read: Is a directory"),
    ],
)
def test_unreadable_json_is_named(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "v.json"
    if isinstance(content, str):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_json(path)
