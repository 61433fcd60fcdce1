"""Training examples that are changed anew in every epoch, and keep their labels.

What becomes of an example is a function of (seed, epoch, example) alone, so that a run can be resumed. It is changed
with a probability; else, and in evaluation, it is what it was, so that a model learns from the originals, too.

- A text of classification is changed anywhere, and both texts of a pair.
- Of tagging, a word of an entity is never touched, and tags move with their words. Where every word has a label of its
  own, as parts of speech, words are deleted and swapped, but another word in its place might have another label.
- Of answering, the context is changed outside of all answers, which keep their text; the question says what is asked
  and stays. A changed context is cut into windows anew; one that it no longer has is shown as it was.

Choices and pairs of texts that belong together are refused: there, a few words are the whole difference.

out/augment/
    replacements.jsonl   of `augment_model`: what it was asked; then a line a row, {unit: word} a variant and text
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bertsmith import randomness
from bertsmith.errors import SettingsError
from bertsmith.files import atomic_write
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.answer_data import AnsweringExample, training_examples
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow
from bertsmith.tasks.entities import OUTSIDE
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.replace_words import Replacements, load_word_model, replacements
from bertsmith.tasks.run_folder import AUGMENTED
from bertsmith.tasks.saved import FinetuneTask, training_rows
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import TaggingRow
from bertsmith.text.augment import Edited, Span, Units, edit, moved, text_units, word_units
from bertsmith.text.labelled import Question
from bertsmith.training.device import ResolvedPrecision
from bertsmith.training.distributed import Ranks
from bertsmith.training.task import Examples, Task, TaskAround

Variants = Sequence[Sequence[Replacements]]
"""Of one row: the words to replace in each of its texts, in every variant."""


@dataclass(frozen=True)
class _Kind:
    """How the rows of a task are taken apart and put together."""

    units: Callable[[Any, Any], list[Units]]
    """(task, row) -> the texts that may be changed."""
    rebuilt: Callable[[Any, Sequence[Units], Sequence[Edited]], Any]
    """(row, its texts, the same changed) -> the changed row."""
    encode: Callable[[Any, Sequence[Any], Sequence[Any]], Sequence[Any]]
    """(task, changed rows, their unchanged examples) -> changed examples."""


class Augmented(TaskAround):
    """A task whose training examples are changed."""

    def __init__(
        self, learnt: Task, task: FinetuneTask, settings: FinetuneSettings, variants: Sequence[Variants]
    ) -> None:
        """`learnt` is `task` with its teacher and regularisers; `variants` are those of `read_variants`, or empty."""
        super().__init__(learnt)
        self._train = AugmentedExamples(task, settings, variants)

    def examples(self, split: str) -> Examples:
        """The changed ones of "train", the task's own of any other split."""
        return self._train if split == "train" else super().examples(split)


class AugmentedExamples:
    """The training examples of a task, some of them changed in each epoch."""

    def __init__(self, task: FinetuneTask, settings: FinetuneSettings, variants: Sequence[Variants]) -> None:
        self._task, self._settings = task, settings
        self._kind = _KINDS[task.name]
        self._base: Examples = task.examples("train")
        self._variants: dict[int, Variants] = {}
        if variants:
            self._variants = dict(zip(map(id, training_rows(task)), variants, strict=True))

    def num_examples(self, epoch: int) -> int:
        """As many as without changes."""
        return self._base.num_examples(epoch)

    def num_tokens(self, index: int) -> int:
        """Those of the unchanged example."""
        return self._base.num_tokens(index)

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[Any]:
        """Some examples of an epoch; those whose row has not changed are the task's own."""
        items = list(self._base.take(indices, epoch))
        rows = [self._changed(item.row, index, epoch) for index, item in zip(indices, items, strict=True)]
        places = [place for place, item in enumerate(items) if rows[place] != item.row]
        changed = self._kind.encode(self._task, [rows[place] for place in places], [items[place] for place in places])
        for place, item in zip(places, changed, strict=True):
            items[place] = item
        return items

    def _changed(self, row: Any, index: int, epoch: int) -> Any:
        settings, random = self._settings, randomness.generator(self._settings.seed, "augment", epoch, index)
        if random.random() >= settings.augment_share:
            return row
        texts = self._kind.units(self._task, row)
        replaced: Sequence[Replacements] = [{} for _ in texts]
        if self._variants:
            variants = self._variants[id(row)]
            replaced = variants[int(random.integers(len(variants)))]
        edits = [
            edit(units, random, delete=settings.augment_delete, swap=settings.augment_swap, replaced=words)
            for units, words in zip(texts, replaced, strict=True)
        ]
        return self._kind.rebuilt(row, texts, edits)


def check_augmentation(task: FinetuneTask, settings: FinetuneSettings) -> None:
    """Refuse what cannot be done before anything is written.

    Raises:
        SettingsError: a task, or labels, for which changed texts may be wrong.
        ModelError: `augment_model` cannot be used.
    """
    if not settings.is_augmented:
        return
    if task.name not in _KINDS:
        raise SettingsError(
            f"augment_delete, augment_swap and augment_model are for {', '.join(_KINDS)}; in {task.name} a few words "
            "are the whole difference between right and wrong."
        )
    if settings.augment_model is not None:
        if isinstance(task, Tagging) and not task.has_entities:
            raise SettingsError(
                "augment_model puts other words in the place of words, and here each word has a label of its own, "
                "which the other word may not have. Use augment_delete and augment_swap."
            )
        if not settings.resume:  # which has its words, and may do without the model
            load_word_model(settings.augment_model)


def augmented(
    learnt: Task,
    task: FinetuneTask,
    settings: FinetuneSettings,
    ranks: Ranks,
    device: torch.device,
    precision: ResolvedPrecision,
) -> Task:
    """What is trained, with changed examples if the settings ask for any; replacements are made if they are not there.

    Args:
        learnt: `task` with its teacher and regularisers.
    """
    if not settings.is_augmented:
        return learnt
    variants: list[Variants] = []
    if settings.augment_model is not None:
        path = settings.out / AUGMENTED / "replacements.jsonl"
        ranks.first(lambda: _write_variants(path, task, settings, device, precision))
        variants = read_variants(ranks.visible(path))
    return Augmented(learnt, task, settings, variants)


def _write_variants(
    path: Path, task: FinetuneTask, settings: FinetuneSettings, device: torch.device, precision: ResolvedPrecision
) -> None:
    """Ask the model, unless a run that is resumed has asked it the same before."""
    assert settings.augment_model is not None
    rows = training_rows(task)
    by_row = [_KINDS[task.name].units(task, row) for row in rows]
    texts = [units for several in by_row for units in several]
    asked = {name: getattr(settings, name) for name in ("augment_model", "augment_replace", "augment_variants", "seed")}
    digest = hashlib.sha256(json.dumps([(units.text, units.fixed) for units in texts]).encode()).hexdigest()
    header = json.dumps({**asked, "texts": digest})
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            if file.readline().rstrip("\n") == header:
                return
    found = iter(
        replacements(
            texts,
            load_word_model(settings.augment_model),
            rate=settings.augment_replace,
            num_variants=settings.augment_variants,
            seed=settings.seed,
            barred=_entity_words(rows) if isinstance(task, Tagging) else (),
            device=device,
            precision=precision,
        )
    )
    lines = [header]
    for several in by_row:
        by_text = [next(found) for _ in several]
        lines.append(json.dumps(list(zip(*by_text, strict=True)), ensure_ascii=False))
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def read_variants(path: Path) -> list[Variants]:
    """The replacements of every training row, as they were kept."""
    _, *lines = filter(None, path.read_text(encoding="utf-8").split("\n"))
    return [
        [[{int(unit): word for unit, word in words.items()} for words in variant] for variant in json.loads(line)]
        for line in lines
    ]


def _entity_words(rows: Sequence[TaggingRow]) -> frozenset[str]:
    """In lower case: a word that is a name somewhere may be one wherever it is put."""
    pairs = [pair for row in rows for pair in zip(row.words or (), row.tags or (), strict=True)]
    return frozenset(word.casefold() for word, tag in pairs if tag != OUTSIDE)


def _classification_units(task: Classification, row: ClassificationRow) -> list[Units]:
    return [text_units(text) for text in row.texts]


def _classification_row(row: ClassificationRow, texts: Sequence[Units], edits: Sequence[Edited]) -> ClassificationRow:
    return replace(row, text=edits[0].text, pair=None if row.pair is None else edits[1].text)


def _tagging_units(task: Tagging, row: TaggingRow) -> list[Units]:
    words, tags = row.words or (), row.tags or ()
    return [word_units(words, [task.has_entities and tag != OUTSIDE for tag in tags])]


def _tagging_row(row: TaggingRow, texts: Sequence[Units], edits: Sequence[Edited]) -> TaggingRow:
    tags = row.tags or ()
    return replace(row, words=edits[0].words, tags=tuple(tags[unit] for unit in edits[0].units))


def _answer_spans(row: Question) -> dict[int, Span]:
    """By the number of the answer, where its place is known."""
    places = {number: (one.start, len(one.text)) for number, one in enumerate(row.answers)}
    return {number: (start, start + length) for number, (start, length) in places.items() if start is not None}


def _answering_units(task: Answering, row: Question) -> list[Units]:
    return [text_units(row.context, list(_answer_spans(row).values()))]


def _answering_row(row: Question, texts: Sequence[Units], edits: Sequence[Edited]) -> Question:
    answers = list(row.answers)
    for number, span in _answer_spans(row).items():
        answers[number] = replace(answers[number], start=moved(span, texts[0], edits[0])[0])
    return replace(row, context=edits[0].text, answers=tuple(answers))


def _answering_examples(
    task: Answering, rows: Sequence[Question], examples: Sequence[AnsweringExample]
) -> list[AnsweringExample]:
    """The window that begins at the same token as the unchanged one, which stays if there is none."""
    found = []
    for changed, example in zip(task.encode(rows), examples, strict=True):
        start = example.windows[0].start
        same = [window for window in training_examples(changed) if window.windows[0].start == start]
        found.append(same[0] if same else example)
    return found


_KINDS: Mapping[str, _Kind] = {
    Classification.name: _Kind(
        _classification_units, _classification_row, lambda task, rows, examples: task.encode(rows)
    ),
    Tagging.name: _Kind(_tagging_units, _tagging_row, lambda task, rows, examples: task.encode(rows)),
    Answering.name: _Kind(_answering_units, _answering_row, _answering_examples),
}
