"""Where documents end inside a sample; the cuts themselves are tested with the objectives that use them."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.tasks.full_sentences import document_ranges


class Counted(np.ndarray):
    """An array that knows how many of its elements were taken out."""

    taken = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        Counted.taken += np.size(found)
        return found


def corpus_of(documents: list[list[int]]) -> Any:
    """As a corpus whose documents have sentences of these lengths."""
    sentences = np.cumsum([0, *itertools.chain.from_iterable(documents)]).view(Counted)
    return SimpleNamespace(sentence_offsets=sentences, document_offsets=np.cumsum([0, *map(len, documents)]))


def ranges_of(corpus: Any, starts: list[int], ends: list[int]) -> list[list[tuple[int, int]]]:
    """The ranges of each sample."""
    found = document_ranges(corpus, np.array(starts), np.array(ends))
    pieces = iter(zip(found[0].tolist(), found[1].tolist(), strict=True))
    return [list(itertools.islice(pieces, count)) for count in found[2]]


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=8), st.data())
def test_ranges_of_documents(documents: list[list[int]], data: st.DataObject) -> None:
    ends = list(itertools.accumulate(map(sum, documents)))
    start = data.draw(st.integers(0, ends[-1] - 1))
    end = data.draw(st.integers(start + 1, ends[-1]))
    stops = [start, *(border for border in ends if start < border < end), end]
    assert ranges_of(corpus_of(documents), [start], [end]) == [list(itertools.pairwise(stops))]


def test_ranges_of_several_samples() -> None:
    corpus = corpus_of([[2, 3], [4], [1]])
    expected = [[(7, 9), (9, 10)], [(1, 3)], [(4, 5), (5, 9), (9, 10)], [(0, 5), (5, 6)]]
    assert ranges_of(corpus, [7, 1, 4, 0], [10, 3, 10, 6]) == expected


def test_only_the_documents_shown_are_looked_at() -> None:
    """Each sample asks: with millions of documents, copying where they begin would cost more than the sample."""
    corpus = corpus_of([[3, 2]] * 10_000)
    Counted.taken = 0
    assert ranges_of(corpus, [20_003], [20_012]) == [[(20_003, 20_005), (20_005, 20_010), (20_010, 20_012)]]
    assert Counted.taken == 2
