"""Where samples lie in a token store: ranges of tokens, how they are cut to a length, and what long sentences show.

Shape letter: S samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bertsmith import randomness

NO_PAIR = -1
"""The label of samples that carry none."""
NUM_PAIR_DRAWS = 5
"""Draws of a sample that decide its pair: short or not, how short, where A ends, which label, where a random B starts.
Those behind them are coins, which say what an over-long pair loses."""


@dataclass(frozen=True)
class Cut:
    """Token ranges of the store: A is [first_start, first_end), B likewise; B is empty for `NO_PAIR`."""

    first_start: int
    first_end: int
    second_start: int
    second_end: int
    label: int


@dataclass(frozen=True)
class Cuts:
    """A `Cut` for each of S samples, as int64 [S] arrays."""

    first_start: np.ndarray
    first_end: np.ndarray
    second_start: np.ndarray
    second_end: np.ndarray
    label: np.ndarray

    def __iter__(self) -> Iterator[Cut]:
        arrays = (self.first_start, self.first_end, self.second_start, self.second_end, self.label)
        return map(Cut, *(array.tolist() for array in arrays))


@lru_cache(maxsize=16)
def epoch_shift(seed: int, epoch: int, purpose: str = "shift") -> float:
    """By which part of its stride an epoch's samples begin later, in [0, 1): kept, because every batch asks."""
    return float(randomness.generator(seed, purpose, epoch).random())


@dataclass(frozen=True)
class Ranges:
    """S ranges of tokens, as int64 [S] arrays."""

    start: np.ndarray
    end: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S]."""
        lengths: np.ndarray = self.end - self.start
        return lengths

    def head(self, lengths: np.ndarray) -> "Ranges":
        """The ranges' first tokens."""
        return Ranges(self.start, self.start + lengths)

    def where(self, condition: np.ndarray, other: "Ranges") -> "Ranges":
        """These ranges where it holds, others where not."""
        return Ranges(np.where(condition, self.start, other.start), np.where(condition, self.end, other.end))


def cuts_of(first: Ranges, second: Ranges, label: np.ndarray) -> Cuts:
    """Samples of two texts."""
    return Cuts(first.start, first.end, second.start, second.end, label)


def truncate_pairs(lengths_a: np.ndarray, lengths_b: np.ndarray, rooms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`truncate_pair` for int64 [S] lengths and rooms."""
    excess = np.maximum(lengths_a + lengths_b - rooms, 0)
    from_longer = np.minimum(excess, np.abs(lengths_a - lengths_b))
    rest = excess - from_longer
    is_longer = lengths_a > lengths_b
    kept_a = lengths_a - np.where(is_longer, from_longer, 0) - rest // 2
    return kept_a, lengths_b - np.where(is_longer, 0, from_longer) - (rest - rest // 2)


def cut_at_random_ends(
    streams: randomness.Streams, first: Ranges, second: Ranges, rooms: np.ndarray
) -> tuple[Ranges, Ranges]:
    """One token at a time from the longer range, from its front or back with equal chance: a binomial draw."""
    lengths = truncate_pairs(first.lengths, second.lengths, rooms)
    cut = []
    for side, (ranges, kept) in enumerate(zip((first, second), lengths, strict=True)):
        start = ranges.start + _heads(streams, ranges.lengths - kept, side)
        cut.append(Ranges(start, start + kept))
    return cut[0], cut[1]


def _heads(streams: randomness.Streams, coins: np.ndarray, side: int) -> np.ndarray:
    """How many of so many coins [S] show heads: the ones among as many random bits, int64 [S]."""
    words = (coins + 63) // 64
    rows = np.repeat(np.arange(len(coins)), words)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(words) - words, words)
    bits = streams.at(rows, NUM_PAIR_DRAWS + 2 * place + side)
    bits >>= (64 - np.minimum(coins[rows] - 64 * place, 64)).astype(np.uint64)
    heads: np.ndarray = np.bincount(rows, np.bitwise_count(bits), minlength=len(coins)).astype(np.int64)
    return heads


def stretch_starts(
    anchors: np.ndarray, sentences: Ranges, document_ends: np.ndarray, rooms: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Where running text of `rooms` tokens begins that shows the tokens `anchors`, int64 [S].

    It begins with the sentence that holds the anchor; where that is longer than the room, with one of the stretches
    that the sentence is cut into, so that all of them are shown, and not its head alone. Where these part changes with
    the epoch.

    Args:
        sentences: those that hold the anchors.
        document_ends: the tokens behind their documents, before which the text stays full.
    """
    is_long = sentences.lengths > rooms
    if not is_long.any():
        return sentences.start
    phase = (epoch_shift(seed, epoch, "stretch") * rooms).astype(np.int64)
    starts = sentences.start + phase + (anchors - sentences.start - phase) // rooms * rooms
    starts = np.maximum(np.minimum(starts, document_ends - rooms), sentences.start)
    return np.where(is_long, starts, sentences.start)
