"""The samples of pre-training: a text or a pair cut from the store, and what is hidden or asked of it.

Sample (index, epoch) is a pure function, so the whole state of the data is two integers.
Shape letters: L tokens of a sequence.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bertsmith import randomness
from bertsmith.tasks.full_sentences import FullSentences, document_ranges, join
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.pairs import NO_PAIR, CleanPairs, Cut, OriginalPairs, Pairs, assemble, num_pair_specials
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


class Hiding(Protocol):
    """What is hidden of a sample, or asked of it: a `Masker`, or `NextTokens`."""

    needs_word_starts: bool

    def mask(self, token_ids: np.ndarray, random: np.random.Generator, word_starts: np.ndarray | None = None) -> Masked:
        """Int64 [L] tokens, and bool [L] where words begin if asked for -> what is shown, and what to predict."""


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
        """`sentence_order` asks for neighbours, some swapped, and goes with the clean mode only."""
        self.pairs: Pairs
        if mode == "original":
            surplus = num_pair_specials(tokenizer) - 3  # the original knows [CLS] A [SEP] B [SEP] only
            self.pairs = OriginalPairs(corpus, max_length - surplus, short_sequence_probability, seed)
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

    def example(self, index: int, epoch: int) -> PretrainExample:
        """Cut and mask sample `index` of epoch `epoch`."""
        if self._num_samples is not None:
            index = index * self.pairs.num_samples(epoch) // self.num_examples(epoch)
        cut = self.pairs.cut(index, epoch)
        ranges = self._ranges(cut)
        first = join([self._corpus.tokens(start, end) for start, end in ranges], self._tokenizer.sep_id)
        second = None if cut.label == NO_PAIR else self._corpus.tokens(cut.second_start, cut.second_end)
        token_ids, segment_ids = assemble(self._tokenizer, first, second)
        word_starts = self._word_starts(cut, len(token_ids)) if self._hiding.needs_word_starts else None
        masked = self._hiding.mask(token_ids, randomness.generator(self._seed, "mask", epoch, index), word_starts)
        return PretrainExample(masked, segment_ids, cut.label)

    def _ranges(self, cut: Cut) -> list[tuple[int, int]]:
        """The first text by its documents: more than one only where the mode goes on into the next."""
        if not self._crosses_documents:
            return [(cut.first_start, cut.first_end)]
        return document_ranges(self._corpus, cut.first_start, cut.first_end)

    def _word_starts(self, cut: Cut, length: int) -> np.ndarray:
        """bool [L], where words begin in [CLS] A [SEP] B [SEP]."""
        starts = np.ones(length, dtype=bool)
        first = join([self._corpus.word_starts(start, end) for start, end in self._ranges(cut)], True)
        second = self._corpus.word_starts(cut.second_start, cut.second_end)
        starts[1 : 1 + len(first)] = first
        starts[length - 1 - len(second) : -1] = second
        return starts
