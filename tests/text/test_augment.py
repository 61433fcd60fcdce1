"""Words deleted, swapped and replaced: what is kept is kept, whatever the text, and rates of 0 change nothing."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.text.augment import Span, edit, is_alike, moved, text_units, word_units

# Latin, Chinese, kana, Hindi with vowel signs, white space and punctuation of several kinds.
CHARACTERS = "ab Zé'-.,!?()\n\t\u00a0\u3000\u2028 今天学習のカー、。हिन्दी१ 😀#@C+"
TEXTS = st.one_of(st.text(st.sampled_from(CHARACTERS), max_size=60), st.text(max_size=30))
SEEDS, RATES = st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5, 0.99])


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@st.composite
def texts_and_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(TEXTS.filter(bool))
    places = st.integers(0, len(text) - 1)
    pairs = draw(st.lists(st.tuples(places, places), max_size=3))
    return text, [(min(pair), max(pair) + 1) for pair in pairs]


def words(text: str) -> list[str]:
    units = text_units(text)
    return [units.word(unit) for unit in range(len(units.spans))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He said: \"don't\", didn't he?", ["He", "said", "don't", "didn't", "he"]),
        ("state-of-the-art (C++), 3.5 %", ["state-of-the-art", "C++", "3.5"]),
        ("今天，我用Python 3。", ["今", "天", "我", "用", "Python", "3"]),
        ("テスト・の日", ["テ", "ス", "ト", "の", "日"]),
        ("हिन्दी में लिखा है।", ["हिन्दी", "में", "लिखा", "है"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        (" ... !? ", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(texts_and_spans())
def test_units_are_apart_and_in_order_and_hold_what_is_kept(case: tuple[str, list[Span]]) -> None:
    text, kept = case
    units = text_units(text, kept)
    assert all(first[1] <= second[0] for first, second in pairwise(units.spans))
    assert all(start < end for start, end in units.spans)
    held = [span for span, fixed in zip(units.spans, units.fixed, strict=True) if fixed]
    assert all(any(start <= one and other <= end for start, end in held) for one, other in kept)
    assert bool(held) is bool(kept)


@given(texts_and_spans(), SEEDS, RATES, RATES)
def test_what_is_kept_keeps_its_text(case: tuple[str, list[Span]], seed: int, delete: float, swap: float) -> None:
    text, kept = case
    units = text_units(text, kept)
    free = [unit for unit, fixed in enumerate(units.fixed) if not fixed]
    replaced = {unit: f"w{unit}" for unit in free[::2]}
    edited = edit(units, random(seed), delete=delete, swap=swap, replaced=replaced)
    for span in kept:
        start, end = moved(span, units, edited)
        assert edited.text[start:end] == text[slice(*span)]
    for start, word in zip(edited.starts, edited.words, strict=True):
        assert edited.text.startswith(word, start)
    fixed = [unit for unit in edited.units if units.fixed[unit]]
    assert fixed == [unit for unit, is_fixed in enumerate(units.fixed) if is_fixed]


@given(texts_and_spans(), SEEDS)
def test_without_rates_nothing_changes(case: tuple[str, list[Span]], seed: int) -> None:
    text, kept = case
    units = text_units(text, kept)
    edited = edit(units, random(seed), delete=0.0, swap=0.0)
    assert edited.text == text
    assert edited.units == tuple(range(len(units.spans)))
    assert edited.starts == tuple(start for start, _ in units.spans)


@given(TEXTS, SEEDS, RATES, RATES)
def test_words_are_only_lost_and_moved_by_one(text: str, seed: int, delete: float, swap: float) -> None:
    units = text_units(text)
    edited = edit(units, random(seed), delete=delete, swap=swap)
    assert not Counter(edited.words) - Counter(words(text))
    assert (len(edited.units) > 0) is (len(units.spans) > 0)
    only_swapped = edit(units, random(seed), delete=0.0, swap=swap)
    assert sorted(only_swapped.units) == list(range(len(units.spans)))
    assert all(abs(place - unit) <= 1 for place, unit in enumerate(only_swapped.units))


@given(st.lists(st.tuples(st.text(max_size=5), st.booleans()), max_size=12), SEEDS, RATES, RATES)
def test_words_that_somebody_split_stay_whole(
    marked: list[tuple[str, bool]], seed: int, delete: float, swap: float
) -> None:
    given_words, fixed = [word for word, _ in marked], [is_fixed for _, is_fixed in marked]
    units = word_units(given_words, fixed)
    edited = edit(units, random(seed), delete=delete, swap=swap)
    assert list(edited.words) == [given_words[unit] for unit in edited.units]
    # What is fixed stands beside the same fixed words as before: no span of them is torn or mixed.
    before = [unit for unit, is_fixed in enumerate(fixed) if is_fixed]
    assert [unit for unit in edited.units if fixed[unit]] == before
    places = {unit: place for place, unit in enumerate(edited.units)}
    together = [(one, one + 1) for one in before if one + 1 < len(fixed) and fixed[one + 1]]
    assert all(places[second] == places[first] + 1 for first, second in together)


def test_rates_are_those_that_were_asked_for() -> None:
    text = " ".join(f"w{number}" for number in range(20_000))
    units = text_units(text)
    deleted = edit(units, random(0), delete=0.1, swap=0.0)
    assert len(deleted.units) == pytest.approx(18_000, abs=150)
    assert deleted.text == " ".join(deleted.words)
    moved_units = sum(place != unit for place, unit in enumerate(edit(units, random(0), delete=0.0, swap=0.1).units))
    # A word is swapped to the right with probability s if it was not swapped before: s / (1 + s) of all words, twice.
    assert moved_units == pytest.approx(2 * 20_000 * 0.1 / 1.1, abs=250)


def test_chinese_is_changed_by_characters() -> None:
    text = "今天天气很好，我们去公园。"
    found = {edit(text_units(text), random(seed), delete=0.1, swap=0.1).text for seed in range(50)}
    assert len(found) > 30
    assert all(not Counter(one) - Counter(text) and one.endswith("。") and "，" in one for one in found)


def test_punctuation_stays_and_white_space_goes_with_its_word() -> None:
    units = text_units("one two, three.")
    order = [edit(units, random(seed), delete=0.6, swap=0.0).text for seed in range(200)]
    assert set(order) == {
        "one two, three.",
        "two, three.",
        "one , three.",
        "one two, .",
        "one , .",
        "two, .",
        ", three.",
    }


@pytest.mark.parametrize(
    ("word", "other", "expected"),
    [("cat", "dog", True), ("猫", "犬", True), ("cat", "犬", False), ("cat", ",", False), ("a b", "c", False)],
)
def test_words_of_one_kind(word: str, other: str, expected: bool) -> None:
    assert is_alike(word, other) is expected
