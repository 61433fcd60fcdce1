"""Multiple choice: rows of many makes, sequences and logits as transformers has them, and a run end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from bertsmith.cli import main
from bertsmith.deploy.predict import load
from bertsmith.errors import InputError, SettingsError
from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.tasks.choice_data import ChoiceRow, ChoiceSettings, read_rows
from bertsmith.tasks.choose import ChoiceAnswer, Choosing
from bertsmith.tasks.data_check import CheckSettings, check_data
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.saved import read_training_rows, task_kind
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.report import Curves, Table

MakeFiles = Callable[[dict[str, str | bytes]], Path]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def rows() -> list[ChoiceRow]:
    return [
        ChoiceRow("a:1", "the king sat by the river", "who sat ?", ("the king", "the dog", "a red bird"), 0),
        ChoiceRow("a:2", "the dog ran", "", ("to the house", "a cat"), 1),
        ChoiceRow("a:3", "", "what is red ?", ("the bird", "the city", "a cat", "the queen of the city"), 2),
    ]


def make(tokenizer: Tokenizer, max_length: int = 32) -> Choosing:
    return Choosing(tokenizer, (), ChoiceSettings(max_length=max_length), {"train": rows()})


# Reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "t", "question": "q", "choices": ["x", "y"], "label": 1}'),
        ("a.jsonl", '{"passage": "t", "question": "q", "options": ["x", "y"], "answer": "B"}'),
        ("a.jsonl", '{"context": "t", "question": "q", "choice": ["x", "y"], "answer": "y"}'),
        ("a.csv", "sent1,sent2,ending0,ending1,label\nt,q,x,y,1"),
        (
            "a.jsonl",
            '{"text": "t", "question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}',
        ),
        (
            "a.jsonl",
            '{"text": "t", "question": "q", "choices": {"label": [1, 2], "text": ["x", "y"]}, "answerKey": "2"}',
        ),
        (
            "a.jsonl",
            '{"id": "7", "context": "t", "question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, '
            '"answerKey": "B"}',
        ),
        ("a.tsv", "article\tquestion\toption1\toption2\tanswer\nt\tq\tx\ty\tb"),
    ],
)
def test_rows_of_many_makes(make_files: MakeFiles, name: str, content: str) -> None:
    _, (row,) = read_rows(str(make_files({name: content}) / name), ChoiceSettings())
    assert (row.text, row.question, row.choices, row.label) == ("t", "q", ("x", "y"), 1)


def test_columns_can_be_named(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "body,ask it,first,second,third,right\nt,q,x,y,z,2\n"})
    settings = ChoiceSettings(
        text_column="body", question_column="ask it", choices_column="first, second, third", label_column="right"
    )
    found, (row,) = read_rows(str(folder / "a.csv"), settings)
    assert (row.text, row.question, row.choices, row.label) == ("t", "q", ("x", "y", "z"), 2)
    assert found == settings


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "ask": "q", "options": ["x", "y"], "answer": "B"},
        {"article": "t", "sent2": "q", "ending0": "x", "ending1": "y", "gold": "1"},
    ],
)
def test_other_tables_may_use_other_usual_names(make_files: MakeFiles, tokenizer: Tokenizer, row: Any) -> None:
    """To score and to predict alike: a text under another name must not be passed over."""
    settings = ChoiceSettings("passage", "question", "choices", "label")
    folder = make_files({"a.jsonl": json.dumps(row)})
    _, (scored,) = read_rows(str(folder / "a.jsonl"), settings)
    answered = Choosing(tokenizer, (), settings, {}).row(row, "row 1")
    for one in (scored, answered):
        assert (one.text, one.question, one.choices) == ("t", "q", ("x", "y"))
    with pytest.raises(InputError, match=r'there is no column "passage"\. text_column: did you mean'):
        read_training_rows(task_kind("choice"), str(folder / "a.jsonl"), settings)


def test_what_a_model_has_not_learnt_to_read_is_not_sought_in_rows_to_predict(tokenizer: Tokenizer) -> None:
    task = Choosing(tokenizer, (), ChoiceSettings(question_column="question", choices_column="choices"), {})
    row = task.row({"article": "t", "ask": "q", "choices": ["x", "y"]}, "row 1")
    assert (row.text, row.question) == ("", "q")
    named = Choosing(tokenizer, (), ChoiceSettings(question_column="question", choices_column="first,second"), {})
    assert named.row({"question": "q", "choices": ["x", "y"]}, "row 1").choices == ("x", "y")
    with pytest.raises(InputError, match=r'no column "second".*predict: --set choices_column=NAME'):
        named.row({"question": "q", "first": "x", "third": "y"}, "row 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "t", "choices": ["x"], "label": 0}, r"a\.jsonl:1, choices: 1 choices; there must be two"),
        ({"text": "t", "choices": "x", "label": 0}, "a list of choices wanted"),
        ({"text": "t", "choices": ["x", "y"], "label": 2}, r'a\.jsonl:1, label: "2" is none of the 2 choices'),
        ({"text": "t", "choices": ["x", "y"], "label": "z"}, '"z" is none of the 2 choices'),
        ({"text": "", "choices": ["x", "y"], "label": 0}, 'give a "text", a "question", or both'),
        ({"text": ["t"], "choices": ["x", "y"], "label": 0}, "text wanted, list found"),
        ({"text": "t", "choices": ["x", "y"]}, "cannot tell which column is the label"),
        (
            {"text": "t", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "label": "0"},
            'a.jsonl:1, label: "0" is none of the choices, which are called A, B',
        ),
        ({"text": "t", "choices": {"text": ["x", "y"], "label": ["A", "A"]}, "label": "A"}, "2 choices with 1 labels"),
        ({"text": "t", "choices": {"text": ["x", "y"], "label": ["A", "B", "C"]}, "label": "C"}, "with 3 labels"),
        ({"text": "t", "choices": {"text": ["x", "y"]}, "label": "A"}, "a list of choices wanted"),
        ({"text": "t", "label": 0}, "cannot tell which column is the choices"),
        ({"question;choices;label": "q;x|y;0"}, r'the choices: .* If ";" parts them, say --delimiter ";" \(eval'),
        (
            {"article": "t", "context": "u", "question": "q", "choices": ["x", "y"], "label": 0},
            'which column is the text, "article" and "context" could be: give text_column. Columns: article, context',
        ),
        ({"text": "t", "question": "q", "ask": "r", "choices": ["x", "y"], "label": 0}, "the question, .*question_col"),
        ({"body": "t", "choices": ["x", "y"], "label": 0}, "cannot tell which column is the text: give text_column"),
    ],
)
def test_bad_rows_are_named(make_files: MakeFiles, row: dict[str, Any], message: str) -> None:
    folder = make_files({"a.jsonl": json.dumps(row)})
    with pytest.raises(InputError, match=message):
        read_rows(str(folder / "a.jsonl"), ChoiceSettings())


def test_numbers_as_choices_are_meant_by_their_place(make_files: MakeFiles) -> None:
    folder = make_files({"a.jsonl": '{"question": "q", "choices": [3, 1, 2], "label": 1}'})
    assert read_rows(str(folder / "a.jsonl"), ChoiceSettings())[1][0].label == 1
    texts = '{"question": "q", "choices": ["3", "4", "1"], "label": "%s"}'
    for label, found in (("4", 1), ("3", 0), ("0", 0), ("b", 1), (" 4 ", 1)):
        folder = make_files({"b.jsonl": texts % label})
        assert read_rows(str(folder / "b.jsonl"), ChoiceSettings())[1][0].label == found
    folder = make_files({"c.jsonl": texts % "1"})
    with pytest.raises(InputError, match='"1" is both the text of a choice and the number of another: give a letter'):
        read_rows(str(folder / "c.jsonl"), ChoiceSettings())


def test_letters_as_choices_and_spaces_around_them(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "question,option1,option2,answer\nq, Paris,London, Paris\n"})
    assert read_rows(str(folder / "a.csv"), ChoiceSettings())[1][0].label == 0
    texts = '{"question": "q", "choices": ["A", "C", "B"], "label": "%s"}'
    assert read_rows(str(make_files({"b.jsonl": texts % "A"}) / "b.jsonl"), ChoiceSettings())[1][0].label == 0
    folder = make_files({"c.jsonl": texts % "B"})
    with pytest.raises(InputError, match='"B" is both the text of a choice and the letter of another: give a number'):
        read_rows(str(folder / "c.jsonl"), ChoiceSettings())


# Sequences, logits, loss


@pytest.mark.conformance
def test_sequences_are_those_of_transformers(tokenizer: Tokenizer, tiny_tokenizer: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer)
    for item in make(tokenizer).examples("train").items:
        row = item.row
        seconds = [f"{row.question} {choice}" if row.text and row.question else choice for choice in row.choices]
        expected = theirs([row.text or row.question] * len(seconds), seconds)
        assert [ids.tolist() for ids in item.token_ids] == expected["input_ids"]
        assert [ids.tolist() for ids in item.segment_ids] == expected["token_type_ids"]
        assert item.cut_tokens == 0


def test_what_is_too_long_is_cut_and_said(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, max_length=10)
    item = task.examples("train").items[0]
    assert list(map(len, item.token_ids)) == [10, 10, 10]
    whole = [len(tokenizer.encode(f"{item.row.text} who sat ? {choice}").ids) for choice in item.row.choices]
    assert item.cut_tokens == sum(whole) - 3 * 7
    lost = sum(one.cut_tokens for one in task.examples("train").items)
    assert task.notes() == [
        f"3 of 3 train rows are longer than max_length 10 and lose {lost} tokens over all their choices."
    ]
    assert make(tokenizer).notes() == []


def test_loss_and_probabilities_are_by_row(tokenizer: Tokenizer) -> None:
    """Rows of three, two and four choices, beside each by itself."""
    torch.manual_seed(0)
    task = make(tokenizer)
    model = task.build(Encoder(named_size("tiny", tokenizer.vocab_size))).eval()
    torch.nn.init.normal_(model.pooled.out.weight)
    items = task.examples("train").items
    batch = task.collate(items)
    assert batch.counts == {"choice": 3.0}
    with torch.no_grad():
        loss = task.loss(model, batch)["choice"]
        alone = [task.logits(model, task.collate([item]))[0] for item in items]
        answers = task.decode(task.predict(model, batch), batch)
    assert [len(logits) for logits in alone] == [3, 2, 4]
    expected = sum(-logits.log_softmax(-1)[item.row.label] for logits, item in zip(alone, items, strict=True))
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    for answer, logits in zip(answers, alone, strict=True):
        np.testing.assert_allclose(answer.scores, logits.softmax(-1).numpy(), atol=1e-6)
        assert answer.index == int(logits.argmax())
    task.loss(model.train(), batch)["choice"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_figures_and_sections(tokenizer: Tokenizer) -> None:
    task = make(tokenizer)
    items = task.examples("train").items
    answers = [ChoiceAnswer(index, np.eye(4, dtype=np.float32)[index] * 0.9) for index in (0, 0, 2)]
    assert task.score(answers, items) == {"accuracy": pytest.approx(2 / 3)}
    curves, mistakes = task.sections(answers, items)
    assert isinstance(curves, Curves) and isinstance(mistakes, Table)
    assert mistakes.rows == [("a cat", "to the house", pytest.approx(0.9), "the dog ran", "a:2")]
    assert task.to_json(answers[2]) == {
        "index": 2,
        "score": pytest.approx(0.9),
        "scores": [0.0, 0.0, pytest.approx(0.9), 0.0],
    }


def test_max_length_must_fit(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, max_length=600)
    with pytest.raises(SettingsError, match="max_length is 600; this model takes 8 to 512 tokens"):
        task.build(Encoder(named_size("tiny", tokenizer.vocab_size)))


# A run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The right choice is the animal that the text names."""
    folder = tmp_path_factory.mktemp("choices")
    animals = ("cat", "dog", "bird", "fish")
    lines = []
    for number in range(120):
        named = animals[number % 4]
        order = [animals[(number // 4 + shift) % 4] for shift in range(3 + number % 2)]
        if named not in order:
            order[0] = named
        text = f"the {named} sat by the river {number} ."
        lines.append(json.dumps({"text": text, "question": "who sat ?", "choices": order, "label": order.index(named)}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tiny_tokenizer: Path) -> Path:
    settings = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        train=str(data / "train.jsonl"),
        out=data / "run",
        dev_share=0.2,
        epochs=20,
        batch_size=16,
        learning_rate=1e-3,
        dropout=0.0,
        precision="fp32",
        device="cpu",
    )
    result = finetune("choice", settings, ChoiceSettings(max_length=32), console=QUIET)
    assert result.metrics["dev"]["accuracy"] > 0.9
    return result.folder


def test_it_learns_to_choose(model: Path, data: Path) -> None:
    assert evaluate(model, str(data / "train.jsonl"))["accuracy"] > 0.95
    report = (model / "report.html").read_text()
    assert "Calibration" in report and "Mistakes" in report
    assert "pipeline_tag: multiple-choice" in (model / "model" / "README.md").read_text()


@pytest.mark.conformance
@torch.no_grad()
def test_transformers_gives_equal_probabilities(model: Path) -> None:
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(model / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model / "model")
    asked = [{"text": "the fish ran .", "question": "who ran ?", "choices": ["the dog", "the fish", "a cat"]}]
    (answer,) = load(model, device="cpu").predict(asked)
    seconds = [f"who ran ? {choice}" for choice in asked[0]["choices"]]
    inputs = tokenizer(["the fish ran ."] * 3, seconds, padding=True, return_tensors="pt")
    expected = theirs(**{name: values[None] for name, values in inputs.items()}).logits.softmax(-1)[0]
    np.testing.assert_allclose(answer["scores"], expected.numpy(), atol=1e-5)
    assert answer["index"] == int(expected.argmax())


def test_a_folder_of_theirs_is_read(model: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(model / "model")
    theirs.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model / "model").save_pretrained(tmp_path)
    asked = [{"text": "the fish ran .", "choices": ["the dog", "the fish"]}]
    assert list(load(tmp_path, device="cpu").predict(asked)) == list(load(model, device="cpu").predict(asked))


def test_a_text_that_only_later_rows_have_is_not_left_out(make_files: MakeFiles) -> None:
    first = '{"question": "q", "choices": ["a", "b"], "label": 0}\n'
    folder = make_files(
        {
            "usual.jsonl": first + first.replace("{", '{"text": "t", ', 1),
            "other.jsonl": first + first.replace("{", '{"passage": "t", ', 1),
        }
    )
    _, rows = read_rows(str(folder / "usual.jsonl"), ChoiceSettings())
    assert [row.text for row in rows] == ["", "t"]
    with pytest.raises(InputError, match=r'other\.jsonl:2: the rows above have no field "passage", which would'):
        read_rows(str(folder / "other.jsonl"), ChoiceSettings())


def test_a_choice_cannot_stand_for_two() -> None:
    with pytest.raises(SettingsError, match="names a column twice: a, b,b"):
        ChoiceSettings(choices_column="a, b,b")


def test_rows_to_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = load(model, device="cpu")
    with pytest.raises(InputError, match=r'row 1: this model chooses; give a row with "text"'):
        list(predictor.predict(["a text"]))
    (tmp_path / "a.jsonl").write_text('{"text": "the cat sat .", "question": "who sat ?", "choices": ["dog", "cat"]}\n')
    assert main(["predict", str(model), "--file", str(tmp_path / "a.jsonl"), "--device=cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["index"] == 1


def test_faults_are_found(make_files: MakeFiles, tiny_tokenizer: Path) -> None:
    one = {"text": "the cat", "choices": ["red", "old"], "label": 0}
    other = [{**one, "text": f"the {n}", "label": n % 2} for n in range(20)]
    lines = [one, {**one, "text": "The  cat"}, {**one, "label": 1}, {**one, "label": 7}, *other]
    folder = make_files({"a.jsonl": "\n".join(map(json.dumps, lines)), "b.jsonl": json.dumps({**one, "text": "the 3"})})
    settings = CheckSettings(train=str(folder / "a.jsonl"), test=str(folder / "b.jsonl"), tokenizer=str(tiny_tokenizer))
    report = check_data("choice", settings, ChoiceSettings(max_length=8))
    kinds = [(finding.split, finding.kind, finding.count) for finding in report.findings]
    assert kinds == [
        ("train", "unusable", 1),
        ("train", "copies", 1),
        ("train", "contradictions", 1),
        ("test", "leak", 1),
    ]
    assert report.splits["train"].labels == {"choice 0": 12, "choice 1": 11}
