"""The demo's data: what is pre-trained on, and labelled rows of three tasks, split by module.

A module is either for training or for testing, in all three tasks, and the text of a test module is
in nothing that is learnt from: not in the vocabulary, not in the pre-training corpus, not in the
fine-tuning rows. Test rows whose text also occurs in the training rows are left out, because modules
copy from each other.
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bertsmith import randomness
from bertsmith.demo.labels import marked_sentences, parameter_questions, passages
from bertsmith.errors import InputError
from bertsmith.files import atomic_write
from bertsmith.text.python_docs import PythonDoc

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DataSettings:
    """How much is taken from the documentation. The split does not depend on any seed of a run."""

    libraries: tuple[str, ...] = (
        "huggingface_hub",
        "matplotlib",
        "networkx",
        "numpy",
        "pandas",
        "python",
        "scipy",
        "sklearn",
        "sympy",
        "torch",
    )
    """Classes of the first task: those with the most text among the libraries that bertsmith needs itself."""
    test_share: float = 0.3
    """Share of the modules that is kept for testing."""
    train_examples: int = 3000
    """Rows of each task to learn from, if the text has so many."""
    test_examples: int = 1500
    """Rows of each task to test on."""
    rows_per_docstring: int = 6
    """No more rows than this come from one docstring."""


@dataclass(frozen=True)
class TaskData:
    """The rows of one task, as they were written to JSON Lines."""

    train_file: Path
    test_file: Path
    train: Sequence[Row]
    test: Sequence[Row]


@dataclass(frozen=True)
class DemoData:
    """Everything the demo learns from: `corpus` is JSON Lines, a document a module of the training side."""

    corpus: Path
    libraries: Sequence[str]
    tasks: Mapping[str, TaskData]
    num_train_modules: int
    num_test_modules: int
    corpus_characters: int


def is_test_module(module: str, test_share: float) -> bool:
    """Whether a module's text is kept for testing; depends on its name alone."""
    return randomness.key(0, f"demo test module {module}")[0] < test_share * 2**64


def prepare_data(docs: Iterable[PythonDoc], folder: Path, settings: DataSettings) -> DemoData:
    """Split the documentation by module, extract the labels, write everything into `folder`.

    Raises:
        InputError: too little documentation to learn and to test anything.
    """
    sides: dict[str, list[PythonDoc]] = {"train": [], "test": []}
    for doc in docs:
        sides["test" if is_test_module(doc.module, settings.test_share) else "train"].append(doc)
    documents = [
        {"module": module, "text": "\n\n".join(doc.docstring for doc in members)}
        for module, members in groupby(sides["train"], key=lambda doc: doc.module)
    ]
    corpus = folder / "corpus.jsonl"
    atomic_write(corpus, _json_lines(documents))
    present = {doc.library for doc in sides["train"]}
    libraries = tuple(name for name in settings.libraries if name in present)
    extractors: dict[str, tuple[Mapping[str, float], _Extractor]] = {
        "classification": (dict.fromkeys(libraries, 1 / max(1, len(libraries))), _passage_rows),
        "tagging": (_SENTENCE_SHARES, _sentence_rows),
        "answering": (_QUESTION_SHARES, _question_rows),
    }
    tasks = {
        name: _task_data(name, shares, extractor, sides, folder, settings)
        for name, (shares, extractor) in extractors.items()
    }
    return DemoData(
        corpus=corpus,
        libraries=libraries,
        tasks=tasks,
        num_train_modules=len(documents),
        num_test_modules=len({doc.module for doc in sides["test"]}),
        corpus_characters=sum(len(document["text"]) for document in documents),
    )


def _task_data(
    name: str,
    shares: Mapping[str, float],
    extractor: "_Extractor",
    sides: Mapping[str, Sequence[PythonDoc]],
    folder: Path,
    settings: DataSettings,
) -> TaskData:
    """Choose and write the rows of one task; the training side first, so that the test side avoids its texts."""
    seen: set[str] = set()
    rows: dict[str, list[Row]] = {}
    files: dict[str, Path] = {}
    for side, number in (("train", settings.train_examples), ("test", settings.test_examples)):
        quota = {group: round(number * share) for group, share in shares.items()}
        order = randomness.generator(0, f"demo {name} {side}").permutation(len(sides[side]))
        shuffled = (sides[side][index] for index in order)
        rows[side] = _chosen(shuffled, extractor, quota, settings.rows_per_docstring, seen)
        files[side] = folder / f"{name}-{side}.jsonl"
        if not rows[side]:
            raise InputError(
                f"there is nothing in the installed documentation for the {side} rows of {name}. The demo reads "
                "the documentation of bertsmith's own dependencies; were they installed without their sources?"
            )
        atomic_write(files[side], _json_lines(rows[side]))
    return TaskData(files["train"], files["test"], rows["train"], rows["test"])


def _chosen(
    docs: Iterable[PythonDoc], extractor: "_Extractor", quota: Mapping[str, int], per_docstring: int, seen: set[str]
) -> list[Row]:
    """Rows from one docstring after the other until every group has its number. `seen` grows."""
    left = {group: number for group, number in quota.items() if number > 0}
    rows: list[Row] = []
    for doc in docs:
        if not left:
            break
        taken = 0
        for group, identity, row in extractor(doc, left):
            if taken < per_docstring and group in left and identity not in seen:
                seen.add(identity)
                rows.append(row)
                taken += 1
                left[group] -= 1
                if left[group] == 0:
                    del left[group]
    return rows


_Extractor = Callable[[PythonDoc, Container[str]], Iterator[tuple[str, str, Row]]]
"""Of a docstring and the groups still wanted: (group, identity, row). An identity is taken once."""

# Most marks are on names of parameters, most questions on types: the rest is preferred.
_SENTENCE_SHARES = {"with classes or members": 0.5, "with names and values only": 0.5}
_QUESTION_SHARES = {"type": 0.6, "default": 0.4}


def _passage_rows(doc: PythonDoc, wanted: Container[str]) -> Iterator[tuple[str, str, Row]]:
    for passage in passages(doc) if doc.library in wanted else ():
        yield doc.library, passage.text, {"text": passage.text, "label": passage.library}


def _sentence_rows(doc: PythonDoc, wanted: Container[str]) -> Iterator[tuple[str, str, Row]]:
    for sentence in marked_sentences(doc):
        is_rare = any(tag in {"B-CLASS", "B-FUNC"} for tag in sentence.tags)
        row = {"words": list(sentence.words), "tags": list(sentence.tags)}
        yield list(_SENTENCE_SHARES)[0 if is_rare else 1], " ".join(sentence.words), row


def _question_rows(doc: PythonDoc, wanted: Container[str]) -> Iterator[tuple[str, str, Row]]:
    found = list(parameter_questions(doc))
    order = randomness.generator(0, f"demo questions {doc.module} {doc.name}").permutation(len(found))
    for one in (found[index] for index in order):
        answers = [{"text": one.answer, "answer_start": one.start}]
        row = {"question": one.question, "context": one.context, "answers": answers}
        yield one.kind, f"{one.question}\n{one.context}", row


def _json_lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
