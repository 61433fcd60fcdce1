"""Schedules beside those of transformers and of google-research/bert; budgets as people write them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from bertsmith.errors import SettingsError
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.schedule import Budget, Interval, Spent, is_stable, rate

PEAK = 3e-4


def of_transformers(make: Callable[..., LRScheduler], steps: int, *arguments: int, **options: Any) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = make(optimizer, *arguments, **options)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def ours(schedule: str, warmup_steps: int, steps: int, given_as: str, **options: Any) -> list[float]:
    warmup = {"warmup_share": warmup_steps / steps} if given_as == "share" else {"warmup_steps": warmup_steps}
    settings = OptimizerSettings(learning_rate=PEAK, schedule=schedule, **warmup, **options)
    budget = Budget.parse(f"{steps} steps")
    return [rate(budget.progress(Spent(step=step)), step, settings) for step in range(steps)]


@pytest.mark.conformance
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 30, 99])
@pytest.mark.parametrize("given_as", ["share", "steps"])
@pytest.mark.parametrize(
    ("schedule", "make", "more"),
    [
        ("linear", get_linear_schedule_with_warmup, (100,)),
        ("cosine", get_cosine_schedule_with_warmup, (100,)),
        ("constant", get_constant_schedule_with_warmup, ()),
    ],
)
def test_the_schedule_is_that_of_transformers(
    schedule: str, make: Callable[..., LRScheduler], more: tuple[int, ...], warmup_steps: int, given_as: str
) -> None:
    expected = of_transformers(make, 100, warmup_steps, *more)
    assert ours(schedule, warmup_steps, 100, given_as) == pytest.approx(expected, abs=1e-12)


@pytest.mark.conformance
@pytest.mark.parametrize("warmup_steps", [0, 7, 60])
@pytest.mark.parametrize("given_as", ["share", "steps"])
@pytest.mark.parametrize("decay_steps", [1, 20, 40])
def test_wsd_is_that_of_transformers(warmup_steps: int, given_as: str, decay_steps: int) -> None:
    options = {"num_decay_steps": decay_steps, "num_stable_steps": 100 - warmup_steps - decay_steps}
    expected = of_transformers(get_wsd_schedule, 100, warmup_steps, decay_type="1-sqrt", **options)
    rates = ours("wsd", warmup_steps, 100, given_as, decay_share=decay_steps / 100)
    # The square root makes the rounding of 1 - 0.2 more than it was.
    assert rates == pytest.approx(expected, abs=1e-11)


def of_google(initial: float, num_train_steps: int, num_warmup_steps: int) -> list[float]:
    """create_optimizer of google-research/bert, optimization.py, in float32 as there."""
    rates = []
    for global_step in range(num_train_steps):
        # tf.train.polynomial_decay(learning_rate, global_step, num_train_steps, 0.0, power=1.0, cycle=False)
        fraction = np.float32(min(global_step, num_train_steps)) / np.float32(num_train_steps)
        learning_rate = (np.float32(initial) - np.float32(0.0)) * (np.float32(1.0) - fraction) + np.float32(0.0)
        if num_warmup_steps:
            done = np.float32(global_step) / np.float32(num_warmup_steps)
            is_warmup = np.float32(global_step < num_warmup_steps)
            learning_rate = (np.float32(1.0) - is_warmup) * learning_rate + is_warmup * (np.float32(initial) * done)
        rates.append(float(learning_rate))
    return rates


@pytest.mark.conformance
@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 99])
@pytest.mark.parametrize("given_as", ["share", "steps"])
def test_bert_original_is_the_schedule_of_google(warmup_steps: int, given_as: str) -> None:
    expected = of_google(PEAK, 100, warmup_steps)
    assert ours("bert-original", warmup_steps, 100, given_as) == pytest.approx(expected, rel=1e-6, abs=1e-7 * PEAK)


def test_bert_original_never_reaches_its_peak_and_is_that_optimizers_own() -> None:
    settings = OptimizerSettings(learning_rate=1.0, warmup_share=0.1, optimizer="bert-original")
    assert [rate(progress, 0, settings) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx(
        [0.0, 0.5, 0.9, 0.45, 0.0]
    )
    assert rate(0.1, 0, OptimizerSettings(learning_rate=1.0, optimizer="bert-original", schedule="linear")) == 1.0


SCHEDULES = ["linear", "bert-original", "cosine", "wsd", "constant"]


@given(
    progress=st.floats(0, 1),
    step=st.integers(0, 10**6),
    share=st.floats(0, 0.99),
    warmup_steps=st.none() | st.integers(0, 10**4),
    schedule=st.sampled_from(SCHEDULES),
    decay_share=st.floats(0, 0.99),
)
@example(progress=1.0, step=0, share=0.0, warmup_steps=None, schedule="wsd", decay_share=0.0)
@example(progress=1 - 1e-16, step=0, share=0.0, warmup_steps=None, schedule="wsd", decay_share=0.0)
def test_rates_stay_between_zero_and_the_peak(
    progress: float, step: int, share: float, warmup_steps: int | None, schedule: str, decay_share: float
) -> None:
    settings = OptimizerSettings(
        learning_rate=2.0,
        warmup_share=share,
        warmup_steps=warmup_steps,
        schedule=schedule,
        **({"decay_share": decay_share} if schedule == "wsd" else {}),
    )
    assert 0 <= rate(progress, step, settings) <= 2.0 * (1 + 1e-9)
    if is_stable(progress, step, settings):
        assert rate(progress, step, settings) == pytest.approx(2.0, rel=1e-4)
    if step > (warmup_steps or 0) and schedule != "constant":
        assert rate(1.0, step, settings) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "stable"),
    [("wsd", range(10, 81)), ("constant", range(10, 101)), *((name, ()) for name in SCHEDULES[:3])],
)
@pytest.mark.parametrize("warmup", [{"warmup_share": 0.1}, {"warmup_steps": 10}])
def test_where_the_rate_does_not_depend_on_the_end(schedule: str, stable: Any, warmup: dict[str, Any]) -> None:
    settings = OptimizerSettings(schedule=schedule, **warmup)
    assert [step for step in range(101) if is_stable(step / 100, step, settings)] == list(stable)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("90s", 90, "seconds"),
        ("10m", 600, "seconds"),
        ("3h", 10800, "seconds"),
        ("1h30m", 5400, "seconds"),
        ("1.5 h", 5400, "seconds"),
        ("2 days", 172800, "seconds"),
        ("10 minutes", 600, "seconds"),
        (" 50M tokens ", 5e7, "tokens"),
        ("2B tokens", 2e9, "tokens"),
        ("1.5k tokens", 1500, "tokens"),
        ("20_000 steps", 20000, "steps"),
        ("20,000 steps", 20000, "steps"),
        ("1,234,567.5 tokens", 1234567.5, "tokens"),
        ("1 step", 1, "steps"),
        ("2 epochs", 2, "epochs"),
        ("0.5 epoch", 0.5, "epochs"),
        ("10%", 0.1, "share"),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(pytest.approx(amount), unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "ten minutes", "5 M", "3 apples", "-1 steps", "10m tokens", "1h 2x", "%"),
        *("1,5 epochs", "1_5 epochs", "1,5000 steps", "1000,000 steps", "1,000_000 steps", "1,5h"),
    ],
)
def test_an_unreadable_budget_says_what_can_be_written(text: str) -> None:
    with pytest.raises(SettingsError, match="Write a time") as caught:
        Budget.parse(text)
    assert f'"{text}"' in str(caught.value)


@pytest.mark.parametrize("text", ["0 steps", "0m", "0%"])
def test_a_budget_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="above 0"):
        Budget.parse(text)


def test_progress_is_the_share_that_is_used() -> None:
    spent = Spent(step=25, tokens=1000, seconds=30.0, epochs=0.5)
    shares = {"100 steps": 0.25, "4k tokens": 0.25, "2m": 0.25, "2 epochs": 0.25, "10 steps": 1.0}
    assert {text: Budget.parse(text).progress(spent) for text in shares} == shares


def test_time_set_aside_brings_the_end_forward_but_never_to_the_first_half() -> None:
    budget = Budget.parse("100s")
    assert budget.progress(Spent(seconds=90), reserve_seconds=10) == 1.0
    assert budget.progress(Spent(seconds=45), reserve_seconds=10) == 0.5
    assert budget.progress(Spent(seconds=25), reserve_seconds=1000) == 0.5
    # Only time is set aside in time.
    assert Budget.parse("100 steps").progress(Spent(step=50), reserve_seconds=10) == 0.5


@given(steps=st.integers(10, 5000), percent=st.sampled_from([5, 10, 20, 25, 30]))
def test_an_interval_in_shares_comes_as_often_as_it_says(steps: int, percent: int) -> None:
    budget, interval = Budget.parse(f"{steps} steps"), Interval(Budget.parse(f"{percent}%"))
    due = [step for step in range(1, steps + 1) if interval.is_due(Spent(step=step), budget.progress(Spent(step=step)))]
    multiples = range(1, 100 // percent + 1)
    # The same in whole numbers: the first step at or after each multiple.
    assert due == sorted({-(-multiple * percent * steps // 100) for multiple in multiples})


def test_an_interval_in_epochs_and_one_that_steps_back() -> None:
    interval = Interval(Budget.parse("1 epoch"))
    epochs = [0.5, 1.0, 1.5, 1.9, 2.5, 1.8, 2.6, 4.0]
    assert [interval.is_due(Spent(epochs=value), 0.0) for value in epochs] == [
        False, True, False, False, True, False, False, True,
    ]  # fmt: skip
