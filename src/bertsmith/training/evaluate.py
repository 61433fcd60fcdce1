"""A task's answers and scores over a whole split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bertsmith.training.device import ResolvedPrecision, autocast
from bertsmith.training.loader import evaluation_batches
from bertsmith.training.task import Task


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
    metrics: there is nothing to say about it.
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
                on_device = batch.to(device)
                decoded = task.decode(task.predict(model, on_device), on_device)
                answers.update(zip(places, decoded, strict=True))
                seen.update(zip(places, batch.examples, strict=True))
    finally:
        model.train(was_training)
    if not answers:
        return Evaluation({}, [], [])
    in_order = sorted(answers)
    ordered_answers = [answers[place] for place in in_order]
    ordered_examples = [seen[place] for place in in_order]
    return Evaluation(task.score(ordered_answers, ordered_examples), ordered_answers, ordered_examples)
