"""What a run does when a step goes wrong: it skips it, cuts it smaller, or stops and says why.

A loss or gradient that is not finite, and a gradient that is a spike, are bad steps: their data is used up and their
number is taken, so that what follows has the dropout and the data that it would have had, but weights, moments and
average stay as they were. `max_skipped_steps` of them, of either kind, may follow each other; one more ends the run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bertsmith.errors import StepError
from bertsmith.training.checkpoint import newest_checkpoint
from bertsmith.training.loader import Step
from bertsmith.training.plan import State, TrainSettings
from bertsmith.training.progress import Reporter
from bertsmith.training.step import OutOfMemory, StepResult
from bertsmith.training.task import Batch, Task

_WINDOW = 128
_FEWEST = 64
_SHOWN_IDS = 16


@dataclass(frozen=True)
class Guard:
    """The decisions about bad steps. What they depend on is in the run's state, and so in its checkpoints."""

    settings: TrainSettings
    checkpoints: Path

    def spike_norm(self, state: State) -> float:
        """The greatest norm of a gradient that is not a spike.

        The rule of OLMo-core's `SkipStepOptimizer`, for norms alone: a number of standard deviations above the mean of
        the last 128, once there are half as many. As there, the norms of skipped steps are among them, so that a level
        that stays higher is accepted after a few steps.
        """
        norms = state.grad_norms
        if self.settings.skip_spikes is None or len(norms) < _FEWEST:
            return math.inf
        return float(np.mean(norms) + self.settings.skip_spikes * np.std(norms, ddof=1))

    def within_memory(
        self, task: Task, step: Step, state: State, reporter: Reporter, update: Callable[[Step], StepResult]
    ) -> StepResult:
        """What `update` makes of the step, in smaller micro-batches each time that memory runs out.

        Raises:
            StepError: memory ran out, and the step may not or cannot be cut further.
        """
        while True:
            if state.micro_batch_limit is not None:
                step = step.cut(task.collate, state.micro_batch_limit)
            try:
                return update(step)
            except OutOfMemory as error:
                failed = _sizes(error.batch)
                if error.batch is None or not self.settings.auto_batch or not self._may_halve(step):
                    raise StepError(self._lack_of_memory(step, state, failed)) from error
            # Here, where nothing holds the error and its tensors any more.
            torch.cuda.empty_cache()  # nothing, where CUDA is not in use
            state.micro_batch_limit = step.micro_batch_size // 2
            text = f"memory ran out in {_in_words(failed)}: going on with micro_batch_size {state.micro_batch_limit}"
            values = {"failed": failed, "micro_batch_size": state.micro_batch_limit}
            reporter.note("out_of_memory", state.step + 1, text, values)

    def judge(self, step: Step, result: StepResult, learning_rate: float, state: State, reporter: Reporter) -> bool:
        """Whether the step has changed the weights; if not, it is counted and shown.

        Raises:
            StepError: it is one bad step too many.
        """
        limit = self.spike_norm(state)
        if self.settings.skip_spikes is not None and math.isfinite(result.grad_norm):
            state.grad_norms = [*state.grad_norms, result.grad_norm][-_WINDOW:]
        if result.fault is None:
            state.skipped_in_a_row = 0
            return True
        losses = {name: float(total) / result.counts[name] for name, total in result.loss_sums.items()}
        what = _what(result, limit, self.settings)
        figures = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        text = (
            f"{what} (norm {result.grad_norm:g}; losses: {figures}; learning rate {learning_rate:g}; "
            f"epoch {step.epoch}, examples {_some(step.sample_ids)})"
        )
        is_last = state.skipped_in_a_row >= self.settings.max_skipped_steps
        if not is_last:
            state.skipped_in_a_row += 1
            state.skipped_steps += 1
        values = {
            "fault": result.fault,
            "is_skipped": not is_last,
            "losses": losses,
            "grad_norm": result.grad_norm,
            "spike_norm": limit,
            "learning_rate": learning_rate,
            "epoch": step.epoch,
            "sample_ids": step.sample_ids,
            "skipped_in_a_row": state.skipped_in_a_row,
            "skipped_steps": state.skipped_steps,
        }
        reporter.note("bad_step", state.step + 1, text if is_last else f"skipped: {text}", values)
        if is_last:
            raise StepError(self._one_too_many(text, state))
        return False

    def _one_too_many(self, text: str, state: State) -> str:
        before = f"The {state.skipped_in_a_row} steps before it were skipped. " if state.skipped_in_a_row else ""
        return (
            f"step {state.step + 1}: {text}. {before}The last checkpoint is {self._last_checkpoint()}. A lower "
            "learning rate or a longer warm-up may help; if the loss itself is not finite, look at these examples. "
            f"--max-skipped-steps, now {self.settings.max_skipped_steps}, is how many such steps in a row are skipped."
        )

    def _last_checkpoint(self) -> Path | str:
        return newest_checkpoint(self.checkpoints) or "not yet written"

    def _may_halve(self, step: Step) -> bool:
        return step.micro_batch_size >= 2 * self.settings.smallest_micro_batch

    def _lack_of_memory(self, step: Step, state: State, failed: dict[str, int]) -> str:
        last = self._last_checkpoint()
        if not failed:
            return (
                f"step {state.step + 1}: memory ran out while the weights were updated. Use a smaller model, or an "
                f"optimizer that remembers less. The last checkpoint is {last}."
            )
        smaller = f"a micro_batch_size below {step.micro_batch_size} (or --auto-batch), " * self._may_halve(step)
        lean = "" if self.settings.gradient_checkpointing else "--gradient-checkpointing, "
        return (
            f"step {state.step + 1}: memory ran out in {_in_words(failed)}. Use {smaller}a smaller max_length, {lean}"
            f"or precision bf16 where the hardware has it. The last checkpoint is {last}."
        )


def _what(result: StepResult, limit: float, settings: TrainSettings) -> str:
    if result.fault == "spike":
        return (
            f"the gradient is a spike, above {limit:.3g}, which is {settings.skip_spikes:g} standard deviations over "
            f"the mean of the last {_WINDOW}"
        )
    return f"the {'loss' if math.isfinite(result.grad_norm) else 'gradient'} is not finite"


def _sizes(batch: Batch | None) -> dict[str, int]:
    """How large a micro-batch was; nothing, if it was the update that failed."""
    if batch is None:
        return {}
    lengths = batch.inputs.lengths
    return {"sequences": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}


def _in_words(sizes: dict[str, int]) -> str:
    sequences, tokens, longest = sizes["sequences"], sizes["tokens"], sizes["longest"]
    return f"a micro-batch of {sequences} sequences ({tokens:,} tokens, the longest {longest:,})"


def _some(sample_ids: Sequence[int]) -> str:
    more = len(sample_ids) - _SHOWN_IDS
    return ", ".join(map(str, sample_ids[:_SHOWN_IDS])) + (f" and {more} more" if more > 0 else "")
