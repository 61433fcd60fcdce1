"""A function in a process of its own, whose memory and start are then what they would be in a run."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, TypeVarTuple

from bertsmith.errors import TrainingError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def in_child(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Call a function of a module in a new process, and return what it returns, or raise what it raises.

    By "spawn", so that a script that comes here needs its `if __name__ == "__main__"`.

    Raises:
        TrainingError: the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "the process that measures was killed, most likely because memory ran out. Allow less (memory), or "
                "choose a smaller model or batch. In a script of your own, call this under "
                '`if __name__ == "__main__":`.'
            ) from error
