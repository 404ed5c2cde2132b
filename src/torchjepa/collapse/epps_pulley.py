"""The Epps-Pulley statistic of many one-dimensional slices: characteristic functions by matrix products.

The knots are equidistant, t_k = k dt, so the sums over samples of cos(t_k x) and sin(t_k x) are those of cos(k a)
and sin(k a) of one angle a = dt x. With k = A B + b, B = 2 h + 1, |b| <= h, the addition theorem makes every one of
them a sum of products of a *coarse* feature, 1, cos(A B a) or sin(A B a), and a *fine* one, 1, cos(b a) or sin(b a):
one small matrix product over the samples. Seventeen knots take 10 transcendental functions of a sample in place of
34, and nothing of size samples x slices x knots is stored. The derivative in a is bilinear in the same features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import rng
from torchjepa.collapse.moments import once_differentiable
from torchjepa.collapse.samples import Samples

# Elements of a block of angles: on a CPU, for each thread, so that its 12 features stay in a core's cache.
_BLOCK_CPU, _BLOCK_GPU = 2**14, 2**20
# Angles up to which calls cost more than arithmetic.
FEW = 2**13
# Entries of the slices that are drawn at a time, few enough for torch to stay in one thread, and that are widened for
# a product at a time.
_DRAWN, _WIDENED = 2**15, 2**17


@dataclass(frozen=True)
class EppsPulley:
    """The statistic T = n sum_k w_k ((mean cos(t_k x) - phi(t_k))^2 + (mean sin(t_k x))^2) of samples x.

    phi(t) = exp(-t^2 / 2), t_k = linspace(0, t_max, num_knots), w = phi * [dt, 2 dt, ..., 2 dt, dt]: the trapezoid
    rule on [-t_max, t_max], both halves at once.

    Args:
        num_knots: number of knots.
        t_max: the last knot.
    """

    num_knots: int
    t_max: float

    @property
    def dt(self) -> float:
        """The distance of two knots."""
        return self.t_max / (self.num_knots - 1)

    @property
    def phi(self) -> Float[Tensor, " k"]:
        """The characteristic function of N(0, 1) at the knots, float64."""
        return torch.linspace(0.0, self.t_max, self.num_knots, dtype=torch.float64).square().mul(-0.5).exp()

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """The weight of every knot, float64."""
        trapezoid = torch.full((self.num_knots,), 2.0 * self.dt, dtype=torch.float64)
        trapezoid[[0, -1]] = self.dt
        return trapezoid * self.phi

    @property
    def gaussian_value(self) -> float:
        """The expectation of T for samples of N(0, 1), sum_k w_k (1 - phi(t_k)^2), whatever their number."""
        return float(self.weights @ (1.0 - self.phi.square()))

    @lru_cache(maxsize=16)  # noqa: B019 (a frozen value of two numbers)
    def tables(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the sums are compared with, the weights (both cos, then sin), k, and the expansion's matrix."""
        target = torch.cat([self.phi, torch.zeros_like(self.phi)])
        k = torch.arange(self.num_knots, dtype=torch.float64)
        tables = (target, self.weights.repeat(2), k, expansion(self.num_knots)[2])
        return tuple(table.to(device, dtype) for table in tables)  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _normal_quantiles(device: torch.device) -> Float[Tensor, 65536]:
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(middles).to(device, torch.float16)


def draw_slices(key: tuple[int, int], d: int, num_slices: int, device: torch.device) -> Float[Tensor, "d s"]:
    """Draw the slices of a call, not yet of unit length: independent entries of N(0, 1).

    16 random bits choose one of 65,536 quantiles, rounded to 11 bits: the same numbers on every process, device and
    version of torch, in less than half the time of `torch.randn` and half the memory.

    Args:
        key: the regularizer's seed, and the number of calls before this one.
        d: dimension of the embedding.
        num_slices: number of slices s.
        device: where they are needed; the bits come from the CPU.

    Returns:
        `[d, s]`, float16.
    """
    stream = np.random.SFC64(rng.derive_seed(key[0], "sigreg", key[1]))
    quantiles = _normal_quantiles(device)
    slices = torch.empty(d * num_slices, dtype=torch.float16, device=device)
    for entries in slices.split(_DRAWN):
        bits = stream.random_raw(-(-len(entries) // 4)).view(np.int16)[: len(entries)]
        index = torch.from_numpy(bits).to(device).int().add_(2**15)
        torch.index_select(quantiles, 0, index, out=entries)
    return slices.view(d, num_slices)


@lru_cache(maxsize=8)
def expansion(num_knots: int) -> tuple[int, int, Tensor]:
    """Steps h and m of the fine and coarse features; the matrix from their products to cos(k a) and sin(k a).

    Rows: cos of every knot, then sin. Columns: coarse feature times fine feature, coarse-major, each ordered 1,
    cos, sin. Of all h that reach the last knot the one with the fewest features.
    """
    last = num_knots - 1
    steps = {h: max(0, math.ceil((last - h) / (2 * h + 1))) for h in range(num_knots)}
    h = min(steps, key=lambda h: h + steps[h])
    m, fine = steps[h], 2 * h + 1
    matrix = torch.zeros(2, num_knots, 2 * m + 1, fine, dtype=torch.float64)
    for k in range(num_knots):
        coarse_step = (k + h) // fine
        b = k - coarse_step * fine
        sign = 1.0 if b > 0 else -1.0
        matrix[0, k, coarse_step, abs(b)] = 1.0
        if b:
            matrix[1, k, coarse_step, h + abs(b)] = sign
        if coarse_step:
            matrix[1, k, m + coarse_step, abs(b)] = 1.0
        if coarse_step and b:
            matrix[0, k, m + coarse_step, h + abs(b)] = -sign
    return h, m, matrix.reshape(2 * num_knots, -1)


Features = Iterable[tuple[slice, Float[Tensor, "r p n"], Float[Tensor, "r q n"]]]


def _features(angles: Float[Tensor, "r n"], k: Float[Tensor, " k"]) -> Features:
    """Blocks of rows with their coarse and fine features; a block's features are overwritten by the next's."""
    h, m, _ = expansion(len(k))
    r, n = angles.shape
    size = _BLOCK_CPU * torch.get_num_threads() if angles.device.type == "cpu" else _BLOCK_GPU
    block = min(r, max(1, size // max(n, 1)))
    kinds = [(m, k[1 : m + 1] * (2 * h + 1)), (h, k[1 : h + 1])]
    buffers = [angles.new_ones((2 * num + 1) * block * n) for num, _ in kinds]
    scratch = angles.new_empty(max(m, h) * block * n)
    for start in range(0, r, block):
        part = angles[start : start + block]
        features = []
        for buffer, (num, multipliers) in zip(buffers, kinds):
            # Feature-major: a vector library takes whole runs of memory.
            filled = buffer[: (2 * num + 1) * part.numel()].view(2 * num + 1, *part.shape)
            multiples = scratch[: num * part.numel()].view(num, *part.shape)
            torch.mul(multipliers.view(-1, 1, 1), part, out=multiples)
            torch.cos(multiples, out=filled[1 : num + 1])
            torch.sin(multiples, out=filled[num + 1 :])
            features.append(filled.transpose(0, 1))
        yield slice(start, start + block), features[0], features[1]


def _kept_features(angles: Float[Tensor, "r n"], k: Float[Tensor, " k"]) -> Features | None:
    """The features where they are few enough to be kept for the backward pass."""
    return list(_features(angles, k)) if 0 < angles.numel() <= _BLOCK_CPU else None


def knot_sums(features: Features, matrix: Float[Tensor, "2*k p*q"]) -> Float[Tensor, "r 2*k"]:
    """The sums over samples of cos(k a), k = 0, 1, ..., then of sin(k a).

    Args:
        features: of the angles.
        matrix: of the expansion.
    """
    parts = [torch.bmm(coarse, fine.mT).flatten(1) for _, coarse, fine in features]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]) @ matrix.T


def knot_slopes(
    features: Features, by_sums: Float[Tensor, "r 2*k"], k: Float[Tensor, " k"], matrix: Tensor, out: Tensor
) -> None:
    """The gradient in the angles, given that in their knot sums: sum_k k (-c_k sin(k a) + s_k cos(k a)).

    Args:
        features: of the angles.
        by_sums: the gradients c_k, then s_k.
        k: 0, 1, ...
        matrix: of the expansion.
        out: where the gradient goes, `[r, n]`.
    """
    by_cos, by_sin = by_sums.chunk(2, dim=1)
    h, m, _ = expansion(len(k))
    table = (torch.cat([k * by_sin, -k * by_cos], dim=1) @ matrix).view(-1, 2 * m + 1, 2 * h + 1)
    for rows, coarse, fine in features:
        torch.sum(torch.bmm(table[rows], fine).mul_(coarse), dim=1, out=out[rows])


class SlicedStatistic(torch.autograd.Function):
    """The mean over views and slices of the Epps-Pulley statistic, one number a group."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, test: EppsPulley, slices: Tensor, samples: Samples, *views: Tensor
    ) -> Tensor:
        g, n, _ = views[0].shape
        num_slices = slices.shape[1]
        target, weights, k, matrix = test.tables(views[0].dtype, views[0].device)
        x = views[0].new_zeros(len(views), g, num_slices, n)
        squares = x.new_zeros(num_slices)
        for dims, block in _widened(slices, x.dtype):
            squares += torch.linalg.vecdot(block, block, dim=0)
            for along, z in zip(x, views):
                along.baddbmm_(block.T.expand(g, -1, -1), z[..., dims].mT)
        scale = test.dt * squares.rsqrt()
        angles = x.mul_(scale.unsqueeze(1)).view(len(views) * g * num_slices, n)
        ctx.features = _kept_features(angles, k)
        sums = knot_sums(ctx.features or _features(angles, k), matrix)
        if samples.across:
            torch.distributed.all_reduce(sums)
        excess = sums / samples.count - target
        ctx.save_for_backward(slices, angles, scale, excess)
        ctx.test, ctx.across, ctx.shape = test, samples.across, (len(views), g, n)
        statistic = samples.count * (excess.square() @ weights)
        return statistic.view(len(views), g, num_slices).mean((0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        slices, angles, scale, excess = ctx.saved_tensors
        (num_views, g, n), (d, num_slices) = ctx.shape, slices.shape
        _, weights, k, matrix = ctx.test.tables(angles.dtype, angles.device)
        grad = grads[0].clone()
        if ctx.across:
            torch.distributed.all_reduce(grad)
        pull = (2.0 / (num_views * num_slices)) * grad.view(1, g, 1) * scale
        by_sums = excess * weights * pull.expand(num_views, -1, -1).reshape(-1, 1)
        by_x = angles.new_empty(num_views, g, num_slices, n)
        knot_slopes(ctx.features or _features(angles, k), by_sums, k, matrix, out=by_x.view_as(angles))
        by_views = [by_x.new_empty(g, n, d) if need else None for need in ctx.needs_input_grad[3:]]
        for dims, block in _widened(slices, by_x.dtype):
            for along, by_view in zip(by_x, by_views):
                if by_view is not None:
                    torch.bmm(along.mT, block.T.expand(g, -1, -1), out=by_view[..., dims])
        return None, None, None, *by_views


class StatisticOfFew(torch.autograd.Function):
    """The same where samples times slices are few: every knot of every sample, in as few calls as there are."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, test: EppsPulley, slices: Tensor, samples: Samples, *views: Tensor
    ) -> Tensor:
        ctx.num_views, ctx.across = len(views), samples.across
        target, ctx.weights, ctx.k, _ = test.tables(views[0].dtype, views[0].device)
        wide = slices.to(views[0].dtype)
        unit = wide * wide.square().sum(0).rsqrt_().mul_(test.dt)
        multiples = (torch.cat(views) @ unit).unsqueeze(-1) * ctx.k  # [v g, n, s, k]
        cos, sin = multiples.cos(), multiples.sin()
        sums = torch.cat([cos.sum(1), sin.sum(1)], dim=2)
        if samples.across:
            torch.distributed.all_reduce(sums)
        excess = sums.div_(samples.count).sub_(target)
        ctx.save_for_backward(unit, cos, sin, excess)
        statistic = (excess.square() @ ctx.weights).mul_(samples.count)
        return statistic.view(len(views), -1, slices.shape[1]).mean((0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        unit, cos, sin, excess = ctx.saved_tensors
        (grad,) = grads
        if ctx.across:
            grad = grad.clone()
            torch.distributed.all_reduce(grad)
        pull = grad * (2.0 / (ctx.num_views * unit.shape[1]))
        pull = pull.expand(ctx.num_views, -1).reshape(-1, 1, 1, 1)
        by_cos, by_sin = (excess * ctx.weights).unsqueeze(1).mul_(pull).chunk(2, dim=3)
        slopes = (cos * (by_sin * ctx.k)).addcmul_(sin, by_cos * ctx.k, value=-1.0).sum(3)
        return None, None, None, *(slopes @ unit.T).chunk(ctx.num_views)


def _widened(slices: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The slices, some rows (dimensions of the embedding) at a time."""
    rows = max(1, _WIDENED // slices.shape[1])
    for start in range(0, len(slices), rows):
        yield slice(start, start + rows), slices[start : start + rows].to(dtype)
