"""Which tokens of a sequence are hidden, and what is shown in their place.

A unit is what is hidden together, all of it or nothing:

- "piece": each token by itself (Devlin et al. 2018; google-research/bert `create_masked_lm_predictions`).
- "word": all pieces of a word (google-research/bert `--do_whole_word_mask`). A word longer than what
  is left of the budget is passed over.
- "span": 1 to 10 words, geometric with p = 0.2, renormalised, 3.8 on average; one fate a span
  (SpanBERT, Joshi et al. 2020, section 3.1; facebookresearch/SpanBERT `masking.py`).
- "ngram": 1 to 3 words, n with a probability proportional to 1/n (ALBERT, Lan et al. 2019, section
  3.1; google-research/albert `create_pretraining_data.py`).

Where words begin is known from tokenisation, for every kind of tokenizer, and never guessed from
how a piece is spelt. SpanBERT and ALBERT throw units at random places, and merge or drop those that
overlap, so that their lengths are not those that were drawn. Here the text is first cut into units
of drawn lengths, and then some of them are hidden.
Shape letters: L tokens of a sequence, M masked positions, C tokens that may be hidden, W words, U units.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from bertsmith.errors import SettingsError, did_you_mean
from bertsmith.text.tokenizer import Tokenizer

MaskUnit = Literal["piece", "word", "span", "ngram"]

_WORDS_IN_A_UNIT: Mapping[MaskUnit, np.ndarray] = {
    "span": 0.8 ** np.arange(10),
    "ngram": 1 / np.arange(1, 4),
}
"""Relative frequency of units of 1, 2, 3, ... words, where a unit has several."""


@dataclass(frozen=True)
class Masked:
    """A sequence with some of its tokens hidden."""

    token_ids: np.ndarray  # [L] int64
    positions: np.ndarray  # [M] int64, ascending
    labels: np.ndarray  # [M] int64, the tokens that were there


@dataclass(frozen=True)
class Masking:
    """How many tokens are hidden, which of them together, and by what.

    Attributes:
        probability: share of the sequence, [CLS] and [SEP] counted as in the original.
        count: "exact" hides round(length x probability) tokens, at least one, and never more: units
            of several tokens may leave a few of them unused. "bernoulli" draws each unit by itself,
            so that the count varies and may be zero.
        unit: what is hidden together.
        max_predictions: upper bound for one sequence; None: no bound but the probability.
        random_specials: whether the random tokens may be [CLS], [PAD] and the like, as in the original.
        mask_unknown: whether [UNK] may be hidden, to be predicted, as in the original.
        mask_share: of the chosen positions, how many show [MASK].
        random_share: how many show a random token; the rest stay as they are.

    Raises:
        SettingsError: the probability is not between 0 and 1, or there is no such unit.
    """

    probability: float = 0.15
    count: Literal["exact", "bernoulli"] = "exact"
    unit: MaskUnit = "piece"
    max_predictions: int | None = None
    random_specials: bool = False
    mask_unknown: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise SettingsError(f"mask_probability must lie between 0 and 1, not {self.probability}.")
        if self.unit not in get_args(MaskUnit):
            raise SettingsError(f'no mask_unit "{self.unit}". {did_you_mean(self.unit, get_args(MaskUnit))}')


@dataclass(frozen=True)
class _Units:
    """A sequence cut into units: each array lists borders, from 0 to the end of what it cuts."""

    words: np.ndarray  # [W + 1] int64, into the tokens that may be hidden
    units: np.ndarray  # [U + 1] int64, into the words

    def __len__(self) -> int:
        return len(self.units) - 1


@final
class Masker:
    """Hides tokens of a sequence by the rules of one `Masking`.

    Attributes:
        needs_word_starts: whether `mask` has to be told where words begin.
    """

    def __init__(self, tokenizer: Tokenizer, masking: Masking) -> None:
        self.needs_word_starts = masking.unit != "piece"
        self._masking = masking
        self._mask_id = tokenizer.mask_id
        vocabulary, special = np.arange(tokenizer.vocab_size), tokenizer.special_ids
        self._is_border = np.isin(vocabulary, sorted(special - {tokenizer.unk_id}))
        self._is_kept = self._is_border if masking.mask_unknown else np.isin(vocabulary, sorted(special))
        self._random_tokens = vocabulary if masking.random_specials else np.setdiff1d(vocabulary, sorted(special))
        frequencies = _WORDS_IN_A_UNIT.get(masking.unit, np.ones(1))
        self._longer_than = np.cumsum(frequencies / frequencies.sum())[:-1]

    def mask(self, token_ids: np.ndarray, random: np.random.Generator, word_starts: np.ndarray | None = None) -> Masked:
        """Hide tokens of one sequence; special tokens are never hidden, [UNK] only if `mask_unknown`.

        With Python's rounding, 30 tokens at 15 % hide 4 (4.5 rounds to even), as the original does
        under Python 3. Spans and n-grams that are longer than what is left of the budget are
        shortened to the words that fit. Where no unit fits even so, single pieces of the first one's
        first word are hidden: the original has nothing to predict there.

        Args:
            token_ids: int64 [L].
            word_starts: bool [L], true on the first token of each word; the unit "piece" does without.
                Special tokens part words whatever it says, so no unit crosses [SEP].

        Raises:
            ValueError: the unit is made of words, and `word_starts` is missing.
        """
        masking = self._masking
        candidates = np.flatnonzero(~self._is_kept[token_ids])
        cut = self._cut(token_ids, candidates, word_starts, random) if self.needs_word_starts else None
        num_units = len(candidates) if cut is None else len(cut)
        if masking.count == "exact":
            order = random.permutation(num_units)
            budget = max(1, round(len(token_ids) * masking.probability))
        else:
            order = random.permutation(np.flatnonzero(random.random(num_units) < masking.probability))
            budget = len(candidates)
        if masking.max_predictions is not None:
            budget = min(budget, masking.max_predictions)

        if cut is None:
            positions = candidates[np.sort(order[:budget])]
            return self._hide(token_ids, positions, random.random(len(positions)), random)
        begins, lengths = _fill(cut, order, budget)
        if len(begins) == 0 and len(order):
            first, end = cut.words[cut.units[order[0]] : cut.units[order[0]] + 2]
            begins = np.sort(random.permutation(np.arange(first, end))[:budget])
            lengths = np.ones_like(begins)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = candidates[np.repeat(begins, lengths) + within]
        if masking.unit == "span":
            fate = np.repeat(random.random(len(lengths)), lengths)
        else:
            fate = random.random(len(positions))
        return self._hide(token_ids, positions, fate, random)

    def _cut(
        self,
        token_ids: np.ndarray,
        candidates: np.ndarray,
        word_starts: np.ndarray | None,
        random: np.random.Generator,
    ) -> _Units:
        """The words of a sequence, and the units they make."""
        if word_starts is None:
            raise ValueError(f'masking by "{self._masking.unit}" needs word_starts')
        is_border = self._is_border[token_ids]
        begins = word_starts | is_border
        begins[1:] |= is_border[:-1]
        word_of = np.cumsum(begins)[candidates]
        firsts = np.flatnonzero(np.diff(word_of, prepend=-1))
        words = np.append(firsts, len(candidates))
        if self._masking.unit == "word":
            return _Units(words, np.arange(len(words)))
        # No unit goes on behind a special token, or behind an unknown word that is not to be hidden.
        breaks = np.flatnonzero(np.diff(word_of[firsts]) > 1) + 1
        runs = [0, *breaks.tolist(), len(firsts)]
        units = []
        for begin, end in itertools.pairwise(runs):
            drawn = np.searchsorted(self._longer_than, random.random(end - begin), side="right") + 1
            starts = begin + np.cumsum(drawn) - drawn
            units.append(starts[starts < end])
        return _Units(words, np.append(np.concatenate(units), len(firsts)))

    def _hide(
        self, token_ids: np.ndarray, positions: np.ndarray, fate: np.ndarray, random: np.random.Generator
    ) -> Masked:
        """Show something else at the positions [M]; `fate` [M], uniform in [0, 1), says what."""
        labels = token_ids[positions]
        random_tokens = self._random_tokens[random.integers(len(self._random_tokens), size=len(positions))]
        replaced = np.where(fate < self._masking.mask_share + self._masking.random_share, random_tokens, labels)
        hidden = token_ids.copy()
        hidden[positions] = np.where(fate < self._masking.mask_share, self._mask_id, replaced)
        return Masked(hidden, positions, labels)


def _fill(cut: _Units, order: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Take units in the given order as long as they fit, then of the others what fits, in whole words.

    Returns:
        Where the taken units begin, ascending, and how long they are, in tokens that may be hidden.
    """
    begins, ends = cut.words[cut.units[order]], cut.words[cut.units[order + 1]]
    sums = np.cumsum(ends - begins)
    num_whole = int(np.searchsorted(sums, budget, side="right"))
    room = budget - (int(sums[num_whole - 1]) if num_whole else 0)
    taken, taken_ends = begins[:num_whole].tolist(), ends[:num_whole].tolist()
    rest = cut.units[order[num_whole:]]  # first words of the other units
    rest_ends = cut.units[order[num_whole:] + 1]
    while room > 0:
        # What does not fit now never will.
        fits = cut.words[rest + 1] - cut.words[rest] <= room
        rest, rest_ends = rest[fits], rest_ends[fits]
        if len(rest) == 0:
            break
        words = cut.words[rest[0] : rest_ends[0] + 1]
        end = int(words[np.searchsorted(words, words[0] + room, side="right") - 1])
        taken.append(int(words[0]))
        taken_ends.append(end)
        room -= end - taken[-1]
        rest, rest_ends = rest[1:], rest_ends[1:]
    by_place = np.argsort(taken)
    begin = np.array(taken, dtype=np.int64)[by_place]
    return begin, np.array(taken_ends, dtype=np.int64)[by_place] - begin
