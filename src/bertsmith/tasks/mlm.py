"""Masked language model: predict the hidden tokens of a sequence from both sides.

What is hidden is decided in `masking`, anew in every epoch, as in RoBERTa (Liu et al. 2019, section 4.1).
Shape letters: M masked positions, V vocabulary, D hidden width.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertsmith.errors import InputError
from bertsmith.model.batch import pack
from bertsmith.tasks.cross_entropy import summed_cross_entropy
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.text.definition import read_definition
from bertsmith.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class MaskedLanguageModel:
    """The objective: the hidden tokens, from the encoder's states at the masked positions only."""

    weight: float = 1.0
    name: str = "mlm"

    def labels(self, masked: Masked) -> tuple[dict[str, Tensor], float]:
        """Positions in the flat batch and the tokens that were there; how many they are."""
        tensors = {
            "masked_positions": torch.from_numpy(masked.positions),
            "masked_labels": torch.from_numpy(masked.labels),
        }
        return tensors, float(len(masked.labels))

    def loss(self, logits_MV: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross-entropy over the masked tokens, in nats."""
        return summed_cross_entropy(logits_MV, labels["masked_labels"])


@dataclass(frozen=True)
class Guess:
    """A token for a mask, its probability, and the text with its word there; other masks of the text stay."""

    token: str
    score: float
    text: str


def strips_before_mask(tokenizer: str | Path) -> bool:
    """Whether a space before the mask belongs to it, as RoBERTa's tokenizer has it, and not to the text before.

    Where tokens begin with their space ("Ġriver"), the mask stands for that space, too.

    Args:
        tokenizer: as for `load_tokenizer`.
    """
    definition, special = read_definition(tokenizer)
    added = json.loads(definition).get("added_tokens") or []
    return any(bool(token.get("lstrip")) for token in added if token["content"] == special.mask)


def encode_masked(tokenizer: Tokenizer, text: str, *, strips_before: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text in which the mask token stands for itself, and where they are masks; no other is special.

    Args:
        strips_before: see `strips_before_mask`.
    """
    pieces = text.split(tokenizer.tokens([tokenizer.mask_id])[0])
    if strips_before:
        pieces = [*(piece.rstrip() for piece in pieces[:-1]), pieces[-1]]
    ids, *others = (encoding.ids for encoding in tokenizer.encode_batch(pieces))
    for piece_ids in others:
        ids = np.concatenate([ids, [tokenizer.mask_id], piece_ids])
    return ids, np.flatnonzero(ids == tokenizer.mask_id)


def fill_mask(
    model: PretrainingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    top_k: int = 5,
    *,
    strips_before: bool = False,
) -> list[list[list[Guess]]]:
    """The most probable tokens for each [MASK] of each text, while its other masks stay masks.

    A text that is longer than the model allows is seen by a mask as far as it stands around it.

    Args:
        texts: each with the mask token written as the tokenizer writes it.
        strips_before: see `strips_before_mask`.

    Returns:
        For each text and each of its masks `top_k` guesses, best first.

    Raises:
        InputError: a text has no mask.
    """
    mask_token = tokenizer.tokens([tokenizer.mask_id])[0]
    sequences: list[np.ndarray] = []
    positions: list[int] = []  # of each mask in the flat batch
    counts, offset = [], 0
    for number, text in enumerate(texts, start=1):
        ids, masks = encode_masked(tokenizer, text, strips_before=strips_before)
        if len(masks) == 0:
            raise InputError(f"there is no {mask_token} to fill in {text!r}.", f"text {number}")
        counts.append(len(masks))
        for window, places in _windows(ids, masks, model.encoder.config.max_sequence_length - 2):
            sequences.append(np.concatenate([[tokenizer.cls_id], window, [tokenizer.sep_id]]))
            positions += [offset + 1 + place for place in places]
            offset += len(sequences[-1])
    with torch.inference_mode():
        device = next(model.parameters()).device
        hidden_MD = model.encoder(pack(sequences).to(device), torch.tensor(positions, device=device))
        logits_MV = model.vocabulary(hidden_MD)
        best = logits_MV.float().softmax(-1).topk(min(top_k, logits_MV.shape[-1]))
    scores, tokens = iter(best.values.tolist()), iter(best.indices.tolist())
    return [
        [
            [
                Guess(tokenizer.tokens([token_id])[0], score, _filled(tokenizer, text, place, token_id))
                for score, token_id in zip(next(scores), next(tokens), strict=True)
            ]
            for place in range(count)
        ]
        for text, count in zip(texts, counts, strict=True)
    ]


def _windows(ids: np.ndarray, masks: np.ndarray, room: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """What the masks see of a text, with their places in it: all of it where it has room, else a window for each."""
    if len(ids) <= room:
        yield ids, masks.tolist()
        return
    for mask in masks.tolist():
        start = max(0, min(mask - room // 2, len(ids) - room))
        yield ids[start : start + room], [mask - start]


def _filled(tokenizer: Tokenizer, text: str, place: int, token_id: int) -> str:
    """The text with a token's word for its mask number `place`."""
    mask_token = tokenizer.tokens([tokenizer.mask_id])[0]
    word = tokenizer.decode([token_id]).removeprefix("##").strip()
    pieces = text.split(mask_token)
    return f"{mask_token.join(pieces[: place + 1])}{word}{mask_token.join(pieces[place + 1 :])}"
