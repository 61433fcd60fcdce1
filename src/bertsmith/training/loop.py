"""The one training loop: step, report, evaluate, checkpoint, stop.

A run is a function of (weights, data, settings). Stopped after any step and resumed, it ends on a CPU with the same
bits as if it had never stopped, as long as its budget and its evaluation interval are not in time: the order of
examples and every dropout mask are functions of the seed and of where the run is (`bertsmith.randomness`), and a
checkpoint holds everything else. (On CUDA some sums are taken in any order.) Ranks: `distributed`.

A run with schedule wsd can be made longer after its end: see `_Run.keep_stable`.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith.model.encoder import replay_layers
from bertsmith.training import plan
from bertsmith.training.checkpoint import Kind, find_best, load_checkpoint, read_state, save_checkpoint
from bertsmith.training.device import resolve_precision
from bertsmith.training.distributed import ALONE, Agreement, Ranks
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.faults import Guard
from bertsmith.training.interrupt import StopRequest, interrupted
from bertsmith.training.loader import Loader, Step
from bertsmith.training.plan import Stage, State, TrainResult, TrainSettings, check_stages, first_of_task
from bertsmith.training.progress import Reporter
from bertsmith.training.schedule import Budget, Interval, Spent, is_falling, rate
from bertsmith.training.step import StepResult, Totals, take_step
from bertsmith.training.task import Task

__all__ = ["Stage", "TrainResult", "TrainSettings", "train"]

Fingerprint = Mapping[str, str | int | float | bool | None]

_LOG_SECONDS = 1.5
_LOG_STEPS = 50
_EVALUATION_SHARE = 0.1


def train(
    model: nn.Module,
    stages: Sequence[Stage],
    settings: TrainSettings,
    run_folder: Path,
    *,
    resume: bool = False,
    fingerprint: Fingerprint | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train `model` in place; the last stage's task is evaluated on its split "dev", if that is not empty.

    Args:
        run_folder: gets `metrics.jsonl` and `checkpoints/`.
        resume: go on from the checkpoint that `plan.find_start` finds; from the start if there is none.
        fingerprint: what else has to be equal on resume, such as the hash of the data.
        console: where progress is shown; None is standard error.
        clock: seconds that only grow; for time budgets and throughput.
        ranks: those that call this together, with the same arguments; all are left with the same weights.

    Raises:
        TrainingError: a bad step too many, or memory ran out (see `faults`); or the checkpoint was made with other
            settings.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
        SettingsError: `run_folder` holds a run and `resume` is false; stages that do not rise to 1; `Launch.check`.
    """
    stop = StopRequest()
    run = _Run(model, stages, settings, run_folder, fingerprint or {}, ranks, Agreement(ranks, clock, stop))
    run.restore(resume)
    place, screen = run_folder if ranks.is_first else None, ranks.console(console)
    with stop, Reporter(place, keep_bytes=run.metrics_bytes, console=screen, clock=clock) as reporter:
        reporter.write("run", run.state.step, run.description())
        while run.state.stage < len(stages) and not run.state.is_stopped_early:
            _train_stage(run, reporter)
            run.next_stage()
        if run.state.step > run.state.evaluated_step:
            run.evaluate(reporter)
        checkpoint = run.save(reporter, keep=1)
        if run.agreement.is_stopping:  # for there may be other runs after this one
            raise interrupted(run.state.step, checkpoint)
        metrics = run.choose_weights()
        state = run.state
        result = TrainResult(
            step=state.step,
            tokens=state.tokens,
            epochs=state.epochs,
            seconds=run.elapsed(),
            metrics=metrics,
            best_step=state.best_step,
            stopped_early=state.is_stopped_early,
            checkpoint=checkpoint,
        )
        reporter.write("end", state.step, {**asdict(result), "checkpoint": checkpoint.name})
    return result


def _train_stage(run: "_Run", reporter: Reporter) -> None:
    """Steps, until the stage's share of the budget is used up, no evaluation improves, or the user stops."""
    stage = run.stages[run.state.stage]
    with closing(run.steps(stage)) as steps:
        while True:
            progress = run.progress()
            run.keep_stable(reporter, progress)
            if run.agreement.is_stopping:
                raise interrupted(run.state.step, run.save(reporter))
            if run.state.is_evaluation_due:
                run.evaluate(reporter)
                continue
            if progress >= stage.progress_end or run.state.is_stopped_early:
                run.log(reporter)
                return
            asked = run.clock()
            run.take_step(stage.task, next(steps), progress, asked, reporter)
            run.after_step(reporter)


class _Run:
    """The parts of a run, and the verbs that `train` puts in order."""

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage],
        settings: TrainSettings,
        run_folder: Path,
        fingerprint: Fingerprint,
        ranks: Ranks,
        agreement: Agreement,
    ) -> None:
        check_stages(stages)
        ranks.launch.check(
            [stage.batch_size or settings.batch_size for stage in stages], auto_batch=settings.auto_batch
        )
        self.ranks, self.agreement, self.clock = ranks, agreement, agreement.now
        self.device = ranks.device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device)
        model.to("cpu" if settings.shard_weights and not ranks.is_alone else self.device)
        self.fingerprint = {**plan.fingerprint(stages, settings, self.precision), **fingerprint}
        ranks.begin_alike(model, self.fingerprint)
        from bertsmith.training.sharding import hold  # FSDP2 takes a second to import

        self.held = hold(model, settings, ranks, self.device)
        self.whole, self.is_compiling = self.held.whole, settings.compile
        self.stages, self.settings = stages, settings
        self.checkpoints = run_folder / "checkpoints"
        self.guard = Guard(settings, self.checkpoints)
        self.budget = Budget.parse(settings.budget)
        self.evaluations = Interval(Budget.parse(settings.evaluate_every or "10%"))
        self.saves = Interval(Budget.parse(settings.save_every))
        self.has_dev = stages[-1].task.examples("dev").num_examples(0) > 0
        self.state = State()
        self.began = self.logged = self.clock()
        self.totals = Totals()
        self.learning_rate = self.seconds_before = 0.0
        self.step_seconds = self.last_evaluation_seconds = self.last_save_seconds = 0.0
        self.resumed_from: Path | None = None
        self.metrics_bytes = 0

    def restore(self, resume: bool) -> None:
        """Load the checkpoint to go on from, or make sure that there is none."""
        name = self.ranks.first(lambda: plan.find_start(self.checkpoints, self.settings, resume=resume))
        if name is None:
            return
        path = self.ranks.visible(self.checkpoints / name)
        saved = read_state(path)
        self.state = plan.restored(saved["state"], self.settings)
        self.seconds_before = self.state.seconds
        plan.check_resumable(path, saved["fingerprint"], self.fingerprint, self.settings.optimizer, self._spent())
        if saved["fingerprint"]["budget"] != self.settings.budget:
            # A run that had come to its end goes on with its last stage.
            self.state.stage = min(self.state.stage, len(self.stages) - 1)
        load_checkpoint(path, self.whole.model, self.whole.optimizer, self.whole.average.tensors)
        self.held.spread()
        self.last_evaluation_seconds = saved["last_evaluation_seconds"]
        self.metrics_bytes = saved["metrics_bytes"]
        self.resumed_from = path
        for interval in (self.evaluations, self.saves):
            interval.is_due(self._spent(), self.progress())
        self._find_best()

    def description(self) -> dict[str, Any]:
        """What the first line of metrics.jsonl says about the run."""
        return {
            **self.fingerprint,
            "device": str(self.device),
            "num_threads": torch.get_num_threads(),
            "num_ranks": self.ranks.launch.size,
            "num_parameters": sum(parameter.numel() for parameter in self.whole.model.parameters()),
            "resumed_from": self.resumed_from.name if self.resumed_from else None,
        }

    def steps(self, stage: Stage) -> Generator[Step, None, None]:
        """The endless steps of a stage, from where the run is."""
        loader = Loader(
            stage.task.examples("train"),
            stage.task.collate,
            batch_size=stage.batch_size or self.settings.batch_size,
            micro_batch_size=self.state.micro_batch_limit or stage.micro_batch_size or self.settings.micro_batch_size,
            seed=self.settings.seed,
            stream=first_of_task(self.stages, self.state.stage),
            num_workers=self.settings.num_workers,
            share=self.ranks.share,
            pins_memory=self.device.type == "cuda",
        )
        return loader.steps(self.state.epoch, self.state.position)

    def elapsed(self) -> float:
        """Seconds since the run began, over all its parts."""
        return self.seconds_before + self.clock() - self.began

    def progress(self) -> float:
        """The share of the budget that is used up, with time set aside for what follows the last step."""
        reserve = self.step_seconds + self.last_evaluation_seconds + self.last_save_seconds
        return self.budget.progress(self._spent(), reserve)

    def next_stage(self) -> None:
        """Go on with the next stage, at the start of its data if they are others, unless the run was stopped early."""
        state = self.state
        if not state.is_stopped_early:
            state.stage += 1
            if state.stage < len(self.stages):
                state.grad_norms = []  # batches of another size, and text of another length, have others
                if first_of_task(self.stages, state.stage) == state.stage:
                    state.epoch = state.position = 0
                    state.epochs_before_stage, state.micro_batch_limit = state.epochs, None

    def take_step(self, task: Task, step: Step, progress: float, asked: float, reporter: Reporter) -> None:
        """One update, or none, and where the run is afterwards. `asked` is when its data was asked for."""
        state, optimizer, trained = self.state, self.settings.optimizer, self.held.trained
        own = [step.counts.get(name, 0.0) for name in task.loss_weights]
        num_tokens, *sums = self.agreement.meet([step.num_tokens, *own])
        counts = dict(zip(task.loss_weights, sums, strict=True))
        began = self.clock()
        self.learning_rate = rate(progress, state.step, optimizer)

        def update(part: Step) -> StepResult:
            return take_step(
                trained.model,
                task,
                part,
                trained.optimizer,
                counts=counts,
                ranks=self.held.together,
                learning_rate=self.learning_rate,
                max_grad_norm=optimizer.max_grad_norm,
                seed=self.settings.seed,
                number=state.step,
                device=self.device,
                precision=self.precision,
                spike_norm=self.guard.spike_norm(state),
            )

        result = self.guard.within_memory(task, step, state, reporter, update)
        is_taken = self.guard.judge(step, result, self.learning_rate, state, reporter)
        if is_taken:
            trained.average.update(state.step)
        state.step += 1
        state.tokens += int(num_tokens)
        state.epoch, state.position = step.epoch, step.position
        state.epochs = state.epochs_before_stage + step.epochs
        self.agreement.meet()
        self.step_seconds = self.clock() - asked
        if self.is_compiling:
            self.is_compiling = False
            text = f"the first step, in which the layers were compiled, took {self.step_seconds:.1f} s"
            reporter.note("compile", state.step, text, {"seconds": self.step_seconds})
        elif is_taken:  # else the figures of the next line would be those of the bad step
            self.totals.add(result, int(num_tokens), self.step_seconds, began - asked)

    def after_step(self, reporter: Reporter) -> None:
        """A line of metrics and a checkpoint if they are due; an evaluation is only noted as due."""
        log_every = self.settings.log_every
        is_time_to_log = log_every is None and self.clock() - self.logged >= _LOG_SECONDS
        if is_time_to_log or self.totals.steps >= (log_every or _LOG_STEPS):
            self.log(reporter)
        spent, progress = self._spent(), self.progress()
        if self.evaluations.is_due(spent, progress):
            self.state.is_evaluation_due = self.has_dev and not self._is_evaluation_too_slow()
        if self.saves.is_due(spent, progress):
            self.save(reporter)

    def log(self, reporter: Reporter) -> None:
        """Write what the steps since the last line came to, if there were any."""
        totals, state = self.totals, self.state
        self.totals, self.logged = Totals(), self.clock()
        if totals.steps:
            values = {
                "stage": state.stage,
                "epochs": state.epochs,
                "tokens": state.tokens,
                "seconds": self.elapsed(),
                "learning_rate": self.learning_rate,
                **totals.figures(self.stages[state.stage].task.loss_weights),
            }
            reporter.train(state.step, self.progress(), values)

    def evaluate(self, reporter: Reporter) -> None:
        """Score the held-out split; note, and if asked save, the best; decide about stopping early."""
        state = self.state
        state.is_evaluation_due = False
        if not self.has_dev:
            return
        began = self.clock()
        task, model = self.stages[-1].task, self.whole.model
        with self.held.gathered(), self.whole.average.in_place():
            metrics = self.agreement.first(
                lambda: evaluate_task(model, task, "dev", device=self.device, precision=self.precision).metrics
            )
        state.metrics, state.evaluated_step = metrics, state.step
        value, best = next(iter(metrics.values()), None), state.best_objective
        sign = 1 if task.greater_is_better else -1
        is_best = value is not None and math.isfinite(value) and (best is None or sign * value > sign * best)
        if is_best:
            state.best_objective, state.best_step, state.evaluations_without_gain = value, state.step, 0
            if self.settings.keep_best:
                with self.held.gathered(), self.whole.average.in_place():
                    self._write({"metrics": metrics}, optimizer=None, kind="best", keep=1)
        else:
            state.evaluations_without_gain += 1
            patience = self.settings.early_stopping
            state.is_stopped_early = patience is not None and state.evaluations_without_gain >= patience
        self.last_evaluation_seconds = self.clock() - began
        state.evaluation_seconds += self.last_evaluation_seconds
        self.evaluations.is_due(self._spent(), self.progress())
        reporter.evaluation(state.step, metrics, self.last_evaluation_seconds, is_best)
        if state.is_stopped_early:
            text = f"stopped early: no new best in {state.evaluations_without_gain} evaluations"
            reporter.note("early_stop", state.step, text, {})

    def keep_stable(self, reporter: Reporter, progress: float) -> None:
        """Before the first step at a falling rate, write what a longer run can go on from after this one has ended."""
        if not self.state.is_rate_falling and is_falling(progress, self.state.step, self.settings.optimizer):
            self.save(reporter, keep=1, kind="stable")
            self.state.is_rate_falling = True

    def save(self, reporter: Reporter, keep: int = 2, kind: Kind = "step") -> Path:
        """Write a checkpoint of this moment; metrics.jsonl is complete up to it."""
        self.log(reporter)
        began, whole = self.clock(), self.whole
        self.state.seconds = self.elapsed()
        saved = {
            "state": asdict(self.state),
            "fingerprint": self.fingerprint,
            "last_evaluation_seconds": self.last_evaluation_seconds,
            "metrics_bytes": reporter.position,
        }
        with self.held.gathered(moments=True):
            path = self._write(saved, optimizer=whole.optimizer, average=whole.average.tensors, kind=kind, keep=keep)
        self.last_save_seconds = self.clock() - began
        return path

    def _write(self, saved: Mapping[str, Any], **options: Any) -> Path:
        step, model = self.state.step, self.whole.model

        def write() -> str:
            return save_checkpoint(self.checkpoints, step, model, state=saved, **options).name

        return self.checkpoints / self.agreement.first(write)

    def choose_weights(self) -> dict[str, float]:
        """Leave the best weights in the model, if they are kept, else the last, and return their metrics."""
        path, metrics = self._find_best(), self.state.metrics
        if path is None:
            with self.held.gathered(everywhere=True):
                self.whole.average.keep()
        else:
            metrics = load_checkpoint(path, self.whole.model, None)["metrics"]
        self.whole.model.to(self.device)
        replay_layers(self.whole.model, is_wanted=False)
        return metrics

    def _find_best(self) -> Path | None:
        """The checkpoint of the best evaluation, if it is kept. One that is lost is forgotten, so that the next
        evaluation is the best again: a newer one may have replaced it before the run was killed, or it is damaged."""
        if not self.settings.keep_best:
            return None
        state = self.state
        name = self.ranks.first(lambda: find_best(self.checkpoints, state.best_step, after_step=state.step))
        if name is not None:
            return self.ranks.visible(self.checkpoints / name)
        state.best_objective = state.best_step = None
        return None

    def _spent(self) -> Spent:
        return Spent(self.state.step, self.state.tokens, self.elapsed(), self.state.epochs)

    def _is_evaluation_too_slow(self) -> bool:
        """Whether an evaluation that nobody asked for would take too much of a time budget."""
        if self.settings.evaluate_every is not None or self.budget.unit != "seconds":
            return False
        expected = self.state.evaluation_seconds + self.last_evaluation_seconds
        return self.last_evaluation_seconds > 0 and expected > _EVALUATION_SHARE * self.budget.amount
