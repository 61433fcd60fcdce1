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
Shape letters: L tokens of a sequence; of a batch T tokens, S sequences, M masked positions, C tokens that may be
hidden, W words, U units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from bertsmith.errors import SettingsError, did_you_mean
from bertsmith.randomness import Streams, below, uniform
from bertsmith.text.tokenizer import Tokenizer

MaskUnit = Literal["piece", "word", "span", "ngram"]

_WORDS_IN_A_UNIT: Mapping[MaskUnit, np.ndarray] = {
    "span": 0.8 ** np.arange(10),
    "ngram": 1 / np.arange(1, 4),
}
"""Relative frequency of units of 1, 2, 3, ... words, where a unit has several."""

_PLACES = np.uint64(2**20 - 1)
"""Of the 64 bits that put tokens or units of a sequence in random order, those that tell equal ones apart."""
_NEVER = np.uint64(2**64 - 1)
_FATE, _TOKEN, _LENGTH, _PIECE = (use << 32 for use in (1, 2, 3, 4))
"""Which draws of a sequence are for what: p orders the tokens or units that begin in place p, _FATE + p says what is
shown there, _TOKEN + p which random token, _LENGTH + p how long a unit is, _PIECE + p orders the pieces of one word."""


@dataclass(frozen=True)
class Masked:
    """One sequence, or several end to end, with some of the tokens hidden."""

    token_ids: np.ndarray  # [L] or [T] int64
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
    """All sequences cut into units. Words and units list where each begins, and behind the last one the end."""

    candidates: np.ndarray  # int64 [C], positions that may be hidden
    words: np.ndarray  # int64 [W + 1], places in candidates
    begins: np.ndarray  # int64 [U + 1], places in candidates
    rows: np.ndarray  # int64 [U], the sequence of each unit


@final
class Masker:
    """Hides tokens of sequences by the rules of one `Masking`.

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

    def mask(
        self, token_ids: np.ndarray, offsets: np.ndarray, streams: Streams, word_starts: np.ndarray | None = None
    ) -> Masked:
        """Hide tokens of each sequence; special tokens are never hidden, [UNK] only if `mask_unknown`.

        With Python's rounding, 30 tokens at 15 % hide 4 (4.5 rounds to even), as the original does
        under Python 3. Spans and n-grams that are longer than what is left of the budget are
        shortened to the words that fit. Where no unit fits even so, single pieces of the first one's
        first word are hidden: the original has nothing to predict there.

        Args:
            token_ids: int64 [T], the sequences end to end, each with a special token in front.
            offsets: int64 [S + 1], where each begins, from 0 to T.
            streams: what each of the S sequences draws from, and nothing else.
            word_starts: bool [T], true on the first token of each word; the unit "piece" does without.
                Special tokens part words whatever it says, so no unit crosses [SEP].

        Raises:
            ValueError: the unit is made of words, and `word_starts` is missing.
        """
        lengths = np.diff(offsets)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if self.needs_word_starts:
            if word_starts is None:
                raise ValueError(f'masking by "{self._masking.unit}" needs word_starts')
            cut = self._cut(token_ids, offsets, rows, streams, word_starts)
            positions, fates = self._whole_units(cut, offsets, streams)
        else:
            positions = fates = self._pieces(token_ids, lengths, streams)
        rows = rows[positions]
        return self._hide(token_ids, positions, rows, positions - offsets[rows], fates - offsets[rows], streams)

    def _budget(self, lengths: np.ndarray) -> np.ndarray:
        """How many tokens of sequences [S] may be hidden, int64 [S]."""
        exact = np.maximum(np.rint(lengths * self._masking.probability), 1).astype(np.int64)
        budget = exact if self._masking.count == "exact" else lengths
        bound = self._masking.max_predictions
        return budget if bound is None else np.minimum(budget, bound)

    def _pieces(self, token_ids: np.ndarray, lengths: np.ndarray, streams: Streams) -> np.ndarray:
        """Single tokens in random order, as many as the budget says: their positions, int64 [M], ascending."""
        length = int(lengths.max())
        is_token = np.arange(length) < lengths[:, None]
        order = streams.grid(length)
        can_hide = ~self._is_kept[token_ids]
        if self._masking.count == "bernoulli":
            can_hide &= uniform(order[is_token]) < self._masking.probability
        is_left_out = np.ones_like(is_token)
        is_left_out[is_token] = ~can_hide
        order = _in_order(order, is_left_out)
        budget = self._budget(lengths)
        first_left = np.sort(order, axis=1)[np.arange(len(lengths)), np.minimum(budget, length - 1)]
        is_hidden = order < np.where(budget < length, first_left, _NEVER)[:, None]
        return np.flatnonzero(is_hidden[is_token])

    def _cut(
        self, token_ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray, streams: Streams, word_starts: np.ndarray
    ) -> _Units:
        """The words of the sequences, and the units they make. `rows`, int64 [T]: the sequence of each token."""
        is_border = self._is_border[token_ids]
        begins = word_starts | is_border
        begins[1:] |= is_border[:-1]
        candidates = np.flatnonzero(~self._is_kept[token_ids])
        word_of = np.cumsum(begins)[candidates]
        firsts = np.flatnonzero(np.diff(word_of, prepend=-1))
        words, first_positions = np.append(firsts, len(candidates)), candidates[firsts]
        word_rows = rows[first_positions]
        if self._masking.unit == "word":
            return _Units(candidates, words, words, word_rows)
        # No unit goes on behind a special token, or behind an unknown word that is not to be hidden.
        is_first = np.diff(word_of[firsts], prepend=-1) > 1
        run_begins = np.flatnonzero(is_first)
        run = np.cumsum(is_first) - 1
        run_ends = np.append(run_begins, len(firsts))[1:]
        draws = streams.at(word_rows, first_positions - offsets[word_rows] + _LENGTH)
        drawn = np.searchsorted(self._longer_than, uniform(draws), side="right") + 1
        before = np.cumsum(drawn) - drawn
        starts = run_begins[run] + before - before[run_begins][run]
        units = starts[starts < run_ends[run]]
        return _Units(candidates, words, words[np.append(units, len(firsts))], word_rows[units])

    def _whole_units(self, cut: _Units, offsets: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Positions [M] of the units that are hidden, ascending, and the positions whose fate each has."""
        first_positions = cut.candidates[cut.begins[:-1]]
        draws = streams.at(cut.rows, first_positions - offsets[cut.rows])
        units = np.arange(len(draws))
        if self._masking.count == "bernoulli":
            units = np.flatnonzero(uniform(draws) < self._masking.probability)
        num_units = np.bincount(cut.rows[units], minlength=len(offsets) - 1)
        is_unit = np.arange(num_units.max()) < num_units[:, None]
        order = np.zeros(is_unit.shape, dtype=np.uint64)
        order[is_unit] = draws[units]
        order = np.sort(_in_order(order, ~is_unit), axis=1)
        first = np.cumsum(num_units) - num_units
        numbers = np.where(is_unit, first[:, None] + (order & _PLACES).astype(np.int64), len(units))
        budget = self._budget(np.diff(offsets))
        begins, ends = _fill(cut, np.append(units, len(draws))[numbers], budget, offsets, streams)
        lengths = ends - begins
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = cut.candidates[np.repeat(begins, lengths) + within]
        return positions, np.repeat(cut.candidates[begins], lengths) if self._masking.unit == "span" else positions

    def _hide(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        fates: np.ndarray,
        streams: Streams,
    ) -> Masked:
        """Show something else at the positions [M].

        Args:
            rows: int64 [M], the sequence of each.
            places: int64 [M], where in its sequence it stands, and so which of its draws says what a random token is.
            fates: int64 [M], the place in its sequence whose draw decides whether it is masked, random or the same.
        """
        labels = token_ids[positions]
        fate = uniform(streams.at(rows, fates + _FATE))
        random_tokens = self._random_tokens[below(streams.at(rows, places + _TOKEN), len(self._random_tokens))]
        replaced = np.where(fate < self._masking.mask_share + self._masking.random_share, random_tokens, labels)
        hidden = token_ids.copy()
        hidden[positions] = np.where(fate < self._masking.mask_share, self._mask_id, replaced)
        return Masked(hidden, positions, labels)


def _in_order(draws: np.ndarray, is_left_out: np.ndarray) -> np.ndarray:
    """By what the columns of uint64 [S, N] are sorted at random: no two alike in a row, last what is left out."""
    order = draws & ~_PLACES | np.arange(draws.shape[1], dtype=np.uint64)
    np.putmask(order, is_left_out, _NEVER)
    return order


def _fill(
    cut: _Units, order: np.ndarray, budget: np.ndarray, offsets: np.ndarray, streams: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Take units in the given order as long as they fit, then of the others what fits, in whole words.

    Args:
        order: int64 [S, N], the numbers of the units, U where there is none.
        budget: int64 [S], how many tokens.

    Returns:
        Where the taken units begin in the candidates, ascending, and where they end.
    """
    bounds = np.append(cut.begins, cut.begins[-1])
    begins, ends = bounds[order], bounds[order + 1]
    sums = np.cumsum(ends - begins, axis=1)
    is_whole = sums <= budget[:, None]
    next_one = is_whole.sum(1)
    room = budget - np.max(sums, axis=1, initial=0, where=is_whole)
    taken = [begins[is_whole]]
    taken_ends = [ends[is_whole]]
    while True:
        rows = np.flatnonzero((room > 0) & (next_one < order.shape[1]))
        if len(rows) == 0:
            break
        begin, end = begins[rows, next_one[rows]], ends[rows, next_one[rows]]
        end = np.minimum(end, begin + room[rows])
        end = cut.words[np.searchsorted(cut.words, end, side="right") - 1]
        room[rows] -= end - begin
        next_one[rows] += 1
        taken.append(begin)
        taken_ends.append(end)
    # Where the budget is that of no word, single pieces of the first unit's first word.
    has_units = (order < len(cut.rows)).any(1)
    for row in np.flatnonzero(has_units & (room == budget)).tolist():
        first = int(begins[row, 0])
        pieces = np.arange(first, cut.words[np.searchsorted(cut.words, first, side="right")])
        places = cut.candidates[pieces] - offsets[row]
        drawn = streams.at(np.full_like(places, row), places + _PIECE)
        taken.append(pieces[np.argsort(drawn, kind="stable")[: budget[row]]])
        taken_ends.append(taken[-1] + 1)
    begin, end = np.concatenate(taken), np.concatenate(taken_ends)
    by_place = np.argsort(begin)
    by_place = by_place[(end > begin)[by_place]]
    return begin[by_place], end[by_place]
