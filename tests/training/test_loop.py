"""The loop beside a loop written by hand, its budgets, and its ends. (What goes wrong: tests/faults.)"""

import io
import itertools
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import get_linear_schedule_with_warmup

from bertsmith.errors import SettingsError, TrainingError
from bertsmith.training.checkpoint import find_fault, newest_checkpoint
from bertsmith.training.loader import Loader
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.progress import read_metrics

QUIET = Console(quiet=True)


def settings(budget: str = "12 steps", **changes: Any) -> TrainSettings:
    values = {"batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 1, "num_workers": 0, **changes}
    return TrainSettings(budget=budget, optimizer=OptimizerSettings(learning_rate=0.05), **values)


def run(model: nn.Module, task: Any, folder: Path, chosen: TrainSettings, **options: Any) -> TrainResult:
    stages = task if isinstance(task, list) else [Stage(task)]
    return train(model, stages, chosen, folder, console=QUIET, **options)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == kind]


class Clock:
    """Time that passes only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.conformance
def test_the_loop_is_the_loop_one_would_write(toy: SimpleNamespace, tmp_path: Path) -> None:
    """AdamW, transformers' schedule and clipping, in the plainest way, over the same batches."""
    task = toy.Task()
    model = toy.Model(dropout=0.0)
    result = run(model, task, tmp_path, settings("4 epochs", micro_batch_size=3))

    torch.manual_seed(0)
    reference = toy.Model(dropout=0.0)
    decayed = [parameter for parameter in reference.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in reference.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, eps=1e-6, fused=False, foreach=False)
    num_steps = 4 * math.ceil(50 / 8)
    schedule = get_linear_schedule_with_warmup(optimizer, 0.1 * num_steps, num_steps)
    loader = Loader(task.examples("train"), task.collate, batch_size=8, seed=42, num_workers=0)
    rates, losses = [], []
    with closing(loader.steps()) as steps:
        for step in itertools.islice(steps, num_steps):
            batch = step.micro_batches[0]
            sums = task.loss(reference, batch)
            loss = sums["count"] / batch.counts["count"]
            # The last step of an epoch has two examples, and in some epochs neither has a parity.
            if batch.counts["parity"]:
                loss = loss + 0.5 * sums["parity"] / batch.counts["parity"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            rates.append(schedule.get_last_lr()[0])
            losses.append(loss.item())
            optimizer.step()
            schedule.step()

    logged = lines(tmp_path, "train")
    assert result.step == num_steps == len(logged)
    assert [line["learning_rate"] for line in logged] == pytest.approx(rates, abs=1e-9)
    assert [line["loss"] for line in logged] == pytest.approx(losses, rel=1e-4)
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-4), name
    assert sum(losses[-7:]) < 0.7 * sum(losses[:7])


def test_the_record_of_a_run(toy: SimpleNamespace, tmp_path: Path) -> None:
    task, clock = toy.Task(), Clock()
    task.before_loss = lambda batch: clock.spend(0.5)
    result = run(toy.Model(), task, tmp_path, settings(), clock=clock, fingerprint={"data": "abc"})
    first, last = read_metrics(tmp_path / "metrics.jsonl")[0], read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (first["kind"], first["data"], first["budget"], first["num_parameters"]) == (
        "run",
        "abc",
        "12 steps",
        213 - 2,
    )
    assert (last["kind"], last["step"], last["tokens"]) == ("end", 12, result.tokens)
    logged = lines(tmp_path, "train")
    assert [line["step"] for line in logged] == list(range(1, 13))
    assert logged[-1]["progress"] == 1.0
    assert logged[-1]["tokens"] == result.tokens
    tokens = [later["tokens"] - earlier["tokens"] for earlier, later in itertools.pairwise(logged)]
    assert [line["tokens_per_second"] for line in logged[1:]] == pytest.approx([count / 0.5 for count in tokens])
    assert {line["data_wait_seconds"] for line in logged} == {0.0}
    for line in logged:
        assert line["loss"] == pytest.approx(line["losses"]["count"] + 0.5 * line["losses"]["parity"])
        assert line["grad_norm"] > 0
    assert find_fault(result.checkpoint) is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]
    assert result.seconds == pytest.approx(6.0)
    assert result.epochs == pytest.approx(1 + 5 / 7)


def test_lines_come_by_time_or_after_fifty_steps(toy: SimpleNamespace, tmp_path: Path) -> None:
    task, clock = toy.Task(), Clock()
    task.before_loss = lambda batch: clock.spend(0.01 if len(task.seen) < 100 else 1.0)
    run(toy.Model(), task, tmp_path, settings("105 steps", log_every=None), clock=clock)
    assert [line["step"] for line in lines(tmp_path, "train")] == [50, 100, 102, 104, 105]


@pytest.mark.parametrize(
    ("budget", "steps", "epochs"),
    [("10 steps", 10, 1 + 3 / 7), ("2 epochs", 14, 2.0), ("0.5 epochs", 4, 4 / 7), ("1 token", 1, 1 / 7)],
)
def test_a_run_is_as_long_as_its_budget(
    toy: SimpleNamespace, tmp_path: Path, budget: str, steps: int, epochs: float
) -> None:
    result = run(toy.Model(), toy.Task(), tmp_path, settings(budget))
    assert (result.step, result.epochs) == (steps, pytest.approx(epochs))


def test_a_budget_of_tokens_ends_with_the_step_that_uses_it_up(toy: SimpleNamespace, tmp_path: Path) -> None:
    result = run(toy.Model(), toy.Task(), tmp_path, settings("300 tokens"))
    logged = lines(tmp_path, "train")
    assert logged[-2]["tokens"] < 300 <= logged[-1]["tokens"] == result.tokens


@pytest.mark.parametrize("evaluate_every", [None, "25%", "60s"])
def test_a_time_budget_ends_in_time_and_fully_decayed(
    toy: SimpleNamespace, tmp_path: Path, evaluate_every: str | None
) -> None:
    task, clock = toy.Task(), Clock()
    predict = task.predict
    task.before_loss = lambda batch: clock.spend(4.0)
    task.predict = lambda model, batch: (clock.spend(7.0), predict(model, batch))[1]
    result = run(
        toy.Model(), task, tmp_path, settings("10m", evaluate_every=evaluate_every, save_every="3m"), clock=clock
    )
    assert 600 * 0.97 <= result.seconds <= 600 * 1.03
    assert clock.now - 1000 == pytest.approx(result.seconds)
    logged = lines(tmp_path, "train")
    rates = [line["learning_rate"] for line in logged]
    assert max(rates) == pytest.approx(0.05, rel=0.05)
    assert rates[-1] < 0.01 * max(rates)
    assert logged[-1]["progress"] == 1.0
    seconds = sum(line["evaluation_seconds"] for line in lines(tmp_path, "eval"))
    if evaluate_every is None:
        assert seconds <= 0.1 * 600 + 7
    assert lines(tmp_path, "eval")[-1]["step"] == result.step
    assert len(lines(tmp_path, "eval")) == {None: 9, "25%": 4, "60s": 10}[evaluate_every]


def test_stages_share_the_budget_and_each_has_its_own_data(toy: SimpleNamespace, tmp_path: Path) -> None:
    first, second = toy.Task(size=20), toy.Task(size=30, seed=5)
    stages = [Stage(first, batch_size=5, progress_end=0.75), Stage(second, batch_size=10, micro_batch_size=5)]
    result = run(toy.Model(), stages, tmp_path, settings("20 steps"))
    assert result.step == 20
    assert [len(indices) for indices in first.seen] == [5] * 15
    assert [len(indices) for indices in second.seen] == [5] * 10
    assert sorted(itertools.chain(*second.seen[:6])) == list(range(30))
    assert [line["stage"] for line in lines(tmp_path, "train")] == [0] * 15 + [1] * 5
    assert result.epochs == pytest.approx(15 / 4 + 5 / 3)
    # The same collection in the second stage comes in another order.
    again = toy.Task(size=20)
    run(toy.Model(), [Stage(first, 5, progress_end=0.5), Stage(again, 5)], tmp_path / "again", settings("8 steps"))
    assert first.seen[15:19] != again.seen[:4]


def test_epochs_of_two_stages_add_up(toy: SimpleNamespace, tmp_path: Path) -> None:
    first, second = toy.Task(size=20), toy.Task(size=30)
    result = run(toy.Model(), [Stage(first, 5, progress_end=0.5), Stage(second, 10)], tmp_path, settings("4 epochs"))
    assert (len(first.seen), len(second.seen), result.epochs) == (8, 6, 4.0)


@pytest.mark.parametrize("ends", [[], [0.5], [0.5, 0.5, 1.0], [0.9, 0.5, 1.0], [0.0, 1.0], [1.0, 2.0]])
def test_stages_that_do_not_share_out_the_run_are_refused(
    toy: SimpleNamespace, tmp_path: Path, ends: list[float]
) -> None:
    with pytest.raises(SettingsError, match="these shares must rise"):
        run(toy.Model(), [Stage(toy.Task(), progress_end=end) for end in ends], tmp_path, settings())


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_the_best_weights_come_back(toy: SimpleNamespace, tmp_path: Path, greater_is_better: bool) -> None:
    scores = [3.0, 5.0, 1.0, math.nan, 3.0, 4.0]
    best = 5.0 if greater_is_better else 1.0
    task = toy.Task(scores=list(scores), greater_is_better=greater_is_better)
    kept: dict[int, dict[str, Any]] = {}
    model = toy.Model()
    score = task.score

    def remember(*arguments: Any) -> dict[str, float]:
        kept[len(kept)] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
        return score(*arguments)

    task.score = remember
    result = run(model, task, tmp_path, settings(evaluate_every="2 steps", keep_best=True))
    place = scores.index(best)
    assert result.metrics == {"error": best, "examples": 20.0}
    assert result.best_step == 2 * (place + 1)
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == kept[place]
    assert kept[place] != kept[5]
    assert [line["best"] for line in lines(tmp_path, "eval")].count(True) == 2
    assert newest_checkpoint(tmp_path / "checkpoints", "best") is not None


def test_a_best_that_is_lost_is_not_waited_for(toy: SimpleNamespace, tmp_path: Path) -> None:
    """Killed after a better one had replaced it, a run goes on from before that, where nothing as good may come."""
    chosen = settings("8 steps", evaluate_every="2 steps", save_every="3 steps", keep_best=True)
    task = toy.Task(scores=[2.0, 1.0])

    def die(batch: Any) -> None:
        if len(task.seen) == 4:
            raise RuntimeError("killed")

    task.before_loss = die
    with pytest.raises(RuntimeError, match="killed"):
        run(toy.Model(), task, tmp_path, chosen)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best-00000004", "step-00000003"]
    result = run(toy.Model(), toy.Task(scores=[4.0, 3.0, 5.0]), tmp_path, chosen, resume=True)
    assert (result.best_step, result.metrics["error"]) == (6, 3.0)
    assert [line["best"] for line in lines(tmp_path, "eval")] == [True, True, True, False]


def test_a_damaged_best_leaves_the_last(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, task = toy.Model(), toy.Task(scores=[1.0, 2.0])
    chosen = settings("4 steps", evaluate_every="2 steps", keep_best=True)

    def damage(batch: Any) -> None:
        for path in (tmp_path / "checkpoints").glob("best-*/model.safetensors"):
            path.write_bytes(b"")

    task.before_loss = damage
    last: list[dict[str, torch.Tensor]] = []
    score = task.score
    task.score = lambda *arguments: (last.append(states(model)), score(*arguments))[1]
    with pytest.warns(RuntimeWarning, match="best-00000002 is damaged"):
        result = run(model, task, tmp_path, chosen)
    assert (result.best_step, result.metrics["error"]) == (None, 2.0)
    assert all(torch.equal(tensor, last[-1][name]) for name, tensor in states(model).items())


def test_without_keep_best_the_last_weights_stay(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task(scores=[1.0, 2.0])
    result = run(toy.Model(), task, tmp_path, settings("4 steps", evaluate_every="2 steps"))
    assert (result.metrics["error"], result.best_step) == (2.0, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("keep_best", [False, True])
def test_what_is_evaluated_and_left_is_the_average_and_what_learns_is_not(
    toy: SimpleNamespace, tmp_path: Path, keep_best: bool
) -> None:
    torch.manual_seed(0)
    plain_model, plain_task = toy.Model(), toy.Task()
    plain: list[dict[str, torch.Tensor]] = []
    plain_task.before_loss = lambda batch: plain.append(states(plain_model))
    run(plain_model, plain_task, tmp_path / "plain", settings("8 steps"))
    plain.append(states(plain_model))
    averages = plain[:1]
    for step, weights in enumerate(plain[1:]):
        decay = min(0.7, (1 + step) / (10 + step))
        averages.append({name: decay * averages[-1][name] + (1 - decay) * weights[name] for name in weights})

    torch.manual_seed(0)
    model, task = toy.Model(), toy.Task(scores=[5.0, 1.0, 2.0, 3.0])
    learning: list[dict[str, torch.Tensor]] = []
    scored: list[dict[str, torch.Tensor]] = []
    score = task.score
    task.before_loss = lambda batch: learning.append(states(model))
    task.score = lambda *arguments: (scored.append(states(model)), score(*arguments))[1]
    chosen = settings("8 steps", evaluate_every="2 steps", ema_decay=0.7, keep_best=keep_best)
    result = run(model, task, tmp_path / "averaged", chosen)
    for own, expected in zip(learning, plain, strict=False):
        assert all(torch.equal(own[name], expected[name]) for name in own)
    ends = averages[4 if keep_best else 8]
    for own, expected in zip([*scored, states(model)], [*averages[2::2], ends], strict=True):
        for name in own:
            torch.testing.assert_close(own[name], expected[name], rtol=1e-5, atol=1e-6)
    assert result.metrics["error"] == (1.0 if keep_best else 3.0)
    assert not torch.equal(averages[8]["hidden.weight"], plain[8]["hidden.weight"])


def test_patience_ends_a_run_early(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task(scores=[5.0, 4.0, 4.0, 3.5, 3.6, 3.7, 0.0])
    chosen = settings("100 steps", evaluate_every="2 steps", early_stopping=2, keep_best=True)
    result = run(toy.Model(), [Stage(task, progress_end=0.9), Stage(task)], tmp_path, chosen)
    assert (result.step, result.stopped_early, result.best_step) == (12, True, 8)
    assert result.metrics["error"] == 3.5
    again = run(toy.Model(), [Stage(task, progress_end=0.9), Stage(task)], tmp_path, chosen, resume=True)
    assert (again.step, again.stopped_early, again.metrics) == (12, True, result.metrics)
    (said,) = lines(tmp_path, "early_stop")
    assert (said["step"], said["text"]) == (12, "stopped early: no new best in 2 evaluations")
    # With more patience it goes on.
    more = replace(chosen, early_stopping=4)
    longer = run(toy.Model(), [Stage(task, progress_end=0.9), Stage(task)], tmp_path, more, resume=True)
    assert longer.step > 12


def test_without_held_out_examples_nothing_is_evaluated(toy: SimpleNamespace, tmp_path: Path) -> None:
    result = run(toy.Model(), toy.Task(dev_size=0), tmp_path, settings(keep_best=True, evaluate_every="1 step"))
    assert (result.step, result.metrics, result.best_step) == (12, {}, None)
    assert lines(tmp_path, "eval") == []


def test_a_folder_that_holds_a_run_is_not_written_over(toy: SimpleNamespace, tmp_path: Path) -> None:
    run(toy.Model(), toy.Task(), tmp_path, settings())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(SettingsError, match=r"already holds a run\. Add --resume"):
        run(toy.Model(), toy.Task(), tmp_path, settings())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_is_resumed_whichever_way_its_budget_is_written(toy: SimpleNamespace, tmp_path: Path) -> None:
    first = run(toy.Model(), toy.Task(), tmp_path, settings("8 steps"))
    again = run(toy.Model(), toy.Task(), tmp_path, settings("8.0 steps"), resume=True)
    assert (again.step, again.metrics) == (first.step, first.metrics)
    with pytest.raises(TrainingError, match=r"budget was 8.0 steps and is now 9 steps"):
        run(toy.Model(), toy.Task(), tmp_path, settings("9 steps"), resume=True)


def test_people_see_progress_on_the_console(toy: SimpleNamespace, tmp_path: Path) -> None:
    out = io.StringIO()
    train(toy.Model(), [Stage(toy.Task())], settings(), tmp_path, console=Console(file=out, width=120))
    assert "step 1  loss" in out.getvalue()
    assert "step 12  error" in out.getvalue()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": "10%"}, "share of itself"),
        ({"budget": "soon"}, '^budget: cannot read "soon"'),
        ({"evaluate_every": "often"}, '^evaluate_every: cannot read "often"'),
        ({"save_every": "never"}, '^save_every: cannot read "never"'),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"early_stopping": 0}, "early_stopping is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**wrong)
