"""Fixed sin-cos positions over a `Grid` of any size and aspect ratio: nothing learned, nothing saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
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


class GridTables:
    """A table computed once for each grid, device and dtype that occurs.

    Not a module: there is nothing to learn, to save or to average, and any input size is served.

    Args:
        compute: the table of a grid, `compute(grid, *settings)`, in float64 on the CPU.
        settings: its further arguments, plain values.
    """

    def __init__(self, compute: Callable[..., Tensor], *settings: Any) -> None:
        self._compute = compute
        self._settings = settings
        self._tables: dict[tuple[tuple[int, int, int], torch.device, torch.dtype], Tensor] = {}

    def __call__(self, grid: Grid, like: Tensor) -> Tensor:
        """The table of a grid, with the dtype and on the device of `like`."""
        key = (grid.shape, like.device, like.dtype)
        if torch.compiler.is_compiling():
            # A compiled graph holds the table as a constant; a traced one must not leave its tensors behind.
            return _constant_table(*key, self._compute, self._settings)
        if key not in self._tables:
            if len(self._tables) >= _MAX_CACHED_GRIDS:
                self._tables.clear()
            # A table first asked for in inference mode must serve training afterwards.
            with torch.inference_mode(False):
                self._tables[key] = _constant_table(*key, self._compute, self._settings)
        return self._tables[key]


def _constant_table(
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    compute: Callable[..., Tensor],
    settings: tuple[Any, ...],
) -> Tensor:
    t, h, w = shape
    return compute(Grid(t=t, h=h, w=w), *settings).to(device=device, dtype=dtype)


# All that `torch.compiler.assume_constant_result` does, but that it loads the compiler, 0.7 s of every start.
_constant_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ResizedPositions:
    """Sin-cos positions of the grid that weights were trained on, resized to that of the input.

    The table itself is interpolated, by its sizes and with pixel centres aligned (not its corners): bicubic where
    both grids have one frame (transformers' I-JEPA and V-JEPA's images), else trilinear (V-JEPA's videos). A plain
    layout counts on beyond the trained grid instead. On the trained grid both are the same.

    Args:
        layout: as in `sincos_positions`.
        trained_grid: lengths (t, h, w) of the grid that the weights were trained on.

    Raises:
        ValueError: the layout does not name axes or leaves out one of the grid, or lengths that are no grid.
    """

    layout: str
    trained_grid: Sequence[int]

    def __post_init__(self) -> None:
        lengths = tuple(self.trained_grid)
        if len(lengths) != 3 or any(not isinstance(length, int) or length < 1 for length in lengths):
            raise ValueError(
                f"ResizedPositions: trained_grid must be three lengths (t, h, w), each at least 1, got "
                f"{self.trained_grid!r}; use (1, 16, 16) for images of 16 x 16 tokens."
            )
        check_layout(self.layout)
        # A tuple again after a trip through JSON, so that equal positions compare equal.
        object.__setattr__(self, "trained_grid", lengths)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, fit for JSON; `ResizedPositions(**config)` is equal."""
        return {"layout": self.layout, "trained_grid": list(self.trained_grid)}


class SinCosPositions(GridTables):
    """`sincos_positions` `[n, dim]`, computed once for each grid, device and dtype that occurs.

    Args:
        dim: number of channels.
        positions: layout as in `sincos_positions`, or that of a trained grid to be resized.

    Raises:
        ValueError: the layout does not name axes.
    """

    def __init__(self, dim: int, positions: str | ResizedPositions) -> None:
        if isinstance(positions, str):
            check_layout(positions)
            super().__init__(_sincos_table, dim, positions)
        else:
            super().__init__(_resized_table, dim, positions.layout, *positions.trained_grid)


def _sincos_table(grid: Grid, dim: int, layout: str) -> Tensor:
    return sincos_positions(grid, dim, layout=layout)


def _resized_table(grid: Grid, dim: int, layout: str, *lengths: int) -> Tensor:
    trained = Grid(**dict(zip("thw", lengths)))
    table = sincos_positions(trained, dim, layout=layout)
    if grid == trained:
        return table
    for axis, length, trained_length in zip("thw", grid.shape, trained.shape):
        if trained_length == 1 < length:
            raise ValueError(
                f"positions: nothing to interpolate along {axis!r}, one token when trained and {length} now; use "
                f"inputs of one, or the plain layout {layout!r}."
            )
    volume = table.T.unflatten(1, trained.shape)[None]
    if grid.t == trained.t == 1:
        resized = F.interpolate(volume[:, :, 0], size=grid.shape[1:], mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(volume, size=grid.shape, mode="trilinear", align_corners=False)
    return resized[0].flatten(1).T.contiguous()
