"""Texts with some of their words deleted, exchanged with their neighbours, or replaced: data from data.

Two of the four operations of Wei and Zou 2019 (EDA, arXiv 1901.11196, section 2), with a draw for every word in place
of a number of them a text. A word here is what a reader would call one: no tokenizer is asked.
"""

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Span = tuple[int, int]
"""Code points [start, end)."""

# Written without spaces, and most of them mean something alone: ideographs (as in `text/words.py`) and kana.
_CHARACTERS = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
)
_WORD = re.compile(f"[{_CHARACTERS}]|[^\\s{_CHARACTERS}]+")
_CHARACTER = re.compile(f"[{_CHARACTERS}]")
# Taken off at the ends of a run only: "don't" is one word, and so is one with vowel signs, which `\w` does not have.
_PUNCTUATION = "!\"#%&'()*,-./:;?@[\\]_{}¡§«¶·»¿،؛؟।॥…‐‑‒–—―‘’‚“”„‹›、。・〈〉《》「」『』【】〔〕！（），．：；？～"


@dataclass(frozen=True)
class Units:
    """The parts of a text that are moved as one: its words, in order and apart from each other.

    Those that are `fixed` are neither moved nor changed, nor is what stands inside them; what stands between units
    (white space, punctuation) keeps its place.
    """

    text: str
    spans: tuple[Span, ...]
    fixed: tuple[bool, ...]

    def word(self, unit: int) -> str:
        """What the text has there."""
        start, end = self.spans[unit]
        return self.text[start:end]


@dataclass(frozen=True)
class Edited:
    """A text after its change: which of its units are left, in their new order, and what they are now."""

    text: str
    units: tuple[int, ...]
    words: tuple[str, ...]
    starts: tuple[int, ...]
    """Where each of them begins, in code points of the new text."""


def text_units(text: str, kept: Sequence[Span] = ()) -> Units:
    """The words of running text, without punctuation at their ends; of Chinese and Japanese, the characters.

    Args:
        kept: spans of at least one code point that must come through unchanged. They are fixed units, with all of every
            word they share a character with; they may overlap.
    """
    found = [(start, end, False) for start, end in _words(text)] + [(start, end, True) for start, end in kept]
    merged: list[tuple[int, int, bool]] = []
    for start, end, is_fixed in sorted(found):
        if merged and start < merged[-1][1]:  # words share no character, so one of the two is kept
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), True)
        else:
            merged.append((start, end, is_fixed))
    return Units(text, tuple((start, end) for start, end, _ in merged), tuple(fixed for *_, fixed in merged))


def word_units(words: Sequence[str], fixed: Sequence[bool]) -> Units:
    """Words that someone else has split, with single spaces between them."""
    ends = np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1
    spans = tuple((end - len(word), end) for word, end in zip(words, ends.tolist(), strict=True))
    return Units(" ".join(words), spans, tuple(fixed))


def edit(
    units: Units, random: np.random.Generator, *, delete: float, swap: float, replaced: Mapping[int, str] | None = None
) -> Edited:
    """A text with words deleted and swapped at random, and some replaced by others.

    First neighbours change places, left to right, no word twice; then words are deleted, with the white space behind
    them. One is always left. The number of draws depends on the number of units alone.

    Args:
        delete: probability of each word that is not fixed, in [0, 1).
        swap: the same, of changing places with its right neighbour where that is not fixed either.
        replaced: words by the number of their unit, which must not be fixed.
    """
    order = _order(units.fixed, random, delete=delete, swap=swap)
    texts = [units.word(unit) for unit in range(len(order))]
    for replaced_unit, word in (replaced or {}).items():
        texts[replaced_unit] = word
    pieces = [units.text[: units.spans[0][0]] if units.spans else units.text]
    gaps = [units.text[end:start] for (_, end), (start, _) in pairwise(units.spans)]
    if units.spans:
        gaps.append(units.text[units.spans[-1][1] :])
    left: list[int] = []
    starts: list[int] = []
    length = len(pieces[0])
    for unit, gap in zip(order, gaps, strict=True):
        piece = gap.lstrip()
        if unit is not None:
            left.append(unit)
            starts.append(length)
            piece = texts[unit] + gap
        pieces.append(piece)
        length += len(piece)
    return Edited("".join(pieces), tuple(left), tuple(texts[unit] for unit in left), tuple(starts))


def moved(span: Span, units: Units, edited: Edited) -> Span:
    """Where a span now is that `text_units` was told to keep."""
    unit = bisect.bisect_right([start for start, _ in units.spans], span[0]) - 1
    shift = edited.starts[edited.units.index(unit)] - units.spans[unit][0]
    return span[0] + shift, span[1] + shift


def is_alike(word: str, other: str) -> bool:
    """Whether both are single words of one kind, so that either may stand between the other's neighbours."""
    return all(_words(one) == [(0, len(one))] for one in (word, other)) and (
        bool(_CHARACTER.match(word)) == bool(_CHARACTER.match(other))
    )


def _words(text: str) -> list[Span]:
    spans = []
    for match in _WORD.finditer(text):
        run = match.group()
        start = match.start() + len(run) - len(run.lstrip(_PUNCTUATION))
        end = match.start() + len(run.rstrip(_PUNCTUATION))
        if start < end:
            spans.append((start, end))
    return spans


def _order(fixed: Sequence[bool], random: np.random.Generator, *, delete: float, swap: float) -> list[int | None]:
    """Which unit stands in each place, None where there is none any more."""
    draws, is_fixed = random.random((2, len(fixed))), np.array(fixed, dtype=bool)
    order: list[int | None] = list(range(len(fixed)))
    place = 0
    while place + 1 < len(order):
        if draws[0, place] < swap and not (is_fixed[place] or is_fixed[place + 1]):
            order[place], order[place + 1] = order[place + 1], order[place]
            place += 1
        place += 1
    is_deleted = (draws[1] < delete) & ~is_fixed
    if len(order) and is_deleted.all():
        is_deleted[draws[1].argmax()] = False
    return [None if gone else unit for gone, unit in zip(is_deleted.tolist(), order, strict=True)]
