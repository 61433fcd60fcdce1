"""What a run trains, as a rank holds it: all of it, or a part of every tensor (FSDP2, torch's `fully_shard`).

With `shard_weights` a rank has a piece of each parameter, of its gradient, its moments and its average: the rows that
`chunk` gives it. A layer's weights are gathered when it is run, forward and backward, and let go behind it; what is
outside the layers (embeddings, heads) is gathered for a whole micro-batch. Gradients are summed and cut into pieces a
layer at a time.

A run's checkpoints, evaluations and results know nothing of it: beside the pieces there is the model itself, with its
optimizer and average, in the memory of the processor, and `gathered` fills it where rank 0 works for all. So a
checkpoint is the same with and without pieces, and a run may change between them.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bertsmith.model.encoder import Layer, compile_layers, recompute_layers, replay_layers
from bertsmith.training.average import WeightAverage
from bertsmith.training.distributed import Ranks
from bertsmith.training.loader import Step
from bertsmith.training.memory import keep_freed_memory
from bertsmith.training.optim import build_optimizer
from bertsmith.training.plan import TrainSettings
from bertsmith.training.step import Together
from bertsmith.training.task import Batch, Task


@dataclass(frozen=True)
class Trainee:
    """A model, and what is remembered about it."""

    model: nn.Module
    optimizer: Optimizer
    average: WeightAverage


class Held(Protocol):
    """What a run trains, as this rank holds it."""

    whole: Trainee
    """What is saved, loaded and evaluated."""
    trained: Trainee
    """What learns; its model goes to `together`, which knows how it is run."""
    together: Together

    def gathered(self, *, moments: bool = False, everywhere: bool = False) -> AbstractContextManager[None]:
        """`whole` is what was learnt so far, on rank 0 or on all; all have to come. With the optimizer's moments, if
        asked."""

    def spread(self) -> None:
        """Learn from what is in `whole` now, which is the same on all ranks."""


class Whole:
    """Every rank holds all of it."""

    def __init__(self, model: nn.Module, settings: TrainSettings, ranks: Ranks) -> None:
        """`model` is on the device where it learns."""
        if settings.compile:
            compile_layers(model)
        replay_layers(model, settings.replays_layers)
        average = WeightAverage(dict(model.named_parameters()), settings.ema_decay)
        self.whole = self.trained = Trainee(model, build_optimizer(model, settings.optimizer), average)
        self.together: Together = ranks

    @contextmanager
    def gathered(self, *, moments: bool = False, everywhere: bool = False) -> Iterator[None]:
        """It is."""
        yield

    def spread(self) -> None:
        """It does."""


class Shards:
    """A piece of every tensor on each rank. It is its own `together`: see `step.Together`."""

    def __init__(self, model: nn.Module, settings: TrainSettings, ranks: Ranks, device: torch.device) -> None:
        """Leaves `model` where it is, in the processor's memory, and cuts a copy of it."""
        self.whole = _trainee(model, dict(model.named_parameters()), settings)
        self._ranks, self._device = ranks, device
        cut = copy.deepcopy(model).to(device)
        self._root = _cut(cut, device, ranks.share.of)
        self._parameters: dict[str, DTensor] = {
            name: parameter for name, parameter in cut.named_parameters() if isinstance(parameter, DTensor)
        }
        self._pieces = {
            name: nn.Parameter(parameter.to_local().detach(), parameter.requires_grad)
            for name, parameter in self._parameters.items()
        }
        trained = _trainee(cut, self._pieces, settings)
        _train_instead(trained.optimizer, {self._parameters[name]: piece for name, piece in self._pieces.items()})
        self.trained = Trainee(self._root, trained.optimizer, trained.average)
        self.together: Together = self

    @contextmanager
    def gathered(self, *, moments: bool = False, everywhere: bool = False) -> Iterator[None]:
        """What was learnt so far is in `whole`, on rank 0 or on all; moments on rank 0 alone, and only meanwhile.

        The model is on the device meanwhile, and in the processor's memory afterwards.
        """
        is_here = everywhere or self._ranks.is_first
        if is_here:
            self.whole.model.to(self._device)
        own = dict(self.whole.model.named_parameters())
        with self._ranks.noticing_ends(), torch.no_grad():
            for name, parameter in self._parameters.items():
                full = parameter.full_tensor()
                if is_here:
                    own[name].copy_(full)
                if name in self.trained.average.tensors:
                    full = self._full(self.trained.average.tensors[name], parameter)
                    if is_here:
                        self.whole.average.tensors[name].copy_(full)
                for field, value in self.trained.optimizer.state.get(self._pieces[name], {}).items() if moments else ():
                    full = self._full(value, parameter) if value.ndim else value
                    if self._ranks.is_first:
                        self.whole.optimizer.state[own[name]][field] = full.cpu()
            for buffer, learnt in zip(self.whole.model.buffers(), self._root.buffers(), strict=True):
                buffer.copy_(learnt)
        try:
            yield
        finally:
            self.whole.model.cpu()
            self.whole.optimizer.state.clear()

    def spread(self) -> None:
        """Each rank takes its pieces of what is in `whole`, whose moments are let go."""
        with torch.no_grad():
            self.trained.optimizer.state.clear()
            for name, whole in self.whole.model.named_parameters():
                piece = self._pieces[name]
                piece.copy_(self._part(whole))
                if name in self.whole.average.tensors:
                    self.trained.average.tensors[name].copy_(self._part(self.whole.average.tensors[name]))
                for field, value in self.whole.optimizer.state.get(whole, {}).items():
                    part = self._part(value) if value.ndim else value
                    self.trained.optimizer.state[piece][field] = part.clone().to(self._device)
            for buffer, loaded in zip(self._root.buffers(), self.whole.model.buffers(), strict=True):
                buffer.copy_(loaded)
        self.whole.optimizer.state.clear()

    def passes(self, task: Task, step: Step) -> Iterator[tuple[int, Batch, bool]]:
        """As many on every rank, because each gathers weights: one that has fewer runs an example that counts nothing.

        It is always the same example, so that it is there in every epoch.
        """
        size, own = self._ranks.share.of, list(step.numbered)
        numbers = self._ranks.sum([len(own) * (rank == self._ranks.share.index) for rank in range(size)])
        yield from ((number, batch, True) for number, batch in own)
        for _ in range(int(max(numbers)) - len(own)):
            yield 0, task.collate(task.examples("train").take([0], 0)), False

    def losses(self, model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
        """The task's, computed inside of what gathers the weights."""
        with self._noticing_ends():
            sums: dict[str, Tensor] = model(task, batch)
        return sums

    def backward(self, counted: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Through all of them, whatever they count, so that all ranks have the gradients of the same parameters."""
        with self._noticing_ends():
            torch.autograd.backward(torch.stack([*counted, *(0.0 * total for total in others)]).sum())

    def sum_gradients(self, parameters: Sequence[nn.Parameter], losses: Sequence[Tensor]) -> None:
        """Give each piece its gradient, which was summed in the backward pass; and sum the losses."""
        for name, parameter in self._parameters.items():
            if isinstance(parameter.grad, DTensor):
                self._pieces[name].grad = parameter.grad.to_local()
            parameter.grad = None
        self._ranks.sum_gradients([], losses)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """By the norm over the pieces of all ranks."""
        gradients = [piece.grad for piece in parameters if piece.grad is not None and piece.grad.numel()]
        square = torch.zeros((), device=self._device)
        if gradients:
            square = torch.stack(torch._foreach_norm(gradients)).square().sum()
        with self._ranks.noticing_ends():
            dist.all_reduce(square)
        norm = square.sqrt()
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def _full(self, piece: Tensor, like: DTensor) -> Tensor:
        """A tensor of the parameter's shape, of the pieces of all ranks."""
        cut = DTensor.from_local(
            piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return cut.full_tensor()

    def _part(self, whole: Tensor) -> Tensor:
        """This rank's rows; it may have none."""
        parts = whole.chunk(self._ranks.share.of)
        index = self._ranks.share.index
        return parts[index] if index < len(parts) else whole[:0]

    @contextmanager
    def _noticing_ends(self) -> Iterator[None]:
        """As `Ranks.noticing_ends`, where other errors may come as well."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(name in str(error) for name in ("gloo", "NCCL")):
                raise
            with self._ranks.noticing_ends():
                raise


def hold(model: nn.Module, settings: TrainSettings, ranks: Ranks, device: torch.device) -> Held:
    """A model that learns on the device; with `shard_weights` and other ranks, in pieces."""
    if settings.gradient_checkpointing:
        recompute_layers(model)
    if device.type == "cpu":
        keep_freed_memory()
    if settings.shard_weights and not ranks.is_alone:
        return Shards(model, settings, ranks, device)
    return Whole(model, settings, ranks)


class _Root(nn.Module):
    """A model whose forward pass is all of a task's loss, so that weights outside its layers are there all along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        return task.loss(self.model, batch)


def _cut(model: nn.Module, device: torch.device, num_ranks: int) -> nn.Module:
    """Turn every parameter of the model into a piece, in place; what is returned gathers them where they are used."""
    mesh = init_device_mesh(device.type, (num_ranks,))
    root = _Root(model)
    for part in [*(module for module in model.modules() if isinstance(module, Layer)), root]:
        fully_shard(part, mesh=mesh)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Gradients are sums over all ranks; torch's default is their mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def _trainee(model: nn.Module, tensors: dict[str, nn.Parameter], settings: TrainSettings) -> Trainee:
    return Trainee(model, build_optimizer(model, settings.optimizer), WeightAverage(tensors, settings.ema_decay))


def _train_instead(optimizer: Optimizer, pieces: dict[Any, nn.Parameter]) -> None:
    """Have an optimizer update plain tensors that are the pieces: each element by itself, as AdamW does.

    torch's optimizers can update its tensors of pieces, and take several times as long to find out how.
    """
    for group in optimizer.param_groups:
        group["params"] = [pieces[parameter] for parameter in group["params"]]
    state: dict[Tensor, Any] = {
        pieces[parameter]: {
            field: value.to_local() if isinstance(value, DTensor) else value for field, value in values.items()
        }
        for parameter, values in optimizer.state.items()
    }
    optimizer.state = defaultdict(dict, state)
