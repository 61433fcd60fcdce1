"""Cross-entropy: of labels with weights, and over a vocabulary, whose logits are the largest tensor of a step.

Shape letters: S texts or words, C labels, M predicted tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def weighted_cross_entropy(logits_SC: Tensor, targets_S: Tensor, weights_C: Tensor, label_smoothing: float) -> Tensor:
    """Sum of smoothed cross-entropies in nats, each times the weight of its target.

    torch weighs the shares that smoothing gives to the other labels by those labels' own weights. So a rare label,
    which has a great one, would be the best answer to every text.

    Args:
        targets_S: int64 ids of the labels.
        label_smoothing: share of the target that is spread evenly over all labels (Szegedy et al. 2015, section 7).
    """
    each_S = F.cross_entropy(logits_SC, targets_S, label_smoothing=label_smoothing, reduction="none")
    return (each_S * weights_C.to(each_S.device)[targets_S]).sum()


def summed_cross_entropy(logits_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Sum over the tokens of -log softmax(logits)[label], computed in float32.

    With a gradient to come, only the probabilities are kept, and become the gradient where they stand: torch's own
    function keeps the logits' logarithms and makes another tensor as large.

    Args:
        logits_MV: in any floating dtype, which the gradient has too.
        labels_M: int64, each a column.

    Returns:
        A float32 scalar (float64 for float64), in nats.
    """
    if torch.is_grad_enabled() and logits_MV.requires_grad:
        total: Tensor = _SummedCrossEntropy.apply(logits_MV, labels_M)  # type: ignore[no-untyped-call]
        return total
    wide = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    return F.cross_entropy(wide, labels_M, reduction="sum")


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient of the sum is the probabilities, less one at each label."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, labels_M: Tensor) -> Tensor:
        dtype = torch.float64 if logits_MV.dtype == torch.float64 else torch.float32
        probabilities_MV = torch.softmax(logits_MV, dim=-1, dtype=dtype)
        labels_M1 = labels_M[:, None]
        # What a probability loses by underflow would be an infinite loss, so the labels' logarithms are taken apart.
        chosen_M1 = logits_MV.gather(1, labels_M1).to(dtype)
        best_M1 = logits_MV.amax(1, keepdim=True).to(dtype)
        log_sums_M1 = best_M1 - probabilities_MV.amax(1, keepdim=True).log()
        # Not among the saved tensors, which may not be written to: a second backward pass finds nothing.
        ctx.probabilities_MV, ctx.labels_M1, ctx.logits_dtype = probabilities_MV, labels_M1, logits_MV.dtype
        return (log_sums_M1 - chosen_M1).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities_MV, labels_M1 = ctx.probabilities_MV, ctx.labels_M1
        del ctx.probabilities_MV
        probabilities_MV.scatter_add_(1, labels_M1, -torch.ones_like(labels_M1, dtype=probabilities_MV.dtype))
        if probabilities_MV.dtype == ctx.logits_dtype:
            return probabilities_MV.mul_(gradient), None
        narrow_MV = torch.empty_like(probabilities_MV, dtype=ctx.logits_dtype)
        return torch.mul(probabilities_MV, gradient, out=narrow_MV), None  # scaled and rounded in one pass
