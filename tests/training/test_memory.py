"""Memory on the CPU: what is freed is there to be used again, and what is made for one shape does not pile up."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from bertsmith.training import memory
from bertsmith.training.device import has_fast_bf16

_FAULTS_OF_BLOCKS = """
import resource, sys, torch
from bertsmith.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # until there is a place for it
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_a_freed_block_of_64_mib_is_used_again_and_not_asked_of_the_system() -> None:
    faults = {}
    for kind in ("kept", "as ever"):
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS_OF_BLOCKS, kind], capture_output=True, text=True, check=True
        )
        faults[kind] = int(done.stdout)
    assert faults["kept"] < 0.2 * faults["as ever"]


_GROWTH_OVER_SHAPES = """
import bertsmith, torch
from bertsmith.training.memory import peak_memory_bytes

matrix = torch.randn(256, 768).bfloat16()
for length in range(1, 200):
    torch.randn(length, 256).bfloat16() @ matrix
before = peak_memory_bytes()
for length in range(200, 1500):
    torch.randn(length, 256).bfloat16() @ matrix
print(peak_memory_bytes() - before)
"""


@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="only products in bf16 are made for a shape")
def test_a_product_of_another_shape_does_not_leave_its_code_behind() -> None:
    growth = {}
    for kept in (None, "1024"):
        names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {} if kept is None else dict.fromkeys(names, kept)
        command = [sys.executable, "-c", _GROWTH_OVER_SHAPES]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        growth[kept] = int(done.stdout)
    assert growth[None] < 0.3 * growth["1024"]


@pytest.mark.parametrize(("left", "free"), [(None, 64 << 30), (30 << 30, 30 << 30), (90 << 30, 64 << 30)])
def test_no_more_is_free_than_its_groups_leave(monkeypatch: pytest.MonkeyPatch, left: int | None, free: int) -> None:
    monkeypatch.setattr(memory, "_text_of", lambda path: "MemAvailable: 67108864 kB\n")
    monkeypatch.setattr(memory, "memory_left", lambda: left)
    assert memory.free_memory_bytes(torch.device("cpu")) == free
