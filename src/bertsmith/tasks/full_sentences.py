"""One running text a sample: full sentences up to the length asked for, without pairs (Liu et al. 2019, section 4.2).

RoBERTa's FULL-SENTENCES goes on into the next document, with a separator between them; DOC-SENTENCES
ends with the document. Both give sample (index, epoch) as a pure function, and every epoch cuts the
text differently.
"""

import numpy as np

from bertsmith.tasks.cuts import NO_PAIR, Cuts, Ranges, epoch_shift, stretch_starts
from bertsmith.text.corpus import Corpus

NUM_SPECIAL_TOKENS = 2  # [CLS] text [SEP]


class FullSentences:
    """Stateless cuts: sample i starts at the sentence that holds token (i + shift) x stride."""

    def __init__(self, corpus: Corpus, max_length: int, seed: int, *, across_documents: bool) -> None:
        self._sentences = corpus.sentence_offsets
        self._documents = corpus.document_offsets
        self._num_tokens = corpus.num_tokens
        self._room = max_length - NUM_SPECIAL_TOKENS
        self._across = across_documents
        self._seed = seed
        lengths = np.array([corpus.num_tokens])
        if not across_documents:
            lengths = np.diff(corpus.sentence_offsets[corpus.document_offsets])
        # The end of a document ends its last sample, so that there are more samples than the tokens would fill.
        self._num_samples = max(1, int(np.ceil(lengths / self._room).sum()))
        self._stride = corpus.num_tokens / self._num_samples

    def num_samples(self, epoch: int) -> int:
        """The same in every epoch: as many as it takes to show every document (or the whole corpus) once."""
        return self._num_samples

    def cuts(self, indices: np.ndarray, epoch: int) -> Cuts:
        """Ranges of tokens, over the borders of documents if asked for; O(log sentences) a sample.

        A sentence longer than the sample is cut, into stretches that samples begin with, too.
        """
        anchor = ((indices + epoch_shift(self._seed, epoch)) * self._stride).astype(np.int64) % self._num_tokens
        start = np.searchsorted(self._sentences, anchor, side="right") - 1
        document = np.searchsorted(self._documents, start, side="right") - 1
        holder = Ranges(self._sentences[start], self._sentences[start + 1])
        behind = self._sentences[self._documents[document + 1]]
        begin = stretch_starts(anchor, holder, behind, np.full_like(anchor, self._room), self._seed, epoch)
        if not self._across:
            last = np.minimum(self._documents[document + 1], self._last_sentence(begin + self._room))
            end = self._sentences[np.maximum(last, start + 1)]
            return _texts(begin, np.minimum(end, begin + self._room))
        # Every border that the text crosses takes the place of a token.
        end = begin.copy()
        pending = np.arange(len(begin))
        for borders in range(self._room):
            last = self._last_sentence(begin[pending] + self._room - borders)
            end[pending] = self._sentences[last]
            crossed = np.searchsorted(self._documents, last, side="left") - 1 - document[pending]
            pending = pending[crossed > borders]
            if len(pending) == 0:
                break
        return _texts(begin, np.where(end > begin, end, begin + self._room))

    def _last_sentence(self, tokens: np.ndarray) -> np.ndarray:
        """The last sentence border that is not after each of the tokens."""
        return np.searchsorted(self._sentences, tokens, side="right") - 1


def _texts(begin: np.ndarray, end: np.ndarray) -> Cuts:
    return Cuts(begin, end, end, end, np.full_like(end, NO_PAIR))


def document_ranges(corpus: Corpus, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S ranges of tokens as P ranges, one a document; O(log sentences) each, but for the documents in it.

    Returns:
        int64 [P] starts, int64 [P] ends, and int64 [S] how many of them each sample has.
    """
    sentences, documents = corpus.sentence_offsets, corpus.document_offsets
    first = np.searchsorted(documents, np.searchsorted(sentences, starts, side="right"))
    num_borders = np.searchsorted(documents, np.searchsorted(sentences, ends, side="left")) - first
    behind = np.cumsum(num_borders)
    borders = np.arange(behind[-1]) + np.repeat(first - (behind - num_borders), num_borders)
    inside = sentences[documents[borders]]
    return np.insert(inside, behind - num_borders, starts), np.insert(inside, behind, ends), num_borders + 1
