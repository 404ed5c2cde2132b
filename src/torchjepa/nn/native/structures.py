"""How tensors are handed to the compiled kernels: as the C structures that these take."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchjepa.nn.hand_written import is_fake, sees_plain_tensors
from torchjepa.nn.native.library import library

_run_followed = False  # switched by `kernels_while_followed`

RUNS = 64  # of rows with sums of their own, as numbers.h has it


def may_run_on(x: Tensor) -> bool:
    """Whether a kernel may take this tensor: nobody follows the operations, who would not see those inside.

    Args:
        x: any of its inputs.
    """
    if not sees_plain_tensors(x, or_fake=_run_followed):
        return False
    return _run_followed or not torch._C._len_torch_dispatch_stack()


@contextmanager
def kernels_while_followed() -> Iterator[None]:
    """Let kernels run although operations are followed, by one who follows memory alone; on fake tensors, too."""
    global _run_followed
    _run_followed = True
    try:
        yield
    finally:
        _run_followed = False


def fields(names: str) -> list[tuple[str, Any]]:
    """Fields of a structure in the order of the C++: places of tensors, counts, marked by a star, numbers, by a dot.

    Args:
        names: separated by spaces, as in `"x scale eps. out rows*"`.
    """
    kinds = {"*": ctypes.c_long, ".": ctypes.c_float}
    return [(name.rstrip("*."), kinds.get(name[-1], ctypes.c_void_p)) for name in names.split()]


def call(name: str, kind: type[ctypes.Structure], *values: Any) -> None:
    """Run a kernel; nothing happens to fake tensors, whose memory somebody follows.

    Args:
        name: of the kernel.
        kind: the structure that it takes.
        values: for its fields, tensors or numbers.
    """
    if _run_followed and any(isinstance(each, Tensor) and is_fake(each) for each in values):
        return
    places = [each.data_ptr() if isinstance(each, Tensor) else each for each in values]
    getattr(library(), name)(ctypes.byref(kind(*places)))


def scratch(sums: Tensor) -> Tensor:
    """Room for as many copies of these sums as a kernel works out side by side.

    Args:
        sums: float32 `[n]`.
    """
    return sums.new_empty(RUNS, *sums.shape)
