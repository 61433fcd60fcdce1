"""How many cores this process may use: a container, or a cluster's queue, gives it fewer than the machine has."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "400000 100000" is four cores' time, "max 100000" all


def usable_cores() -> int:
    """Those it may run on, and no more than its share of time pays for; at least 1."""
    number = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
        number = min(number, max(1, quota // period))
    return number
