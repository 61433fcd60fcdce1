"""What multiple choice learns from: settings, and rows of a text, a question and the answers to choose from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from bertsmith.errors import InputError, SettingsError, collecting
from bertsmith.settings import settle_types
from bertsmith.tasks.rows import detect_column, is_gap, iter_settled, nothing_read, usual_column, value_of
from bertsmith.text.tables import header_hint, refuse_several, understood_column

TEXT_COLUMNS = ("text", "context", "passage", "article", "premise", "sent1", "ctx")
"""Names that are taken for the text when `text_column` is not given."""
QUESTION_COLUMNS = ("question", "question_stem", "sent2", "ask")
"""Names that are taken for the question when `question_column` is not given."""
CHOICES_COLUMNS = ("choices", "options", "endings", "choice")
"""Names that are taken for the list of choices when `choices_column` is not given."""
LABEL_COLUMNS = ("label", "answer", "answerkey", "gold")
"""Names that are taken for the right choice when `label_column` is not given."""
_NUMBERED_COLUMNS = ("ending", "choice", "option")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ChoiceSettings:
    """Where texts, questions and choices stand in the data, and how long they may be."""

    text_column: str | None = None
    """The column of the text; by default found by its name. There need not be one, if there is a question."""
    question_column: str | None = None
    """The column of the question; by default found by its name, if there is one."""
    choices_column: str | None = None
    """The column of the choices, a list, or lists of "text" and "label"; or several columns of one choice each, with
    commas: "ending0,ending1"."""
    label_column: str | None = None
    """The column of the right choice: its number from 0, its letter from A, or its text; or its "label"."""
    columns: str | None = None
    """Names for the columns of a file that has no header line."""
    delimiter: str | None = None
    """The character between columns; by default a comma for .csv, a tab for .tsv."""
    quoting: bool | None = None
    """Whether fields may stand in double quotes; by default yes for .csv, no for .tsv."""
    max_length: int = 256
    """Tokens in a sequence of text, question and one choice, special tokens included; the longer of both is cut."""

    def __post_init__(self) -> None:
        settle_types(self)
        names = [name.strip() for name in (self.choices_column or "").split(",")]
        if len(set(names)) < len(names):
            raise SettingsError(f"choices_column names a column twice: {self.choices_column}.")


@dataclass(frozen=True)
class ChoiceRow:
    """One row as it was read: `label` is the number of the right choice, None where an answer is wanted."""

    where: str
    text: str
    question: str
    choices: tuple[str, ...]
    label: int | None

    @property
    def texts(self) -> tuple[str, ...]:
        """What there is of text and question, then the choices."""
        return (*(part for part in (self.text, self.question) if part), *self.choices)

    @property
    def group(self) -> str:
        """Questions about one text stay on one side of a split; without a text, equal questions do."""
        return self.text or self.question


def read_rows(
    source: str, settings: ChoiceSettings, bad: list[InputError] | None = None
) -> tuple[ChoiceSettings, list[ChoiceRow]]:
    """Read labelled rows, and settle which columns they stand in.

    Args:
        bad: gets what is wrong with rows that cannot be used, which are passed over; None: the first is an error.

    Returns:
        The settings with the names of the columns that were found, to read further files with; the rows.

    Raises:
        InputError: no rows, a column that is missing or cannot be told, a label that is none of the choices.
    """
    rows: list[ChoiceRow] = []
    records = iter_settled(source, settings, _find_columns, bad, optional=("text", "question"))
    with collecting(bad):
        for where, values, settings in records:
            with collecting(bad):
                for column in filter(None, (settings.text_column, settings.question_column)):
                    value_of(values, column, where)  # labelled data must have it; `row_of` is content with less
                row = row_of(values, settings, where)
                label = value_of(values, str(settings.label_column), where)
                keys, place = _given_choices(values, settings, where)[1], f"{where}, {settings.label_column}"
                number = _number(label, row.choices, place) if keys is None else _place_of_key(label, keys, place)
                rows.append(replace(row, label=number))
    if not rows:
        raise nothing_read(source, "rows", bad)
    return settings, rows


def row_of(values: Mapping[str, Any], settings: ChoiceSettings, where: str) -> ChoiceRow:
    """A row to answer. `text`, `question` and `choices` are always understood where the columns' own names are missing.

    Raises:
        InputError: fewer than two choices, or neither a text nor a question.
    """
    given = settings
    named = [name for name in (given.text_column, given.question_column, *_choice_columns(given)) if name is not None]
    if given.choices_column is None or not all(name in values for name in named):
        settings = _by_names(given, list(values))  # a folder that does not say, or another table: as in labelled data
    if given.choices_column is not None:  # what training data did not have is not sought
        settings = replace(
            settings,
            text_column=given.text_column and settings.text_column,
            question_column=given.question_column and settings.question_column,
        )
    text = _text(values, settings.text_column, "text", where)
    question = _text(values, settings.question_column, "question", where)
    if not text and not question:
        raise InputError('give a "text", a "question", or both, with the "choices".', where)
    return ChoiceRow(where, text, question, _choices(values, settings, where), None)


def _text(values: Mapping[str, Any], column: str | None, usual: str, where: str) -> str:
    name = column if column is not None and column in values else usual
    if is_gap(values.get(name)):
        return ""
    if not isinstance(values[name], str | int | float):
        raise InputError(f"text wanted, {type(values[name]).__name__} found.", f"{where}, {name}")
    return str(values[name])


def _choices(values: Mapping[str, Any], settings: ChoiceSettings, where: str) -> tuple[str, ...]:
    return _given_choices(values, settings, where)[0]


def _given_choices(
    values: Mapping[str, Any], settings: ChoiceSettings, where: str
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The choices of a row; and what it calls each of them, as ARC and CommonsenseQA do with A, B or 1, 2."""
    names = _choice_columns(settings)
    if not all(name in values for name in names):
        missing = next(name for name in names if name not in values)
        names = [understood_column(missing, "choices", values, where)]
    given: Any = [value_of(values, name, where) for name in names]
    given = given[0] if len(names) == 1 else given
    if isinstance(given, Mapping) and set(given) == {"text", "label"}:
        texts, keys = (_texts(given[part], f"{where}, {names[0]}, {part}") for part in ("text", "label"))
        if not len(texts) == len(keys) == len(set(keys)):
            raise InputError(f"{len(texts)} choices with {len(set(keys))} labels.", f"{where}, {names[0]}")
        return texts, keys
    return _texts(given, f"{where}, {', '.join(names)}"), None


def _texts(given: Any, where: str) -> tuple[str, ...]:
    found = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(found, list | tuple) or not all(
        isinstance(one, str | int | float) and not is_gap(one) for one in found
    ):
        raise InputError("a list of choices wanted.", where)
    if len(found) < 2:
        raise InputError(f"{len(found)} choices; there must be two or more.", where)
    return tuple(map(str, found))


def _place_of_key(label: Any, keys: Sequence[str], where: str) -> int:
    """Which choice a row means by what it calls it."""
    if str(label).strip() not in keys:
        raise InputError(f'"{label}" is none of the choices, which are called {", ".join(keys)}.', where)
    return keys.index(str(label).strip())


def _choice_columns(settings: ChoiceSettings) -> list[str]:
    """The names of the columns that hold the choices: one of them, or one for each."""
    return [name.strip() for name in (settings.choices_column or "choices").split(",")]


def _number(label: Any, choices: Sequence[str], where: str) -> int:
    """Which choice a label is: a number from 0, a letter from A, or a choice's own text."""
    text = str(label).strip()
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    number = int(text) if is_number else _LETTERS.find(text.upper()) if len(text) == 1 else -1
    is_choice = 0 <= number < len(choices)
    texts = [choice.strip() for choice in choices]
    if text in texts and not (isinstance(label, Integral) and is_choice):  # a number of JSON is no text
        own = texts.index(text)
        if is_choice and own != number:
            other, way = ("number", "a letter") if is_number else ("letter", "a number")
            raise InputError(f'"{text}" is both the text of a choice and the {other} of another: give {way}.', where)
        return own
    if not is_choice:
        raise InputError(
            f'"{text}" is none of the {len(choices)} choices: give the number from 0, the letter from A, or the text.',
            where,
        )
    return number


def _find_columns(settings: ChoiceSettings, columns: Sequence[str], where: str) -> ChoiceSettings:
    """Settings whose columns are names, found by usual names where they were not given.

    Raises:
        InputError: cannot be told; lists the columns.
    """
    found = _by_names(settings, columns)
    for kind, one, known in (
        ("text", found.text_column, TEXT_COLUMNS),
        ("question", found.question_column, QUESTION_COLUMNS),
    ):
        if one is None:
            refuse_several(columns, known, kind, where)
    text = found.text_column or found.question_column
    for name, column in (("choices", found.choices_column), ("label", found.label_column), ("text", text)):
        if column is None:
            raise InputError(
                f"cannot tell which column is the {name}: give {name}_column. Columns: {', '.join(map(str, columns))}."
                f"{header_hint(columns)}",
                where,
            )
    return found


def _by_names(settings: ChoiceSettings, columns: Sequence[str]) -> ChoiceSettings:
    """Settings whose columns are names as far as these can be told; other usual names stand in for missing ones."""
    choices = settings.choices_column
    if choices is None or not any(name in columns or not _holds_choices(name) for name in _choice_columns(settings)):
        numbered = [column for column in columns if column.rstrip("0123456789").lower() in _NUMBERED_COLUMNS]
        several = ",".join(numbered) if len(numbered) > 1 else None
        choices = detect_column(columns, CHOICES_COLUMNS) or several or choices
    return replace(
        settings,
        text_column=usual_column(settings.text_column, columns, TEXT_COLUMNS),
        question_column=usual_column(settings.question_column, columns, QUESTION_COLUMNS),
        choices_column=choices,
        label_column=usual_column(settings.label_column, columns, LABEL_COLUMNS),
    )


def _holds_choices(name: str) -> bool:
    """Whether a column has a usual name for choices, or for one of them."""
    return name.lower() in CHOICES_COLUMNS or name.rstrip("0123456789").lower() in _NUMBERED_COLUMNS


def find_labels(rows: Sequence[ChoiceRow], settings: ChoiceSettings) -> tuple[str, ...]:
    """None: what is chosen from is in the rows."""
    return ()
