"""Cross-validation: the training rows in parts, each of which is scored by a model that learnt from the others.

On few rows one held-back part says little; all of them together use every row (Kohavi 1995, "A study of
cross-validation and bootstrap for accuracy estimation and model selection", which also finds parts with equal shares
of each label steadier). A row whose label the model contradicts, without having seen it, may be labelled wrongly
(Northcutt et al. 2021, arXiv 1911.00068).

out/
    config.yaml         the settings
    report.html         mean and deviation of every metric, and a row a fold
    predictions.jsonl   a line a row: its place, its fold, its label, and what the model of its fold said
    fold-0/ ...         a run each, and result.json when it has finished; its model and checkpoints are not kept
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertsmith.errors import InputError, SettingsError
from bertsmith.files import atomic_write
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import Row, iter_records, place_of, sorted_labels, value_of
from bertsmith.tasks.run_folder import OF_A_FOLD
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.tag_data import DOCUMENT_COLUMN, TaggingRow, TaggingSettings
from bertsmith.tasks.teaching import PREDICTIONS
from bertsmith.text.labelled import holds_rows
from bertsmith.text.sources import iter_rows
from bertsmith.training.report import Table

_MOST_FOLDS = 20
"""As many may have a single row each."""
_SHOWN_LABELS = 5


@dataclass(frozen=True)
class Fold:
    """A part of the training rows, and all others, both in their order."""

    name: str
    """Its number, or what the column says."""
    scored: list[Any]
    learnt: list[Any]
    chosen_by: str
    """How it came to be, as far as the settings go."""


def check(settings: FinetuneSettings) -> None:
    """Refuse to resume one kind of run with settings of another.

    Raises:
        SettingsError: `out` holds one run, or folds are not asked for where it holds some.
    """
    if settings.resume and settings.is_folded and (settings.out / "checkpoints").exists():
        raise SettingsError(f"{settings.out} holds a single run, and folds are asked for. Choose another folder.")
    if settings.resume and not settings.is_folded and any(settings.out.glob(f"{OF_A_FOLD}*")):
        raise SettingsError(f"{settings.out} holds a run of folds. Say how many with folds, or name the fold_column.")


@contextmanager
def naming(fold: Fold) -> Iterator[None]:
    """Say of what is wrong in here that it is about the rows which are left without this fold."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"without fold {fold.name}: {error}") from None


def fold_settings(settings: FinetuneSettings, number: int) -> FinetuneSettings:
    """Those of one fold's run: all but the folder is the same."""
    return replace(settings, jobs=1, out=settings.out / f"{OF_A_FOLD}{number}")


def split(rows: Sequence[Any], settings: FinetuneSettings, options: Any) -> list[Fold]:
    """The folds, in the order of their names; none where none are asked for.

    Args:
        options: the settings of the task, as reading the rows has settled them.

    Raises:
        SettingsError: too few rows; `fold_column` for data that has no columns, or one that holds a single value.
        InputError: a row without a value in that column, or a document that would be cut.
    """
    if settings.fold_column is not None:
        values = _column(rows, settings.train, settings.fold_column, options)
        names, chosen_by = sorted_labels(values), f"column {settings.fold_column}"
        if len(names) < 2:
            raise SettingsError(f'fold_column: all rows have "{names[0]}" in {settings.fold_column}; give two or more.')
        if len(names) > max(_MOST_FOLDS, len(rows) / 2):
            raise SettingsError(
                f"fold_column: {settings.fold_column} has {len(names):,} values in {len(rows):,} rows, and each would "
                "be a run. Name a column with few values, or say how many folds."
            )
        if isinstance(options, TaggingSettings) and options.context == "document":
            _check_documents(rows, values)
    elif settings.folds is not None:
        chosen = assign([row.group for row in rows], _labels(rows, options), settings.folds, settings.seed)
        values, names = list(map(str, chosen)), tuple(map(str, range(settings.folds)))
        chosen_by = f"seed {settings.seed}"
    else:
        return []
    pairs = list(zip(rows, values, strict=True))
    return [
        Fold(
            name,
            [row for row, value in pairs if value == name],
            [row for row, value in pairs if value != name],
            f"{name} of {len(names)}, {chosen_by}",
        )
        for name in names
    ]


def _check_documents(rows: Sequence[TaggingRow], values: Sequence[str]) -> None:
    """See that no sentence is scored which another fold's model was shown around those it learnt from."""
    found: dict[int, str] = {}
    for row, value in zip(rows, values, strict=True):
        first = found.setdefault(id(row.neighbours), value)
        if first != value:
            raise InputError(
                f'this sentence is in fold "{value}", and one of the same document in "{first}". With context document '
                f"a document is of one fold: give each its own name in the column {DOCUMENT_COLUMN}, or say how many "
                "folds.",
                row.where,
            )


def assign(groups: Sequence[str], labels: Sequence[str], number: int, seed: int) -> list[int]:
    """The fold of each row, so that folds are as large as each other and have as much of each label.

    Rows of one group are in one fold. The folds depend on the seed and on what the rows are, not on their order.

    Args:
        groups: of each row.
        labels: of each row; all equal where there are none to be shared out.

    Raises:
        SettingsError: fewer groups than folds.
    """
    sizes = Counter(groups)
    if len(sizes) < number:
        raise SettingsError(f"folds is {number}, and there are {len(sizes)} different texts (or contexts, documents).")
    label_of: dict[str, str] = {}  # where a group has several, the first by code points
    for group, label in zip(groups, labels, strict=True):
        label_of[group] = min(label, label_of.get(group, label))
    fold_of: dict[str, int] = {}
    filled: Counter[tuple[str | None, int]] = Counter()
    for group in sorted(sizes, key=lambda one: (label_of[one], place_of(f"{seed}\n{one}", "folds"), one)):
        label = label_of[group]
        fold = min(range(number), key=lambda one: (filled[label, one], filled[None, one]))
        fold_of[group] = fold
        filled[label, fold] += sizes[group]
        filled[None, fold] += sizes[group]
    return [fold_of[group] for group in groups]


def _labels(rows: Sequence[Any], options: Any) -> list[str]:
    """What is shared out evenly: the labels of classification, where a row has one and it is no number."""
    if isinstance(options, ClassificationSettings) and not (options.regression or options.multi_label):
        return [row.label for row in rows]
    return [""] * len(rows)


def _column(rows: Sequence[Row], source: str, column: str, options: Any) -> list[str]:
    """What a column says of each row."""
    values = {where: str(value_of(values, column, where)) for where, values in _records(source, options)}
    return [values[row.where] for row in rows]


def _records(source: str, options: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(options, ClassificationSettings | ChoiceSettings | EmbeddingSettings):
        return iter_records(source, options)
    if holds_rows(source):
        return iter_rows(source)
    raise SettingsError(f"fold_column: {source} has no columns with names. Say how many folds instead.")


def write_out_of_fold(runs: Sequence[SeedRun], folds: Sequence[Fold], rows: Sequence[Row], path: Path) -> None:
    """One file out of those of the runs, in the order of the rows, with the fold of each."""
    found: dict[int, str] = {}  # by the row itself: two may say that they stand at the same place
    for run, fold in zip(runs, folds, strict=True):
        lines = (run.folder / PREDICTIONS).read_text(encoding="utf-8").split("\n")[:-1]
        for row, line in zip(fold.scored, lines, strict=True):
            values = json.loads(line)
            told = {"row": values.pop("row"), "fold": fold.name, **values}
            found[id(row)] = json.dumps(told, ensure_ascii=False)
    atomic_write(path, "".join(f"{found[id(row)]}\n" for row in rows))


def notes(folds: Sequence[Fold], settings: FinetuneSettings, options: Any) -> list[str]:
    """A sentence for each fold with labels that no other row has: its model cannot know them; and one about a teacher
    that may know them too well."""
    found = []
    if folds and settings.teacher is not None:
        found.append(
            "If the teacher has learnt from these rows, it tells each fold's model about the others: figures will look "
            "too good."
        )
    for fold in folds:
        alone = set(_labels(fold.scored, options)) - set(_labels(fold.learnt, options))
        if alone:
            names = ", ".join(f'"{label}"' for label in sorted(alone)[:_SHOWN_LABELS])
            more = f" and {len(alone) - _SHOWN_LABELS} more" if len(alone) > _SHOWN_LABELS else ""
            found.append(f"Fold {fold.name} alone has the label {names}{more}, which its model therefore cannot learn.")
    return found


def section(folds: Sequence[Fold]) -> Table:
    """For the report: how large the folds are."""
    rows = [(number, fold.name, len(fold.scored), len(fold.learnt)) for number, fold in enumerate(folds)]
    return Table("Folds", ("fold", "name", "rows scored", "other rows"), rows)
