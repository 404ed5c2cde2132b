"""The Epps-Pulley statistic of many one-dimensional slices: characteristic functions by matrix products.

The knots are equidistant, t_k = k dt, so the sums over samples of cos(t_k x) and sin(t_k x) are those of cos(k a)
and sin(k a) of one angle a = dt x. With k = A B + b, B = 2 h + 1, |b| <= h, the addition theorem makes every one of
them a sum of products of a *coarse* feature, 1, cos(A B a) or sin(A B a), and a *fine* one, 1, cos(b a) or sin(b a):
one small matrix product over the samples. Seventeen knots take 10 transcendental functions of a sample in place of
34, and nothing of size samples x slices x knots is stored. The derivative in a is bilinear in the same features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchjepa import rng
from torchjepa.collapse.samples import Samples

# Elements of a block of angles: on a CPU its 12 features stay in a core's cache, on a GPU they fill the device.
_BLOCK_CPU, _BLOCK_GPU = 2**15, 2**20
# Numbers drawn at a time. The same everywhere: the slices depend on it.
_DRAWN = 2**17


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


def slice_blocks(
    key: tuple[int, int], d: int, num_slices: int, like: Tensor
) -> Iterator[tuple[slice, Float[Tensor, "rows s"]]]:
    """Draw the slices of a call, not yet of unit length, some rows (dimensions of the embedding) at a time.

    Drawn on the CPU in float32, so that all processes, devices and dtypes have the same.

    Args:
        key: the regularizer's seed, and the number of calls before this one.
        d: dimension of the embedding.
        num_slices: number of slices s.
        like: gives device and dtype.

    Yields:
        Which rows, and their entries, independent and N(0, 1).
    """
    generator = rng.generator(key[0], "sigreg", key[1])
    rows = max(1, _DRAWN // num_slices)
    for start in range(0, d, rows):
        block = torch.empty(min(rows, d - start), num_slices, pin_memory=like.is_cuda)
        block.normal_(generator=generator)
        yield slice(start, start + len(block)), block.to(like.device, like.dtype, non_blocking=True)


@lru_cache(maxsize=8)
def _expansion(num_knots: int) -> tuple[int, int, Tensor]:
    """h, the number of coarse steps m, and the matrix that takes products of features to cos(k a) and sin(k a).

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


def _features(
    angles: Float[Tensor, "r n"], num_knots: int
) -> Iterator[tuple[slice, Float[Tensor, "r p n"], Float[Tensor, "r q n"]]]:
    """Blocks of rows with their coarse and fine features; a block's features are overwritten by the next's."""
    h, m, _ = _expansion(num_knots)
    r, n = angles.shape
    block = min(r, max(1, (_BLOCK_CPU if angles.device.type == "cpu" else _BLOCK_GPU) // max(n, 1)))
    sizes = {"coarse": (m, 2 * h + 1), "fine": (h, 1)}
    buffers = {name: angles.new_ones((2 * num + 1) * block * n) for name, (num, _) in sizes.items()}
    scratch = angles.new_empty(max(m, h) * block * n)
    for start in range(0, r, block):
        part = angles[start : start + block]
        features = []
        for name, (num, step) in sizes.items():
            # Feature-major: a vector library takes whole runs of memory.
            filled = buffers[name][: (2 * num + 1) * part.numel()].view(2 * num + 1, *part.shape)
            multiples = scratch[: num * part.numel()].view(num, *part.shape)
            for i in range(num):
                torch.mul(part, (i + 1) * step, out=multiples[i])
            torch.cos(multiples, out=filled[1 : num + 1])
            torch.sin(multiples, out=filled[num + 1 :])
            features.append(filled.transpose(0, 1))
        yield slice(start, start + len(part)), features[0], features[1]


def knot_sums(angles: Float[Tensor, "r n"], num_knots: int) -> Float[Tensor, "r 2*k"]:
    """The sums over samples of cos(k a), k = 0, 1, ..., then of sin(k a).

    Args:
        angles: a, n samples of each of r slices.
        num_knots: number of multiples, 0 among them.
    """
    _, _, matrix = _expansion(num_knots)
    matrix = matrix.to(angles)
    sums = angles.new_empty(len(angles), 2 * num_knots)
    for rows, coarse, fine in _features(angles, num_knots):
        sums[rows] = torch.bmm(coarse, fine.mT).flatten(1) @ matrix.T
    return sums


def knot_slopes(
    angles: Float[Tensor, "r n"], by_sums: Float[Tensor, "r 2*k"], num_knots: int
) -> Float[Tensor, "r n"]:
    """The gradient in the angles, given that in their knot sums: sum_k k (-c_k sin(k a) + s_k cos(k a)).

    Args:
        angles: as for `knot_sums`.
        by_sums: the gradients c_k, then s_k.
        num_knots: as for `knot_sums`.
    """
    h, m, matrix = _expansion(num_knots)
    by_cos, by_sin = by_sums.chunk(2, dim=1)
    k = torch.arange(num_knots, dtype=angles.dtype, device=angles.device)
    turned = torch.cat([k * by_sin, -k * by_cos], dim=1) @ matrix.to(angles)
    table = turned.view(len(angles), 2 * m + 1, 2 * h + 1)
    slopes = torch.empty_like(angles)
    for rows, coarse, fine in _features(angles, num_knots):
        torch.sum(torch.bmm(table[rows], fine).mul_(coarse), dim=1, out=slopes[rows])
    return slopes


class SlicedStatistic(torch.autograd.Function):
    """The mean over views and slices of the Epps-Pulley statistic, one number a group."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, test: EppsPulley, num_slices: int, key: tuple[int, int], samples: Samples, *views: Tensor
    ) -> Tensor:
        g, n, d = views[0].shape
        x = views[0].new_zeros(len(views), g, num_slices, n)
        squares = x.new_zeros(num_slices)
        # Drawing the slices again costs less memory than keeping them, and time that many samples do not feel.
        keep = any(ctx.needs_input_grad) and (n < num_slices or x.device.type != "cpu")
        ctx.blocks = []
        for dims, block in slice_blocks(key, d, num_slices, x):
            squares += torch.linalg.vecdot(block, block, dim=0)
            for along, z in zip(x, views):
                along.baddbmm_(block.T.expand(g, -1, -1), z[..., dims].mT)
            if keep:
                ctx.blocks.append((dims, block))
        scale = test.dt * squares.rsqrt()
        angles = x.mul_(scale.unsqueeze(1)).view(-1, n)
        sums = knot_sums(angles, test.num_knots)
        ctx.across = samples.across
        if ctx.across:
            torch.distributed.all_reduce(sums)
        phi, weights = test.phi.to(x), test.weights.to(x).repeat(2)
        excess = sums / samples.count - torch.cat([phi, torch.zeros_like(phi)])
        ctx.save_for_backward(angles, scale, excess)
        ctx.test, ctx.key, ctx.weights, ctx.shape = test, key, weights, (len(views), g, n, d)
        statistic = samples.count * (excess.square() @ weights)
        return statistic.view(len(views), g, num_slices).mean((0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        angles, scale, excess = ctx.saved_tensors
        (num_views, g, n, d), num_slices = ctx.shape, len(scale)
        grad = grads[0].clone()
        if ctx.across:
            torch.distributed.all_reduce(grad)
        pull = (2.0 / (num_views * num_slices)) * grad.view(1, g, 1) * scale
        by_sums = excess * ctx.weights * pull.expand(num_views, g, num_slices).reshape(-1, 1)
        by_x = knot_slopes(angles, by_sums, ctx.test.num_knots).view(num_views, g, num_slices, n)
        needed = ctx.needs_input_grad[4:]
        by_views = [by_x.new_empty(g, n, d) if need else None for need in needed]
        for dims, block in ctx.blocks or slice_blocks(ctx.key, d, num_slices, angles):
            for along, by_view in zip(by_x, by_views):
                if by_view is not None:
                    torch.bmm(along.mT, block.T.expand(g, -1, -1), out=by_view[..., dims])
        return None, None, None, None, *by_views
