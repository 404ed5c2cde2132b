"""Second moments of the global batch, with gradients written by hand: what VICReg and Barlow Twins share.

Every sum over samples runs over all processes, and every divisor is the global count, so that processes with
different data, different means and unequal batch sizes give the value and, with gradients averaged by DDP, the
gradient of one process on the joined batch.

The sum of squares of a d x d matrix of second moments is the same as that of the n x n matrix of inner products,
||Z^T Z||_F^2 = ||Z Z^T||_F^2 and ||A^T B||_F^2 = <A A^T, B B^T>, so each function works on the cheaper side: of
the samples (*rows*) or of the dimensions (*columns*).
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Entries of a block that stays in the cache.
_BLOCK = 1 << 16
# Side from which a symmetric product is done in blocks.
_SYMMETRIC = 512


def spread(
    samples: Samples, gamma: float, eps: float, weights: tuple[float, float, float]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Weighted means over the groups: of the distance of the views, of their hinges and of their covariances.

    s = mean over n and d of (z_1 - z_v)^2, summed over the views after the first; v = mean_d relu(gamma -
    sqrt(var_d + eps)) and c = sum_{j != k} Cov_jk^2 / d, summed over the views; var and Cov divided by n - 1.

    n^2 d or n d^2 multiplications a view forward, whichever is fewer, and as many backward. Over several processes
    the d x d sums or the rows travel, whichever are fewer bytes.

    Args:
        samples: v views of g groups.
        gamma: the standard deviation that the hinge asks for.
        eps: added to the variance.
        weights: of s, v and c.

    Returns:
        Three scalars, global.
    """
    function = _SpreadByRows if _rows_are_cheaper(samples, views=1) else _SpreadByColumns
    return _over_groups(samples, function.apply(*samples.views, samples, gamma, eps, weights))


def correlation(
    samples: Samples, divisor: float, eps: float, weights: tuple[float, float]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Weighted means over the groups of sum_j (1 - C_jj)^2 and sum_{j != k} C_jk^2, C = A^T B / n.

    A = (z_a - mean) / sqrt(sum_i (z_a - mean)^2 / divisor + eps), B likewise. 2 n^2 d multiplications forward and
    as many backward, or n d^2 forward and twice that backward, whichever are fewer.

    Args:
        samples: two views of g groups.
        divisor: of the variances.
        eps: added to the variances.
        weights: of both sums.

    Returns:
        Two scalars, global.
    """
    function = _CorrelationByRows if _rows_are_cheaper(samples, views=2) else _CorrelationByColumns
    return _over_groups(samples, function.apply(*samples.views, samples, divisor, eps, weights))


def _over_groups(samples: Samples, terms: Any) -> Any:
    """Terms that hold the share of this process's groups, summed where other processes have other groups."""
    return terms if samples.across or not dist.is_distributed() else tuple(map(dist.all_reduce_sum, terms))


def _rows_are_cheaper(samples: Samples, views: int) -> bool:
    n, d = samples.count, samples.views[0].shape[2]
    # Alone: products, (2 views) of n^2 d against (views + 1) of n d^2. Otherwise bytes: rows of each view or sums.
    return n * views < d if samples.across else n * 2 * views < d * (views + 1)


def _centered(
    samples: Samples, views: Sequence[Tensor]
) -> tuple[Float[Tensor, "v_g n d"], Float[Tensor, "v_g 1 d"]]:
    """The views below each other, each less its mean, and the means.

    The subtraction comes before any square, or float32 loses the variance of data far from zero. No gradient goes
    back through the mean: those below are combinations of centred rows, whose mean is zero already.
    """
    if views[0].numel() <= _BLOCK:  # a handful of calls is what it costs
        stacked = torch.cat(views)
        (sums,) = _total(samples, stacked.sum(1, keepdim=True))
        return stacked.sub_(sums.div_(samples.count)), sums
    (sums,) = _total(samples, torch.cat([view.sum(1, keepdim=True) for view in views]))
    means, (g, n, d) = sums.div_(samples.count), views[0].shape
    stacked = sums.new_empty(len(views) * g, n, d)
    for view, mean, out in zip(views, means.split(g), stacked.split(g)):
        torch.sub(view, mean, out=out)
    return stacked, means


def _row_blocks(x: Float[Tensor, "g n d"]) -> list[slice]:
    """Rows at a time that stay in the cache: a pass over new memory costs more than the arithmetic in it."""
    rows = max(1, _BLOCK // (x.shape[0] * x.shape[2]))
    return [slice(start, start + rows) for start in range(0, max(x.shape[1], 1), rows)]


def _gram(x: Float[Tensor, "g n d"]) -> Float[Tensor, "g n n"]:
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


def _dots(x: Float[Tensor, "g n d"], y: Float[Tensor, "g n d"]) -> Float[Tensor, "g 1 d"]:
    sums = [(x[:, rows] * y[:, rows]).sum(1, keepdim=True) for rows in _row_blocks(x)]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=1).sum(1, keepdim=True)


def _dot(x: Tensor, y: Tensor) -> Float[Tensor, " g"]:
    """Over all but the first axis; a dot product writes nothing of their size."""
    if x.shape[0] == 1:
        return torch.dot(x.reshape(-1), y.reshape(-1)).reshape(1)
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))


def _hinge(ctx: Any, squares: Float[Tensor, "v_g 1 d"], gamma: float, eps: float) -> Float[Tensor, ""]:
    """The weighted hinge, and in `ctx` its slope by the sum of squares."""
    weight = ctx.weights[1] / (squares.shape[2] * ctx.samples.num_groups)
    deviation = (squares / (ctx.samples.count - 1) + eps).sqrt_()
    gap = gamma - deviation
    # d relu(gamma - sqrt(s / f + eps)) / d s = -1 / (2 f sqrt(s / f + eps)) where the gap is open.
    ctx.slope = (gap > 0).to(gap.dtype).div_(deviation).mul_(-weight / (ctx.samples.count - 1))
    return gap.relu_().sum() * weight


def _take(ctx: Any, args: Sequence[Any]) -> tuple[Samples, Sequence[Tensor], float, float]:
    """Split the arguments of a function, and weigh what it gives."""
    *views, ctx.samples, first, second, ctx.weights = args
    return ctx.samples, views, first, second


class _SpreadByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        samples, views, gamma, eps = _take(ctx, args)
        z, means = _centered(samples, views)
        gram, distance = _total(samples, _gram(z.mT), _distance(ctx, z, means))
        diagonal = gram.diagonal(dim1=1, dim2=2)
        hinge = _hinge(ctx, diagonal.unsqueeze(1), gamma, eps)
        # Removed before the squares are summed: subtracting it afterwards cancels where a dimension dominates.
        diagonal.zero_()
        ctx.save_for_backward(z, means, ctx.slope, gram)
        return distance, hinge, _dot(gram, gram).sum() * _covariance_weight(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, means, slope, gram = ctx.saved_tensors
        by_distance, by_hinge, by_energy = _upstream(ctx, grads)
        grad = torch.bmm(z, gram * by_energy)
        _add_slopes(ctx, grad, z, means, slope * by_hinge, by_distance)
        return *grad.chunk(len(ctx.samples.views)), None, None, None, None


class _SpreadByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        samples, views, gamma, eps = _take(ctx, args)
        z, means = _centered(samples, views)
        distance = _distance(ctx, z, means)
        everything = _gathered(z, samples)
        squares = _dots(everything, everything)
        hinge = _hinge(ctx, squares, gamma, eps)
        apart = squares.topk(min(_NUM_APART, z.shape[2]), dim=2).indices
        columns = apart.expand(-1, everything.shape[1], -1)
        loud = everything.gather(2, columns)  # [v * g, n, 4]
        quiet = everything.scatter_(2, columns, 0.0)  # put back below
        start = sum(samples.row_counts[: dist.rank()]) if samples.across else 0
        own = slice(start, start + z.shape[1])
        kernel = torch.bmm(quiet[:, own], quiet.mT) if samples.across else _gram(quiet)  # [v * g, n_local, n]
        energy, distance = _total(samples, _dot(kernel, kernel).sum(), distance)
        between, within = torch.bmm(loud.mT, quiet), torch.bmm(loud.mT, loud)
        within.diagonal(dim1=1, dim2=2).zero_()
        rest = squares.scatter_(2, apart, 0.0)
        everything.scatter_(2, columns, loud)
        energy = (
            energy - _dot(rest, rest).sum() + 2.0 * _dot(between, between).sum() + _dot(within, within).sum()
        )
        ctx.save_for_backward(
            z, means, ctx.slope, kernel, everything, loud[:, own], between, within, rest, apart
        )
        return distance, hinge, energy * _covariance_weight(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, means, slope, kernel, everything, loud, between, within, rest, apart = ctx.saved_tensors
        by_distance, by_hinge, by_energy = _upstream(ctx, grads)
        # The weight goes into the small factors.
        loud = loud * by_energy
        grad = torch.bmm(kernel * by_energy, everything).baddbmm_(loud, between)
        grad.scatter_add_(2, apart.expand(-1, z.shape[1], -1), torch.bmm(loud, within))
        _add_slopes(ctx, grad, z, means, slope * by_hinge - by_energy * rest, by_distance)
        return *grad.chunk(len(ctx.samples.views)), None, None, None, None


def _covariance_weight(ctx: Any) -> float:
    samples = ctx.samples
    return ctx.weights[2] / ((samples.count - 1) ** 2 * samples.views[0].shape[2] * samples.num_groups)


def _distance_weight(ctx: Any) -> float:
    return ctx.weights[0] / (ctx.samples.count * ctx.samples.views[0].shape[2] * ctx.samples.num_groups)


def _distance(ctx: Any, z: Float[Tensor, "v_g n d"], means: Float[Tensor, "v_g 1 d"]) -> Float[Tensor, ""]:
    """Of this process: the weighted sum of (z_1 - z_v)^2 over the views after the first."""
    first, *others = z.chunk(len(ctx.samples.views))
    mean, *other_means = means.chunk(len(ctx.samples.views))
    total = z.new_zeros(())
    if not ctx.weights[0]:
        return total
    for other, other_mean in zip(others, other_means):
        shift = mean - other_mean
        for rows in _row_blocks(first):
            difference = (first[:, rows] - other[:, rows]).add_(shift).flatten()
            total = total + torch.dot(difference, difference)
    return total * _distance_weight(ctx)


def _upstream(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What each term is worth in the loss, times the factor of its derivative by centred rows; scalars."""
    by_distance, by_hinge, by_covariance = _total(ctx.samples, *grads)
    return (
        by_distance * (2.0 * _distance_weight(ctx)),
        by_hinge,
        by_covariance * (4.0 * _covariance_weight(ctx)),
    )


def _add_slopes(ctx: Any, grad: Tensor, z: Tensor, means: Tensor, slope: Tensor, by_distance: Tensor) -> None:
    """Add to the gradient what hinge, diagonal and distance give: grad += slope z + by_distance (z_1 - z_v), ..."""
    num_views = len(ctx.samples.views)
    g = len(z) // num_views
    for rows in _row_blocks(grad):
        part, x = grad[:, rows], z[:, rows]
        part.addcmul_(x, slope)
        for view in range(1, num_views if ctx.weights[0] else 1):
            other = slice(view * g, (view + 1) * g)
            difference = (x[:g] - x[other]).add_(means[:g] - means[other]).mul_(by_distance)
            part[:g].add_(difference)
            part[other].sub_(difference)


class _CorrelationByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        samples, views, ctx.divisor, eps = _take(ctx, args)
        z, _ = _centered(samples, views)
        z_a, z_b = z.chunk(2)
        off, squares = _total(samples, torch.bmm(z_a.mT, z_b), _dots(z, z))
        scale = (squares / ctx.divisor + eps).rsqrt_()  # [2 g, 1, d]
        scale_a, scale_b = scale.chunk(2)
        # The d x d product is standardised, not the n x d rows.
        off.mul_((scale_a / samples.count).mT).mul_(scale_b)
        diagonal = off.diagonal(dim1=1, dim2=2)
        on, gap = diagonal.clone(), diagonal - 1.0
        diagonal.zero_()
        ctx.save_for_backward(z, off, on, gap, scale)
        return _weighted(ctx, _dot(gap, gap), _dot(off, off))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, off, on, gap, scale = ctx.saved_tensors
        (z_a, z_b), (scale_a, scale_b), n = z.chunk(2), scale.chunk(2), ctx.samples.count
        by_on, by_off = _twice_upstream(ctx, grads)
        slope = gap.unsqueeze(1) * by_on  # by the diagonal of C
        # Along each standardised dimension the gradient does not change the loss: sum_i dA_ij A_ij, from C alone.
        squared = off.square()
        aligned = slope * on.unsqueeze(1)
        along_a = (squared.sum(2).unsqueeze(1) * by_off).add_(aligned).mul_(scale_a.square())
        along_b = (squared.sum(1, keepdim=True) * by_off).add_(aligned).mul_(scale_b.square())
        slopes = torch.mul(off, (by_off / n * scale_a).mT, out=squared).mul_(scale_b)
        slopes.diagonal(dim1=1, dim2=2).copy_((slope * scale_a).mul_(scale_b).div_(n)[:, 0])
        grad_a = torch.bmm(z_b, slopes.mT).addcmul_(z_a, along_a, value=-1.0 / ctx.divisor)
        grad_b = torch.bmm(z_a, slopes).addcmul_(z_b, along_b, value=-1.0 / ctx.divisor)
        return grad_a, grad_b, None, None, None, None


def _weighted(ctx: Any, on: Float[Tensor, " g"], off: Float[Tensor, " g"]) -> tuple[Tensor, Tensor]:
    by_on, by_off = (weight / ctx.samples.num_groups for weight in ctx.weights)
    return on.sum() * by_on, off.sum() * by_off


def _twice_upstream(ctx: Any, grads: Sequence[Tensor]) -> list[Tensor]:
    """Twice what each term is worth in the loss, for the derivatives of squares; scalars."""
    totals = _total(ctx.samples, *grads)
    return [grad * (2.0 * weight / ctx.samples.num_groups) for grad, weight in zip(totals, ctx.weights)]


class _CorrelationByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        samples, views, ctx.divisor, eps = _take(ctx, args)
        n = samples.count
        unit, _ = _centered(samples, views)  # [2 g, n_local, d]
        (squares,) = _total(samples, _dots(unit, unit))
        scale = (squares / ctx.divisor + eps).rsqrt_()  # [2 g, 1, d]
        unit.mul_(scale)
        everything = _gathered(unit, samples)
        kernel = torch.bmm(unit, everything.mT) if samples.across else _gram(unit)  # [2 g, n_local, n]
        on, energy = _total(samples, _dots(*unit.chunk(2)), _dot(*kernel.chunk(2)))
        on = on / n
        gap = on - 1.0
        ctx.save_for_backward(unit, everything, kernel, on, gap, scale)
        return _weighted(ctx, _dot(gap, gap), energy / n**2 - _dot(on, on))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        samples, n = ctx.samples, ctx.samples.count
        unit, everything, kernel, on, gap, scale = ctx.saved_tensors
        by_on, by_off = _twice_upstream(ctx, grads)
        slope = by_on * gap - by_off * on  # by the diagonal of C, which the energy of all of C holds too
        weight = by_off / n**2
        grad = torch.bmm(
            torch.cat(kernel.chunk(2)[::-1]), everything
        )  # each view by the other's inner products
        (along,) = _total(samples, _dots(grad, unit))
        along = weight * along + (slope * on).repeat(2, 1, 1)
        scale_by, along, slope = (
            scale * weight,
            along * scale / -ctx.divisor,
            scale * (slope / n).repeat(2, 1, 1),
        )
        half = len(unit) // 2
        for rows in _row_blocks(grad):
            part, x = grad[:, rows], unit[:, rows]
            part.mul_(scale_by).addcmul_(x, along)
            part[:half].addcmul_(x[half:], slope[:half])
            part[half:].addcmul_(x[:half], slope[half:])
        return *grad.chunk(2), None, None, None, None
