"""The split holds: no text of a test module is anywhere in what is learnt from."""

import json
from collections import Counter
from pathlib import Path

import pytest

from bertsmith.demo.data import DataSettings, DemoData, is_test_module, prepare_data
from bertsmith.errors import InputError
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.answer_data import read_rows as read_questions
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.classify_data import read_rows as read_passages
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.tasks.tag_data import read_rows as read_sentences
from bertsmith.text.python_docs import PythonDoc

_SETTINGS = DataSettings(libraries=("networkx", "pandas", "sklearn"), train_examples=60, test_examples=30)


@pytest.fixture(scope="module")
def data(some_docs: list[PythonDoc], tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return prepare_data(some_docs, tmp_path_factory.mktemp("data"), _SETTINGS)


def test_modules_are_split_by_name_alone() -> None:
    modules = [f"library.module{number}" for number in range(2000)]
    share = sum(is_test_module(module, 0.3) for module in modules) / len(modules)
    assert share == pytest.approx(0.3, abs=0.03)
    # A larger share keeps the modules of a smaller one.
    assert all(is_test_module(module, 0.5) for module in modules if is_test_module(module, 0.3))


def test_text_of_test_modules_is_in_nothing_learnt_from(data: DemoData, some_docs: list[PythonDoc]) -> None:
    documents = [json.loads(line) for line in data.corpus.read_text(encoding="utf-8").splitlines()]
    texts = {document["module"]: document["text"] for document in documents}
    kept = {doc.module for doc in some_docs if is_test_module(doc.module, _SETTINGS.test_share)}
    assert kept and texts.keys().isdisjoint(kept)
    assert texts.keys() | kept == {doc.module for doc in some_docs}
    assert data.corpus_characters == sum(map(len, texts.values()))
    for doc in some_docs:
        assert (doc.module in kept) or doc.docstring in texts[doc.module]
    for task in data.tasks.values():
        for key in ("text", "context", "words"):
            train = {str(row[key]) for row in task.train if key in row}
            test = {str(row[key]) for row in task.test if key in row}
            assert train.isdisjoint(test)


def test_rows_are_balanced(data: DemoData) -> None:
    for side, each in (("train", 20), ("test", 10)):
        labels = Counter(row["label"] for row in getattr(data.tasks["classification"], side))
        assert labels == {"networkx": each, "pandas": each, "sklearn": each}
    kinds = Counter(row["question"].split()[3] for row in data.tasks["answering"].train)
    assert kinds == {"type": 36, "default": 24}
    rare = [bool({"B-CLASS", "B-FUNC"} & set(row["tags"])) for row in data.tasks["tagging"].train]
    assert Counter(rare) == {True: 30, False: 30}


def test_the_tasks_read_the_files(data: DemoData) -> None:
    _, rows = read_passages(str(data.tasks["classification"].train_file), ClassificationSettings())
    assert [row.label for row in rows] == [row["label"] for row in data.tasks["classification"].train]
    settings, sentences = read_sentences(str(data.tasks["tagging"].test_file), TaggingSettings())
    assert settings.scheme == "iob2"
    assert [list(row.tags or ()) for row in sentences] == [row["tags"] for row in data.tasks["tagging"].test]
    _, questions = read_questions(str(data.tasks["answering"].test_file), AnsweringSettings())
    assert [row.answers[0].text for row in questions] == [
        row["answers"][0]["text"] for row in data.tasks["answering"].test
    ]


def test_the_same_documentation_gives_the_same_data(data: DemoData, some_docs: list[PythonDoc], tmp_path: Path) -> None:
    again = prepare_data(iter(some_docs), tmp_path, _SETTINGS)
    for name, task in data.tasks.items():
        assert again.tasks[name].train_file.read_bytes() == task.train_file.read_bytes()
        assert again.tasks[name].test_file.read_bytes() == task.test_file.read_bytes()
    assert again.corpus.read_bytes() == data.corpus.read_bytes()


def test_too_little_documentation_is_said(tmp_path: Path) -> None:
    doc = PythonDoc("sklearn", "sklearn.base", "x", "One line.")
    with pytest.raises(InputError, match="nothing in the installed documentation"):
        prepare_data([doc], tmp_path, _SETTINGS)
