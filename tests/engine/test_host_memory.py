"""Memory that the allocator keeps between steps."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, numpy
from torchjepa.engine.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [numpy.ones(1 << int(sys.argv[1]), numpy.float32) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
returned = faults()
taken = keep_freed_memory()
faults()
print(int(taken), returned, faults())
"""


@pytest.mark.parametrize("exponent", [20, 24])  # blocks of 4 and of 64 MiB: glibc maps the latter one by one
def test_freed_memory_is_taken_again_without_page_faults(exponent):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(exponent)], capture_output=True, text=True, check=True
    )
    taken, returned, kept = map(int, done.stdout.split())
    if not taken:
        pytest.skip("another C library than glibc")
    assert returned > 100  # 60 MiB and more, whatever the size of a page
    assert kept < 0.1 * returned
