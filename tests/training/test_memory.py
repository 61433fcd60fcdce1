"""Memory on the CPU: what is freed is there to be used again."""

import platform
import subprocess
import sys

import pytest

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
