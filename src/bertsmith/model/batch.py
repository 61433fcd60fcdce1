"""Sequences of different lengths laid end to end in one flat row: no padding anywhere.

Shape letters in names: T tokens of the whole batch, S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """T tokens in S sequences; sequence s is `token_ids[offsets[s]:offsets[s + 1]]`.

    `lengths` repeats the differences of `offsets` as host integers, so that nobody has to wait for
    the device to learn a shape.
    """

    token_ids: Tensor  # [T] int64
    segment_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, counted from 0 in every sequence
    offsets: Tensor  # [S + 1] int64, from 0 to T
    lengths: tuple[int, ...]  # S host integers

    @property
    def first_tokens(self) -> Tensor:
        """[S] the index of each sequence's first token ([CLS])."""
        return self.offsets[:-1]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        return PackedBatch(
            self.token_ids.to(device, non_blocking=True),
            self.segment_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.offsets.to(device, non_blocking=True),
            self.lengths,
        )

    def pinned(self) -> "PackedBatch":
        """The same batch in memory that a CUDA device can fetch from while the processor goes on."""
        return PackedBatch(
            self.token_ids.pin_memory(),
            self.segment_ids.pin_memory(),
            self.position_ids.pin_memory(),
            self.offsets.pin_memory(),
            self.lengths,
        )


def pack(token_ids: Sequence[np.ndarray], segment_ids: Sequence[np.ndarray] | None = None) -> PackedBatch:
    """Lay S integer arrays end to end. Without `segment_ids` every token is in segment 0."""
    flat = np.concatenate(token_ids).astype(np.int64)
    segments = np.concatenate(segment_ids).astype(np.int64) if segment_ids is not None else np.zeros_like(flat)
    return pack_flat(flat, np.cumsum([0, *map(len, token_ids)], dtype=np.int64), segments)


def pack_flat(token_ids: np.ndarray, offsets: np.ndarray, segment_ids: np.ndarray) -> PackedBatch:
    """Of S sequences that lie end to end already: int64 [T] ids and segments, int64 [S + 1] offsets."""
    lengths = np.diff(offsets)
    positions = np.arange(len(token_ids), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    return PackedBatch(
        torch.from_numpy(token_ids),
        torch.from_numpy(segment_ids),
        torch.from_numpy(positions),
        torch.from_numpy(offsets),
        tuple(lengths.tolist()),
    )


def split(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Undo `pack` for any tensor [T, ...]: one tensor [length, ...] a sequence."""
    return list(torch.split(values, list(lengths)))
