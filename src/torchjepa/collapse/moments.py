"""First and second moments of the global batch: the arithmetic that the collapse regularizers share.

Every sum over samples runs over all processes through `dist.all_reduce_sum`, and every divisor is the global
count, so that processes with different data, different means and unequal batch sizes give the value and,
with gradients averaged by DDP, the gradient of one process on the joined batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist


@contextmanager
def autocast_off(device: torch.device) -> Iterator[None]:
    """Keep matrix products in the dtype of their operands.

    Args:
        device: where the operands are.
    """
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def check_views(name: str, z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two views in their common dtype, float32 or wider.

    Args:
        name: the regularizer, for the message.
        z_a: embeddings of the first view, `[n, d]`.
        z_b: embeddings of the second view, of the same shape.

    Raises:
        ValueError: the shapes differ or are not `[n, d]` with n and d at least 1 (n may be 0 on some
            processes of several), or a dtype is not floating point.
    """
    least = 0 if dist.is_distributed() else 1
    if z_a.shape != z_b.shape or z_a.ndim != 2 or z_a.shape[0] < least or z_a.shape[1] < 1:
        raise ValueError(
            f"{name}: z_a and z_b must have one shape [n, d] with n and d at least 1, got {tuple(z_a.shape)} "
            f"and {tuple(z_b.shape)}; pool or flatten tokens to one row a sample first."
        )
    if not (z_a.is_floating_point() and z_b.is_floating_point()):
        raise ValueError(f"{name}: z_a and z_b must be floating point, got {z_a.dtype} and {z_b.dtype}.")
    dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
    return z_a.to(dtype), z_b.to(dtype)


def check_weights(name: str, **weights: float) -> None:
    """Refuse a weight that is negative or not finite.

    Args:
        name: the regularizer, for the message.
        weights: the values by argument name.

    Raises:
        ValueError: a weight is negative or not finite.
    """
    for argument, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"{name}: {argument} must be a finite number of at least 0, got {weight!r}.")


def check_eps(name: str, eps: float) -> None:
    """Refuse an eps that is not positive: the square root's gradient is infinite at variance 0.

    Args:
        name: the regularizer, for the message.
        eps: what is added to a variance below a square root.

    Raises:
        ValueError: eps is not a positive number.
    """
    if not 0.0 < eps < math.inf:
        raise ValueError(
            f"{name}: eps must be a positive number, got {eps!r}; it keeps the gradient finite at variance 0."
        )


def centered(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, ""]]:
    """Take the global mean off: z - sum_i z_i / n.

    Args:
        z: this process's rows, `[n_local, d]`.

    Returns:
        The centered rows `[n_local, d]`, and the global count n as a scalar without graph.
    """
    # One message for sum and count; the subtraction comes before any square, or float32 loses the variance of
    # data far from zero.
    packed = dist.all_reduce_sum(torch.cat([z.sum(0), z.new_full((1,), z.shape[0])]))
    count = packed[-1].detach()
    return z - packed[:-1] / count, count


def degrees_of_freedom(count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The divisor of unbiased second moments, max(n - 1, 1).

    Args:
        count: the global count n.
    """
    return (count - 1.0).clamp(min=1.0)


def sum_of_squares(z: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The global sum of squares of every dimension, sum_i z_ij^2.

    Args:
        z: this process's rows, `[n_local, d]`.
    """
    return dist.all_reduce_sum(z.square().sum(0))


def cross_moments(z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """The global second moments between dimensions, sum_i z_a[i, j] z_b[i, k], not divided.

    Args:
        z_a: this process's rows of one view, `[n_local, d]`.
        z_b: this process's rows of the other, `[n_local, d]`.
    """
    return dist.all_reduce_sum(z_a.T @ z_b)


def off_diagonal_energy(matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """The sum of squared off-diagonal entries, sum_{j != k} M_jk^2.

    The diagonal is removed before the squares are summed. The sum over all entries less that over the
    diagonal, which the smaller n x n Gram matrix would give, cancels in float32 where one dimension
    dominates.

    Args:
        matrix: `[d, d]`.
    """
    return torch.diagonal_scatter(matrix, torch.zeros_like(matrix.diagonal())).square().sum()
