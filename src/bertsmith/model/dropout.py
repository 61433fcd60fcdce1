"""Dropout whose mask costs a quarter of a random number on the CPU.

PyTorch draws one double for every element, which takes longer than the matrix product before it in
small models. Here every 64-bit word of the same generator decides four elements, so `torch.manual_seed`
governs both.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_WORDS_PER_DRAW = 4
_WORD_RANGE = 1 << 16


def keep_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> Tensor:
    """What to multiply by on the CPU: 0 with the given probability, else the 1/(1 - p) that keeps the mean.

    The probability is rounded to a multiple of 2**-16, and the scale with it.
    """
    dropped = min(round(probability * _WORD_RANGE), _WORD_RANGE - 1)
    mask = torch.empty(shape, dtype=dtype)
    draws = torch.empty(-(-mask.numel() // _WORDS_PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    words = draws.view(torch.int16)[: mask.numel()].view(shape)
    # Writing the comparison straight into floats avoids a pass over booleans, the slowest part otherwise.
    torch.ge(words, dropped - _WORD_RANGE // 2, out=mask)
    return mask.mul_(_WORD_RANGE / (_WORD_RANGE - dropped))


def dropout(values: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout on any floating tensor. Draws nothing when it has nothing to do."""
    if not training or probability == 0:
        return values
    if values.device.type == "cpu":
        mask: Tensor = keep_mask(tuple(values.shape), probability, values.dtype)
        return values * mask
    return F.dropout(values, probability)
