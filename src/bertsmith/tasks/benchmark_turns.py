"""Our side of `benchmark`: rounds of training and of inference, as runs and predictions do them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bertsmith.model.batch import PackedBatch
from bertsmith.model.encoder import Encoder
from bertsmith.model.operations import TextShape
from bertsmith.training.device import ResolvedPrecision, autocast
from bertsmith.training.loader import Loader, Step
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.step import take_step
from bertsmith.training.task import Batch, Task

RATE = 1e-4
"""The learning rate of all steps, which changes no speed."""
_STEPS_ON_CUDA = 8  # a round: within it the processor runs ahead of the device, as it does in a run


@dataclass(frozen=True)
class Conditions:
    """What all works of a benchmark have in common."""

    store: Path
    """A token store of random words."""
    max_length: int
    row_length: int
    device: torch.device
    precision: ResolvedPrecision
    has_peer: bool
    seed: int

    @property
    def steps_in_round(self) -> int:
        """Optimizer steps that are timed together."""
        return _STEPS_ON_CUDA if self.device.type == "cuda" else 1


@dataclass
class TextSeen:
    """What went through a model so far."""

    sequences: int = 0
    tokens: int = 0
    token_pairs: int = 0
    masked: int = 0

    def add(self, batch: Batch) -> None:
        """Count a batch in."""
        lengths = batch.inputs.lengths
        self.sequences += len(lengths)
        self.tokens += sum(lengths)
        self.token_pairs += sum(length**2 for length in lengths)
        self.masked += int(batch.counts.get("mlm", 0))

    @property
    def shape(self) -> TextShape:
        """As operations are counted by it."""
        return TextShape(self.sequences, self.tokens, self.token_pairs)


@dataclass
class Training:
    """Our steps, data included: the loader makes it ahead, in a thread of its own."""

    model: nn.Module
    task: Task
    loader: Loader
    conditions: Conditions
    counts_tokens: bool
    """Or else sequences."""
    batches: list[Batch] = field(default_factory=list)
    """Those of the last round."""
    text: TextSeen = field(default_factory=TextSeen)
    """Of all rounds."""

    def __post_init__(self) -> None:
        self._optimizer = build_optimizer(self.model, OptimizerSettings(learning_rate=RATE))
        self._steps: Generator[Step, None, None] = self.loader.steps()
        self._number = 0

    def prepare(self) -> None:
        """Nothing."""

    def run(self) -> float:
        """The steps of a round; how many tokens or sequences they had."""
        before = self.text.tokens if self.counts_tokens else self.text.sequences
        self.batches.clear()
        for _ in range(self.conditions.steps_in_round):
            step = next(self._steps)
            take_step(
                self.model,
                self.task,
                step,
                self._optimizer,
                learning_rate=RATE,
                max_grad_norm=1.0,
                seed=self.conditions.seed,
                number=self._number,
                device=self.conditions.device,
                precision=self.conditions.precision,
            )
            self._number += 1
            for batch in step.micro_batches:
                self.batches.append(batch)
                self.text.add(batch)
        return (self.text.tokens if self.counts_tokens else self.text.sequences) - before

    def close(self) -> None:
        """End the loader's thread."""
        self._steps.close()


@dataclass
class Inference:
    """Our hidden states of all tokens, of batches of similar length."""

    encoder: Encoder
    batches: Sequence[PackedBatch]
    conditions: Conditions

    def prepare(self) -> None:
        """Nothing: the batches are there."""

    def run(self) -> float:
        """A pass over all of them; how many sentences they have."""
        with torch.inference_mode(), autocast(self.conditions.device, self.conditions.precision):
            for batch in self.batches:
                self.encoder(batch.to(self.conditions.device))
        return sum(len(batch.lengths) for batch in self.batches)
