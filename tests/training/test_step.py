"""One update: the same however it is cut into micro-batches, and never with a NaN."""

import itertools
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertsmith.training.distributed import ALONE
from bertsmith.training.loader import Loader, Step
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.step import StepResult, Totals, take_step


def first_step(task: Any, batch_size: int, micro_batch_size: int | None) -> Step:
    loader = Loader(
        task.examples("train"),
        task.collate,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=3,
        num_workers=0,
    )
    with closing(loader.steps()) as steps:
        return next(itertools.islice(steps, 1))


def update(model: nn.Module, task: Any, step: Step, max_grad_norm: float = 0.0, **options: Any) -> StepResult:
    optimizer = options.pop("optimizer", None) or build_optimizer(model, OptimizerSettings())
    values = {"learning_rate": 0.01, "seed": 1, "number": 0, "device": torch.device("cpu"), "precision": "fp32"}
    values |= {"counts": step.counts, "ranks": ALONE}
    return take_step(model, task, step, optimizer, max_grad_norm=max_grad_norm, **{**values, **options})


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch_size", [1, 8, 13, 32])
def test_gradients_do_not_depend_on_how_a_step_is_cut(toy: SimpleNamespace, micro_batch_size: int) -> None:
    model, task = toy.Model(dropout=0.0), toy.Task(size=64)
    step = first_step(task, 32, micro_batch_size)
    assert len(step.micro_batches) == -(-32 // micro_batch_size)
    if micro_batch_size == 8:  # a mean of four means would be another gradient
        assert len({batch.counts["parity"] for batch in step.micro_batches}) > 1
    result = update(model, task, step)
    own = gradients(model)

    # By hand: the mean over all examples, plus half of the mean over those that have a parity.
    torch.manual_seed(0)
    reference = toy.Model(dropout=0.0)
    whole = first_step(task, 32, None).micro_batches[0]
    count, parity = reference(whole)
    known = whole.labels["parity"] >= 0
    assert 0 < known.sum() < 32
    mean_error = (count - whole.labels["count"]).square().mean()
    mean_entropy = nn.functional.cross_entropy(parity[known], whole.labels["parity"][known])
    (mean_error + 0.5 * mean_entropy).backward()

    for name, gradient in gradients(reference).items():
        assert torch.allclose(own[name], gradient, atol=1e-6), name
    assert result.counts == {"count": 32.0, "parity": float(known.sum())}
    assert result.loss_sums["count"].item() / 32 == pytest.approx(mean_error.item(), rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in gradients(reference).values()]).norm()
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_a_loss_over_nothing_is_left_out_even_if_it_is_nan(toy: SimpleNamespace) -> None:
    class Means(toy.Task):
        """A task whose second loss is NaN where there is nothing to count."""

        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            sums = super().loss(model, batch)
            return sums if batch.counts["parity"] else {**sums, "parity": sums["parity"] * torch.nan}

    model, task = toy.Model(), Means(size=64)
    examples = [toy.Examples(64).example(index, 0) for index in (0, 3, 6, 1, 2)]  # multiples of 3 have no parity
    part = [task.collate(examples[:3]), task.collate(examples[3:])]
    result = update(model, task, Step(0, 5, 0.1, part, [0, 3, 6, 1, 2]))
    assert result.fault is None
    assert result.counts == {"count": 5.0, "parity": 2.0}
    none = update(model, task, Step(0, 3, 0.1, part[:1], [0, 3, 6]))
    assert none.fault is None
    assert none.loss_sums.keys() == none.counts.keys() == {"count"}


def test_a_step_in_which_nothing_counts_changes_nothing(toy: SimpleNamespace) -> None:
    model, task = toy.Model(), toy.Task()
    batch = task.collate([toy.Examples(9).example(0, 0)])
    empty = type(batch)(batch.inputs, batch.labels, {"count": 0.0, "parity": 0.0}, batch.examples)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = update(model, task, Step(0, 1, 0.1, [empty], [0]))
    assert (result.counts, result.loss_sums, result.grad_norm) == ({}, {}, 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_gradients_are_clipped_to_the_norm(toy: SimpleNamespace) -> None:
    model, task = toy.Model(), toy.Task()
    result = update(model, task, first_step(task, 8, None), max_grad_norm=0.25)
    assert result.grad_norm > 1.0
    norm = torch.cat([gradient.flatten() for gradient in gradients(model).values()]).norm().item()
    assert norm == pytest.approx(0.25, rel=1e-4)


def test_a_gradient_that_is_not_finite_touches_neither_weights_nor_moments(toy: SimpleNamespace) -> None:
    model, task = toy.Model(), toy.Task()
    optimizer = build_optimizer(model, OptimizerSettings())
    step = first_step(task, 8, 4)
    update(model, task, step, optimizer=optimizer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = {(id(p), key): value.clone() for p, state in optimizer.state.items() for key, value in state.items()}
    step.micro_batches[1].labels["count"][0] = torch.inf
    result = update(model, task, step, optimizer=optimizer)
    assert result.fault == "not finite"
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            assert torch.equal(moments[id(parameter), key], value)


def test_a_gradient_above_the_given_norm_is_not_used(toy: SimpleNamespace) -> None:
    model, task = toy.Model(dropout=0.0), toy.Task()
    step = first_step(task, 8, None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norm = update(model, task, step, spike_norm=0.0).grad_norm
    assert update(model, task, step, spike_norm=norm * 0.999).fault == "spike"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert update(model, task, step, spike_norm=norm).fault is None
    assert not torch.equal(before["hidden.weight"], model.state_dict()["hidden.weight"])


def test_dropout_is_decided_by_seed_step_and_micro_batch(toy: SimpleNamespace) -> None:
    task = toy.Task()
    step = first_step(task, 8, 4)

    def gradient(**options: int) -> list[float]:
        torch.manual_seed(0)
        model = toy.Model(dropout=0.5)
        torch.rand(options.pop("draws", 0))
        update(model, task, step, **options)
        return [value for tensor in gradients(model).values() for value in tensor.flatten().tolist()]

    assert gradient() == gradient(draws=5)
    assert gradient() != gradient(number=1)
    assert gradient() != gradient(seed=2)


def test_totals_are_per_counted_item_over_all_steps() -> None:
    totals = Totals()
    totals.add(StepResult({"a": torch.tensor(6.0), "b": torch.tensor(1.0)}, {"a": 2.0, "b": 1.0}, 1.0), 10, 2.0, 0.5)
    totals.add(StepResult({"a": torch.tensor(3.0)}, {"a": 1.0}, 2.0), 30, 2.0, 0.25)
    figures = totals.figures({"a": 1.0, "b": 10.0})
    assert figures == {
        "loss": 3.0 + 10.0,
        "losses": {"a": 3.0, "b": 1.0},
        "grad_norm": 1.5,
        "tokens_per_second": 10.0,
        "data_wait_seconds": 0.75,
    }


def test_a_group_has_its_share_of_the_learning_rate(toy: SimpleNamespace) -> None:
    model, task = toy.Model(dropout=0.0), toy.Task(size=64)
    first, *others = model.parameters()
    groups = [{"params": [first], "lr_scale": 0.25}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    update(model, task, first_step(task, 32, None), optimizer=optimizer, learning_rate=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.025), 0.1]
    for share, old, new in zip([0.25] + [1.0] * len(others), before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * share * new.grad)
