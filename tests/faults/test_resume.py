"""Stopped at any step and resumed, a run ends with the same bits as if it had never stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bertsmith.cli import main
from bertsmith.errors import Interrupted, TrainingError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import PooledHead
from bertsmith.training import loop
from bertsmith.training.checkpoint import newest_checkpoint, read_state
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.optim import OptimizerName, OptimizerSettings, ScheduleName
from bertsmith.training.progress import read_metrics
from bertsmith.training.task import Batch


class SmallBert(nn.Module):
    """The real encoder, with dropout in every place, under the heads of the toy."""

    def __init__(self) -> None:
        super().__init__()
        config = EncoderConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.2,
        )
        self.encoder = Encoder(config)
        self.pooled = PooledHead(config, 3)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.pooled(self.encoder(batch.inputs), batch.inputs)
        return outputs[:, 0], outputs[:, 1:]


CASES: dict[str, dict[str, Any]] = {
    "steps": {"budget": "17 steps"},
    "epochs, cut into micro-batches": {"budget": "3 epochs", "micro_batch_size": 3},
    "tokens, two threads": {"budget": "600 tokens", "num_workers": 2},
    "warm-up in steps": {"budget": "2.5 epochs", "optimizer": {"warmup_steps": 5}},
    "the real encoder": {"budget": "12 steps", "build": SmallBert, "precision": "auto", "micro_batch_size": 4},
    "best kept": {"budget": "17 steps", "keep_best": True, "evaluate_every": "3 steps"},
    "averaged": {"budget": "17 steps", "ema_decay": 0.9, "evaluate_every": "3 steps"},
    "best average kept": {"budget": "17 steps", "ema_decay": 0.9, "keep_best": True, "evaluate_every": "3 steps"},
}


def spoil(number: int, batch: Batch) -> None:
    """Steps 2, 3, 9, 10 and 11 have a loss that is not finite; a signal comes in the midst of each row."""
    if number in (2, 3, 9, 10, 11):
        batch.labels["count"][0] = float("nan")


def crowd(number: int, batch: Batch) -> None:
    """Memory runs out above 3 examples from step 2 on, and above 1 from step 5 on."""
    if len(batch.examples) > (8 if number < 2 else 3 if number < 5 else 1):
        raise torch.OutOfMemoryError("CUDA out of memory.")


CASES["steps skipped"] = {"budget": "17 steps", "spoil": spoil, "max_skipped_steps": 3, "ema_decay": 0.9}
CASES["memory runs out"] = {"budget": "12 steps", "spoil": crowd, "auto_batch": True}
for _name in get_args(OptimizerName):
    CASES[_name] = {"budget": "12 steps", "build": SmallBert, "optimizer": {"optimizer": _name}, "ema_decay": 0.8}
for _name in get_args(ScheduleName):
    CASES[f"{_name} rates"] = {"budget": "3 epochs", "optimizer": {"schedule": _name}}


class Power(Exception):
    """The power goes out: nothing is saved on the way down."""


class Run:
    """A run in a folder, which may be stopped and gone on with, and everything that can be compared of it."""

    def __init__(
        self,
        toy: SimpleNamespace,
        folder: Path,
        two_stages: bool = False,
        build: Callable[[], nn.Module] | None = None,
        spoil: Callable[[int, Batch], None] | None = None,
        **changes: Any,
    ) -> None:
        self.toy, self.folder, self.two_stages = toy, folder, two_stages
        self.build = build or (lambda: toy.Model(dropout=0.3))
        self.spoil = spoil or (lambda number, batch: None)
        self.sample_ids: list[tuple[int, ...]] = []
        self.losses: list[dict[str, float]] = []
        optimizer = {"learning_rate": 0.05, **changes.pop("optimizer", {})}
        self.settings = TrainSettings(
            optimizer=OptimizerSettings(**optimizer),
            **{"batch_size": 8, "device": "cpu", "log_every": 1, "num_workers": 0, **changes},
        )

    def go(
        self, *, until: int | None = None, where: str = "step", fail_in: int | None = None, **options: Any
    ) -> TrainResult | None:
        """Train, resuming what is there; a signal comes in step `until`, or the power fails in step `fail_in`.

        `where` the signal comes: in the first micro-batch, in the last, or in the evaluation after the step.
        """
        # Weights in memory when a run is resumed have nothing to do with those when it stopped.
        torch.manual_seed(99 if any(self.folder.glob("checkpoints/*")) else 0)
        tasks = [self.toy.Task(size=50), self.toy.Task(size=30, seed=9)]
        pressed: list[int] = []
        seen_in_step: list[int] = [0, 0]

        def press(number: int) -> None:
            if number == until and not pressed:
                pressed.append(number)
                os.kill(os.getpid(), signal.SIGINT)

        def before_loss(batch: Any) -> None:
            number = 1 + self.last_step()
            seen_in_step[:] = [number, len(batch.examples) + (seen_in_step[1] if seen_in_step[0] == number else 0)]
            if where == "step" or (where == "last micro-batch" and seen_in_step[1] == self.settings.batch_size):
                press(number)
            if number == fail_in:
                raise Power
            self.spoil(number, batch)

        def predict(model: nn.Module, batch: Any) -> Any:
            if where == "evaluation":
                press(self.last_step())
            return self.toy.Task.predict(tasks[0], model, batch)

        for task in tasks:
            task.before_loss, task.predict = before_loss, predict
        stages = (
            [Stage(tasks[0], progress_end=0.5), Stage(tasks[1], batch_size=4)] if self.two_stages else [Stage(tasks[0])]
        )
        self.model = self.build()
        try:
            return train(
                self.model, stages, self.settings, self.folder, resume=True, console=Console(quiet=True), **options
            )
        except Interrupted:
            return None
        finally:
            for task in tasks:
                self.sample_ids += task.seen
                self.losses += task.losses

    def last_step(self) -> int:
        """The step that was finished last, as far as metrics.jsonl knows."""
        return max([0, *(line["step"] for line in self.lines("train", "bad_step"))])

    def lines(self, *kinds: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of these kinds."""
        return [line for line in read_metrics(self.folder / "metrics.jsonl") if line["kind"] in kinds]

    def everything(self) -> dict[str, Any]:
        """Weights, moments, losses, rates, evaluations: all that must be equal, to the bit."""
        path = newest(self)
        state = read_state(path)["state"]
        timed = ("seconds", "evaluation_seconds", "tokens_per_second", "data_wait_seconds")
        metrics = [
            {name: value for name, value in line.items() if name not in timed}
            for line in self.lines("train", "eval", "bad_step", "out_of_memory")
        ]
        return {
            "model": {name: tensor.tolist() for name, tensor in self.model.state_dict().items()},
            "files": {file.name: file.read_bytes() for file in path.glob("*.safetensors")},
            "state": {name: value for name, value in state.items() if name not in timed},
            "metrics": metrics,
        }


def newest(run: Run) -> Path:
    path = newest_checkpoint(run.folder / "checkpoints")
    assert path is not None
    return path


def assert_same(stopped: Run, straight: Run) -> None:
    left, right = stopped.everything(), straight.everything()
    assert left["metrics"] == right["metrics"]
    assert left["state"] == right["state"]
    assert left["model"] == right["model"]
    assert left["files"] == right["files"]


@pytest.mark.parametrize("name", CASES)
def test_stopped_twice_and_resumed_is_as_never_stopped(toy: SimpleNamespace, tmp_path: Path, name: str) -> None:
    straight, stopped = Run(toy, tmp_path / "a", **CASES[name]), Run(toy, tmp_path / "b", **CASES[name])
    assert straight.go() is not None
    assert stopped.go(until=3) is None
    assert stopped.go(until=10) is None
    result = stopped.go()
    assert result is not None
    assert_same(stopped, straight)


@pytest.mark.parametrize(
    ("stops", "where"),
    [
        ([1], "step"),  # the first
        ([4], "step"),  # in the middle of an epoch, which has seven
        ([7], "step"),  # its last
        ([8], "step"),  # the first of the next
        ([4], "last micro-batch"),  # with gradients that other micro-batches have left
        ([6], "evaluation"),
        ([10, 18], "step"),  # twice, in later epochs
        ([9, 15], "evaluation"),
        (list(range(1, 20, 2)), "step"),  # ten times
        (list(range(1, 21)), "step"),  # after every step
    ],
)
def test_every_example_and_every_loss_is_as_in_a_run_that_did_not_stop(
    toy: SimpleNamespace, tmp_path: Path, stops: list[int], where: str
) -> None:
    options: dict[str, Any] = {"budget": "21 steps", "micro_batch_size": 3, "evaluate_every": "3 steps"}
    straight, stopped = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    assert straight.go() is not None
    for stop in stops:
        assert stopped.go(until=stop, where=where) is None
        assert read_state(newest(stopped))["state"]["step"] == stop
    assert stopped.go() is not None
    assert_same(stopped, straight)
    assert stopped.sample_ids == straight.sample_ids
    assert stopped.losses == straight.losses
    assert len(straight.sample_ids) == 3 * (6 * 3 + 1)


@pytest.mark.parametrize("stops", [[70], [74, 75, 76]])
def test_what_is_a_spike_does_not_depend_on_where_a_run_stopped(
    toy: SimpleNamespace, tmp_path: Path, stops: list[int]
) -> None:
    def spike(number: int, batch: Batch) -> None:
        if number in (20, 75, 78):
            batch.labels["count"][0] = 100.0

    options: dict[str, Any] = {"budget": "80 steps", "spoil": spike, "skip_spikes": 4.0, "max_skipped_steps": 2}
    straight, stopped = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    for stop in stops:
        assert stopped.go(until=stop) is None
    stopped.go()
    assert_same(stopped, straight)
    assert [line["step"] for line in stopped.lines("bad_step")][:1] == [75]


@pytest.mark.parametrize("stop", [1, 6, 7, 8, 9, 15])
def test_stops_around_the_border_of_two_stages(toy: SimpleNamespace, tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"two_stages": True, "budget": "16 steps", "evaluate_every": "4 steps"}
    straight, stopped = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    assert stopped.go(until=stop) is None
    stopped.go()
    assert_same(stopped, straight)


@pytest.mark.parametrize("fail_in", [1, 5, 8, 9])
def test_a_run_that_dies_goes_on_from_its_last_checkpoint(toy: SimpleNamespace, tmp_path: Path, fail_in: int) -> None:
    options: dict[str, Any] = {"budget": "14 steps", "save_every": "4 steps", "evaluate_every": "3 steps"}
    options |= {"keep_best": True}
    straight, died = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    with pytest.raises(Power):
        died.go(fail_in=fail_in)
    died.go()
    assert_same(died, straight)


def test_an_evaluation_that_was_due_is_made_after_resuming(toy: SimpleNamespace, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "8 steps", "evaluate_every": "2 steps"}
    straight, stopped = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    assert stopped.go(until=4) is None
    assert [line["step"] for line in stopped.lines("eval")] == [2]
    stopped.go()
    assert_same(stopped, straight)


def test_resuming_a_finished_run_does_nothing_more(toy: SimpleNamespace, tmp_path: Path) -> None:
    run = Run(toy, tmp_path, budget="5 steps", keep_best=True)
    first = run.go()
    before = run.everything()
    again = run.go()
    assert first is not None
    assert again is not None
    assert (again.step, again.metrics, again.best_step) == (first.step, first.metrics, first.best_step)
    assert run.everything() == before


def test_a_run_killed_while_it_replaced_a_checkpoint_still_has_the_old(toy: SimpleNamespace, tmp_path: Path) -> None:
    run = Run(toy, tmp_path, budget="5 steps")
    run.go()
    before, checkpoints = run.everything(), tmp_path / "checkpoints"
    for name in (".step-00000005.tmp-new", ".step-00000005.old-aside"):
        (checkpoints / name).mkdir()
    (checkpoints / "step-00000005").rename(checkpoints / ".step-00000005.old-aside" / "step-00000005")
    run.go()
    assert run.everything() == before
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000005"]


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(toy: SimpleNamespace, tmp_path: Path) -> None:
    options = {"budget": "12 steps", "save_every": "4 steps"}
    straight, damaged = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    with pytest.raises(Power):
        damaged.go(fail_in=10)
    newest = tmp_path / "b" / "checkpoints" / "step-00000008"
    os.truncate(newest / "optimizer.safetensors", 100)
    with pytest.warns(RuntimeWarning, match=r"step-00000008 is damaged"):
        damaged.go()
    assert_same(damaged, straight)


def test_time_spent_before_counts_after_resuming(toy: SimpleNamespace, tmp_path: Path) -> None:
    now = [50.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    run = Run(toy, tmp_path, budget="8s", log_every=1)
    assert run.go(until=20, clock=clock) is None
    spent = now[0] - 50.0
    now[0] = 9_000.0
    result = run.go(clock=clock)
    assert result is not None
    assert 0 < spent < 8
    assert result.seconds == pytest.approx(8, rel=0.03)
    assert now[0] - 9_000.0 == pytest.approx(8 - spent, abs=0.5)
    seconds = [line["seconds"] for line in run.lines("train")]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, r"stages\.0\.batch_size was 8 and is now 4"),
        ({"micro_batch_size": 2}, r"stages\.0\.micro_batch_size was None and is now 2"),
        ({"seed": 7}, "seed was 42 and is now 7"),
        ({"budget": "9 steps"}, "budget was 8 steps and is now 9 steps"),
        ({"ema_decay": 0.9}, r"ema_decay was None and is now 0\.9"),
        ({"skip_spikes": 5.0, "max_skipped_steps": 3}, r"skip_spikes was None and is now 5\.0"),
        ({"optimizer": {"optimizer": "lamb"}}, r"optimizer\.optimizer was adamw and is now lamb"),
        ({"optimizer": {"beta2": 0.98}}, r"optimizer\.beta2 was 0\.999 and is now 0\.98"),
        ({"optimizer": {"schedule": "cosine"}}, r"optimizer\.schedule was linear and is now cosine"),
        ({"optimizer": {"warmup_steps": 2}}, r"optimizer\.warmup_steps was None and is now 2"),
        ({"two_stages": True}, r"stages\.0\.progress_end was 1\.0 and is now 0\.5"),
    ],
)
def test_a_setting_that_changed_is_named(
    toy: SimpleNamespace, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    Run(toy, tmp_path, budget="8 steps").go(until=3)
    with pytest.raises(TrainingError, match=message):
        Run(toy, tmp_path, **{"budget": "8 steps", **changes}).go()


@pytest.mark.parametrize(
    ("schedule", "short", "stop", "long"),
    [
        # In the stable part, which ends with step 16 of 20 and step 24 of 30.
        ("wsd", "20 steps", 10, "30 steps"),
        ("wsd", "20 steps", 16, "30 steps"),
        # 16 steps are 80 % of 20: the fall begins at once.
        ("wsd", "30 steps", 16, "20 steps"),
        ("constant", "20 steps", 10, "4 epochs"),
        # A constant rate is stable to the end, so that a finished run can go on.
        ("constant", "20 steps", None, "30 steps"),
        # Back to before the fall, which began with the 18th step.
        ("wsd", "20 steps", 18, "30 steps"),
        ("wsd", "20 steps", None, "30 steps"),
        ("wsd", "20 steps", None, "22 steps"),
    ],
)
def test_a_run_with_a_stable_rate_can_be_given_another_budget(
    toy: SimpleNamespace, tmp_path: Path, schedule: str, short: str, stop: int | None, long: str
) -> None:
    options: dict[str, Any] = {"optimizer": {"schedule": schedule, "warmup_steps": 4}, "ema_decay": 0.9}
    straight = Run(toy, tmp_path / "a", budget=long, **options)
    first, longer = (Run(toy, tmp_path / "b", budget=budget, **options) for budget in (short, long))
    straight.go()
    assert (first.go(until=stop) is None) == (stop is not None)
    assert longer.go() is not None
    left, right = longer.everything(), straight.everything()
    assert left["files"] == right["files"]
    assert left["model"] == right["model"]
    for name in ("step", "loss", "learning_rate", "tokens"):
        assert [line[name] for line in longer.lines("train")] == [line[name] for line in straight.lines("train")]
    assert longer.lines("run")[-1]["budget"] == long


def test_a_run_that_called_itself_falling_is_longer_from_before_that(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a budget of time it falls earlier than its seconds say: some are kept back for its end."""
    options: dict[str, Any] = {"optimizer": {"schedule": "wsd"}}
    Run(toy, tmp_path, budget="20 steps", **options).go(until=18)
    monkeypatch.setattr("bertsmith.training.plan.is_falling", lambda *of_seconds: False)
    longer = Run(toy, tmp_path, budget="30 steps", **options)
    longer.go()
    assert longer.lines("run")[-1]["resumed_from"] == "stable-00000017"


@pytest.mark.parametrize("budget", ["20 steps", "3 epochs", "600 tokens"])
def test_the_moment_before_the_fall_is_kept(toy: SimpleNamespace, tmp_path: Path, budget: str) -> None:
    run = Run(toy, tmp_path, budget=budget, optimizer={"schedule": "wsd", "warmup_steps": 4}, save_every="3 steps")
    run.go()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name.split("-")[0] for name in kept] == ["stable", "step"]
    stable = int(kept[0].split("-")[1])
    rates = [line["learning_rate"] for line in run.lines("train")]
    assert set(rates[4:stable]) == {0.05}
    assert all(rate < 0.05 for rate in rates[stable:]) and len(rates) > stable


def test_a_run_that_dies_in_its_fall_has_all_before_it(toy: SimpleNamespace, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "20 steps", "optimizer": {"schedule": "wsd"}}
    straight, died = Run(toy, tmp_path / "a", **options), Run(toy, tmp_path / "b", **options)
    straight.go()
    with pytest.raises(Power):
        died.go(fail_in=19)
    died.go()
    assert died.lines("run")[-1]["resumed_from"] == "stable-00000017"
    assert_same(died, straight)


def test_a_finished_run_of_two_stages_goes_on_in_the_second(toy: SimpleNamespace, tmp_path: Path) -> None:
    options: dict[str, Any] = {"two_stages": True, "optimizer": {"schedule": "constant", "warmup_steps": 2}}
    assert Run(toy, tmp_path, budget="12 steps", **options).go() is not None
    result = Run(toy, tmp_path, budget="18 steps", **options).go()
    assert result is not None
    lines = Run(toy, tmp_path, **options).lines("train")
    assert [line["stage"] for line in lines] == [0] * 6 + [1] * 12
    assert [line["step"] for line in lines] == list(range(1, 19))
    epochs = [line["epochs"] for line in lines]
    assert epochs == sorted(epochs)


@pytest.mark.parametrize(
    ("schedule", "stop", "budget"),
    [
        ("linear", 10, "30 steps"),
        ("wsd", 2, "30 steps"),  # still warming up
        ("linear", None, "30 steps"),
        ("wsd", 10, "11 steps"),  # would have had to fall before
        ("wsd", None, "21 steps"),  # the same: its fall begins with the 17th step
    ],
)
def test_another_budget_needs_a_stable_rate(
    toy: SimpleNamespace, tmp_path: Path, schedule: str, stop: int | None, budget: str
) -> None:
    options: dict[str, Any] = {"optimizer": {"schedule": schedule, "warmup_steps": 4}}
    Run(toy, tmp_path, budget="20 steps", **options).go(until=stop)
    with pytest.raises(TrainingError, match=f"budget was 20 steps and is now {budget}.*With schedule wsd or constant"):
        Run(toy, tmp_path, budget=budget, **options).go()


def test_data_that_changed_is_named(toy: SimpleNamespace, tmp_path: Path) -> None:
    run = Run(toy, tmp_path, budget="8 steps")
    run.go(until=3, fingerprint={"corpus": "aaaa"})
    with pytest.raises(TrainingError, match="corpus was aaaa and is now bbbb"):
        run.go(fingerprint={"corpus": "bbbb"})


@pytest.mark.slow
def test_a_command_ends_with_130_and_goes_on_only_with_the_data_that_it_began_with(
    tiny_tokenizer: Path,
    tiny_documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM in the second step; then the store is another one, and the first again (rows 14, 15)."""
    store, other, run = (tmp_path / name for name in ("store", "other", "run"))
    less = tmp_path / "less.txt"
    less.write_text(tiny_documents.read_text().partition("\n\n")[2])
    build = ["--tokenizer", str(tiny_tokenizer), "--document-separator", "blank-lines", "--heldout-share", "0.1"]
    for source, folder in ((tiny_documents, store), (less, other)):
        assert main(["corpus", "build", str(source), *build, "--out", str(folder)]) == 0
    command = ["pretrain", "--corpus", str(store), "--out", str(run), "--size", "tiny", "--budget", "4 steps"]
    command += ["--batch-size", "4", "--max-length", "32", "--evaluation-samples", "4", "--device", "cpu"]
    steps, take_step = [0], loop.take_step

    def stopped(*arguments: Any, **options: Any) -> Any:
        steps[0] += 1
        if steps[0] == 2:
            signal.raise_signal(signal.SIGTERM)
        return take_step(*arguments, **options)

    monkeypatch.setattr(loop, "take_step", stopped)
    assert main(command) == 130
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    store.rename(tmp_path / "first")
    other.rename(store)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    assert "step-00000002: data was " in capsys.readouterr().err
    store.rename(other)
    (tmp_path / "first").rename(store)
    assert main([*command, "--resume"]) == 0
    assert steps == [4]


def test_what_changes_no_weight_may_change(toy: SimpleNamespace, tmp_path: Path) -> None:
    straight = Run(toy, tmp_path / "a", budget="8 steps")
    straight.go()
    Run(toy, tmp_path / "b", budget="8 steps").go(until=3)
    patient = {"max_skipped_steps": 3, "auto_batch": True, "cuda_graphs": False, "gradient_checkpointing": True}
    changed = Run(toy, tmp_path / "b", budget="8 steps", num_workers=3, save_every="1 step", log_every=1, **patient)
    changed.go()
    assert_same(changed, straight)
