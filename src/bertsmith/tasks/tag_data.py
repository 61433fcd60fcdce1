"""What tagging learns from: settings, sentences with one tag a word, and the labels they make."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from bertsmith.errors import InputError, SettingsError, collecting
from bertsmith.settings import settle_types
from bertsmith.tasks.classify_data import TEXT_COLUMNS
from bertsmith.tasks.entities import OUTSIDE, Scheme, detect_scheme, misfits, read_spans, split_tag, to_iob2
from bertsmith.tasks.rows import (
    detect_column,
    given_as,
    is_gap,
    iter_records,
    nothing_read,
    sorted_labels,
    usual_column,
    value_of,
)
from bertsmith.text.labelled import CONLLU_COLUMNS, TaggedSentence, conll_columns, holds_rows, read_columns
from bertsmith.text.reading import suffix_of
from bertsmith.text.tables import header_hint, string_list

_NEARLY_ALL, _HALF = 0.95, 0.5  # of the words, and no more of the tags, read as tags where the two are exchanged
WORD_COLUMNS = ("words", "tokens")
"""Names that are taken for the words, in rows, when `token_column` is not given."""
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "upos", "labels")
"""Names that are taken for the tags, in rows, when `tag_column` is not given and only one is there."""
DOCUMENT_COLUMN = "document"
"""In rows, the name of the document; without it, the rows of one source are of one document."""


@dataclass(frozen=True)
class TaggingSettings:
    """Where words and tags stand in the data, what the tags mean, and how long sentences are cut."""

    token_column: int | str | None = None
    """The column of the words: a number from 0 in CoNLL files, a name in CoNLL-U and rows; by default as usual."""
    tag_column: int | str | None = None
    """The column of the tags, in the same way: -1 is the last; upos, xpos, deprel... in CoNLL-U."""
    scheme: Literal["auto", "iob1", "iob2", "bioes", "none"] = "auto"
    """How tags mark entities (BMES is read as bioes); "none": every word has a label of its own; auto: found."""
    max_length: int = 128
    """Tokens in a sequence, [CLS] and [SEP] included; longer sentences are read in windows."""
    doc_stride: int = 64
    """Tokens from the start of a window to the start of the next: a step, not an overlap."""
    context: Literal["none", "document"] = "none"
    """Show each sentence alone, or with as much of its document, before and after it, as max_length has room for."""
    class_weights: str = "none"
    """Weights of the labels in the loss: none, auto (every label counts the same), or "B-PER=5,O=0.5"."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all labels."""
    crf: bool = False
    """Learn and answer the labels of a sentence as a whole, with scores for what stands behind what (CRF)."""
    metric: Literal["f1", "accuracy", "macro_f1"] | None = None
    """What picks the best checkpoint; by default f1 of entities, accuracy of labels."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not 0 <= self.label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}.")
        if self.crf and (self.class_weights != "none" or self.label_smoothing > 0):
            raise SettingsError("crf learns whole sentences: class_weights and label_smoothing are of single words.")
        for name, lowest in (("max_length", 3), ("doc_stride", 1)):
            if getattr(self, name) < lowest:
                raise SettingsError(f"{name} must be at least {lowest}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class TaggingRow:
    """A sentence as words that someone else has split, or as raw text; tags in IOB2, None to predict."""

    where: str
    words: tuple[str, ...] | None
    text: str | None
    tags: tuple[str, ...] | None
    document: str = ""
    """Sentences that follow each other and have the same name here are of one document."""
    neighbours: Sequence["TaggingRow"] = field(default=(), compare=False, repr=False)
    """With context, the sentences of its document in their order, itself at `place`; without, none."""
    place: int = field(default=0, compare=False)
    misfits: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What of the tags, as they were written, does not fit their scheme, and how it is read."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or the words with single spaces between them."""
        return (self.text if self.words is None else " ".join(self.words),)  # type: ignore[return-value]

    @property
    def group(self) -> str:
        """Equal sentences stay on one side of a split; with context documents, told by their first sentence."""
        return " ".join((self.neighbours[0] if self.neighbours else self).words or ())


def read_rows(
    source: str, settings: TaggingSettings, bad: list[InputError] | None = None
) -> tuple[TaggingSettings, list[TaggingRow]]:
    """Read tagged sentences, and settle what their tags mean.

    Args:
        bad: gets what is wrong with sentences that cannot be used, which are passed over; None: the first is an error.

    Returns:
        The settings with the scheme and the columns that were found, to read further files with; the
        rows, with entities in IOB2, and with context in their documents.

    Raises:
        InputError: no sentences that can be used, columns that are missing or cannot be told, a tag not of the scheme.
    """
    sentences: list[TaggedSentence] = []
    with collecting(bad):
        if holds_rows(source):
            settings = _read_fields(source, settings, sentences, bad)
        else:
            # What rows of another file call their lists is not said of columns, which have no names or others.
            names = CONLLU_COLUMNS if suffix_of(source) == ".conllu" else ()
            token = None if settings.token_column in {*WORD_COLUMNS} - {*names} else settings.token_column
            tag = None if settings.tag_column in {*TAG_COLUMNS} - {*names} else settings.tag_column
            settings = replace(settings, token_column=token, tag_column=tag)
            sentences.extend(read_columns(Path(source), token, tag, bad))
    if not any(sentence.words for sentence in sentences):
        raise nothing_read(source, "sentences with words", bad)
    if not holds_rows(source) and suffix_of(source) != ".conllu":
        _refuse_exchanged(Path(source), settings, sentences)
    scheme: Scheme = (
        detect_scheme(sentence.tags for sentence in sentences) if settings.scheme == "auto" else settings.scheme
    )
    rows: list[TaggingRow] = []
    for one in sentences:
        with collecting(bad):
            tags = to_iob2(one.tags, scheme, one.where)
            doubts = misfits(one.tags, scheme)
            rows.append(TaggingRow(one.where, one.words, None, tags, one.document, misfits=doubts))
    if not rows:
        raise nothing_read(source, "sentences", bad)
    return replace(settings, scheme=scheme), rows if settings.context == "none" else in_documents(rows)


def in_documents(rows: Sequence[TaggingRow]) -> list[TaggingRow]:
    """The same sentences, each knowing those of its document."""
    placed = []
    for _, sentences in groupby(rows, key=lambda row: row.document):
        document: list[TaggingRow] = []
        for place, row in enumerate(sentences):
            document.append(replace(row, neighbours=document, place=place))
        placed += document
    return placed


def _read_fields(
    source: str, settings: TaggingSettings, sentences: list[TaggedSentence], bad: list[InputError] | None
) -> TaggingSettings:
    """Add the sentences of rows with a list of words and a list of tags."""
    for where, values in iter_records(source, bad=bad):
        if not sentences:
            settings = _find_fields(settings, list(values), where)
        with collecting(bad):
            words = string_list(values, str(settings.token_column), where)
            tags = string_list(values, str(settings.tag_column), where)
            if len(words) != len(tags):
                raise InputError(f"{len(words)} words but {len(tags)} tags.", where)
            sentences.append(TaggedSentence(words, tags, where, _document(values)))
    return settings


def _refuse_exchanged(path: Path, settings: TaggingSettings, sentences: Sequence[TaggedSentence]) -> None:
    """Raise InputError if a file of columns has its tags before its words and nobody said so: each word would be taken
    for a label.

    A text may have an "O", an "I" or a "B-52"; in tags there is little else, and few different ones.
    """
    token, tag = (one if isinstance(one, int) else None for one in (settings.token_column, settings.tag_column))
    if token is not None and tag is not None:
        return
    words = Counter(word for sentence in sentences for word in sentence.words)
    tags = Counter(tag for sentence in sentences for tag in sentence.tags)
    of_words, of_tags = (
        sum(count for one, count in found.items() if split_tag(one) is not None) / found.total()
        for found in (words, tags)
    )
    if of_words < _NEARLY_ALL or of_tags > _HALF or OUTSIDE not in words or len(words) >= len(tags):
        return
    token, tag = conll_columns(path, token, tag)
    first = sentences[0]
    raise InputError(
        f'words and tags seem to be exchanged: "{first.words[0]}" is read as a word, and "{first.tags[0]}" as its tag. '
        f"Say --token-column {tag} --tag-column {token} (evaluate: --set token_column={tag} --set tag_column={token}); "
        "columns are counted from 0, and -1 is the last.",
        first.where,
    )


def _document(values: Mapping[str, Any]) -> str:
    """The name of the document of a row, which may be of any kind."""
    name = values.get(DOCUMENT_COLUMN)
    return "" if name is None else str(name)


def _find_fields(settings: TaggingSettings, columns: Sequence[str], where: str) -> TaggingSettings:
    """Settings whose columns are names, found where they were not given; a number is of a file of columns.

    A usual name that this file lacks stands for its kind: dev may call "tokens" what train calls "words".
    """
    given = [column if isinstance(column, str) else None for column in (settings.token_column, settings.tag_column)]
    tokens = usual_column(given[0], columns, WORD_COLUMNS)
    tags = usual_column(given[1], columns, TAG_COLUMNS)
    for name, column in (("token_column", tokens), ("tag_column", tags)):
        if column is None:
            raise InputError(f"cannot tell the {name}: give its name. Columns: {', '.join(map(str, columns))}.", where)
    return replace(settings, token_column=tokens, tag_column=tags)


def find_labels(rows: Sequence[TaggingRow], settings: TaggingSettings) -> tuple[str, ...]:
    """The labels in the order of their ids: O, then B- and I- of each type; or every label, sorted.

    Both B- and I- are there even where all entities of a type are one word long.

    Raises:
        InputError: only one label.
    """
    labels = {tag for row in rows for tag in row.tags or ()}
    if len(labels) < 2:
        raise InputError(f'every word has the tag "{min(labels, default="")}": nothing to tell apart.', rows[0].where)
    if settings.scheme == "none":
        return sorted_labels(labels)
    types = sorted({span.label for label in labels for span in read_spans([label])})
    return (OUTSIDE, *(f"{prefix}-{name}" if name else prefix for name in types for prefix in "BI"))


def row_of(value: str | Mapping[str, Any], settings: TaggingSettings, where: str) -> TaggingRow:
    """A sentence to predict: raw text, or a mapping with a list of words, or with `text` or another usual name.

    What has the name of the words and is no list, such as how many there are, is passed over where there is a text.

    Raises:
        InputError: neither is there, or beside it what is for another task.
    """
    form = given_as(value)
    if form == "question":
        raise InputError('this model does not answer questions; give a text, or a list of "words".', where)
    if form == "pair":
        raise InputError('this model reads one text; leave "pair" out.', where)
    if isinstance(value, str):
        return TaggingRow(where, None, value, None)
    names = (settings.token_column, *WORD_COLUMNS) if isinstance(settings.token_column, str) else WORD_COLUMNS
    given = [str(name) for name in names if not is_gap(value.get(str(name)))]
    for column in given:
        if not isinstance(value[column], str | int | float):
            return TaggingRow(where, string_list(value, column, where), None, None, _document(value))
    text = "text" if "text" in value else detect_column(value, TEXT_COLUMNS, taken=(DOCUMENT_COLUMN,))
    if text is None and given:
        raise InputError(
            f"a list wanted, {type(value[given[0]]).__name__} found. If this is the text, say --set "
            f"text_column={given[0]}; if another column is, name that.",
            f"{where}, {given[0]}",
        )
    if text is None:
        raise InputError(
            'give a row with "text", or with a list of "words"; if the text stands in another column, say --set '
            f"text_column=NAME. Columns: {', '.join(map(str, value))}.{header_hint(map(str, value))}",
            where,
        )
    return as_text(value, text, where)


def as_text(values: Mapping[str, Any], column: str, where: str) -> TaggingRow:
    """A sentence to predict that is raw text in that column, whatever else the row has.

    Raises:
        InputError: there is no such column, or no text in it.
    """
    text = value_of(values, column, where)
    if not isinstance(text, str):
        raise InputError(f"text wanted, {type(text).__name__} found.", f"{where}, {column}")
    return TaggingRow(where, None, text, None, "" if column == DOCUMENT_COLUMN else _document(values))
