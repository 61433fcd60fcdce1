"""Parameter groups and schedules beside those of transformers; budgets as people write them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForPreTraining, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from bertsmith.errors import SettingsError
from bertsmith.training.optim import Budget, Interval, OptimizerSettings, Spent, build_optimizer, rate


def reference_rates(peak: float, warmup_steps: int, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.conformance
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 30, 99])
@pytest.mark.parametrize("given_as", ["share", "steps"])
def test_the_schedule_is_that_of_transformers(warmup_steps: int, given_as: str) -> None:
    warmup = {"warmup_share": warmup_steps / 100} if given_as == "share" else {"warmup_steps": warmup_steps}
    settings = OptimizerSettings(learning_rate=3e-4, **warmup)
    budget = Budget.parse("100 steps")
    rates = [rate(budget.progress(Spent(step=step)), step, settings) for step in range(100)]
    assert rates == pytest.approx(reference_rates(3e-4, warmup_steps, 100), abs=1e-12)


@given(
    progress=st.floats(0, 1),
    step=st.integers(0, 10**6),
    share=st.floats(0, 0.99),
    warmup_steps=st.none() | st.integers(0, 10**4),
)
def test_rates_stay_between_zero_and_the_peak(
    progress: float, step: int, share: float, warmup_steps: int | None
) -> None:
    settings = OptimizerSettings(learning_rate=2.0, warmup_share=share, warmup_steps=warmup_steps)
    assert 0 <= rate(progress, step, settings) <= 2.0 * (1 + 1e-9)
    if step >= (warmup_steps or 0):
        assert rate(1.0, step, settings) == 0.0


@pytest.mark.conformance
def test_groups_are_those_of_the_transformers_trainer() -> None:
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(config)
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    undecayed = [names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]]
    # transformers.Trainer.get_decay_parameter_names
    expected = get_parameter_names(model, [nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)"])
    # Its list names a tied parameter twice, and `named_parameters` once.
    assert decayed == set(expected) & set(names.values())
    assert sorted([*decayed, *undecayed]) == sorted(names.values())
    assert "bert.embeddings.word_embeddings.weight" in decayed


def test_norms_are_known_by_their_type_and_frozen_parameters_are_left_out() -> None:
    model = nn.ModuleDict({"norm1": nn.LayerNorm([3, 4]), "scale": nn.RMSNorm(3), "out": nn.Linear(3, 2)})
    model["frozen"] = nn.Linear(3, 3).requires_grad_(False)
    model["again"] = model["out"]
    groups = build_optimizer(model, OptimizerSettings()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 4]
    assert groups[0]["params"][0] is model["out"].weight


def test_one_step_decays_by_the_rate_times_the_decay() -> None:
    layer = nn.Linear(2, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = build_optimizer(layer, OptimizerSettings(learning_rate=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])


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
        ("1 step", 1, "steps"),
        ("2 epochs", 2, "epochs"),
        ("0.5 epoch", 0.5, "epochs"),
        ("10%", 0.1, "share"),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(pytest.approx(amount), unit)


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "5 M", "3 apples", "-1 steps", "10m tokens", "1h 2x", "%"])
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", math.inf),
        ("weight_decay", -0.1),
        ("beta2", 1.0),
        ("epsilon", 0.0),
        ("max_grad_norm", -1.0),
        ("warmup_share", 1.0),
        ("warmup_steps", -1),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"^{field} is "):
        OptimizerSettings(**{field: value})
