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


def centered(z: Float[Tensor, "g n d"], samples: Samples) -> Float[Tensor, "g n d"]:
    """Take the global mean off: z - sum_i z_i / n.

    Args:
        z: this process's rows, `[g, n_local, d]`.
        samples: says who holds the other rows.
    """
    # The subtraction comes before any square, or float32 loses the variance of data far from zero.
    return z - samples.sum(z.sum(1, keepdim=True)) / samples.count


def standardised(
    z: Float[Tensor, "g n d"], samples: Samples, divisor: float, eps: float
) -> Float[Tensor, "g n d"]:
    """Every dimension at mean 0 and variance 1: (z - mean) / sqrt(sum_i (z_i - mean)^2 / divisor + eps).

    Args:
        z: this process's rows, `[g, n_local, d]`.
        samples: says who holds the other rows.
        divisor: of the variance.
        eps: added to the variance.
    """
    return _Standardise.apply(centered(z, samples), samples, divisor, eps)  # type: ignore[no-any-return]


def second_moments(
    z: Float[Tensor, "g n d"], samples: Samples
) -> tuple[Float[Tensor, "g d"], Float[Tensor, " g"]]:
    """Of centred rows: s_j = sum_i z_ij^2, and the off-diagonal energy sum_{j != k} (sum_i z_ij z_ik)^2.

    n^2 d or n d^2 multiplications forward, whichever is fewer, and as many backward. Over several processes the
    d x d sums or the rows travel, whichever are fewer bytes.

    Args:
        z: this process's centred rows, `[g, n_local, d]`.
        samples: says who holds the other rows.

    Returns:
        s `[g, d]` and the energies `[g]`, both global.
    """
    return _SecondMoments.apply(z, samples)  # type: ignore[no-any-return]


def cross_moments(
    z_a: Float[Tensor, "g n d"], z_b: Float[Tensor, "g n d"], samples: Samples
) -> tuple[Float[Tensor, "g d"], Float[Tensor, " g"]]:
    """Of the rows of two views: c_j = sum_i a_ij b_ij, and the energy sum_{j != k} (sum_i a_ij b_ik)^2.

    2 n^2 d multiplications forward and as many backward, or n d^2 forward and twice that backward.

    Args:
        z_a: this process's rows of one view, `[g, n_local, d]`.
        z_b: this process's rows of the other.
        samples: says who holds the other rows.

    Returns:
        c `[g, d]` and the energies `[g]`, both global.
    """
    return _CrossMoments.apply(z_a, z_b, samples)  # type: ignore[no-any-return]


def _rows_are_cheaper(samples: Samples, d: int, views: int) -> bool:
    n = samples.count
    # Alone: products, (2 views) of n^2 d against (views + 1) of n d^2. Otherwise bytes: rows of each view or sums.
    return n * views < d if samples.across else n * 2 * views < d * (views + 1)


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
    """Sums over the processes of several small tensors, in one message."""
    if not samples.across:
        return list(parts)
    flat = torch.cat([part.reshape(-1) for part in parts])
    torch.distributed.all_reduce(flat)
    return [piece.view_as(part) for piece, part in zip(flat.split([p.numel() for p in parts]), parts)]


def _sum_of_squares(x: Tensor) -> Tensor:
    """Over all but the first axis; a dot product reads x once and writes nothing."""
    flat = x.reshape(len(x), -1)
    if len(flat) == 1:
        return torch.dot(flat[0], flat[0]).reshape(1)
    return torch.linalg.vecdot(flat, flat)


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, samples: Samples, divisor: float, eps: float) -> Tensor:
        (squares,) = _total(samples, z.square().sum(1, keepdim=True))
        scale = (squares / divisor + eps).rsqrt()
        unit = z * scale
        ctx.save_for_backward(unit, scale)
        ctx.samples, ctx.divisor = samples, divisor
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale = ctx.saved_tensors
        (grad,) = grads
        (along,) = _total(ctx.samples, (grad * unit).sum(1, keepdim=True))
        return torch.addcmul(grad, unit, along, value=-1.0 / ctx.divisor).mul_(scale), None, None, None


class _SecondMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        ctx.samples = samples
        ctx.on_rows = _rows_are_cheaper(samples, z.shape[2], views=1)
        if ctx.on_rows:
            return _SecondMoments._forward_rows(ctx, z)
        (gram,) = _total(samples, z.mT @ z)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        squares = diagonal.clone()
        # Removed before the squares are summed: subtracting it afterwards cancels where a dimension dominates.
        diagonal.zero_()
        ctx.save_for_backward(z, gram)
        return squares, _sum_of_squares(gram)

    @staticmethod
    def _forward_rows(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        everything = _gathered(z, ctx.samples)
        squares = everything.square().sum(1)
        apart = squares.topk(min(_NUM_APART, z.shape[2]), dim=1).indices.unsqueeze(1)
        loud = everything.gather(2, apart.expand(-1, everything.shape[1], -1))  # [g, n, 4]
        quiet = everything.scatter(2, apart.expand(-1, everything.shape[1], -1), 0.0)
        start = ctx.samples.row_counts[: dist.rank()] if ctx.samples.across else ()
        own = slice(sum(start), sum(start) + z.shape[1])
        kernel = quiet[:, own] @ quiet.mT  # [g, n_local, n]
        (energy,) = _total(ctx.samples, _sum_of_squares(kernel))
        between, within = loud.mT @ quiet, loud.mT @ loud
        within.diagonal(dim1=1, dim2=2).zero_()
        rest = squares.scatter(1, apart[:, 0], 0.0)
        energy = energy - _sum_of_squares(rest) + 2.0 * _sum_of_squares(between) + _sum_of_squares(within)
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
        pulled.addcmul_(z, rest.unsqueeze(1), value=-1.0).mul_(by_energy)
        return pulled.addcmul_(z, by_squares, value=2.0), None


class _CrossMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_a: Tensor, z_b: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        ctx.samples = samples
        ctx.on_rows = _rows_are_cheaper(samples, z_a.shape[2], views=2)
        if not ctx.on_rows:
            (cross,) = _total(samples, z_a.mT @ z_b)
            diagonal = cross.diagonal(dim1=1, dim2=2)
            agreement = diagonal.clone()
            diagonal.zero_()
            ctx.save_for_backward(z_a, z_b, cross)
            return agreement, _sum_of_squares(cross)
        all_a, all_b = _gathered(z_a, samples), _gathered(z_b, samples)
        kernel_a, kernel_b = z_a @ all_a.mT, z_b @ all_b.mT  # [g, n_local, n]
        overlap = torch.linalg.vecdot(kernel_a.flatten(1), kernel_b.flatten(1))
        agreement, energy = _total(samples, torch.linalg.vecdot(z_a, z_b, dim=1), overlap)
        ctx.save_for_backward(z_a, z_b, all_a, all_b, kernel_a, kernel_b, agreement)
        return agreement, energy - _sum_of_squares(agreement)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_agreement, by_energy = (grad.unsqueeze(1) for grad in _total(ctx.samples, *grads))
        by_energy = 2.0 * by_energy.unsqueeze(2)
        if ctx.on_rows:
            z_a, z_b, all_a, all_b, kernel_a, kernel_b, agreement = ctx.saved_tensors
            pulled_a, pulled_b = kernel_b @ all_a, kernel_a @ all_b
            by_agreement = by_agreement - by_energy * agreement.unsqueeze(1)
        else:
            z_a, z_b, cross = ctx.saved_tensors
            pulled_a, pulled_b = z_b @ cross.mT, z_a @ cross
        grad_a = pulled_a.mul_(by_energy).addcmul_(z_b, by_agreement)
        grad_b = pulled_b.mul_(by_energy).addcmul_(z_a, by_agreement)
        return grad_a, grad_b, None
