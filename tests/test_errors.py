"""The tree of errors is what its module draws; and what a user can do wrong ends in one clear message."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from bertsmith import errors
from bertsmith.cli import main
from bertsmith.errors import BertsmithError, InputError, Interrupted, MissingExtraError, did_you_mean


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert set(drawn) == {cls.__name__ for cls in BertsmithError.__subclasses__()}


def test_interrupted_is_no_user_error() -> None:
    assert not issubclass(Interrupted, BertsmithError)
    assert issubclass(Interrupted, Exception)


@pytest.mark.parametrize(
    ("where", "text"), [(None, "no such column"), ("a.csv:3", "a.csv:3: no such column"), ("", "no such column")]
)
def test_input_errors_begin_with_the_place(where: str | None, text: str) -> None:
    error = InputError("no such column", where)
    assert str(error) == text
    assert error.where == where


def test_a_missing_extra_ends_with_the_command() -> None:
    assert str(MissingExtraError("onnx", "export", "ONNX export")).endswith('pip install "bertsmith[export]"')


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sentense", 'Did you mean "sentence"? '), ("labels", 'Did you mean "label"? '), ("zzz", "")],
)
def test_the_nearest_choice_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, ["sentence", "label"]) == f"{hint}Choices: label, sentence."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path, tiny_documents: Path) -> Path:
    """A folder with a tokenizer, a token store, a model after one step, and labelled data with faults in it."""
    place = tmp_path_factory.mktemp("errors")
    shutil.copytree(tiny_tokenizer, place / "tokenizer")
    build = ["corpus", "build", "--tokenizer", str(tiny_tokenizer), "--document-separator", "blank-lines"]
    assert main([*build, str(tiny_documents), "--out", str(place / "store")]) == 0
    (place / "one.txt").write_text("A cat sat.\nIt saw a bird.\nIt was old.\n")
    assert main([*build, str(place / "one.txt"), "--out", str(place / "one-document")]) == 0
    train = ["pretrain", "--corpus", str(place / "store"), "--out", str(place / "run"), "--size", "tiny"]
    assert main([*train, "--budget", "1 steps", "--max-length", "32", "--evaluation-samples", "2"]) == 0
    (place / "empty.txt").write_text(" \n\n")
    (place / "latin.txt").write_bytes("first line\ncaf\xe9\n".encode("latin-1"))
    rows = [f"{i} cats,{'ab'[i % 2]}" for i in range(20)]
    (place / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (place / "other.csv").write_text("text,label\na cat,c\n")
    entry = {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 900}]}
    squad = {"data": [{"paragraphs": [{"context": "A cat sat.", "qas": [entry]}]}]}
    (place / "outside.json").write_text(json.dumps(squad))
    (place / "tags.conll").write_text("A O\ncat\n\n")
    vocabulary = (place / "tokenizer" / "vocab.txt").read_text()
    (place / "large").mkdir()
    (place / "large" / "vocab.txt").write_text(vocabulary + "".join(f"more{i}\n" for i in range(50)))
    return place


BUILD = "corpus build --tokenizer tokenizer --out out"
PRETRAIN = "pretrain --out out"
CLASSIFY = "finetune classification --model run --train rows.csv --out out"
FAULTS = [
    ("tokenizer train missing.txt --out out", "missing.txt: no such file"),
    (f"{BUILD} missing/", "no such file or folder"),
    (f"{BUILD} one.txt --language klingon!", "not a language code"),
    (f"{BUILD} empty.txt", "no text"),
    (f"{BUILD} latin.txt", "latin.txt:2: byte 0xe9 at offset 14 is not UTF-8"),
    (f"{PRETRAIN} --corpus one-document", "--objective mlm"),
    (f"{PRETRAIN} --corpus nothing", "nothing"),
    (f"{PRETRAIN} --corpus store --from run --max-length 600", "max_position_embeddings"),
    (f"{PRETRAIN} --corpus store --size minni", 'Did you mean "mini"?'),
    (f"{PRETRAIN} --corpus store --budget soon", 'error: budget: cannot read "soon"'),
    (f"{PRETRAIN} --corpus store --evaluate-every often", 'error: evaluate_every: cannot read "often"'),
    (f"{PRETRAIN} --corpus store --device gpu", 'device "gpu" is not known'),
    (f"{PRETRAIN} --corpus store --from nowhere", "nowhere"),
    (f"{CLASSIFY} --text-column txet", 'Did you mean "text"?'),
    (f"{CLASSIFY} --dev other.csv", 'the label "c" does not occur in the training data'),
    (f"{CLASSIFY} --tokenizer large", "tokens, the model only"),
    (f"{CLASSIFY} --max-length 600", "600"),
    (f"{CLASSIFY} --save-every often", 'error: save_every: cannot read "often"'),
    (f"{CLASSIFY} --evaluate-every often", 'error: evaluate_every: cannot read "often"'),
    (f"{CLASSIFY} --adapt 0m", 'error: adapt: "0m" is nothing'),
    (f"{CLASSIFY} --device gpu", 'device "gpu" is not known'),
    (f"{CLASSIFY} --learning-rate=-1", "learning_rate is -1.0"),
    (f"{CLASSIFY} --metric acuracy", 'Did you mean "accuracy"?'),
    ("finetune tagging --model run --train tags.conll --out out", "tags.conll:2: 1 columns here, 2 wanted"),
    ("finetune answering --model run --train outside.json --out out", "outside.json"),
    ("evaluate run rows.csv", "run"),
    ("predict nowhere text", "nowhere"),
    ("predict run text", "[MASK]"),
]


@pytest.fixture
def names(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names in a fresh current folder, which has all of `place` in it."""
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return {entry.name for entry in tmp_path.iterdir()}


@pytest.mark.parametrize(("command", "message"), FAULTS)
def test_a_fault_of_the_user_is_one_message_and_no_files(
    names: set[str], capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    code = main(shlex.split(command))
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert set(os.listdir()) == names


@pytest.mark.parametrize("command", ["tokenizer train one.txt --vocab-size 200 --out out", f"{BUILD} one.txt"])
def test_a_full_disk_is_one_message_and_no_files(
    names: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(shlex.split(command)) == 2
    assert "no space left" in capsys.readouterr().err
    assert {name for name in os.listdir() if not name.startswith(".")} == names
