"""Cross-validation: every row is scored once, by a model that has not learnt from it, as in a run by hand."""

import json
import signal
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from bertsmith.cli import main
from bertsmith.errors import InputError, Interrupted, ModelError, SettingsError, TrainingError
from bertsmith.tasks import folds, tag_data
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings, read_rows
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.folds import assign
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.tasks.teaching import PREDICTIONS, Teaching
from bertsmith.training.task import Batch

MakeFiles = Callable[[dict[str, str | bytes]], Path]

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)
WORDS = {"animal": ("cat", "dog", "bird", "fish"), "place": ("river", "house", "city", "tree")}
ROWS = [(f"the {word} is {n}", label) for n in range(4) for label, words in WORDS.items() for word in words]


def csv(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]) + "\n"


def settings(train: Path, tokenizer: Path, out: Path, **changes: Any) -> FinetuneSettings:
    base = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tokenizer),
        train=str(train),
        out=out,
        epochs=1,
        batch_size=8,
        learning_rate=1e-3,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Which rows


@given(
    st.lists(st.tuples(st.text("abc\ud800", max_size=3), st.sampled_from("xyz")), min_size=1, max_size=40),
    st.integers(2, 6),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_folds_share_out_the_rows_whatever_their_order(
    rows: list[tuple[str, str]], number: int, seed: int, random: Any
) -> None:
    groups, labels = [group for group, _ in rows], [label for _, label in rows]
    if len(set(groups)) < number:
        with pytest.raises(SettingsError, match=f"folds is {number}, and there are {len(set(groups))} different texts"):
            assign(groups, labels, number, seed)
        return
    found = assign(groups, labels, number, seed)
    assert set(found) == set(range(number)) and len(found) == len(rows)
    fold_of = dict(zip(groups, found, strict=True))
    assert found == [fold_of[group] for group in groups], "equal texts are in one fold"
    order = random.sample(range(len(rows)), len(rows))
    assert assign([groups[n] for n in order], [labels[n] for n in order], number, seed) == [found[n] for n in order]


@given(st.lists(st.sampled_from("xyz"), min_size=6, max_size=60), st.integers(2, 6), st.integers(0, 9))
def test_folds_are_as_large_as_each_other_and_have_as_much_of_each_label(
    labels: list[str], number: int, seed: int
) -> None:
    found = assign([str(n) for n in range(len(labels))], labels, number, seed)
    sizes = Counter(found)
    assert max(sizes.values()) - min(sizes[fold] for fold in range(number)) <= 1
    for label in set(labels):
        counts = Counter(fold for fold, own in zip(found, labels, strict=True) if own == label)
        assert max(counts.values()) - min(counts[fold] for fold in range(number)) <= 1


def test_other_seeds_make_other_folds() -> None:
    groups = [str(n) for n in range(40)]
    assert len({tuple(assign(groups, [""] * 40, 4, seed)) for seed in range(5)}) == 5


def test_published_folds_of_real_data(shared_data: Path, tmp_path: Path) -> None:
    source = str(shared_data / "classify" / "movie-reviews-long.jsonl.xz")
    options, rows = read_rows(source, ClassificationSettings())
    chosen = FinetuneSettings(model="x", train=source, out=tmp_path, fold_column="fold")
    found = folds.split(rows, chosen, options)
    assert [fold.name for fold in found] == [str(n) for n in range(10)]
    assert [Counter(row.label for row in fold.scored) for fold in found] == [{"neg": 100, "pos": 100}] * 10
    assert all(len(fold.learnt) == 1800 for fold in found)


# Runs


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    path.write_text(csv(ROWS))
    return path


@pytest.fixture(scope="module")
def run(train: Path, tiny_tokenizer: Path) -> FinetuneResult:
    chosen = settings(train, tiny_tokenizer, train.parent / "run", folds=4, seed=3)
    return finetune("classification", chosen, OPTIONS, console=QUIET)


def test_each_row_is_scored_once_and_not_by_who_learnt_from_it(
    run: FinetuneResult, train: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, set[str]]] = []
    learn = Teaching.learn

    def spying(self: Teaching, own: FinetuneSettings, model: nn.Module, new: list[str]) -> SeedRun:
        seen.append(
            {split: {item.row.text for item in self.task.examples(split).items} for split in ("train", "dev", "test")}  # type: ignore[attr-defined]
        )
        assert self.learnt is self.task
        return learn(self, own, model, new)

    monkeypatch.setattr(Teaching, "learn", spying)
    chosen = settings(train, tiny_tokenizer, tmp_path / "run", folds=4, seed=3)
    again = finetune("classification", chosen, OPTIONS, console=QUIET)
    texts = {text for text, _ in ROWS}
    assert len(seen) == 4
    assert all(not (one["train"] | one["dev"]) & one["test"] for one in seen)
    assert all(one["train"] | one["dev"] | one["test"] == texts for one in seen)
    assert sorted(text for one in seen for text in one["test"]) == sorted(texts)
    # The same command says the same.
    assert again.predictions is not None and run.predictions is not None
    assert again.predictions.read_bytes() == run.predictions.read_bytes()
    told = lines(again.predictions)
    assert [line["row"] for line in told] == [f"{train}:{n + 2}" for n in range(len(ROWS))]
    assert [line["given"] for line in told] == [label for _, label in ROWS]
    assert [seen[int(line["fold"])]["test"] >= {text} for line, (text, _) in zip(told, ROWS, strict=True)] == [
        True
    ] * 32
    assert set(told[0]) == {"row", "fold", "given", "label", "score", "scores"}


def test_questions_without_names_of_their_own_keep_their_own_answers(tmp_path: Path) -> None:
    """Rows that say that they stand at the same place are still two."""
    rows = [SimpleNamespace(where="a.json, question 1") for _ in range(4)]
    parts = [folds.Fold(str(n), rows[2 * n :][:2], rows[2 - 2 * n :][:2], "") for n in (0, 1)]
    runs = []
    for number in (0, 1):
        told = "".join(f'{{"row": "a.json, question 1", "answer": {2 * number + one}}}\n' for one in (0, 1))
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / PREDICTIONS).write_text(told)
        runs.append(SimpleNamespace(folder=tmp_path / str(number)))
    folds.write_out_of_fold(runs, parts, rows, tmp_path / "all.jsonl")  # type: ignore[arg-type]
    assert [line["answer"] for line in lines(tmp_path / "all.jsonl")] == [0, 1, 2, 3]


def test_a_fold_is_the_run_that_it_would_be_by_hand(run: FinetuneResult, tiny_tokenizer: Path, tmp_path: Path) -> None:
    assert run.predictions is not None
    told = lines(run.predictions)
    for number in (0, 3):
        is_scored = [line["fold"] == str(number) for line in told]
        (tmp_path / "train.csv").write_text(csv([row for row, one in zip(ROWS, is_scored, strict=True) if not one]))
        (tmp_path / "test.csv").write_text(csv([row for row, one in zip(ROWS, is_scored, strict=True) if one]))
        out = tmp_path / f"hand-{number}"
        test = str(tmp_path / "test.csv")
        chosen = settings(tmp_path / "train.csv", tiny_tokenizer, out, test=test, seed=3)
        by_hand = finetune("classification", chosen, OPTIONS, console=QUIET)
        assert by_hand.metrics == run.seeds[number].metrics
        evaluate(out, test, predictions=tmp_path / "answers.jsonl", precision="fp32", device="cpu")
        scores = [line["scores"] for line, one in zip(told, is_scored, strict=True) if one]
        assert [line["scores"] for line in lines(tmp_path / "answers.jsonl")] == [pytest.approx(one) for one in scores]


def test_the_report_has_mean_and_deviation_and_no_model_is_kept(run: FinetuneResult) -> None:
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml", "report.html", "predictions.jsonl", "fold-0", "fold-1", "fold-2", "fold-3",
    }  # fmt: skip
    for one in run.seeds:
        names = {path.name for path in one.folder.iterdir()}
        assert names == {"config.yaml", "metrics.jsonl", "report.html", "result.json", "predictions.jsonl"}
    values = [one.metrics["test"]["accuracy"] for one in run.seeds]
    assert run.metrics["test"]["accuracy"] == pytest.approx(statistics.mean(values))
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" in report
    assert "classification, 4 folds" in report and "fold-3/report.html" in report
    with pytest.raises(ModelError, match="a run of folds, which keeps no model"):
        model_folder(run.folder)


def test_folds_that_were_stopped_go_on(
    run: FinetuneResult, train: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    loss = Classification.loss

    def counting(self: Classification, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == 5:  # about three a fold
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    monkeypatch.setattr(Classification, "loss", counting)
    parts = settings(train, tiny_tokenizer, tmp_path / "parts", folds=4, seed=3)
    with pytest.raises(Interrupted, match="--resume"):
        finetune("classification", parts, OPTIONS, console=QUIET)
    assert (parts.out / "fold-0" / "result.json").is_file() and not (parts.out / "fold-3").exists()
    with pytest.raises(SettingsError, match="holds a run of folds"):
        finetune("classification", replace(parts, resume=True, folds=None), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match="fold was 0 of 4, seed 3 and is now 0 of 5, seed 3"):
        finetune("classification", replace(parts, resume=True, folds=5), OPTIONS, console=QUIET)
    before = (parts.out / "fold-0" / "result.json").stat().st_mtime_ns
    resumed = finetune("classification", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert (parts.out / "fold-0" / "result.json").stat().st_mtime_ns == before
    assert resumed.metrics == run.metrics
    assert resumed.predictions is not None and run.predictions is not None
    assert resumed.predictions.read_bytes() == run.predictions.read_bytes()


def test_folds_of_a_column(tiny_tokenizer: Path, make_files: MakeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": text, "label": label, "part": ["b", 7][n % 3 == 0]} for n, (text, label) in enumerate(ROWS)]
    folder = make_files({"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    command = ["finetune", "classification", "--fold-column", "part", "--train", str(folder / "train.jsonl")]
    command += ["--model", "size:tiny", "--tokenizer", str(tiny_tokenizer), "--out", str(folder / "run")]
    command += ["--epochs", "1", "--max-length", "24", "--dev-share", "0", "--device", "cpu"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("test, 2 folds: accuracy ") and str(folder / "run" / "predictions.jsonl") in shown
    assert [line["fold"] for line in lines(folder / "run" / "predictions.jsonl")] == [str(row["part"]) for row in rows]
    report = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "rows scored" in report and "classification, 2 folds" in report


def test_labels_that_only_one_fold_has_are_named(tiny_tokenizer: Path, make_files: MakeFiles) -> None:
    rows = "text,label,part\n" + "".join(f"a cat {n},{label},{label}\n" for n in range(4) for label in "xyz")
    path = make_files({"train.csv": rows}) / "train.csv"
    options, found = read_rows(str(path), ClassificationSettings())
    for column, expected in (("part", list("xyz")), ("text", [])):
        chosen = settings(path, tiny_tokenizer, path.parent / "run", fold_column=column)
        said = folds.notes(folds.split(found, chosen, options), chosen, options)
        assert said == [
            f'Fold {name} alone has the label "{name}", which its model therefore cannot learn.' for name in expected
        ]
        taught = replace(chosen, teacher="runs/teacher")
        assert folds.notes(folds.split(found, chosen, options), taught, options)[0].startswith(
            "If the teacher has learnt"
        )
        assert folds.notes([], taught, options) == []


def test_sentences_of_documents_and_types_that_are_not_in_every_fold(
    tiny_tokenizer: Path, make_files: MakeFiles
) -> None:
    documents = [
        f"-DOCSTART- O\n\nday O\n{n} O\n\nthe O\n{word} B-{kind}\n\n"
        for n, (word, kind) in enumerate([("cat", "A"), ("dog", "A"), ("fish", "A"), ("river", "B")])
    ]
    path = make_files({"train.conll": "".join(documents)}) / "train.conll"
    chosen = settings(path, tiny_tokenizer, path.parent / "run", folds=2, dev_share=0.0, epochs=2)
    result = finetune("tagging", chosen, TaggingSettings(max_length=24, context="document"), console=QUIET)
    assert result.predictions is not None
    told = lines(result.predictions)
    assert [one["fold"] for one in told[::2]] == [one["fold"] for one in told[1::2]], "documents stay together"
    assert told[1]["given"] == "O B-A"
    assert sum("f1_B" in run.metrics["test"] for run in result.seeds) >= 1 and "f1_B" in result.metrics["test"]


def test_a_document_is_not_cut_by_a_column_of_folds(make_files: MakeFiles) -> None:
    rows = [
        {"words": ["a", "cat"], "tags": ["O", "B-A"], "document": f"{n // 2}", "part": n // 2, "odd": n % 2}
        for n in range(6)
    ]
    path = str(make_files({"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}) / "a.jsonl")
    base = FinetuneSettings(model="size:tiny", train=path, out=Path("none"), fold_column="part")
    options, found = tag_data.read_rows(path, TaggingSettings(context="document"))
    assert [len(fold.scored) for fold in folds.split(found, base, options)] == [2, 2, 2]
    with pytest.raises(
        InputError, match=r'a\.jsonl:2: this sentence is in fold "1", and one of the same document in "0"'
    ):
        folds.split(found, replace(base, fold_column="odd"), options)
    alone, found = tag_data.read_rows(path, TaggingSettings())
    assert len(folds.split(found, replace(base, fold_column="odd"), alone)) == 2


def test_folds_that_cannot_be(train: Path, tiny_tokenizer: Path, make_files: MakeFiles, run: FinetuneResult) -> None:
    for changes, message in (
        ({"folds": 1}, "folds must be at least 2"),
        ({"folds": 2, "fold_column": "x"}, "choose one"),
        ({"folds": 2, "test": "x.csv"}, "give no other test"),
        ({"folds": 2, "adapt": "1 epoch"}, "adapt would learn from the texts"),
        ({"folds": 2, "seeds": 2}, "all several runs"),
        ({"fold_column": "x", "search": 2}, "all several runs"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings(train, tiny_tokenizer, train.parent / "none", **changes)
    rows = "text,label,part\na cat,x,1\na dog,y,1\n"
    many = "text,label\n" + "".join(f"a cat {n},{'xy'[n % 2]}\n" for n in range(30))
    lonely = "text,label,part\na cat,x,1\n" + "".join(f"a dog {n},{'xy'[n % 2]},2\n" for n in range(9))
    folder = make_files({"one.csv": rows, "many.csv": many, "lonely.csv": lonely, "a.conll": "a O\nb B-X\n\nc O\n"})
    base = settings(folder / "one.csv", tiny_tokenizer, folder / "out")
    cases: tuple[tuple[str, FinetuneSettings, type[Exception], str], ...] = (
        ("classification", replace(base, fold_column="part"), SettingsError, 'all rows have "1" in part'),
        ("classification", replace(base, fold_column="prt"), InputError, 'no column "prt". Did you mean "part"'),
        (
            "classification",
            replace(base, train=str(folder / "many.csv"), fold_column="text"),
            SettingsError,
            "text has 30 values in 30 rows, and each would be a run",
        ),
        (
            "classification",
            replace(base, train=str(folder / "lonely.csv"), fold_column="part"),
            SettingsError,
            "without fold 2: 1 training rows with 1 different texts",
        ),
        ("classification", replace(base, folds=3), SettingsError, "folds is 3, and there are 2 different texts"),
        ("tagging", replace(base, train=str(folder / "a.conll"), fold_column="x"), SettingsError, "has no columns"),
    )
    for task, chosen, error, message in cases:
        with pytest.raises(error, match=message):
            finetune(task, chosen, console=QUIET)
        assert not chosen.out.exists()
    single = settings(train, tiny_tokenizer, folder / "single", epochs=0.3)
    finetune("classification", single, OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match="holds a single run, and folds are asked for"):
        finetune("classification", replace(single, folds=2, resume=True), OPTIONS, console=QUIET)
