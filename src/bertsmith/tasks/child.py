"""A function in a process of its own, whose memory and start are then what they would be in a run."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, TypeVarTuple

from bertsmith.errors import TrainingError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Make this process end by SIGTERM when the one that has started it does: nobody else would end it."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def in_child(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call a function of a module in a new process, and return what it returns, or raise what it raises.

    By "spawn", so that a script that comes here needs its `if __name__ == "__main__"`.

    Raises:
        TrainingError: the process was killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "the process that measures was killed, most likely because memory ran out. Allow less (memory), or "
                "choose a smaller model or batch. In a script of your own, call this under "
                '`if __name__ == "__main__":`.'
            ) from error
