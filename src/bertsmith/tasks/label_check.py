"""What is wrong with the labels of labelled data, with how they are written, and with the numbers of a regression.

Of a rare or unknown label the first rows that have it are named; of a tag, the words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from bertsmith.errors import InputError
from bertsmith.tasks.choice_data import ChoiceRow, ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.embed_data import EmbeddingRow, EmbeddingSettings
from bertsmith.tasks.entities import OUTSIDE, split_tag
from bertsmith.tasks.findings import Finding, finding, share
from bertsmith.tasks.rows import iter_records
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings
from bertsmith.text.reading import suffix_of
from bertsmith.text.sources import expand_sources

# From these on, something is said.
_MOST_FREQUENT = 0.9  # of the rows, or the words
_FEW_ROWS = 8  # of a label
_FAR_SPREADS = 10  # from the median, in distances between the 5th and the 95th percentile
_SHOWN_ROWS = 3  # of a label

_PART = r"[-_:./ \u2010-\u2015\u2212\uff0d]"  # what may stand between the prefix of a tag and its type; with all dashes
_LIKE_ENTITY = re.compile(rf"([BIELMSU]){_PART}+\w.*|.*\w{_PART}+([BIELMSU])", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')


def classes_of(row: Any) -> Sequence[str]:
    """The labels to count: a row's, or its words'."""
    if isinstance(row, ClassificationRow):
        return [str(row.label)] if row.labels is None else row.labels
    if isinstance(row, ChoiceRow):
        return [f"choice {row.label}"]
    return row.tags or () if isinstance(row, TaggingRow) else ()


def is_regression(options: Any) -> bool:
    """Whether the labels of these settings are numbers, of which each is its own and none is a class."""
    return isinstance(options, ClassificationSettings) and options.regression


def label_counts(rows: Sequence[Any], options: Any) -> Counter[str]:
    """Rows, or words, of each label; empty where labels are no classes."""
    return Counter() if is_regression(options) else Counter(label for row in rows for label in classes_of(row))


def numbers_of(rows: Sequence[Any], options: Any) -> list[float]:
    """What is learnt of each row where that is a number: of a regression, or how alike two texts are; else empty."""
    if is_regression(options):
        return [float(row.label) for row in rows]
    return [row.score for row in rows if isinstance(row, EmbeddingRow) and row.score is not None]


def train_labels(
    rows: Sequence[Any], options: Any, find_labels: Callable[[Sequence[Any], Any], Sequence[str]]
) -> tuple[set[str], list[Finding]]:
    """The labels that finetune would learn, none if labels are no classes; and what is wrong with them."""
    counts = label_counts(rows, options)
    try:
        known = set(find_labels(rows, options))
    except InputError as error:
        message = "nothing can be learnt of these labels, which stops finetune."
        return set(counts), finding("unlearnable", message, [str(error)])
    if isinstance(rows[0], ChoiceRow):  # each choice is read alone, so that no model knows its place
        return known, []
    return known, [*_rare(rows, counts), *_frequent(rows, counts)]


def _rare(rows: Sequence[Any], counts: Counter[str]) -> list[Finding]:
    rare = [label for label, count in reversed(counts.most_common()) if count < _FEW_ROWS]
    message = f"{len(rare):,} labels occur fewer than {_FEW_ROWS} times: hardly to be learnt."
    return finding("rare", message, _counted(rows, counts, rare, _SHOWN_ROWS))


def _frequent(rows: Sequence[Any], counts: Counter[str]) -> Iterator[Finding]:
    """Labels that a model would be right to give always. Where a row has several, each is a decision of its own."""
    whole = counts.total() if isinstance(rows[0], TaggingRow) else len(rows)
    has_several = isinstance(rows[0], ClassificationRow) and rows[0].labels is not None
    for label, count in counts.most_common():
        if count < _MOST_FREQUENT * whole or label == OUTSIDE:
            continue
        message = f'{count / whole:.1%} have the label "{label}": '
        if not has_several:
            message += "accuracy says little, see macro_f1; --class-weights auto may help."
        elif count == whole:
            message += "nothing can be learnt of it."
        else:
            message += "to give it always is nearly always right."
        yield from finding("imbalance", message, [f'"{label}": {count:,}'])


def unseen_labels(rows: Sequence[Any], options: Any, known: Collection[str]) -> list[Finding]:
    """Labels of data for evaluation that finetune does not know; to be asked only where it knows labels."""
    counts = label_counts(rows, options)
    new = [label for label in counts if label not in known]
    message = f"{len(new):,} labels do not occur in train, which stops finetune."
    return finding("unseen", message, _counted(rows, counts, new, _SHOWN_ROWS))


def alike_labels(rows: Mapping[str, Sequence[Any]], options: Any) -> Iterator[Finding]:
    """Labels that differ in nothing but how they are written, in a split or between it and those before it."""
    written: dict[str | Decimal, dict[str, str]] = {}  # the ways of each label, with the first place of each way
    for split, own in rows.items():
        counts = label_counts(own, options)
        changed: dict[str | Decimal, None] = {}
        for label, place in zip(counts, _counted(own, counts, counts, 1), strict=True):
            ways = written.setdefault(_bare(label), {})
            if label not in ways:
                ways[label] = place if unicodedata.is_normalized("NFC", label) else f"{label!a} = {place}"
                changed[_bare(label)] = None
        several = [" and ".join(written[bare].values()) for bare in changed if len(written[bare]) > 1]
        message = (
            f"{len(several):,} labels are written in more than one way (case, spaces, Unicode, form of a number): "
            "each way is a label of its own."
        )
        yield from (replace(one, split=split) for one in finding("alike", message, several))


def _bare(label: str) -> str | Decimal:
    """The same for labels that a reader takes for the same.

    >>> _bare("Pos ") == _bare("pos"), _bare("1.0") == _bare("1"), _bare("B-PER") == _bare("I-PER")
    (True, True, False)
    >>> _bare("\uff42") == _bare("b"), _bare("b\u200b") == _bare("b")  # full-width; with a space of no width
    (True, True)
    """
    seen = "".join(one for one in unicodedata.normalize("NFKC", label) if unicodedata.category(one) != "Cf")
    folded = unicodedata.normalize("NFKC", " ".join(seen.casefold().split()))
    try:
        number = Decimal(folded)
    except InvalidOperation:
        return folded
    return number if number.is_finite() else folded


def _counted(rows: Sequence[Any], counts: Mapping[str, int], labels: Iterable[str], limit: int) -> list[str]:
    """A line for each label: how many rows or words have it, and at most `limit` of them."""
    places: dict[str, list[str]] = {label: [] for label in labels}
    for row in rows:
        for number, label in enumerate(classes_of(row), start=1):
            found = places.get(label)
            if found is not None and len(found) < limit:
                found.append(f"{row.where}, word {number}" if isinstance(row, TaggingRow) else row.where)
    ends = {label: "; ..." if counts[label] > len(found) else "" for label, found in places.items()}
    return [f'"{label}": {counts[label]:,} ({"; ".join(found)}{ends[label]})' for label, found in places.items()]


def misfit_tags(rows: Sequence[Any], options: Any) -> list[Finding]:
    """Tags that do not stand where their scheme wants them: each is read as something, perhaps not as it was meant."""
    places = [f"{row.where}, {misfit}" for row in rows if isinstance(row, TaggingRow) for misfit in row.misfits]
    scheme = options.scheme if isinstance(options, TaggingSettings) else ""
    message = f"{len(places):,} tags do not fit the scheme {scheme}; they are read by the rules of conlleval."
    return finding("tags", message, places)


def unread_entities(rows: Sequence[Any], given: Any) -> list[Finding]:
    """Tags that are labels of their own, though most but O look like entities: B_ORG, b-org, ORG-B.

    Args:
        given: the settings before the scheme was found; who says one means it.
    """
    if not isinstance(given, TaggingSettings) or given.scheme != "auto":
        return []
    counts = label_counts(rows, given)
    like = {tag: _LIKE_ENTITY.fullmatch(tag) for tag in counts if split_tag(tag) is None}
    odd = {tag: (match[1] or match[2]).upper() for tag, match in like.items() if match is not None}
    others = [tag for tag in counts if tag.upper() != OUTSIDE]
    begins = "B" in odd.values() or set(odd.values()) == {"I"}
    if not begins or 2 * len(odd) <= len(others) or len(odd) == len(counts):  # the last are words cut into pieces
        return []
    message = (
        f"{len(odd):,} tags look like entities but are not written as B-ORG is, so that each is a label and no entity "
        "is read. Write B- or I- and a type, and O for what is none; or say --scheme none."
    )
    return finding("entities", message, _counted(rows, counts, odd, _SHOWN_ROWS))


def quoted_columns(source: str, given: Any) -> Iterator[Finding]:
    """Columns of .tsv tables whose values are mostly in quotes, which are text there unless the settings say more."""
    if not isinstance(given, ClassificationSettings | ChoiceSettings | EmbeddingSettings) or given.quoting is not None:
        return
    filled: Counter[str] = Counter()
    quoted: dict[str, list[str]] = {}
    for path in expand_sources([source]):
        for where, values in iter_records(path, given, []) if suffix_of(path) == ".tsv" else ():
            for column, value in values.items():
                filled[column] += bool(value)
                if _QUOTED.fullmatch(value):
                    quoted.setdefault(column, []).append(where)
    for column, places in quoted.items():
        if 2 * len(places) > filled[column]:
            message = (
                f'{share(len(places), filled[column])} have a value in double quotes in the column "{column}": they '
                "are read as part of it. Give --quoting, or --no-quoting if they are."
            )
            yield from finding("quotes", message, places)


def equal_numbers(rows: Sequence[Any], options: Any) -> Iterator[Finding]:
    """Numbers that are all the same, of rows to evaluate; of those to learn from `find_labels` says it."""
    numbers = numbers_of(rows, options)
    if len(numbers) > 1 and min(numbers) == max(numbers):
        message = f"all {len(rows):,} rows have the number {numbers[0]:g}: nothing to tell apart."
        yield from finding("constant", message, [row.where for row in rows])


def numbers_alone(rows: Sequence[Any], options: Any) -> Iterator[Finding]:
    """Numbers that are far from all others: squared errors would be theirs alone."""
    numbers = np.array(numbers_of(rows, options))
    if len(numbers) < 2:
        return
    low, median, high = np.percentile(numbers, [5, 50, 95])
    is_far = (high > low) & (np.abs(numbers - median) > _FAR_SPREADS * (high - low))
    far = [f"{row.where}: {number:g}" for row, number, is_one in zip(rows, numbers, is_far, strict=True) if is_one]
    message = f"{share(len(far), len(rows))} have a number that is far from the others, most of which are from "
    yield from finding("outliers", f"{message}{low:g} to {high:g}: is it right?", far)
