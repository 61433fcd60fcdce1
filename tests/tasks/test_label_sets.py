"""Classification of texts that may have several labels: reading, loss, figures, folders, from end to end."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from rich.console import Console
from sklearn import metrics
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from bertsmith.cli import main
from bertsmith.deploy.predict import load
from bertsmith.errors import InputError, ModelError, SettingsError
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings, read_rows
from bertsmith.tasks.classify_targets import ClassificationExample, find_labels
from bertsmith.tasks.distill import distil
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.label_sets import LabelSetAnswer
from bertsmith.tasks.saved import load_task
from bertsmith.tasks.teaching import option_values
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.report import Table

MakeFiles = Callable[[dict[str, str | bytes]], Path]
QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(multi_label=True, max_length=24)
WORDS = {"animal": ("cat", "dog"), "place": ("river", "house"), "person": ("king", "queen")}
FILL = ("old", "new", "red", "blue", "large", "small")


def line(number: int) -> dict[str, Any]:
    """A text with words of some of three kinds, perhaps of none, and the kinds as its labels."""
    kinds = [kind for bit, kind in enumerate(WORDS) if number >> bit & 1]
    words = [WORDS[kind][number // 8 % 2] for kind in kinds]
    before, after = FILL[number // 16 % 6], FILL[number // 96]
    return {"text": f"{before} {' '.join(words) or 'day'} {after}", "labels": kinds}


# Reading


def read(path: Path, **changes: Any) -> list[tuple[str, ...] | None]:
    settings, found = read_rows(str(path), replace(OPTIONS, **changes))
    assert settings.label_column == "labels"
    return [row.labels for row in found]


def test_labels_are_lists_or_parts_of_a_text(make_files: MakeFiles) -> None:
    folder = make_files(
        {
            "a.jsonl": '{"text": "x", "labels": ["b", "a", "b"]}\n{"text": "x", "labels": []}\n'
            '{"text": "x", "labels": null}\n{"text": "x", "labels": [1, 2]}\n{"text": "x", "labels": "a, c"}\n',
            "b.csv": 'text,labels\nx,"a, b,,a"\nx,\nx,c\n',
            "c.tsv": "text\tlabels\nx\ta, b; c\n",
        }
    )
    assert read(folder / "a.jsonl") == [("b", "a"), (), (), ("1", "2"), ("a", "c")]
    assert read(folder / "b.csv") == [("a", "b"), (), ("c",)]
    assert read(folder / "c.tsv", label_separator=";") == [("a, b", "c")]
    (folder / "e.jsonl").write_text('{"text": "x", "labels": "(other)"}\n{"text": "y", "labels": "[a] (b)"}\n')
    assert read(folder / "e.jsonl") == [("(other)",), ("[a] (b)",)]
    pandas.DataFrame({"text": ["x", "y"], "labels": [["a", "b"], []]}).to_parquet(folder / "d.parquet")
    assert read(folder / "d.parquet") == [("a", "b"), ()]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "x", "labels": {"a": 1}}', r"a\.jsonl:1, labels: a list of labels wanted"),
        ('{"text": "x", "labels": ["a", NaN]}', r"a\.jsonl:1, labels: a list of labels wanted"),
        ('{"text": "x", "labels": [["a"]]}', r"a\.jsonl:1, labels: a list of labels wanted"),
        ('{"text": "x", "labels": "[\'a\', \'b\']"}', r"a\.jsonl:1, labels: a list that was written as text: .* JSONL"),
        ('{"text": "x", "label": ["a"]}\n{"text": "x"}', r'a\.jsonl:2: this row has no field "label"'),
    ],
)
def test_what_is_no_list_of_labels(make_files: MakeFiles, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(str(make_files({"a.jsonl": row}) / "a.jsonl"), OPTIONS)


def rows(*labels: tuple[str, ...]) -> list[ClassificationRow]:
    return [ClassificationRow(f"a:{place}", f"the cat {place}", None, None, own) for place, own in enumerate(labels)]


def test_the_labels_that_are_told_apart() -> None:
    assert find_labels(rows(("b", "a"), (), ("10",)), OPTIONS) == ("10", "a", "b")
    assert find_labels(rows(("a",), ()), OPTIONS) == ("a",)
    with pytest.raises(InputError, match="the labels are 0 and 1, as if each place of a list were a label"):
        find_labels(rows(("0", "1"), ("0",), ("1",)), OPTIONS)
    for same in ((), ("a", "b")):
        with pytest.raises(InputError, match="every row has the same labels"):
            find_labels(rows(same, same), OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multi_label": True, "regression": True}, "choose one"),
        ({"multi_label": True, "class_weights": "auto"}, "not for multi_label"),
        ({"multi_label": True, "label_smoothing": 0.1}, "not for multi_label"),
        ({"multi_label": True, "metric": "accuracy"}, '"accuracy" does not go with multi_label'),
        ({"metric": "samples_f1"}, '"samples_f1" does not go with labels'),
        ({"multi_label": True, "threshold": 1.0}, r"threshold must be in \(0, 1\)"),
        ({"multi_label": True, "label_separator": ""}, "label_separator is empty"),
        ({"threshold": 0.3}, "are for multi_label"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClassificationSettings(**changes)


def test_folders_that_name_a_threshold_which_nobody_asks_for_are_read() -> None:
    """As all did while it could not be left open; a run that was begun then can still be resumed."""
    assert ClassificationSettings(threshold=0.5) == ClassificationSettings()
    assert option_values(ClassificationSettings())["threshold"] == 0.5
    assert option_values(ClassificationSettings(multi_label=True))["threshold"] is None
    assert ClassificationSettings(multi_label=True, threshold=0.5).threshold == 0.5


# Figures


@pytest.mark.parametrize("shape", [(1, 2), (40, 3), (200, 12)])
def test_figures_are_those_of_scikit_learn(tiny_tokenizer: Path, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(shape[0])
    labels = tuple(f"l{number:02}" for number in range(shape[1]))
    task = Classification(load_tokenizer(tiny_tokenizer), labels, OPTIONS, {})
    gold, scores = generator.random(shape) < 0.3, generator.random(shape).astype(np.float32)
    gold[:, 0] = False  # a label that nothing has, and texts that have none
    answers = task.target.decode(scores)
    examples = [
        ClassificationExample(rows(())[0], (np.zeros(2),), (np.zeros(2),), tuple(np.flatnonzero(row)), 0)
        for row in gold
    ]
    found = scores >= 0.5
    assert [answer.labels for answer in answers] == [
        tuple(name for name, is_found in zip(labels, row, strict=True) if is_found) for row in found
    ]
    expected = {
        f"{average}_f1": metrics.f1_score(gold, found, average=average, zero_division=0.0)
        for average in ("micro", "macro", "samples")
    }
    scored = task.score(answers, examples)
    assert scored == pytest.approx({**expected, "subset_accuracy": metrics.accuracy_score(gold, found)})
    assert next(iter(scored)) == "micro_f1"
    by_label, _ = task.sections(answers, examples)
    assert isinstance(by_label, Table)
    columns = metrics.precision_recall_fscore_support(gold, found, zero_division=0.0)
    for row, *figures in zip(by_label.rows, *columns, found.sum(0), strict=True):
        assert row[1:] == pytest.approx(figures)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "samples_f1", "subset_accuracy"])
def test_a_threshold_that_is_left_open_is_the_best_one(tiny_tokenizer: Path, metric: Any) -> None:
    generator = np.random.default_rng(5)
    labels = ("a", "b", "c")
    task = Classification(load_tokenizer(tiny_tokenizer), labels, replace(OPTIONS, metric=metric), {})
    gold = generator.random((60, 3)) < 0.4
    scores = (0.6 * generator.random((60, 3)) * np.where(gold, 1.0, 0.5)).astype(np.float32)  # none is sure
    examples = [
        ClassificationExample(one, (np.zeros(2),), (np.zeros(2),), tuple(np.flatnonzero(row)), 0)
        for one, row in zip(rows(*[()] * 60), gold, strict=True)
    ]
    answers = task.target.decode(scores)
    decided, changed = task.decided_on(answers, examples)
    threshold = decided.settings.threshold
    figures = {
        "micro_f1": lambda found: metrics.f1_score(gold, found, average="micro", zero_division=0.0),
        "macro_f1": lambda found: metrics.f1_score(gold, found, average="macro", zero_division=0.0),
        "samples_f1": lambda found: metrics.f1_score(gold, found, average="samples", zero_division=0.0),
        "subset_accuracy": lambda found: metrics.accuracy_score(gold, found),
    }
    by_threshold = {one / 100: figures[metric](scores >= one / 100) for one in range(1, 100)}
    best = max(by_threshold.values())
    assert threshold is not None and by_threshold[threshold] == best > by_threshold[0.5]
    nearest = min(abs(one - 0.5) for one, value in by_threshold.items() if value == best)
    assert abs(threshold - 0.5) == pytest.approx(nearest)
    assert decided.score(changed, examples)[metric] == pytest.approx(best)
    assert [one.labels for one in changed] == [one.labels for one in decided.target.decode(scores)]
    given = Classification(task.tokenizer, labels, replace(OPTIONS, metric=metric, threshold=0.5), {})
    assert given.decided_on(answers, examples) == (given, answers)
    one_label = Classification(task.tokenizer, labels, ClassificationSettings(), {})
    assert one_label.decided_on(answers, examples)[0] is one_label


def test_a_checkpoint_is_judged_by_the_threshold_that_dev_would_choose(tiny_tokenizer: Path) -> None:
    """While it learns, no label of few rows reaches 0.5: all checkpoints would be equal, and the first one kept."""
    dev = rows(("a",), (), ("b",), ("a", "b"))
    task = Classification(load_tokenizer(tiny_tokenizer), ("a", "b"), OPTIONS, {"dev": dev})
    examples = task.examples("dev").items
    better = task.target.decode(np.array([[0.3, 0.1], [0.1, 0.1], [0.1, 0.3], [0.3, 0.3]], dtype=np.float32))
    worse = task.target.decode(np.array([[0.1, 0.3], [0.1, 0.1], [0.1, 0.3], [0.3, 0.3]], dtype=np.float32))
    assert task.score(better, examples)["micro_f1"] == 1.0
    assert 0 < task.score(worse, examples)["micro_f1"] < 1.0
    decided, answers = task.decided_on(better, examples)
    assert decided.score(answers, examples) == task.score(better, examples)
    # A threshold is for others than it was chosen on: of these a model without dev scores what it answers.
    alone = Classification(task.tokenizer, ("a", "b"), OPTIONS, {"test": dev})
    assert alone.score(better, examples)["micro_f1"] == 0.0


def test_the_report_shows_the_surest_mistakes_first(tiny_tokenizer: Path) -> None:
    task = Classification(load_tokenizer(tiny_tokenizer), ("a", "b"), OPTIONS, {})
    scores = [[0.6, 0.1], [0.9, 0.9], [0.2, 0.1]]
    answers = task.target.decode(np.array(scores, dtype=np.float32))
    examples = task.encode(rows((), (), ()))
    _, mistakes = task.sections(answers, examples)
    assert isinstance(mistakes, Table)
    assert [(row[0], row[1], row[3]) for row in mistakes.rows] == [("", "a, b", "a:1"), ("", "a", "a:0")]
    assert mistakes.note.startswith("2 of 3 rows")


# From end to end


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, numbers in (("train", range(480)), ("test", range(480, 496))):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line(number))}\n" for number in numbers))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tiny_tokenizer: Path) -> FinetuneResult:
    settings = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        train=str(data / "train.jsonl"),
        test=str(data / "test.jsonl"),
        out=data / "run",
        dev_share=0.1,
        epochs=6,
        batch_size=16,
        learning_rate=1e-3,
        dropout=0.0,
        precision="fp32",
        device="cpu",
    )
    return finetune("classification", settings, OPTIONS, console=QUIET)


def test_it_learns_each_label_by_itself(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    assert list(run.metrics["test"]) == ["micro_f1", "macro_f1", "samples_f1", "subset_accuracy"]
    assert run.metrics["test"]["subset_accuracy"] >= 0.9
    answers = tmp_path / "answers.jsonl"
    found = evaluate(run.folder, str(data / "test.jsonl"), predictions=answers, precision="fp32", device="cpu")
    assert found == pytest.approx(run.metrics["test"])
    said = [json.loads(text) for text in answers.read_text().splitlines()]
    assert list(said[0]) == ["row", "given", "labels", "scores"]
    assert list(said[0]["scores"]) == ["animal", "person", "place"]
    assert [one["labels"] for one in said].count([]) >= 1
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "By label" in report and "samples_f1" in report
    saved = json.loads((run.model / "bertsmith.json").read_text())["settings"]["threshold"]
    assert 0 < saved < 1 and f"from a probability of {saved:g} on" in report
    # Whatever is above the threshold: of a very low one, everything.
    low = evaluate(run.folder, str(data / "test.jsonl"), overrides={"threshold": 1e-6}, precision="fp32")
    assert low["micro_f1"] == pytest.approx(2 * 24 / (24 + 48))


def test_predictions_are_json_lines(run: FinetuneResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run.folder), "new cat queen red"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["labels"] == ["animal", "person"] and set(answer) == {"labels", "scores"}


@pytest.mark.conformance
def test_transformers_gives_the_same_logits_loss_and_probabilities(run: FinetuneResult, data: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    assert list(theirs.config.id2label.values()) == ["animal", "person", "place"]
    their_tokenizer = AutoTokenizer.from_pretrained(run.model)
    task, model = load_task(run.folder)
    assert isinstance(task, Classification) and task.settings.multi_label
    _, found = read_rows(str(data / "test.jsonl"), task.settings)
    batch = task.collate(task.encode(found))
    targets = torch.tensor([[label in (row.labels or ()) for label in task.labels] for row in found]).float()
    with torch.inference_mode():
        expected = theirs(
            **their_tokenizer([row.text for row in found], padding=True, return_tensors="pt"), labels=targets
        )
        torch.testing.assert_close(task.logits(model, batch), expected.logits, rtol=0, atol=1e-5)
        loss = task.loss(model, batch)["classification"] / batch.counts["classification"]
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    asked = pipeline("text-classification", model=theirs, tokenizer=their_tokenizer, top_k=None, device="cpu")
    text = found[5].text
    (ours,) = load(run.folder, device="cpu").predict([text])
    assert ours["scores"] == pytest.approx({one["label"]: one["score"] for one in asked([text])[0]}, abs=1e-5)


@pytest.mark.conformance
@pytest.mark.parametrize("num_labels", [1, 3])
def test_folders_of_others_are_understood(tiny_tokenizer: Path, tmp_path: Path, num_labels: int) -> None:
    config = BertConfig(
        vocab_size=load_tokenizer(tiny_tokenizer).vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=num_labels,
        problem_type="multi_label_classification",
    )
    torch.manual_seed(3)
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.save_pretrained(tmp_path)
    (answer,) = load(tmp_path, device="cpu").predict(["the cat sat by the river"])
    with torch.inference_mode():
        scores = theirs(**tokenizer("the cat sat by the river", return_tensors="pt")).logits.sigmoid()[0]
    expected = {f"LABEL_{place}": score for place, score in enumerate(scores.tolist())}
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)
    assert answer["labels"] == [label for label, score in expected.items() if score >= 0.5]


def test_a_teacher_is_followed_label_by_label(run: FinetuneResult, data: Path, tiny_tokenizer: Path) -> None:
    """The divergence of each decision, by hand: KL of two Bernoulli variables at a temperature, times its square."""
    teacher, model = load_task(run.folder)
    _, found = read_rows(str(data / "test.jsonl"), teacher.settings)
    student = Classification(load_tokenizer(tiny_tokenizer), ("animal", "person", "place"), OPTIONS, {})
    taught = distil(student, str(run.folder), weight=1.0, temperature=2.0)
    batch = taught.collate(student.encode(found))
    assert batch.counts["soft"] == batch.counts["classification"] == len(found) * 3
    other = student.build(model.encoder).eval()
    losses = taught.loss(other, batch)
    wanted = torch.distributions.Bernoulli(logits=teacher.logits(model, batch).double() / 2)
    given = torch.distributions.Bernoulli(logits=student.logits(other, batch).double() / 2)
    expected = torch.distributions.kl_divergence(wanted, given).sum() * 4
    torch.testing.assert_close(losses["soft"].double(), expected, rtol=1e-5, atol=1e-5)
    one = Classification(load_tokenizer(tiny_tokenizer), student.labels, ClassificationSettings(max_length=24), {})
    with pytest.raises(ModelError, match="problem_type is multi_label_classification, the student's single_label"):
        distil(one, str(run.folder), weight=1.0, temperature=2.0)


def test_an_unknown_label_is_named(run: FinetuneResult, make_files: MakeFiles) -> None:
    other = make_files({"a.csv": 'text,labels\nx,"animal,plaice"\n'}) / "a.csv"
    with pytest.raises(InputError, match=r'a\.csv:2: the label "plaice".*Did you mean "place"'):
        evaluate(run.folder, str(other), device="cpu")


def test_texts_to_predict_have_no_labels(tiny_tokenizer: Path) -> None:
    task = Classification(load_tokenizer(tiny_tokenizer), ("a", "b"), OPTIONS, {})
    batch = task.collate(task.encode([task.row("the cat", "row 1")]))
    assert not batch.labels and batch.counts == {"classification": 0.0}
    assert task.to_json(LabelSetAnswer((), np.array([0.25, 0.0]))) == {"labels": [], "scores": {"a": 0.25, "b": 0.0}}
