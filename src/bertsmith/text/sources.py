"""Documents and labelled rows, out of whatever text is kept in.

    notes.txt  guide.md             text: a file is a document, or blank lines end one
    pages.jsonl  pages.ndjson       JSON Lines: an object a line
    reviews.csv  reviews.tsv        tables with a header; only .csv knows quotes (see `iter_rows`)
    pages.parquet                   Parquet
    any of these + .gz .bz2 .xz .zst   compressed
    folder/   "text/**/*.txt"       every such file, sorted
    hub:ORG/NAME[/CONFIG][:SPLIT]   a Hugging Face data set, streamed; "hub:name:test" without an organisation
    python-docs                     the documentation that is installed with Python

Everything is read as a stream. Text is UTF-8, its lines end at a line feed and nowhere else.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow
import pyarrow.parquet

from bertsmith.errors import InputError, SettingsError, collecting, did_you_mean
from bertsmith.screen import progress_screen, say
from bertsmith.text.python_docs import iter_docstrings
from bertsmith.text.reading import TextReader, find_files, missing, open_seekable, open_text, suffix_of
from bertsmith.text.sentences import SentenceALine, replace_surrogates
from bertsmith.text.tables import JSON_LINES, no_column, one_delimiter, table_rows

PYTHON_DOCS = "python-docs"
HUB = "hub:"

DocumentSeparator = Literal["file", "blank-lines"]

_TEXT = (".txt", ".md")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ROWS = (*JSON_LINES, *_DELIMITERS, ".parquet")
_SUFFIXES = (*_TEXT, *_ROWS)

_NAMED = 3
# A document is kept in memory whole. Past this many characters it is a corpus in one file.
_DOCUMENT_LIMIT = 1 << 28


@dataclass(frozen=True)
class Document:
    """A text with an order of its own, and where it comes from: `file`, `file:line` or alike."""

    text: str
    source: str


def expand_sources(
    sources: Sequence[str | Path], *, proposed: Sequence[str] = _SUFFIXES, notes: list[str] | None = None
) -> list[str]:
    """Each source as single files, `hub:` names and `python-docs`, in the order they will be read; none is read twice.

    Args:
        proposed: the suffixes that an error names.
        notes: gets a line for each folder that is passed over, and one for what is given twice.

    Raises:
        InputError: as `find_files`; also for a `hub:` name that cannot be read as one.
    """
    expanded: dict[str, str] = {}  # by where links lead
    twice: list[str] = []
    for source in [str(sources)] if isinstance(sources, str | Path) else map(str, sources):
        if source.startswith(HUB):
            _parse_hub(source)
        is_elsewhere = source.startswith(HUB) or source == PYTHON_DOCS
        for found in [source] if is_elsewhere else map(str, find_files(source, _SUFFIXES, proposed, notes)):
            place = found if is_elsewhere else os.path.realpath(found)
            if place in expanded:
                twice.append(found)
            expanded.setdefault(place, found)
    if notes is not None and twice:
        more = f" and {len(twice) - _NAMED:,} more" if len(twice) > _NAMED else ""
        notes.append(f"Given twice, and read once: {', '.join(twice[:_NAMED])}{more}.")
    return list(expanded.values())


def find_sources(sources: Sequence[str | Path]) -> list[str]:
    """As `expand_sources`, and says on standard error what is passed over."""
    notes: list[str] = []
    expanded = expand_sources(sources, notes=notes)
    screen = progress_screen()
    for note in dict.fromkeys(notes):
        say(screen, note)
    return expanded


def iter_documents(
    sources: Sequence[str | Path],
    *,
    text_column: str = "text",
    document_separator: DocumentSeparator = "file",
    delimiter: str | None = None,
    quoting: bool | None = None,
) -> Iterator[Document]:
    """Stream documents, always in the same order; those with nothing but white space are left out.

    Args:
        sources: see the head of this module.
        text_column: where rows (JSON Lines, tables, Parquet, Hub) keep their text. A row is a document.
        document_separator: how .txt and .md files are read. "file": a file is a document.
            "blank-lines": blank lines end documents and each line is a sentence, the input format
            of google-research/bert's create_pretraining_data.py: documents are `SentenceALine`.
        delimiter: of tables, as for `iter_rows`.
        quoting: of tables, as for `iter_rows`.

    Raises:
        InputError: with file and line; an unknown column, a text that is none, what the readers raise.
        SettingsError: an unknown `document_separator`, or a delimiter that is not one character.
    """
    if document_separator not in get_args(DocumentSeparator):
        choices = did_you_mean(document_separator, get_args(DocumentSeparator))
        raise SettingsError(f'document_separator: no such way to read text files: "{document_separator}". {choices}')
    table = {"delimiter": None if delimiter is None else one_delimiter(delimiter), "quoting": quoting}
    for source in expand_sources(sources):
        for document in _documents(source, text_column, document_separator, table):
            if document.text and not document.text.isspace():
                yield document


def iter_rows(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    quoting: bool | None = None,
    bad: list[InputError] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream rows with their place: ("file:line", {column: value}).

    Values of tables are strings. JSON Lines, Parquet and the Hub keep their types; class labels of the
    Hub, and of Parquet that Hugging Face's `datasets` wrote, are given by name, and None where a row is
    not labelled. Parquet and the Hub count rows from 1.

    Args:
        source: one file, folder, pattern or `hub:` name.
        columns: names for the columns of tables that have no header; the first line is then a row.
        delimiter: one character, or "tab"; by default what a first line `sep=;` says, else a comma for .csv, a tab for
            .tsv.
        quoting: whether a field may stand in quotes, with delimiters, line breaks and doubled quotes
            inside (RFC 4180). By default yes for .csv and no for .tsv, where quotes are text: that is
            how GLUE, CoLA and most published TSV files are written, with quotes that never close.
        bad: gets what is wrong with lines that cannot be read, which are passed over; None: the first is an error.

    Raises:
        InputError: with file and line; a line that cannot be parsed, or has another number of fields
            than there are columns; a source without rows, such as a .txt file.
        SettingsError: a delimiter that is not one character, or a name that two of `columns` have.
    """
    if columns is not None and len(set(columns)) < len(columns):
        twice = next(name for name in columns if list(columns).count(name) > 1)
        raise SettingsError(f'columns: "{twice}" is there twice. Give each column a name of its own.')
    delimiter = None if delimiter is None else one_delimiter(delimiter)
    for path in expand_sources([source], proposed=_ROWS):
        suffix = suffix_of(path)
        if path.startswith(HUB):
            yield from _hub_rows(path)
        elif path == PYTHON_DOCS or suffix in _TEXT:
            raise InputError(f"there are no columns in plain text. {did_you_mean(suffix, _ROWS)}", path)
        elif suffix in _DELIMITERS:
            quoted = suffix == ".csv" if quoting is None else quoting
            yield from table_rows(path, columns, delimiter, _DELIMITERS[suffix], quoted, bad)
        elif suffix in JSON_LINES:
            yield from _json_rows(path, bad)
        else:
            yield from _parquet_rows(path)


def _documents(
    source: str, text_column: str, document_separator: DocumentSeparator, table: dict[str, Any]
) -> Iterator[Document]:
    """The documents of one expanded source, empty ones included."""
    if source == PYTHON_DOCS:
        for module, docs in itertools.groupby(iter_docstrings(), key=lambda doc: doc.module):
            yield Document("\n\n".join(doc.docstring for doc in docs), f"{PYTHON_DOCS}:{module}")
    elif not source.startswith(HUB) and suffix_of(source) in _TEXT:
        with open_text(source) as file:
            yield from _whole_file(file) if document_separator == "file" else _between_blank_lines(file)
    else:
        is_parquet = not source.startswith(HUB) and suffix_of(source) == ".parquet"
        rows = _parquet_rows(source, only=text_column) if is_parquet else iter_rows(source, **table)
        for where, row in rows:
            if text_column not in row:
                raise no_column(text_column, row, where)
            text = row[text_column]
            if not isinstance(text, str | None):
                raise InputError(f"text wanted, {type(text).__name__} found.", f"{where}, {text_column}")
            yield Document(replace_surrogates(text or ""), where)


def _whole_file(file: TextReader) -> Iterator[Document]:
    lines: list[str] = []
    size = 0
    for line in file:
        lines.append(line)
        size += len(line)
        if size > _DOCUMENT_LIMIT:
            advice = 'If blank lines part its documents, set document_separator to "blank-lines"'
            raise _too_long(advice, str(file.path))
    yield Document("".join(lines), str(file.path))


def _between_blank_lines(file: TextReader) -> Iterator[Document]:
    lines: list[str] = []
    size = 0
    first_line = 1
    for line in itertools.chain(file, [""]):
        if line.strip():
            first_line = first_line if lines else file.line_number
            lines.append(line.strip())
            size += len(line)
            if size > _DOCUMENT_LIMIT:
                raise _too_long("Part its documents by blank lines", f"{file.path}:{first_line}")
        elif lines:
            yield Document(SentenceALine.of(lines), f"{file.path}:{first_line}")
            lines, size = [], 0


def _too_long(advice: str, where: str) -> InputError:
    return InputError(
        f"one document of more than {_DOCUMENT_LIMIT:,} characters. {advice}; else split the file, or write it as "
        "JSON Lines.",
        where,
    )


def _json_rows(path: str, bad: list[InputError] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, bad) as file:
        for line in file:
            if line.isspace():
                continue
            where = f"{path}:{file.line_number}"
            row: dict[str, Any] | None = None
            with collecting(bad):
                row = _json_object(line, where)
            if row is not None:
                # Only an escape can have made a lone surrogate.
                yield where, _clean(row) if "\\ud" in line.lower() else row


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.removesuffix("\n"))
    except RecursionError:
        raise InputError("the JSON is nested too deeply.", where) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at column {error.colno}; an object a line wanted.", where) from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where) from None
    if not isinstance(row, dict):
        raise InputError(f"an object in braces wanted on each line, {type(row).__name__} found.", where)
    return row


def _clean(value: Any) -> Any:
    """The JSON value with U+FFFD in place of lone surrogates."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(name): _clean(item) for name, item in value.items()}
    return value


def _parquet_rows(path: str, only: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of all columns, or of the one named."""
    with open_seekable(Path(path)) as stream:
        try:
            # Without pre-buffering, pages are read as they are needed, not a row group at once.
            file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
            names = file.schema_arrow.names
            if only is not None and only not in names:
                raise no_column(only, names, path)
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f'the column "{twice}" is there twice; give each a name of its own.', path)
            label_names = _label_names(_noted_features(file.schema_arrow.metadata or {}))
            row_number = 0
            for batch in file.iter_batches(batch_size=256, columns=names if only is None else [only]):
                for row in batch.to_pylist():
                    row_number += 1
                    where = f"{path}:{row_number}"
                    yield where, _with_names(row, label_names, where)
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # such as dates of no calendar
            raise InputError(f"cannot be read as Parquet: {error}", path) from None


@dataclass(frozen=True)
class _HubName:
    name: str
    config: str | None
    split: str


def _parse_hub(source: str) -> _HubName:
    """`hub:name`, `hub:org/name`, `hub:org/name/config`, `hub:./folder`; each may end in `:split`."""
    place, _, split = source.removeprefix(HUB).partition(":")
    if place.startswith((".", "/", "~")):
        folder = Path(place).expanduser()
        if not folder.exists():  # the library would ask the Hub for its name
            raise missing(folder)
        return _HubName(str(folder.absolute()), None, split or "train")
    parts = place.split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError("write hub:NAME, hub:ORG/NAME or hub:ORG/NAME/CONFIG, and :SPLIT behind it.", source)
    return _HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train")


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # here, because it takes a second

    hub = _parse_hub(source)
    try:
        dataset = datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True)
        label_names = _label_names(dataset.features.to_dict() if dataset.features else {})
        for row_number, row in enumerate(dataset, start=1):
            where = f"{source}:{row_number}"
            yield where, _with_names(row, label_names, where)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f'data set "{hub.name}", configuration {hub.config or "not given"}, split "{hub.split}" cannot be read: '
            f"{error}. Check the three names, and the connection to the Hub (HF_HUB_OFFLINE forbids it).",
            source,
        ) from None


def _noted_features(metadata: dict[bytes, bytes]) -> Any:
    """What `datasets` noted of the columns when it wrote a Parquet file; none if it did not, or it cannot be read."""
    try:
        return json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}


def _label_names(features: Any) -> dict[str, list[str]]:
    """The names of the labels, in the order of their numbers, for each column of class labels.

    Args:
        features: of each column `{"_type": "ClassLabel", "names": [...]}`, or that in `{"feature": ...}` or `[...]` for
            lists of labels, as `datasets` writes it; other columns and forms are passed over.
    """
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
            feature = feature["feature"] if isinstance(feature, dict) else next(iter(feature), None)
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[column] = names
    return found


def _with_names(row: dict[str, Any], label_names: dict[str, list[str]], where: str) -> dict[str, Any]:
    """The row with class labels, alone or in a list, by their names."""
    named = {
        column: _name(row[column], names, f"{where}, {column}")
        for column, names in label_names.items()
        if column in row
    }
    return {**row, **named}


def _name(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_name(item, names, where) for item in value]
    if not isinstance(value, int):
        return value
    if value >= len(names):
        raise InputError(f"there is no class label {value}; the data set has names for {len(names)}.", where)
    return str(names[value]) if value >= 0 else None
