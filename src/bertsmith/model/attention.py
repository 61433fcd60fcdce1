"""Attention within each sequence of a packed batch. The only file that knows how sequences are laid out.

    reference_attention   one sequence after the other: slow and plain, what the others are tested against
    CPU                   groups of sequences of (almost) equal length as batched matrix products. With bf16 on
                          processors without AMX this beats `scaled_dot_product_attention` up to three times
    CUDA                  the variable-length flash kernel, for 16-bit tensors
    anything else         `scaled_dot_product_attention` on the same groups

Shape letters: T tokens, S sequences, N heads, H head size, L length of a group, G its sequences, B = G * N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertsmith.model.dropout import keep_mask

_CHUNK_SCORES = 1 << 22
"""Attention scores of one group at most (where a group has more than one sequence), so that the softmax
finds them still in the cache of the processor."""
_GROUP_COST_SCORES = 1 << 17
"""How many scores could be computed in the time that one more group costs in calls."""
_LENGTH_STEP = 8
"""Lengths of padded groups are multiples of this: fewer shapes, for which kernels are made once each."""
_variable_length_kernel = torch.ops.aten._flash_attention_forward
_FLASH_HEAD_SIZE = 256
"""The largest head that the variable-length kernel takes."""


@dataclass(frozen=True)
class Reach:
    """Which tokens of its own sequence a token sees: all, unless said otherwise."""

    is_causal: bool = False
    """Itself and those before it."""
    distance: int | None = None
    """Those at most this many places away, on either side."""

    @property
    def is_everything(self) -> bool:
        """Whether nothing is out of reach."""
        return not self.is_causal and self.distance is None

    @property
    def window_size(self) -> tuple[int, int]:
        """How far a token sees to its left and right, as the variable-length kernel takes it: -1 is all the way."""
        distance = -1 if self.distance is None else self.distance
        return distance, 0 if self.is_causal else distance

    def visible(self, length: int, device: torch.device) -> Tensor:
        """bool [length, length]: whether the token of the row sees that of the column."""
        places = torch.arange(length, device=device)
        ahead = places[None, :] - places[:, None]
        visible = torch.ones(length, length, dtype=torch.bool, device=device)
        if self.is_causal:
            visible &= ahead <= 0
        if self.distance is not None:
            visible &= ahead.abs() <= self.distance
        return visible


EVERYTHING = Reach()


@dataclass(frozen=True)
class Group:
    """Sequences computed together as `count` rows of `length` slots.

    A group of consecutive sequences of equal length is the slice of tokens from `start`, and has no index.
    """

    count: int
    length: int
    start: int
    token_index: Tensor | None  # [t] int64: the group's tokens, where they are not one slice
    slot_index: Tensor | None  # [t] int64: the slot of each of them in count * length; None without padding
    source_index: Tensor | None  # [count * length] int64: what fills every slot; padding repeats its own sequence
    is_padding: Tensor | None  # [count, length] bool

    def take(self, values_T: Tensor) -> Tensor:
        """[T, ...] -> [count * length, ...]; a view if the group is a slice."""
        if self.source_index is None:
            return values_T.narrow(0, self.start, self.count * self.length)
        return values_T.index_select(0, self.source_index)

    def take_with_zeros(self, values_T: Tensor) -> Tensor:
        """As `take`, but padding slots hold zeros, as gradients must."""
        if self.slot_index is None or self.token_index is None:
            return self.take(values_T)
        slots = values_T.new_zeros(self.count * self.length, *values_T.shape[1:])
        return slots.index_copy_(0, self.slot_index, values_T.index_select(0, self.token_index))

    def without_padding(self, slots: Tensor) -> Tensor:
        """[count * length, ...] -> [t, ...]"""
        return slots if self.slot_index is None else slots.index_select(0, self.slot_index)

    def visible(self, reach: Reach, device: torch.device) -> Tensor | None:
        """bool [count or 1, 1, length or 1, length], what the slot of the row sees; None: everything.

        A padding slot sees itself, so that its softmax has something to sum; what it gives is thrown away.
        """
        if reach.is_everything:
            return None if self.is_padding is None else ~self.is_padding[:, None, None, :]
        visible_LL = reach.visible(self.length, device)
        if self.is_padding is None:
            return visible_LL[None, None]
        itself_LL = torch.eye(self.length, dtype=torch.bool, device=device)
        return (visible_LL & ~self.is_padding[:, None, None, :]) | itself_LL

    def put(self, target_T: Tensor, slots: Tensor) -> None:
        """Write [count * length, ...] where `take` took it from."""
        if self.token_index is None:
            target_T.narrow(0, self.start, self.count * self.length).copy_(slots)
        else:
            target_T.index_copy_(0, self.token_index, self.without_padding(slots))


@dataclass(frozen=True)
class Layout:
    """How a batch of S sequences, of any lengths in any order, is computed.

    Made once a batch and used by every layer; each device works out only what its kernel asks for.
    """

    lengths: tuple[int, ...]  # each at least 1
    num_heads: int
    device: torch.device

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            # Not first in a compiled layer, which would take the lengths themselves for constants.
            _ = self.longest, self.offsets

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """[S + 1] int32, as the variable-length kernel takes them."""
        offsets = [0, *accumulate(self.lengths)]
        host = torch.tensor(offsets, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        return host.to(self.device, non_blocking=True)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every sequence in one group, those of similar length together."""
        length_S = np.array(self.lengths, dtype=np.int64)
        starts_S = np.cumsum(length_S) - length_S
        by_length = np.argsort(-length_S, kind="stable")
        cuts = _cut_into_groups(length_S[by_length].tolist(), self.num_heads)
        groups = []
        for start, end in zip(cuts, [*cuts[1:], len(by_length)], strict=True):
            chunk = max(1, _CHUNK_SCORES // (self.num_heads * int(length_S[by_length[start]]) ** 2))
            for first in range(start, end, chunk):
                members = np.sort(by_length[first : min(first + chunk, end)])
                groups.append(_group(length_S[members], starts_S[members], self.device))
        return tuple(groups)


@dataclass(frozen=True)
class Room:
    """Where sequences are, in a batch of a fixed size: all that the variable-length kernel asks for."""

    offsets: Tensor  # [S + 1] int32
    longest: int  # tokens of a sequence at most


def _cut_into_groups(lengths: Sequence[int], num_heads: int) -> list[int]:
    """Where to cut sequences of falling length into groups: the first index of each group.

    The cheapest cuts by dynamic programming, where a group costs its scores (padding included) and
    _GROUP_COST_SCORES. Cuts fall only between different lengths rounded up to _LENGTH_STEP.
    """
    rounded = [_round_up(length) for length in lengths]
    starts = [0] + [i for i in range(1, len(lengths)) if rounded[i] != rounded[i - 1]]
    ends = [*starts[1:], len(lengths)]
    best_cost, best_start = [0], [0]
    row_scores = [num_heads * lengths[start] ** 2 for start in starts]
    for last, end in enumerate(ends):
        costs = [best_cost[first] + (end - starts[first]) * row_scores[first] for first in range(last + 1)]
        cheapest = min(costs)
        best_cost.append(cheapest + _GROUP_COST_SCORES)
        best_start.append(costs.index(cheapest))
    cuts: list[int] = []
    place = len(ends)
    while place > 0:
        place = best_start[place]
        cuts.append(starts[place])
    return cuts[::-1]


def _group(lengths: np.ndarray, starts: np.ndarray, device: torch.device) -> Group:
    """The group of some sequences, given how long they are and where they start (rising)."""
    count, longest = len(lengths), int(lengths.max())
    is_equal = bool((lengths == longest).all())
    if is_equal and starts[-1] - starts[0] == (count - 1) * longest:
        return Group(count, longest, int(starts[0]), None, None, None, None)
    length = longest if is_equal else _round_up(longest)
    places = np.arange(length)
    is_token = places < lengths[:, None]
    # Padding is filled from the sequence itself, so that not even a NaN can pass from one sequence to another.
    source = (starts[:, None] + np.where(is_token, places, 0)).ravel()
    source_index = torch.from_numpy(source).to(device, non_blocking=True)
    if is_equal:
        return Group(count, length, 0, source_index, None, source_index, None)
    slots = np.flatnonzero(is_token)
    tokens, slot_index, is_padding = (
        torch.from_numpy(values).to(device, non_blocking=True) for values in (source[slots], slots, ~is_token)
    )
    return Group(count, length, 0, tokens, slot_index, source_index, is_padding)


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def uses_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `attention` of such queries is by the variable-length kernel."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and is_half and head_size % 8 == 0 and head_size <= _FLASH_HEAD_SIZE


def attention(qkv_T3NH: Tensor, layout: Layout | Room, dropout: float, reach: Reach = EVERYTHING) -> Tensor:
    """softmax(q k' / sqrt(H)) v within each sequence, over the tokens in reach.

    Args:
        layout: a `Room` only where `uses_flash`.
        qkv_T3NH: queries, keys and values of every token, in any floating dtype; the softmax accumulates in fp32.
        dropout: probability of dropping an attention weight; with 0 no random number is drawn.

    Returns:
        [T, N, H] in the dtype of the argument.
    """
    if uses_flash(qkv_T3NH.device, qkv_T3NH.dtype, qkv_T3NH.shape[-1]):
        return flash(qkv_T3NH, layout, dropout, reach)
    assert isinstance(layout, Layout)
    output_TNH: Tensor
    if qkv_T3NH.device.type == "cpu":
        output_TNH = _on_cpu(qkv_T3NH, layout, dropout, reach)
        return output_TNH
    output_TNH = grouped_sdpa(qkv_T3NH, layout, dropout, reach)
    return output_TNH


def attention_weights(qkv_L3NH: Tensor, reach: Reach = EVERYTHING) -> Tensor:
    """softmax(q k' / sqrt(H)) of one sequence over the tokens in reach: [L, 3, N, H] -> [N, L, L]."""
    query_NLH, key_NLH, _ = qkv_L3NH.permute(1, 2, 0, 3)
    scores_NLL = query_NLH @ key_NLH.transpose(1, 2) / query_NLH.shape[-1] ** 0.5
    hidden_LL = ~reach.visible(scores_NLL.shape[-1], scores_NLL.device)
    return torch.softmax(scores_NLL.masked_fill(hidden_LL, float("-inf")), dim=-1)


def reference_attention(qkv_T3NH: Tensor, lengths: Sequence[int], reach: Reach = EVERYTHING) -> Tensor:
    """The definition, sequence by sequence in the dtype of the argument: [T, 3, N, H] -> [T, N, H]."""
    outputs = []
    for qkv_L3NH in torch.split(qkv_T3NH, list(lengths)):
        value_NLH = qkv_L3NH[:, 2].transpose(0, 1)
        outputs.append((attention_weights(qkv_L3NH, reach) @ value_NLH).transpose(0, 1))
    return torch.cat(outputs)


def flash(qkv_T3NH: Tensor, layout: Layout | Room, dropout: float, reach: Reach = EVERYTHING) -> Tensor:
    """`attention` by the variable-length flash kernel: CUDA, 16 bits, head sizes of 8, 16, ... 256.

    torch's operator itself: `torch.nn.attention.varlen` calls the same without a dropout, and some versions without a
    window.
    """
    query_TNH, key_TNH, value_TNH = qkv_T3NH.unbind(1)
    left, right = reach.window_size
    output_TNH: Tensor = _variable_length_kernel(
        query_TNH,
        key_TNH,
        value_TNH,
        layout.offsets,
        layout.offsets,
        layout.longest,
        layout.longest,
        dropout,
        reach.is_causal,
        False,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return output_TNH


def grouped_sdpa(qkv_T3NH: Tensor, layout: Layout, dropout: float, reach: Reach = EVERYTHING) -> Tensor:
    """`attention` by PyTorch's own kernels on every group, for devices we have no better way for."""
    outputs, indices = [], []
    for group in layout.groups:
        qkv_GL3NH = group.take(qkv_T3NH).view(group.count, group.length, *qkv_T3NH.shape[1:])
        query_GNLH, key_GNLH, value_GNLH = qkv_GL3NH.permute(2, 0, 3, 1, 4)
        visible = group.visible(reach, qkv_T3NH.device)
        output_GNLH = F.scaled_dot_product_attention(query_GNLH, key_GNLH, value_GNLH, visible, dropout)
        outputs.append(group.without_padding(output_GNLH.transpose(1, 2).flatten(0, 1)))
        end = group.start + group.count * group.length
        index = group.token_index
        indices.append(torch.arange(group.start, end, device=qkv_T3NH.device) if index is None else index)
    return torch.zeros_like(qkv_T3NH[:, 0]).index_copy(0, torch.cat(indices), torch.cat(outputs))


def _on_cpu(qkv_T3NH: Tensor, layout: Layout, dropout: float, reach: Reach) -> Tensor:
    # The inputs fix the dtype: under autocast the softmax would come back in another.
    with torch.autocast("cpu", enabled=False):
        if torch.is_grad_enabled() and qkv_T3NH.requires_grad:
            output_TNH: Tensor = _GroupedProducts.apply(qkv_T3NH, layout, dropout, reach)  # type: ignore[no-untyped-call]
            return output_TNH
        return _grouped_products(qkv_T3NH, layout, dropout, reach, None)


@dataclass(frozen=True)
class _Saved:
    """What the backward pass of one group needs."""

    qkv_3BLH: Tensor
    weights_BLL: Tensor  # after the softmax, before dropout
    keep_BLL: Tensor | None  # the dropout multipliers


def _grouped_products(
    qkv_T3NH: Tensor, layout: Layout, dropout: float, reach: Reach, saved: list[_Saved] | None
) -> Tensor:
    """The forward pass on the CPU; fills `saved` for the backward pass if it is given."""
    num_heads, head_size = qkv_T3NH.shape[2:]
    output_TNH = torch.empty_like(qkv_T3NH[:, 0])
    for group in layout.groups:
        shape = (group.count, group.length)
        qkv_3GNLH = group.take(qkv_T3NH).view(*shape, 3, num_heads, head_size).permute(2, 0, 3, 1, 4)
        qkv_3BLH = qkv_3GNLH.contiguous().flatten(1, 2)
        query_BLH, key_BLH, value_BLH = qkv_3BLH
        bias = query_BLH.new_zeros(1)
        visible_G1LL = group.visible(reach, qkv_T3NH.device)
        if visible_G1LL is not None:
            bias_G1LL = query_BLH.new_zeros(visible_G1LL.shape).masked_fill_(~visible_G1LL, float("-inf"))
            bias = bias_G1LL[:, 0] if len(bias_G1LL) == 1 else bias_G1LL[:, 0].repeat_interleave(num_heads, dim=0)
        scores_BLL = torch.baddbmm(
            bias.expand(len(query_BLH), group.length, group.length),
            query_BLH,
            key_BLH.transpose(1, 2),
            beta=0 if visible_G1LL is None else 1,
            alpha=head_size**-0.5,
        )
        weights_BLL = torch.softmax(scores_BLL, dim=-1)
        keep_BLL = keep_mask(tuple(weights_BLL.shape), dropout, weights_BLL.dtype) if dropout > 0 else None
        dropped_BLL = weights_BLL if keep_BLL is None else weights_BLL * keep_BLL
        output_GNLH = torch.bmm(dropped_BLL, value_BLH).view(group.count, num_heads, group.length, head_size)
        group.put(output_TNH, output_GNLH.transpose(1, 2).flatten(0, 1))
        if saved is not None:
            saved.append(_Saved(qkv_3BLH, weights_BLL, keep_BLL))
    return output_TNH


class _GroupedProducts(torch.autograd.Function):
    """`_grouped_products` with its gradient by hand, which writes every group straight into one tensor."""

    @staticmethod
    def forward(ctx: Any, qkv_T3NH: Tensor, layout: Layout, dropout: float, reach: Reach) -> Tensor:
        saved: list[_Saved] = []
        output_TNH = _grouped_products(qkv_T3NH, layout, dropout, reach, saved)
        ctx.layout = layout
        ctx.save_for_backward(*(t for s in saved for t in (s.qkv_3BLH, s.weights_BLL, s.keep_BLL)))
        return output_TNH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_TNH,) = gradients
        tail = num_heads, head_size = gradient_TNH.shape[1:]
        result_T3NH = gradient_TNH.new_empty(len(gradient_TNH), 3, num_heads, head_size)
        saved = ctx.saved_tensors  # once: gradient checkpointing lets nobody read them twice
        for i, group in enumerate(ctx.layout.groups):
            qkv_3BLH, weights_BLL, keep_BLL = saved[3 * i : 3 * i + 3]
            query_BLH, key_BLH, value_BLH = qkv_3BLH
            gradient_GLNH = group.take_with_zeros(gradient_TNH).reshape(group.count, group.length, *tail)
            gradient_BLH = gradient_GLNH.transpose(1, 2).flatten(0, 1)
            dropped_BLL = weights_BLL if keep_BLL is None else weights_BLL * keep_BLL
            result_3BLH = torch.empty_like(qkv_3BLH)
            torch.bmm(dropped_BLL.transpose(1, 2), gradient_BLH, out=result_3BLH[2])
            through_weights_BLL = torch.bmm(gradient_BLH, value_BLH.transpose(1, 2))
            if keep_BLL is not None:
                through_weights_BLL *= keep_BLL
            through_scores_BLL = torch._softmax_backward_data(through_weights_BLL, weights_BLL, -1, weights_BLL.dtype)
            torch.bmm(through_scores_BLL, key_BLH, out=result_3BLH[0])
            torch.bmm(through_scores_BLL.transpose(1, 2), query_BLH, out=result_3BLH[1])
            result_3BLH[:2] *= head_size**-0.5
            result_3GNLH = result_3BLH.view(3, group.count, num_heads, group.length, head_size)
            group.put(result_T3NH, result_3GNLH.permute(1, 3, 0, 2, 4).flatten(0, 1))
        return result_T3NH, None, None, None
