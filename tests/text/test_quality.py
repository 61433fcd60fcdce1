"""The measures of quality filters, against counts made by hand or the plain way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.text.quality import repeated_line_share, repeated_ngram_share, symbol_share
from bertsmith.text.shingles import HashedWords


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        (" \n\t\u3000", 0),
        ("The cat's 3 dogs: (yes, no)… “so”; 50 % & more - or?", 0),
        ("北京大学,“你好”。《书》——……", 0),
        ("a + b = c", 2 / 5),
        ("#tag *x*", 3 / 7),
        ("ok \x00\x07\ufffd\ue000", 4 / 6),
        ("└── ☺", 1),
        ("e\u0301 \u0e01\u0e33 क्\u200dष", 0),
    ],
)
def test_symbols(text: str, share: float) -> None:
    assert symbol_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("one", 0), ("a\nb\n\nc", 0), ("a\n a \n\n\nb\na", 2 / 4), ("菜单\n菜单\n菜单\n菜单", 3 / 4)],
)
def test_repeated_lines(text: str, share: float) -> None:
    assert repeated_line_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("one one one one", 0),
        ("a b c d e f g h", 0),
        ("aa b c d e. AA b c d e!", 1 / 2),
        ("aa b c d e x aa b c d e", 6 / 13),
        ("a a a a a a", 5 / 6),
        ("北京大学好北京大学好", 1 / 2),
    ],
)
def test_repeated_ngrams(text: str, share: float) -> None:
    assert repeated_ngram_share(HashedWords.of(text)) == pytest.approx(share)


@given(st.lists(st.sampled_from(["a", "bb", "c", "dddd"]), max_size=60))
def test_repeated_ngrams_as_counted_the_plain_way(words: list[str]) -> None:
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for place in range(len(words) - 4):
        gram = tuple(words[place : place + 5])
        if gram in seen:
            covered |= set(range(place, place + 5))
        seen.add(gram)
    expected = sum(len(words[place]) for place in covered) / max(1, sum(map(len, words)))
    assert repeated_ngram_share(HashedWords.of(" ".join(words))) == pytest.approx(expected)
