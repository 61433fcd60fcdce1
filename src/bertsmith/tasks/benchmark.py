"""The verb `benchmark`: what this machine does in pre-training, fine-tuning and inference, in a time that is given.

The largest matrix product comes first: it is what all else is a share of, and with the operations of a model it says
how long a round will take. So every work gets the largest batch of which a few rounds fit its part of the time, and is
left out, with the reason, if not even a small one does. What a work does not use of its part goes to those behind it.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bertsmith.errors import SettingsError
from bertsmith.model.sizes import named_size
from bertsmith.tasks.benchmark_peer import peer_version
from bertsmith.tasks.benchmark_turns import Conditions
from bertsmith.tasks.benchmark_work import (
    FEWEST_TOKENS,
    Bench,
    FinetuningWork,
    InferenceWork,
    PretrainingWork,
    Work,
    read_encoder_config,
)
from bertsmith.tasks.forecast import time_limit
from bertsmith.tasks.plan_run import synthetic_store
from bertsmith.tasks.pretrain_settings import check_max_length
from bertsmith.tasks.run_settings import check_seed
from bertsmith.tasks.start import SIZE_PREFIX
from bertsmith.training.device import (
    Precision,
    ResolvedPrecision,
    is_out_of_memory,
    resolve_device,
    resolve_precision,
)
from bertsmith.training.environment import environment
from bertsmith.training.step import OutOfMemory
from bertsmith.training.timing import (
    FEWEST_ROUNDS,
    WARM_UP_ROUNDS,
    Clock,
    clock_of,
    matrix_product_speed,
    speeds_in_turns,
)

_EXPECTED_SHARE = 0.4  # of the matrix product, before anything is known
_CAUTION = 0.8  # of what a smaller model reached, that is expected of a larger one
_PEER_TURNS = 3  # of ours, that a round of the peer may take
_LEAST_VOCABULARY = 100


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What to time, and how long that may take."""

    budget: str = "2m"
    """The time for everything, such as 90s, 2m or 10m."""
    sizes: str = "tiny,mini,base"
    """Named sizes to pre-train, with commas between them: tiny, mini, small, medium, base, large."""
    model: str = f"{SIZE_PREFIX}mini"
    """For fine-tuning and inference: size:NAME for random weights, or a model folder, a run or a Hub id."""
    peer: bool = False
    """Also time Hugging Face's transformers (pip install transformers), in turns with ours."""
    batch_size: int | None = None
    """Sequences in a step; by default 32 (in pre-training on CUDA 256), or the most that fit the time."""
    max_length: int = 128
    """Tokens in a sequence of pre-training."""
    row_length: int = 64
    """Tokens of the longest text in fine-tuning and inference; lengths are drawn evenly from 4 up."""
    vocab_size: int = 30522
    """Tokens of the vocabulary of named sizes."""
    precision: Precision = "auto"
    """bf16 autocast where the hardware has it, unless said otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Fixes initial weights, the order of the data and dropout."""
    out: Path | None = None
    """A new folder for benchmark.json and report.html; by default nothing is written."""

    def __post_init__(self) -> None:
        _ = self.budget_seconds  # refuses what is no time
        if not self.size_names:
            raise SettingsError("sizes names no size; write at least one, such as tiny.")
        check_max_length(self.max_length)
        check_seed(self.seed)
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingsError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.row_length < FEWEST_TOKENS:
            raise SettingsError(f"row_length must be at least {FEWEST_TOKENS}, not {self.row_length}.")
        if self.vocab_size < _LEAST_VOCABULARY:
            raise SettingsError(f"vocab_size must be at least {_LEAST_VOCABULARY}, not {self.vocab_size}.")

    @property
    def budget_seconds(self) -> float:
        """The budget as a number."""
        limit = time_limit(self.budget)
        assert limit is not None  # there always is one
        return limit

    @property
    def size_names(self) -> tuple[str, ...]:
        """The names in `sizes`, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.sizes.split(",") if name.strip()))


@dataclass(frozen=True)
class Timed:
    """What came of one work: items a second in each round, of ours and, where there was one, of the peer."""

    work: str
    model: str
    item: str
    """What is counted: tokens, rows or sentences."""
    size: int
    """Sequences in a step, or sentences in a round."""
    num_parameters: int
    operations_per_item: float
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()

    @property
    def speed(self) -> float:
        """Of ours, the median."""
        return statistics.median(self.ours)

    @property
    def peer_speed(self) -> float | None:
        """Of the peer, the median."""
        return statistics.median(self.theirs) if self.theirs else None

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        return None if self.peer_speed is None else self.speed / self.peer_speed

    @property
    def operations_per_second(self) -> float:
        """Of ours."""
        return self.speed * self.operations_per_item


@dataclass(frozen=True)
class LeftOut:
    """A work that was not timed."""

    work: str
    model: str
    reason: str


@dataclass(frozen=True)
class BenchmarkResult:
    """What was found."""

    settings: BenchmarkSettings
    machine: dict[str, str]
    device: str
    precision: ResolvedPrecision
    threads: int
    matrix_product: float
    """Operations a second of the largest matrix product."""
    timed: tuple[Timed, ...]
    left_out: tuple[LeftOut, ...]
    seconds: float

    def share(self, timed: Timed) -> float:
        """Of the largest matrix product, that a work reaches."""
        return timed.operations_per_second / self.matrix_product


Progress = Callable[[Timed | LeftOut], None]


def benchmark(
    settings: BenchmarkSettings | None = None, *, clock: Clock | None = None, progress: Progress | None = None
) -> BenchmarkResult:
    """Time this machine.

    Args:
        clock: another one than that of the device.
        progress: is told of each work when it is over.

    Raises:
        SettingsError: no such device or precision, a peer that is not installed, `out` exists.
        ModelError: there is no such size or model.
    """
    settings = settings or BenchmarkSettings()
    if settings.out is not None and settings.out.exists():
        raise SettingsError(f"out: {settings.out} already exists. Name another folder, or remove this one first.")
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    for name in settings.size_names:
        named_size(name, settings.vocab_size)
    config = read_encoder_config(settings.model, settings.vocab_size)
    seconds = clock or clock_of(device)
    began = seconds()
    machine = environment()
    if settings.peer:
        machine["transformers"] = peer_version()
    with tempfile.TemporaryDirectory() as folder:
        conditions = Conditions(
            store=synthetic_store(Path(folder), settings.vocab_size),
            max_length=settings.max_length,
            row_length=settings.row_length,
            device=device,
            precision=precision,
            has_peer=settings.peer,
            seed=settings.seed,
        )
        # The largest sizes last: they get what the others leave of the time.
        works: list[Work] = [
            FinetuningWork(settings.model, config, conditions, settings.batch_size),
            InferenceWork(settings.model, config, conditions),
            *(PretrainingWork(name, conditions, settings.batch_size) for name in settings.size_names),
        ]
        runner = _Runner(matrix_product_speed(precision, device, clock), settings.peer, seconds, progress)
        runner.run(works, began + settings.budget_seconds)
    return BenchmarkResult(
        settings=settings,
        machine=machine,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=precision,
        threads=torch.get_num_threads(),
        matrix_product=runner.matrix_product,
        timed=tuple(runner.timed),
        left_out=tuple(runner.left_out),
        seconds=seconds() - began,
    )


@dataclass
class _Runner:
    """Times works, one after the other."""

    matrix_product: float
    has_peer: bool
    clock: Clock
    progress: Progress | None
    timed: list[Timed] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def run(self, works: Sequence[Work], deadline: float) -> None:
        """Time each with an equal part of the time that is left."""
        for number, work in enumerate(works):
            now = self.clock()
            outcome = self._time(work, now, now + (deadline - now) / (len(works) - number))
            if isinstance(outcome, Timed):
                self.timed.append(outcome)
            else:
                self.left_out.append(outcome)
            if self.progress is not None:
                self.progress(outcome)
            # The next model is made when this one is gone.
            gc.collect()
            torch.cuda.empty_cache()

    def _time(self, work: Work, now: float, until: float) -> Timed | LeftOut:
        size = fitting_size(work, until - now, lambda size: self.expected_seconds(work, size))
        if size is None:
            needed = self.expected_seconds(work, work.least)
            reason = (
                f"would take some {needed:.0f} s, and {max(0.0, until - now):.0f} s were left; give a larger budget"
            )
            return LeftOut(work.name, work.model, reason)
        bench: Bench | None = None
        try:
            bench = work.ready(size)
            ours, *theirs = speeds_in_turns(bench.turns, until=until, clock=self.clock)
        except (OutOfMemory, MemoryError, RuntimeError) as error:
            if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
                raise
            return LeftOut(work.name, work.model, f"memory ran out with {size} at once; give a smaller batch_size")
        finally:
            if bench is not None:
                bench.close()
        return Timed(
            work=work.name,
            model=work.model,
            item=work.item,
            size=size,
            num_parameters=bench.num_parameters,
            operations_per_item=bench.operations_per_item(),
            ours=tuple(ours),
            theirs=tuple(theirs[0]) if theirs else (),
        )

    def expected_seconds(self, work: Work, size: int) -> float:
        """Of the fewest rounds of a work."""
        turns = 1 + (_PEER_TURNS if self.has_peer and work.has_peer else 0)
        rounds = WARM_UP_ROUNDS + FEWEST_ROUNDS
        reached = [_CAUTION * one.operations_per_second for one in self.timed if one.work == work.name]
        return rounds * turns * work.operations(size) / max(_EXPECTED_SHARE * self.matrix_product, *reached, 0.0)


def fitting_size(work: Work, allowed_seconds: float, expected_seconds: Callable[[int], float]) -> int | None:
    """The largest size, by halving, of which the fewest rounds fit the time; None: not even the least does."""
    size = work.largest
    while expected_seconds(size) > allowed_seconds:
        if size <= work.least:
            return None
        size = max(work.least, size // 2)
    return size
