"""Tables in text, with quotes and without, lists in fields, and what is said of columns that are not there."""

import csv
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bertsmith.errors import InputError, SettingsError, collecting, did_you_mean
from bertsmith.text.reading import TextReader, open_text, suffix_of

JSON_LINES = (".jsonl", ".ndjson")

_DELIMITERS = ",;\t|"
_TAB_NAMES = ("tab", "\\t")  # the second are two characters, as a shell gives them
_SEPARATOR_LINE = re.compile(r'sep=([^"\r\n])', re.IGNORECASE)  # Excel's, before the header
_WITHOUT_NAMES = "leave columns out (evaluate and predict: --set columns=null)"
# Enough for any field; a quote that is never closed must not swallow a file larger than memory.
_FIELD_LIMIT = 1 << 27


def table_rows(
    path: str,
    columns: Sequence[str] | None,
    delimiter: str | None,
    usual: str,
    quoting: bool,
    bad: list[InputError] | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one file with their places; see `bertsmith.text.sources.iter_rows`.

    Args:
        delimiter: None: what a first line `sep=;` says, which is passed over in any case; else the usual one.
    """
    with open_text(path, bad) as file:
        records = _records(file, delimiter, usual, quoting, bad)
        names = list(columns) if columns is not None else None
        num_bad = len(bad or ())
        is_first = True
        for line_number, fields in records:
            where = f"{path}:{line_number}"
            if names is None:
                if bad is not None and len(bad) > num_bad:
                    raise bad.pop()  # it may have been the header
                if not quoting and any("\r" in name for name in fields):
                    raise _carriage_return(file, where)
                names = _header(fields, where)
            elif len(fields) != len(names):
                quotes = "" if quoting else " Quotes have no meaning here; if they should, set quoting."
                given = "" if columns is None else f" If the file has a header line, {_WITHOUT_NAMES}."
                with collecting(bad):
                    raise InputError(
                        f"{len(fields)} fields here, but {len(names)} columns: {', '.join(names)}."
                        f"{header_hint(names) or quotes}{given}",
                        where,
                    )
            else:
                if is_first and columns is not None:
                    _refuse_header(fields, names, where)
                yield where, dict(zip(names, fields, strict=True))
            is_first = False


def one_delimiter(given: str) -> str:
    r"""The character that is meant: the one that is given, or a tab where it is called so.

    >>> one_delimiter(";"), one_delimiter("tab"), one_delimiter(r"\t")
    (';', '\t', '\t')

    Raises:
        SettingsError: neither.
    """
    if given.lower() in _TAB_NAMES:
        return "\t"
    if len(given) != 1:
        raise SettingsError(f"delimiter: one character wanted, or tab; {given!r} given.")
    return given


def header_hint(columns: Iterable[str]) -> str:
    """How else the names of columns may have to be read: parted by something else, or without quotes; else nothing.

    >>> header_hint(["text;label"])
    ' If ";" parts them, say --delimiter ";" (evaluate and predict: --set delimiter=";").'
    >>> header_hint(['"text"', '"label"'])
    ' If quotes stand around fields, say --quoting (evaluate and predict: --set quoting=true).'
    >>> header_hint(["text", "label"])
    ''
    """
    names = list(columns)
    if names and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        return " If quotes stand around fields, say --quoting (evaluate and predict: --set quoting=true)."
    found = next((mark for mark in _DELIMITERS if mark in names[0]), None) if len(names) == 1 else None
    if found is None:
        return ""
    what, mark = ("tabs part", "$'\\t'") if found == "\t" else (f'"{found}" parts', f'"{found}"')
    return f" If {what} them, say --delimiter {mark} (evaluate and predict: --set delimiter={mark})."


def no_column(column: str, columns: Iterable[str], where: str, setting: str | None = None) -> InputError:
    """The error for a row without that column. One of JSON Lines may lack what all others have.

    Args:
        setting: what says that it is another column, where that may be so.
    """
    names = [str(name) for name in columns]
    is_object = suffix_of(where.rpartition(":")[0]) in JSON_LINES
    lacking = f'this row has no field "{column}".' if is_object else f'there is no column "{column}".'
    hint = header_hint(names)
    if setting is not None and not hint:
        option = setting.replace("_", "-")
        hint = f" If another holds it, say --{option} NAME (evaluate and predict: --set {setting}=NAME)."
    return InputError(f"{lacking} {did_you_mean(column, names)}{hint}", where)


def understood_column(column: str | None, usual: str, columns: Collection[str], where: str) -> str:
    """The column of a row to answer: the one that was named, or `usual`, which is understood where that is missing.

    Args:
        usual: what the column holds, as in the setting's name: "text" of "text_column".

    Raises:
        InputError: neither is there; says how to name another.
    """
    name = usual if column is None or (column not in columns and usual in columns) else column
    if name not in columns:
        raise no_column(name, columns, where, f"{usual}_column")
    return name


def string_list(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A field of a row that is a list of words or tags; numbers become text.

    Raises:
        InputError: no such field, or it is not a list of texts or numbers.
    """
    if field not in row:
        raise no_column(field, row, where)
    value = row[field].tolist() if isinstance(row[field], np.ndarray) else row[field]
    if not isinstance(value, list | tuple):
        raise InputError(f"a list wanted, {type(value).__name__} found.", f"{where}, {field}")
    for item in value:
        is_gap = isinstance(item, float) and math.isnan(item)
        if not isinstance(item, str | int | float) or is_gap:
            found = "null" if item is None else "NaN" if is_gap else type(item).__name__
            raise InputError(f"a list of texts wanted, {found} found in it.", f"{where}, {field}")
    return tuple(str(item) for item in value)


def refuse_several(
    columns: Sequence[str], known: Sequence[str], kind: str, where: str, taken: Iterable[str | None] = ()
) -> None:
    """See that no more than one column has a name of `known`, where a second would silently go unread.

    Args:
        kind: what the column holds, as in the setting's name: "text" of "text_column".

    Raises:
        InputError: there are several; lists the columns.
    """
    found = [column for column in columns if column.strip().lower() in known and column not in set(taken)]
    if len(found) > 1:
        names = " and ".join(f'"{column}"' for column in found)
        raise InputError(
            f"cannot tell which column is the {kind}, {names} could be: give {kind}_column. Columns: "
            f"{', '.join(map(str, columns))}.",
            where,
        )


def _refuse_header(fields: Sequence[str], names: Sequence[str], where: str) -> None:
    """See that the first line does not hold the very names that were given: it is a header line, and no row."""
    if len(fields) > 1 and {one.strip().lower() for one in fields} == {one.lower() for one in names}:
        raise InputError(
            f"the first row equals the column names ({', '.join(fields)}): the file has a header line, which gives "
            f"each column its name; {_WITHOUT_NAMES}.",
            where,
        )


def _header(names: list[str], where: str) -> list[str]:
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise InputError(f"the header names {', '.join(repeated)} more than once.", where)
    return names


def _records(
    file: TextReader, delimiter: str | None, usual: str, quoting: bool, bad: list[InputError] | None
) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line, without a first line `sep=;`."""

    def read(mark: str) -> Iterator[tuple[int, list[str]]]:
        return _quoted_records(file, mark, bad) if quoting else _plain_records(file, mark)

    mark = delimiter or usual
    for number, fields in read(mark):
        named = _SEPARATOR_LINE.fullmatch(mark.join(fields)) if number == 1 else None
        if named is not None:
            yield from read(delimiter or named[1])
            return
        yield number, fields


def _plain_records(file: TextReader, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for line in file:
        if line.strip("\n"):
            yield file.line_number, line.removesuffix("\n").split(delimiter)


def _quoted_records(file: TextReader, delimiter: str, bad: list[InputError] | None) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line; quoted fields may run over several."""
    csv.field_size_limit(_FIELD_LIMIT)  # Python's own limit, 128 KiB, is less than a long document.
    lines = _QuotedLines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_record()
        fields: list[str] = []
        with collecting(bad):
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise lines.unreadable(error) from None
        if fields:
            yield lines.first, fields


class _QuotedLines(Iterator[str]):
    """The lines of a file for the csv module, which does not say where a record began, nor a quote."""

    def __init__(self, file: TextReader) -> None:
        self.first = 0
        """Number of the record's first line; 0: none was read yet."""
        self._opened = 0  # number of the line with the quote that is open; 0: none is
        self._file = file

    def begin_record(self) -> None:
        """The next line is the first of a record."""
        self.first, self._opened = 0, 0

    def __next__(self) -> str:
        line = next(self._file)
        self.first = self.first or self._file.line_number
        num_quotes = line.replace('""', "").count('"')  # those that open or close a field
        if num_quotes:
            is_open = (self._opened > 0) ^ (num_quotes % 2 > 0)
            self._opened = self._file.line_number if is_open else 0
        return line

    def unreadable(self, error: csv.Error) -> InputError:
        """What is wrong with the record, by what the csv module says of it."""
        path, last, reason = self._file.path, self._file.line_number, str(error)
        if reason.startswith("new-line character"):
            return _carriage_return(self._file, f"{path}:{last}")
        if self._opened and reason.startswith(("unexpected end", "field larger")):
            return InputError(
                f"the quote that opens in this line is never closed: all that follows, up to line {last}, is read as "
                "one field. Close it, or double it if it is part of the text; a table without quoting is named .tsv, "
                "or read with quoting off.",
                f"{path}:{self._opened}",
            )
        spread = "" if last == self.first else f" in line {last}: a quote may be missing before it"
        return InputError(
            f"the record that begins here cannot be read: {reason}{spread}. A quote inside a field must be doubled, "
            "and the field quoted; a table without quoting is named .tsv, or read with quoting off.",
            f"{path}:{self.first}",
        )


def _carriage_return(file: TextReader, where: str) -> InputError:
    name = file.path.name
    return InputError(
        "there is a carriage return (\\r) outside of quotes, without a line feed behind it. If all lines of the file "
        f"end so, as on old Macs, convert it: tr '\\r' '\\n' < {name} > new-{name}; else put the field in quotes.",
        where,
    )
