"""Memory that the allocator keeps between steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchjepa.engine import host_memory

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

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


HUGE = """
import torch  # numpy asks for huge pages by itself
from torchjepa.engine.host_memory import use_huge_pages

def read(name, path):
    return next(int(line.split()[1]) for line in open(path) if line.startswith(name))

resident = read("VmRSS", "/proc/self/status")
taken = [use_huge_pages(), use_huge_pages()]
grown = read("VmRSS", "/proc/self/status") - resident
block = torch.ones(1 << 24)
del block
again = use_huge_pages()
block = torch.ones(1 << 24)
print(int(all(taken) and again), grown, read("AnonHugePages", "/proc/self/smaps_rollup"))
"""


def run_huge(before: str = "") -> list[int]:
    done = subprocess.run([sys.executable, "-c", before + HUGE], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_memory_lies_in_huge_pages_and_is_taken_only_when_used():
    taken, grown, huge = run_huge()
    if not taken or "[never]" in THP.read_text():
        pytest.skip("no huge pages on this system")
    assert grown < 20_000  # KiB, of the gigabytes of addresses
    assert huge >= 60_000  # of the 64 MiB that were written


def test_without_room_for_addresses_all_goes_on():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30));"
    taken, _, huge = run_huge(limit)
    assert (taken, huge) == (0, 0)


def test_addresses_that_count_as_memory_are_not_taken(monkeypatch):
    monkeypatch.setattr(host_memory, "_counts_addresses", lambda: True)
    monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: True)
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the heap was asked to grow"))
    assert not host_memory.use_huge_pages()
