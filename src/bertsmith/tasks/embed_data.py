"""What sentence embeddings learn from: settings, rows of texts that belong together, and the columns they stand in."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bertsmith.errors import InputError, SettingsError, collecting
from bertsmith.settings import settle_types
from bertsmith.tasks.classify_data import PAIR_COLUMNS, TEXT_COLUMNS, is_written_list
from bertsmith.tasks.rows import detect_column, given_as, is_gap, iter_settled, nothing_read, value_of
from bertsmith.text.tables import header_hint, refuse_several, understood_column

_PAIRS = (*PAIR_COLUMNS, ("anchor", "positive"), ("query", "positive"), ("query", "document"))
_USUAL = {*TEXT_COLUMNS, *(name for names in _PAIRS for name in names)}
_NEGATIVE_COLUMNS = ("negative", "negatives", "hard_negative", "hard_negatives")
_NUMBERED_NEGATIVES = re.compile(r"(hard_)?negative_?\d+")
_SCORE_COLUMNS = ("score", "similarity", "similarity_score")
_JUDGED_COLUMNS = ("label", "gold_label", "is_duplicate")
_RANKING_METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10")
_SCORE_METRICS = ("spearman", "pearson", "average_precision")
Pooling = Literal["mean", "cls"]
EmbeddingMetric = Literal[
    "ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "spearman", "pearson", "average_precision"
]


@dataclass(frozen=True)
class EmbeddingSettings:
    """Where the texts stand in the data, how a text becomes a vector, and how vectors are learnt."""

    text_column: str | None = None
    """The column of the first text; by default it and the second are found by their names."""
    pair_column: str | None = None
    """The column of the text that belongs to it."""
    negative_column: str | None = None
    """The column of a text that does not, or of a list of them, in the rows that have any; or several columns, with
    commas. By default "negative", "negative_1", "negative_2" and so on, if there are."""
    score_column: str | None = None
    """The column of how alike the two are, on any scale; by default "score" or "similarity" if there is one."""
    columns: str | None = None
    """Names for the columns of a file that has no header line, for example "text,pair"."""
    delimiter: str | None = None
    """The character between columns; by default a comma for .csv, a tab for .tsv."""
    quoting: bool | None = None
    """Whether fields may stand in double quotes; by default yes for .csv, no for .tsv."""
    max_length: int = 128
    """Tokens of a text, [CLS] and [SEP] included; what is longer is cut."""
    pooling: Pooling | None = None
    """What stands for a text: the mean of its tokens, or its first token (cls); by default that of the model, else
    mean."""
    normalize: bool | None = None
    """Whether vectors have length 1, as by default; cosines are the same without."""
    text_prompt: str | None = None
    """What the model reads before a text, such as "query: "; by default what the model's folder says, else nothing."""
    pair_prompt: str | None = None
    """The same before a pair and the negatives, such as "passage: "."""
    similarity_temperature: float = 0.05
    """Cosines are divided by it in the loss."""
    metric: EmbeddingMetric | None = None
    """What picks the best checkpoint; by default ndcg_at_10, or spearman where pairs have scores."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not 0 < self.similarity_temperature < math.inf:
            raise SettingsError(f"similarity_temperature must be positive, not {self.similarity_temperature}.")
        if self.score_column is not None and self.negative_column is not None:
            raise SettingsError("score_column and negative_column: pairs with scores have no negatives. Choose one.")

    @property
    def objective(self) -> str:
        """`metric`, or what it stands for."""
        usual = _RANKING_METRICS if self.score_column is None else _SCORE_METRICS
        return self.metric or usual[0]

    @property
    def pools(self) -> Pooling:
        """`pooling`, or mean."""
        return self.pooling or "mean"

    @property
    def normalizes(self) -> bool:
        """`normalize`, or yes."""
        return self.normalize is not False

    @property
    def negative_columns(self) -> list[str]:
        """The names that `negative_column` has."""
        return self.negative_column.split(",") if self.negative_column else []


@dataclass(frozen=True)
class EmbeddingRow:
    """One row as it was read; `pair` is None where only a vector is wanted."""

    where: str
    text: str
    pair: str | None = None
    negatives: tuple[str, ...] = ()
    score: float | None = None
    swapped: str | None = None
    """The first text that stands for all those with which this one changes places in other rows."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All there are: the text, its pair, its negatives."""
        return (self.text, *(() if self.pair is None else (self.pair,)), *self.negatives)

    @property
    def group(self) -> str:
        """Equal first texts make equal groups, and so do the same two texts in the other order."""
        return self.text if self.swapped is None else self.swapped


def read_rows(
    source: str, settings: EmbeddingSettings, bad: list[InputError] | None = None
) -> tuple[EmbeddingSettings, list[EmbeddingRow]]:
    """Read pairs, and settle which columns they stand in.

    Args:
        bad: gets what is wrong with rows that cannot be used, which are passed over; None: the first is an error.

    Returns:
        The settings with the names of the columns that were found, to read further files with, None for negatives
        that no row has; the rows.

    Raises:
        InputError: no rows, a column that is missing or cannot be told, a score that is no number.
        SettingsError: a metric that does not go with the data.
    """
    rows: list[EmbeddingRow] = []
    judged: str | None = None
    first_judgement: Any = None
    seen: dict[str, None] = {}  # columns of negatives, in their order
    records = iter_settled(source, settings, _find_columns, bad)
    with collecting(bad):
        for where, values, settings in records:
            if not rows:
                if settings.score_column is None and settings.negative_column is None:
                    taken = (settings.text_column, settings.pair_column)
                    judged = detect_column(list(values), _JUDGED_COLUMNS, taken=taken)
                first_judgement = None if judged is None else _judgement(values, judged)
            elif judged is not None and _judgement(values, judged) != first_judgement:
                error = _judged(judged, (first_judgement, _judgement(values, judged)), where)
                judged = None  # said once
                with collecting(bad):
                    raise error
            seen |= {column: None for column in settings.negative_columns if column in values}
            with collecting(bad):
                rows.append(_pair_row(values, settings, where))
    if not rows:
        raise nothing_read(source, "rows", bad)
    settings = replace(settings, negative_column=",".join(seen) or None)
    choices = _RANKING_METRICS if settings.score_column is None else _SCORE_METRICS
    if settings.objective not in choices:
        kind = "pairs without scores" if settings.score_column is None else "pairs with scores"
        raise SettingsError(f'metric: "{settings.metric}" does not go with {kind}. Choices: {", ".join(choices)}.')
    if settings.metric == "average_precision" and not {row.score for row in rows} <= {0, 1}:
        raise SettingsError("metric: average_precision is of scores that are 0 or 1, and there are others.")
    return settings, _grouped(rows)


def _grouped(rows: list[EmbeddingRow]) -> list[EmbeddingRow]:
    """The rows, where two that are one pair in both orders have one group."""
    pairs = {(row.text, row.pair) for row in rows}
    leaders: dict[str, str] = {}

    def leader(text: str) -> str:
        while (next_one := leaders.get(text, text)) != text:
            text = next_one
        return text

    for first, second in pairs:
        if second is not None and (second, first) in pairs:
            low, high = sorted((leader(first), leader(second)))
            if low != high:  # the smallest leads, whatever the order of the rows
                leaders[high] = low
    return [replace(row, swapped=leader(row.text)) if row.text in leaders else row for row in rows]


def find_labels(rows: Sequence[EmbeddingRow], settings: EmbeddingSettings) -> tuple[str, ...]:
    """No labels: what is learnt is which texts belong together.

    Raises:
        InputError: all scores are the same, or all second texts.
    """
    if settings.score_column is None and len(rows) > 1 and len({row.pair for row in rows}) == 1:
        raise InputError("every row has the same second text: nothing to tell apart.", rows[0].where)
    if settings.score_column is not None and len(rows) > 1 and len({row.score for row in rows}) == 1:
        raise InputError(f"every row has the score {rows[0].score}: nothing to tell apart.", rows[0].where)
    return ()


def _pair_row(values: Mapping[str, Any], settings: EmbeddingSettings, where: str) -> EmbeddingRow:
    texts = [_text_of(values, str(column), where) for column in (settings.text_column, settings.pair_column)]
    for text, column in zip(texts, (settings.text_column, settings.pair_column), strict=True):
        if not text.strip():
            raise InputError("nothing here; every row needs two texts.", f"{where}, {column}")
    negatives = [one for column in settings.negative_columns for one in _negatives(values, column, where)]
    score = None if settings.score_column is None else _number_of(values, settings.score_column, where)
    return EmbeddingRow(where, texts[0], texts[1], tuple(negatives), score)


def _negatives(values: Mapping[str, Any], column: str, where: str) -> list[str]:
    """The texts of one column, which may be a list; what is empty is none."""
    given = values.get(column)
    if isinstance(given, str) and is_written_list(given, ","):
        raise InputError(
            "a list that was written as text. Save such data as JSONL or Parquet, or a negative a column.",
            f"{where}, {column}",
        )
    several = given.tolist() if isinstance(given, np.ndarray) else given if isinstance(given, list) else [given]
    found = [_text_of({column: one}, column, where) for one in several if not is_gap(one)]
    return [text for text in found if text.strip()]


def row_of(value: str | Mapping[str, Any], settings: EmbeddingSettings, where: str) -> EmbeddingRow:
    """A row to predict: a text, or a mapping with one text or two. `text` and `pair` are always understood.

    Raises:
        InputError: there is no text, or a question.
    """
    if given_as(value, (settings.text_column, settings.pair_column)) == "question":
        raise InputError('this model does not answer questions; give a text, or "text" and "pair".', where)
    if isinstance(value, str):
        return EmbeddingRow(where, value)
    text, pair = settings.text_column, settings.pair_column
    is_elsewhere = not {text, "text"} & set(value)
    if text is None or (is_elsewhere and text.lower() in _USUAL):  # a folder that does not say, or another table
        text, pair = _pair_columns(list(value)) or (detect_column(value, TEXT_COLUMNS, taken=(pair,)), pair)
    first = _text_of(value, understood_column(text, "text", value, where), where)
    other = pair if pair is not None and pair in value else "pair"
    return EmbeddingRow(where, first, None if is_gap(value.get(other)) else _text_of(value, other, where))


def _pair_columns(columns: Sequence[str]) -> tuple[str, str] | None:
    """The two columns with the names of a pair, if there is no doubt."""
    by_name = {column.strip().lower(): column for column in columns}
    found = [names for names in _PAIRS if all(name in by_name for name in names)]
    return (by_name[found[0][0]], by_name[found[0][1]]) if len(found) == 1 else None


def _find_columns(settings: EmbeddingSettings, columns: Sequence[str], where: str) -> EmbeddingSettings:
    text, pair = settings.text_column, settings.pair_column
    is_usual = (str(text).lower(), str(pair).lower()) in _PAIRS  # then another pair may stand in for it
    if (text is None and pair is None) or (is_usual and not {text, pair} <= set(columns)):
        text, pair = _pair_columns(columns) or (text, pair)
    if text is None or pair is None:
        raise InputError(
            "cannot tell which two columns belong together: give text_column and pair_column (or columns, if the file "
            f"has no header line). Columns: {', '.join(map(str, columns))}.{header_hint(columns)}",
            where,
        )
    taken, negative, score = (text, pair), settings.negative_column, settings.score_column
    # Test data may have none where training data had some.
    if score is None and not any(name in columns for name in settings.negative_columns):
        refuse_several(columns, _SCORE_COLUMNS, "score", where, taken)
        score = detect_column(columns, _SCORE_COLUMNS, taken=taken)
        if negative is None:
            refuse_several(columns, _NEGATIVE_COLUMNS, "negative", where, taken)
            one = detect_column(columns, _NEGATIVE_COLUMNS, taken=taken)
            numbered = [name for name in columns if _NUMBERED_NEGATIVES.fullmatch(name.strip().lower())]
            negative = ",".join([*([] if one is None else [one]), *numbered]) or None
        elif score is not None:
            negative = None
        if score is not None and negative is not None:
            raise InputError(
                f'pairs with scores have no negatives, and there are both: give score_column "{score}" or '
                f'negative_column "{negative}".',
                where,
            )
    return replace(settings, text_column=text, pair_column=pair, negative_column=negative, score_column=score)


def refuse_scores(found: EmbeddingSettings, of_train: EmbeddingSettings, where: str) -> None:
    """See that pairs to evaluate with are of the kind that was learnt.

    Raises:
        InputError: they have scores, and those of train have none.
    """
    if found.score_column != of_train.score_column:
        raise InputError(
            f'these pairs have scores ("{found.score_column}"), and those of train have none. Give pairs without '
            "scores here, and ask bertsmith evaluate how the model's similarities follow the scores.",
            where,
        )


def _judgement(values: Mapping[str, Any], column: str) -> Any:
    """What a row says in that column; nothing where there is a gap."""
    return None if is_gap(values.get(column)) else values[column]


def _judged(column: str, values: tuple[Any, Any], where: str) -> InputError:
    """The error for pairs of which only some belong together."""
    return InputError(
        f'the column "{column}" says different things of pairs ("{values[0]}" and "{values[1]}"), and each would be '
        f"learnt as a pair that belongs together. Say score_column {column} if it is a number that is higher for those "
        "that do; else keep only those rows, and leave the column out.",
        where,
    )


def _text_of(values: Mapping[str, Any], column: str, where: str) -> str:
    value = value_of(values, column, where)
    if isinstance(value, str | int | float):
        return str(value)
    raise InputError(f"text wanted, {type(value).__name__} found.", f"{where}, {column}")


def _number_of(values: Mapping[str, Any], column: str, where: str) -> float:
    value = value_of(values, column, where)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f'"{value}" is not a number; a score says how alike two texts are.', f"{where}, {column}")
    return number
