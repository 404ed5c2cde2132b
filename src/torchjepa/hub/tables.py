"""Position tables in files: recognised, because ours are computed, and written for those who read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn import sincos_positions
from torchjepa.types import Grid

# Above float32's rounding of the released code's own arithmetic, far below the step between two positions.
_TOLERANCE = 1e-5


def recognise_table(table: Tensor, layouts: Sequence[str]) -> tuple[str, Grid] | None:
    """The layout and grid whose sin-cos table this is.

    Args:
        table: a position table, `[1, n, d]` if it is one.
        layouts: what it may be, see `sincos_positions`.

    Returns:
        Layout and grid; `None` for a table that is none of these.
    """
    if table.ndim != 3 or len(table) != 1 or 0 in table.shape or not table.is_floating_point():
        return None
    values = table[0].double()
    tolerance = max(_TOLERANCE, 2 * torch.finfo(table.dtype).eps)
    for grid in _grids(values, tolerance):
        for layout in layouts:
            if all(length == 1 or axis in layout for axis, length in zip("thw", grid.shape)):
                ours = sincos_positions(grid, values.shape[1], layout=layout)
                if torch.allclose(values, ours, rtol=0, atol=tolerance):
                    return layout, grid
    return None


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


def _grids(values: Tensor, tolerance: float) -> Iterator[Grid]:
    """The grids that fit the table's own periods: which axes these lengths, slowest first, may belong to."""
    lengths, step = [], 1
    while step < len(values):
        period = _period(values, step, tolerance)
        lengths.insert(0, period // step)
        step = period
    for axes in combinations("thw", len(lengths)):
        yield Grid(**dict(zip(axes, lengths)))


def _period(values: Tensor, step: int, tolerance: float) -> int:
    """After how many tokens the axis whose tokens are `step` apart begins again.

    Every channel belongs to one axis, so that a step along an axis makes the same difference wherever the others are.
    """
    first = values[step] - values[0]
    for period in range(2 * step, len(values) // 2 + 1, step):
        if len(values) % period == 0:
            there = values[period + step] - values[period]
            if torch.allclose(there, first, rtol=0, atol=4 * tolerance):
                return period
    return len(values)
