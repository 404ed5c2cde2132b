"""Second moments of the global batch, with gradients written by hand: what VICReg and Barlow Twins share.

Every sum over samples runs over all processes, and every divisor is the global count, so that processes with
different data, different means and unequal batch sizes give the value and, with gradients averaged by DDP, the
gradient of one process on the joined batch.

The sum of squares of a d x d matrix of second moments is the same as that of the n x n matrix of inner products,
||Z^T Z||_F^2 = ||Z Z^T||_F^2 and ||A^T B||_F^2 = <A A^T, B B^T>, so each function works on the cheaper side: of
the samples (*rows*) or of the dimensions (*columns*).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchjepa import dist
from torchjepa.collapse.samples import Samples

# Dimensions that the rows side treats one by one. Their squared variance would otherwise be subtracted from a sum
# of which it is almost all, and float32 would lose what the other dimensions contribute.
_NUM_APART = 4


def second_moments(
    z: Float[Tensor, "g n d"], samples: Samples
) -> tuple[Float[Tensor, "g d"], Float[Tensor, " g"]]:
    """Of the rows less their mean, x: s_j = sum_i x_ij^2, and the energy sum_{j != k} (sum_i x_ij x_ik)^2.

    n^2 d or n d^2 multiplications forward, whichever is fewer, and as many backward. Over several processes the
    d x d sums or the rows travel, whichever are fewer bytes.

    Args:
        z: this process's rows, `[g, n_local, d]`.
        samples: says who holds the other rows.

    Returns:
        s `[g, d]` and the energies `[g]`, both global.
    """
    return _SecondMoments.apply(z, samples)  # type: ignore[no-any-return]


def correlations(
    z_a: Float[Tensor, "g n d"], z_b: Float[Tensor, "g n d"], samples: Samples, divisor: float, eps: float
) -> tuple[Float[Tensor, "g d"], Float[Tensor, " g"]]:
    """The diagonal of C = A^T B / n and its off-diagonal energy sum_{j != k} C_jk^2, A and B standardised.

    A = (z_a - mean) / sqrt(sum_i (z_a - mean)^2 / divisor + eps), B likewise. 2 n^2 d multiplications forward and
    as many backward, or n d^2 forward and twice that backward, whichever are fewer.

    Args:
        z_a: this process's rows of one view, `[g, n_local, d]`.
        z_b: this process's rows of the other.
        samples: says who holds the other rows.
        divisor: of the variances.
        eps: added to the variances.

    Returns:
        The diagonal `[g, d]` and the energies `[g]`, both global.
    """
    rows = _rows_are_cheaper(samples, z_a.shape[2], views=2)
    function = _CorrelationsByRows if rows else _CorrelationsByColumns
    return function.apply(z_a, z_b, samples, divisor, eps)  # type: ignore[no-any-return]


def _rows_are_cheaper(samples: Samples, d: int, views: int) -> bool:
    n = samples.count
    # Alone: products, (2 views) of n^2 d against (views + 1) of n d^2. Otherwise bytes: rows of each view or sums.
    return n * views < d if samples.across else n * 2 * views < d * (views + 1)


def _centered(samples: Samples, *views: Tensor) -> list[Tensor]:
    # The subtraction comes before any square, or float32 loses the variance of data far from zero. No gradient
    # goes back through the mean: those below are combinations of centred rows, whose mean is zero already.
    sums = _total(samples, *(z.sum(1, keepdim=True) for z in views))
    return [z - total / samples.count for z, total in zip(views, sums)]


def _gathered(z: Tensor, samples: Samples) -> Tensor:
    """The rows of all processes `[g, n, d]`, without graph."""
    if not samples.across:
        return z
    most = max(samples.row_counts)
    padded = torch.nn.functional.pad(z, (0, 0, 0, most - z.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in samples.row_counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:, :n] for part, n in zip(parts, samples.row_counts)], dim=1)


def _total(samples: Samples, *parts: Tensor) -> list[Tensor]:
    """Sums over the processes of several tensors, in one message."""
    if not samples.across:
        return list(parts)
    flat = torch.cat([part.reshape(-1) for part in parts])
    torch.distributed.all_reduce(flat)
    return [piece.view_as(part) for piece, part in zip(flat.split([p.numel() for p in parts]), parts)]


def _square_sums(x: Float[Tensor, "g n d"]) -> Float[Tensor, "g 1 d"]:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).square()


def _dot(x: Tensor, y: Tensor) -> Float[Tensor, " g"]:
    """Over all but the first axis; a dot product writes nothing of their size."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return torch.dot(x[0], y[0]).reshape(1) if len(x) == 1 else torch.linalg.vecdot(x, y)


class _SecondMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        ctx.samples = samples
        ctx.on_rows = _rows_are_cheaper(samples, z.shape[2], views=1)
        (z,) = _centered(samples, z)
        if ctx.on_rows:
            return _SecondMoments._forward_rows(ctx, z)
        (gram,) = _total(samples, z.mT @ z)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        squares = diagonal.clone()
        # Removed before the squares are summed: subtracting it afterwards cancels where a dimension dominates.
        diagonal.zero_()
        ctx.save_for_backward(z, gram)
        return squares, _dot(gram, gram)

    @staticmethod
    def _forward_rows(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        samples = ctx.samples
        everything = _gathered(z, samples)
        squares = _square_sums(everything)[:, 0]
        apart = squares.topk(min(_NUM_APART, z.shape[2]), dim=1).indices.unsqueeze(1)
        columns = apart.expand(-1, everything.shape[1], -1)
        loud, quiet = everything.gather(2, columns), everything.scatter(2, columns, 0.0)  # [g, n, 4], [g, n, d]
        start = sum(samples.row_counts[: dist.rank()]) if samples.across else 0
        own = slice(start, start + z.shape[1])
        kernel = quiet[:, own] @ quiet.mT  # [g, n_local, n]
        (energy,) = _total(samples, _dot(kernel, kernel))
        between, within = loud.mT @ quiet, loud.mT @ loud
        within.diagonal(dim1=1, dim2=2).zero_()
        rest = squares.scatter(1, apart[:, 0], 0.0)
        energy = energy - _dot(rest, rest) + 2.0 * _dot(between, between) + _dot(within, within)
        ctx.save_for_backward(z, kernel, everything, loud[:, own], between, within, rest, apart)
        return squares, energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_squares, by_energy = (grad.unsqueeze(1) for grad in _total(ctx.samples, *grads))
        by_energy = 4.0 * by_energy.unsqueeze(2)
        if not ctx.on_rows:
            z, gram = ctx.saved_tensors
            return torch.addcmul((z @ gram).mul_(by_energy), z, by_squares, value=2.0), None
        z, kernel, everything, loud, between, within, rest, apart = ctx.saved_tensors
        pulled = torch.baddbmm(loud @ between, kernel, everything)
        pulled.scatter_add_(2, apart.expand(-1, z.shape[1], -1), loud @ within)
        return pulled.mul_(by_energy).addcmul_(z, 2.0 * by_squares - by_energy * rest.unsqueeze(1)), None


class _CorrelationsByColumns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_a: Tensor, z_b: Tensor, samples: Samples, divisor: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        z_a, z_b = _centered(samples, z_a, z_b)
        cross, *squares = _total(samples, z_a.mT @ z_b, _square_sums(z_a), _square_sums(z_b))
        scale_a, scale_b = ((each / divisor + eps).rsqrt() for each in squares)  # [g, 1, d]
        # The d x d product is standardised, not the n x d rows.
        correlation = cross.mul_(scale_a.mT / samples.count).mul_(scale_b)
        on = correlation.diagonal(dim1=1, dim2=2).clone()
        correlation.diagonal(dim1=1, dim2=2).zero_()
        ctx.samples, ctx.divisor = samples, divisor
        ctx.save_for_backward(z_a, z_b, correlation, on, scale_a, scale_b)
        return on, _dot(correlation, correlation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z_a, z_b, off, on, scale_a, scale_b = ctx.saved_tensors
        by_on, by_energy = (grad.unsqueeze(1) for grad in _total(ctx.samples, *grads))
        by_energy = 2.0 * by_energy.unsqueeze(2)
        # Along each standardised dimension the gradient does not change the loss: sum_i dA_ij A_ij, from C alone.
        along_a = by_energy * _square_sums(off.mT) + by_on * on.unsqueeze(1)
        along_b = by_energy * _square_sums(off) + by_on * on.unsqueeze(1)
        slopes = off * (scale_a.mT * (by_energy / ctx.samples.count))
        slopes.mul_(scale_b)
        slopes.diagonal(dim1=1, dim2=2).copy_((by_on * scale_a * scale_b / ctx.samples.count)[:, 0])
        grad_a = (z_b @ slopes.mT).addcmul_(z_a, along_a * scale_a.square(), value=-1.0 / ctx.divisor)
        grad_b = (z_a @ slopes).addcmul_(z_b, along_b * scale_b.square(), value=-1.0 / ctx.divisor)
        return grad_a, grad_b, None, None, None


class _CorrelationsByRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_a: Tensor, z_b: Tensor, samples: Samples, divisor: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        z_a, z_b = _centered(samples, z_a, z_b)
        squares = _total(samples, _square_sums(z_a), _square_sums(z_b))
        scale_a, scale_b = ((each / divisor + eps).rsqrt() for each in squares)  # [g, 1, d]
        unit_a, unit_b = z_a.mul_(scale_a), z_b.mul_(scale_b)
        all_a, all_b = _gathered(unit_a, samples), _gathered(unit_b, samples)
        kernel_a, kernel_b = unit_a @ all_a.mT, unit_b @ all_b.mT  # [g, n_local, n]
        on, energy = _total(samples, (unit_a * unit_b).sum(1), _dot(kernel_a, kernel_b))
        on = on / samples.count
        ctx.samples, ctx.divisor = samples, divisor
        ctx.save_for_backward(unit_a, unit_b, all_a, all_b, kernel_a, kernel_b, on, scale_a, scale_b)
        return on, energy / samples.count**2 - _dot(on, on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        samples, n = ctx.samples, ctx.samples.count
        unit_a, unit_b, all_a, all_b, kernel_a, kernel_b, on, scale_a, scale_b = ctx.saved_tensors
        by_on, by_energy = (grad.unsqueeze(1) for grad in _total(samples, *grads))
        by_energy = 2.0 * by_energy.unsqueeze(2)
        by_on = by_on - by_energy * on.unsqueeze(1)
        pulled_a, pulled_b = kernel_b @ all_a, kernel_a @ all_b
        sums = _total(samples, (pulled_a * unit_a).sum(1, keepdim=True), (pulled_b * unit_b).sum(1, keepdim=True))
        along_a, along_b = (by_energy / n**2 * each + by_on * on.unsqueeze(1) for each in sums)
        grad_a = pulled_a.mul_(scale_a * (by_energy / n**2)).addcmul_(unit_b, scale_a * by_on / n)
        grad_b = pulled_b.mul_(scale_b * (by_energy / n**2)).addcmul_(unit_a, scale_b * by_on / n)
        grad_a.addcmul_(unit_a, along_a * scale_a, value=-1.0 / ctx.divisor)
        grad_b.addcmul_(unit_b, along_b * scale_b, value=-1.0 / ctx.divisor)
        return grad_a, grad_b, None, None, None
