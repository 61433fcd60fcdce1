"""Where a run took place: versions, processor, memory, accelerator."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from bertsmith.limits import usable_cores
from bertsmith.training.memory import peak_memory_bytes

_PACKAGES = ("bertsmith", "torch", "numpy", "tokenizers", "safetensors")


def environment() -> dict[str, str]:
    """What a reader needs in order to judge or repeat a run: versions, processor, memory, device."""
    installed = {package.metadata["Name"] for package in importlib.metadata.distributions()}
    facts = {"Python": platform.python_version()}
    facts |= {name: importlib.metadata.version(name) for name in _PACKAGES if name in installed}
    facts["system"] = platform.platform()
    facts["processor"] = _processor()
    facts["cores"] = f"{usable_cores()} usable, {torch.get_num_threads()} threads in torch"
    facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    facts["most memory used"] = f"{peak_memory_bytes() / 2**30:.2f} GiB by this process"
    facts["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return facts


def _processor() -> str:
    """The processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*: (.+)$", information.read_text(encoding="utf-8", errors="replace"), re.M)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
