"""How long a run is, when something in it is due, and the learning rate as a function of progress.

Progress is the share of the budget already used, in [0, 1]. The budget may be time, tokens, steps
or epochs; the schedule never needs to know which, so every kind ends as its schedule says.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

from bertsmith.errors import SettingsError
from bertsmith.training.optim import OptimizerSettings

Unit = Literal["seconds", "tokens", "steps", "epochs", "share"]

_MULTIPLIERS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME_UNIT = "(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)"
# A comma or underscore stands between thousands only: "1,5" is 1.5 to half of the world.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+|[0-9]+)"
_COUNTED = re.compile(rf"({_WHOLE}(?:\.[0-9]*)?)\s*([kKMBG]?)\s*(tokens?|steps?|epochs?)")
_TIME_PART = re.compile(rf"([0-9]+\.?[0-9]*)\s*{_TIME_UNIT}(?![a-z])")
_TIMED = re.compile(rf"(?:{_TIME_PART.pattern}\s*)+")
_PERCENT = re.compile(r"([0-9]+\.?[0-9]*)\s*%")


@dataclass(frozen=True)
class Spent:
    """What a run has used up so far."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epochs: float = 0.0


@dataclass(frozen=True)
class Budget:
    """An amount of time, tokens, steps or epochs; or, for an interval, a share of the whole run."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, name: str | None = None) -> "Budget":
        """Read what a person writes.

        Args:
            name: of the setting, with which errors begin.

        >>> Budget.parse("1h30m")
        Budget(amount=5400.0, unit='seconds')
        >>> Budget.parse("50M tokens")
        Budget(amount=50000000.0, unit='tokens')

        Raises:
            SettingsError: unreadable, or not above zero.
        """
        stripped, where = text.strip(), f"{name}: " if name else ""
        if match := _COUNTED.fullmatch(stripped):
            number, multiplier, unit = match.groups()
            amount = float(number.replace("_", "").replace(",", "")) * _MULTIPLIERS[multiplier]
            budget = cls(amount, cast(Unit, unit.rstrip("s") + "s"))
        elif _TIMED.fullmatch(stripped):
            seconds = sum(float(number) * _SECONDS[unit[0]] for number, unit in _TIME_PART.findall(stripped))
            budget = cls(seconds, "seconds")
        elif match := _PERCENT.fullmatch(stripped):
            budget = cls(float(match.group(1)) / 100, "share")
        else:
            raise SettingsError(
                f'{where}cannot read "{text}". Write a time (90s, 10m, 1h30m), or a number with its unit '
                "(50M tokens, 20000 steps, 2 epochs)."
            )
        if budget.amount <= 0:
            raise SettingsError(f'{where}"{text}" is nothing; it must be above 0.')
        return budget

    def progress(self, spent: Spent, reserve_seconds: float = 0.0) -> float:
        """The share of this budget that is used, at most 1.

        Args:
            reserve_seconds: time to leave free at the end of a time budget, for what has to happen
                after the last step; at most half of the budget is left free.
        """
        if self.unit == "seconds":
            return min(1.0, spent.seconds / max(self.amount - reserve_seconds, self.amount / 2))
        return min(1.0, self.used(spent) / self.amount)

    def used(self, spent: Spent, progress: float = 0.0) -> float:
        """How much is used, in the unit of this amount; `progress` is for a share of the run."""
        used: dict[Unit, float] = {
            "seconds": spent.seconds,
            "tokens": spent.tokens,
            "steps": spent.step,
            "epochs": spent.epochs,
            "share": progress,
        }
        return used[self.unit]


class Interval:
    """Says when another amount has been used up since it was asked last."""

    def __init__(self, every: Budget) -> None:
        self._every = every
        self._times = 0

    def is_due(self, spent: Spent, progress: float) -> bool:
        """Whether a multiple of the amount was passed since the last call."""
        # The small number keeps 0.3 / 0.1 = 2.9999... from being late by a step.
        times = int(self._every.used(spent, progress) / self._every.amount + 1e-9)
        # The progress of a time budget can go back a little, when a step took long.
        is_due = times > self._times
        self._times = max(times, self._times)
        return is_due


def rate(progress: float, step: int, settings: OptimizerSettings) -> float:
    """The learning rate of the step that follows `step` finished ones: up from 0, then as the schedule says.

    With a budget of steps, "linear" and "cosine" are the schedules of that name of transformers, and
    "wsd" is its `get_wsd_schedule` with a decay of "1-sqrt", the shape of Hägele et al. 2024 (arXiv
    2405.18392). "bert-original" falls linearly from step 0 on and is only hidden by the warm-up, so that
    it drops to (1 - warm-up share) of the peak when that ends (google-research/bert, optimization.py).
    """
    warmup = _warmup(progress, step, settings)
    if settings.warmup_steps is not None and step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if progress < warmup:
        return settings.learning_rate * progress / warmup
    match settings.preset.schedule:
        case "linear":
            return settings.learning_rate * max(0.0, 1.0 - progress) / max(1.0 - warmup, 1e-12)
        case "bert-original":
            return settings.learning_rate * max(0.0, 1.0 - progress)
        case "cosine":
            return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * _used(progress, warmup)))
        case "wsd":
            return settings.learning_rate * (1.0 - math.sqrt(_used(progress, _decay_start(warmup, settings))))
        case "constant":
            return settings.learning_rate


def is_stable(progress: float, step: int, settings: OptimizerSettings) -> bool:
    """Whether the rate stands at its peak, where it does not depend on how much of the run is left."""
    is_warm = step >= (settings.warmup_steps or 0) and progress >= _warmup(progress, step, settings)
    return is_warm and settings.preset.schedule in ("wsd", "constant") and not is_falling(progress, step, settings)


def is_falling(progress: float, step: int, settings: OptimizerSettings) -> bool:
    """Whether the rate of "wsd" has begun to fall; no other schedule has a moment where it does."""
    start = _decay_start(_warmup(progress, step, settings), settings)
    # The small number is for 1 - 0.2 beside 1000 / 1250. At its end a run has fallen, in however short a time.
    return settings.preset.schedule == "wsd" and (progress > start + 1e-9 or progress >= 1)


def _warmup(progress: float, step: int, settings: OptimizerSettings) -> float:
    """The share of the run that is warm-up; if that is given in steps, an estimate for when they are over."""
    if settings.warmup_steps is None:
        return settings.warmup_share
    return min(progress, settings.warmup_steps * progress / step) if step else 0.0


def _used(progress: float, start: float) -> float:
    """How much of what follows `start` is used up, in [0, 1]; 1 at the end of the run."""
    if progress >= 1:
        return 1.0
    return 1.0 - (1.0 - progress) / max(1.0 - start, 1e-12) if progress > start else 0.0


def _decay_start(warmup: float, settings: OptimizerSettings) -> float:
    """The progress at which "wsd" begins to fall."""
    return max(warmup, 1.0 - settings.decay_share)
