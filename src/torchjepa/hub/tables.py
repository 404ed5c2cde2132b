"""Position tables in files: recognised, because ours are computed, and written for those who read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn import sincos_positions
from torchjepa.types import Grid

# Above float32's rounding of the released code's own arithmetic, far below the step between two positions.
_TOLERANCE = 1e-5


def recognise_table(
    table: Float[Tensor, "1 n d"], layouts: Sequence[str], num_axes: int
) -> tuple[str, Grid] | None:
    """The layout and grid whose sin-cos table this is.

    Args:
        table: a position table `[1, n, d]`.
        layouts: what it may be, see `sincos_positions`.
        num_axes: 2 for images, 3 for videos.

    Returns:
        Layout and grid, squares first; `None` for a table that is none of these.
    """
    if table.ndim != 3 or len(table) != 1 or not table.is_floating_point():
        return None
    values = table[0].double()
    tolerance = max(_TOLERANCE, 2 * torch.finfo(table.dtype).eps)
    for grid in _grids(len(values), num_axes):
        for layout in layouts:
            ours = sincos_positions(grid, values.shape[1], layout=layout)
            if torch.allclose(values, ours, rtol=0, atol=tolerance):
                return layout, grid
    return None


def _grids(num_tokens: int, num_axes: int) -> Iterator[Grid]:
    frames = _divisors(num_tokens) if num_axes == 3 else [1]
    grids = [Grid(t=t, h=h, w=num_tokens // t // h) for t in frames for h in _divisors(num_tokens // t)]
    return iter(sorted(grids, key=lambda grid: (grid.h != grid.w, abs(grid.h - grid.w), grid.t)))


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def make_table(grid: Grid, dim: int, layout: str, like: Tensor) -> Float[Tensor, "1 n {dim}"]:
    """The table of a grid as files hold it.

    Args:
        grid: the token grid.
        dim: channels.
        layout: see `sincos_positions`.
        like: gives the dtype.

    Returns:
        `[1, n, dim]`.
    """
    return sincos_positions(grid, dim, layout=layout).to(like.dtype)[None]
