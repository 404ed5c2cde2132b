"""What arithmetic a processor is quick at."""

from __future__ import annotations

import torch

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def has_quick_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 in hardware, several times faster than float32.

    Without such instructions it is emulated, several times slower than float32. (torch 2.7 does not tell yet what the
    CPU has: then no.)
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(each) for each in _INSTRUCTIONS)
