"""Sentences: lossless for any text, never over a blank line, English and Chinese."""

import json
import lzma
from pathlib import Path

import pytest
import sentencex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertsmith.errors import SettingsError
from bertsmith.text.sentences import replace_surrogates, split_sentences

# What boundaries are made of is much likelier than in st.text() alone; lone surrogates included.
SIGNS = ".?!。！？…:;\"'“”«»()[]`< \t\n\x00\x85\u2028\u3000\ud800\udc00"
PIECES = st.sampled_from([*SIGNS, "\n\n", "\r\n", "Mr.", "e.g.", "A", "x@y.org", "1.5", "你好", "\U0001f600"])
TEXTS = st.lists(PIECES | st.text(st.characters(), max_size=3), max_size=60).map("".join)


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.sampled_from(["en", "zh", "de", "xx"]))
@example("", "en")
@example("\n\n", "en")
@example("\ud800", "zh")
@example("G\x85\u2028.\u2028\u2028", "en")  # where sentencex panics
def test_sentences_put_together_are_the_text(text: str, language: str) -> None:
    sentences = split_sentences(text, language)
    assert "".join(sentences) == text
    assert all(sentences)
    assert text.isspace() or not any(sentence.isspace() for sentence in sentences)


@settings(deadline=None, max_examples=200)
@given(st.lists(TEXTS.filter(lambda text: text.strip() != "" and "\n" not in text), min_size=1, max_size=6))
@example(["`.…'", "."])
@example([".", " ?…0"])
def test_blank_lines_always_end_a_sentence(paragraphs: list[str]) -> None:
    for blank in ("\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n"):
        sentences = split_sentences(blank.join(paragraphs))
        separately = [sentence.strip() for paragraph in paragraphs for sentence in split_sentences(paragraph)]
        assert [sentence.strip() for sentence in sentences] == separately


def test_english() -> None:
    text = (
        'Mr. Hill (b. 1902) wrote "It rains. It pours." in Dec. 1960.  He earned $3.50 a page!\nDid he?\n\n'
        "A heading\n\nThe J. R. R. Tolkien\nSociety met at 5 p.m. on Monday."
    )
    assert split_sentences(text) == [
        'Mr. Hill (b. 1902) wrote "It rains. It pours." in Dec. 1960.  ',
        "He earned $3.50 a page!\n",
        "Did he?\n\n",
        "A heading\n\n",
        "The J. R. R. Tolkien\nSociety met at 5 p.m. on Monday.",
    ]


def test_chinese() -> None:
    text = "他问：“你好吗？”她说好。价格是3.5元！\n\n第二段，没有句号\n\n真的？当然。"
    assert split_sentences(text, "zh") == [
        "他问：“你好吗？”",
        "她说好。",
        "价格是3.5元！\n\n",
        "第二段，没有句号\n\n",
        "真的？",
        "当然。",
    ]
    assert split_sentences(text, "zh_CN") == split_sentences(text, "zh")


def test_white_space_belongs_to_a_sentence() -> None:
    assert split_sentences("\n\n  One. \n\n\t Two.\n\n") == ["\n\n  One. \n\n\t ", "Two.\n\n"]
    assert split_sentences(" \n\n ") == [" \n\n "]
    assert split_sentences("") == []


def test_nothing_is_lost_between_long_paragraphs() -> None:
    """sentencex 1.0.32 drops the blank line where it cuts texts of over 10 KB into parts."""
    paragraph = "This is a sentence of a paragraph. " * 100
    text = "\n\n".join([paragraph.strip()] * 8)
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert len(sentences) == 800


def test_long_paragraphs_are_split_as_short_ones() -> None:
    paragraph = "It was the best of times. It was the worst of times! Was it? “Yes. It was,” he said. "
    expected = split_sentences(paragraph)
    assert len(expected) == 4
    assert split_sentences(paragraph * 500) == expected * 500


@pytest.mark.parametrize("text", ["x" * 100_000, "word " * 20_000, "好。" * 20_000, "(" * 30_000, "a.b" * 20_000])
def test_no_sentence_is_endless(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert max(map(len, sentences)) <= 8192
    if " " in text:
        assert set("".join(sentences[:-1])) == set(text) and all(sentence.endswith(" ") for sentence in sentences)


def test_lossless_whatever_the_splitter_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencex, "segment", lambda language, text: ["One.", "not there", "Three."])
    assert split_sentences("One. Two. Three. ") == ["One. Two. ", "Three. "]


def test_surrogates_are_replaced_one_by_one() -> None:
    assert replace_surrogates("a\ud83d\udc00b\U0001f600") == "a\ufffd\ufffdb\U0001f600"
    assert split_sentences("\ud800 One. Two.")[0] == "\ud800 One. "


@pytest.mark.parametrize("language", ["english", "", "e", "en;", "中文"])
def test_not_a_language(language: str) -> None:
    with pytest.raises(SettingsError, match="language code"):
        split_sentences("One.", language)


def test_a_country_is_no_language() -> None:
    with pytest.raises(SettingsError, match='language: "CN" is a country; the code of its language is zh'):
        split_sentences("One.", "CN")


@pytest.mark.parametrize(("name", "language"), [("books.en", "en"), ("modern.zh", "zh")])
def test_real_text(shared_data: Path, name: str, language: str) -> None:
    with lzma.open(shared_data / "pretrain" / f"{name}.jsonl.xz", "rt", encoding="utf-8", newline="\n") as file:
        texts = [json.loads(next(file))["text"] for _ in range(60)]
    lengths = []
    for text in texts:
        sentences = split_sentences(text, language)
        assert "".join(sentences) == text
        lengths.extend(len(sentence.strip()) for sentence in sentences)
    typical = sorted(lengths)[len(lengths) // 2]
    assert (20 < typical < 200) if language == "en" else (8 < typical < 60)
