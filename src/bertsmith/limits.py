"""What a container, or the queue of a cluster, leaves a process of its machine: control groups of Linux, of both
versions, the one it is in and those around that."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OF_PROCESS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Those it may run on, and no more than its share of time pays for; at least 1."""
    number = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for group in _groups("cpu"):
        time = _text(group / "cpu.max") or _text(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        with suppress(ValueError):  # "max" is all there is; of version 1 that is -1
            quota, period = map(int, time.split())
            number = min(number, max(1, quota // period)) if quota > 0 else number
    return number


def memory_left() -> int | None:
    """Bytes that the tightest group still has; None where none has a limit."""
    left = []
    for group in _groups("memory"):
        limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
        used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes")
        # Files that were read count as used, and give way when memory is asked for.
        cached = re.search(r"^(?:total_)?inactive_file ([0-9]+)$", _text(group / "memory.stat"), re.M)
        if limit.isdecimal() and used.isdecimal():
            left.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return min(left, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, and of those around them."""
    yield _ROOT  # of a container, which may not see where it lies in the whole
    for line in _text(_OF_PROCESS).splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if names and controller not in names.split(","):
            continue
        root = _ROOT / names
        place = root / path.lstrip("/")
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(root) and folder.is_dir())


def _text(*paths: Path) -> str:
    """The texts of files of the system's, with spaces between them; empty where there are none."""
    return " ".join(one.read_text(encoding="utf-8", errors="replace").strip() for one in paths if one.is_file())
