"""Memory of the host, for training on a CPU."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the allocator keep what one step frees for the next, instead of handing it back to the kernel.

    A step on the CPU frees and takes hundreds of megabytes in blocks of some megabytes; by default glibc returns
    them, and every page is then zeroed and mapped again, 20,000 page faults a step for a ViT-Ti. Only on Linux with
    glibc; the process keeps its peak of memory until it ends.

    Returns:
        Whether the allocator took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))
    # Blocks of any size come from the heap; those of 32 MiB and more never would otherwise.
    return bool(trimmed and mallopt(_M_MMAP_MAX, ctypes.c_int(0)))
