"""Memory that the allocator keeps between steps."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, numpy
from torchjepa.engine.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [numpy.ones(1 << 20, numpy.float32) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
returned = faults()
taken = keep_freed_memory()
faults()
print(int(taken), returned, faults())
"""


def test_freed_memory_is_taken_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    taken, returned, kept = map(int, done.stdout.split())
    if not taken:
        pytest.skip("another C library than glibc")
    assert returned > 1000  # 400 MiB, whatever the size of a page
    assert kept < 0.1 * returned
