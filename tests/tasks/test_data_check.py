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
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationSettings, read_rows
from bertsmith.tasks.data_check import CheckSettings, DataReport, check_data, render
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer

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
        ("train", "rare", '"person": 1 (train.csv:30)'),
        ("train", "long", "train.csv:31: 42 tokens"),
        ("dev", "leak", "dev.csv:2 = train.csv:25"),
        ("test", "leak", "test.csv:3 = train.csv:3"),
        ("test", "leak", "test.csv:2 = dev.csv:3"),
        ("dev", "unseen", '"plant": 1 (dev.csv:3)'),
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
        ("train", "imbalance", '"a": 22'),
    ]
    assert '100.0% have the label "a": nothing can be learnt of it.' in shown(report)
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


def test_pairs_and_choices_are_known_again_whatever_stands_beside_them(make_files: MakeFiles) -> None:
    pairs = ["anchor,positive,negative", "the cat,a dog,red", "who ?,the king,blue"]
    others = ["anchor,positive,negative", "A dog,the cat,queen", "Who  ?,the king,", "the cat,the king,a fish"]
    folder = make_files({"a.csv": "\n".join(pairs) + "\n", "b.csv": "\n".join(others) + "\n"})
    settings = CheckSettings(train=str(folder / "a.csv"), test=str(folder / "b.csv"))
    columns = EmbeddingSettings(text_column="anchor", pair_column="positive")
    assert found(check_data("embedding", settings, columns), folder) == [
        ("test", "leak", "b.csv:2 = a.csv:2 | b.csv:3 = a.csv:3"),
    ]
    rows = [
        {"text": text, "question": f"{question} ?", "choices": choices, "label": 0}
        for text, question, choices in (
            ("the red house", "which", ["a", "b"]),
            ("", "who sat", ["cat", "dog"]),
            ("The red  house", "what", ["c", "d"]),
            ("", "who sat", ["dog", "cat"]),
            ("a river", "which", ["a", "b"]),
        )
    ]
    lines = [f"{json.dumps(row)}\n" for row in rows]
    folder = make_files({"c.jsonl": "".join(lines[:2]), "d.jsonl": "".join(lines[2:])})
    settings = CheckSettings(train=str(folder / "c.jsonl"), test=str(folder / "d.jsonl"))
    assert found(check_data("choice", settings), folder) == [
        ("test", "leak", "d.jsonl:1 = c.jsonl:1 | d.jsonl:2 = c.jsonl:2"),
    ]


def test_answers_that_are_too_long_to_be_given(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    text = "the king and the queen of the city"
    rows = [
        {"question": "who ?", "context": text, "answers": [{"text": one, "answer_start": text.index(one)}]}
        for one in (text, "the city")
    ]
    folder = make_files({"a.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows)})
    settings = CheckSettings(train=str(folder / "a.jsonl"), tokenizer=str(tiny_tokenizer))
    (report,) = check_data("answering", settings, AnsweringSettings(max_answer_length=7)).findings
    assert report.message == "1 of 2 rows (50.0%) have an answer longer than max_answer_length 7: it is never given."
    assert check_data("answering", settings, AnsweringSettings(max_answer_length=8)).findings == ()


def test_a_bad_sentence_does_not_hide_those_behind_it(make_files: MakeFiles) -> None:
    sentences = [f"the\tO\nking\tB-PER\n{number}\tO\n" for number in range(10)]
    later = [sentences[3], "the\tO\n", "a\tO\nb\n", sentences[0]]  # lines 48, 52, 54, 57
    lost = "the\tO\ncity\nof\nred\n"  # lines 41 to 44
    words = [f"{n}\t{word}" + "\t_" * 8 for n, word in enumerate(("the", "cat", "sat"), start=1)]
    folder = make_files(
        {
            "a.conll": "\n".join([*sentences, lost, "caf\tO\n", *later]).encode().replace(b"caf", b"caf\xe9"),
            "b.conllu": "\n".join([words[0], "", words[1], "2\tcat", "", words[2], ""]),
            "c.conll": "one\n\ntwo\tA\n\nthree\tB\n",
        }
    )
    report = check_data("tagging", CheckSettings(train=str(folder / "a.conll"), test=str(folder / "a.conll")))
    unusable, copies, *_, leak = report.findings
    assert [place.replace(f"{folder}/", "").split(":")[1] for place in unusable.places] == ["42", "46", "55"]
    assert found(report, folder)[1] == ("train", "copies", "a.conll:48 = a.conll:13 | a.conll:57 = a.conll:1")
    assert (report.splits["train"].rows, copies.count) == (13, 2)
    assert (leak.kind, leak.count) == ("leak", 13)
    for name, line, rows in (("b.conllu", 4, 2), ("c.conll", 1, 2)):
        options = TaggingSettings(scheme="none", tag_column="xpos" if name == "b.conllu" else None)
        report = check_data("tagging", CheckSettings(train=str(folder / name)), options)
        assert report.splits["train"].rows == rows
        assert report.findings[0].places[0].startswith(f"{folder / name}:{line}: ")


def test_a_bad_question_does_not_hide_those_behind_it(make_files: MakeFiles) -> None:
    def entry(name: str, text: str = "cat", start: int = 4) -> dict[str, object]:
        return {"id": name, "question": f"{name} ?", "answers": [{"text": text, "answer_start": start}]}

    bad = [{"id": "q1", "answers": []}, {"id": "q2", "question": "who ?", "answers": "cat"}]
    paragraphs = [
        {"context": "the cat", "qas": [entry("q0"), *bad, entry("q3", start=0)]},
        {"qas": [entry("q4"), entry("q5")]},
        {"context": "a dog"},
        {"context": "the  cat", "qas": [entry("q0", start=5)]},
    ]
    content = {"data": [{"paragraphs": paragraphs}, {}, {"paragraphs": [{"context": "a dog", "qas": [bad[0]]}]}]}
    folder = make_files({"a.json": json.dumps(content)})
    report = check_data("answering", CheckSettings(train=str(folder / "a.json")))
    assert report.splits["train"].rows == 3
    assert [(finding.kind, finding.count) for finding in report.findings] == [
        ("unusable", 6),
        ("copies", 1),
        ("misplaced", 1),
    ]
    assert [place.split(": ")[0].replace(f"{folder}/", "") for place in report.findings[0].places] == [
        "a.json, question q1",
        "a.json, question q2, answers",
        "a.json, data[0].paragraphs[1]",
        "a.json, data[0].paragraphs[2]",
        "a.json, data[1]",
    ]


def numbers(values: list[str]) -> str:
    return "text,score\n" + "".join(f"text {place},{value}\n" for place, value in enumerate(values))


def test_numbers_of_a_regression_are_no_classes(make_files: MakeFiles) -> None:
    good = [f"{number / 7:.3f}" for number in range(40)]
    folder = make_files(
        {
            "good.csv": numbers(good) + "text 0,0\n",
            "bad.csv": numbers([*good, "nan", "abc", '"0,14"', "inf", "1e3", "1e999"]),
            "same.csv": numbers(["3", "3.0", "3"]),
        }
    )
    options = ClassificationSettings(regression=True)
    report = check_data("classification", CheckSettings(train=str(folder / "good.csv")), options)
    assert found(report, folder) == [("train", "copies", "good.csv:42 = good.csv:2")]  # 0.000 and 0 are the same
    train = report.splits["train"]
    assert (train.labels, train.numbers) == ({}, (0.0, 2.714, 5.571))
    assert "Rows of each label" not in shown(report)
    assert "5.571" in shown(report)
    settings = CheckSettings(train=str(folder / "bad.csv"), dev=str(folder / "same.csv"))
    report = check_data("classification", settings, options)
    assert [(finding.split, finding.kind, finding.count) for finding in report.findings[:3]] == [
        ("train", "unusable", 5),
        ("train", "outliers", 1),
        ("dev", "constant", 3),
    ]
    bad = found(report, folder)[0][2].split(" | ")
    for place, value in zip(bad, ("nan", "abc", "0,14", "inf", "1e999"), strict=True):
        assert f', score: "{value}" is not a number, and a regression learns numbers.' in place
    assert bad[0].startswith("bad.csv:42, score")
    assert found(report, folder)[1][2] == "bad.csv:46: 1000"
    with pytest.raises(InputError, match=r'bad\.csv:42, score: "nan" is not a number'):
        read_rows(str(folder / "bad.csv"), options)


@pytest.mark.parametrize(
    ("task", "name", "content", "reason"),
    [
        (
            "classification",
            "a.csv",
            csv([(f"text {n}", "pos") for n in range(20)]),
            'a.csv:2: every row has the label "pos"',
        ),
        ("tagging", "a.conll", "a\tO\n\nb\tO\n", 'a.conll:1: every word has the tag "O"'),
        (
            "classification",
            "b.csv",
            csv([(f"t {n}", f"{n}.5") for n in range(20)]),
            "b.csv:2: the labels look like numbers",
        ),
        (
            "regression",
            "c.csv",
            csv([(f"t {n}", "3" if n % 2 else "3.0") for n in range(20)]),
            "c.csv:2: every row has the number 3.0: nothing to tell apart",
        ),
        (
            "embedding",
            "d.csv",
            "query,document,score\n" + "".join(f"q {n},d {n},1\n" for n in range(20)),
            "d.csv:2: every row has the score 1.0: nothing to tell apart",
        ),
    ],
)
def test_labels_of_which_finetune_can_learn_nothing(
    make_files: MakeFiles, task: str, name: str, content: str, reason: str
) -> None:
    folder = make_files({name: content})
    options = ClassificationSettings(regression=True) if task == "regression" else None
    task = "classification" if options else task
    report = check_data(task, CheckSettings(train=str(folder / name)), options)
    ((split, kind, place),) = found(report, folder)
    assert (split, kind) == ("train", "unlearnable")
    assert place.startswith(reason)
    assert "which stops finetune" in shown(report)


def test_labels_that_only_evaluation_has_are_named_with_their_rows(make_files: MakeFiles) -> None:
    tagged = "".join(f"the\tO\nking\tB-PER\n{number}\tO\ncity\tB-LOC\n\n" for number in range(8))
    folder = make_files(
        {
            "a.csv": csv(CLEAN),
            "b.csv": csv([("one", "plant"), ("two", "cat"), *[(f"new {n}", "plant") for n in range(3)]]),
            "a.conll": tagged,
            "b.conll": "old\tB-LOC\ncity\tI-LOC\n\nthe\tO\nred\tB-COL\n",
        }
    )
    report = check_data("classification", CheckSettings(train=str(folder / "a.csv"), test=str(folder / "b.csv")))
    assert found(report, folder) == [("test", "unseen", '"plant": 4 (b.csv:2; b.csv:4; b.csv:5; ...)')]
    assert "1 labels do not occur in train, which stops finetune." in shown(report)
    report = check_data("tagging", CheckSettings(train=str(folder / "a.conll"), dev=str(folder / "b.conll")))
    assert found(report, folder) == [("dev", "unseen", '"B-COL": 1 (b.conll:4, word 2)')]  # I-LOC goes with B-LOC
    choices = [{"text": f"text {n}", "choices": ["x", "y", "z"], "label": n} for n in (0, 1, 2)]
    lines = [json.dumps(row) + "\n" for row in choices]
    folder = make_files({"a.jsonl": "".join(lines[:2]), "b.jsonl": lines[2]})
    report = check_data("choice", CheckSettings(train=str(folder / "a.jsonl"), test=str(folder / "b.jsonl")))
    assert "unseen" not in {finding.kind for finding in report.findings}  # nothing is learnt of a choice's number


def test_tags_that_do_not_fit_their_scheme_are_named_with_how_they_are_read(make_files: MakeFiles) -> None:
    good = "".join(f"the\tO\nking\tB-PER\n{number}\tI-PER\n\n" for number in range(8))
    ended = "".join(f"the\tO\nking\tB-PER\n{number}\tE-PER\n\n" for number in range(8))
    folder = make_files(
        {
            "a.conll": good + "a\tO\nb\tI-PER\n\na\tB-LOC\nb\tI-PER\nc\tI-PER\n",
            "b.conll": ended + "a\tB-LOC\nb\tI-LOC\n\na\tB-LOC\nb\tO\nc\tS-LOC\n",
            "c.conll": "a\tO\nb\tI-PER\nc\tB-PER\nd\tI-LOC\n",
        }
    )
    report = check_data("tagging", CheckSettings(train=str(folder / "a.conll")))
    assert [one for one in found(report, folder) if one[1] == "tags"] == [
        (
            "train",
            "tags",
            "a.conll:33, word 2: I-PER after O begins an entity | "
            "a.conll:36, word 2: I-PER after B-LOC begins an entity",
        ),
    ]
    assert "2 tags do not fit the scheme iob2" in shown(report)
    report = check_data("tagging", CheckSettings(train=str(folder / "b.conll"), test=str(folder / "b.conll")))
    assert [one for one in found(report, folder) if one[1] == "tags"] == [
        (
            split,
            "tags",
            "b.conll:33, word 2: I-LOC before nothing is the end of an entity | "
            "b.conll:36, word 1: B-LOC before O is all of an entity",
        )
        for split in ("train", "test")
    ]
    for scheme, count in (("iob1", 0), ("iob2", 2), ("none", 0)):
        options = TaggingSettings(scheme=scheme)
        report = check_data("tagging", CheckSettings(train=str(folder / "c.conll")), options)
        assert sum(finding.count for finding in report.findings if finding.kind == "tags") == count


@pytest.mark.parametrize(
    "tags",
    [
        "B_ORG I_ORG O B_PER",
        "b-org i-org o s-per",
        "ORG-B ORG-I O PER-B",
        "B\u2013ORG I\u2013ORG O MISC",
        "I:ORG O I:LOC O",
    ],
)
def test_tags_that_look_like_entities_and_are_none(make_files: MakeFiles, tags: str) -> None:
    sentence = "".join(f"w{n}\t{tag}\n" for n, tag in enumerate(tags.split()))
    path = make_files({"a.conll": sentence + "\n" + sentence}) / "a.conll"
    report = check_data("tagging", CheckSettings(train=str(path)))
    (finding,) = [one for one in report.findings if one.kind == "entities"]
    assert finding.count == len(set(tags.split()) - {"O", "o", "MISC"})
    assert finding.places[0] == f'"{tags.split()[0]}": {finding.places[0].split(": ")[1]}'
    assert f"{path}:1, word 1" in finding.places[0]
    assert "are not written as B-ORG is" in shown(report)
    report = check_data("tagging", CheckSettings(train=str(path)), TaggingSettings(scheme="none"))
    assert "entities" not in {one.kind for one in report.findings}  # it was said that they are labels


@pytest.mark.parametrize(
    "tags",
    [
        "NOUN PRP$ B O I VERB",
        "NN VBZ -LRB- PRP$ WP$ $ `` :",
        "B-ORG I-ORG O B-PER",
        "B-ORG I-ORG B-PER",  # no O
        "B I O B",
        "B-ORG M-ORG E-ORG O S-PER",
        "N_S V_S A_S O X",  # singular
        "B_NN E_NN S_VV B_NR",  # words cut into pieces, all of them
        "nsubj nmod:poss acl:relcl obl root O",
        "Ncms-n Rgp Di3-sr---e Px3--a---s Spsa Vmip3s",
        "ADP B_X NOUN VERB O",
    ],
)
def test_tags_that_are_right_or_parts_of_speech_do_not_look_like_entities(make_files: MakeFiles, tags: str) -> None:
    sentence = "".join(f"w{n}\t{tag}\n" for n, tag in enumerate(tags.split()))
    path = make_files({"a.conll": sentence}) / "a.conll"
    report = check_data("tagging", CheckSettings(train=str(path)))
    assert "entities" not in {one.kind for one in report.findings}


def test_a_tagged_file_of_which_no_sentence_can_be_used_is_an_error(make_files: MakeFiles) -> None:
    folder = make_files({"a.conll": "# 0\nthe O\nking B-PER\n\n# 1\na O\ncat B-X\n", "b.conll": "a\tX\nb\tY\n"})
    with pytest.raises(InputError, match=r'a\.conll:1: the tag "0" of word 1 is neither'):
        check_data("tagging", CheckSettings(train=str(folder / "a.conll")))
    with pytest.raises(InputError, match=r'b\.conll:1: the tag "X" of word 1 is neither'):
        check_data("tagging", CheckSettings(train=str(folder / "b.conll")), TaggingSettings(scheme="iob2"))


def test_quotes_of_a_table_that_is_read_without_quoting(make_files: MakeFiles) -> None:
    quoted = "".join(f'"a ""{label}"", {n}"\t"{label}"\n' for n in range(8) for label in ("cat", "dog"))
    mixed = "".join(f'"{n}, of course"\tcat\n{n}\tdog\n' for n in range(8))  # half is not most
    spoken = "".join(f'"Yes," {n} said. "No."\t{label}\n' for n in range(8) for label in ("cat", "dog"))
    tables = {"a": quoted, "mixed": mixed, "spoken": spoken}
    files: dict[str, str | bytes] = {f"{name}.tsv": f"text\tlabel\n{lines}" for name, lines in tables.items()}
    files["choices.tsv"] = "text\tchoices\tlabel\n" + "".join(f'one {n}\t"red|blue"\t0\n' for n in range(3))
    folder = make_files({**files, "a.csv": files["a.tsv"].replace("\t", ",")})  # type: ignore[union-attr, arg-type]

    def quotes(name: str, options: object = None, task: str = "classification") -> list[tuple[str, int, str, str]]:
        report = check_data(task, CheckSettings(train=str(folder / name), test=str(folder / name)), options)
        return [
            (one.split, one.count, one.message.split(" column ")[1].split(":")[0], Path(one.places[0]).name)
            for one in report.findings
            if one.kind == "quotes"
        ]

    expected = [(split, 16, f'"{column}"', "a.tsv:2") for split in ("train", "test") for column in ("text", "label")]
    assert quotes("a.tsv") == expected
    report = check_data("classification", CheckSettings(train=str(folder / "a.tsv")))
    assert '16 of 16 rows (100.0%) have a value in double quotes in the column "text"' in shown(report)
    assert "Give --quoting" in shown(report)
    for name in ("mixed.tsv", "spoken.tsv", "a.csv"):
        assert quotes(name) == []
    for quoting in (True, False):  # the second was meant
        assert quotes("a.tsv", ClassificationSettings(quoting=quoting)) == []
    bare = make_files({"bare.tsv": quoted}) / "bare.tsv"
    report = check_data("classification", CheckSettings(train=str(bare)), ClassificationSettings(columns="text,label"))
    assert [one.count for one in report.findings if one.kind == "quotes"] == [16, 16]


def test_labels_that_differ_only_in_how_they_are_written(make_files: MakeFiles) -> None:
    train = [(f"a {n}", label) for n in range(8) for label in ("pos", "Pos", "1", "1.0", "caf\u00e9", "other")]
    test = [("b", "cafe\u0301"), ("c", "OTHER"), ("d", "pos")]
    tags = [{"words": ["a", "b"], "tags": ["NOUN", " NOUN"]}, {"words": ["a"], "tags": ["12345678901234567890"]}]
    tags.append({"words": ["b"], "tags": ["12345678901234567891"]})
    lines = "".join(json.dumps(row) + "\n" for row in tags)
    folder = make_files({"a.csv": csv(train), "b.csv": csv(test), "c.jsonl": lines})
    report = check_data("classification", CheckSettings(train=str(folder / "a.csv"), test=str(folder / "b.csv")))
    alike = [(split, places) for split, kind, places in found(report, folder) if kind == "alike"]
    assert alike == [
        (
            "train",
            '"pos": 8 (a.csv:2; ...) and "Pos": 8 (a.csv:3; ...) | "1": 8 (a.csv:4; ...) and "1.0": 8 (a.csv:5; ...)',
        ),
        (
            "test",
            '"caf\u00e9": 8 (a.csv:6; ...) and \'cafe\\u0301\' = "cafe\u0301": 1 (b.csv:2) | '
            '"other": 8 (a.csv:7; ...) and "OTHER": 1 (b.csv:3)',
        ),
    ]
    assert "2 labels are written in more than one way" in shown(report)
    report = check_data("tagging", CheckSettings(train=str(folder / "c.jsonl")), TaggingSettings(scheme="none"))
    assert [places for _, kind, places in found(report, folder) if kind == "alike"] == [
        '"NOUN": 1 (c.jsonl:1, word 1) and " NOUN": 1 (c.jsonl:1, word 2)'
    ]


def test_labels_that_nearly_all_rows_have_where_a_row_has_several(make_files: MakeFiles) -> None:
    rows = [{"text": f"text {n}", "labels": [*(["all"] if n else []), "a" if n % 2 else "b", "c"]} for n in range(20)]
    folder = make_files({"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    options = ClassificationSettings(multi_label=True)
    report = check_data("classification", CheckSettings(train=str(folder / "a.jsonl")), options)
    assert [(finding.kind, finding.places) for finding in report.findings] == [
        ("imbalance", ('"c": 20',)),
        ("imbalance", ('"all": 19',)),
    ]
    text = shown(report)
    assert '100.0% have the label "c": nothing can be learnt of it.' in text
    assert '95.0% have the label "all"' in text
    assert "class-weights" not in text  # which is not for several labels


def test_choices_that_are_empty_or_the_same(make_files: MakeFiles) -> None:
    rows = [
        {"text": "one", "choices": ["blue", "red", " Blue "], "label": 0},
        {"text": "two", "choices": ["blue", "", "red"], "label": 0},
        {"text": " ", "question": "three ?", "choices": ["blue", "red"], "label": 1},
        {"text": "four", "choices": ["blue", "red"], "label": 1},
    ]
    folder = make_files({"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    report = check_data("choice", CheckSettings(train=str(folder / "a.jsonl")))
    assert found(report, folder) == [
        ("train", "empty", "a.jsonl:3"),
        ("train", "empty", "a.jsonl:2"),
        ("train", "choices", 'a.jsonl:1: "blue" 2 times'),
    ]
    text = shown(report)
    assert text.index("have an empty text") < text.index("have an empty choice")


def test_places_of_choices_are_no_labels_and_each_row_is_measured_as_it_is(
    make_files: MakeFiles, tiny_tokenizer: Path
) -> None:
    rows = [{"question": f"who is {number} ?", "choices": ["blue", "red"], "label": 0} for number in range(20)]
    rows.append({"text": "the king sat", "question": "who ?", "choices": ["red " * 20, "red"], "label": 0})
    folder = make_files({"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    settings = CheckSettings(train=str(folder / "a.jsonl"), tokenizer=str(tiny_tokenizer))
    length = len(load_tokenizer(tiny_tokenizer).encode("the king sat who ? " + "red " * 20).ids) + 3  # special ones
    report = check_data("choice", settings, ChoiceSettings(max_length=length - 1))
    assert found(report, folder) == [("train", "long", f"a.jsonl:21: {length} tokens")]


def test_pairs_with_scores_beside_pairs_without(make_files: MakeFiles) -> None:
    plain = "".join(json.dumps({"text1": f"a cat {n}", "text2": f"a dog {n}"}) + "\n" for n in range(9))
    scored = "".join(json.dumps({"text1": f"a bird {n}", "text2": f"a fish {n}", "score": n}) + "\n" for n in range(9))
    folder = make_files({"train.jsonl": plain, "dev.jsonl": scored, "test.jsonl": plain.replace("cat", "king")})
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    ((split, kind, place),) = found(check_data("embedding", CheckSettings(**files)), folder)
    assert (split, kind) == ("dev", "unusable") and 'these pairs have scores ("score"), and those of train' in place


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
