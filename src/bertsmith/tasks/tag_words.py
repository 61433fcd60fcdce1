"""A sentence as tokens, with its words, and with what stands around it in its document.

Devlin et al. 2018 (section 5.3) tag with "the maximal document context provided by the data"; what it is worth was
measured by Luoma and Pyysalo 2020 (arXiv 2006.01563) and Schweter and Akbik 2020 (FLERT, arXiv 2011.06993).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from bertsmith.tasks.tag_data import TaggingRow
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import surround
from bertsmith.text.words import has_chinese, plain_words

_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Words:
    """W words in T tokens, learnt in P parts. `text` is the user's own, or the words joined by single spaces."""

    text: str
    spans: np.ndarray  # int64 [W, 2] code points of the text
    ids: np.ndarray  # int32 [T]
    firsts: np.ndarray  # int64 [P] the first token of each part
    words: np.ndarray  # int64 [P] which word a part is of


@dataclass(frozen=True)
class TaggingExample:
    """A sentence as the model gets it.

    `text` is the user's own, or the words joined by single spaces; `word_spans` are its words in code points. Most have
    one part; `word_positions` is where each part's first piece stands when the sequences are laid end to end.
    """

    row: TaggingRow
    text: str
    word_spans: np.ndarray  # int64 [words, 2]
    token_ids: tuple[np.ndarray, ...]  # one sequence a window, [CLS], [SEP] and context included
    word_positions: np.ndarray  # int64 [parts]
    words: np.ndarray  # int64 [parts], which word each is of
    targets: np.ndarray | None  # int64 [parts], None to predict

    @property
    def is_first(self) -> np.ndarray:
        """bool [parts], whether each is the first of its word; the word answers with its label."""
        return np.diff(self.words, prepend=-1) > 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(map(len, self.token_ids))


def words_of(row: TaggingRow, tokenizer: Tokenizer) -> Words:
    """Tokenize a sentence. The words of raw text are those of the tokenizer, without white space at their ends.

    Chinese words that someone has split are several words in raw text, a character each; they are learnt in these
    parts, since otherwise a model would be asked about characters within words, which it has never learnt.

    Where tokens hold the space before a word, as in XLM-R and RoBERTa, these would be other tokens than those of words
    that someone has split, as in training data, and "Paris," one word: there they are split as BERT does.
    """
    if row.words is None and tokenizer.spaces_in_tokens:
        text = row.text or ""
        spans = _apart(text, plain_words(text))
        spans = spans[spans[:, 0] < spans[:, 1]]
        own = words_of(replace(row, words=tuple(text[start:end] for start, end in spans.tolist())), tokenizer)
        return replace(own, text=text, spans=spans)
    if row.words is None:
        text = row.text or ""
        encoding = tokenizer.encode(text)
        firsts = np.flatnonzero(encoding.word_starts)
        lasts = np.append(firsts, len(encoding.ids))[1:] - 1
        spans = _apart(text, np.stack([encoding.offsets[firsts, 0], encoding.offsets[lasts, 1]], axis=1))
        is_seen = spans[:, 0] < spans[:, 1]
        return Words(text, spans[is_seen], encoding.ids, firsts[is_seen], np.arange(is_seen.sum()))
    ids, index = tokenizer.encode_words(row.words)
    firsts = np.searchsorted(index, np.arange(len(row.words)))
    parts = [firsts]
    chinese = [] if tokenizer.spaces_in_tokens else [n for n, word in enumerate(row.words) if has_chinese(word)]
    for number, alone in zip(chinese, tokenizer.encode_batch([row.words[n] for n in chinese]), strict=True):
        if np.array_equal(alone.ids, ids[index == number]):
            parts.append(firsts[number] + np.flatnonzero(alone.word_starts)[1:])
    lengths = np.array([len(word) for word in row.words], dtype=np.int64)
    ends = np.cumsum(lengths + 1) - 1
    firsts = np.sort(np.concatenate(parts))
    return Words(" ".join(row.words), np.stack([ends - lengths, ends], axis=1), ids, firsts, index[firsts])


def around(
    row: TaggingRow, room: int, num_neighbours: int, ids_of: Callable[[TaggingRow], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that are shown before a sentence and after it, at most `room` together.

    Args:
        num_neighbours: sentences that are looked at on each side.
        ids_of: the tokens of a sentence.
    """
    first = max(0, row.place - num_neighbours)
    before = _nearest(reversed(row.neighbours[first : row.place]), room, ids_of)
    after = _nearest(row.neighbours[row.place + 1 : row.place + 1 + num_neighbours], room, ids_of)
    left_ids, right_ids = np.concatenate([_NO_TOKENS, *before[::-1]]), np.concatenate([_NO_TOKENS, *after])
    left, right = surround(len(left_ids), len(right_ids), room)
    return left_ids[len(left_ids) - left :], right_ids[:right]


def _nearest(rows: Iterable[TaggingRow], room: int, ids_of: Callable[[TaggingRow], np.ndarray]) -> list[np.ndarray]:
    """The tokens of as many sentences, from the first on, as fill the room."""
    found: list[np.ndarray] = []
    for row in rows:
        if room <= 0:
            break
        found.append(ids_of(row))
        room -= len(found[-1])
    return found


def _apart(text: str, spans: np.ndarray) -> np.ndarray:
    """Int64 [words, 2] spans without white space at their ends, and none where an earlier one is; some become empty.

    Byte-level vocabularies have words of nothing but white space, and normalizers may make several words of one
    character ("¼").
    """
    apart, before = np.zeros((len(spans), 2), dtype=np.int64), 0
    for index, (start, end) in enumerate(spans.tolist()):
        start = max(start, before)
        word = text[start:end]
        start += len(word) - len(word.lstrip())
        before = start + len(word.strip())
        apart[index] = start, before
    return apart
