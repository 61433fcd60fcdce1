"""Files on disk, found and opened: plain or compressed, one line after the other, with exact errors."""

import difflib
import glob
import gzip
import io
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow

from bertsmith.errors import InputError, StorageError, collecting, did_you_mean
from bertsmith.files import RUN_MARK
from bertsmith.text.encodings import likely_encoding

COMPRESSIONS = (".gz", ".xz", ".zst")
_NUMBERED_WORDS = r"""awk -F'\t' '/^[0-9]+\t/ {printf "%s ", $2} !NF {print ""}'"""
LABELLED = {
    ".conll": """awk 'NF {printf "%s ", $1; next} {print ""}'""",
    ".iob2": _NUMBERED_WORDS,
    ".conllu": _NUMBERED_WORDS,
}
"""Files of a word a line, and what makes a line of text of each of their sentences."""
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")

_PART_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 18  # behind a line that is not UTF-8, to tell its encoding by
# Of a document of the greatest length, if all of its characters have four bytes.
_LINE_LIMIT = 1 << 30
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
    """Open a UTF-8 file for reading, plain or .gz, .xz or .zst; see `TextReader`.

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


def find_files(source: str, suffixes: Sequence[str], proposed: Sequence[str] | None = None) -> list[Path]:
    """The files a path means, sorted: itself, those below a folder, or those a glob pattern matches.

    Of folders and patterns, files with other suffixes and hidden files are passed over; so are the folders below them
    that hold a tokenizer, a store or a run of ours; links to folders are not followed. A path that exists is never a
    pattern.

    Args:
        proposed: the suffixes that an error names; None: all of them.

    Raises:
        InputError: nothing is there, nothing has a known suffix, or a file named outright has not.
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
    if path.is_dir():
        matches = [path]
    elif glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise InputError("no file matches this pattern.", source)
    else:
        raise missing(path)
    # A pattern like "data/**" matches a folder and the files in it.
    files = {file for match in matches for file in (_walk(match) if match.is_dir() else [match])}
    known = sorted(file for file in files if suffix_of(file) in suffixes)
    if not known:
        found = sorted({suffix_of(file) or file.name for file in files})
        raise InputError(
            f"no file here has a suffix of {', '.join(proposed or suffixes)}, plain or with {', '.join(COMPRESSIONS)}. "
            f"Found: {', '.join(found[:10]) or 'no file at all'}.",
            source,
        )
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


def _walk(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_made(Path(place, name))]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_made(folder: Path) -> bool:
    """Whether a folder is a tokenizer, a store or a run that was made here: none of it is text to learn from."""
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer" / "tokenizer.json").is_file():
        return True
    settings = folder / "config.yaml"
    return settings.is_file() and settings.read_bytes()[: len(RUN_MARK)] == RUN_MARK.encode()


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
