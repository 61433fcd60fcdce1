"""Which of the processes that train one model this one is, as torchrun says it in the environment. Needs no torch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bertsmith.errors import SettingsError

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that train together; alone, without torchrun."""

    rank: int = 0
    """Among all, from 0."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Among those on this machine, from 0: the number of its GPU."""
    restarts: int = 0
    """How often torchrun has started them again."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def check(
        self, batch_sizes: Iterable[int], *, auto_batch: bool, overwrite: bool = False, are_several: bool = False
    ) -> None:
        """Refuse what several ranks cannot do.

        Args:
            batch_sizes: examples in a step, of each stage.
            are_several: whether there is more than one run.

        Raises:
            SettingsError: a step has fewer examples than there are ranks; `auto_batch`; `are_several`; `overwrite`
                after a restart.
        """
        if self.size == 1:
            return
        for batch_size in batch_sizes:
            if batch_size < self.size:
                raise SettingsError(
                    f"batch_size is {batch_size}, and {self.size} ranks share it: it must be at least {self.size}."
                )
        if auto_batch:
            raise SettingsError(
                "auto_batch cuts the micro-batches of one process, and those of all ranks must be alike. Give a "
                "micro_batch_size that fits each."
            )
        if are_several:
            raise SettingsError(
                "seeds, folds and search are several runs, which gain more from a GPU each than from sharing all. "
                "Leave out torchrun: --jobs carries out so many of them at a time."
            )
        if overwrite and self.restarts:
            raise SettingsError(
                "torchrun has started the run again, and overwrite would remove it. Use resume instead."
            )


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What torchrun has set: WORLD_SIZE, RANK, LOCAL_RANK; a process on its own where there is no WORLD_SIZE.

    Raises:
        SettingsError: a variable is missing, or no number in its range.
    """
    if "WORLD_SIZE" not in environment:
        return Launch()
    size = _number(environment, "WORLD_SIZE", low=1)
    if size == 1:
        return Launch()
    for name in _NEEDED:
        if name not in environment:
            raise SettingsError(
                f"WORLD_SIZE is {size} in the environment, and {name} is not set. Start the processes with torchrun, "
                "or unset WORLD_SIZE to train in this one alone."
            )
    rank, local_rank = _number(environment, "RANK"), _number(environment, "LOCAL_RANK")
    if rank >= size:
        raise SettingsError(f"RANK is {rank} in the environment, and WORLD_SIZE {size}; ranks count from 0.")
    restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in environment else 0
    return Launch(rank, size, local_rank, restarts)


def _number(environment: Mapping[str, str], name: str, low: int = 0) -> int:
    text = environment[name]
    if not text.isdecimal() or int(text) < low:
        raise SettingsError(f'{name} is "{text}" in the environment; it must be a whole number of at least {low}.')
    return int(text)
