"""Sentence pairs: which two pieces of text a sample shows, and what the model must say of them.

Next sentence prediction (Devlin et al. 2018, section 3.1) asks whether B follows A; sentence order
prediction (Lan et al. 2019, section 3.1) whether two texts that follow each other were swapped, which
needs no second document. Two ways to cut a corpus into pairs:

* `OriginalPairs` follows google-research/bert `create_pretraining_data.py` to the letter, with the
  properties its authors may not have wanted (see `docs/data-modes.md`).
* `CleanPairs` (the default) keeps the task and removes its side doors: a random B never comes from
  A's document, the share of random pairs is one half whatever the lengths of the documents, and the
  text at the border between A and B is never cut away.

Both give sample (index, epoch) as a pure function, and every epoch cuts the text differently.
Shape letters: S sequences or samples, D hidden width.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith import randomness
from bertsmith.model.batch import pack
from bertsmith.tasks.cuts import (
    NO_PAIR,
    NUM_PAIR_DRAWS,
    Cuts,
    Ranges,
    cut_at_random_ends,
    cuts_of,
    epoch_shift,
    stretch_starts,
    truncate_pairs,
)
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.text.corpus import Corpus
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import truncate_pair

IS_NEXT, IS_RANDOM = 0, 1
"""Labels as in the original: 1 says that B is random."""
IN_ORDER, IS_SWAPPED = 0, 1
"""Labels of sentence order, as in google-research/albert."""

PairQuestion = Literal["nsp", "sop"]
"""What is asked of a pair: next sentence prediction or sentence order."""

_ANSWERS: Mapping[PairQuestion, tuple[str, str]] = {"nsp": ("next", "random"), "sop": ("in_order", "swapped")}
_NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP], where the tokenizer does not say otherwise
_RANDOM_DOCUMENT_TRIES = 10


class Pairs(Protocol):
    """A way of cutting a corpus into samples."""

    def num_samples(self, epoch: int) -> int:
        """How many samples epoch `epoch` has."""

    def cuts(self, indices: np.ndarray, epoch: int) -> Cuts:
        """Where samples `indices`, int64 [S], of epoch `epoch` lie in the store; each a function of its own index."""


class CleanPairs:
    """Stateless pairs: sample i starts at the sentence that holds token (i + shift) x stride.

    The shift is drawn anew each epoch, so that borders move and every token is shown once an epoch
    on average, with no plan to build and nothing to remember, for a corpus of any size.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int,
        short_sequence_probability: float,
        seed: int,
        *,
        sentence_order: bool = False,
        num_special_tokens: int = _NUM_SPECIAL_TOKENS,
    ) -> None:
        """With `sentence_order` both texts are always neighbours, and the question is which came first.

        Neither their lengths nor where they are cut tells (Lan et al. 2019, arXiv 1909.11942, section 3.1).
        """
        self._sentences = corpus.sentence_offsets
        self._documents = corpus.document_offsets
        self._num_tokens = corpus.num_tokens
        self._is_order = sentence_order
        self._room = max_length - num_special_tokens
        self._short = short_sequence_probability
        self._seed = seed
        # A next pair uses up a whole sample of running text, a random pair about half of one.
        share_used = 1.0 if sentence_order else 0.75
        self._stride = max(1.0, share_used * self._room * (1 - short_sequence_probability / 2))

    def num_samples(self, epoch: int) -> int:
        """The same in every epoch: tokens of the corpus by tokens of running text in a sample."""
        return max(1, round(self._num_tokens / self._stride))

    def cuts(self, indices: np.ndarray, epoch: int) -> Cuts:
        """See the class; O(log sentences) a sample."""
        sentences, documents = self._sentences, self._documents
        anchor = ((indices + epoch_shift(self._seed, epoch)) * self._stride).astype(np.int64) % self._num_tokens
        holder = np.searchsorted(sentences, anchor, side="right") - 1
        document = np.searchsorted(documents, holder, side="right") - 1
        document_start, document_end = documents[document], documents[document + 1]
        is_single = document_end - document_start == 1

        streams = randomness.Streams(self._seed, "pair", epoch, indices)
        draws = streams.grid(NUM_PAIR_DRAWS)
        is_short = randomness.uniform(draws[:, 0]) < self._short
        target = np.where(is_short, 2 + randomness.below(draws[:, 1], self._room - 1), self._room)
        # The last sentence borrows its neighbour: A always has a B.
        start = np.where(is_single, holder, np.minimum(holder, document_end - 2))
        end = np.minimum(np.searchsorted(sentences, sentences[start] + target), document_end)
        end = np.maximum(end, np.minimum(start + 2, document_end))
        if self._is_order:
            # Half of the ranges grow backwards: else A, which holds the anchor, is the longer and tells its order.
            is_backward = draws[:, 4] >> np.uint64(63) == 1
            anchor_end = np.maximum(holder + 1, np.minimum(document_start + 2, document_end))
            reach = np.searchsorted(sentences, sentences[anchor_end] - target, side="right") - 1
            reach = np.minimum(np.maximum(reach, document_start), np.maximum(anchor_end - 2, document_start))
            start, end = np.where(is_backward, reach, start), np.where(is_backward, anchor_end, end)
        middle = start + 1 + randomness.below(draws[:, 2], np.maximum(end - start - 1, 1))
        first = Ranges(sentences[start], sentences[middle])
        second = Ranges(sentences[middle], sentences[end])
        coin = draws[:, 3] >> np.uint64(63) == 1
        if self._is_order:
            # Swapped before they are cut: of two long texts the one shown last loses a token more.
            label = np.where(coin, IS_SWAPPED, IN_ORDER)
            first, second = first.where(~coin, second), second.where(~coin, first)
            first, second = cut_at_random_ends(streams, first, second, target)
        else:
            is_random = coin & (document_end - document_start < len(sentences) - 1)
            others = self._random_seconds(draws[:, 4], document_start, document_end, target - first.lengths)
            label = np.where(is_random, IS_RANDOM, IS_NEXT)
            second = others.where(is_random, second)
            # What is too long loses the far ends, so that A and B still meet at a sentence border.
            first_length, second_length = truncate_pairs(first.lengths, second.lengths, target)
            first, second = Ranges(first.end - first_length, first.end), second.head(second_length)
        # A long sentence stands alone, but for every other sample of its end: whatever the label and the neighbour, so
        # that what is shown does not tell.
        whole = Ranges(sentences[holder], sentences[holder + 1])
        is_end = (anchor >= whole.end - self._room) & (draws[:, 0] & np.uint64(1) == 1)  # a bit that no draw looks at
        is_alone = is_single | (whole.lengths > self._room) & ~is_end
        rooms = np.where(is_single, self._room, target) + 1  # one [SEP] less
        behind = sentences[document_end]
        begin = stretch_starts(anchor, whole, behind, rooms, self._seed, epoch)
        first = Ranges(begin, np.minimum(begin + rooms, behind)).where(is_alone, first)
        second = Ranges(first.end, first.end).where(is_alone, second)
        return cuts_of(first, second, np.where(is_alone, NO_PAIR, label))

    def _random_seconds(
        self, draws: np.ndarray, document_start: np.ndarray, document_end: np.ndarray, target: np.ndarray
    ) -> "Ranges":
        """A run of text from a sentence drawn evenly over all other documents; anything where there are none."""
        sentences, documents = self._sentences, self._documents
        size = document_end - document_start
        start = randomness.below(draws, len(sentences) - 1 - size)
        start += np.where(start >= document_start, size, 0)
        start = np.minimum(start, len(sentences) - 2)
        document = np.searchsorted(documents, start, side="right") - 1
        end = np.searchsorted(sentences, sentences[start] + np.maximum(target, 1))
        end = np.maximum(np.minimum(end, documents[document + 1]), start + 1)
        return Ranges(sentences[start], sentences[end])


class OriginalPairs:
    """The rules of google-research/bert `create_pretraining_data.py`, kept to the letter.

    An epoch is what the original calls one of its `dupe_factor` passes. The draws of a document
    come from (seed, epoch, document), so a plan can be made for one document at a time; the plan of
    an epoch holds five integers a sample and is kept for the newest two epochs.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int,
        short_sequence_probability: float,
        seed: int,
        *,
        sentence_order: bool = False,
    ) -> None:
        """With `sentence_order` as google-research/albert; a chunk of one sentence still has a random B."""
        self._sentences = corpus.sentence_offsets
        self._documents = corpus.document_offsets
        self._is_order = sentence_order
        self._room = max_length - _NUM_SPECIAL_TOKENS
        self._short = short_sequence_probability
        self._seed = seed
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def num_samples(self, epoch: int) -> int:
        """Differs from epoch to epoch, since short targets and given-back sentences are drawn anew."""
        return len(self._plan(epoch))

    def cuts(self, indices: np.ndarray, epoch: int) -> Cuts:
        """The planned samples, cut to the room from random ends as the original does."""
        first_start, first_end, second_start, second_end, label = self._plan(epoch)[indices].T
        streams = randomness.Streams(self._seed, "truncate", epoch, indices)
        first, second = Ranges(first_start, first_end), Ranges(second_start, second_end)
        first, second = cut_at_random_ends(streams, first, second, np.full_like(label, self._room))
        return cuts_of(first, second, label)

    def _make_plan(self, epoch: int) -> np.ndarray:
        numbers = array("q")  # a list of tuples takes four times the memory
        for document in range(len(self._documents) - 1):
            numbers.extend(chain.from_iterable(self._document_plan(document, epoch)))
        return np.array(numbers, dtype=np.int64).reshape(-1, 5)

    def _document_plan(self, document: int, epoch: int) -> list[tuple[int, int, int, int, int]]:
        """The counterpart of the original's `create_instances_from_document`, on sentence borders."""
        random = randomness.generator(self._seed, "original-pairs", epoch, document)
        begin, end_of_document = int(self._documents[document]), int(self._documents[document + 1])
        borders = self._sentences[begin : end_of_document + 1].tolist()
        num_sentences = end_of_document - begin
        # Once per document and pass, not per sequence.
        target = self._room
        if random.random() < self._short:
            target = int(random.integers(2, self._room, endpoint=True))
        rows = []
        start = 0
        while start < num_sentences:
            end = start + 1
            while end < num_sentences and borders[end] - borders[start] < target:
                end += 1
            middle = start + 1
            if end - start >= 2:
                middle = int(random.integers(start + 1, end))
            is_heads = end - start > 1 and random.random() < 0.5
            if end - start == 1 or (is_heads and not self._is_order):
                second_start, second_end = self._random_second(
                    random, document, target - (borders[middle] - borders[start])
                )
                rows.append((borders[start], borders[middle], second_start, second_end, IS_RANDOM))
                start = middle  # the unused sentences of the chunk are given back
                continue
            if is_heads:
                rows.append((borders[middle], borders[end], borders[start], borders[middle], IS_SWAPPED))
            else:
                rows.append((borders[start], borders[middle], borders[middle], borders[end], IS_NEXT))
            start = end
        return rows

    def _random_second(self, random: np.random.Generator, document: int, target: int) -> tuple[int, int]:
        """B from another document, or, after ten vain draws, from the same one and still called random."""
        num_documents = len(self._documents) - 1
        other = document
        for _ in range(_RANDOM_DOCUMENT_TRIES):
            other = int(random.integers(num_documents))
            if other != document:
                break
        first_sentence, last_sentence = int(self._documents[other]), int(self._documents[other + 1])
        start = int(random.integers(first_sentence, last_sentence))
        end = start + 1
        while end < last_sentence and self._sentences[end] - self._sentences[start] < target:
            end += 1
        return int(self._sentences[start]), int(self._sentences[end])


@dataclass(frozen=True)
class PairClassification:
    """The objective: tell from the pooled first token what the two texts are to each other."""

    name: PairQuestion
    weight: float = 1.0

    def labels(self, pair_labels: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], float]:
        """Tensors for `loss` and how many sequences carry a label."""
        labels_S = torch.tensor(pair_labels, dtype=torch.int64)
        return {"pair_labels": labels_S}, float((labels_S != NO_PAIR).sum())

    def loss(self, logits_S2: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross-entropy over the labelled sequences, in nats."""
        return nn.functional.cross_entropy(logits_S2, labels["pair_labels"], ignore_index=NO_PAIR, reduction="sum")


def judge_pairs(
    model: PretrainingModel, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], question: PairQuestion
) -> list[dict[str, float]]:
    """What two texts are to each other, by a pre-trained model.

    Args:
        model: one that was trained with an objective about pairs.
        question: which of them.

    Returns:
        One `{"next": p, "random": 1 - p}` a pair, or `{"in_order": p, "swapped": 1 - p}`.
    """
    room = model.encoder.config.max_sequence_length - num_pair_specials(tokenizer)
    token_ids, segment_ids = [], []
    for first_text, second_text in pairs:
        first, second = tokenizer.encode(first_text).ids, tokenizer.encode(second_text).ids
        first_length, second_length = truncate_pair(len(first), len(second), room)
        ids, segments = assemble(tokenizer, first[len(first) - first_length :], second[:second_length])
        token_ids.append(ids)
        segment_ids.append(segments)
    with torch.inference_mode():
        batch = pack(token_ids, segment_ids).to(next(model.parameters()).device)
        probabilities = model.pair_logits(model.encoder(batch), batch).softmax(-1)
    return [dict(zip(_ANSWERS[question], row, strict=True)) for row in probabilities.tolist()]


def num_pair_specials(tokenizer: Tokenizer) -> int:
    """How many special tokens `assemble` adds to a pair."""
    return 2 + len(tokenizer.separator_ids)


def assemble(tokenizer: Tokenizer, first: np.ndarray, second: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] A [SEP] B [SEP] and its segments, as the tokenizer has them; what is between belongs to 0.

    Returns:
        int64 [L] token ids and int64 [L] segment ids.
    """
    cls, sep, between = [tokenizer.cls_id], [tokenizer.sep_id], tokenizer.separator_ids
    if second is None or len(second) == 0:
        ids = np.concatenate([cls, first, sep]).astype(np.int64)
        return ids, np.zeros_like(ids)
    ids = np.concatenate([cls, first, between, second, sep]).astype(np.int64)
    segments = np.zeros_like(ids)
    segments[len(first) + 1 + len(between) :] = tokenizer.second_segment
    return ids, segments
