"""Several tasks over one encoder, as one task (MT-DNN, Liu et al. 2019, arXiv 1901.11504, section 3.1).

The rows of each task are cut into batches, and the batches of all tasks are shuffled (the paper's algorithm 1), so
that a step learns one task. To the training loop such a batch is one example, and a step has one of them: the order of
the tasks is then the order of its examples, a function of the seed, and nothing else has to know that they are several.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from bertsmith import randomness
from bertsmith.errors import SettingsError
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.rows import ListExamples
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.training.loader import evaluation_batches
from bertsmith.training.task import Batch, Examples

_MOST_TOKENS = 1 << 30
"""What a batch says it has, so that an evaluation never puts two of them together."""


@dataclass(frozen=True)
class OfTask:
    """Examples of one task: to the loop and the loader, one example."""

    name: str
    examples: Sequence[Any]

    @property
    def num_tokens(self) -> int:
        """So many that nothing is put beside it."""
        return _MOST_TOKENS


class TaskBatches:
    """The training batches of all tasks, one after the other; a task's epoch need not be a pass over its rows."""

    def __init__(self, examples: Mapping[str, Examples], batch_size: int, sampling: float, seed: int) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._sizes = [one.num_examples(0) for one in examples.values()]
        self._in_pass = [-(-size // batch_size) for size in self._sizes]
        shares = np.array(self._in_pass, dtype=np.float64) ** sampling
        numbers = np.rint(sum(self._in_pass) * shares / shares.sum()).astype(np.int64)
        self.numbers = np.maximum(numbers, 1)
        """int64 [tasks], batches of each in an epoch."""

    def num_examples(self, epoch: int) -> int:
        """Batches: the same for every epoch."""
        return int(self.numbers.sum())

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[OfTask]:
        """Those batches. Each task goes through its rows in a new order a pass, wherever epochs begin."""
        return [self._batch(index, epoch) for index in indices]

    def _batch(self, index: int, epoch: int) -> OfTask:
        ends = np.cumsum(self.numbers)
        task = int(np.searchsorted(ends, index, side="right"))
        number = int(epoch * self.numbers[task] + index - (ends[task] - self.numbers[task]))
        turn, place = divmod(number, self._in_pass[task])
        start, size = place * self._batch_size, self._sizes[task]
        places = np.arange(start, min(start + self._batch_size, size))
        rows = randomness.shuffled(places, size, self._seed, "together", task, turn)
        name = list(self._examples)[task]
        return OfTask(name, self._examples[name].take(rows.tolist(), turn))

    def num_tokens(self, index: int) -> int:
        """As `OfTask`."""
        return _MOST_TOKENS


class Together:
    """Several tasks as one: an example is a batch of one of them, a metric is a task's with its name before it."""

    name = "together"
    greater_is_better = True

    def __init__(self, tasks: Mapping[str, FinetuneTask], batch_size: int, sampling: float, seed: int) -> None:
        """
        Raises:
            SettingsError: a task whose metric is better where it is smaller, which no mean can be taken with.
        """
        for name, task in tasks.items():
            if not task.greater_is_better:
                objective = task.settings.metric or "its metric"
                raise SettingsError(
                    f"{name}: the mean over the tasks is of what should be large, and {objective} should be small: "
                    "choose another metric."
                )
        self.tasks = tasks
        self.loss_weights: Mapping[str, float] = {
            f"{name}/{loss}": weight for name, task in tasks.items() for loss, weight in task.loss_weights.items()
        }
        self.batches = TaskBatches(
            {name: task.examples("train") for name, task in tasks.items()}, batch_size, sampling, seed
        )

    def examples(self, split: str) -> Examples:
        """Batches of "train"; of another split those of its evaluation, of one task after the other."""
        if split == "train":
            return self.batches
        return ListExamples(
            [
                OfTask(name, task.examples(split).take(places, 0))
                for name, task in self.tasks.items()
                for places, _ in evaluation_batches(task.examples(split), _uncollated)
            ]
        )

    def collate(self, examples: Sequence[OfTask]) -> Batch:
        """The batch of the one task there is an example of."""
        (one,) = examples
        batch = self.tasks[one.name].collate(one.examples)
        counts = {f"{one.name}/{loss}": count for loss, count in batch.counts.items()}
        return Batch(batch.inputs, batch.labels, counts, examples)

    def build(self, encoder: Encoder) -> nn.ModuleDict:
        """Fresh heads on one encoder."""
        return on_one_encoder({name: task.build(encoder) for name, task in self.tasks.items()})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The task's."""
        name, task, inner = self._of(batch)
        return {f"{name}/{loss}": total for loss, total in task.loss(model_of(model, name), inner).items()}

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The task's."""
        name, task, inner = self._of(batch)
        return task.predict(model_of(model, name), inner)

    def decode(self, output: Any, batch: Batch) -> list[Any]:
        """All answers of the batch, as that of its one example."""
        _, task, inner = self._of(batch)
        return [task.decode(output, inner)]

    def score(self, answers: Sequence[Any], examples: Sequence[OfTask]) -> dict[str, float]:
        """The mean of the tasks' first metrics; then `NAME/METRIC` of each task."""
        found: dict[str, dict[str, float]] = {}
        for name, task in self.tasks.items():
            own = [place for place, one in enumerate(examples) if one.name == name]
            if own:
                rows = [row for place in own for row in examples[place].examples]
                found[name] = task.score([answer for place in own for answer in answers[place]], rows)
        firsts = [next(iter(metrics.values())) for metrics in found.values()]
        every = {f"{name}/{key}": value for name, metrics in found.items() for key, value in metrics.items()}
        return {"mean": sum(firsts) / len(firsts), **every}

    def _of(self, batch: Batch) -> tuple[str, FinetuneTask, Batch]:
        """Whose batch it is, and how that task knows it."""
        (one,) = batch.examples
        return one.name, self.tasks[one.name], Batch(batch.inputs, batch.labels, {}, one.examples)


def on_one_encoder(models: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Models of several tasks with the encoder of the first, which is in a checkpoint once."""
    encoder = next(iter(models.values())).encoder
    for model in models.values():
        model.encoder = encoder
    # A ModuleDict cannot have every name, such as "items".
    return nn.ModuleDict({f"of_{name}": model for name, model in models.items()})


def model_of(model: nn.Module, name: str) -> nn.Module:
    """The encoder with the head of one task."""
    return model.get_submodule(f"of_{name}")


def _uncollated(examples: Iterable[Any]) -> Any:
    """Of a batch only the places of its examples are wanted."""
    return None
