"""What the training loop asks of anything that can be learnt. Read this before any task.

A task turns rows into examples, examples into a batch, and a model's output back into answers. An
example may hold several sequences (the windows of a long text), but never leaves its batch, so one
`decode` serves evaluation, prediction and the server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bertsmith.model.batch import PackedBatch
from bertsmith.model.encoder import Encoder


@dataclass(frozen=True)
class Batch:
    """Model inputs, labels, and what is needed to turn outputs into answers.

    `counts` says over how many items each named loss of the task will be a sum. It is known before
    the forward pass, so that a step made of several micro-batches (and ranks) can be normalised by
    the count of the whole step without waiting for the device.
    """

    inputs: PackedBatch
    labels: Mapping[str, Tensor]
    counts: Mapping[str, float]
    examples: Sequence[Any]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device."""
        labels = {name: tensor.to(device, non_blocking=True) for name, tensor in self.labels.items()}
        return Batch(self.inputs.to(device), labels, self.counts, self.examples)

    def pinned(self) -> "Batch":
        """The same batch in memory that a CUDA device can fetch from while the processor goes on."""
        labels = {name: tensor.pin_memory() for name, tensor in self.labels.items()}
        return Batch(self.inputs.pinned(), labels, self.counts, self.examples)


class Examples(Protocol):
    """A sized collection in which item (index, epoch) is a pure function of its arguments."""

    def num_examples(self, epoch: int) -> int:
        """How many examples epoch `epoch` has."""

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[Any]:
        """Some examples of epoch `epoch`, in that order, each the same whatever others are asked for.

        Safe to call from several threads. What comes back can be sliced, and slices of it go to `Task.collate`.
        """

    def num_tokens(self, index: int) -> int:
        """About how long an example is; evaluation puts examples of similar length together."""


class Task(Protocol):
    """Rows in, answers out. `score`'s first metric is the objective that picks the best checkpoint."""

    name: str
    loss_weights: Mapping[str, float]
    greater_is_better: bool

    def examples(self, split: str) -> Examples:
        """The collection of one split: "train", "dev" or "test"."""

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Lay examples flat, with this task's labels; labels may be missing when predicting."""

    def build(self, encoder: Encoder) -> nn.Module:
        """The encoder with this task's head: the module to train, whose state dict is saved."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named sums (not means); the loop divides each by the step's count of the same name."""

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """What `decode` needs, computed without gradients."""

    def decode(self, output: Any, batch: Batch) -> list[Any]:
        """One answer an example, in terms of the user's own text."""

    def score(self, answers: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
        """Metrics over a whole split; the first is the objective."""


class TaskAround:
    """A task that is another one in all but what its subclass changes."""

    def __init__(self, task: Task) -> None:
        self.name = task.name
        self.greater_is_better = task.greater_is_better
        self.loss_weights = task.loss_weights
        self._task = task

    def examples(self, split: str) -> Examples:
        """The task's."""
        return self._task.examples(split)

    def collate(self, examples: Sequence[Any]) -> Batch:
        """The task's."""
        return self._task.collate(examples)

    def build(self, encoder: Encoder) -> nn.Module:
        """The task's."""
        return self._task.build(encoder)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The task's."""
        return self._task.loss(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The task's."""
        return self._task.predict(model, batch)

    def decode(self, output: Any, batch: Batch) -> list[Any]:
        """The task's."""
        return self._task.decode(output, batch)

    def score(self, answers: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
        """The task's."""
        return self._task.score(answers, examples)


class HeldOutPart(TaskAround):
    """A task with some of its examples to evaluate with."""

    def __init__(self, task: Task, places: Sequence[int]) -> None:
        super().__init__(task)
        self._places = places

    def examples(self, split: str) -> Examples:
        """Those of "dev"."""
        return _Chosen(self._task.examples(split), self._places)


class _Chosen:
    """Some examples of a collection, by their places."""

    def __init__(self, examples: Examples, places: Sequence[int]) -> None:
        self._examples, self._places = examples, places

    def num_examples(self, epoch: int) -> int:
        """The same for every epoch."""
        return len(self._places)

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[Any]:
        """By their places among the chosen."""
        return self._examples.take([self._places[index] for index in indices], epoch)

    def num_tokens(self, index: int) -> int:
        """Of the one at that place among the chosen."""
        return self._examples.num_tokens(self._places[index])
