"""A task's answers and scores over a whole split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bertsmith.errors import StepError
from bertsmith.training.device import ResolvedPrecision, autocast, is_out_of_memory
from bertsmith.training.loader import evaluation_batches
from bertsmith.training.task import Batch, Task


@dataclass(frozen=True)
class Evaluation:
    """Answers in the order of the collection, the examples they answer, and the scores."""

    metrics: dict[str, float]  # the first is the objective; empty for an empty split
    answers: Sequence[Any]
    examples: Sequence[Any]

    @property
    def objective(self) -> float | None:
        """The value of the first metric."""
        return next(iter(self.metrics.values()), None)


def evaluate_task(
    model: nn.Module,
    task: Task,
    split: str,
    *,
    device: torch.device,
    precision: ResolvedPrecision = "fp32",
    token_budget: int = 8192,
) -> Evaluation:
    """Predict, decode and score every example of `split` once, in batches of similar length.

    The model is in evaluation mode meanwhile, and as it was afterwards. An empty split gives empty
    metrics: there is nothing to say about it. Where memory runs out, a batch is cut in two, which changes no answer.

    Raises:
        StepError: memory ran out in a single example.
    """
    examples = task.examples(split)
    answers: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    was_training = model.training
    model.eval()
    try:
        # One autocast context for all batches: the bf16 copies of the weights are made once.
        with torch.inference_mode(), autocast(device, precision):
            for places, batch in evaluation_batches(examples, task.collate, token_budget):
                answers.update(zip(places, answer_batch(model, task, batch, device), strict=True))
                seen.update(zip(places, batch.examples, strict=True))
    finally:
        model.train(was_training)
    if not answers:
        return Evaluation({}, [], [])
    in_order = sorted(answers)
    ordered_answers = [answers[place] for place in in_order]
    ordered_examples = [seen[place] for place in in_order]
    return Evaluation(task.score(ordered_answers, ordered_examples), ordered_answers, ordered_examples)


def answer_batch(model: nn.Module, task: Task, batch: Batch, device: torch.device) -> list[Any]:
    """One answer an example, by the task's own decoding; the batch is cut where memory runs out.

    Raises:
        StepError: as `within_memory`.
    """

    def answer(examples: Sequence[Any]) -> list[Any]:
        part = batch if examples is batch.examples else task.collate(examples)
        on_device = part.to(device)
        return task.decode(task.predict(model, on_device), on_device)

    def size(example: Any) -> str:
        return f"{sum(task.collate([example]).inputs.lengths):,} tokens"

    return within_memory(answer, batch.examples, size)


def within_memory(
    answer: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any], size: Callable[[Any], str]
) -> list[Any]:
    """What `answer` makes of the items, one each; of halves of them where memory runs out, as often as it takes.

    Args:
        size: how large an item is, in words; for the message.

    Raises:
        StepError: memory ran out in a single item.
    """
    try:
        return answer(items)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise StepError(
                f"memory ran out in a single example, of {size(items[0])}. Use a smaller max_length where there is "
                "one, a shorter text, or precision bf16 where the hardware has it."
            ) from error
    # Here, where nothing holds the error and its tensors any more.
    torch.cuda.empty_cache()  # nothing, where CUDA is not in use
    middle = len(items) // 2
    return [answered for half in (items[:middle], items[middle:]) for answered in within_memory(answer, half, size)]
