"""Invariance, hinge on the standard deviations and squared covariances, with gradients by hand: VICReg's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist
from torchjepa.collapse import moments
from torchjepa.collapse.samples import Samples

# Dimensions that the rows side treats one by one. Their squared variance would otherwise be subtracted from a sum
# of which it is almost all, and float32 would lose what the other dimensions contribute.
_NUM_APART = 4


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
    function = _SpreadByRows if moments.rows_are_cheaper(samples, views=1) else _SpreadByColumns
    return moments.over_groups(samples, function.apply(*samples.views, samples, gamma, eps, weights))


def _hinge(
    ctx: Any, squares: Float[Tensor, "v_g 1 d"], gamma: float, eps: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "v_g 1 d"]]:
    """The weighted hinge, and twice its slope by the sum of squares: the factor of centred rows in the gradient."""
    weight = ctx.weights[1] / (squares.shape[2] * ctx.samples.num_groups)
    deviation = (squares / (ctx.samples.count - 1) + eps).sqrt_()
    gap = gamma - deviation
    # d relu(gamma - sqrt(s / f + eps)) / d s = -1 / (2 f sqrt(s / f + eps)) where the gap is open.
    slope = (gap > 0).to(gap.dtype).div_(deviation).mul_(-weight / (ctx.samples.count - 1))
    return gap.relu_().sum() * weight, slope


class _SpreadByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        samples, views, gamma, eps = moments.take(ctx, args)
        z, means = moments.centered(samples, views)
        gram, distance = moments.total(samples, moments.gram(z.mT), _distance(ctx, z, means))
        diagonal = gram.diagonal(dim1=1, dim2=2)
        hinge, slope = _hinge(ctx, diagonal.unsqueeze(1), gamma, eps)
        # Removed before the squares are summed: subtracting it afterwards cancels where a dimension dominates.
        diagonal.zero_()
        ctx.save_for_backward(z, means, slope, gram)
        return distance, hinge, moments.dot(gram, gram).sum() * _covariance_weight(ctx)

    @staticmethod
    @moments.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, means, slope, gram = ctx.saved_tensors
        by_distance, by_hinge, by_energy = _upstream(ctx, grads)
        grad = torch.bmm(z, gram * by_energy)
        _add_slopes(ctx, grad, z, means, slope * by_hinge, by_distance)
        return *grad.chunk(len(ctx.samples.views)), None, None, None, None


class _SpreadByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        samples, views, gamma, eps = moments.take(ctx, args)
        z, means = moments.centered(samples, views)
        distance = _distance(ctx, z, means)
        everything = moments.gathered(z, samples)
        squares = moments.dots(everything, everything)
        hinge, slope = _hinge(ctx, squares, gamma, eps)
        apart = squares.topk(min(_NUM_APART, z.shape[2]), dim=2).indices
        columns = apart.expand(-1, everything.shape[1], -1)
        loud = everything.gather(2, columns)  # [v * g, n, 4]
        quiet = everything.scatter_(2, columns, 0.0)  # put back below
        start = sum(samples.row_counts[: dist.rank()]) if samples.across else 0
        own = slice(start, start + z.shape[1])
        # [v * g, n_local, n]
        kernel = torch.bmm(quiet[:, own], quiet.mT) if samples.across else moments.gram(quiet)
        energy, distance = moments.total(samples, moments.dot(kernel, kernel).sum(), distance)
        between, within = torch.bmm(loud.mT, quiet), torch.bmm(loud.mT, loud)
        within.diagonal(dim1=1, dim2=2).zero_()
        rest = squares.scatter_(2, apart, 0.0)
        everything.scatter_(2, columns, loud)
        apart_energy = 2.0 * moments.dot(between, between) + moments.dot(within, within)
        energy = energy + (apart_energy - moments.dot(rest, rest)).sum()
        small = (slope, kernel, loud[:, own], between, within, rest, apart)
        ctx.save_for_backward(z, means, everything, *small)
        return distance, hinge, energy * _covariance_weight(ctx)

    @staticmethod
    @moments.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, means, everything, slope, kernel, loud, between, within, rest, apart = ctx.saved_tensors
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
    blocks = moments.row_blocks(first)
    scratch = torch.empty_like(first[:, blocks[0]])
    for other, other_mean in zip(others, other_means):
        shift = mean - other_mean
        for rows in blocks:
            part = scratch[:, : first[:, rows].shape[1]]
            difference = torch.sub(first[:, rows], other[:, rows], out=part).add_(shift).flatten()
            total = total + torch.dot(difference, difference)
    return total * _distance_weight(ctx)


def _upstream(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What each term is worth in the loss, times the factor of its derivative by centred rows; scalars."""
    by_distance, by_hinge, by_covariance = moments.total(ctx.samples, *grads)
    return (
        by_distance * (2.0 * _distance_weight(ctx)),
        by_hinge,
        by_covariance * (4.0 * _covariance_weight(ctx)),
    )


def _add_slopes(ctx: Any, grad: Tensor, z: Tensor, means: Tensor, slope: Tensor, by_distance: Tensor) -> None:
    """Add to the gradient what hinge, diagonal and distance give: grad += slope z + by_distance (z_1 - z_v), ..."""
    num_views = len(ctx.samples.views)
    g = len(z) // num_views
    blocks = moments.row_blocks(grad)
    scratch = torch.empty_like(grad[:g, blocks[0]])
    for rows in blocks:
        part, x = grad[:, rows], z[:, rows]
        part.addcmul_(x, slope)
        for view in range(1, num_views if ctx.weights[0] else 1):
            other = slice(view * g, (view + 1) * g)
            difference = torch.sub(x[:g], x[other], out=scratch[:, : x.shape[1]])
            difference.add_(means[:g] - means[other]).mul_(by_distance)
            part[:g].add_(difference)
            part[other].sub_(difference)
