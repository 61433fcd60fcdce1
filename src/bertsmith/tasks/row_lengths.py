"""How many tokens labelled rows have, in their texts and in the sequences that tasks make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertsmith.tasks.choice_data import ChoiceRow
from bertsmith.tasks.embed_data import EmbeddingRow
from bertsmith.tasks.pairs import num_pair_specials
from bertsmith.tasks.tag_data import TaggingRow
from bertsmith.text.labelled import Question
from bertsmith.text.tokenizer import Tokenizer

_ENCODED_AT_ONCE = 1000


@dataclass(frozen=True)
class Encoded:
    """Tokens of each text of each row."""

    lengths: list[tuple[int, ...]]
    num_unknown: int

    @classmethod
    def of(cls, rows: Sequence[Any], tokenizer: Tokenizer) -> "Encoded":
        """Tokenize the texts of rows of any task."""
        lengths: list[tuple[int, ...]] = []
        num_unknown = 0
        for begin in range(0, len(rows), _ENCODED_AT_ONCE):
            texts = [row.texts for row in rows[begin : begin + _ENCODED_AT_ONCE]]
            encodings = iter(tokenizer.encode_batch([text for several in texts for text in several]))
            for several in texts:
                ids = [next(encodings).ids for _ in several]
                lengths.append(tuple(map(len, ids)))
                if tokenizer.unk_id is not None:
                    num_unknown += sum(int((one == tokenizer.unk_id).sum()) for one in ids)
        return cls(lengths, num_unknown)


def answer_lengths(rows: Sequence[Question], tokenizer: Tokenizer) -> list[int]:
    """Tokens of the first answer to each question; 0 where there is none."""
    texts = [row.answers[0].text if row.answers else "" for row in rows]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def sequence_length(row: Any, lengths: Sequence[int], tokenizer: Tokenizer) -> int:
    """Tokens of the sequence of a row, by the tokens of its texts; of a question without its context."""
    if isinstance(row, Question):
        return lengths[0]
    if isinstance(row, EmbeddingRow):
        return max(lengths) + 2
    if isinstance(row, ChoiceRow):
        number = len(lengths) - len(row.choices)
        return sum(lengths[:number]) + max(lengths[number:]) + num_pair_specials(tokenizer)
    return sum(lengths) + (2 if len(lengths) == 1 else num_pair_specials(tokenizer))


def if_longer(row: Any) -> str:
    """What becomes of rows of this task that are too long."""
    if isinstance(row, Question):
        return "the end of these questions is cut"
    if isinstance(row, EmbeddingRow):
        return "the end of these texts is cut"
    if isinstance(row, ChoiceRow):
        return "the end of the longer part of these is cut"
    if isinstance(row, TaggingRow):
        return "these sentences are read in windows"
    return "what is read of them is what --long says"


def row_lengths(rows: Sequence[Any], encoded: Encoded, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the sequence that each row would be if nothing were cut; of a question, with all of its context."""
    if isinstance(rows[0], Question):
        return [sum(lengths) + num_pair_specials(tokenizer) for lengths in encoded.lengths]
    return [sequence_length(row, lengths, tokenizer) for row, lengths in zip(rows, encoded.lengths, strict=True)]
