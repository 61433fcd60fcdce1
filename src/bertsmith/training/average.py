"""An exponential moving average of the weights, which is often better than the last of them.

Polyak & Juditsky 1992; with the decay of TensorFlow's `ExponentialMovingAverage`, which is smaller in
the first steps, so that the initial weights are soon forgotten.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's parameters. Without a decay there is none: every method leaves all as it is.

    Args:
        parameters: by their names, on the device where they are trained; they are the average's first.
        decay: in (0, 1); what is kept of the average in a step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {}
        """By name of the parameter, a tied one only under its first."""
        if decay is not None:
            self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._weights: list[Tensor] = [parameters[name] for name in self.tensors]

    def update(self, step: int) -> None:
        """Take in the weights after an update, which `step` others came before."""
        if self.decay is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def keep(self) -> None:
        """The model has the average for its weights from now on."""
        with torch.no_grad():
            for weight, average in zip(self._weights, self.tensors.values(), strict=True):
                weight.copy_(average)

    def _exchange(self) -> None:
        with torch.no_grad():
            for weight, average in zip(self._weights, self.tensors.values(), strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)
