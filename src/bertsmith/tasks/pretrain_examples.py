"""The samples of pre-training: a text or a pair cut from the store, and what is hidden or asked of it.

Sample (index, epoch) is a pure function, so the whole state of the data is two integers. Samples are made many
at a time, as flat arrays, since a call of numpy costs as much for one sample as for a hundred; each is
what it would be alone.
Shape letters: L tokens of a sequence; T tokens of a batch, S sequences, M masked positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload

import numpy as np

from bertsmith.model.batch import PackedBatch, pack_flat
from bertsmith.randomness import Streams
from bertsmith.tasks.cuts import Cuts
from bertsmith.tasks.full_sentences import FullSentences, document_ranges
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.pairs import CleanPairs, OriginalPairs, Pairs, num_pair_specials
from bertsmith.text.corpus import Corpus
from bertsmith.text.tokenizer import Tokenizer

DataMode = Literal["clean", "original", "full-sentences", "doc-sentences"]


@dataclass(frozen=True)
class PretrainExample:
    """One sample: masked tokens [L], their segments [L], and the pair's label."""

    masked: Masked
    segment_ids: np.ndarray
    pair_label: int

    @property
    def num_tokens(self) -> int:
        """L."""
        return len(self.segment_ids)


@dataclass(frozen=True, eq=False)
class FlatExamples(Sequence[PretrainExample]):
    """S samples end to end. An item is a view of one of them, a slice a view of several."""

    masked: Masked  # token_ids [T]; positions [M], counted from the first sample's first token
    segment_ids: np.ndarray  # [T] int64
    offsets: np.ndarray  # [S + 1] int64, where each sample begins, from 0 to T
    masked_offsets: np.ndarray  # [S + 1] int64, where each sample's positions begin, from 0 to M
    pair_labels: np.ndarray  # [S] int64

    def __len__(self) -> int:
        return len(self.pair_labels)

    @overload
    def __getitem__(self, place: int) -> PretrainExample: ...

    @overload
    def __getitem__(self, place: slice) -> "FlatExamples": ...

    def __getitem__(self, place: int | slice) -> "PretrainExample | FlatExamples":
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                raise ValueError("examples that lie end to end cannot be sliced with a step")
            return self._part(first, max(first, end))
        first = range(len(self))[place]
        part = self._part(first, first + 1)
        return PretrainExample(part.masked, part.segment_ids, int(part.pair_labels[0]))

    def _part(self, first: int, end: int) -> "FlatExamples":
        begin, stop = self.offsets[first], self.offsets[end]
        masked = slice(self.masked_offsets[first], self.masked_offsets[end])
        return FlatExamples(
            Masked(
                self.masked.token_ids[begin:stop], self.masked.positions[masked] - begin, self.masked.labels[masked]
            ),
            self.segment_ids[begin:stop],
            self.offsets[first : end + 1] - begin,
            self.masked_offsets[first : end + 1] - masked.start,
            self.pair_labels[first:end],
        )

    def inputs(self) -> PackedBatch:
        """What the encoder is given."""
        return pack_flat(self.masked.token_ids, self.offsets, self.segment_ids)


def flat_examples(examples: Sequence[PretrainExample]) -> FlatExamples:
    """The same examples end to end, as they are where they are so already."""
    if isinstance(examples, FlatExamples):
        return examples
    lengths = [one.num_tokens for one in examples]
    offsets = _behind(lengths)
    positions = [one.masked.positions + start for one, start in zip(examples, offsets, strict=False)]
    masked = Masked(
        np.concatenate([one.masked.token_ids for one in examples]),
        np.concatenate(positions),
        np.concatenate([one.masked.labels for one in examples]),
    )
    return FlatExamples(
        masked,
        np.concatenate([one.segment_ids for one in examples]),
        offsets,
        _behind([len(one) for one in positions]),
        np.array([one.pair_label for one in examples]),
    )


class Hiding(Protocol):
    """What is hidden of samples, or asked of them: a `Masker`, or `NextTokens`."""

    needs_word_starts: bool

    def mask(
        self, token_ids: np.ndarray, offsets: np.ndarray, streams: Streams, word_starts: np.ndarray | None = None
    ) -> Masked:
        """What is shown of int64 [T] tokens in sequences that begin at `offsets` [S + 1], and what to predict.

        `word_starts`, bool [T], says where words begin, if that is asked for.
        """


class PretrainExamples:
    """The samples of one split at one length; every access cuts and masks afresh."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        mode: DataMode,
        hiding: Hiding,
        short_sequence_probability: float,
        seed: int,
        sentence_order: bool = False,
        num_samples: int | None = None,
    ) -> None:
        """`sentence_order` asks for neighbours, some swapped, and goes with the modes that show pairs."""
        self.pairs: Pairs
        if mode == "original":
            surplus = num_pair_specials(tokenizer) - 3  # the original knows [CLS] A [SEP] B [SEP] only
            self.pairs = OriginalPairs(
                corpus, max_length - surplus, short_sequence_probability, seed, sentence_order=sentence_order
            )
        elif mode == "clean":
            self.pairs = CleanPairs(
                corpus,
                max_length,
                short_sequence_probability,
                seed,
                sentence_order=sentence_order,
                num_special_tokens=num_pair_specials(tokenizer),
            )
        else:
            self.pairs = FullSentences(corpus, max_length, seed, across_documents=mode == "full-sentences")
        self._crosses_documents = mode == "full-sentences"
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._hiding = hiding
        self._seed = seed
        self._num_samples = num_samples

    def num_examples(self, epoch: int) -> int:
        """Samples of the epoch; `num_samples` where a smaller, evenly spread choice was asked for."""
        whole = self.pairs.num_samples(epoch)
        return whole if self._num_samples is None else min(whole, self._num_samples)

    def num_tokens(self, index: int) -> int:
        """The length most samples have."""
        return self._max_length

    def take(self, indices: Sequence[int], epoch: int) -> FlatExamples:
        """Cut and mask samples of epoch `epoch`; each depends on its own index alone."""
        samples = np.asarray(indices, dtype=np.int64)
        if self._num_samples is not None:
            samples = samples * self.pairs.num_samples(epoch) // self.num_examples(epoch)
        cuts = self.pairs.cuts(samples, epoch)
        starts, ends, counts = self._texts(cuts)
        separators = (self._tokenizer.sep_id,) if self._crosses_documents else self._tokenizer.separator_ids
        layout = _lay_out(ends - starts, counts, len(separators))
        token_ids = np.full(layout.offsets[-1], self._tokenizer.sep_id, dtype=np.int64)
        token_ids[layout.offsets[:-1]] = self._tokenizer.cls_id
        token_ids[layout.between] = separators
        token_ids[layout.is_text] = self._corpus.tokens_of(starts, ends)
        word_starts = None
        if self._hiding.needs_word_starts:
            word_starts = np.ones(len(token_ids), dtype=bool)
            word_starts[layout.is_text] = self._corpus.word_starts_of(starts, ends)
        streams = Streams(self._seed, "mask", epoch, samples)
        masked = self._hiding.mask(token_ids, layout.offsets, streams, word_starts)
        masked_offsets = np.searchsorted(masked.positions, layout.offsets)
        segment_ids = np.zeros_like(token_ids)
        if not self._crosses_documents:
            segment_ids[layout.is_behind()] = self._tokenizer.second_segment
        return FlatExamples(masked, segment_ids, layout.offsets, masked_offsets, cuts.label)

    def _texts(self, cuts: Cuts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends [P] of all texts in the store, sample after sample, and how many each sample has [S]."""
        if self._crosses_documents:
            return document_ranges(self._corpus, cuts.first_start, cuts.first_end)
        is_there = np.stack([np.ones(len(cuts.label), dtype=bool), cuts.second_end > cuts.second_start], axis=1)
        starts = np.stack([cuts.first_start, cuts.second_start], axis=1)
        ends = np.stack([cuts.first_end, cuts.second_end], axis=1)
        return starts[is_there], ends[is_there], is_there.sum(1)


@dataclass(frozen=True)
class _Layout:
    """[CLS] text (separators text) ... [SEP] of S samples end to end; E texts are followed by another one."""

    offsets: np.ndarray  # int64 [S + 1]
    is_text: np.ndarray  # bool [T], false where special tokens are
    between: np.ndarray  # int64 [E, number of separators], where they are
    rows: np.ndarray  # int64 [E], the samples they are in

    def is_behind(self) -> np.ndarray:
        """bool [T], true from behind the separators to the end of the sample; for samples of at most two texts."""
        begins = self.offsets[1:].copy()
        begins[self.rows] = self.between[:, -1] + 1
        is_behind: np.ndarray = np.arange(len(self.is_text)) >= np.repeat(begins, np.diff(self.offsets))
        return is_behind


def _lay_out(lengths: np.ndarray, counts: np.ndarray, num_separators: int) -> _Layout:
    """For P texts of some lengths, of which the samples have counts [S], at least one each."""
    rows = np.repeat(np.arange(len(counts)), counts)
    last = np.cumsum(counts) - 1
    specials = np.full(len(lengths), num_separators)
    specials[last] = 1
    behind = np.cumsum(lengths + specials) + rows + 1  # each text and what follows it, and a [CLS] a sample
    offsets = np.concatenate([[0], behind[last]])
    is_followed = np.ones(len(lengths), dtype=bool)
    is_followed[last] = False
    between = behind[is_followed, None] + np.arange(-num_separators, 0)
    is_text = np.ones(offsets[-1], dtype=bool)
    is_text[offsets[:-1]] = is_text[offsets[1:] - 1] = is_text[between] = False
    return _Layout(offsets, is_text, between, rows[is_followed])


def _behind(lengths: Sequence[int]) -> np.ndarray:
    """int64 [S + 1]: where things of these lengths begin, and where the last one ends."""
    return np.cumsum([0, *lengths])
