"""Second moments of the global batch: what VICReg (`spread.py`) and Barlow Twins (`correlation.py`) share.

Every sum over samples runs over all processes, and every divisor is the global count, so that processes with
different data, different means and unequal batch sizes give the value and, with gradients averaged by DDP, the
gradient of one process on the joined batch.

The sum of squares of a d x d matrix of second moments is the same as that of the n x n matrix of inner products,
||Z^T Z||_F^2 = ||Z Z^T||_F^2 and ||A^T B||_F^2 = <A A^T, B B^T>, so each loss works on the cheaper side: of the samples
(*rows*) or of the dimensions (*columns*). Gradients are written by hand: fewer products than autograd would do,
and nothing of size d x d where samples are fewer than dimensions and these more than 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import function

from torchjepa import dist
from torchjepa.collapse.samples import Samples

# torch types its decorator so that no override of `backward` fits.
once_differentiable: Any = function.once_differentiable
# Entries of a block that stays in the cache.
_BLOCK = 1 << 18
# Entries of a view that costs more in calls than in arithmetic.
SMALL = 1 << 16
# Side from which a symmetric product is done in blocks.
_SYMMETRIC = 256
# Up to so many dimensions, where a d x d matrix fits the cache, the columns' fewer calls are cheaper on one process.
_FEW_DIMENSIONS = 256


def rows_are_cheaper(samples: Samples, views: int) -> bool:
    """Whether to work with inner products of samples rather than of dimensions.

    Alone by the multiplications: for each of two passes, `views` products of n^2 d against (views + 1) / 2 of n d^2.
    On several processes by the bytes that travel: the rows of each view, or the d x d sums.

    Args:
        samples: the views.
        views: the number of views that one product joins, 1 or 2.
    """
    n, d = samples.count, samples.views[0].shape[2]
    if samples.across:
        return n * views < d
    return d > _FEW_DIMENSIONS and n * 2 * views < d * (views + 1)


def over_groups(samples: Samples, terms: Any) -> Any:
    """Terms that hold the share of this process's groups, summed where other processes have other groups."""
    return terms if samples.across or not dist.is_distributed() else tuple(map(dist.all_reduce_sum, terms))


def take(ctx: Any, args: Sequence[Any]) -> tuple[Samples, Sequence[Tensor], float, float]:
    """Split the arguments of a function, and weigh what it gives."""
    *views, ctx.samples, first, second, ctx.weights = args
    return ctx.samples, views, first, second


def centered(
    samples: Samples, views: Sequence[Tensor]
) -> tuple[Float[Tensor, "v_g n d"], Float[Tensor, "v_g 1 d"]]:
    """The views below each other, each less its mean, and the means.

    The subtraction comes before any square, or float32 loses the variance of data far from zero. No gradient goes
    back through the mean: those below are combinations of centred rows, whose mean is zero already.
    """
    if views[0].numel() <= SMALL:  # a handful of calls is what it costs
        stacked = torch.cat(list(views))
        (sums,) = total(samples, stacked.sum(1, keepdim=True))
        return stacked.sub_(sums.div_(samples.count)), sums
    (sums,) = total(samples, torch.cat([view.sum(1, keepdim=True) for view in views]))
    means, (g, n, d) = sums.div_(samples.count), views[0].shape
    stacked = sums.new_empty(len(views) * g, n, d)
    for view, mean, out in zip(views, means.split(g), stacked.split(g)):
        torch.sub(view, mean, out=out)
    return stacked, means


def row_blocks(x: Float[Tensor, "g n d"]) -> list[slice]:
    """Rows at a time that stay in the cache: a pass over new memory costs more than the arithmetic in it."""
    rows = max(1, _BLOCK // (x.shape[0] * x.shape[2]))
    return [slice(start, start + rows) for start in range(0, max(x.shape[1], 1), rows)]


def gram(x: Float[Tensor, "g n d"]) -> Float[Tensor, "g n n"]:
    """The product x x^T; above some size in blocks, so that a symmetric product costs little more than half."""
    n = x.shape[1]
    if n < _SYMMETRIC or x.device.type != "cpu":
        return torch.bmm(x, x.mT)
    gram = x.new_empty(x.shape[0], n, n)
    step = -(-n // 4)
    for start in range(0, n, step):
        stop = min(start + step, n)
        gram[:, start:, start:stop] = x[:, start:] @ x[:, start:stop].mT
        gram[:, start:stop, stop:] = gram[:, stop:, start:stop].mT
    return gram


def gathered(z: Tensor, samples: Samples) -> Tensor:
    """The rows of all processes `[g, n, d]`, without graph."""
    if not samples.across:
        return z
    most = max(samples.row_counts)
    padded = torch.nn.functional.pad(z, (0, 0, 0, most - z.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in samples.row_counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:, :n] for part, n in zip(parts, samples.row_counts)], dim=1)


def total(samples: Samples, *parts: Tensor) -> list[Tensor]:
    """Sums over the processes of several tensors, in one message."""
    if not samples.across:
        return list(parts)
    flat = torch.cat([part.reshape(-1) for part in parts])
    torch.distributed.all_reduce(flat)
    return [piece.view_as(part) for piece, part in zip(flat.split([p.numel() for p in parts]), parts)]


def dots(x: Float[Tensor, "g n d"], y: Float[Tensor, "g n d"]) -> Float[Tensor, "g 1 d"]:
    """The sum over rows of x * y, without a tensor of their size."""
    blocks = row_blocks(x)
    if len(blocks) == 1:
        return (x * y).sum(1, keepdim=True)
    scratch, sums = torch.empty_like(x[:, blocks[0]]), x.new_empty(x.shape[0], len(blocks), x.shape[2])
    for index, rows in enumerate(blocks):
        product = torch.mul(x[:, rows], y[:, rows], out=scratch[:, : x[:, rows].shape[1]])
        torch.sum(product, 1, out=sums[:, index])
    return sums.sum(1, keepdim=True)


def dot(x: Tensor, y: Tensor) -> Float[Tensor, " g"]:
    """Over all but the first axis; a dot product writes nothing of their size."""
    if x.shape[0] == 1:
        return torch.dot(x.reshape(-1), y.reshape(-1)).reshape(1)
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))
