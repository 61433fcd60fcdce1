"""How many tokens labelled rows have, in their texts and in the sequences that tasks make of them."""

from collections.abc import Callable, Sequence
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


def sequence_length(row: Any, tokenizer: Tokenizer) -> tuple[Callable[[Sequence[int]], int], str]:
    """How long the sequence of a row is, from the tokens of its texts; and what becomes of a longer one."""
    if isinstance(row, Question):
        return (lambda lengths: lengths[0]), "the end of these questions is cut"
    if isinstance(row, EmbeddingRow):
        return (lambda lengths: max(lengths) + 2), "the end of these texts is cut"
    if isinstance(row, ChoiceRow):
        number = len([part for part in (row.text, row.question) if part])
        return (
            (lambda lengths: sum(lengths[:number]) + max(lengths[number:]) + num_pair_specials(tokenizer)),
            "the end of the longer part of these is cut",
        )
    if isinstance(row, TaggingRow):
        return (lambda lengths: sum(lengths) + 2), "these sentences are read in windows"
    return (
        (lambda lengths: sum(lengths) + (2 if len(lengths) == 1 else num_pair_specials(tokenizer))),
        "what is read of them is what --long says",
    )


def row_lengths(rows: Sequence[Any], encoded: Encoded, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the sequence that each row would be if nothing were cut; of a question, with all of its context."""
    if isinstance(rows[0], Question):
        return [sum(lengths) + num_pair_specials(tokenizer) for lengths in encoded.lengths]
    measure, _ = sequence_length(rows[0], tokenizer)
    return [measure(lengths) for lengths in encoded.lengths]
