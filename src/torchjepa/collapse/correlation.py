"""The cross-correlation of two standardised views, with gradients by hand: Barlow Twins' terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse import moments
from torchjepa.collapse.samples import Samples


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
    view = samples.views[0]
    if moments.rows_are_cheaper(samples, views=2):
        function: Any = _CorrelationByRows
    elif view.shape[0] == 1 and view.numel() <= moments.SMALL and not samples.across:
        function = _CorrelationOfFew
    else:
        function = _CorrelationByColumns
    return moments.over_groups(samples, function.apply(*samples.views, samples, divisor, eps, weights))


class _CorrelationByColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        samples, views, ctx.divisor, eps = moments.take(ctx, args)
        z, _ = moments.centered(samples, views)
        z_a, z_b = z.chunk(2)
        off, squares = moments.total(samples, torch.bmm(z_a.mT, z_b), moments.dots(z, z))
        scale = (squares / ctx.divisor + eps).rsqrt_()  # [2 g, 1, d]
        scale_a, scale_b = scale.chunk(2)
        # The d x d product is standardised, not the n x d rows.
        off.mul_((scale_a / samples.count).mT).mul_(scale_b)
        diagonal = off.diagonal(dim1=1, dim2=2)
        on, gap = diagonal.clone(), diagonal - 1.0
        diagonal.zero_()
        ctx.save_for_backward(z, off, on, gap, scale)
        return _weighted(ctx, moments.dot(gap, gap), moments.dot(off, off))

    @staticmethod
    @moments.once_differentiable
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


class _CorrelationOfFew(torch.autograd.Function):
    """The same for one small group on one process, where calls cost more than arithmetic.

    torch's batch norm standardises, as in the published code; at a mean of 1,000 deviations it has 4 digits left in
    float32, where the other two have 6.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        samples, views, divisor, eps = moments.take(ctx, args)
        n = samples.count
        # 1 / sqrt(S / divisor + eps) = sqrt(divisor / n) / sqrt(S / n + eps divisor / n)
        ctx.factor, ctx.eps = divisor / n**2, eps * divisor / n
        z_a, z_b = (view[0] for view in views)
        a, mean_a, scale_a = torch.native_batch_norm(z_a, None, None, None, None, True, 0.0, ctx.eps)
        b, mean_b, scale_b = torch.native_batch_norm(z_b, None, None, None, None, True, 0.0, ctx.eps)
        off = torch.mm(a.T, b).mul_(ctx.factor)
        diagonal = off.diagonal()
        gap = diagonal - 1.0
        diagonal.zero_()
        ctx.save_for_backward(z_a, z_b, a, b, mean_a, mean_b, scale_a, scale_b, off, gap)
        flat = off.view(-1)
        ctx.by = [weight / samples.num_groups for weight in ctx.weights]
        return torch.dot(gap, gap) * ctx.by[0], torch.dot(flat, flat) * ctx.by[1]

    @staticmethod
    @moments.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z_a, z_b, a, b, mean_a, mean_b, scale_a, scale_b, off, gap = ctx.saved_tensors
        factor = 2.0 * ctx.factor
        slopes = off * (grads[1] * (factor * ctx.by[1]))
        slopes.diagonal().copy_(gap * (grads[0] * (factor * ctx.by[0])))
        pulled = torch.mm(b, slopes.T), torch.mm(a, slopes)
        statistics = (z_a, mean_a, scale_a), (z_b, mean_b, scale_b)
        grad_a, grad_b = (
            torch.ops.aten.native_batch_norm_backward(
                pull, z, None, None, None, mean, scale, True, ctx.eps, [True, False, False]
            )[0].unsqueeze(0)
            for pull, (z, mean, scale) in zip(pulled, statistics)
        )
        return grad_a, grad_b, None, None, None, None


def _weighted(ctx: Any, on: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted means over the groups of two numbers a group."""
    by_on, by_off = (weight / ctx.samples.num_groups for weight in ctx.weights)
    return on.sum() * by_on, off.sum() * by_off


def _twice_upstream(ctx: Any, grads: Sequence[Tensor]) -> list[Tensor]:
    """Twice what each term is worth in the loss, for the derivatives of squares; scalars."""
    totals = moments.total(ctx.samples, *grads)
    return [grad * (2.0 * weight / ctx.samples.num_groups) for grad, weight in zip(totals, ctx.weights)]


class _CorrelationByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        samples, views, ctx.divisor, eps = moments.take(ctx, args)
        n = samples.count
        unit, _ = moments.centered(samples, views)  # [2 g, n_local, d]
        (squares,) = moments.total(samples, moments.dots(unit, unit))
        scale = (squares / ctx.divisor + eps).rsqrt_()  # [2 g, 1, d]
        unit.mul_(scale)
        everything = moments.gathered(unit, samples)
        kernel = torch.bmm(unit, everything.mT) if samples.across else moments.gram(unit)  # [2 g, n_local, n]
        on, energy = moments.total(samples, moments.dots(*unit.chunk(2)), moments.dot(*kernel.chunk(2)))
        on = on / n
        gap = on - 1.0
        ctx.save_for_backward(unit, everything, kernel, on, gap, scale)
        return _weighted(ctx, moments.dot(gap, gap), energy / n**2 - moments.dot(on, on))

    @staticmethod
    @moments.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        samples, n = ctx.samples, ctx.samples.count
        unit, everything, kernel, on, gap, scale = ctx.saved_tensors
        by_on, by_off = _twice_upstream(ctx, grads)
        slope = by_on * gap - by_off * on  # by the diagonal of C, which the energy of all of C holds too
        weight = by_off / n**2
        others = torch.cat(kernel.chunk(2)[::-1])  # each view by the other's inner products
        grad = torch.bmm(others, everything)
        (along,) = moments.total(samples, moments.dots(grad, unit))
        along = weight * along + (slope * on).repeat(2, 1, 1)
        scale_by, along = scale * weight, along * scale / -ctx.divisor
        slope = scale * (slope / n).repeat(2, 1, 1)
        half = len(unit) // 2
        for rows in moments.row_blocks(grad):
            part, x = grad[:, rows], unit[:, rows]
            part.mul_(scale_by).addcmul_(x, along)
            part[:half].addcmul_(x[half:], slope[:half])
            part[half:].addcmul_(x[:half], slope[half:])
        return *grad.chunk(2), None, None, None, None
