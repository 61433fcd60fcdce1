"""The check of labelled data: every planted fault is found at its place, and nothing else is."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bertsmith.cli.app import main
from bertsmith.errors import InputError
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.data_check import CheckSettings, DataReport, check_data, render
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.tag_data import TaggingSettings

MakeFiles = Callable[[dict[str, str | bytes]], Path]

CLEAN = [(f"the {name} number {number}", name) for number in range(8) for name in ("cat", "dog", "house")]


def csv(rows: list[tuple[str, str]]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


def found(report: DataReport, folder: Path) -> list[tuple[str, str, str]]:
    """(split, kind, places without their folder)."""
    assert all(finding.count >= len(finding.places) for finding in report.findings)
    return [
        (finding.split, finding.kind, " | ".join(finding.places).replace(f"{folder}/", ""))
        for finding in report.findings
    ]


def shown(report: DataReport) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(report), soft_wrap=True)
    return console.export_text()


def test_clean_data_is_called_clean(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    folder = make_files({"a.csv": csv(CLEAN), "b.csv": csv([("a red bird", "cat")])})
    settings = CheckSettings(train=str(folder / "a.csv"), test=str(folder / "b.csv"), tokenizer=str(tiny_tokenizer))
    report = check_data("classification", settings)
    assert report.findings == ()
    train = report.splits["train"]
    assert (train.rows, train.distinct) == (24, 24)
    assert train.labels == {"cat": 8, "dog": 8, "house": 8}
    assert train.characters == (16, 18, 18)
    assert train.tokens is not None and train.tokens[2] >= 4
    assert "Nothing suspicious" in shown(report)


def test_faults_of_classification_data_are_found_at_their_lines(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    rows = [
        *CLEAN,  # lines 2 to 25
        ("The  CAT number 3", "cat"),  # 26: a copy of line 11
        ("the dog number 3", "house"),  # 27: line 12 says dog
        ("   ", "dog"),  # 28
        ("a queen", ""),  # 29
        ("a king", "person"),  # 30
        (" ".join(["river"] * 40), "house"),  # 31
    ]
    dev = [("the house number 7", "house"), ("the tree", "plant")]
    test = [("the tree", "cat"), ("the dog number 0", "dog")]
    folder = make_files({"train.csv": csv(rows), "dev.csv": csv(dev), "test.csv": csv(test)})
    paths = {split: str(folder / f"{split}.csv") for split in ("train", "dev", "test")}
    settings = CheckSettings(**paths, tokenizer=str(tiny_tokenizer))
    report = check_data("classification", settings, ClassificationSettings(max_length=32))
    assert found(report, folder) == [
        ("train", "unusable", "train.csv:29, label: nothing here; every row needs a label."),
        ("train", "empty", "train.csv:28"),
        ("train", "copies", "train.csv:26 = train.csv:11"),
        ("train", "contradictions", "train.csv:12 (dog), train.csv:27 (house): the dog number 3"),
        ("train", "rare", '"person": 1'),
        ("train", "long", "train.csv:31: 42 tokens"),
        ("dev", "leak", "dev.csv:2 = train.csv:25"),
        ("test", "leak", "test.csv:3 = train.csv:3"),
        ("test", "leak", "test.csv:2 = dev.csv:3"),
        ("dev", "unseen", '"plant": 1'),
    ]
    text = shown(report)
    assert "1 of 29 rows (3.4%) are copies of an earlier one" in text
    assert "what is read of them is what --long says" in text


def test_many_places_are_counted_and_the_first_are_shown(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": csv([*CLEAN, *CLEAN[:9]])})
    report = check_data("classification", CheckSettings(train=str(folder / "a.csv")))
    (finding,) = report.findings
    assert (finding.kind, finding.count, len(finding.places)) == ("copies", 9, 5)
    assert "and 4 more" in shown(report)
    assert report.splits["train"].tokens is None


def test_a_label_of_nearly_all_rows_and_words_that_are_not_known(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    rows = [(f"the bird {number} \u2603\u2603", "usual") for number in range(99)] + [("the fish", "rare")] * 1
    folder = make_files({"a.csv": csv(rows)})
    settings = CheckSettings(train=str(folder / "a.csv"), tokenizer=str(tiny_tokenizer))
    kinds = {finding.kind: finding.message for finding in check_data("classification", settings).findings}
    assert kinds.keys() == {"rare", "imbalance", "unknown"}
    assert kinds["imbalance"].startswith('99.0% have the label "usual"')


def test_faults_of_several_labels(make_files: MakeFiles) -> None:
    rows = [{"text": f"text {number}", "labels": ["a"] if number % 2 else ["a", "b"]} for number in range(20)]
    rows += [{"text": "text 3", "labels": ["b", "a"]}, {"text": "text 2", "labels": ["b", "a"]}]
    folder = make_files(
        {"a.jsonl": "".join(json.dumps(row) + "\n" for row in [*rows, {"text": "x", "labels": [None]}])}
    )
    options = ClassificationSettings(multi_label=True)
    report = check_data("classification", CheckSettings(train=str(folder / "a.jsonl")), options)
    assert found(report, folder) == [
        ("train", "unusable", "a.jsonl:23, labels: a list of labels wanted, or a text of them."),
        ("train", "copies", "a.jsonl:22 = a.jsonl:3"),
        ("train", "contradictions", "a.jsonl:4 (a), a.jsonl:21 (a, b): text 3"),
    ]
    assert report.splits["train"].labels == {"a": 22, "b": 12}


def test_faults_of_tagged_sentences(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    sentences = [f"the\tO\nking\tB-PER\nof\tO\ncity\tB-LOC\n{number}\tO\n" for number in range(8)]
    other = "the\tO\nking\tO\nof\tO\ncity\tB-LOC\n7\tO\n"
    folder = make_files(
        {
            "a.conll": "\n".join([*sentences, sentences[0], other, "red\tC-X\n"]),
            "b.conll": "red\tB-COL\n\n" + "the\tO\n" * 40,
        }
    )
    settings = CheckSettings(train=str(folder / "a.conll"), test=str(folder / "b.conll"), tokenizer=str(tiny_tokenizer))
    report = check_data("tagging", settings, TaggingSettings(scheme="iob2", max_length=32))
    assert [(split, kind) for split, kind, _ in found(report, folder)] == [
        ("train", "unusable"),
        ("train", "copies"),
        ("train", "contradictions"),
        ("test", "long"),
        ("test", "unseen"),
    ]
    assert found(report, folder)[1][2] == "a.conll:49 = a.conll:1"
    assert 'the tag "C-X" of word 1' in found(report, folder)[0][2]


def test_faults_of_questions(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    def paragraph(context: str, *entries: tuple[str, str, int]) -> dict[str, object]:
        qas = [
            {"id": f"q{place}", "question": question, "answers": [{"text": text, "answer_start": start}]}
            for place, (question, text, start) in enumerate(entries)
        ]
        return {"context": context, "qas": qas}

    def squad(*paragraphs: dict[str, object]) -> str:
        return json.dumps({"data": [{"paragraphs": list(paragraphs)}]})

    first = paragraph(
        "the red house", ("which house ?", "red", 4), ("what is red ?", "house", 0), ("which  House ?", "red", 4)
    )
    folder = make_files(
        {
            "a.json": squad(first, paragraph("a cat", (" ".join(["who"] * 70), "cat", 2))),
            "b.json": squad(paragraph("The red house", ("who ?", "house", 8)), paragraph("a dog", ("who ?", "dog", 2))),
        }
    )
    settings = CheckSettings(train=str(folder / "a.json"), dev=str(folder / "b.json"), tokenizer=str(tiny_tokenizer))
    report = check_data("answering", settings, AnsweringSettings(max_length=96))
    assert [(split, kind, places.split(":")[0]) for split, kind, places in found(report, folder)] == [
        ("train", "copies", "a.json, question q2 = a.json, question q0"),
        ("train", "misplaced", "a.json, question q1"),
        ("train", "long", "a.json, question q0"),
        ("dev", "leak", "b.json, question q0 = a.json, question q0"),
    ]


def test_faults_of_pairs(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    rows = [f"the cat {number}\ta bird {number}\t{number / 10}" for number in range(8)]
    rows += ["the cat 3\ta bird 3\t0.3", "the cat 4\ta bird 4\t0.9", "the dog\ta fish\tmuch", f"{'red ' * 40}\ta\t1"]
    folder = make_files({"a.tsv": "\n".join(["sentence1\tsentence2\tscore", *rows])})
    settings = CheckSettings(train=str(folder / "a.tsv"), tokenizer=str(tiny_tokenizer))
    assert found(check_data("embedding", settings, EmbeddingSettings(max_length=32)), folder) == [
        ("train", "unusable", 'a.tsv:12, score: "much" is not a number; a score says how alike two texts are.'),
        ("train", "copies", "a.tsv:10 = a.tsv:5"),
        ("train", "contradictions", "a.tsv:6 (0.4), a.tsv:11 (0.9): the cat 4 a bird 4"),
        ("train", "long", "a.tsv:13: 42 tokens"),
    ]


def test_a_line_that_cannot_be_read_is_one_of_the_bad_rows(make_files: MakeFiles) -> None:
    folder = make_files({"a.jsonl": '{"text": "x", "label": "a"}\n{"text": \n{"text": "y", "label": "b"}\n'})
    report = check_data("classification", CheckSettings(train=str(folder / "a.jsonl")))
    assert report.splits["train"].rows == 2
    assert "a.jsonl:2" in report.findings[0].places[0]


def test_data_without_a_usable_row_is_an_error(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "text,label\nx,\n", "b.csv": "one,two,three\nx,y,z\n"})
    with pytest.raises(InputError, match=r"a\.csv:2, label: nothing here"):
        check_data("classification", CheckSettings(train=str(folder / "a.csv")))
    with pytest.raises(InputError, match="cannot tell which column is the text"):
        check_data("classification", CheckSettings(train=str(folder / "b.csv")))


def test_the_command_fails_where_it_is_told_to(make_files: MakeFiles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_files({"a.csv": csv([*CLEAN, CLEAN[0]]), "b.csv": csv(CLEAN)})
    assert main(["check", "classification", "--train", str(folder / "a.csv")]) == 0
    assert "are copies of an earlier one" in capsys.readouterr().out
    assert main(["check", "classification", "--train", str(folder / "a.csv"), "--strict"]) == 2
    assert "--strict was given: copies." in capsys.readouterr().err
    assert main(["check", "classification", "--train", str(folder / "b.csv"), "--strict"]) == 0
