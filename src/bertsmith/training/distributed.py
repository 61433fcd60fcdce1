"""Several processes that train one model, each with its share of every step: the ranks of torchrun.

The step is the unit. It is cut into micro-batches as it is in one process, and each rank takes every n-th of them with
the number that it has in the step, from which its dropout follows; losses are divided by counts of the whole step, and
gradients summed. So a run on n ranks is the run of one process with the same `micro_batch_size`, but for the order in
which floating-point numbers are added, and it may be stopped and go on with another number of ranks.

All ranks have the same weights, moments and state. Rank 0 alone reads the clock, evaluates and writes; what it finds is
told to the others, so that all decide alike. Numbers travel between the processors (gloo), gradients between the
devices (NCCL on CUDA). Nothing is pickled.

Gradients are summed when the last micro-batch is done, in flat pieces. DistributedDataParallel would begin sooner, but
wants every loss to go through one `forward` that uses the same parameters in every step and on every rank; here a rank
may have no micro-batch at all in the last step of an epoch.
"""

import atexit
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from bertsmith.errors import SettingsError, StorageError, TrainingError
from bertsmith.screen import progress_screen
from bertsmith.training.device import is_out_of_memory, resolve_device
from bertsmith.training.interrupt import StopRequest
from bertsmith.training.launch import Launch, read_launch
from bertsmith.training.loader import Share, Step
from bertsmith.training.task import Batch, Task

T = TypeVar("T")

ANSWER = timedelta(minutes=10)
"""How long the others wait for a rank that hangs in a step; one whose process ends is missed at once."""
PATIENCE = timedelta(days=1)
"""The same while rank 0 works for all: evaluates, saves."""
_PIECE_BYTES = 32 * 2**20
_POLL_SECONDS = 0.02
_FAILED = -1


class Ranks:
    """The processes that train one model, seen from one of them."""

    def __init__(
        self, launch: Launch, numbers: dist.ProcessGroup | None = None, patient: dist.ProcessGroup | None = None
    ) -> None:
        """`numbers` and `patient` are groups of all, between processors, that wait for `ANSWER` and for `PATIENCE`; a
        process on its own has none."""
        self.launch = launch
        self._numbers = numbers
        self._patient = patient

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.launch.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which works for all."""
        return self.launch.is_first

    @property
    def share(self) -> Share:
        """What this rank does of each step."""
        return Share(self.launch.rank, self.launch.size)

    def device(self, name: str) -> torch.device:
        """The device called `name`; with others, "auto" and "cuda" are a device for each rank of a machine.

        Raises:
            SettingsError: a device for all of them, or there are fewer than ranks.
        """
        if self.is_alone or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return resolve_device(name)
        number = self.launch.local_rank
        if name not in ("auto", "cuda"):
            raise SettingsError(f'device "{name}" cannot be that of several ranks. Use auto, cuda or cpu.')
        if number >= torch.cuda.device_count():
            raise SettingsError(
                f"rank {self.launch.rank} is number {number + 1} on its machine, where torch sees "
                f"{torch.cuda.device_count()} CUDA devices. Start fewer with --nproc-per-node, or use --device cpu."
            )
        return torch.device("cuda", number)

    def console(self, given: Console | None) -> Console:
        """Where a run speaks: as given, by default standard error; ranks other than the first say nothing."""
        return (given or progress_screen()) if self.is_first else Console(quiet=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over the ranks in float64.

        Raises:
            TrainingError: a rank has ended, or does not answer. (So do the others below.)
        """
        if self.is_alone:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64)
        with self.noticing_ends():
            dist.all_reduce(totals, group=self._numbers)
        return [float(total) for total in totals]

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, which alone calls it while the others wait; something that JSON can say."""
        if self.is_alone:
            return make()
        data = b""
        if self.is_first:
            try:
                data = json.dumps(make()).encode()
            except BaseException:
                self._tell(_FAILED)
                raise
        size = self._tell(len(data))
        if size == _FAILED:
            raise TrainingError(f"{self._name} has ended because rank 0 has, which says why.")
        content = torch.frombuffer(bytearray(data or size), dtype=torch.uint8)
        with self.noticing_ends():
            dist.broadcast(content, 0, group=self._patient)
        made: T = json.loads(content.numpy().tobytes())
        return made

    def visible(self, path: Path) -> Path:
        """A path that rank 0 has found.

        Raises:
            StorageError: it is not there for this rank.
        """
        if not path.exists():
            raise StorageError(
                f"{path} is there for rank 0, and not for {self._name}. The run's folder must be on storage that all "
                "machines share."
            )
        return path

    def begin_alike(self, model: nn.Module, values: Mapping[str, Any]) -> None:
        """Give a model the weights that it has on rank 0, after comparing what the run depends on.

        Raises:
            TrainingError: a value is another one on rank 0, such as the hash of the data.
        """
        if self.is_alone:
            return
        for name, value in self.first(lambda: dict(values)).items():
            if values.get(name) != value:
                raise TrainingError(f"{name} is {value} on rank 0, and {values.get(name)} on {self._name}.")
        with self.noticing_ends(), torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0, group=self._numbers if tensor.is_cpu else None)

    def passes(self, task: Task, step: Step) -> Iterator[tuple[int, Batch, bool]]:
        """The micro-batches with their numbers in the whole step; all of them count."""
        return ((number, batch, True) for number, batch in step.numbered)

    def losses(self, model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
        """The task's sums."""
        return task.loss(model, batch)

    def backward(self, counted: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Add gradients; sums over nothing are skipped, not multiplied by zero: they may be NaN."""
        if counted:
            torch.autograd.backward(torch.stack(list(counted)).sum())

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients that all ranks have down to a norm, and return what it was."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], losses: Sequence[Tensor]) -> None:
        """Sum the gradients over the ranks, and the losses with them, in place.

        A gradient that only other ranks have counts as zero; one that no rank has stays None, so that the optimizer
        leaves its parameter alone as it would in one process.
        """
        if self.is_alone:
            return
        summed = []
        present = self.sum([parameter.grad is not None for parameter in parameters]) if parameters else []
        for parameter, count in zip(parameters, present, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                summed.append(parameter.grad)
        with self.noticing_ends(), torch.no_grad():
            for group in _pieces([*summed, *losses]):
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                dist.all_reduce(flat)
                parts = torch.split(flat, [tensor.numel() for tensor in group])
                for tensor, part in zip(group, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    @property
    def _name(self) -> str:
        return f"rank {self.launch.rank} of {self.launch.size}"

    def _tell(self, number: int) -> int:
        """A number of rank 0, on every rank."""
        told = torch.tensor([number])
        with self.noticing_ends():
            dist.broadcast(told, 0, group=self._patient)
        return int(told)

    @contextmanager
    def noticing_ends(self) -> Iterator[None]:
        """Turn what torch raises when a rank is missing into an error with words.

        Raises:
            TrainingError: a rank has ended, or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"{self._name} cannot go on: another rank has ended or does not answer ({reason}). The one that "
                "ended first says why; with --resume the run goes on from its last checkpoint."
            ) from error


ALONE = Ranks(Launch())
"""A process without others."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among those that torchrun has started, for training on the device of that name.

    The connections stay until the process ends, for what else it trains; after an error there may be nobody to take
    leave of.

    Raises:
        SettingsError: an environment or a device that does not fit; see `read_launch` and `Ranks.device`.
        TrainingError: the others cannot be reached.
    """
    launch = read_launch()
    if launch.size == 1:
        yield ALONE
        return
    place = Ranks(launch).device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        if not dist.is_initialized():
            backend = "nccl" if place.type == "cuda" else "gloo"
            store, rank, size = next(rendezvous("env://", timeout=ANSWER))
            store = dist.PrefixStore(name_attempt(store, launch), store)  # type: ignore[attr-defined]  # it is public
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=ANSWER)
            atexit.register(dist.destroy_process_group)
        numbers, patient = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (ANSWER, PATIENCE))
    except RuntimeError as error:
        raise TrainingError(f"rank {launch.rank} of {launch.size} cannot reach the others: {error}") from error
    try:
        yield Ranks(launch, numbers, patient)
    except BaseException:
        atexit.unregister(dist.destroy_process_group)
        raise


class Agreement:
    """What all ranks of a run decide by: rank 0's time, and whether any of them was asked to stop.

    Both are as they were when the ranks last met; for a process on its own, as they are.
    """

    def __init__(self, ranks: Ranks, clock: Callable[[], float], stop: StopRequest) -> None:
        self._ranks = ranks
        self._clock = clock
        self._stop = stop
        self._now = 0.0
        self._is_stopping = False
        self.meet()

    def now(self) -> float:
        """Seconds that only grow."""
        return self._clock() if self._ranks.is_alone else self._now

    @property
    def is_stopping(self) -> bool:
        """Whether to save and leave."""
        return self._stop.requested if self._ranks.is_alone else self._is_stopping

    def meet(self, values: Sequence[float] = ()) -> list[float]:
        """Each value summed over the ranks; all have to come."""
        if self._ranks.is_alone:
            return list(values)
        now = self._clock() if self._ranks.is_first else 0.0
        self._now, stops, *sums = self._ranks.sum([now, self._stop.requested, *values])
        self._is_stopping = stops > 0
        return sums

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, as `Ranks.first`; and the time and the wish to stop after that."""
        made = self._ranks.first(make)
        self.meet()
        return made


def name_attempt(store: dist.Store, launch: Launch) -> str:  # type: ignore[name-defined]  # as above
    """A name for this coming together of the ranks that was not used before in the store.

    When torchrun starts the ranks again, the store still has the addresses of those that have ended, and the count of
    restarts differs between machines. So rank 0 counts, and answers each rank under a word that no other has said.

    Raises:
        TrainingError: not all have come in time.
    """
    if not launch.is_first:
        word = f"bertsmith/{uuid.uuid4()}"
        store.set(f"bertsmith/rank/{launch.rank}", word)
        store.wait([word], ANSWER)
        attempt: str = store.get(word).decode()
        store.add(f"{attempt}/here", 1)
        return attempt
    attempt = f"bertsmith/attempt/{store.add('bertsmith/attempts', 1)}"
    deadline = time.monotonic() + ANSWER.total_seconds()
    while store.add(f"{attempt}/here", 0) < launch.size - 1:
        if time.monotonic() > deadline:
            raise TrainingError(f"{launch.size - 1} other ranks should be there, and not all of them have come.")
        for rank in range(1, launch.size):
            if store.check([f"bertsmith/rank/{rank}"]):
                store.set(store.get(f"bertsmith/rank/{rank}").decode(), attempt)
        time.sleep(_POLL_SECONDS)
    return attempt


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in their order, together as long as they are of one kind and not too large."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and (size + tensor.nbytes > _PIECE_BYTES or tensor.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group
