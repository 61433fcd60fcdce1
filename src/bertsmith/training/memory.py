"""How much memory there is, and how much a process has taken."""

import ctypes
import os
import platform
import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bertsmith.limits import memory_left
from bertsmith.model.encoder import forget_recordings

_FRAGMENTED_SHARE = 0.25
"""On a CPU a run comes to hold more than its first steps, because tensors of other sizes fit badly where earlier ones
were: by 10 to 40 % of what the first steps added (benchmarks/forecasts.py). This share is added."""

_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let freed memory of up to 1 GiB be used again at once, where the C library is glibc.

    By itself it hands every block of more than 32 MiB, such as the gradient of a large vocabulary, back to the system,
    which clears it, page by page, when the next step asks for it again. A block of more than 1 GiB still goes back.
    """
    if _GLIBC is not None:
        for parameter in (_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_THRESHOLD):
            _GLIBC.mallopt(parameter, _KEPT_BYTES)


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident so far.

    Of Linux's two figures the one that begins with the program: `getrusage` begins with what started it, which may
    have been larger.
    """
    found = re.search(r"^VmHWM:\s*([0-9]+) kB$", _text_of("/proc/self/status"), re.M)
    if found:
        return int(found.group(1)) * 1024
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory() -> None:
    """Let `peak_memory_bytes` begin again with what is in use now, where the system can (Linux)."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_memory_bytes(device: torch.device) -> int:
    """What a new process can have of a device's memory; on the CPU of main memory, or of its container's."""
    if device.type == "cuda":
        free_of_device, _ = torch.cuda.mem_get_info(device)
        return free_of_device
    found = re.search(r"^MemAvailable:\s*([0-9]+) kB$", _text_of("/proc/meminfo"), re.M)
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = int(found.group(1)) * 1024 if found else whole
    left = memory_left()
    return free if left is None else min(free, left)


@dataclass(frozen=True)
class Memory:
    """The memory of a device while it is measured."""

    device: torch.device
    start_bytes: int
    """That were taken before the first step."""

    @classmethod
    def of(cls, device: torch.device) -> "Memory":
        """From now on."""
        return cls(device, _peak_bytes(device))

    def expected_bytes(self) -> int:
        """The most that a run will take whose steps took as much as those so far."""
        peak = _peak_bytes(self.device)
        if self.device.type == "cuda":
            return peak
        return peak + int(_FRAGMENTED_SHARE * max(0, peak - self.start_bytes))

    def forget_peak(self, model: nn.Module) -> None:
        """What was too much is not what the run will need, nor what `model` keeps to replay such sizes."""
        forget_recordings(model)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            forget_peak_memory()


def _peak_bytes(device: torch.device) -> int:
    """Of this process so far, or on CUDA of the device's memory that torch has taken."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory_bytes()


def _text_of(path: str) -> str:
    """The text of a file of the system's, empty where there is none."""
    place = Path(path)
    return place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
