"""Fixed sin-cos positions over a `Grid` of any size and aspect ratio: nothing learned, nothing saved."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.types import Grid

NO_POSITIONS = "none"
_MAX_CACHED_GRIDS = 16


def sincos_positions(
    grid: Grid, dim: int, *, layout: str = "wh", base: float = 10000.0
) -> Float[Tensor, "n {dim}"]:
    """The position vector of every token of a grid.

    A layout names the axes in the order of their channels; every letter takes an equal, even share
    s = 2 ceil(dim / (2 len(layout))) of them, an axis named twice in a row takes two shares, and the
    whole is cut to `dim`. An axis of S channels holds [sin(p w_0), ..., sin(p w_{S/2-1}), cos(p w_0), ...]
    with w_j = base^(-2j/S) and p the token's index along that axis.

    Args:
        grid: the token grid.
        dim: number of channels.
        layout: `"wh"` columns then rows (I-JEPA as released, the default for images), `"hw"` rows then
            columns (V-JEPA's images), `"thw"` equal shares (V-JEPA's `uniform_power`, its videos), `"tthw"`
            half of the channels to time (V-JEPA without it), `"w"` sequences; `"none"` is all zeros, for
            encoders that are not told where a token is.
        base: the longest period over 2 pi, 10000 as in all released models.

    Returns:
        float64 `[n, dim]` on the CPU, n = `grid.num_tokens`.

    Raises:
        ValueError: `dim` is below 1, or the layout has other letters than t, h, w or leaves out an axis of
            more than one token, whose tokens it could then not tell apart.
    """
    check_layout(layout)
    if dim < 1:
        raise ValueError(f"sincos_positions: dim must be at least 1, got {dim}.")
    if layout == NO_POSITIONS:
        return torch.zeros(grid.num_tokens, dim, dtype=torch.float64, device="cpu")
    lengths = dict(zip("thw", grid.shape))
    missing = [axis for axis, length in lengths.items() if length > 1 and axis not in layout]
    if missing:
        raise ValueError(
            f"positions: layout {layout!r} has no {missing[0]!r} although the grid has "
            f"{lengths[missing[0]]} tokens along it; use 'wh' for images, 'thw' for videos."
        )
    share = 2 * math.ceil(dim / (2 * len(layout)))
    index = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64, device="cpu") for n in grid.shape), indexing="ij"
    )
    coordinates = {axis: values.flatten() for axis, values in zip("thw", index)}
    parts = [_sincos(coordinates[axis], share * layout.count(axis), base) for axis in dict.fromkeys(layout)]
    return torch.cat(parts, dim=1)[:, :dim].contiguous()


def check_layout(layout: str) -> None:
    """Refuse a layout that does not name axes.

    Args:
        layout: as in `sincos_positions`.

    Raises:
        ValueError: the layout is neither `"none"` nor made of the letters t, h, w.
    """
    if layout != NO_POSITIONS and (not layout or set(layout) - set("thw")):
        raise ValueError(
            f"positions: the layout must name the axes t, h, w in the order of their channels "
            f"('wh', 'hw', 'thw', 'tthw' or 'w') or be 'none', got {layout!r}."
        )


def _sincos(position: Tensor, dim: int, base: float) -> Tensor:
    frequency = base ** (-torch.arange(dim // 2, dtype=torch.float64, device=position.device) / (dim / 2))
    angle = position[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class SinCosPositions:
    """`sincos_positions` computed once for each grid, device and dtype that occurs.

    Not a module: there is nothing to learn, to save or to average, and any input size is served.

    Args:
        dim: number of channels.
        layout: as in `sincos_positions`.

    Raises:
        ValueError: the layout does not name axes.
    """

    def __init__(self, dim: int, layout: str) -> None:
        check_layout(layout)
        self.dim = dim
        self.layout = layout
        self._tables: dict[tuple[tuple[int, int, int], torch.device, torch.dtype], Tensor] = {}

    def __call__(self, grid: Grid, like: Tensor) -> Float[Tensor, "n d"]:
        """The table of a grid `[n, d]`, with the dtype and on the device of `like`."""
        key = (grid.shape, like.device, like.dtype)
        if torch.compiler.is_compiling():
            # A compiled graph holds the table as a constant; a traced one must not leave its tensors behind.
            return _constant_table(*key, self.dim, self.layout)
        if key not in self._tables:
            if len(self._tables) >= _MAX_CACHED_GRIDS:
                self._tables.clear()
            # A table first asked for in inference mode must serve training afterwards.
            with torch.inference_mode(False):
                self._tables[key] = _constant_table(*key, self.dim, self.layout)
        return self._tables[key]


@torch.compiler.assume_constant_result
def _constant_table(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, dim: int, layout: str
) -> Tensor:
    t, h, w = shape
    return sincos_positions(Grid(t=t, h=h, w=w), dim, layout=layout).to(device=device, dtype=dtype)
