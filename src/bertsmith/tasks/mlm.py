"""Masked language model: hide some pieces of a sequence, predict them from both sides.

The rules are those of google-research/bert `create_masked_lm_predictions`: an exact count of
positions, of which 80 % become [MASK], 10 % a random token and 10 % stay, drawn per piece. New
masks in every epoch, as in RoBERTa (Liu et al. 2019, section 4.1).
Shape letters: L tokens of a sequence, M masked positions, V vocabulary, D hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.batch import pack
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.text.tokenizer import Tokenizer

_MASK_SHARE, _RANDOM_SHARE = 0.8, 0.1  # of the chosen positions; the rest stay as they are


@dataclass(frozen=True)
class Masked:
    """A sequence with some of its tokens hidden."""

    token_ids: np.ndarray  # [L] int64
    positions: np.ndarray  # [M] int64, ascending
    labels: np.ndarray  # [M] int64, the tokens that were there


@dataclass(frozen=True)
class Masking:
    """How many tokens are hidden, and by what.

    Attributes:
        probability: share of the sequence, [CLS] and [SEP] counted as in the original.
        count: "exact" hides round(length x probability) tokens, at least one; "bernoulli" draws
            each token by itself, so that the count varies and may be zero.
        max_predictions: upper bound for one sequence; None: no bound but the probability.
        random_specials: whether the random tokens may be [CLS], [PAD] and the like, as in the original.
    """

    probability: float = 0.15
    count: Literal["exact", "bernoulli"] = "exact"
    max_predictions: int | None = None
    random_specials: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise SettingsError(f"mask_probability must lie between 0 and 1, not {self.probability}.")


class Masker:
    """Hides tokens of a sequence by the rules of one `Masking`."""

    def __init__(self, tokenizer: Tokenizer, masking: Masking) -> None:
        self._masking = masking
        self._mask_id = tokenizer.mask_id
        self._is_special = np.isin(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
        allowed = np.arange(tokenizer.vocab_size)
        self._random_tokens = allowed if masking.random_specials else allowed[~self._is_special]

    def mask(self, token_ids: np.ndarray, random: np.random.Generator) -> Masked:
        """Hide tokens of one sequence, int64 [L]; special tokens are never hidden.

        With Python's rounding, 30 tokens at 15 % hide 4 (4.5 rounds to even), as the original does
        under Python 3.
        """
        masking = self._masking
        candidates = np.flatnonzero(~self._is_special[token_ids])
        wanted = max(1, round(len(token_ids) * masking.probability))
        if masking.count == "bernoulli":
            candidates = candidates[random.random(len(candidates)) < masking.probability]
            wanted = len(candidates)
        if masking.max_predictions is not None:
            wanted = min(wanted, masking.max_predictions)
        positions = np.sort(random.permutation(candidates)[:wanted])
        labels = token_ids[positions]
        fate = random.random(len(positions))
        random_tokens = self._random_tokens[random.integers(len(self._random_tokens), size=len(positions))]
        replaced = np.where(fate < _MASK_SHARE + _RANDOM_SHARE, random_tokens, labels)
        hidden = token_ids.copy()
        hidden[positions] = np.where(fate < _MASK_SHARE, self._mask_id, replaced)
        return Masked(hidden, positions, labels)


@dataclass(frozen=True)
class MaskedLanguageModel:
    """The objective: the hidden tokens, from the encoder's states at the masked positions only."""

    weight: float = 1.0
    name: str = "mlm"

    def labels(self, masked: Sequence[Masked]) -> tuple[dict[str, Tensor], float]:
        """Positions in the flat batch and the tokens that were there; how many they are."""
        starts = np.cumsum([0] + [len(one.token_ids) for one in masked[:-1]])
        positions_M = np.concatenate([one.positions + start for one, start in zip(masked, starts, strict=True)])
        labels_M = np.concatenate([one.labels for one in masked])
        tensors = {"masked_positions": torch.from_numpy(positions_M), "masked_labels": torch.from_numpy(labels_M)}
        return tensors, float(len(labels_M))

    def loss(self, logits_MV: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross-entropy over the masked tokens, in nats."""
        return nn.functional.cross_entropy(logits_MV.float(), labels["masked_labels"], reduction="sum")


def fill_mask(
    model: PretrainingModel, tokenizer: Tokenizer, texts: Sequence[str], top_k: int = 5
) -> list[list[dict[str, str | float | int]]]:
    """The most probable tokens for the first [MASK] of each text.

    Args:
        texts: each with the mask token written as the tokenizer writes it.

    Returns:
        For each text its `top_k` guesses, best first: token, probability, the filled text.

    Raises:
        InputError: a text has no mask.
    """
    mask_token = tokenizer.tokens([tokenizer.mask_id])[0]
    room = model.encoder.config.max_position_embeddings - 2
    token_ids, positions, offset = [], [], 0
    for number, text in enumerate(texts, start=1):
        pieces = [tokenizer.encode(piece).ids for piece in text.split(mask_token)]
        if len(pieces) == 1:
            raise InputError(f"there is no {mask_token} to fill in {text!r}.", f"text {number}")
        ids = pieces[0]
        for piece in pieces[1:]:
            ids = np.concatenate([ids, [tokenizer.mask_id], piece])
        cut = max(0, min(len(pieces[0]) - room // 2, len(ids) - room))  # keep the mask within the window
        token_ids.append(np.concatenate([[tokenizer.cls_id], ids[cut : cut + room], [tokenizer.sep_id]]))
        positions.append(offset + 1 + len(pieces[0]) - cut)
        offset += len(token_ids[-1])
    with torch.inference_mode():
        device = next(model.parameters()).device
        hidden_TD = model.encoder(pack(token_ids).to(device))
        logits_MV = model.vocabulary(hidden_TD[torch.tensor(positions, device=device)])
        best = logits_MV.float().softmax(-1).topk(min(top_k, logits_MV.shape[-1]))
    filled = []
    for text, values, ids in zip(texts, best.values.tolist(), best.indices.tolist(), strict=True):
        guesses: list[dict[str, str | float | int]] = []
        for probability, token_id in zip(values, ids, strict=True):
            token = tokenizer.tokens([token_id])[0]
            word = tokenizer.decode([token_id]).removeprefix("##").strip()
            guesses.append({"token": token, "score": probability, "text": text.replace(mask_token, word, 1)})
        filled.append(guesses)
    return filled
