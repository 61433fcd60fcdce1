"""One running text a sample: full sentences up to the length asked for, without pairs (Liu et al. 2019, section 4.2).

RoBERTa's FULL-SENTENCES goes on into the next document, with a separator between them; DOC-SENTENCES
ends with the document. Both give sample (index, epoch) as a pure function, and every epoch cuts the
text differently.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from bertsmith.tasks.pairs import NO_PAIR, Cut, epoch_shift
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

    def cut(self, index: int, epoch: int) -> Cut:
        """A range of tokens, over the borders of documents if asked for; O(log sentences).

        A sentence longer than the sample is cut.
        """
        anchor = int((index + epoch_shift(self._seed, epoch)) * self._stride) % self._num_tokens
        start = int(np.searchsorted(self._sentences, anchor, side="right")) - 1
        document = int(np.searchsorted(self._documents, start, side="right")) - 1
        begin = int(self._sentences[start])
        if not self._across:
            last = min(int(self._documents[document + 1]), self._last_sentence(start, begin + self._room))
            end = int(self._sentences[max(last, start + 1)])
            return _text(begin, min(end, begin + self._room))
        # Every border that the text crosses takes the place of a token.
        end = begin
        for borders in range(self._room):
            last = self._last_sentence(start, begin + self._room - borders)
            end = int(self._sentences[last])
            crossed = int(np.searchsorted(self._documents, last, side="left")) - 1 - document
            if crossed <= borders:
                break
        return _text(begin, end if end > begin else begin + self._room)

    def _last_sentence(self, start: int, token: int) -> int:
        """The last sentence border that is not after `token`; at least `start`."""
        return max(start, int(np.searchsorted(self._sentences, token, side="right")) - 1)


def _text(begin: int, end: int) -> Cut:
    return Cut(begin, end, end, end, NO_PAIR)


def document_ranges(corpus: Corpus, start: int, end: int) -> list[tuple[int, int]]:
    """Tokens start to end as one range a document; O(log sentences), but for the documents in it."""
    sentences, documents = corpus.sentence_offsets, corpus.document_offsets
    first, last = np.searchsorted(sentences, start, side="right"), np.searchsorted(sentences, end, side="left")
    inside = documents[np.searchsorted(documents, first) : np.searchsorted(documents, last)]
    stops = [start, *sentences[inside].tolist(), end]
    return list(itertools.pairwise(stops))


def join(pieces: Sequence[np.ndarray], between: int) -> np.ndarray:
    """All pieces in one array, with one element `between` each two."""
    separator = np.array([between], dtype=pieces[0].dtype)
    parts = [pieces[0]]
    for piece in pieces[1:]:
        parts += [separator, piece]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
