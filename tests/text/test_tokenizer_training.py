"""Training vocabularies: the same every time, within memory, with a sensible alphabet."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertsmith.errors import CorpusError, SettingsError, StorageError
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import Kind, sample_texts, train_tokenizer

KINDS: tuple[Kind, ...] = ("wordpiece", "bpe", "unigram")
MakeFiles = Callable[[dict[str, str | bytes]], Path]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable(make_files: MakeFiles, tmp_path: Path, kind: Kind) -> None:
    """Also in another process, where the library's hash tables have other seeds."""
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiouéü" for c in ("", "ns", "rt", "st", "xyl", "ing")]
    text = "\n".join(" ".join(words[i::7] + words[i % 5 :: 11]) for i in range(40))
    source = str(make_files({"words.txt": text}) / "words.txt")
    first = train_tokenizer([source], tmp_path / "first", kind=kind, vocab_size=500)
    code = (
        "from bertsmith.text.tokenizer_training import train_tokenizer as t;"
        f"t([{source!r}], {str(tmp_path / 'second')!r}, kind={kind!r}, vocab_size=500)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert load_tokenizer(tmp_path / "second").fingerprint == first.fingerprint
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (tmp_path / "first" / "tokenizer.json").read_bytes()


def test_frequent_words_become_one_piece(make_files: MakeFiles, tmp_path: Path) -> None:
    folder = make_files({"a.txt": "Smoothly the smoothing smooths. " * 50 + "Zebra"})
    tokenizer = train_tokenizer([str(folder / "a.txt")], tmp_path / "out", vocab_size=250)
    pieces = tokenizer.tokens(tokenizer.encode("SMOOTH smoothly Zürich zebra").ids)
    assert pieces[:2] == ["smooth", "smoothly"]
    assert "".join(pieces[2:]).replace("##", "") == "zurichzebra", "any ASCII word can be spelled"
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["num_documents"] == 1 and record["seen_bytes"] == record["used_bytes"] == 32 * 50 + 5


def test_min_frequency(make_files: MakeFiles, tmp_path: Path) -> None:
    source = str(make_files({"a.txt": "once " + "twice " * 2 + "often " * 9}) / "a.txt")
    whole = {}
    for min_frequency in (2, 5):
        out = tmp_path / str(min_frequency)
        tokenizer = train_tokenizer([source], out, vocab_size=300, min_frequency=min_frequency)
        whole[min_frequency] = [word for word in ("once", "twice", "often") if tokenizer.token_to_id(word)]
    assert whole == {2: ["twice", "often"], 5: ["often"]}


def test_rare_characters_do_not_eat_the_vocabulary(make_files: MakeFiles, tmp_path: Path) -> None:
    foreign = "".join(chr(0x4E00 + i) for i in range(600)) + "".join(chr(0x10A0 + i) for i in range(80))
    english = " ".join(f"{stem}{end}" for stem in ("walk", "talk", "jump", "look") for end in ("", "s", "ed", "ing"))
    source = str(make_files({"a.txt": f"{english} " * 400 + foreign}) / "a.txt")
    wordpiece = train_tokenizer([source], tmp_path / "wordpiece", vocab_size=400)
    assert wordpiece.tokens(wordpiece.encode("walking talked").ids) == ["walking", "talked"]
    unigram = train_tokenizer([source], tmp_path / "unigram", kind="unigram", vocab_size=400)
    pieces = unigram.tokens(unigram.encode("walking talked").ids)
    assert "▁walk" in pieces and "▁talk" in pieces and "[UNK]" not in pieces


def test_chinese_fills_the_vocabulary_with_characters(make_files: MakeFiles, tmp_path: Path) -> None:
    characters = [chr(0x4E00 + i) for i in range(900)]
    text = "".join(char * (3 + 4000 // (i + 1)) for i, char in enumerate(characters)) + "罕"
    source = str(make_files({"zh.txt": text}) / "zh.txt")
    tokenizer = train_tokenizer([source], tmp_path / "zh", vocab_size=1200)
    known = [tokenizer.token_to_id(char) is not None for char in characters]
    assert all(known), "there is room for all that occur often enough"
    assert tokenizer.token_to_id("罕") is None
    assert tokenizer.token_to_id("##" + characters[0]) is None, "characters stand alone"
    assert tokenizer.vocab_size <= 1200


def test_words_without_spaces_are_cut(make_files: MakeFiles, tmp_path: Path) -> None:
    """A run of a million characters is not one word to be joined pair by pair."""
    source = str(make_files({"a.txt": "ab" * 500_000 + " and text"}) / "a.txt")
    for kind in KINDS:
        tokenizer = train_tokenizer([source], tmp_path / kind, kind=kind, vocab_size=300)
        assert max(len(piece) for piece in tokenizer.tokens(range(tokenizer.vocab_size))) <= 102


@given(st.lists(st.text("ab \n", max_size=400), max_size=30), st.integers(50, 2000))
@example(["aaaa", "aaaaa", "aaaaaaa\n", "aaaaaa a", "aaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaa"], 50)
@settings(max_examples=100, deadline=None)
def test_sample_is_bounded_and_ignores_order(documents: list[str], limit_bytes: int) -> None:
    sample = sample_texts(documents, limit_bytes)
    assert sample.seen_bytes == sum(len(document) for document in documents)
    assert sample.used_bytes == sum(len(text) for text in sample.texts)
    assert sample.used_bytes <= limit_bytes or len(sample.texts) == 1
    if sample.seen_bytes <= limit_bytes:
        assert "".join(sample.texts) == "".join(documents)
    assert sorted(sample_texts(documents[::-1], limit_bytes).texts) == sorted(sample.texts)


def test_sample_takes_parts_of_a_long_document() -> None:
    document = "".join(f"line {i} of a very long document\n" for i in range(40_000))
    sample = sample_texts([document], len(document) // 4)
    assert len(document) // 8 < sample.used_bytes <= len(document) // 4
    assert all(text in document and text.endswith("\n") for text in sample.texts)


def test_limit_is_kept_and_recorded(make_files: MakeFiles, tmp_path: Path) -> None:
    folder = make_files({f"{i}.txt": f"document {i} says {'word ' * 200}" for i in range(20)})
    train_tokenizer([str(folder)], tmp_path / "out", vocab_size=300, limit_bytes=5000)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["used_bytes"] <= 5000 < record["seen_bytes"]
    assert record["limit_bytes"] == 5000 and record["num_documents"] == 20


def test_wrong_settings(tiny_documents: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='Did you mean "wordpiece"'):
        train_tokenizer([str(tiny_documents)], tmp_path / "a", kind="word-piece")  # type: ignore[arg-type]
    for kind in KINDS:
        with pytest.raises(SettingsError, match="vocab_size 90 is too small"):
            train_tokenizer([str(tiny_documents)], tmp_path / "a", kind=kind, vocab_size=90)
    for wrong in ({"min_frequency": 0}, {"min_frequency": -4}, {"vocab_size": 10**20}, {"limit_bytes": 0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            train_tokenizer([str(tiny_documents)], tmp_path / "a", **wrong)
    assert not (tmp_path / "a").exists()


def test_only_a_tokenizer_is_replaced_and_nothing_that_is_read(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_files({"texts/a.txt": "the king sat by the river\n" * 9, "texts/letter.pdf": "years"})
    source = folder / "texts" / "a.txt"

    def train(out: str | Path, sources: Path = source) -> None:
        train_tokenizer([str(sources)], out, vocab_size=200, overwrite=True)

    monkeypatch.chdir(folder / "texts")
    for out in (".", "./", "", folder / "texts", "..", tmp_path):
        with pytest.raises(SettingsError, match=r"a\.txt is read, and lies in what --overwrite replaces"):
            train(out)
    other = make_files({"other/b.txt": "the queen\n" * 9}) / "other" / "b.txt"
    with pytest.raises(SettingsError, match="the folder that you are in"):
        train("", other)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"holds a.txt and 1 more, which is not of a tokenizer, and --overwrite"):
        train(folder / "texts", other)
    with pytest.raises(StorageError, match="is a file"):
        train(other, source)
    assert {path.name for path in (folder / "texts").iterdir()} == {"a.txt", "letter.pdf"} and other.is_file()
    train("here")
    train("here/../here")
    assert "tokenizer.json" in {path.name for path in (tmp_path / "here").iterdir()}


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_text_that_gives_no_token_is_refused(make_files: MakeFiles, tmp_path: Path, kind: Kind) -> None:
    folder = make_files({"a.txt": "\u200b\x05 \u200e\n" * 50, "b.txt": "กขฃ " * 3})
    with pytest.raises(CorpusError, match=r"no text to train a tokenizer on in .*a\.txt"):
        train_tokenizer([str(folder / "a.txt")], tmp_path / "out", kind=kind, vocab_size=300)
    if kind == "unigram":
        with pytest.raises(CorpusError, match="no character is seen 1000 times"):
            train_tokenizer([str(folder / "b.txt")], tmp_path / "out", kind=kind, vocab_size=300, min_frequency=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "kind", "lowercase", "said"),
    [
        ("ที่นี่มีน้ำ " * 90, "wordpiece", True, ["marks (◌ี ◌่ ◌้) off every 100 characters", "--no-lowercase"]),
        ("ที่นี่มีน้ำ " * 90, "bpe", True, ["marks (◌ี ◌่ ◌้)"]),
        ("ที่นี่มีน้ำ " * 90, "wordpiece", False, []),
        ("कुत्ता और बिल्ली " * 90, "unigram", True, ["--no-lowercase"]),
        (
            "Die Tür ist schwer, das Haus steht noch am alten Fluss und die Leute gehen heim. " * 9,
            "wordpiece",
            True,
            [],
        ),
        ("กขคง" * 900, "wordpiece", False, ["100.0% of this text becomes the unknown token", "--kind unigram"]),
        ("กขคง" * 900, "unigram", False, []),
        ("กขคง" * 900, "bpe", False, []),
    ],
)
def test_what_a_vocabulary_would_lose_is_said(
    make_files: MakeFiles, tmp_path: Path, capsys: Any, text: str, kind: Kind, lowercase: bool, said: list[str]
) -> None:
    source = str(make_files({"a.txt": text}) / "a.txt")
    train_tokenizer([source], tmp_path / "out", kind=kind, vocab_size=300, lowercase=lowercase)
    lines = capsys.readouterr().err
    assert all(part in lines for part in said) and bool(lines) == bool(said), lines


@pytest.mark.parametrize("kind", KINDS)
def test_smallest_vocabulary(tiny_documents: Path, tmp_path: Path, kind: Kind) -> None:
    smallest = {"wordpiece": 165, "bpe": 261, "unigram": 105}[kind]
    tokenizer = train_tokenizer([str(tiny_documents)], tmp_path / "a", kind=kind, vocab_size=smallest, lowercase=False)
    assert tokenizer.vocab_size <= smallest
    assert tokenizer.unk_id not in tokenizer.encode("The Old KING sat; 42 times!").ids


def test_no_text_and_existing_folder(make_files: MakeFiles, tmp_path: Path, tiny_documents: Path) -> None:
    folder = make_files({"empty.txt": " \n\n"})
    with pytest.raises(CorpusError, match=r"no text.*empty\.txt"):
        train_tokenizer([str(folder / "empty.txt")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    train_tokenizer([str(tiny_documents)], tmp_path / "out", vocab_size=200)
    with pytest.raises(StorageError, match="already exists"):
        train_tokenizer([str(tiny_documents)], tmp_path / "out", vocab_size=200)
    assert train_tokenizer([str(tiny_documents)], tmp_path / "out", vocab_size=180, overwrite=True).vocab_size <= 180
    assert load_tokenizer(tmp_path / "out").vocab_size <= 180
