"""Activation checkpointing: memory for time, without changing a bit of the result.

Called recomputing throughout, because a checkpoint is a run on disk here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward method that keeps nothing but its inputs for the backward pass where `self.recomputes` is true.

    Args:
        forward: a method of an `nn.Module` with the attribute `recomputes`, a function of its arguments alone.
    """

    @wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(forward, self, *args, use_reentrant=False, **kwargs)
        return forward(self, *args, **kwargs)

    return wrapped


def recompute_activations(module: nn.Module, enabled: bool = True) -> None:
    """Let every transformer block of a module forget its inner activations and compute them again when needed.

    Each block keeps its input, n d numbers a sample, where it would keep about 16 n d with an MLP of ratio 4;
    the price is one more forward pass of the trained blocks, a third of their work. Loss and gradients stay the
    same bit for bit. (Activation or gradient checkpointing elsewhere.)

    Args:
        module: a learner or a network; its blocks are switched in place.
        enabled: `False` to keep activations again.

    Raises:
        ValueError: the module has no block that can do so.
    """
    blocks = [part for part in module.modules() if hasattr(type(part), "recomputes")]
    if not blocks:
        raise ValueError(
            f"recompute_activations: {type(module).__name__} has no transformer block, and nothing else can forget "
            "its activations; leave it out, and lower the memory with a smaller batch or with --accumulate."
        )
    for block in blocks:
        block.recomputes = enabled  # type: ignore[assignment]
