"""Sizes of rectangular blocks: from a scale and an aspect ratio to whole rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.masking.draws import integers

# Scale and aspect are each drawn from this many equally spaced values of their range: fine enough to be
# uniform for any grid, and the block sizes that can occur are known beforehand.
LATTICE = 64


@dataclass(frozen=True, eq=False)
class BlockShapes:
    """The block sizes that a scale range and an aspect range give on a grid.

    Args:
        sizes: the rows and columns of every size that can occur, int64 `[s, 2]` (here `s` counts sizes).
        index: which of them each (scale, aspect) pair gives, int64 `[LATTICE, LATTICE]`.
    """

    sizes: NDArray[np.int64]
    index: NDArray[np.int64]

    def draw(self, num: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Rows and columns of `num` blocks, int64 `[num, 2]`; scale and aspect are independent draws."""
        scale, aspect = integers(LATTICE, (2, num), generator)
        return self.sizes[self.index[scale, aspect]]


def block_shapes(
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    max_areas: int | None = None,
) -> BlockShapes:
    """All block sizes for uniform scale and aspect, with area / (height * width) kept inside `scale`.

    rows = sqrt(area * aspect), columns = area / rows; an axis too short for that is filled and the other
    one makes up for it, so that a 1-D grid keeps its scale. Each side is rounded up or down to the nearest
    size whose area is inside the range, or just the nearest where there is none. A block leaves at least
    one row and one column out (as the published one does) unless the smallest scale is out of reach that
    way.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        scale: least and greatest share of the grid that a block covers.
        aspect: least and greatest rows / columns.
        max_areas: how many areas may occur at most; see `_of_few_areas`. `None`: all.
    """
    num_tokens = height * width
    max_rows, max_columns = height - 1, width - 1
    if max_rows * max_columns < scale[0] * num_tokens:
        max_rows, max_columns = height, width
    area = midpoints(*scale)[:, None] * num_tokens
    rows = np.clip(np.sqrt(area * midpoints(*aspect)[None, :]), 1, max_rows)
    columns = np.clip(area / rows, 1, max_columns)
    rows = np.clip(area / columns, 1, max_rows)
    sizes = _nearest_whole(rows, columns, (scale[0] * num_tokens, scale[1] * num_tokens))
    if max_areas is not None:
        sizes = _of_few_areas(
            sizes.reshape(-1, 2), np.stack([rows, columns], axis=-1).reshape(-1, 2), max_areas
        )
    unique, index = np.unique(sizes.reshape(-1, 2), axis=0, return_inverse=True)
    return BlockShapes(unique, index.reshape(LATTICE, LATTICE))


def checked_range(owner: str, name: str, value: Any, greatest: float) -> tuple[float, float]:
    """A range of scales or aspects as a tuple of floats.

    Args:
        owner: the mask, for the message.
        name: its field.
        value: what was given, a tuple or a list.
        greatest: 1 for a scale, infinity for an aspect.

    Raises:
        ValueError: not two numbers with 0 < low <= high, high at most `greatest` and finite.
    """
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not (0 < low <= high <= greatest and high < float("inf")):
        bounds = "0 < low <= high <= 1" if greatest == 1.0 else "0 < low <= high"
        raise ValueError(f"{owner}: {name} must be (low, high) with {bounds}, got {value!r}.")
    return low, high


def midpoints(low: float, high: float) -> NDArray[np.float64]:
    """`LATTICE` equally spaced values of a range, float64 `[LATTICE]`."""
    return low + (high - low) * (np.arange(LATTICE) + 0.5) / LATTICE


def _nearest_whole(
    rows: NDArray[np.float64], columns: NDArray[np.float64], area_range: tuple[float, float]
) -> NDArray[np.int64]:
    # The four ways to round (rows, columns), nearest in log size first, those inside the range before all
    # others.
    whole_rows = np.stack([np.floor(rows), np.floor(rows), np.ceil(rows), np.ceil(rows)])
    whole_columns = np.stack([np.floor(columns), np.ceil(columns), np.floor(columns), np.ceil(columns)])
    area = whole_rows * whole_columns
    tolerance = 1e-9 * area_range[1]
    outside = (area < area_range[0] - tolerance) | (area > area_range[1] + tolerance)
    distance = np.abs(np.log(whole_rows / rows)) + np.abs(np.log(whole_columns / columns))
    best = np.where(outside, distance + 10.0, distance).argmin(axis=0)[None]
    sizes = [np.take_along_axis(sides, best, axis=0)[0] for sides in (whole_rows, whole_columns)]
    return np.stack(sizes, axis=-1).astype(np.int64)


def _of_few_areas(sizes: NDArray[np.int64], wanted: NDArray[np.float64], max_areas: int) -> NDArray[np.int64]:
    # Sizes with at most so many areas for the wanted rows and columns [p, 2]: each gets the nearest in log rows and log
    # columns among those of the areas chosen, so that scale and aspect keep their means and their spread. The areas
    # are those for which the squared distances sum to least, as far as exchanging one at a time finds them.
    possible = np.unique(sizes, axis=0)
    areas = possible.prod(axis=1)
    kinds = np.unique(areas)
    if len(kinds) <= max_areas:
        return sizes
    apart = np.square(np.log(possible)[:, None] - np.log(wanted)).sum(axis=-1)
    cost = np.stack([apart[areas == area].min(axis=0) for area in kinds])
    chosen = np.linspace(0, len(kinds) - 1, max_areas).round().astype(np.int64)
    before = chosen[:0]
    while not np.array_equal(chosen, before):
        before = chosen.copy()
        for place in range(max_areas):
            others = np.delete(cost[chosen], place, axis=0).min(axis=0, initial=np.inf)
            chosen[place] = np.minimum(cost, others).sum(axis=1).argmin()
    allowed = np.isin(areas, kinds[chosen])
    return possible[allowed][apart[allowed].argmin(axis=0)]
