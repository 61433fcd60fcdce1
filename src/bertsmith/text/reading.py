"""Files on disk, found and opened: plain or compressed, one line after the other, with exact errors."""

import bz2
import difflib
import fnmatch
import glob
import gzip
import io
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow

from bertsmith.errors import InputError, StorageError, collecting, did_you_mean
from bertsmith.files import RUN_MARK
from bertsmith.text.encodings import likely_encoding

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_NUMBERED_WORDS = r"""awk -F'\t' '/^[0-9]+\t/ {printf "%s ", $2} !NF {print ""}'"""
LABELLED = {
    ".conll": """awk 'NF {printf "%s ", $1; next} {print ""}'""",
    ".iob2": _NUMBERED_WORDS,
    ".conllu": _NUMBERED_WORDS,
}
"""Files of a word a line, and what makes a line of text of each of their sentences."""
_ALL_BELOW = ("**",)
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")

_PART_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 18  # behind a line that is not UTF-8, to tell its encoding by
# Of a document of the greatest length, if all of its characters have four bytes.
_LINE_LIMIT = 1 << 30
_TOO_FAR = "requires too much memory"  # of zstd, which looks back 128 MiB (--long=27) if it is not told to look further
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case without that of a compression: ".jsonl" for "Text.JSONL.xz"."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


class TextReader(Iterator[str]):
    r"""An open text file: iterate over its lines, or `read` all that is left. Made by `open_text`.

    A line ends at "\n", or "\r\n", which is read as "\n", and at nothing else: U+0085 and U+2028 stay
    inside their line. A byte order mark at the start of the file is dropped.

    Args:
        bad: gets what is wrong with lines that cannot be read, which are passed over; None: the first is an error.

    Raises:
        InputError: bytes that are not UTF-8, a line without an end, or damaged compressed data; names line and byte.
    """

    def __init__(self, path: Path, bad: list[InputError] | None = None) -> None:
        self.path = path
        self._bad = bad
        self.line_number = 0  # of the line read last, counted from 1
        self._offset_bytes = 0
        self._encoding: str | None = None  # what the file seems to be in, once a line was not UTF-8
        self._stream = open_bytes(path)

    def __next__(self) -> str:
        while line := self._read(_LINE_LIMIT + 1):
            self.line_number += 1
            begin_bytes, self._offset_bytes = self._offset_bytes, self._offset_bytes + len(line)
            text: str | None = None
            with collecting(self._bad):
                text = self._decoded(line, begin_bytes)
            if text is not None:
                return text[:-2] + "\n" if text.endswith("\r\n") else text
        raise StopIteration

    def read(self) -> str:
        """All that has not been read yet."""
        return "".join(self)

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.readline(size)
        except _DAMAGED as error:
            raise _unreadable(self.path, error) from None

    def _decoded(self, line: bytes, begin_bytes: int) -> str:
        if len(line) > _LINE_LIMIT:
            while line and not line.endswith(b"\n"):
                line = self._read(_PART_BYTES)
                self._offset_bytes += len(line)
            raise InputError(
                f"a line of more than {_LINE_LIMIT:,} bytes. Is this text? If it is, break it into lines.",
                f"{self.path}:{self.line_number}",
            )
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._not_utf8(line, begin_bytes, error.start) from None
        return text if begin_bytes else text.removeprefix("\ufeff")

    def _not_utf8(self, line: bytes, begin_bytes: int, start: int) -> InputError:
        unpacked = " (unpacked)" if self.path.suffix.lower() in COMPRESSIONS else ""
        if self._encoding is None:
            self._encoding = likely_encoding(_not_utf8_lines(self.path, line, self._offset_bytes))
        return InputError(
            f"byte 0x{line[start]:02x} at offset {begin_bytes + start}{unpacked} is not UTF-8. Convert the "
            f"file, for example: iconv -f {self._encoding} -t UTF-8 {self.path.name} > new-{self.path.name}",
            f"{self.path}:{self.line_number}",
        )


def open_text(path: str | Path, bad: list[InputError] | None = None) -> TextReader:
    """Open a UTF-8 file for reading, plain or .gz, .bz2, .xz or .zst; see `TextReader`.

    Raises:
        InputError: no such file (names the nearest one beside it), one that may not be read, or a spreadsheet.
    """
    path = Path(path).expanduser()
    if suffix_of(path) in _SPREADSHEETS:
        raise InputError("spreadsheets are not read. Save it as text, in UTF-8, and give that file.", str(path))
    return TextReader(path, bad)


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The unpacked bytes of a file, buffered. Errors as `open_text`; damage shows up when reading."""
    try:
        compression = path.suffix.lower()
        if compression == ".gz":
            return gzip.open(path, "rb")
        if compression == ".bz2":
            return bz2.open(path, "rb")
        if compression == ".xz":
            return lzma.open(path, "rb")
        if compression == ".zst":
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
        return path.open("rb")
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def open_seekable(path: Path) -> io.BufferedIOBase:
    """As `open_bytes`, for formats that are not read from front to back: unpacked to a temporary file.

    Raises:
        InputError: no such file, or damaged compressed data.
        StorageError: the temporary file cannot be written.
    """
    packed = open_bytes(path)
    if path.suffix.lower() not in COMPRESSIONS:
        return packed
    try:
        return _unpack(packed, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be unpacked to a temporary file: {error.strerror or error}. Free some space in the "
            "temporary folder, set TMPDIR to another one, or unpack the file yourself."
        ) from error


def find_files(
    source: str, suffixes: Sequence[str], proposed: Sequence[str] | None = None, notes: list[str] | None = None
) -> list[Path]:
    """The files a path means, sorted: itself, those below a folder, or those a glob pattern matches.

    Of folders and patterns, files with other suffixes and hidden files are passed over; so are the folders below them
    (below what a pattern begins with) that are a tokenizer, a store or a run of ours, and links to folders. A path that
    exists is never a pattern.

    Args:
        proposed: the suffixes that an error names; None: all of them.
        notes: gets a line for each folder that is passed over, but for hidden ones.

    Raises:
        InputError: nothing is there, a folder may not be read, nothing has a known suffix, or a file named outright has
            not.
    """
    path = Path(source).expanduser()
    try:
        is_file = path.is_file()
    except OSError as error:  # Too long a name: somebody gave the text itself.
        raise _unreadable(Path(source[:60]), error) from None
    if is_file:
        if suffix_of(path) not in suffixes:
            raise InputError(_unknown_suffix(path, proposed or suffixes), str(path))
        return [path]
    passed_over: list[str] = []
    if path.is_dir():
        files = list(_walk(path, [_ALL_BELOW], passed_over))
    elif glob.has_magic(source):
        fixed = next(place for place, part in enumerate(path.parts) if glob.has_magic(part))
        begin = Path(*path.parts[:fixed])
        files = list(_walk(begin, [path.parts[fixed:]], passed_over)) if begin.is_dir() else []
        if not files and not passed_over:
            raise InputError("no file matches this pattern.", source)
    else:
        raise missing(path)
    known = sorted(file for file in files if suffix_of(file) in suffixes)
    if not known:
        others = sorted({suffix_of(file) or file.name for file in files})
        found = " ".join([f"{', '.join(others[:10]) or 'no file at all'}.", *passed_over[:10]])
        raise InputError(
            f"no file here has a suffix of {', '.join(proposed or suffixes)}, plain or with {', '.join(COMPRESSIONS)}. "
            f"Found: {found}",
            source,
        )
    if notes is not None:
        notes += passed_over
    return known


def missing(path: Path) -> InputError:
    """The error for a path that is not there: names what stands beside it, or the folder that lacks."""
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        siblings = sorted(entry.name for entry in os.scandir(parent) if not entry.name.startswith("."))
    except OSError:
        siblings = []
    near = difflib.get_close_matches(path.name, siblings, n=8, cutoff=0.4) or siblings[:8]
    hint = did_you_mean(path.name, near) if near else "The folder it should be in is empty."
    return InputError(f"no such file or folder. {hint}", str(path))


def _unpack(packed: io.BufferedIOBase, path: Path) -> io.BufferedIOBase:
    """All of it in a temporary file, which is gone when closed. OSError is of writing, InputError of reading."""
    unpacked = tempfile.TemporaryFile()
    try:
        with packed:
            for part in _parts(packed, path):
                unpacked.write(part)
        unpacked.seek(0)
    except BaseException:
        with suppress(OSError):  # what could not be written is tried again
            unpacked.close()
        raise
    return unpacked


def _parts(stream: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    while True:
        try:
            part = stream.read(_PART_BYTES)
        except _DAMAGED as error:
            raise _unreadable(path, error) from None
        if not part:
            return
        yield part


def _walk(folder: Path, patterns: Sequence[Sequence[str]], passed_over: list[str]) -> Iterator[Path]:
    """The files below a folder that fit a pattern, given as the parts of a path from there, and all in folders that do.

    Not `glob`, which follows links in circles, and says nothing of folders that may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries)
        for name, is_folder, is_link in found:
            path = folder / name
            left = list(_behind(name, patterns))
            if not left:
                continue
            if not is_folder:
                yield from [path] if any(set(pattern) == {"**"} for pattern in left) else []
            elif is_link:
                passed_over.append(f"{path} is passed over: links to folders are not followed.")
            elif what := _made(path):
                passed_over.append(f"{path} is passed over: it is {what}.")
            else:
                yield from _walk(path, left, passed_over)
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _behind(name: str, patterns: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """What is left of each pattern that begins like a name; of one that ends with it, all that is below.

    >>> list(_behind("a", [["**", "*.txt"]])), list(_behind("b.txt", [["**", "*.txt"]])), list(_behind(".c", [["*"]]))
    ([['**', '*.txt']], [['**', '*.txt'], ('**',)], [])
    """
    for pattern in patterns:
        for place, part in enumerate(pattern):
            if part == "**":
                if not name.startswith("."):
                    yield pattern[place:]
                continue
            if fnmatch.fnmatch(name, part) and (part.startswith(".") or not name.startswith(".")):
                yield pattern[place + 1 :] or _ALL_BELOW
            break


def _made(folder: Path) -> str | None:
    """Whether a folder is a tokenizer, a store or a run, which are made of text and are none to learn from."""
    names = {entry.name for entry in os.scandir(folder)}
    # One of them alone may lie beside texts.
    if len(names & {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}) > 1:
        return "a tokenizer"
    if {"manifest.json", "train"} <= names:
        return "a store"
    settings = folder / "config.yaml"
    if settings.is_file() and settings.read_bytes()[: len(RUN_MARK)] == RUN_MARK.encode():
        return "a run"
    return None


def _unknown_suffix(path: Path, suffixes: Sequence[str]) -> str:
    suffix = suffix_of(path)
    known = f"{did_you_mean(suffix, suffixes)} Each may be followed by {', '.join(COMPRESSIONS)}."
    if suffix == ".json":
        return (
            "a .json file is read here only if it holds one object a line; then name it .jsonl. One with a list of "
            f"objects can be converted: jq -c '.[]' {path.name} > {path.stem}.jsonl. {known}"
        )
    if suffix in LABELLED:
        return (
            f"a {suffix} file holds words with their labels, for finetune tagging, and neither text nor columns with "
            f"names. To make text of it: {LABELLED[suffix]} {path.name} > {path.stem}.txt"
        )
    if suffix in _SPREADSHEETS:
        return f"spreadsheets are not read. Save it as CSV, in UTF-8, and give that file. {known}"
    return f'cannot tell the format from "{suffix or path.name}". {known}'


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if path.suffix.lower() == ".zst" and _TOO_FAR in reason:
        unpack = f"zstd -d --long=31 {path.name}"
        return InputError(f"packed with more memory than is taken here to unpack it. Unpack it: {unpack}", str(path))
    damaged = " The compressed file is damaged or cut short." if path.suffix.lower() in COMPRESSIONS else ""
    return InputError(f"cannot be read: {reason}.{damaged}", str(path))


def _not_utf8_lines(path: Path, line: bytes, end_bytes: int) -> bytes:
    """A line that is not UTF-8 and ends there, and others like it behind it: one alone tells little of its encoding."""
    if not path.is_file():  # a pipe gives its bytes but once
        return line
    try:
        with open_bytes(path) as stream:
            for place in range(0, end_bytes, _PART_BYTES):
                stream.read(min(_PART_BYTES, end_bytes - place))
            sample = stream.read(_SAMPLE_BYTES)
    except _DAMAGED:
        return line
    *whole, last = sample.split(b"\n")
    if len(sample) < _SAMPLE_BYTES:
        whole.append(last)
    return b"\n".join([line, *(other for other in whole if not _is_utf8(other))])


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
