"""Across processes: rank, world size and sums that autograd sees through; the identity when alone.

Everything is asked at call time, never at construction, so a module built before
`init_process_group` is right after it too.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from torchjepa import _vector_math as _vector_math


def is_distributed() -> bool:
    """Whether a process group of more than one process is up."""
    return world_size() > 1


def world_size() -> int:
    """Number of processes, 1 when torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 when torch.distributed is not initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    # y_r = sum_q x_q on every rank r. Seen as one program with the objective sum_r L_r, the gradient of x_q is
    # sum_r dL_r/dy_r: an all-reduce again. DDP's mean over ranks then gives the gradient of mean_r L_r, which is
    # the loss itself when every rank computes the same global loss.
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y, op=dist.ReduceOp.SUM)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, op=dist.ReduceOp.SUM)
        return grad


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over the processes, y = sum_r x_r, differentiable; `x` itself when alone.

    The backward pass sums the incoming gradients over the processes, so that with gradients averaged by
    DDP a loss computed from global sums gets exactly the gradient of one process on the joined batch.

    Args:
        x: a tensor of the same shape on every rank.
    """
    return _AllReduceSum.apply(x) if is_distributed() else x  # type: ignore[no-any-return]


def global_count(num: int, like: Tensor) -> Tensor:
    """The sum over the processes of a count, as a scalar tensor of `like`'s dtype and device.

    Args:
        num: this rank's count; ranks may differ.
        like: gives dtype and device.
    """
    return all_reduce_sum(torch.tensor(float(num), dtype=like.dtype, device=like.device))
