"""What the fine-tuning tasks share: columns found by name, labels found and checked, a split by hash, long examples."""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from bertsmith.errors import InputError, ModelError, SettingsError, collecting, did_you_mean
from bertsmith.model.batch import PackedBatch
from bertsmith.model.encoder import Encoder
from bertsmith.text.sources import iter_rows
from bertsmith.text.tables import no_column

LONGEST_TEXT = 1 << 22
"""Characters. Tokenizing takes some hundred bytes for each of them, so far more memory than the text."""
_MOST_TOKENS = 8192  # at once, as in the batches of an evaluation


class Row(Protocol):
    """One labelled row, as a task has read it."""

    @property
    def where(self) -> str:
        """`file:line`, for messages."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads of it, in order."""

    @property
    def group(self) -> str:
        """Rows with equal groups never stand on two sides of a split by `split_rows`."""


class Tokenized(Protocol):
    """An example that knows how many tokens it gives the model."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""


class Tabular(Protocol):
    """Settings that say how a table is read."""

    @property
    def columns(self) -> str | None:
        """Names for columns without a header line, with commas between them."""

    @property
    def delimiter(self) -> str | None:
        """The character between columns."""

    @property
    def quoting(self) -> bool | None:
        """Whether fields may stand in double quotes."""


RowT = TypeVar("RowT", bound=Row)
ExampleT = TypeVar("ExampleT", bound=Tokenized)
SettingsT = TypeVar("SettingsT", bound=Tabular)


class ListExamples(Generic[ExampleT]):
    """Examples that are the same in every epoch, tokenized once and kept in memory."""

    def __init__(self, items: Sequence[ExampleT]) -> None:
        self.items = items

    def num_examples(self, epoch: int) -> int:
        """The same for every epoch."""
        return len(self.items)

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[ExampleT]:
        """Those items, whatever the epoch."""
        return [self.items[index] for index in indices]

    def num_tokens(self, index: int) -> int:
        """Tokens of item `index`."""
        return self.items[index].num_tokens


def iter_records(
    source: str, settings: Tabular | None = None, bad: list[InputError] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of any kind with their places, labelled or not.

    Args:
        settings: how tables are read; None: as usual.
        bad: gets what is wrong with rows that cannot be read, which are passed over; None: the first is an error.

    Raises:
        InputError: as `iter_rows`, and for a text that is too long to be tokenized in a memory of usual size.
    """
    names = settings.columns if settings else None
    columns = tuple(name.strip() for name in names.split(",")) if names else None
    how = (settings.delimiter, settings.quoting) if settings else (None, None)
    for where, row in iter_rows(source, columns=columns, delimiter=how[0], quoting=how[1], bad=bad):
        is_read = False
        with collecting(bad):
            for column, value in row.items():
                if isinstance(value, str) and len(value) > LONGEST_TEXT:
                    raise InputError(
                        f"a text of {len(value):,} characters; a row may have {LONGEST_TEXT:,}. Is the end of the row "
                        "missing? Else cut the text.",
                        f"{where}, {column}",
                    )
            is_read = True
        if is_read:
            yield where, row


def iter_settled(
    source: str,
    settings: SettingsT,
    find_columns: Callable[[SettingsT, Sequence[str], str], SettingsT],
    bad: list[InputError] | None = None,
    optional: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, Any], SettingsT]]:
    """As `iter_records`, with the settings whose columns are found among the fields of the first row.

    Args:
        optional: fields that are read in every row that has them, whatever the columns.

    Raises:
        InputError: as both; and a later row has a field by which the columns would be others.
    """
    given, fields = settings, dict[str, None]()
    for where, row in iter_records(source, given, bad):
        new = [name for name in row if name not in fields]
        if not fields:
            settings = find_columns(given, new, where)
        elif any(name not in optional for name in new):
            with collecting(bad):
                if not _finds(find_columns, given, [*fields, *new], settings):
                    names = ", ".join(f'"{name}"' for name in new)
                    raise InputError(
                        f"the rows above have no field {names}, which would change what is read. Give every row the "
                        "same fields, or name the columns to be read.",
                        where,
                    )
        fields |= dict.fromkeys(new)
        yield where, row, settings


def _finds(
    find_columns: Callable[[SettingsT, Sequence[str], str], SettingsT],
    given: SettingsT,
    fields: Sequence[str],
    expected: SettingsT,
) -> bool:
    try:
        return find_columns(given, fields, "") == expected
    except InputError:
        return False


def nothing_read(source: str, what: str, bad: Sequence[InputError] | None) -> InputError:
    """What to say of data of which no row can be used."""
    return bad[0] if bad else InputError(f"no {what}.", source)


def is_gap(value: object) -> bool:
    """Whether a value stands for none: None, or NaN, which pandas has in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def value_of(row: Mapping[str, Any], column: str, where: str) -> Any:
    """The value of one column.

    Raises:
        InputError: the row has no such column, or nothing in it; names the nearest column.
    """
    if column not in row:
        raise no_column(column, row, where)
    if is_gap(row[column]):
        raise InputError("nothing here; every row needs a value.", f"{where}, {column}")
    return row[column]


def given_as(
    value: str | Mapping[str, Any], columns: Iterable[object] = ()
) -> Literal["text", "pair", "question", "row"]:
    """What a user gives to be answered: a text, a pair of texts, a question with its context, or a row.

    Whoever gives nothing but `text` and `pair`, or `question` and `context`, means both, and is not to be answered from
    one of them. A row with more may have what nobody reads.

    Args:
        columns: names that the task's settings say themselves; what has no others is a row.

    >>> given_as({"text": "a", "pair": "b"}), given_as({"text": "a", "pair": "b", "id": 1}), given_as({"text": "a"})
    ('pair', 'row', 'row')
    """
    if isinstance(value, str):
        return "text"
    names = {name for name, one in value.items() if not is_gap(one)}
    if names == {"text", "pair"} and not names <= set(columns):
        return "pair"
    return "question" if names == {"question", "context"} and not names <= set(columns) else "row"


def detect_column(columns: Iterable[str], known: Sequence[str], taken: Iterable[str | None] = ()) -> str | None:
    """The one column that has a name of `known` (in any case), else None.

    >>> detect_column(["id", "Review", "stars"], ["text", "review"])
    'Review'
    >>> detect_column(["text", "review"], ["text", "review"]) is None
    True
    """
    free = [column for column in columns if column not in set(taken)]
    found = [column for column in free if column.strip().lower() in known]
    return found[0] if len(found) == 1 else None


def usual_column(
    given: str | None, columns: Collection[str], known: Sequence[str], taken: Iterable[str | None] = ()
) -> str | None:
    """The column that was given, else the one with a name of `known`, which stands in for another of them, too.

    >>> usual_column("sentence", ["content", "label"], ["sentence", "content"])
    'content'
    >>> usual_column("sentense", ["content", "label"], ["sentence", "content"])
    'sentense'
    """
    if given is not None and (given in columns or given.lower() not in known):
        return given
    return detect_column(columns, known, taken) or given


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels in the order of their ids: integers by value, everything else by code points.

    >>> sorted_labels(["10", "9", "9"]), sorted_labels(["b", "10", "a"])
    (('9', '10'), ('10', 'a', 'b'))
    """
    distinct = set(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def label_id(label: str, ids: Mapping[str, int], where: str) -> int:
    """The id of a label.

    Raises:
        InputError: the label was not in the training data; names the nearest one.
    """
    if label not in ids:
        raise InputError(
            f'the label "{label}" does not occur in the training data. {did_you_mean(label, ids)}{unnamed_labels(ids)}',
            where,
        )
    return ids[label]


def unnamed_labels(labels: Iterable[str]) -> str:
    """What to do about a model of transformers whose labels nobody has named; nothing about others."""
    if not all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        return ""
    return ' Nobody has named these: write the names of your data into "id2label" in the config.json of the model.'


def config_labels(raw_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a model in the order of their ids, by its `config.json`."""
    # transformers leaves id2label out where it is its default of two labels.
    id2label = raw_config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(id2label, Mapping) or not all(str(index).isdecimal() for index in id2label):
        raise ModelError(f'config.json: "id2label" has to say the label of each number, not {id2label!r}.')
    labels = tuple(str(id2label[index]) for index in sorted(id2label, key=int))
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ModelError(f'config.json: "id2label" has the label "{twice}" twice; give each of them a name of its own.')
    return labels


def class_weights(setting: str, labels: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """float32 [C] weights of the classes in the loss.

    Args:
        setting: "none"; "auto", which makes every class count the same in sum, N / (C x count) as
            scikit-learn's "balanced"; or "spam=5,ham=1", where labels that are not named weigh 1.
        counts: training rows of each label.

    Raises:
        SettingsError: an unknown label, or a weight that is not a positive number.
    """
    weights = np.ones(len(labels), dtype=np.float32)
    if setting == "auto":
        return (sum(counts) / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
    if setting == "none":
        return weights
    ids = {label: index for index, label in enumerate(labels)}
    parts = re.split(r"=([^,=]*)(?:,|$)", setting.removesuffix(","))  # a label may have a comma in it, and "=", too
    for label, number in zip_longest(parts[::2], parts[1::2], fillvalue=""):
        if not label and not number:  # behind the last
            continue
        if label.strip() not in ids:
            raise SettingsError(
                f'class_weights: no label "{label.strip()}". Write none, auto, or label=weight,label=weight. '
                f"{did_you_mean(label.strip(), ids)}"
            )
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not 0 < weight <= float(np.finfo(np.float32).max):
            raise SettingsError(
                f'class_weights: the weight of "{label.strip()}" must be a number above 0 that float32 can hold, not '
                f"{number!r}."
            )
        weights[ids[label.strip()]] = weight
    return weights


def split_rows(rows: Sequence[RowT], dev_share: float) -> tuple[list[RowT], list[RowT]]:
    """(train, dev): a row is in dev if the hash of its group falls in the first `dev_share` of all hashes.

    Neither the order of the rows nor the seed changes where a row goes, and equal texts stay
    together, so that dev figures of different runs can be compared and no text is learnt by heart.
    When no group falls into dev, the one with the smallest hash does.

    Raises:
        SettingsError: the rows are all of one group, or dev took them all.
    """
    places = {row.group: place_of(row.group) for row in rows}
    limit = max(dev_share, min(places.values(), default=0.0))
    train = [row for row in rows if places[row.group] > limit]
    dev = [row for row in rows if places[row.group] <= limit]
    if not train or not dev:
        raise SettingsError(
            f"{len(rows)} training rows with {len(places)} different texts (with context: documents) are too few to "
            f"hold a share of {dev_share:g} back for dev. Name a dev file, or give more rows."
        )
    return train, dev


def choose_rows(rows: Sequence[RowT], number: int) -> list[RowT]:
    """`number` of the rows, in their order: those with the smallest hashes of text and line, whatever the seed, and
    wherever the file lies."""

    def place(index: int) -> float:
        return place_of(f"{rows[index].group}\n{rows[index].where.rpartition('/')[2].rpartition(':')[2]}")

    by_hash = sorted(range(len(rows)), key=place)
    return [rows[index] for index in sorted(by_hash[:number])]


def place_of(text: str, purpose: str = "dev-split") -> float:
    """A number in [0, 1) that depends on the text and the purpose alone."""
    person = purpose.encode()
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big") / 2**64


def check_max_length(max_length: int, encoder: Encoder, fewest: int = 1) -> None:
    """Raise SettingsError unless sequences of that length fit the encoder's position table, and hold some text."""
    longest = encoder.config.max_sequence_length
    if not fewest <= max_length <= longest:
        can_grow = max_length > longest and encoder.config.rope_theta is None
        raise SettingsError(
            f"max_length is {max_length}; this model takes {fewest} to {longest} tokens (max_position_embeddings)."
            + (" To fine-tune it for longer ones, give extend_positions." if can_grow else "")
        )


def sub_batches(inputs: PackedBatch, token_budget: int = _MOST_TOKENS) -> Iterator[tuple[int, PackedBatch]]:
    """The sequences of a batch in batches that fit into memory: one long example may be thousands of windows.

    Args:
        token_budget: of a batch; a longer sequence is a batch of its own.

    Yields:
        Where the tokens of the smaller batch begin in the large one, and the smaller batch.
    """
    ends = np.cumsum(inputs.lengths).tolist()
    first, start = 0, 0
    for last, end in enumerate(ends, start=1):
        if last < len(ends) and ends[last] - start <= token_budget:
            continue
        yield (
            start,
            PackedBatch(
                inputs.token_ids[start:end],
                inputs.segment_ids[start:end],
                inputs.position_ids[start:end],
                inputs.offsets[first : last + 1] - start,
                inputs.lengths[first:last],
            ),
        )
        first, start = last, end
