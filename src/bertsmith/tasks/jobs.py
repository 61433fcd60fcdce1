"""Runs of one fine-tuning at the same time, each in a process of its own: seeds, folds, trials of a search.

A small encoder does not keep several cores busy: two processes with a core each do more steps a second than one with
two. A worker has its share of the threads, and where torch sees several GPUs, one in turn; it is given a run at a time,
tells in metrics.jsonl where it is, and sends back what the run came to.

Ctrl-C reaches this process alone, which asks the workers to save and leave. A worker whose parent has died does, too.
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console

from bertsmith.errors import BertsmithError, Interrupted, StepError, TrainingError
from bertsmith.tasks.child import end_with_parent
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.teaching import Teaching
from bertsmith.training.distributed import ALONE
from bertsmith.training.interrupt import StopRequest
from bertsmith.training.progress import Watcher

Work = tuple[Teaching, FinetuneSettings]
Outcome = SeedRun | StepError
"""What a run came to; or why one of its steps could not be taken, after which others may go on."""

_POLL_SECONDS = 0.3
_SENT = tuple(one.name for one in fields(Teaching) if one.name not in ("screen", "ranks"))


def outcomes(works: Iterable[Work], number: int, screen: Console) -> Generator[Outcome, None, None]:
    """Carry out runs, up to `number` at a time, and give what each came to, in their order.

    A run is asked for when the one `number` places before it has been given: with 1, when the one before has.

    Raises:
        Interrupted: Ctrl-C; the runs are saved, and can be resumed.
        TrainingError: a process ended without a word.
        Exception: what ended a run, if it is no StepError; other runs that were under way are saved.
    """
    if number == 1:
        for teaching, settings in works:
            yield _carried_out(teaching, settings)
        return
    waiting = iter(works)
    with _Workers(number, screen) as workers:
        begun: deque[Callable[[], Outcome]] = deque()
        while True:
            while len(begun) < number and (work := next(waiting, None)) is not None:
                begun.append(workers.start(*work))
            if not begun:
                return
            yield begun.popleft()()


def _carried_out(teaching: Teaching, settings: FinetuneSettings) -> Outcome:
    try:
        return teaching.run(settings)
    except StepError as error:
        return error


@dataclass
class _Worker:
    """A process, and what it is doing."""

    process: BaseProcess
    connection: Connection
    device: str | None
    """Of its own; None: that of the settings."""
    folder: Path | None = None
    """Of the run that it carries out; None: it waits for one."""


class _Workers:
    """The processes, from the first run to the last."""

    def __init__(self, number: int, screen: Console) -> None:
        self._number = number
        self._workers: list[_Worker] = []
        self._outcomes: dict[Path, Outcome] = {}
        self._watcher = Watcher(screen)
        self._stop = StopRequest()

    def __enter__(self) -> "_Workers":
        self._watcher.__enter__()
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for worker in self._workers:
                if worker.folder is not None:
                    worker.process.terminate()  # means: save and leave
                worker.connection.close()
            for worker in self._workers:
                worker.process.join()
        finally:  # at a second Ctrl-C
            for worker in self._workers:
                worker.process.kill()
            self._stop.__exit__(kind, error, trace)
            self._watcher.__exit__(kind, error, trace)

    def start(self, teaching: Teaching, settings: FinetuneSettings) -> Callable[[], Outcome]:
        """Begin a run, unless it had finished before. There is room for it: see `outcomes`.

        Returns:
            What waits for its outcome.
        """
        finished = teaching.finished(settings)
        if finished is not None:
            return lambda: finished
        worker = next((one for one in self._workers if one.folder is None), None) or self._new(teaching)
        if worker.device is not None:
            teaching = replace(teaching, device=torch.device(worker.device))
            settings = replace(settings, device=worker.device)
        worker.folder = settings.out
        try:
            worker.connection.send(({name: getattr(teaching, name) for name in _SENT}, settings))
        except OSError as error:
            raise _lost(worker) from error
        self._watcher.follow(settings.out)
        return lambda: self._outcome(settings.out)

    def _new(self, teaching: Teaching) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        num_threads = max(1, torch.get_num_threads() // self._number)
        process = context.Process(target=_work, args=(theirs, num_threads), name=f"bertsmith-run-{len(self._workers)}")
        # A process starts with the signals blocked that are blocked here: Ctrl-C is for its parent. The tracker, which
        # the first would start, too, unblocks it again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the end of the process is the end of the connection
        device = own_device(teaching.device, len(self._workers), torch.cuda.device_count())
        self._workers.append(_Worker(process, ours, device))
        return self._workers[-1]

    def _outcome(self, folder: Path) -> Outcome:
        while folder not in self._outcomes:
            if self._stop.requested:
                raise Interrupted(
                    "Stopped; what the runs have saved is kept. Run the same command with --resume to go on."
                )
            busy = {worker.connection: worker for worker in self._workers if worker.folder is not None}
            for connection in wait(list(busy), timeout=_POLL_SECONDS):
                self._receive(busy[connection])  # type: ignore[index]  # what was given is what comes back
            self._watcher.look()
        return self._outcomes.pop(folder)

    def _receive(self, worker: _Worker) -> None:
        """Note what a run came to.

        Raises:
            TrainingError: the process has ended.
            Exception: what ended the run.
        """
        assert worker.folder is not None
        self._watcher.leave(worker.folder)
        try:
            outcome = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise _lost(worker) from error
        if not isinstance(outcome, SeedRun | StepError):
            worker.folder = None
            raise outcome
        self._outcomes[worker.folder], worker.folder = outcome, None


def _lost(worker: _Worker) -> TrainingError:
    """What to say of a process that has ended before its run."""
    worker.process.join()
    assert worker.folder is not None
    return TrainingError(
        f"the process of {worker.folder.name} has ended (exit code {worker.process.exitcode}), most likely because "
        "memory ran out. Runs beside it are saved; go on with --resume and fewer --jobs. In a script of your own, call "
        'finetune under `if __name__ == "__main__":`.'
    )


def own_device(device: torch.device, place: int, num_gpus: int) -> str | None:
    """The GPU of the worker at a place, where runs are to be on "cuda" and there are several; None: as they say."""
    if device != torch.device("cuda") or num_gpus < 2:
        return None
    return f"cuda:{place % num_gpus}"


def _work(connection: Connection, num_threads: int) -> None:
    """What a worker does: runs come in, what they came to goes out, until there are no more."""
    torch.set_num_threads(num_threads)
    end_with_parent()
    while True:
        try:
            sent, settings = connection.recv()
        except EOFError:
            return
        try:
            teaching = Teaching(**sent, screen=Console(quiet=True), ranks=ALONE)
            outcome: Outcome | Exception = _carried_out(teaching, settings)
        except Exception as error:
            if not isinstance(error, BertsmithError | Interrupted):
                error.add_note(f"In the process of {settings.out.name}:\n{traceback.format_exc()}")
            outcome = error
        try:
            connection.send(outcome)
        except OSError:  # nobody waits for it any more
            return
