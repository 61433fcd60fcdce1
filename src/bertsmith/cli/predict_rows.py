"""What the verb predict answers: the command line's text, rows of a file, or lines of standard input."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertsmith.deploy.predict import Placed, Predictor, Value
from bertsmith.errors import InputError
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.rows import iter_records
from bertsmith.text.encodings import likely_encoding
from bertsmith.text.reading import LABELLED, open_text, suffix_of
from bertsmith.text.sentences import replace_surrogates
from bertsmith.text.sources import HUB

_ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_JSON = ".json"  # refused as in fine-tuning: an array or an object is no line of text
_QUESTIONS = "jq -c '.data[].paragraphs[] | .context as $context | .qas[] | {question, context: $context}'"
_STANDARD_INPUT = "standard input"


def given_rows(text: str | None, pair: str | None, question: str | None) -> Iterable[Value | Placed]:
    """What to answer: the text of the command line, or standard input."""
    if text is None:
        return (Placed(_row_of_line(line), where) for where, line in _lines_of_standard_input())
    # Bytes of a command line that are not UTF-8 become lone surrogates.
    given = replace_surrogates(text)
    if question is not None:
        return [{"question": replace_surrogates(question), "context": given}]
    return [_row_of_line(given) if pair is None else {"text": given, "pair": replace_surrogates(pair)}]


def rows_of_file(file: str, predictor: Predictor) -> Iterator[Placed]:
    """The rows of a table or data set, read as the model's settings or `--set` say; the lines of any other file.

    Raises:
        InputError: a file of labelled words or of JSON, whose lines are no texts.
    """
    if suffix_of(file) in LABELLED:
        raise InputError(
            "labelled data are not answered line by line. Their answers are written by: bertsmith evaluate RUN FILE "
            "--predictions answers.jsonl",
            file,
        )
    name = Path(file).name
    if suffix_of(file) == _JSON and predictor.name == Answering.name and Path(file).expanduser().is_file():
        raise InputError(
            "a .json file is not answered line by line. One in SQuAD's layout, with answers: bertsmith evaluate RUN "
            f"FILE --predictions answers.jsonl; its questions alone: {_QUESTIONS} {name} > {Path(file).stem}.jsonl; a "
            f"list of objects: jq -c '.[]' {name} > {Path(file).stem}.jsonl",
            file,
        )
    if file.startswith(HUB) or suffix_of(file) in (*_ROW_SUFFIXES, _JSON):
        yield from (Placed(row, where) for where, row in iter_records(file, predictor.tables))
        return
    with open_text(Path(file)) as lines:
        yield from (Placed(_row_of_line(line), f"{file}:{lines.line_number}") for line in lines)


def _lines_of_standard_input() -> Iterator[tuple[str, str]]:
    """Lines with their places, as those of a file: UTF-8, whatever the locale says."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        where = f"{_STANDARD_INPUT}:{number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"byte 0x{line[error.start]:02x} at place {error.start + 1} of the line is not UTF-8. Convert the text "
                f"on its way, for example: iconv -f {likely_encoding(line)} -t UTF-8 text.txt | bertsmith predict ...",
                where,
            ) from None
        yield where, text.removeprefix("\ufeff") if number == 1 else text


def _row_of_line(line: str) -> Value:
    """A JSON object as a row, anything else as a text."""
    text = line.rstrip("\r\n")
    if text.lstrip().startswith("{"):
        try:
            row = json.loads(text)
            if "\\ud" in text.lower():  # only an escape can have made a lone surrogate
                row = json.loads(replace_surrogates(json.dumps(row, ensure_ascii=False)))
        except (ValueError, RecursionError):
            return text
        if isinstance(row, dict):
            return row
    return text
