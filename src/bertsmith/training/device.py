"""Which device to compute on, whether in bfloat16, and how it says that its memory is full."""

import re
from typing import Literal

import torch

from bertsmith.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16"]
ResolvedPrecision = Literal["fp32", "bf16"]

_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED")


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, or the CPU where there is none.

    One with a number becomes torch's current one, of which events, streams and what a GPU can do are asked.

    Raises:
        SettingsError: not "auto", "cpu", "cuda" or "cuda:N", or no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,9})?", name):
        raise SettingsError(f'device "{name}" is not known. Choices: auto, cpu, cuda, cuda:N.')
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f'device "{name}" is asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA '
            "devices here. Use --device cpu, or install a CUDA build of torch and a driver."
        )
    if index:
        torch.cuda.set_device(int(index))
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself, rather than widening each value."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(name: Precision, device: torch.device) -> ResolvedPrecision:
    """The precision to compute in; "auto" is bf16 wherever the hardware has it.

    Raises:
        SettingsError: bf16 on a CPU that would emulate it, which is slower than fp32 by one to two
            orders of magnitude (pytorch/pytorch#146508).
    """
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if name == "bf16" and not has_fast_bf16(device):
        raise SettingsError(f"this {device.type} has no bf16 instructions. Use --precision auto or fp32.")
    return name


def autocast(device: torch.device, precision: ResolvedPrecision) -> torch.autocast:
    """A context in which matrix products run in `precision`; weights and gradients stay float32.

    The bf16 copies of the weights live as long as the outermost context.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is how torch or Python says that there is no memory left.

    CUDA has a class of its own; on a CPU torch raises a RuntimeError that only its text tells apart, and so does cuBLAS
    when it cannot have its workspace.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
