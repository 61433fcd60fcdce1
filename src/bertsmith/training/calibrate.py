"""What a run will cost on this machine, from a few of its own steps: time, memory, checkpoints.

The steps are those of the loop (`take_step` on the loader's first batches, optimizer included), at a learning rate of
0, so that nothing is learnt and no loss can run away. Measured are seconds a step and a token, seconds of evaluation a
token, of a checkpoint and of the report, and the most memory, which the run's largest step has. To be called in a
process of its own (`tasks/child.py`), whose memory then is the run's.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from bertsmith.model.encoder import recompute_layers, replay_layers
from bertsmith.training.average import WeightAverage
from bertsmith.training.checkpoint import Kind, save_checkpoint
from bertsmith.training.device import ResolvedPrecision, resolve_device, resolve_precision
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.loader import Loader, Step
from bertsmith.training.memory import Memory, keep_freed_memory
from bertsmith.training.optim import build_optimizer
from bertsmith.training.plan import Stage, TrainSettings
from bertsmith.training.report import Curves, write_report
from bertsmith.training.schedule import Budget
from bertsmith.training.step import OutOfMemory, take_step
from bertsmith.training.task import HeldOutPart, Task

_CURVES_OF_LEARNING = 3  # in a report: loss, learning rate, speed
_FEWEST_STEPS = 3
_MOST_STEPS = 400
_WARM_UP_STEPS = 2
_STEPS_LOOKED_AT = 2000
_EVALUATION_SHARE = 0.25  # of the time for measuring
_FORWARD_SHARE = 1 / 3  # of the time of a step
_LEAST_SPREAD = 0.05  # of the tokens of steps, below which their time says nothing about a token's


@dataclass(frozen=True)
class Pace:
    """How the time of a step depends on its tokens: a straight line."""

    seconds_per_step: float
    seconds_per_token: float

    @classmethod
    def fit(cls, tokens: Sequence[float], seconds: Sequence[float]) -> "Pace":
        """By least squares, neither term below 0. Whatever the line, it gives the mean step its mean time.

        >>> Pace.fit([100, 200, 300], [1.5, 2.5, 3.5])
        Pace(seconds_per_step=0.5, seconds_per_token=0.01)
        """
        x, y = np.asarray(tokens, dtype=float), np.asarray(seconds, dtype=float)
        slope = 0.0
        if x.std() > _LEAST_SPREAD * x.mean():
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        elif x.mean() > 0:
            slope = float(y.mean() / x.mean())
        slope = min(max(0.0, slope), float(y.mean() / max(1.0, x.mean())))
        return cls(max(0.0, float(y.mean()) - slope * float(x.mean())), slope)

    def seconds(self, steps: float, tokens: float) -> float:
        """Of so many steps with so many tokens in all."""
        return steps * self.seconds_per_step + tokens * self.seconds_per_token


@dataclass(frozen=True)
class StageCost:
    """What was measured of a stage. `mean_*` are of the steps that were measured."""

    batch_size: int
    micro_batch_size: int
    """As asked, or what fits the memory that is allowed."""
    steps_per_epoch: int
    num_measured: int
    pace: Pace
    mean_tokens: float
    mean_sequences: float
    mean_token_pairs: float
    """Of the sum of the squares of the sequences' lengths."""
    mean_counts: dict[str, float]
    """Of what each loss is a sum over."""
    seconds_per_evaluated_token: float
    peak_bytes: int
    """The most memory that the run will take, of this process or of the device."""


@dataclass(frozen=True)
class Calibration:
    """What was measured of a run; `fits` is false, and nothing but the memory known, if one example is too much."""

    num_parameters: int
    num_trained: int
    fits: bool
    peak_bytes: int
    """The most, or what one example in a step would need if that does not fit."""
    stages: tuple[StageCost, ...]
    save_seconds: float
    """Of a whole checkpoint; `best_*`: of one of weights alone."""
    save_bytes: int
    best_seconds: float
    best_bytes: int
    report_seconds: float


class DoesNotFit(Exception):
    """Not even one example in a step fits the memory that is allowed."""

    def __init__(self, needed_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        super().__init__(f"{needed_bytes} bytes")


def calibrate(
    model: nn.Module,
    stages: Sequence[Stage],
    settings: TrainSettings,
    *,
    memory_limit_bytes: int,
    seconds: float,
    folder: Path,
) -> Calibration:
    """Measure for about `seconds` a stage, at least three steps, and write one checkpoint that is removed again.

    Args:
        memory_limit_bytes: micro-batches are cut until what they need is below it.
        folder: where the checkpoint is written, of which nothing remains.

    Raises:
        StorageError: there is no room for a checkpoint.
    """
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    memory = Memory.of(device)
    model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    replay_layers(model, settings.replays_layers)
    if settings.gradient_checkpointing:
        recompute_layers(model)
    optimizer = build_optimizer(model, settings.optimizer)
    average = WeightAverage(dict(model.named_parameters()), settings.ema_decay)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    costs: list[StageCost] = []
    num_curves = 0
    try:
        for number, stage in enumerate(stages):
            bench = _Bench(model, stage, number, settings, optimizer, memory, precision)
            costs.append(bench.measure(memory_limit_bytes, seconds))
            num_curves = _CURVES_OF_LEARNING + len(bench.metrics)
    except DoesNotFit as error:
        return Calibration(num_parameters, num_trained, False, error.needed_bytes, (), 0.0, 0, 0.0, 0, 0.0)
    seconds_of: dict[Kind, float] = {}
    bytes_of: dict[Kind, int] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".calibration-") as temporary:
        place = Path(temporary)
        kinds: tuple[tuple[Kind, Optimizer | None], ...] = (("step", optimizer), ("best", None))
        for kind, used in kinds:
            began = time.perf_counter()
            tensors = average.tensors if used is not None else None
            path = save_checkpoint(place, 0, model, used, {}, average=tensors, kind=kind)
            seconds_of[kind] = time.perf_counter() - began
            bytes_of[kind] = sum(file.stat().st_size for file in path.iterdir())
        began = time.perf_counter()
        curves = [Curves(str(number), "step", "value", {"": (range(9), range(9))}) for number in range(num_curves)]
        write_report(place, "", curves, config={}, facts={})
        report_seconds = time.perf_counter() - began
    return Calibration(
        num_parameters=num_parameters,
        num_trained=num_trained,
        fits=True,
        peak_bytes=max(memory.expected_bytes(), *(cost.peak_bytes for cost in costs)),
        stages=tuple(costs),
        save_seconds=seconds_of["step"],
        save_bytes=bytes_of["step"],
        best_seconds=seconds_of["best"],
        best_bytes=bytes_of["best"],
        report_seconds=report_seconds,
    )


class _Bench:
    """One stage on the bench."""

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        number: int,
        settings: TrainSettings,
        optimizer: Optimizer,
        memory: Memory,
        precision: ResolvedPrecision,
    ) -> None:
        self.model, self.task, self.optimizer = model, stage.task, optimizer
        self.settings, self.memory, self.precision = settings, memory, precision
        self.device = memory.device
        self.num_recorded = 2 if settings.replays_layers and self.device.type == "cuda" else 0
        """Steps of one size after which the next is replayed."""
        self.number = number
        self.batch_size = stage.batch_size or settings.batch_size
        self.micro_batch_size = min(
            stage.micro_batch_size or settings.micro_batch_size or self.batch_size, self.batch_size
        )
        self.examples = stage.task.examples("train")
        self.steps_taken = 0
        self.metrics: dict[str, float] = {}

    def measure(self, memory_limit_bytes: int, seconds: float) -> StageCost:
        """Memory first, so that nothing is tried that does not fit.

        Raises:
            DoesNotFit: one example in a step is too much.
        """
        asked = self.micro_batch_size
        self.micro_batch_size = self._fitting(memory_limit_bytes)
        if self.micro_batch_size < asked:
            self._fit_largest(memory_limit_bytes)
        cost = self._cost(seconds)
        while cost.peak_bytes > memory_limit_bytes:  # whole steps, and scores, may want more than one micro-batch
            self._halve(cost.peak_bytes)
            self.memory.forget_peak(self.model)
            self._fit_largest(memory_limit_bytes)
            cost = self._cost(seconds)
        return cost

    def _fit_largest(self, limit_bytes: int) -> None:
        """Cut on until the largest micro-batch fits: the longest text need not be among the first of its batch."""
        while (needed_bytes := self._needed_bytes(self._largest_micro_batch(), limit_bytes)) > limit_bytes:
            self._halve(needed_bytes)
            self.memory.forget_peak(self.model)

    def _needed_bytes(self, step: Step, limit_bytes: int) -> int:
        """The most memory so far, once the step was taken; above the limit if it ran out."""
        try:
            for _ in range(1 + self.num_recorded):
                self._take(step)
        except OutOfMemory:
            return limit_bytes + 1
        return self.memory.expected_bytes()

    def _halve(self, needed_bytes: int) -> None:
        if self.micro_batch_size < 2 * self.settings.smallest_micro_batch:
            raise DoesNotFit(needed_bytes)
        self.micro_batch_size //= 2

    def _cost(self, seconds: float) -> StageCost:
        steps, times = self._timed_steps(seconds)
        tokens = [step.num_tokens for step in steps]
        pace = Pace.fit(tokens, times)
        lengths = [[n for batch in step.micro_batches for n in batch.inputs.lengths] for step in steps]
        mean_tokens = float(np.mean(tokens))
        a_token = pace.seconds(1, mean_tokens) / max(1.0, mean_tokens) * _FORWARD_SHARE
        counts = {name: float(np.mean([step.counts[name] for step in steps])) for name in steps[0].counts}
        return StageCost(
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            steps_per_epoch=-(-self.examples.num_examples(0) // self.batch_size),
            num_measured=len(steps),
            pace=pace,
            mean_tokens=mean_tokens,
            mean_sequences=float(np.mean([len(one) for one in lengths])),
            mean_token_pairs=float(np.mean([sum(n * n for n in one) for one in lengths])),
            mean_counts=counts,
            seconds_per_evaluated_token=self._evaluate(seconds * _EVALUATION_SHARE, a_token),
            peak_bytes=self.memory.expected_bytes(),
        )

    def _fitting(self, limit_bytes: int) -> int:
        """The largest micro-batch whose memory is below the limit, of those that halving gives.

        It grows by doubling, and stops where the line through the last two says that the next would be too much. Leaves
        the memory of the largest micro-batch of the run behind as the peak of this process.

        Raises:
            DoesNotFit: one example is too much.
        """
        step = self._largest_micro_batch()
        whole = len(step.sample_ids)
        smallest = min(whole, self.settings.smallest_micro_batch)
        sizes = sorted({max(smallest, -(-whole // part)) for part in (1, 2, 4, 8)})
        known: list[tuple[int, int]] = []
        fitting = 0
        for size in sizes:
            if len(known) > 1 and _extended(known, size) > limit_bytes:
                break
            known.append((size, self._needed_bytes(_only(step, self.task, size), limit_bytes)))
            if known[-1][1] > limit_bytes:
                self.memory.forget_peak(self.model)
                break
            fitting = size
        if fitting:
            return self.micro_batch_size if fitting == whole else fitting
        self.micro_batch_size = sizes[0]
        self._halve(known[0][1])
        return self._fitting(limit_bytes)

    def _largest_micro_batch(self) -> Step:
        """A step of one micro-batch, the one with the most tokens of the first 2,000 of the run."""
        loader = self._loader(self.micro_batch_size)
        budget = Budget.parse(self.settings.budget)
        num_epochs = math.ceil(budget.amount) if budget.unit == "epochs" else 1
        sizes = [self.examples.num_examples(epoch) for epoch in range(min(num_epochs, _STEPS_LOOKED_AT))]
        begins = ((epoch, start) for epoch, size in enumerate(sizes) for start in range(0, size, self.micro_batch_size))

        def tokens(begin: tuple[int, int]) -> int:
            epoch, start = begin
            places = loader.sample_ids(epoch, start, min(start + self.micro_batch_size, sizes[epoch]))
            return sum(self.examples.num_tokens(place) for place in places)

        with closing(loader.steps(*max(islice(begins, _STEPS_LOOKED_AT), key=tokens))) as steps:
            return next(steps)

    def _timed_steps(self, seconds: float) -> tuple[list[Step], list[float]]:
        """The first steps of the run in their order, with the time from asking for the data to the finished update."""
        measured: list[Step] = []
        times: list[float] = []
        with closing(self._loader(self.batch_size).steps(0, 0)) as steps:
            for _ in range(_WARM_UP_STEPS):
                self._take(next(steps))
            began = time.perf_counter()
            while len(times) < _FEWEST_STEPS or (time.perf_counter() - began < seconds and len(times) < _MOST_STEPS):
                asked = time.perf_counter()
                step = next(steps)
                waited = time.perf_counter() - asked
                for _ in range(self.num_recorded):
                    self._take(step)
                taken = time.perf_counter()
                self._take(step)
                measured.append(step)
                times.append(waited + time.perf_counter() - taken)
        return measured, times

    def _evaluate(self, seconds: float, forward_seconds_per_token: float) -> float:
        """Seconds a token of the split "dev"; 0 if it is empty."""
        examples = self.task.examples("dev")
        size = examples.num_examples(0)
        if size == 0:
            return 0.0
        lengths = np.array([examples.num_tokens(place) for place in range(size)])
        order = np.argsort(-lengths, kind="stable")
        wanted_tokens = max(1.0, seconds / max(forward_seconds_per_token, 1e-12))
        every = max(1, math.floor(lengths.sum() / wanted_tokens))
        # First a little, because the first scores wait for imports.
        for places in (order[:: max(every, size // 8)], order[::every]):
            began = time.perf_counter()
            part = HeldOutPart(self.task, places.tolist())
            self.metrics = evaluate_task(self.model, part, "dev", device=self.device, precision=self.precision).metrics
            spent = time.perf_counter() - began
        return spent / max(1, int(lengths[order[::every]].sum()))

    def _take(self, step: Step) -> None:
        """One update of nothing."""
        take_step(
            self.model,
            self.task,
            step,
            self.optimizer,
            learning_rate=0.0,
            max_grad_norm=self.settings.optimizer.max_grad_norm,
            seed=self.settings.seed,
            number=self.steps_taken,
            device=self.device,
            precision=self.precision,
        )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.steps_taken += 1

    def _loader(self, batch_size: int) -> Loader:
        return Loader(
            self.examples,
            self.task.collate,
            batch_size=batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.settings.seed,
            stream=self.number,
            num_workers=self.settings.num_workers,
        )


def _only(step: Step, task: Task, size: int) -> Step:
    """A step of one micro-batch: the first examples of another."""
    cut = step.cut(task.collate, size)
    return replace(cut, micro_batches=cut.micro_batches[:1], sample_ids=cut.sample_ids[:size])


def _extended(known: Sequence[tuple[int, int]], size: int) -> float:
    """What a straight line through the last two points says."""
    (before, low), (last, high) = known[-2:]
    return high + (high - low) / (last - before) * (size - last)
