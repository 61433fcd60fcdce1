"""One optimizer update: accumulate over the micro-batches, check, clip, step."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bertsmith import randomness
from bertsmith.model.encoder import forget_recordings
from bertsmith.training.device import ResolvedPrecision, autocast, is_out_of_memory
from bertsmith.training.distributed import ALONE
from bertsmith.training.loader import Step
from bertsmith.training.task import Batch, Task

Fault = Literal["not finite", "spike"]


@dataclass(frozen=True)
class StepResult:
    """What a step cost. A loss that counted nothing is in neither mapping."""

    loss_sums: dict[str, Tensor]  # float32 scalars, still on the device: reading one waits for it
    counts: dict[str, float]
    grad_norm: float  # before clipping
    fault: Fault | None = None  # with one, weights and moments are as they were before


class Together(Protocol):
    """Those who make a step: `Ranks`, each with the whole model, or `Shards`, each with a piece of every tensor."""

    def passes(self, task: Task, step: Step) -> Iterable[tuple[int, Batch, bool]]:
        """This rank's micro-batches with their numbers in the whole step, and whether their losses count."""

    def losses(self, model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
        """The task's sums."""

    def backward(self, counted: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Add the gradients of a micro-batch's share of the step; `others` are sums that count nothing in it."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter], losses: Sequence[Tensor]) -> None:
        """The gradients and losses of the step over all ranks, in place."""

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradients down to a norm, and return the norm that they had, of all that is trained."""


class OutOfMemory(Exception):
    """Memory ran out: in a micro-batch, when weights and moments are as they were before; or in the update itself."""

    def __init__(self, batch: Batch | None) -> None:
        self.batch = batch
        super().__init__("out of memory")


def take_step(
    model: nn.Module,
    task: Task,
    step: Step,
    optimizer: Optimizer,
    *,
    counts: Mapping[str, float] | None = None,
    ranks: Together = ALONE,
    learning_rate: float,
    max_grad_norm: float,
    seed: int,
    number: int,
    device: torch.device,
    precision: ResolvedPrecision,
    spike_norm: float = math.inf,
) -> StepResult:
    """Update the weights once, unless a loss or the gradient is not finite, or the gradient is a spike.

    Each loss is its sum over all micro-batches, of all ranks, divided by its count over all of them, so the update
    does not depend on how the step is cut. (The mean of the means of micro-batches, which most
    training code takes, gives a masked token of a short micro-batch more weight.)

    Args:
        step: this rank's share.
        counts: of the whole step, by the name of the loss; None: those of `step`, which is the whole.
        number: steps finished so far; with `seed` and the number of the micro-batch it decides every
            dropout mask, through torch's global generator.
        spike_norm: a gradient with a greater norm than this is not used.

    Raises:
        OutOfMemory: what the step held on the device is free again once the error is dropped.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    counts = {name: count for name, count in (step.counts if counts is None else counts).items() if count > 0}
    loss_sums = {name: torch.zeros((), device=device) for name in counts}
    for index, batch, is_own in ranks.passes(task, step):
        torch.manual_seed(randomness.integer(seed, "dropout", number, index))
        with _noting_lack_of_memory(model, batch):
            sums = _add_gradients(model, task, batch, counts, ranks, is_own, device, precision)
        for name, total in sums.items():
            loss_sums[name] = loss_sums[name] + total
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with _noting_lack_of_memory(model, None):
        ranks.sum_gradients(parameters, list(loss_sums.values()))
    norm = ranks.clip(parameters, max_grad_norm or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    with _noting_lack_of_memory(model, None):
        grad_norm, *losses = update_unless_bad(optimizer, torch.stack([norm.float(), *loss_sums.values()]), spike_norm)
    fault: Fault | None = None
    if not all(map(math.isfinite, (grad_norm, *losses))):
        fault = "not finite"
    elif grad_norm > spike_norm:
        fault = "spike"
    return StepResult(loss_sums, counts, grad_norm, fault)


def update_unless_bad(optimizer: Optimizer, figures: Tensor, spike_norm: float) -> list[float]:
    """Take the optimizer's step if the figures allow it (an update with a NaN could not be undone), and read them.

    Reading is the step's only wait for the device. On CUDA, torch's AdamW can be told by a tensor to do nothing (what
    `torch.amp.GradScaler` does), and so has its work before the wait, in which the device would stand idle.

    Args:
        figures: float32, the norm of the gradient, which may be up to `spike_norm`, and losses; all should be finite.
    """
    if isinstance(optimizer, AdamW) and figures.is_cuda:
        is_good = torch.isfinite(figures).all() & (figures[0] <= spike_norm)
        host = figures.to("cpu", non_blocking=True)
        has_arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        has_arrived.record(torch.cuda.current_stream(figures.device))
        optimizer.found_inf = (~is_good).float()  # type: ignore[attr-defined]
        optimizer.step()
        has_arrived.synchronize()
        values: list[float] = host.tolist()
        return values
    values = figures.tolist()
    if all(map(math.isfinite, values)) and values[0] <= spike_norm:
        optimizer.step()
    return values


def _add_gradients(
    model: nn.Module,
    task: Task,
    batch: Batch,
    counts: Mapping[str, float],
    ranks: Together,
    is_own: bool,
    device: torch.device,
    precision: ResolvedPrecision,
) -> dict[str, Tensor]:
    """Add a micro-batch's share of the step to the gradients, and return its sums, of the losses that counted."""
    with autocast(device, precision):
        sums = ranks.losses(model, task, batch.to(device))
    counted = {name: total.float() for name, total in sums.items() if is_own and batch.counts[name] > 0}
    parts = [total * (task.loss_weights[name] / counts[name]) for name, total in counted.items()]
    ranks.backward(parts, [sums[name].float() for name in counts if name in sums and name not in counted])
    return {name: total.detach() for name, total in counted.items()}


@contextmanager
def _noting_lack_of_memory(model: nn.Module, batch: Batch | None) -> Iterator[None]:
    """Turn what torch and Python raise for it into OutOfMemory, with the micro-batch that was too much.

    `model` gives back what it holds for replaying its layers.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        forget_recordings(model)
        raise OutOfMemory(batch) from error


@dataclass
class Totals:
    """Sums over several steps. Losses stay on the device until they are asked for."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0  # of `seconds`, for data
    grad_norm: float = 0.0
    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult, num_tokens: int, seconds: float, wait_seconds: float) -> None:
        """Count one step in."""
        self.steps += 1
        self.tokens += num_tokens
        self.seconds += seconds
        self.wait_seconds += wait_seconds
        self.grad_norm += result.grad_norm
        for name, loss_sum in result.loss_sums.items():
            self.loss_sums[name] = self.loss_sums[name] + loss_sum if name in self.loss_sums else loss_sum
            self.counts[name] = self.counts.get(name, 0.0) + result.counts[name]

    def figures(self, loss_weights: Mapping[str, float]) -> dict[str, Any]:
        """What metrics.jsonl says of these steps. Losses are per counted item. Waits for the device."""
        losses = {name: float(loss_sum) / self.counts[name] for name, loss_sum in self.loss_sums.items()}
        return {
            "loss": sum(loss_weights[name] * value for name, value in losses.items()),
            "losses": losses,
            "grad_norm": self.grad_norm / max(self.steps, 1),
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "data_wait_seconds": self.wait_seconds,
        }
