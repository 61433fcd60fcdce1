"""AdamW and its parameter groups, and the learning rate as a function of progress.

Progress is the share of the budget already used, in [0, 1]. The budget may be time, tokens, steps
or epochs; the schedule never needs to know which, so every kind ends fully decayed.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.optim import AdamW

from bertsmith.errors import SettingsError

Unit = Literal["seconds", "tokens", "steps", "epochs", "share"]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d)
_MULTIPLIERS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME_UNIT = "(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)"
_COUNTED = re.compile(r"([0-9][0-9_,]*\.?[0-9]*)\s*([kKMBG]?)\s*(tokens?|steps?|epochs?)")
_TIME_PART = re.compile(rf"([0-9]+\.?[0-9]*)\s*{_TIME_UNIT}(?![a-z])")
_TIMED = re.compile(rf"(?:{_TIME_PART.pattern}\s*)+")
_PERCENT = re.compile(r"([0-9]+\.?[0-9]*)\s*%")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, clipping, and the shape of the learning rate."""

    learning_rate: float = 5e-5
    """Peak, reached at the end of the warm-up."""
    weight_decay: float = 0.01
    """Decoupled; not applied to norms and biases, applied to embeddings (as google-research/bert)."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 never scales."""
    warmup_share: float = 0.1
    """Share of the budget over which the rate rises from 0; used when warmup_steps is not given."""
    warmup_steps: int | None = None
    """Steps over which the rate rises from 0."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, float("inf")),
            ("weight_decay", 0.0, float("inf")),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("max_grad_norm", 0.0, float("inf")),
            ("warmup_share", 0.0, 1.0),
            ("warmup_steps", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise SettingsError(f"{name} is {value}; it must be at least {low:g} and below {high:g}.")
        if self.epsilon <= 0:
            raise SettingsError(f"epsilon is {self.epsilon}; it must be above 0.")


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
    def parse(cls, text: str) -> "Budget":
        """Read what a person writes.

        >>> Budget.parse("1h30m")
        Budget(amount=5400.0, unit='seconds')
        >>> Budget.parse("50M tokens")
        Budget(amount=50000000.0, unit='tokens')

        Raises:
            SettingsError: unreadable, or not above zero.
        """
        stripped = text.strip()
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
                f'cannot read "{text}". Write a time (90s, 10m, 1h30m), or a number with its unit '
                "(50M tokens, 20000 steps, 2 epochs)."
            )
        if budget.amount <= 0:
            raise SettingsError(f'"{text}" is nothing; it must be above 0.')
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
    """The learning rate of the step that follows `step` finished ones: up from 0, then down to 0.

    With a budget of steps this is `transformers.get_linear_schedule_with_warmup`. With `warmup_steps`
    and any other budget, how many steps there will be is estimated from those so far.
    """
    warmup = settings.warmup_share
    if settings.warmup_steps is not None:
        if step < settings.warmup_steps:
            return settings.learning_rate * step / settings.warmup_steps
        warmup = min(1.0, settings.warmup_steps * progress / step) if step else 0.0
    if progress < warmup:
        return settings.learning_rate * progress / warmup
    return settings.learning_rate * max(0.0, 1.0 - progress) / max(1.0 - warmup, 1e-12)


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> AdamW:
    """Fused AdamW with two groups: what decays, and what does not.

    Decided by the module that owns a parameter and by its number of dimensions, never by its name:
    a pattern that expects "LayerNorm" misses a module called `norm1`. A tied parameter is in one
    group, once.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_exempt = isinstance(module, _NORMS) or parameter.ndim < 2
            (undecayed if is_exempt else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, settings.weight_decay), (undecayed, 0.0))
        if parameters
    ]
    return AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
