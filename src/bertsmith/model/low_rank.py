"""Low-rank adaptation: an encoder learns small matrices beside its own, which are then added into them.

Hu et al. 2021, arXiv 2106.09685: W x becomes W x + (alpha / rank) B A x, where A [rank, in] and B [out, rank] are
learnt and W is not. B starts at 0, so that nothing changes at first. What is saved is W + (alpha / rank) B A, a model
like any other.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.model.encoder import Encoder, Layer

_ADAPTED = ("qkv", "attention_out", "up", "down")


class LowRankLinear(nn.Module):
    """A linear layer that is left as it is, and the product that is learnt beside it."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear
        self.scale = alpha / rank
        self.first = nn.Parameter(torch.empty(rank, linear.in_features))
        self.second = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.first, a=math.sqrt(5))  # as microsoft/LoRA does

    def forward(self, inputs: Tensor) -> Tensor:
        """[*, in] -> [*, out]"""
        output: Tensor = self.linear(inputs)
        return output + F.linear(F.linear(inputs, self.first), self.second) * self.scale

    def merged(self) -> nn.Linear:
        """The linear layer with the product added to its weight."""
        with torch.no_grad():
            self.linear.weight += self.scale * self.second @ self.first
        return self.linear


def add_low_rank(encoder: Encoder, rank: int, alpha: float) -> None:
    """Freeze the encoder, and put a product of that rank beside every matrix of its layers."""
    encoder.requires_grad_(False)
    for layer in _layers(encoder):
        for name in _ADAPTED:
            setattr(layer, name, LowRankLinear(layer.get_submodule(name), rank, alpha))  # type: ignore[arg-type]


def merge_low_rank(encoder: Encoder) -> None:
    """Add what was learnt into the matrices themselves; nothing, where there is none."""
    for layer in _layers(encoder):
        for name in _ADAPTED:
            part = layer.get_submodule(name)
            if isinstance(part, LowRankLinear):
                setattr(layer, name, part.merged())


def _layers(encoder: Encoder) -> list[Layer]:
    return [layer for layer in encoder.layers if isinstance(layer, Layer)]
