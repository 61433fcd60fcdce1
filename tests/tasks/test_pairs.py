"""Pairs: every rule of the two data modes, on a store of known sentences."""

import bisect
import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier

from bertsmith import randomness
from bertsmith.tasks.cuts import NO_PAIR, Cut, epoch_shift, truncate_pairs
from bertsmith.tasks.full_sentences import FullSentences
from bertsmith.tasks.pairs import (
    IN_ORDER,
    IS_NEXT,
    IS_RANDOM,
    IS_SWAPPED,
    CleanPairs,
    OriginalPairs,
    PairClassification,
)
from bertsmith.text.windows import truncate_pair

MAX_LENGTH = 64
ROOM = MAX_LENGTH - 3


@dataclass
class Store:
    """The part of a corpus that pairs look at."""

    sentence_offsets: np.ndarray
    document_offsets: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.sentence_offsets[-1])

    def document_of(self, token: int) -> int:
        sentence = np.searchsorted(self.sentence_offsets, token, side="right") - 1
        return int(np.searchsorted(self.document_offsets, sentence, side="right") - 1)


def make_store(sentences_per_document: list[int], seed: int = 0, longest: int = 40) -> Store:
    draws = np.random.default_rng(seed)
    return store_of(sentences_per_document, draws.integers(1, longest, size=sum(sentences_per_document)))


def store_of(sentences_per_document: list[int], lengths: np.ndarray) -> Store:
    return Store(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([[0], np.cumsum(sentences_per_document)]).astype(np.int64),
    )


@pytest.fixture(scope="module")
def store() -> Store:
    return make_store([1, 2, 3, 50, 1, 17, 40, 8, 5, 120] * 8)


def cuts_of(pairs: CleanPairs | OriginalPairs, epoch: int) -> list[Cut]:
    return list(pairs.cuts(np.arange(pairs.num_samples(epoch)), epoch))


@pytest.mark.parametrize("kind", [CleanPairs, OriginalPairs])
def test_samples_fit_and_are_a_pure_function(store: Store, kind: type[CleanPairs] | type[OriginalPairs]) -> None:
    pairs, again = kind(store, MAX_LENGTH, 0.1, 5), kind(store, MAX_LENGTH, 0.1, 5)
    cuts = cuts_of(pairs, 1)
    for cut in cuts:
        assert 0 < (cut.first_end - cut.first_start)
        assert (cut.first_end - cut.first_start) + (cut.second_end - cut.second_start) <= ROOM + 1
        assert store.document_of(cut.first_start) == store.document_of(cut.first_end - 1)
    # Asked for backwards and by another instance, the samples are the same.
    alone = [again.cuts(np.array([index]), 1) for index in reversed(range(len(cuts)))]
    assert [cut for cuts in alone for cut in cuts] == cuts[::-1]
    assert cuts_of(pairs, 2)[: len(cuts)] != cuts
    assert cuts_of(kind(store, MAX_LENGTH, 0.1, 6), 1)[: len(cuts)] != cuts


def test_clean_random_never_comes_from_the_same_document_and_is_one_half(store: Store) -> None:
    pairs = CleanPairs(store, MAX_LENGTH, 0.1, 0)
    cuts = [cut for epoch in range(6) for cut in cuts_of(pairs, epoch)]
    paired = [cut for cut in cuts if cut.label != NO_PAIR]
    for cut in paired:
        same_document = store.document_of(cut.first_start) == store.document_of(cut.second_start)
        assert same_document == (cut.label == IS_NEXT)
        if cut.label == IS_NEXT:
            assert cut.second_start == cut.first_end, "the border between A and B is whole"
        assert cut.first_end in store.sentence_offsets and cut.second_start in store.sentence_offsets
        assert cut.second_end > cut.second_start
    num_random = sum(cut.label == IS_RANDOM for cut in paired)
    assert stats.binomtest(num_random, len(paired), 0.5).pvalue > 1e-4
    for cut in cuts:
        document = store.document_of(cut.first_start)
        one_sentence = store.document_offsets[document + 1] - store.document_offsets[document] == 1
        assert (cut.label == NO_PAIR) == one_sentence


def test_a_random_b_starts_with_any_sentence_of_the_other_documents_equally_often() -> None:
    """Not with a document evenly: the sentences of short ones would come too often."""
    sizes = [2, 3, 7, 20, 4]
    store = make_store([*sizes])
    pairs = CleanPairs(store, MAX_LENGTH, 0.1, 0)
    starts = np.zeros((len(sizes), sum(sizes)))
    for epoch in range(3000):
        for cut in cuts_of(pairs, epoch):
            if cut.label == IS_RANDOM:
                sentence = np.searchsorted(store.sentence_offsets, cut.second_start)
                starts[store.document_of(cut.first_start), sentence] += 1
    for document, counts in enumerate(starts):
        own = slice(store.document_offsets[document], store.document_offsets[document + 1])
        assert counts[own].sum() == 0
        assert stats.chisquare(np.delete(counts, own)).pvalue > 1e-4


def clean_reading(store: Store, index: int, epoch: int, seed: int, short: float, order: bool) -> Cut:
    """The rules of `CleanPairs` for one sample, a number at a time, from the same draws."""
    sentences, documents = store.sentence_offsets.tolist(), store.document_offsets.tolist()
    streams = randomness.Streams(seed, "pair", epoch, np.array([index]))
    draws = streams.grid(5)[0].tolist()
    uniform = [(draw >> 11) / 2**53 for draw in draws]
    stride = (1.0 if order else 0.75) * ROOM * (1 - short / 2)
    anchor = int((index + epoch_shift(seed, epoch)) * stride) % sentences[-1]
    holder = start = bisect.bisect_right(sentences, anchor) - 1
    document = bisect.bisect_right(documents, start) - 1
    first_sentence, behind_last = documents[document], documents[document + 1]
    is_single = behind_last - first_sentence == 1
    target = 2 + int(uniform[1] * (ROOM - 1)) if uniform[0] < short else ROOM
    length = sentences[holder + 1] - sentences[holder]
    is_near_end = anchor >= sentences[holder + 1] - ROOM
    if is_single or (length > ROOM and not (is_near_end and draws[0] % 2 == 1)):
        room = 1 + (ROOM if is_single else target)
        begin, behind = sentences[holder], sentences[behind_last]
        if length > room:
            # The first stretch that holds the anchor, of those that begin at the phase of the epoch, or a room earlier.
            begin += int(epoch_shift(seed, epoch, "stretch") * room) - room
            while not begin <= anchor < begin + room:
                begin += room
            begin = max(min(begin, behind - room), sentences[holder])
        end = min(begin + room, behind)
        return Cut(begin, end, end, end, NO_PAIR)
    start = min(start, behind_last - 2)
    end = start + 2
    while end < behind_last and sentences[end] - sentences[start] < target:
        end += 1
    if order and uniform[4] >= 0.5:
        end = max(holder + 1, first_sentence + 2)
        start = end - 2
        while start > first_sentence and sentences[end] - sentences[start] < target:
            start -= 1
    middle = start + 1 + int(uniform[2] * (end - start - 1))
    first, second = list(range(sentences[start], sentences[middle])), list(range(sentences[middle], sentences[end]))
    if order:
        label = IS_SWAPPED if uniform[3] >= 0.5 else IN_ORDER
        ends = [second, first] if label == IS_SWAPPED else [first, second]
        sizes = truncate_pair(len(ends[0]), len(ends[1]), target)
        for side, (tokens, size) in enumerate(zip(ends, sizes, strict=True)):
            for number in range(len(tokens) - size):
                word = int(streams.at(np.array([0]), np.array([5 + 2 * (number // 64) + side]))[0])
                # The first coins of the last word are its highest bits.
                tokens.pop(0 if word >> 63 - number % 64 & 1 else -1)
        first, second = ends
        return Cut(first[0], first[-1] + 1, second[0], second[-1] + 1, label)
    label = IS_NEXT
    others = [one for one in range(len(sentences) - 1) if not first_sentence <= one < behind_last]
    if uniform[3] >= 0.5 and others:
        label = IS_RANDOM
        start = others[int(uniform[4] * len(others))]
        end_of_document = documents[bisect.bisect_right(documents, start)]
        end = start + 1
        while end < end_of_document and sentences[end] - sentences[start] < target - len(first):
            end += 1
        second = list(range(sentences[start], sentences[end]))
    first_length, second_length = truncate_pair(len(first), len(second), target)
    first, second = first[len(first) - first_length :], second[:second_length]
    return Cut(first[0], first[-1] + 1, second[0], second[0] + second_length, label)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("documents", [[1, 2, 3, 50, 1, 17, 1], [30], [2, 2], [1]])
@pytest.mark.parametrize("longest", [40, 90, 400])
def test_clean_agrees_with_a_straight_reading_of_its_rules(documents: list[int], order: bool, longest: int) -> None:
    for seed in range(3):
        store = make_store(documents, seed, longest)
        pairs = CleanPairs(store, MAX_LENGTH, 0.3, seed, sentence_order=order)
        for epoch in range(15 if longest == 40 else 3):
            expected = [clean_reading(store, i, epoch, seed, 0.3, order) for i in range(pairs.num_samples(epoch))]
            assert cuts_of(pairs, epoch) == expected


@given(st.lists(st.tuples(*[st.integers(0, 300)] * 3), min_size=1, max_size=20))
def test_pairs_are_truncated_as_one_is(sizes: list[tuple[int, int, int]]) -> None:
    lengths_a, lengths_b, rooms = np.array(sizes).T
    kept = zip(*(kept.tolist() for kept in truncate_pairs(lengths_a, lengths_b, rooms)), strict=True)
    assert list(kept) == [truncate_pair(*one) for one in sizes]


def test_clean_shows_every_document_in_proportion(store: Store) -> None:
    pairs = CleanPairs(store, MAX_LENGTH, 0.0, 3)
    seen = np.zeros(store.num_tokens)
    for epoch in range(40):
        for cut in cuts_of(pairs, epoch):
            seen[cut.first_start : cut.first_end] += 1
            seen[cut.second_start : cut.second_end] += 1
    assert (seen > 0).mean() > 0.999
    assert 0.8 < seen.mean() / 40 < 1.35, "about once an epoch"


def test_clean_short_share(store: Store) -> None:
    long_documents = make_store([400] * 6)
    plain = [
        c.first_end - c.first_start + c.second_end - c.second_start
        for c in cuts_of(CleanPairs(long_documents, MAX_LENGTH, 0.0, 0), 0)
    ]
    mixed = [
        c.first_end - c.first_start + c.second_end - c.second_start
        for c in cuts_of(CleanPairs(long_documents, MAX_LENGTH, 1.0, 0), 0)
    ]
    assert np.mean(np.array(plain) == ROOM) > 0.9
    assert abs(np.mean(mixed) - (2 + ROOM) / 2) < 6


def google_instances(
    store: Store, short: float, draws: random.Random, order: bool = False
) -> list[tuple[list[int], list[int], bool]]:
    """A straight reading of create_instances_from_document, with `order` that of google-research/albert.

    (places of the tokens of A, those of B, random or swapped).
    """
    documents = []
    for first, last in zip(store.document_offsets[:-1], store.document_offsets[1:], strict=True):
        offsets = store.sentence_offsets[first : last + 1].tolist()
        documents.append([list(range(a, b)) for a, b in itertools.pairwise(offsets)])
    instances = []
    for number, document in enumerate(documents):
        target = ROOM
        if draws.random() < short:
            target = draws.randint(2, ROOM)
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = draws.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = [t for s in chunk[:a_end] for t in s]
                b: list[int] = []
                is_random = len(chunk) == 1 or (not order and draws.random() < 0.5)
                is_swapped = order and not is_random and draws.random() < 0.5
                if is_random:
                    for _ in range(10):
                        other = draws.randint(0, len(documents) - 1)
                        if other != number:
                            break
                    start = draws.randint(0, len(documents[other]) - 1)
                    for j in range(start, len(documents[other])):
                        b.extend(documents[other][j])
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                else:
                    b = [t for s in chunk[a_end:] for t in s]
                    if is_swapped:
                        a, b = b, a
                while len(a) + len(b) > ROOM:
                    longer = a if len(a) > len(b) else b
                    del longer[0 if draws.random() < 0.5 else -1]
                instances.append((a, b, is_random or is_swapped))
                chunk = []
            i += 1
    return instances


@pytest.mark.parametrize("order", [False, True])
def test_original_agrees_with_a_straight_reading_of_the_rules(store: Store, order: bool) -> None:
    # Without short targets, whose one draw a document would make the samples of a document alike.
    pairs = OriginalPairs(store, MAX_LENGTH, 0.0, 0, sentence_order=order)
    ours = [cut for epoch in range(8) for cut in cuts_of(pairs, epoch)]
    draws = random.Random(12345)
    theirs = [one for _ in range(8) for one in google_instances(store, 0.0, draws, order)]
    assert len(ours) == pytest.approx(len(theirs), rel=0.03)
    starts = set(store.sentence_offsets.tolist())
    for label in (0, 1):
        samples = [cut for cut in ours if cut.label == label]
        read = [(a, b) for a, b, is_other in theirs if is_other == label]
        found = [(c.first_end - c.first_start, c.second_end - c.second_start) for c in samples]
        for side in (0, 1):
            lengths = [sizes[side] for sizes in found], [len(texts[side]) for texts in read]
            assert stats.ks_2samp(*lengths).pvalue > 1e-3
        # Which side is cut, and from which end; and which of both comes first in the document.
        for shape in (
            lambda a, b: a in starts,
            lambda a, b: b in starts,
            lambda a, b: a < b,
        ):
            counts = [sum(shape(c.first_start, c.second_start) for c in samples)]
            counts.append(sum(shape(a[0], b[0]) for a, b in read))
            table = [[counts[0], len(samples) - counts[0]], [counts[1], len(read) - counts[1]]]
            assert min(map(sum, zip(*table, strict=True))) == 0 or stats.chi2_contingency(table).pvalue > 1e-3
    shares = [[sum(c.label == 1 for c in ours), sum(c.label == 0 for c in ours)]]
    shares.append([sum(one[2] for one in theirs), sum(not one[2] for one in theirs)])
    assert stats.chi2_contingency(shares).pvalue > 1e-3
    assert shares[0][0] / len(ours) > 0.5, "one-sentence chunks force a random B"


def test_original_gives_back_unused_sentences_and_forces_random_b(store: Store) -> None:
    one_document = make_store([300])
    cuts = cuts_of(OriginalPairs(one_document, 512, 0.0, 0), 0)
    # One document only: B is drawn from it and still called random.
    assert any(cut.label == IS_RANDOM for cut in cuts)
    covered = np.zeros(one_document.num_tokens, dtype=bool)
    pairs = OriginalPairs(one_document, 512, 0.0, 0)
    for first_start, first_end, second_start, second_end, label in pairs._plan(0).tolist():  # before cutting
        covered[first_start:first_end] = True
        if label == IS_NEXT:
            covered[second_start:second_end] = True
    assert covered.all(), "what a random B left unused is used by the next sample"
    single = cuts_of(OriginalPairs(make_store([1] * 10), 64, 0.0, 0), 0)
    assert all(cut.label == IS_RANDOM for cut in single)


def test_original_draws_the_short_target_once_a_document(store: Store) -> None:
    long_documents = make_store([300] * 60)
    pairs = OriginalPairs(long_documents, MAX_LENGTH, 0.5, 1)
    by_document: dict[int, list[int]] = {}
    for cut in cuts_of(pairs, 0):
        length = cut.first_end - cut.first_start + cut.second_end - cut.second_start
        by_document.setdefault(long_documents.document_of(cut.first_start), []).append(length)
    # Without a short target nearly every sample of a long document is full; with one, few are.
    full_share = [np.mean(np.array(lengths) == ROOM) for lengths in by_document.values()]
    assert sum(share > 0.8 for share in full_share) == pytest.approx(30, abs=3 * math.sqrt(15))


def test_sentence_order_shows_neighbours_half_of_them_swapped(store: Store) -> None:
    pairs = CleanPairs(store, MAX_LENGTH, 0.1, 0, sentence_order=True)
    cuts = [cut for epoch in range(6) for cut in cuts_of(pairs, epoch) if cut.label != NO_PAIR]
    for cut in cuts:
        assert store.document_of(cut.first_start) == store.document_of(cut.second_start)
        assert (cut.first_start < cut.second_start) == (cut.label == IN_ORDER)
    swapped = [cut for cut in cuts if cut.label == IS_SWAPPED]
    assert stats.binomtest(len(swapped), len(cuts), 0.5).pvalue > 1e-4
    # Whichever stands first, its front may be cut away: a cut alone does not tell the order.
    starts = set(store.sentence_offsets.tolist())
    for label in (IN_ORDER, IS_SWAPPED):
        assert 0 < sum(cut.first_start not in starts for cut in cuts if cut.label == label)
    (cut,) = CleanPairs(make_store([30]), MAX_LENGTH, 0.1, 0, sentence_order=True).cuts(np.array([0]), 0)
    assert cut.label in (IN_ORDER, IS_SWAPPED)


@pytest.mark.parametrize(("order", "limit"), [(True, 0.54), (False, 0.56)])
def test_lengths_and_cuts_alone_do_not_tell_the_label(order: bool, limit: float) -> None:
    """A classifier that sees no token, only how long both texts are and where they are cut, must fail."""
    lengths = np.random.default_rng(0).geometric(1 / 20, size=80_000)
    sentences = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    store = Store(sentences, np.arange(0, 80_001, 400, dtype=np.int64))
    pairs = CleanPairs(store, MAX_LENGTH, 0.1, 0, sentence_order=order)  # type: ignore[arg-type]
    cuts = pairs.cuts(np.arange(0, pairs.num_samples(0), 2)[:14_000], 0)
    ends = np.stack([cuts.first_start, cuts.first_end, cuts.second_start, cuts.second_end])
    first, second = ends[1] - ends[0], ends[3] - ends[2]
    is_pair = cuts.label != NO_PAIR
    shape = np.stack([*np.isin(ends, sentences), first, second, first - second], axis=1)[is_pair]
    label = cuts.label[is_pair]
    classifier = HistGradientBoostingClassifier(random_state=0).fit(shape[:9000], label[:9000])
    assert len(label) > 12_000
    assert classifier.score(shape[9000:], label[9000:]) < limit  # standard error 0.009


@pytest.mark.parametrize("mode", ["nsp", "sop", "full-sentences", "doc-sentences"])
@pytest.mark.parametrize("length", [(1, 40), (35, 36), (61, 62), (62, 64), (100, 101), (1, 3000), (2000, 2001)])
def test_every_token_is_shown_sooner_or_later_however_long_sentences_are(length: tuple[int, int], mode: str) -> None:
    """Text without full stops has sentences of thousands of tokens, and no sample may show their heads alone."""
    documents = [1, 2, 3] if length[1] < 1000 else [1, 2]
    store = store_of(documents, np.random.default_rng(0).integers(*length, size=sum(documents)))
    kind: CleanPairs | FullSentences
    if mode in ("nsp", "sop"):
        kind = CleanPairs(store, MAX_LENGTH, 0.1, 0, sentence_order=mode == "sop")
    else:
        kind = FullSentences(store, MAX_LENGTH, 0, across_documents=mode == "full-sentences")
    steps = np.zeros(store.num_tokens + 1, dtype=np.int64)
    for epoch in range(300):
        cuts = kind.cuts(np.arange(kind.num_samples(epoch)), epoch)
        assert (cuts.first_end - cuts.first_start + cuts.second_end - cuts.second_start <= ROOM + 1).all()
        for starts, ends in ((cuts.first_start, cuts.first_end), (cuts.second_start, cuts.second_end)):
            np.add.at(steps, starts, 1)
            np.add.at(steps, ends, -1)
    times = np.cumsum(steps)[:-1]
    has_half = mode in ("nsp", "sop") and ROOM < 2 * length[0] and length[1] <= ROOM + 1
    # Beside another sentence that is longer than half a sample, one of these has only its half, as in original.
    assert (times > 0).mean() > 0.6 if has_half else times.all()
    if length[0] > 2 * ROOM:
        # All of a long sentence about as often, but for its ends.
        assert np.percentile(times, 1) > 0.5 * times.mean() and np.percentile(times, 99) < 2 * times.mean()


def test_next_sentence_loss_is_the_sum_over_labelled_pairs() -> None:
    objective = PairClassification("nsp")
    labels, count = objective.labels([IS_NEXT, NO_PAIR, IS_RANDOM])
    logits = torch.tensor([[2.0, -1.0], [0.3, 0.1], [0.5, 0.25]])
    expected = -(torch.log_softmax(logits[0], 0)[0] + torch.log_softmax(logits[2], 0)[1])
    assert count == 2
    torch.testing.assert_close(objective.loss(logits, labels), expected)
