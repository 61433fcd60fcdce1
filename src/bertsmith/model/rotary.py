"""Rotary positions (Su et al. 2021, RoFormer, arXiv 2104.09864): queries and keys are turned by angles that grow
with the position, so that their product depends on how far apart two tokens are.

Shape letters: T tokens, N heads, H head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of every token's angles, float32 [T, 1, 1, H]; the second half of H repeats the first."""

    cosines: Tensor
    sines: Tensor

    def turn(self, qkv_T3NH: Tensor) -> Tensor:
        """Queries, keys and values with the first two turned, in the dtype of the argument; computed in float32."""
        turned_T2NH = qkv_T3NH[:, :2].float()
        first, second = turned_T2NH.chunk(2, dim=-1)
        swapped = torch.cat([-second, first], dim=-1)
        turned_T2NH = turned_T2NH * self.cosines + swapped * self.sines
        return torch.cat([turned_T2NH.to(qkv_T3NH.dtype), qkv_T3NH[:, 2:]], dim=1)


def rotation(position_ids: Tensor, head_size: int, theta: float) -> Rotation:
    """The angles position / theta^(2i / H) for i in [0, H / 2), the halves laid out as Hugging Face does.

    Args:
        position_ids: int64 [T].
        head_size: H, even.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_ids.device) / head_size
    angles = position_ids.float()[:, None] * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)[:, None, None, :]
    return Rotation(angles.cos(), angles.sin())
