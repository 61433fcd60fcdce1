"""Words, 5-grams and MinHash: against plain sets of 5-grams, in English and Chinese."""

import re
import unicodedata
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.text import near_duplicates
from bertsmith.text.near_duplicates import (
    NUM_HASHES,
    band_width,
    find_near_duplicates,
    signature,
    sketch,
    sketch_similarity,
)
from bertsmith.text.shingles import HashedWords, text_hash

ENGLISH = [f"{first}{second}" for first in ("ka", "lo", "mi", "ne", "ru") for second in ("b", "den", "s", "tor", "x")]
CHINESE = "北京大学的天地人山水日月风云花鸟鱼虫春夏秋冬东西南"


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    """Five words in a row, the plain way: Chinese characters and runs of letters and digits."""
    words = re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", unicodedata.normalize("NFKC", text).lower())
    width = min(5, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} if width else set()


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def mutated(words: list[str], share: float, draws: np.random.Generator, vocabulary: list[str]) -> list[str]:
    return [str(draws.choice(vocabulary)) if draws.random() < share else word for word in words]


def family(language: str) -> list[str]:
    """300 texts: 100 originals, each with two changed copies of a similarity between 0 and 1."""
    draws = np.random.default_rng(7)
    vocabulary, joint = (ENGLISH, " ") if language == "en" else (list(CHINESE), "")
    texts = []
    for number in range(100):
        words = [str(word) for word in draws.choice(vocabulary, size=60 + number)]
        texts.append(joint.join(words))
        texts += [joint.join(mutated(words, share, draws, vocabulary)) for share in draws.uniform(0, 0.1, size=2)]
    return texts


def signatures(texts: list[str]) -> np.ndarray:
    return np.stack([signature(HashedWords.of(text).shingles()) for text in texts])


def sketches(texts: list[str]) -> list[np.ndarray]:
    return [sketch(HashedWords.of(text).shingles()) for text in texts]


def find(texts: list[str], similarity: float) -> np.ndarray:
    return find_near_duplicates(signatures(texts), np.arange(len(texts)), similarity, sketches(texts).__getitem__)


@pytest.mark.parametrize(
    "text", ["", "?!", "one", "One, two; three.", "北京大学", "The 3 cats 在北京 sat", "Ａ１ ﬁsh Ünï"]
)
def test_words_and_shingles_are_as_many_as_the_plain_way(text: str) -> None:
    words = HashedWords.of(text)
    expected = plain_shingles(text)
    assert len(np.unique(words.shingles())) == len(expected)
    assert words.lengths.sum() == sum(map(str.isalnum, unicodedata.normalize("NFKC", text)))


@given(st.lists(st.text("ab1 .,-\n北京éＡ", max_size=20), min_size=2, max_size=2))
@settings(max_examples=300)
def test_shingles_are_equal_where_texts_are(texts: list[str]) -> None:
    hashes = [set(HashedWords.of(text).shingles().tolist()) for text in texts]
    plain = [plain_shingles(text) for text in texts]
    assert (hashes[0] == hashes[1]) == (plain[0] == plain[1])


def test_hashes_do_not_depend_on_how_words_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(family("en")[:3]) + "".join(family("zh")[:3])
    whole = HashedWords.of(text)
    monkeypatch.setattr("bertsmith.text.shingles._WORDS_A_TIME", 7)
    parts = HashedWords.of(text)
    assert (parts.hashes == whole.hashes).all() and (parts.lengths == whole.lengths).all()
    monkeypatch.setattr("bertsmith.text.near_duplicates._SHINGLES_A_TIME", 7)
    assert (signature(parts.shingles()) == signatures([text])[0]).all()


def test_hashes_are_the_same_everywhere() -> None:
    """In other processes, on other machines: these were written down."""
    assert text_hash("The cat. 北京") == 0x4F7C272E38170629
    assert HashedWords.of("The cat. 北京").shingles().tolist() == [5305446364480803941]
    assert signature(HashedWords.of("The cat. 北京").shingles())[:4].tolist() == [229, 116, 117, 187]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_signatures_estimate_the_jaccard_index(language: str) -> None:
    texts = family(language)
    found, sets = signatures(texts), [plain_shingles(text) for text in texts]
    errors = [
        (float((found[i] == found[j]).mean()) - 1 / 256) / (1 - 1 / 256) - jaccard(sets[i], sets[j])
        for i, j in combinations(range(len(texts)), 2)
        if i // 3 == j // 3
    ]
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.045
    apart = [float((found[i] == found[j]).mean()) for i, j in combinations(range(0, 300, 3), 2)]
    assert np.mean(apart) == pytest.approx(1 / 256, abs=0.003)


def test_short_texts_that_differ_do_not_agree() -> None:
    """One 5-gram each: all places come from two hashes, and still agree only by chance."""
    found = signatures([f"word{number}" for number in range(300)])
    agreements = [(found[i] == found[j]).sum() for i, j in combinations(range(300), 2)]
    assert max(agreements) < 12 and np.mean(agreements) == pytest.approx(NUM_HASHES / 256, abs=0.1)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_one_pair_in_a_hundred_at_most(similarity: float) -> None:
    rows = band_width(similarity)
    draws = np.random.default_rng(1).random((20_000, NUM_HASHES)) < similarity
    bands = draws[:, : NUM_HASHES // rows * rows].reshape(len(draws), -1, rows)
    assert bands.all(axis=2).any(axis=1).mean() > 0.985
    if rows < 8:
        assert 1 - (1 - similarity ** (rows + 1)) ** (NUM_HASHES // (rows + 1)) < 0.99, "a wider one would miss more"


@pytest.mark.parametrize("similarity", [0.6, 0.8])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_found_as_by_comparing_all_with_all(language: str, similarity: float) -> None:
    texts = family(language)
    sets = [plain_shingles(text) for text in texts]
    is_near = find(texts, similarity)
    nearest = np.array(
        [max((jaccard(sets[i], sets[j]) for j in range(i) if not is_near[j]), default=0.0) for i in range(len(sets))]
    )
    assert (nearest > similarity + 0.07).sum() > 30 < (nearest < similarity - 0.1).sum(), "both kinds are there"
    assert is_near[nearest >= similarity].mean() > 0.98, "nearly all are found"
    assert not is_near[nearest < similarity].any(), "nothing else is"
    assert not is_near[::3].any(), "originals come first"


def test_similarity_is_not_handed_on() -> None:
    """b is like a, and c like b but not like a: only b goes."""
    words = [f"{word}{number}" for number in range(8) for word in ENGLISH]
    changed = [*words]
    texts = [" ".join(words)]
    for begin in (40, 120):
        changed[begin : begin + 25] = [f"new{begin + i}" for i in range(25)]
        texts.append(" ".join(changed))
    a, b, c = (plain_shingles(text) for text in texts)
    assert jaccard(a, b) > 0.72 < jaccard(b, c) and jaccard(a, c) < 0.57
    assert find(texts, 0.65).tolist() == [False, True, False]


@given(st.lists(st.integers(0, 6), max_size=12))
def test_of_equal_texts_the_first_stays(numbers: list[int]) -> None:
    texts = family("en")[::3]
    found = find([texts[number] for number in numbers], 0.8) if numbers else np.zeros(0, dtype=bool)
    assert found.tolist() == [number in numbers[:place] for place, number in enumerate(numbers)]


def test_only_the_rows_that_are_asked_for() -> None:
    texts = family("en")
    some = [texts[0], texts[0], texts[3], texts[0]]
    found, sketch_of = signatures(some), sketches(some).__getitem__
    assert find_near_duplicates(found, np.array([1, 2, 3]), 0.8, sketch_of).tolist() == [False, False, True]
    assert find_near_duplicates(found, np.array([0, 2]), 0.8, sketch_of).tolist() == [False, False]


@pytest.mark.parametrize("num_words", [300, 1500, 6000])
def test_sketches_tell_the_jaccard_index(num_words: int) -> None:
    """All of a short text, and of a long one as much as is needed."""
    draws = np.random.default_rng(4)
    words = [f"w{number}" for number in draws.integers(0, 10**6, size=num_words)]
    for share in (0.01, 0.03, 0.2):
        texts = [" ".join(words), " ".join(mutated(words, share, draws, ["x", "y"]))]
        found = sketch_similarity(*sketches(texts))
        expected = jaccard(*map(plain_shingles, texts))
        assert found == pytest.approx(expected, abs=1e-9 if num_words < 1000 else 0.05)


def test_pages_of_a_template_are_no_copies_and_their_copies_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fifths of each page are the same, yet none is like another; nor is each compared with all before it."""
    draws = np.random.default_rng(5)
    head = [f"h{number}" for number in range(150)]
    pages = [head + [f"w{number}" for number in draws.integers(0, 10**6, size=35)] for _ in range(900)]
    copies = [[*page[:-3], "x", "y", "z"] for page in pages[::9]]
    texts = [" ".join(page) for page in [*pages, *copies]]
    asked = []
    monkeypatch.setattr(near_duplicates, "sketch_similarity", lambda *two: asked.append(two) or sketch_similarity(*two))
    is_near = find(texts, 0.8)
    assert not is_near[: len(pages)].any() and is_near[len(pages) :].mean() > 0.95
    assert len(asked) <= 8 * len(texts)
