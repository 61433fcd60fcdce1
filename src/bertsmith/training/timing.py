"""How fast a device is: rounds of work in turns, and its largest matrix product."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from bertsmith.training.device import ResolvedPrecision

Clock = Callable[[], float]
"""Seconds since some moment, once all that was asked of the device is done."""

WARM_UP_ROUNDS = 2
"""Not timed: the first steps make the optimizer's moments, and have the device choose its kernels."""
FEWEST_ROUNDS = 3
MOST_ROUNDS = 30
CUDA_SHAPE, CPU_SHAPE = (8192, 8192), (4096, 1024)
"""Rows and inner width of a matrix product of a size that suits the device."""
_PRODUCTS = 8


class Turn(Protocol):
    """One side of a comparison."""

    def prepare(self) -> None:
        """What is not timed before each round."""

    def run(self) -> float:
        """A round; how many items it went through."""


def clock_of(device: torch.device) -> Clock:
    """The clock of a device, which waits for it."""

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return seconds


def speeds_in_turns(turns: Sequence[Turn], *, until: float, clock: Clock) -> list[list[float]]:
    """Items a second of each side in each round, all sides once a round, so that what else runs here hits all alike.

    Args:
        until: no round is begun that would not be over by then, as far as the longest so far tells; but three are
            taken, if the first of them ends before it. The warm-up is cut short by it, too.
    """
    for _ in range(WARM_UP_ROUNDS):
        for turn in turns:
            turn.prepare()
            turn.run()
        if clock() >= until:
            break
    speeds: list[list[float]] = [[] for _ in turns]
    longest = 0.0
    for number in range(1, MOST_ROUNDS + 1):
        round_began = clock()
        for turn, own in zip(turns, speeds, strict=True):
            turn.prepare()
            began = clock()
            items = turn.run()
            own.append(items / max(clock() - began, 1e-9))
        now = clock()
        longest = max(longest, now - round_began)
        if now >= until or (number >= FEWEST_ROUNDS and now + longest > until):
            break
    return speeds


def matrix_product_speed(precision: ResolvedPrecision, device: torch.device, clock: Clock | None = None) -> float:
    """Operations a second of the device's fastest matrix product of a size that suits it."""
    seconds = clock or clock_of(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner = CUDA_SHAPE if device.type == "cuda" else CPU_SHAPE
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(inner, rows, dtype=dtype, device=device)
    speeds = []
    for _ in range(_PRODUCTS):
        began = seconds()
        _ = left @ right
        speeds.append(2 * rows * inner * rows / max(seconds() - began, 1e-9))
    return max(speeds)
