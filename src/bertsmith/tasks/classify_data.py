"""What classification learns from: settings, rows of texts and labels, and the columns they stand in."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bertsmith.errors import InputError, SettingsError, collecting, did_you_mean
from bertsmith.settings import settle_types
from bertsmith.tasks.rows import is_gap, iter_settled, nothing_read, usual_column, value_of
from bertsmith.text.tables import header_hint, understood_column

TEXT_COLUMNS = ("text", "sentence", "content", "review", "comment", "message", "tweet", "document", "question", "title")
"""Names that are taken for the text when `text_column` is not given and only one of them is there."""
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "passage"),
    ("premise", "hypothesis"),
    ("text", "pair"),
    ("text", "text_pair"),
)
"""Names that are taken for the two texts of a pair."""
LABEL_COLUMNS = ("label", "category", "class", "target", "sentiment", "intent", "score", "similarity")

SEVERAL_LABELS_COLUMNS = ("labels", "categories", "classes", "topics", "tags", "genres", "emotions")
"""Names that are taken for the label as well, where a row may have several."""

_CLASS_METRICS = ("accuracy", "f1", "macro_f1", "micro_f1", "mcc")
_NUMBER_METRICS = ("r2", "spearman", "pearson", "mse")
_SET_METRICS = ("micro_f1", "macro_f1", "samples_f1", "subset_accuracy")
Metric = Literal[
    "accuracy", "f1", "macro_f1", "micro_f1", "mcc", "r2", "spearman", "pearson", "mse", "samples_f1", "subset_accuracy"
]
_SHOWN = 40  # characters of a label
_LARGEST_NUMBER = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ClassificationSettings:
    """Where the texts and labels stand in the data, and how they are learnt."""

    text_column: str | None = None
    """The column of the text; by default found by its name, if there is no doubt."""
    pair_column: str | None = None
    """The column of the second text, for pairs."""
    label_column: str | None = None
    """The column of the label; by default found by its name, if there is no doubt."""
    columns: str | None = None
    """Names for the columns of a file that has no header line, for example "label,text"."""
    delimiter: str | None = None
    """The character between columns; by default a comma for .csv, a tab for .tsv."""
    quoting: bool | None = None
    """Whether fields may stand in double quotes; by default yes for .csv, no for .tsv."""
    regression: bool = False
    """Learn a number instead of a label (squared error, as a share of the variance of the training numbers)."""
    multi_label: bool = False
    """A row may have several labels, or none: a list, or a text parted by label_separator."""
    label_separator: str = ","
    """What stands between the labels of a row, where they are one text; for multi_label."""
    threshold: float | None = None
    """From which probability on a label is predicted; by default what is best on dev, else 0.5; for multi_label."""
    max_length: int = 128
    """Tokens in a sequence, [CLS] and [SEP] included."""
    long: Literal["head", "tail", "head-tail", "windows"] = "head"
    """What is read of a longer text: its beginning, its end, a quarter and three quarters of both, or all of it."""
    doc_stride: int | None = None
    """Tokens from the start of one window to the next; by default windows do not overlap."""
    max_windows: int | None = None
    """Windows that are read of a text at most, as far from each other as they can be; by default all."""
    window_pooling: Literal["mean", "max"] = "mean"
    """What becomes of the logits of a text's windows."""
    class_weights: str = "none"
    """Weights of the labels in the loss: none, auto (every label counts the same), or "spam=5,ham=1"."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all labels."""
    positive_label: str | None = None
    """The label whose F1 is the metric f1; by default 1 of 0 and 1 (true, yes), and there is none of other labels."""
    metric: Metric | None = None
    """What picks the best checkpoint; by default accuracy, r2 for a regression, micro_f1 for multi_label."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not 0 <= self.label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}.")
        if self.regression and self.multi_label:
            raise SettingsError("regression learns a number, multi_label labels: choose one.")
        choices: tuple[str, ...] = _CLASS_METRICS
        kind = "labels"
        if self.regression:
            kind, choices = "a regression", _NUMBER_METRICS
        if self.multi_label:
            kind, choices = "multi_label", _SET_METRICS
        if self.metric is not None and self.metric not in choices:
            raise SettingsError(
                f'metric: "{self.metric}" does not go with {kind}. {did_you_mean(self.metric, choices)}'
            )
        if self.regression and (self.class_weights != "none" or self.label_smoothing):
            raise SettingsError("class_weights and label_smoothing are for labels; a regression has none.")
        if self.positive_label is not None and (self.regression or self.multi_label):
            raise SettingsError("positive_label is for one label a row.")
        if self.multi_label and (self.class_weights != "none" or self.label_smoothing):
            raise SettingsError("class_weights and label_smoothing are for one label a row, not for multi_label.")
        if self.text_column is not None and self.text_column == self.label_column:
            raise SettingsError(
                f'text_column and label_column are both "{self.text_column}": a model would read its label.'
            )
        if not self.label_separator:
            raise SettingsError("label_separator is empty; give what stands between labels.")
        windowed = (self.doc_stride, self.max_windows, self.window_pooling)
        if self.long != "windows" and windowed != (None, None, "mean"):
            raise SettingsError("doc_stride, max_windows and window_pooling are for windows: say long windows.")
        if self.max_windows is not None and self.max_windows < 1:
            raise SettingsError(f"max_windows is {self.max_windows}; give 1 or more.")
        if self.doc_stride is not None and self.doc_stride < 1:
            raise SettingsError(f"doc_stride is {self.doc_stride}; windows must move forward by at least 1 token.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SettingsError(f"threshold must be in (0, 1), not {self.threshold}.")
        if not self.multi_label and (self.label_separator != "," or self.threshold not in (None, 0.5)):
            raise SettingsError(
                "label_separator and threshold are for multi_label, where a row may have several labels."
            )
        if not self.multi_label:  # which folders say that are from before it could be left open
            object.__setattr__(self, "threshold", None)


@dataclass(frozen=True)
class ClassificationRow:
    """One row as it was read. `label` is None where an answer is wanted, and where `labels` stand in its place."""

    where: str
    text: str
    pair: str | None
    label: str | None
    labels: tuple[str, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or both of a pair."""
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def group(self) -> str:
        """Equal texts make equal groups, whatever their labels."""
        return "\n".join(self.texts)


def read_rows(
    source: str, settings: ClassificationSettings, bad: list[InputError] | None = None
) -> tuple[ClassificationSettings, list[ClassificationRow]]:
    """Read labelled rows, and settle which columns they stand in.

    Args:
        bad: gets what is wrong with rows that cannot be used, which are passed over; None: the first is an error.

    Returns:
        The settings with the names of the columns that were found, to read further files with; the rows.

    Raises:
        InputError: no rows, a column that is missing or cannot be told, a row without a label or, of a
            regression, without a number.
    """
    rows: list[ClassificationRow] = []
    records = iter_settled(source, settings, find_columns, bad)
    with collecting(bad):
        for where, values, settings in records:
            with collecting(bad):
                rows.append(_labelled_row(values, settings, where))
    if not rows:
        raise nothing_read(source, "rows", bad)
    return settings, rows


def _labelled_row(values: Mapping[str, Any], settings: ClassificationSettings, where: str) -> ClassificationRow:
    for column in filter(None, (settings.text_column, settings.pair_column)):
        value_of(values, column, where)  # labelled data must have it; `row_of` is content with `text`
    row = row_of(values, settings, where)
    if settings.multi_label:
        return replace(row, labels=_labels_of(values, settings, where))
    label = _text_of(values, str(settings.label_column), where).strip()
    if not label:
        raise InputError("nothing here; every row needs a label.", f"{where}, {settings.label_column}")
    if settings.regression:
        number_of(label, f"{where}, {settings.label_column}")  # to hear of it with its column
    return replace(row, label=label)


def number_of(label: str, where: str) -> float:
    """The number that a regression learns.

    Raises:
        InputError: it is none, or not a finite one.
    """
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'"{label}" is not a number, and a regression learns numbers.', where)
    if abs(number) > _LARGEST_NUMBER:
        raise InputError(f"{label} is more than float32 can hold.", where)
    return number


def _text_of(values: Mapping[str, Any], column: str, where: str) -> str:
    """The value of one column as text. Numbers are written out; a list or an object would be, but means nothing.

    Raises:
        InputError: there is no such column, nothing in it, or neither text nor a number.
    """
    value = value_of(values, column, where)
    if isinstance(value, str | int | float):
        return str(value)
    raise InputError(
        f"text or a number wanted, {type(value).__name__} found. A row has one text and one label; for several labels "
        "a row say multi_label.",
        f"{where}, {column}",
    )


def _labels_of(values: Mapping[str, Any], settings: ClassificationSettings, where: str) -> tuple[str, ...]:
    """The labels of a row, each once: those of a list, or the parts of a text; none of an empty one, or of null.

    Raises:
        InputError: there is no such column, or something in it that is no label.
    """
    column = str(settings.label_column)
    if column in values and values[column] is None:
        return ()
    value = value_of(values, column, where)
    if isinstance(value, str) and is_written_list(value, settings.label_separator):
        raise InputError(
            f"a list that was written as text: {value[:_SHOWN]}. Save such data as JSONL or Parquet, or join labels "
            f'by "{settings.label_separator}".',
            f"{where}, {column}",
        )
    parts = value if isinstance(value, list) else str(value).split(settings.label_separator)
    if isinstance(value, dict) or not all(isinstance(part, str | int | float) and not is_gap(part) for part in parts):
        raise InputError("a list of labels wanted, or a text of them.", f"{where}, {column}")
    return tuple(dict.fromkeys(label for part in parts if (label := str(part).strip())))


def is_written_list(text: str, separator: str) -> bool:
    """Whether a text is a list of another program, as it writes it out.

    >>> is_written_list("['a', 'b']", ","), is_written_list("[]", ","), is_written_list("(other)", ",")
    (True, True, False)
    """
    found = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", text, re.S)
    return found is not None and (not found[1].strip() or any(mark in found[1] for mark in ("'", '"', ",", separator)))


def find_columns(settings: ClassificationSettings, columns: Sequence[str], where: str) -> ClassificationSettings:
    """Settings whose text and label columns are names, found among `columns` where they were not given.

    A usual name is taken when no other usual name is there; of two columns, the one that is not the
    label is the text. Anything else is for the user to say. A usual name that this file lacks stands
    for its kind: dev may call "content" what train calls "sentence".

    Raises:
        InputError: cannot be told; lists the columns.
    """
    found = _by_names(settings, columns, where)
    for name, column in (("text_column", found.text_column), ("label_column", found.label_column)):
        if column is None:
            raise InputError(
                f"cannot tell which column is the {name.split('_')[0]}: give {name} (or columns, if the file has no "
                f"header line). Columns: {', '.join(map(str, columns))}.{header_hint(columns)}",
                where,
            )
    return found


def _by_names(settings: ClassificationSettings, columns: Sequence[str], where: str) -> ClassificationSettings:
    """Settings whose columns are names as far as these can be told.

    Raises:
        InputError: there are several pairs to choose from.
    """
    text, pair = settings.text_column, settings.pair_column
    usual = (*LABEL_COLUMNS, *SEVERAL_LABELS_COLUMNS) if settings.multi_label else LABEL_COLUMNS
    label = usual_column(settings.label_column, columns, usual, taken=(text, pair))
    if (text is None and pair is None) or (str(text).lower(), str(pair).lower()) in PAIR_COLUMNS:
        by_name = {column.strip().lower(): column for column in columns if column != label}
        pairs = [names for names in PAIR_COLUMNS if all(name in by_name for name in names)]
        if len(pairs) > 1 and text is None:
            raise InputError(
                "cannot tell which two columns are a pair: give text_column and pair_column, or text_column alone for "
                "one text (evaluate and predict: --set text_column=NAME). Columns: "
                f"{', '.join(map(str, columns))}.",
                where,
            )
        if len(pairs) == 1 and not {text, pair} <= set(columns):
            text, pair = by_name[pairs[0][0]], by_name[pairs[0][1]]
    free = [column for column in columns if column not in (pair, label)]
    if text is None and len(free) == 1 and label:
        text = free[0]
    if text is None or pair is None:
        text = usual_column(text, columns, TEXT_COLUMNS, taken=(pair, label))
    return replace(settings, text_column=text, pair_column=pair, label_column=label)


def row_of(values: Mapping[str, Any], settings: ClassificationSettings, where: str) -> ClassificationRow:
    """The texts of a row, as `text_columns` finds them."""
    column, pair = text_columns(values, settings, where)
    if pair is not None and settings.text_column is None and is_gap(values[pair]):
        pair = None  # a folder of others may read both
    text = _text_of(values, column, where)
    return ClassificationRow(where, text, None if pair is None else _text_of(values, pair, where), None)


def text_columns(values: Mapping[str, Any], settings: ClassificationSettings, where: str) -> tuple[str, str | None]:
    """Where a row has its text and its pair: in the columns of the settings, else as in labelled data, else in `text`
    and `pair`.

    Raises:
        InputError: in none of these; says how to name the column.
    """
    named = {settings.text_column, settings.pair_column} - {None}
    if settings.text_column is None or not named <= set(values):  # a folder that does not say, or another table
        settings = _by_names(settings, list(values), where)
    pair = settings.pair_column or ("pair" if settings.text_column is None and "pair" in values else None)
    text = understood_column(settings.text_column, "text", values, where)
    return text, None if pair is None else understood_column(pair, "pair", values, where)
