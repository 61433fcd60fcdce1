"""Masked language model: predict the hidden tokens of a sequence from both sides.

What is hidden is decided in `masking`, anew in every epoch, as in RoBERTa (Liu et al. 2019, section 4.1).
Shape letters: M masked positions, V vocabulary, D hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.errors import InputError
from bertsmith.model.batch import pack
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.text.tokenizer import Tokenizer


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
    room = model.encoder.config.max_sequence_length - 2
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
