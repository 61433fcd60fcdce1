"""What is wrong with labelled data, by file and line, before it costs a training run.

Texts are compared without regard to case and white space: a copy that differs in these is one to a model too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bertsmith.errors import InputError, collecting
from bertsmith.settings import settle_types
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.choice_data import ChoiceRow
from bertsmith.tasks.classify_data import ClassificationRow
from bertsmith.tasks.embed_data import EmbeddingRow, EmbeddingSettings, refuse_scores
from bertsmith.tasks.findings import Finding, finding, share
from bertsmith.tasks.label_check import (
    alike_labels,
    equal_numbers,
    is_regression,
    label_counts,
    misfit_tags,
    numbers_alone,
    numbers_of,
    quoted_columns,
    train_labels,
    unread_entities,
    unseen_labels,
)
from bertsmith.tasks.row_lengths import Encoded, answer_lengths, if_longer, sequence_length
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import read_training_rows, task_kind
from bertsmith.tasks.tag_data import TaggingRow
from bertsmith.text.labelled import Question
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer

_MANY_UNKNOWN = 0.01  # share of the tokens from which on something is said
_SHOWN_LABELS = 12
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What to look at."""

    train: str
    """Labelled training data, in any form that finetune reads."""
    dev: str | None = None
    """Data that is to pick the best checkpoint."""
    test: str | None = None
    """Data that is to be evaluated once, at the end."""
    tokenizer: str | None = None
    """A model or tokenizer: how many tokens texts have, and how many it does not know; by default characters alone."""
    strict: bool = False
    """Exit with 2 if anything is found."""

    def __post_init__(self) -> None:
        settle_types(self)


@dataclass(frozen=True)
class SplitFigures:
    """One split. Lengths are (median, 95th percentile, longest) of a row's texts together."""

    rows: int
    distinct: int
    labels: Mapping[str, int]  # rows, or words, of each; empty where labels are no classes
    characters: tuple[int, int, int]
    tokens: tuple[int, int, int] | None
    unknown_share: float | None  # of the tokens
    numbers: tuple[float, float, float] | None  # lowest, median, highest of what is learnt; None if no numbers are


@dataclass(frozen=True)
class DataReport:
    """All splits, and what to think about."""

    task: str
    splits: Mapping[str, SplitFigures]
    findings: tuple[Finding, ...]


def check_data(task: str, settings: CheckSettings, options: Any = None) -> DataReport:
    """Look at all rows of all splits.

    Args:
        task: as for `finetune`.
        options: the task's own settings; None: their defaults.

    Raises:
        InputError: a source of which no row can be used, or columns that cannot be told.
        ModelError: the tokenizer cannot be loaded.
    """
    kind = task_kind(task)
    options = kind.settings() if options is None else options
    if isinstance(options, AnsweringSettings):
        options = replace(options, lenient=True)  # to hear of every answer that is not at its place
    given = options
    tokenizer = None if settings.tokenizer is None else load_tokenizer(model_folder(settings.tokenizer))
    sources = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    rows: dict[str, list[Any]] = {}
    splits: dict[str, SplitFigures] = {}
    known: set[str] = set()
    findings: list[Finding] = []
    unseen: list[Finding] = []
    for split, source in sources.items():
        if source is None:
            continue
        bad: list[InputError] = []
        if split == "train":
            options, rows[split] = read_training_rows(kind, source, options, bad)
        else:
            of_split, rows[split] = kind.read_rows(source, options, bad)
            with collecting(bad):
                if isinstance(options, EmbeddingSettings):
                    refuse_scores(of_split, options, rows[split][0].where)
        encoded = None if tokenizer is None else Encoded.of(rows[split], tokenizer)
        splits[split] = _figures(rows[split], options, encoded)
        found = [*_bad_rows(bad), *_in_split(rows[split], options)]
        found += [*unread_entities(rows[split], given), *quoted_columns(source, given)]
        if split == "train":
            known, of_labels = train_labels(rows[split], options, kind.find_labels)
            found += of_labels
        else:
            found += equal_numbers(rows[split], options)
        if split != "train" and known:
            unseen += [replace(one, split=split) for one in unseen_labels(rows[split], options, known)]
        if tokenizer is not None and encoded is not None:
            found += _tokens(rows[split], encoded, tokenizer, options)
        findings += [replace(one, split=split) for one in found]
    findings += [*_leaks(rows), *unseen, *alike_labels(rows, options)]
    return DataReport(task, splits, tuple(findings))


def render(report: DataReport) -> RenderableType:
    """Tables for a terminal, or for a file through a rich Console."""
    table = Table("", *report.splits, title=f"Labelled data for {report.task}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in _lines(list(report.splits.values())):
        table.add_row(name, *values)
    parts: list[RenderableType] = [table]
    labels = Counter({label: 0 for figures in report.splits.values() for label in figures.labels})
    labels.update(report.splits["train"].labels)
    if labels:
        shown = Table("label", *report.splits, title="Rows of each label" if report.task != "tagging" else "Words")
        for column in shown.columns[1:]:
            column.justify = "right"
        for label, _ in labels.most_common(_SHOWN_LABELS):
            counts = (figures.labels.get(label, 0) for figures in report.splits.values())
            shown.add_row(Text(label), *(f"{count:,}" for count in counts))
        if len(labels) > _SHOWN_LABELS:
            shown.add_row(f"and {len(labels) - _SHOWN_LABELS:,} more", *("" for _ in report.splits))
        parts.append(shown)
    for one in report.findings:
        parts.append(Text(f"! {one.split}: {one.message}", style="yellow"))
        parts += [Text(f"    {place}") for place in one.places]
        if one.count > len(one.places) > 0:
            parts.append(Text(f"    and {one.count - len(one.places):,} more"))
    if not report.findings:
        parts.append(Text("Nothing suspicious was found.", style="green"))
    return Group(*parts)


def given_answer(row: Any) -> str:
    """What the data say of a row, for comparison and to be shown."""
    if isinstance(row, ClassificationRow):
        return row.label if row.labels is None else ", ".join(sorted(row.labels))  # type: ignore[return-value]
    if isinstance(row, TaggingRow):
        return " ".join(row.tags or ())
    if isinstance(row, Question):
        return row.answers[0].text if row.answers else "no answer"
    if isinstance(row, ChoiceRow):
        return row.choices[row.label or 0]
    return "" if row.score is None else f"{row.score:g}"


def _key(texts: Sequence[str]) -> str:
    return "\n".join(" ".join(text.casefold().split()) for text in texts)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def _figures(rows: Sequence[Any], options: Any, encoded: Encoded | None) -> SplitFigures:
    numbers = numbers_of(rows, options)
    tokens = None if encoded is None else [sum(several) for several in encoded.lengths]
    return SplitFigures(
        rows=len(rows),
        distinct=len({_key(row.texts) for row in rows}),
        labels=label_counts(rows, options),
        characters=_lengths([sum(map(len, row.texts)) for row in rows]),
        tokens=None if tokens is None else _lengths(tokens),
        unknown_share=None if encoded is None or tokens is None else encoded.num_unknown / max(1, sum(tokens)),
        numbers=(min(numbers), float(np.median(numbers)), max(numbers)) if numbers else None,
    )


def _lines(splits: Sequence[SplitFigures]) -> Iterator[tuple[str, list[str]]]:
    yield "rows", [f"{split.rows:,}" for split in splits]
    yield "different texts", [f"{split.distinct:,}" for split in splits]
    yield "labels", [f"{len(split.labels):,}" if split.labels else "" for split in splits]
    if any(split.numbers is not None for split in splits):
        for place, name in enumerate(("numbers: lowest", "    median", "    highest")):
            yield name, ["" if split.numbers is None else f"{split.numbers[place]:g}" for split in splits]
    units = [("characters", [split.characters for split in splits])]
    if all(split.tokens is not None for split in splits):
        units.append(("tokens", [split.tokens or (0, 0, 0) for split in splits]))
    for unit, lengths in units:
        yield f"{unit} of a row: median", [f"{one[0]:,}" for one in lengths]
        yield "    95 % have at most", [f"{one[1]:,}" for one in lengths]
        yield "    longest", [f"{one[2]:,}" for one in lengths]
    if all(split.unknown_share is not None for split in splits):
        yield "unknown tokens", [f"{split.unknown_share:.3%}" for split in splits]


def _lengths(values: Sequence[int]) -> tuple[int, int, int]:
    median, high = np.percentile(values, [50, 95], method="lower")
    return int(median), int(high), max(values)


def _bad_rows(bad: Sequence[InputError]) -> list[Finding]:
    return finding("unusable", f"{len(bad):,} rows cannot be used, which stops finetune.", [str(one) for one in bad])


def _in_split(rows: Sequence[Any], options: Any) -> Iterator[Finding]:
    """Empty texts, copies, contradictions, and answers, tags and numbers that look wrong."""
    yield from _empty(rows)
    answers: dict[str, dict[str, str]] = {}  # of each text, with the first place of each
    copies = []
    for row in rows:
        answer = str(float(row.label)) if is_regression(options) else given_answer(row)
        places = answers.setdefault(_key(row.texts), {})
        if answer in places:
            copies.append(f"{row.where} = {places[answer]}")
        else:
            places[answer] = row.where
    yield from finding("copies", f"{share(len(copies), len(rows))} are copies of an earlier one.", copies)
    if not isinstance(rows[0], Question):  # which may be answered in several ways
        contradictions = [
            ", ".join(f"{where} ({_shown(answer)})" for answer, where in places.items()) + f": {_shown(text)}"
            for text, places in answers.items()
            if len(places) > 1
        ]
        yield from finding(
            "contradictions",
            f"{len(contradictions):,} texts stand with different labels: one is wrong, or the text does not decide.",
            contradictions,
        )
    lost = [row.where for row in rows if isinstance(row, Question) and any(a.start is None for a in row.answers)]
    yield from finding(
        "misplaced",
        f"{share(len(lost), len(rows))} have an answer that is not at its place: finetune stops without --lenient.",
        lost,
    )
    yield from misfit_tags(rows, options)
    yield from numbers_alone(rows, options)


def _empty(rows: Sequence[Any]) -> Iterator[Finding]:
    """Texts and choices without a character, and choices between which nothing can decide."""
    empty, empty_choices, same = [], [], []
    for row in rows:
        choices = row.choices if isinstance(row, ChoiceRow) else ()
        if not all(text.strip() for text in row.texts[: len(row.texts) - len(choices)]):
            empty.append(row.where)
        if not all(choice.strip() for choice in choices):
            empty_choices.append(row.where)
        counts = Counter(_key([choice]) for choice in choices)
        same += [f'{row.where}: "{_shown(choice)}" {n} times' for choice, n in counts.items() if n > 1][:1]
    yield from finding("empty", f"{share(len(empty), len(rows))} have an empty text.", empty)
    yield from finding("empty", f"{share(len(empty_choices), len(rows))} have an empty choice.", empty_choices)
    yield from finding("choices", f"{share(len(same), len(rows))} have the same choice more than once.", same)


def _tokens(rows: Sequence[Any], encoded: Encoded, tokenizer: Tokenizer, options: Any) -> Iterator[Finding]:
    """What does not fit, and what the tokenizer does not know."""
    limit = options.max_length
    if isinstance(options, AnsweringSettings):
        limit = options.max_query_length
    long = [
        (length, row.where)
        for row, lengths in zip(rows, encoded.lengths, strict=True)
        if (length := sequence_length(row, lengths, tokenizer)) > limit
    ]
    long.sort(key=lambda item: -item[0])
    name = "max_query_length" if isinstance(options, AnsweringSettings) else "max_length"
    yield from finding(
        "long",
        f"{share(len(long), len(rows))} are longer than {name} {limit}: {if_longer(rows[0])}.",
        [f"{where}: {length:,} tokens" for length, where in long],
    )
    if isinstance(options, AnsweringSettings):
        most = options.max_answer_length
        of_answers = zip(rows, answer_lengths(rows, tokenizer), strict=True)
        cut = sorted(((length, row.where) for row, length in of_answers if length > most), key=lambda item: -item[0])
        yield from finding(
            "long",
            f"{share(len(cut), len(rows))} have an answer longer than max_answer_length {most}: it is never given.",
            [f"{where}: {length:,} tokens" for length, where in cut],
        )
    total = sum(map(sum, encoded.lengths))
    if encoded.num_unknown >= _MANY_UNKNOWN * max(1, total):
        yield Finding(
            "",
            "unknown",
            encoded.num_unknown,
            f"{encoded.num_unknown / max(1, total):.1%} of the tokens are unknown: the vocabulary does not fit.",
            (),
        )


def _leaks(rows: Mapping[str, Sequence[Any]]) -> Iterator[Finding]:
    """What evaluation has in common with what came before it."""
    for before, split in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if before not in rows or split not in rows:
            continue
        known = {_key(_identity(row)): row.where for row in reversed(rows[before])}
        found = [f"{row.where} = {known[key]}" for row in rows[split] if (key := _key(_identity(row))) in known]
        what = f"{share(len(found), len(rows[split]))} {_what(rows[split][0])}"
        message = f"{what} in {before} as well: figures will look too good."
        yield from (replace(one, split=split) for one in finding("leak", message, found))


def _identity(row: Any) -> Sequence[str]:
    """What must not be seen before evaluation: the texts; the context of a question, whatever is asked; the text about
    which there are choices; two texts that belong together, in whatever order, and beside whatever negative."""
    if isinstance(row, Question):
        return (row.context,)
    if isinstance(row, ChoiceRow):
        return (row.group,)
    if isinstance(row, EmbeddingRow):
        return sorted(_key([text]) for text in (row.text, str(row.pair)))
    texts: Sequence[str] = row.texts
    return texts


def _what(row: Any) -> str:
    """Which rows have their `_identity` in another split."""
    if isinstance(row, Question):
        return "are about a context that is"
    return "are about a text or question that is" if isinstance(row, ChoiceRow) else "are"
