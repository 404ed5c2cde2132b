"""Makes the first calls of MKL's vector functions before two threads can make them at once.

torch hands `sqrt`, `exp`, `log`, `erf` and their peers on a CPU to MKL, each thread its chunk, and MKL up to 2024.2
chooses a function's kernel at its first call. Where several threads make that call together, one of them can compute
its whole chunk with a kernel of low accuracy: the first square roots of a process are then wrong by up to 3e-4, every
later one is right (pytorch/pytorch#188792; torch 2.13 still brings that MKL). A call on one element is made by one
thread alone. Every module that computes imports this one, directly or not.
"""

from __future__ import annotations

import torch

# What torch's CPU kernels take from MKL's vector library.
_FUNCTIONS = (
    *(
        torch.acos,
        torch.asin,
        torch.atan,
        torch.cos,
        torch.sin,
        torch.tan,
        torch.cosh,
        torch.sinh,
        torch.tanh,
    ),
    *(
        torch.erf,
        torch.erfc,
        torch.erfinv,
        torch.exp,
        torch.expm1,
        torch.log,
        torch.log10,
        torch.log1p,
        torch.log2,
    ),
    *(torch.sqrt, torch.rsqrt, torch.ceil, torch.floor, torch.round, torch.trunc),
)


def _call_each_once() -> None:
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in _FUNCTIONS:
            function(one)


_call_each_once()
