"""Masking: how many, which together, what is shown instead, and what may never be hidden."""

import itertools
import random as plain_random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from bertsmith import randomness
from bertsmith.errors import SettingsError, TrainingError
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masked, Masker, Masking, MaskUnit
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_examples import PretrainExamples
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.samples import describe_samples
from bertsmith.text.corpus import open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.sentences import split_sentences
from bertsmith.text.sources import iter_documents
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import Kind, train_tokenizer

UNK, CLS, SEP, MASK, VOCABULARY = 1, 2, 3, 4, 1000
UNITS: tuple[MaskUnit, ...] = ("piece", "word", "span", "ngram")


@dataclass
class Vocabulary:
    """The part of a tokenizer that masking looks at."""

    vocab_size: int = VOCABULARY
    mask_id: int = MASK
    unk_id: int = UNK
    special_ids: frozenset[int] = frozenset(range(5))


def masker(unit: MaskUnit = "piece", **options: object) -> Masker:
    return Masker(Vocabulary(), Masking(unit=unit, **options))  # type: ignore[arg-type]


def streams(seed: int = 0, sample: int = 0, epoch: int = 0) -> randomness.Streams:
    """What one sample draws from."""
    return randomness.Streams(seed, "mask", epoch, np.array([sample]))


def hide(by: Masker, ids: np.ndarray, draws: randomness.Streams, starts: np.ndarray | None = None) -> Masked:
    """One sequence by itself."""
    return by.mask(ids, np.array([0, len(ids)]), draws, starts)


def sequence(length: int, seed: int = 0) -> np.ndarray:
    """[CLS] A [SEP] B [SEP] with two halves of ordinary tokens."""
    middle = np.random.default_rng(seed).integers(5, VOCABULARY, size=length - 3)
    return np.concatenate([[CLS], middle[: length // 2], [SEP], middle[length // 2 :], [SEP]]).astype(np.int64)


def running(word_lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One text of words of so many pieces, and where they start."""
    starts = np.concatenate([[True], *(np.arange(length) == 0 for length in word_lengths), [True]])
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, size=len(starts))
    tokens[0], tokens[-1] = CLS, SEP
    return tokens, starts


def words_of(token_ids: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    """The places of each word that can be hidden: the plain reading, a token at a time."""
    words: list[list[int]] = []
    is_open = False
    for place, (token, start) in enumerate(zip(token_ids.tolist(), starts.tolist(), strict=True)):
        if token in (CLS, SEP):
            is_open = False
            continue
        if start or not is_open:
            words.append([])
        is_open = True
        if token != UNK:
            words[-1].append(place)
    return [word for word in words if word]


def hidden_runs(positions: np.ndarray) -> list[int]:
    """The lengths of the runs of neighbouring places."""
    return [len(part) for part in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)]


# Every unit


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """One or two texts of words of 1 to 5 pieces, unknown tokens here and there, cut anywhere."""
    tokens, starts = [CLS], [True]
    for _ in range(draw(st.integers(1, 2))):
        for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=40)):
            tokens += draw(st.lists(st.sampled_from([UNK, 5, 6, 7, 8, 9]), min_size=length, max_size=length))
            starts += [True] + [False] * (length - 1)
        tokens.append(SEP)
        starts.append(True)
    # A text may have lost its first tokens, and begin inside a word; what [SEP] says does not matter.
    starts[1], starts[-1] = draw(st.booleans()), draw(st.booleans())
    return np.array(tokens), np.array(starts)


@given(
    sequences(),
    st.sampled_from(UNITS),
    st.sampled_from(["exact", "bernoulli"]),
    st.sampled_from([0.05, 0.15, 0.4]),
    st.sampled_from([None, 3, 20]),
    st.integers(0, 2**31),
)
@settings(max_examples=300)
def test_what_holds_for_every_unit(
    given: tuple[np.ndarray, np.ndarray], unit: MaskUnit, count: str, probability: float, bound: int | None, seed: int
) -> None:
    ids, starts = given
    by = masker(unit, count=count, probability=probability, max_predictions=bound)
    masked = hide(by, ids, streams(seed), starts)
    np.testing.assert_array_equal(ids, given[0])
    assert (np.diff(masked.positions) > 0).all()
    assert not np.isin(ids[masked.positions], [CLS, SEP, UNK]).any()
    np.testing.assert_array_equal(masked.labels, ids[masked.positions])
    untouched = np.setdiff1d(np.arange(len(ids)), masked.positions)
    np.testing.assert_array_equal(masked.token_ids[untouched], ids[untouched])

    budget = max(1, round(len(ids) * probability)) if count == "exact" else len(ids)
    budget = min(budget, bound or budget)
    num_hidden, num_candidates = len(masked.positions), int((ids > 4).sum())
    assert num_hidden <= budget
    if count == "exact":
        assert num_hidden > 0 or num_candidates == 0
    if unit == "piece":
        assert count == "bernoulli" or num_hidden == min(budget, num_candidates)
        return
    hidden = set(masked.positions.tolist())
    words = words_of(ids, starts)
    touched = [word for word in words if hidden & set(word)]
    if sum(map(len, touched)) != num_hidden:  # a word is hidden in part
        assert len(touched) == 1 and num_hidden == budget
        assert unit != "word" or count == "bernoulli" or min(map(len, words)) > budget
    elif unit == "word" and count == "exact":
        others = [len(word) for word in words if word not in touched]
        assert min(others, default=budget + 1) > budget - num_hidden, "another word would have fitted"


@given(sequences(), st.integers(0, 2**31), st.sampled_from([0.15, 0.4]))
@settings(max_examples=100)
def test_whole_words_are_chosen_as_in_google_research_bert(
    given: tuple[np.ndarray, np.ndarray], seed: int, probability: float
) -> None:
    """`create_masked_lm_predictions` on the words in the same order, that of their first pieces' draws."""
    ids, starts = given
    words = words_of(ids, starts)
    budget = max(1, round(len(ids) * probability))
    chosen: list[int] = []
    draws = streams(seed).grid(len(ids))[0] >> np.uint64(20)
    for word in sorted(words, key=lambda word: int(draws[word[0]])):
        if len(chosen) >= budget:
            break
        if len(chosen) + len(word) > budget:
            continue
        chosen += word
    assume(chosen)
    masked = hide(masker("word", probability=probability), ids, streams(seed), starts)
    assert masked.positions.tolist() == sorted(chosen)


@given(
    st.lists(sequences(), min_size=1, max_size=5),
    st.sampled_from(UNITS),
    st.integers(0, 2**31),
    st.sampled_from(["exact", "bernoulli"]),
    st.sampled_from([0.05, 0.15, 0.4]),
    st.sampled_from([None, 3]),
    st.booleans(),
)
def test_a_batch_is_masked_as_a_straight_reading_of_the_rules_says(
    given: list[tuple[np.ndarray, np.ndarray]],
    unit: MaskUnit,
    seed: int,
    count: str,
    probability: float,
    bound: int | None,
    unk: bool,
) -> None:
    """A sequence, a unit, a token at a time, from the same draws."""
    ids, starts = (np.concatenate(parts) for parts in zip(*given, strict=True))
    offsets = np.cumsum([0, *(len(one) for one, _ in given)])
    draws = randomness.Streams(seed, "mask", 0, np.arange(len(given)) * 7)
    by = masker(unit, count=count, probability=probability, max_predictions=bound, mask_unknown=unk)
    masked = by.mask(ids, offsets, draws, starts)
    shown, positions = ids.tolist(), []
    for row, (one, one_starts) in enumerate(given):
        places = np.arange(len(one))
        table = [draws.at(np.full(len(one), row), places + (use << 32)).tolist() for use in range(5)]

        def draw(use: int, place: int, table: list[list[int]] = table) -> int:
            return table[use][place]

        is_exact = count == "exact"
        budget = min(max(1, round(len(one) * probability)) if is_exact else len(one), bound or len(one))
        units = [
            words
            for words in reading_of_units(one, one_starts, unit, unk, draw)
            if is_exact or draw(0, words[0][0]) < probability * 2**64
        ]
        units.sort(key=lambda words: draw(0, words[0][0]) >> 20)
        hidden: dict[int, int] = {}  # each with the place that has its fate
        for words in units:
            for word in words:
                if len(hidden) + len(word) > budget:
                    break
                hidden |= {place: words[0][0] if unit == "span" else place for place in word}
        if units and not hidden:
            pieces = sorted(units[0][0], key=lambda place: draw(4, place))
            hidden = {place: place for place in pieces[:budget]}
        for place, fate in sorted(hidden.items()):
            positions.append(int(offsets[row]) + place)
            if draw(1, fate) < 0.8 * 2**64:
                shown[positions[-1]] = MASK
            elif draw(1, fate) < 0.9 * 2**64:
                shown[positions[-1]] = 5 + draw(2, place) * (VOCABULARY - 5) // 2**64
    assert masked.positions.tolist() == positions
    assert masked.token_ids.tolist() == shown
    assert masked.labels.tolist() == ids[positions].tolist()


def reading_of_units(
    ids: np.ndarray, starts: np.ndarray, unit: MaskUnit, unk: bool, draw: Callable[[int, int], int]
) -> list[list[list[int]]]:
    """The units of a sequence, as lists of words, which are lists of places."""
    by_number: dict[int, list[int]] = {}
    number, after_special = 0, False
    for place, (token, is_start) in enumerate(zip(ids.tolist(), starts.tolist(), strict=True)):
        is_special = token in (CLS, SEP)
        number += is_start or is_special or after_special or unit == "piece"
        after_special = is_special
        if not is_special and (token != UNK or unk):
            by_number.setdefault(number, []).append(place)
    if unit in ("piece", "word"):
        return [[word] for word in by_number.values()]
    shares = [0.8**n for n in range(10)] if unit == "span" else [1 / n for n in (1, 2, 3)]
    units: list[list[list[int]]] = []
    run: list[list[int]] = []  # words that follow each other
    for number, word in by_number.items():
        run.append(word)
        if number + 1 not in by_number:
            rest = list(run)
            for first in run:  # one draw for each word there is, used in turn as long as words are left
                if rest:
                    left = draw(3, first[0]) / 2**64 * sum(shares)
                    length = next(n for n in range(1, 11) if left < sum(shares[:n]) or n == len(shares))
                    units.append(rest[:length])
                    rest = rest[length:]
            run = []
    return units


class SameForAll:
    """Draws that are all alike."""

    def grid(self, num_draws: int) -> np.ndarray:
        return np.full((2, num_draws), 2**63, dtype=np.uint64)

    def at(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return np.full(len(rows), 2**63, dtype=np.uint64)


def test_equal_draws_hide_no_token_too_many() -> None:
    ids = np.tile(sequence(40), 2)
    masked = masker().mask(ids, np.array([0, 40, 80]), SameForAll())  # type: ignore[arg-type]
    assert masked.positions.tolist() == [1, 2, 3, 4, 5, 6, 41, 42, 43, 44, 45, 46]


@pytest.mark.parametrize("unit", UNITS)
def test_words_longer_than_the_budget_are_hidden_in_part(unit: MaskUnit) -> None:
    ids, starts = running([12, 9])
    seen = set()
    for sample in range(200):
        masked = hide(masker(unit, probability=0.1), ids, streams(0, sample), starts)
        assert len(masked.positions) == 2
        seen |= set(masked.positions.tolist())
        assert unit == "piece" or len({int(place > 12) for place in masked.positions}) == 1
    assert seen == set(range(1, 22)), "any piece of any word"


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
def test_units_end_at_special_tokens_and_unknown_words(unit: MaskUnit) -> None:
    """Two words are hidden as often together as two independent draws are, unless a unit may hold both."""

    def share_of_both(between: int, follows: bool, **options: object) -> float:
        ids, starts = np.array([CLS, 7, between, 8, SEP]), np.array([True, True, follows, follows, True])
        rare = masker(unit, count="bernoulli", probability=0.3, **options)
        samples = (hide(rare, ids, streams(0, sample), starts) for sample in range(1000))
        return float(np.mean([np.isin([1, 3], masked.positions).all() for masked in samples]))

    # The borders of a text part words, also where they are not marked as such.
    for between, follows in ((SEP, False), (SEP, True), (UNK, True)):
        assert share_of_both(between, follows) == pytest.approx(0.09, abs=0.035)
    assert share_of_both(UNK, False) == pytest.approx(0.3, abs=0.05), "one word with an unknown piece"
    if unit != "word":
        assert share_of_both(UNK, True, mask_unknown=True) > 0.12


def test_thirty_tokens_hide_four_as_python_3_rounds() -> None:
    for unit in UNITS:
        masked = hide(masker(unit), sequence(30), streams(), np.ones(30, dtype=bool))
        assert len(masked.positions) == 4


def test_masks_are_new_in_every_epoch_and_the_same_when_asked_again() -> None:
    ids, starts = sequence(128), np.ones(128, dtype=bool)
    for unit in UNITS:
        first, second, again = (hide(masker(unit), ids, streams(0, 7, epoch), starts).positions for epoch in (0, 1, 0))
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, again)


# What is shown


@pytest.mark.parametrize("random_specials", [False, True])
@pytest.mark.parametrize("unit", ["piece", "word", "ngram"])
def test_eighty_ten_ten(unit: MaskUnit, random_specials: bool) -> None:
    """Drawn for each piece, also where whole words are hidden."""
    ids = sequence(512)
    starts = np.arange(512) % 2 == 0
    shown, labels, positions = [], [], []
    for sample in range(400):
        masked = hide(masker(unit, random_specials=random_specials), ids, streams(1, sample), starts)
        shown.append(masked.token_ids[masked.positions])
        labels.append(masked.labels)
        positions.append(masked.positions)
    shown_ids, label_ids = np.concatenate(shown), np.concatenate(labels)
    is_mask, is_same = shown_ids == MASK, shown_ids == label_ids
    observed = [is_mask.sum(), is_same.sum(), (~is_mask & ~is_same).sum()]
    # A random token is now and then the original, or (when specials are allowed) [MASK] itself.
    size = VOCABULARY if random_specials else VOCABULARY - 5
    stray = 1 / size
    expected = np.array(
        [0.8 + 0.1 * stray * random_specials, 0.1 + 0.1 * stray, 0.1 * (1 - stray * (1 + random_specials))]
    )
    assert stats.chisquare(observed, expected * sum(observed)).pvalue > 1e-4
    drawn = shown_ids[~is_mask & ~is_same]
    assert (drawn < 5).any() == random_specials
    counts = np.bincount(np.concatenate(positions), minlength=512)
    assert counts[np.isin(ids, [CLS, SEP])].sum() == 0
    if unit == "piece":
        assert stats.chisquare(counts[~np.isin(ids, [CLS, SEP])]).pvalue > 1e-4, "every place equally often"
    else:
        pairs = (is_mask[:-1] != is_mask[1:])[np.diff(np.concatenate(positions)) == 1]
        assert 0.2 < pairs.mean() < 0.4, "neighbours differ as independent draws do: 2 x 0.8 x 0.2"


def test_a_span_has_one_fate() -> None:
    """Texts of three tokens, which a special token parts, so that what is hidden together is known."""
    ids = np.tile([SEP, 0, 0, 0], 3000)
    ids[ids == 0] = np.random.default_rng(0).integers(5, VOCABULARY, size=9000)
    starts = np.tile([True, True, False, False], 3000)
    masked = hide(masker("span", probability=0.5), ids, streams(), starts)
    shown, labels = masked.token_ids[masked.positions].reshape(-1, 3), masked.labels.reshape(-1, 3)
    fates = np.stack([(shown == MASK).all(1), (shown == labels).all(1), ((shown != MASK) & (shown != labels)).all(1)])
    # A random token is the original once in a thousand times.
    assert (fates.sum(0) == 1).mean() > 0.995
    assert stats.chisquare(fates.sum(1), np.array([0.8, 0.1, 0.1]) * fates.sum()).pvalue > 1e-3
    drawn = shown[fates[2]]
    assert (drawn[:, 0] != drawn[:, 1]).mean() > 0.95, "a random token for each piece"


# How many, and how long


@pytest.mark.parametrize("unit", UNITS)
def test_bernoulli_hides_every_place_equally_often_and_may_hide_nothing(unit: MaskUnit) -> None:
    ids, starts = running([1, 2, 1, 1, 3, 1, 1, 2, 1, 1])
    num_samples = 2000
    offsets = np.arange(num_samples + 1) * len(ids)
    draws = randomness.Streams(0, "mask", 0, np.arange(num_samples))
    by = masker(unit, count="bernoulli")
    masked = by.mask(np.tile(ids, num_samples), offsets, draws, np.tile(starts, num_samples))
    hidden = np.bincount(masked.positions % len(ids), minlength=len(ids))
    counts = np.bincount(masked.positions // len(ids), minlength=num_samples)
    deviation = np.sqrt(0.15 * 0.85 / num_samples)
    assert np.abs(hidden[1:-1] / num_samples - 0.15).max() < 4 * deviation
    assert hidden[0] == hidden[-1] == 0
    assert 0 in counts


@pytest.mark.parametrize("unit", UNITS)
def test_the_budget_is_used_up_where_words_are_short(unit: MaskUnit) -> None:
    for seed in range(100):
        ids = sequence(200, seed)
        starts = np.random.default_rng(seed).random(200) < 0.7
        masked = hide(masker(unit), ids, streams(seed), starts)
        assert len(masked.positions) == 30


def lengths_in_words(unit: MaskUnit) -> Iterator[int]:
    """Lengths of hidden runs, so few in so long a text of two-piece words that they hardly ever touch."""
    ids, starts = running([2] * 50_000)
    rare = masker(unit, count="bernoulli", probability=1e-3)
    for sample in range(120):
        masked = hide(rare, ids, streams(2, sample), starts)
        for length in hidden_runs(masked.positions):
            assert length % 2 == 0, "whole words"
            yield length // 2


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        # Joshi et al. 2020: geometric with p = 0.2, at most 10, mean 3.8. Lan et al. 2019: p(n) = (1/n) / sum (1/k).
        ("span", np.array([0.2 * 0.8 ** (n - 1) for n in range(1, 11)]) / (1 - 0.8**10)),
        ("ngram", np.array([6, 3, 2]) / 11),
        ("word", np.ones(1)),
    ],
)
def test_lengths_are_those_of_the_papers(unit: MaskUnit, expected: np.ndarray) -> None:
    lengths = np.array(list(lengths_in_words(unit)))
    whole = lengths[lengths <= len(expected)]
    assert len(whole) > 0.99 * len(lengths) > 1000
    observed = np.bincount(whole - 1, minlength=len(expected))
    assert len(expected) == 1 or stats.chisquare(observed, expected * len(whole)).pvalue > 1e-3
    if unit == "span":
        assert (expected * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)
        assert whole.mean() == pytest.approx(3.8, abs=0.15)


def test_what_is_refused() -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        Masking(probability=1.5)
    with pytest.raises(SettingsError, match='Did you mean "ngram"'):
        Masking(unit="ngrams")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="word_starts"):
        hide(masker("word"), sequence(20), streams())


# From text to masks, for every kind of tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of made-up words and full stops; most words are rare, so that they have many pieces."""
    draw = plain_random.Random(0)
    words = [
        "".join(draw.choice("aeiou") + draw.choice("bdgklmnprst") for _ in range(draw.randint(1, 5)))
        for _ in range(400)
    ]
    documents = [
        "\n".join(" ".join(draw.choices(words, k=draw.randint(3, 12))).capitalize() + "." for _ in range(8))
        for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("source") / "documents.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def store(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text by each kind of tokenizer."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    train_tokenizer([str(source)], folder / "tokenizer", kind=kind, vocab_size=330)
    build_corpus(
        [str(source)],
        folder / "tokenizer",
        folder / "store",
        document_separator="blank-lines",
        heldout_share=0.0,
        num_workers=1,
    )
    return folder / "store"


def words_as_read(store: Path, source: Path) -> tuple[np.ndarray, np.ndarray]:
    """For each token of a store, its id and the number of the word it lies in, read off the text by offsets."""
    tokenizer = load_tokenizer(store / "tokenizer")
    ids, word_of, num_words = [], [], 0
    for document in iter_documents([str(source)], document_separator="blank-lines"):
        for sentence in split_sentences(document.text):
            text = sentence.strip()
            spans = [match.span() for match in re.finditer(r"\w+|\.", text)]
            encoding = tokenizer.encode(text)
            for token, (start, end) in zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True):
                (word,) = (number for number, span in enumerate(spans) if span[0] <= start and end <= span[1])
                ids.append(token)
                word_of.append(num_words + word)
            num_words += len(spans)
    return np.array(ids), np.array(word_of)


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
@pytest.mark.parametrize("mode", ["clean", "original"])
def test_masks_are_whole_words_of_the_text(store: Path, source: Path, mode: str, unit: MaskUnit) -> None:
    corpus, tokenizer = open_corpus(store), load_tokenizer(store / "tokenizer")
    ids, word_of = words_as_read(store, source)
    np.testing.assert_array_equal(ids, np.concatenate(corpus.shards()))
    assert len(ids) > 1.5 * len(np.unique(word_of)), "most words have several pieces"
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=64,
        mode=mode,  # type: ignore[arg-type]
        hiding=Masker(tokenizer, Masking(unit=unit)),
        short_sequence_probability=0.1,
        seed=0,
    )
    num_hidden = num_tokens = num_joined = 0
    indices = np.arange(examples.num_examples(0))
    for example, cut in zip(examples.take(indices, 0), examples.pairs.cuts(indices, 0), strict=True):
        masked = example.masked
        first = word_of[cut.first_start : cut.first_end]
        second = word_of[:0] if cut.label == NO_PAIR else word_of[cut.second_start : cut.second_end]
        # Numbers of their own for the special tokens, and others for the second text: it may be in the same word.
        words = np.concatenate([[-1], first, [-2], second + len(ids), [-3]][: 5 if len(second) else 3])
        is_hidden = np.isin(np.arange(len(words)), masked.positions)
        hidden_words = set(words[is_hidden].tolist())
        assert min(hidden_words) >= 0
        if not np.array_equal(is_hidden, np.isin(words, list(hidden_words))):
            assert len(hidden_words) == 1, "only where no word was short enough"
            assert is_hidden.sum() == max(1, round(len(words) * 0.15))
        num_hidden += int(is_hidden.sum())
        num_tokens += len(words)
        num_joined += sum(a + 1 == b for a, b in itertools.pairwise(sorted(hidden_words)))
    assert num_hidden / num_tokens == pytest.approx(0.15, abs=0.01)
    assert num_joined > 0


def test_pieces_need_no_word_starts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, tokenizer = open_corpus(store), load_tokenizer(store / "tokenizer")
    monkeypatch.setattr(type(corpus), "word_starts_of", None)
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=32,
        mode="clean",
        hiding=Masker(tokenizer, Masking()),
        short_sequence_probability=0.0,
        seed=0,
    )
    assert len(examples.take([0], 0).masked.positions) > 0


def test_the_setting_reaches_samples_and_training(store: Path, tmp_path: Path) -> None:
    corpus, tokenizer = open_corpus(store), load_tokenizer(store / "tokenizer")
    shown = [
        list(describe_samples(corpus, tokenizer, number=3, max_length=64, mode="clean", seed=0, mask_unit=unit))
        for unit in UNITS
    ]
    assert len({tuple(texts) for texts in shown}) == 4
    assert all(len(set(texts)) == 3 for texts in shown)
    run = PretrainSettings(
        corpus=store, out=tmp_path / "run", size="tiny", budget="2 steps", max_length=32, batch_size=4, mask_unit="span"
    )
    assert pretrain(run).training.step == 2
    with pytest.raises(TrainingError, match="mask_unit was span and is now word"):
        pretrain(replace(run, mask_unit="word", resume=True))
