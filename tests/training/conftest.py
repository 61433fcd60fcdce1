"""A tiny task for the tests of the loop: count the marked tokens of a short sequence, and guess its parity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bertsmith import randomness
from bertsmith.model.batch import pack
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.task import Batch

VOCABULARY = 12


@dataclass(frozen=True)
class ToyExample:
    """Ids of 2 to 7 tokens; every third example has no parity label, so the losses count different things."""

    index: int
    token_ids: np.ndarray
    marked: int
    parity: int | None


@dataclass(frozen=True)
class ToyExamples:
    """Example (index, epoch) from its own generator."""

    size: int
    seed: int = 0
    before: Callable[[int, int], None] = lambda index, epoch: None

    def num_examples(self, epoch: int) -> int:
        return self.size

    def num_tokens(self, index: int) -> int:
        return len(self.example(index, 0).token_ids)

    def take(self, indices: Sequence[int], epoch: int) -> list[ToyExample]:
        return [self.example(index, epoch) for index in indices]

    def example(self, index: int, epoch: int) -> ToyExample:
        self.before(index, epoch)
        random = randomness.generator(self.seed, "toy", index)
        token_ids = random.integers(0, VOCABULARY, int(random.integers(2, 8)))
        marked = int((token_ids < 3).sum())
        return ToyExample(index, token_ids, marked, marked % 2 if index % 3 else None)


class ToyModel(nn.Module):
    """Embedding, dropout, norm, two heads; the second is tied to the first, as an output embedding is."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.count = nn.Linear(8, 1)
        self.parity = nn.Linear(8, 2)
        self.tied = self.hidden
        self.register_buffer("steps_seen", torch.zeros(1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        embedded = torch.relu(self.hidden(self.dropout(self.embedding(batch.inputs.token_ids))))
        pooled = torch.stack([part.sum(0) for part in torch.split(embedded, list(batch.inputs.lengths))])
        pooled = self.dropout(self.norm(self.tied(pooled)))
        return self.count(pooled).squeeze(-1), self.parity(pooled)


@dataclass
class ToyTask:
    """Sums of squared errors over examples, and of cross-entropy over the examples with a parity."""

    size: int = 50
    dev_size: int = 20
    seed: int = 0
    name: str = "toy"
    loss_weights: Mapping[str, float] = field(default_factory=lambda: {"count": 1.0, "parity": 0.5})
    greater_is_better: bool = False
    before_loss: Callable[[Batch], None] = lambda batch: None
    scores: list[float] | None = None  # handed out one an evaluation, instead of the true score
    seen: list[tuple[int, ...]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)

    def examples(self, split: str) -> ToyExamples:
        return ToyExamples(self.size, self.seed) if split == "train" else ToyExamples(self.dev_size, 1000 + self.seed)

    def collate(self, examples: Sequence[ToyExample]) -> Batch:
        parities = [-100 if example.parity is None else example.parity for example in examples]
        labels = {
            "count": torch.tensor([float(example.marked) for example in examples]),
            "parity": torch.tensor(parities),
        }
        counts = {"count": float(len(examples)), "parity": float(sum(parity >= 0 for parity in parities))}
        return Batch(pack([example.token_ids for example in examples]), labels, counts, examples)

    def build(self, encoder: nn.Module) -> nn.Module:
        return encoder

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.before_loss(batch)
        count, parity = model(batch)
        losses = {
            "count": (count - batch.labels["count"]).square().sum(),
            "parity": nn.functional.cross_entropy(parity, batch.labels["parity"], ignore_index=-100, reduction="sum"),
        }
        self.seen.append(tuple(example.index for example in batch.examples))
        self.losses.append({name: loss.item() for name, loss in losses.items()})
        return losses

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch)[0].float()

    def decode(self, output: Any, batch: Batch) -> list[Any]:
        return [(example.index, float(value)) for example, value in zip(batch.examples, output, strict=True)]

    def score(self, answers: Sequence[Any], examples: Sequence[ToyExample]) -> dict[str, float]:
        errors = [abs(answer[1] - example.marked) for answer, example in zip(answers, examples, strict=True)]
        error = self.scores.pop(0) if self.scores else float(np.mean(errors))
        return {"error": error, "examples": float(len(examples))}


def trained(seed: int = 0) -> tuple[ToyModel, Optimizer]:
    """A model and its optimizer after three steps on noise."""
    torch.manual_seed(seed)
    model = ToyModel()
    optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1))
    for _ in range(3):
        learn(model, optimizer)
    return model, optimizer


def learn(model: ToyModel, optimizer: Optimizer) -> None:
    """One step on noise."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.steps_seen.add_(1)


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """What is above: `toy.Task()`, `toy.Model()`, `toy.Examples(size)`. (Test modules cannot import each other.)"""
    return SimpleNamespace(Task=ToyTask, Model=ToyModel, Examples=ToyExamples, trained=trained, learn=learn)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """New models start from the same weights in every test."""
    torch.manual_seed(0)
