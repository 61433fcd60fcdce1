"""Rounds in turns on a clock that stands still but for what is told to take time, and the arithmetic of a product."""

import itertools
from typing import Any

import pytest
import torch

from bertsmith.training import timing
from bertsmith.training.timing import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    WARM_UP_ROUNDS,
    clock_of,
    matrix_product_speed,
    speeds_in_turns,
)


class Hours:
    """A clock, and sides that take their time on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, seconds: float, items: float, preparing: float = 0.0) -> Any:
        hours = self

        class Side:
            def prepare(self) -> None:
                hours.now += preparing

            def run(self) -> float:
                hours.log.append(name)
                hours.now += seconds
                return items

        return Side()


def test_sides_take_turns_and_only_their_rounds_are_timed() -> None:
    hours = Hours()
    sides = [hours.side("ours", 2.0, 10.0, preparing=0.5), hours.side("theirs", 4.0, 10.0)]
    ours, theirs = speeds_in_turns(sides, until=100.0 + 6.5 * (WARM_UP_ROUNDS + 5), clock=hours)
    assert ours == [5.0] * 5 and theirs == [2.5] * 5
    assert hours.log == ["ours", "theirs"] * (WARM_UP_ROUNDS + 5)


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(1.0, MOST_ROUNDS), (10.0, 8), (19.0, FEWEST_ROUNDS), (25.0, FEWEST_ROUNDS - 1), (40.0, 1), (200.0, 1)],
)
def test_no_round_is_begun_that_would_end_too_late(seconds: float, rounds: int) -> None:
    hours = Hours()
    (ours,) = speeds_in_turns([hours.side("ours", seconds, 1.0)], until=200.0, clock=hours)
    assert len(ours) == rounds
    if seconds * (WARM_UP_ROUNDS + FEWEST_ROUNDS) <= 100:
        assert hours.now <= 200.0


def test_a_matrix_product_has_two_operations_for_each_product_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CPU_SHAPE", (8, 4))
    ticks = itertools.accumulate(itertools.cycle([0.0, 2.0, 0.0, 0.5]))  # from one reading of the clock to the next
    speed = matrix_product_speed("fp32", torch.device("cpu"), lambda: next(ticks))
    assert speed == 2 * 8 * 4 * 8 / 0.5


def test_the_clock_of_a_device_goes_forward() -> None:
    clock = clock_of(torch.device("cpu"))
    assert clock() <= clock()


def test_the_warm_up_ends_with_the_time() -> None:
    hours = Hours()
    speeds_in_turns([hours.side("ours", 60.0, 1.0), hours.side("theirs", 60.0, 1.0)], until=200.0, clock=hours)
    assert hours.log == ["ours", "theirs"] * 2  # one round of warming up, one that is timed
