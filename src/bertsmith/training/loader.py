"""Step -> batch. The order of the examples is a pure function, so the whole state is (epoch, position).

Threads, not processes: making an example is numpy work on memory-mapped arrays, and one thread
beside the training thread is enough to hide it. Batches come out in the same order, with the same
content, for any number of threads.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from bertsmith import randomness
from bertsmith.errors import InputError, SettingsError
from bertsmith.training.task import Batch, Examples

Collate = Callable[[Sequence[Any]], Batch]


@dataclass(frozen=True)
class Share:
    """Of the micro-batches of a step, those whose number leaves `index` when it is divided by `of`."""

    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Step:
    """The data of one optimizer update, or a share of it.

    `position` counts the examples of `epoch` that are used up once this step is done: together they
    are the state from which the next step follows.
    """

    epoch: int
    position: int
    epochs: float  # epochs used up after this step, counted in steps: 1.5 is after half the steps of epoch 1
    micro_batches: list[Batch]
    sample_ids: list[int]  # one an example of the whole step, in the order of all its micro-batches
    share: Share = Share()  # `micro_batches` are only these; there may be none, in the last step of an epoch

    @property
    def numbered(self) -> Iterator[tuple[int, Batch]]:
        """The micro-batches, each with its number in the whole step."""
        return zip(itertools.count(self.share.index, self.share.of), self.micro_batches)

    @property
    def counts(self) -> dict[str, float]:
        """Over how many items each named loss is a sum, in these micro-batches."""
        totals: dict[str, float] = {}
        for batch in self.micro_batches:
            for name, count in batch.counts.items():
                totals[name] = totals.get(name, 0.0) + count
        return totals

    @property
    def num_tokens(self) -> int:
        """Real tokens of these micro-batches, special ones included."""
        return sum(sum(batch.inputs.lengths) for batch in self.micro_batches)

    @property
    def micro_batch_size(self) -> int:
        """Examples in its largest micro-batch."""
        return max((len(batch.examples) for batch in self.micro_batches), default=0)

    def cut(self, collate: Collate, micro_batch_size: int) -> "Step":
        """The same examples in micro-batches of at most so many, as a loader of that `micro_batch_size` makes them."""
        if self.micro_batch_size <= micro_batch_size:
            return self
        examples = [example for batch in self.micro_batches for example in batch.examples]
        starts = range(0, len(examples), micro_batch_size)
        return replace(self, micro_batches=[collate(examples[start : start + micro_batch_size]) for start in starts])


class _Noting:
    """Adds a note to whatever exception passes through, and lets it pass."""

    def __init__(self, note: str) -> None:
        self._note = note

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self._note)


class Loader:
    """Batches of a collection, epoch after epoch, from any (epoch, position)."""

    def __init__(
        self,
        examples: Examples,
        collate: Collate,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int,
        stream: int = 0,
        shuffle: bool = True,
        num_workers: int = 1,
        share: Share = Share(),
        pins_memory: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            batch_size: examples a step; the last step of an epoch may have fewer.
            micro_batch_size: examples that go through the model at once; None, or more than there can be if every
                share is to have some, is the whole step divided by the number of shares.
            stream: loaders that differ in it have different orders under one seed.
            num_workers: threads that make batches ahead; 0 makes each batch when it is asked for.
            pins_memory: for batches that go to a CUDA device.
            share: which micro-batches are made. The order of the examples and the number of a micro-batch do not
                depend on it.
        """
        if batch_size < 1 or (micro_batch_size is not None and micro_batch_size < 1) or num_workers < 0:
            raise SettingsError("batch_size and micro_batch_size must be at least 1, num_workers at least 0.")
        self._examples = examples
        self._collate = collate
        self._batch_size = batch_size
        self._micro_batch_size = min(micro_batch_size or batch_size, -(-batch_size // share.of))
        self._seed = seed
        self._stream = stream
        self._shuffle = shuffle
        self._num_workers = num_workers
        self._share = share
        self._pins_memory = pins_memory

    def steps(self, epoch: int = 0, position: int = 0) -> Generator[Step, None, None]:
        """Endless steps, beginning after `position` examples of `epoch`. Close it to end its threads.

        Raises:
            InputError: an epoch without examples.
        """
        plan = self._plan(epoch, position)
        if self._num_workers == 0:
            for start in plan:
                yield self._make(*start)
            return
        ahead: deque[Future[Step]] = deque()
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="bertsmith-loader")
        try:
            for start in plan:
                ahead.append(pool.submit(self._make, *start))
                if len(ahead) > self._num_workers + 1:
                    yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def sample_ids(self, epoch: int, start: int, end: int) -> list[int]:
        """Which examples stand at places [start, end) of the order of `epoch`."""
        places = np.arange(start, end)
        if self._shuffle:
            size = self._examples.num_examples(epoch)
            places = randomness.shuffled(places, size, self._seed, "order", self._stream, epoch)
        return [int(place) for place in places]

    def _plan(self, epoch: int, position: int) -> Iterator[tuple[int, int, int]]:
        """(epoch, first position, number of examples in the epoch) of every step."""
        while True:
            size = self._examples.num_examples(epoch)
            if size == 0:
                raise InputError(f"there are no training examples in epoch {epoch}.")
            for start in range(position, size, self._batch_size):
                yield epoch, start, size
            epoch, position = epoch + 1, 0

    def _make(self, epoch: int, start: int, size: int) -> Step:
        end = min(start + self._batch_size, size)
        sample_ids = self.sample_ids(epoch, start, end)
        firsts = range(0, len(sample_ids), self._micro_batch_size)[self._share.index :: self._share.of]
        own = [sample_id for first in firsts for sample_id in sample_ids[first : first + self._micro_batch_size]]
        thread = f", in thread {threading.current_thread().name}"
        with _Noting(f"while making examples {own} of epoch {epoch}{thread}"):
            rows = self._take(own, epoch) if own else []
        micro_batches: list[Batch] = []
        for first in range(0, len(rows), self._micro_batch_size):
            last = first + self._micro_batch_size
            with _Noting(f"while batching examples {own[first:last]} of epoch {epoch}{thread}"):
                batch = self._collate(rows[first:last])
                micro_batches.append(batch.pinned() if self._pins_memory else batch)
        # Counted from the end: where batches grew within the epoch, its steps do not begin at multiples of their size.
        steps_in_epoch = -(-size // self._batch_size)
        steps_left = -(-(size - end) // self._batch_size)
        return Step(
            epoch, end, epoch + (steps_in_epoch - steps_left) / steps_in_epoch, micro_batches, sample_ids, self._share
        )

    def _take(self, sample_ids: list[int], epoch: int) -> Sequence[Any]:
        """The examples of a step; if that fails, one by one, to say in which of them the fault is."""
        try:
            return self._examples.take(sample_ids, epoch)
        except Exception:
            for sample_id in sample_ids:
                with _Noting(f"in example {sample_id}"):
                    self._examples.take([sample_id], epoch)
            raise


def evaluation_batches(
    examples: Examples, collate: Collate, token_budget: int = 8192
) -> Iterator[tuple[list[int], Batch]]:
    """Each example once, with others of similar length, the longest first (so that memory runs out at once).

    Args:
        token_budget: tokens of a batch, by `num_tokens`; a longer example is a batch of its own.

    Yields:
        The places of the batch's examples in the collection, and the batch.
    """
    lengths = np.array([examples.num_tokens(index) for index in range(examples.num_examples(0))], dtype=np.int64)
    group: list[int] = []
    group_tokens = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        if group and group_tokens + lengths[index] > token_budget:
            yield group, collate(examples.take(group, 0))
            group, group_tokens = [], 0
        group.append(index)
        group_tokens += int(lengths[index])
    if group:
        yield group, collate(examples.take(group, 0))
