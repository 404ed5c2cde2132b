"""The distributions that the released I-JEPA and V-JEPA were trained with, for reproduction studies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.masking.draws import count, hide, integers, random_union
from torchjepa.types import Grid, Masks

if TYPE_CHECKING:
    from torchjepa.masking.block import MultiBlockMasking
    from torchjepa.masking.tube import TubeMasking

# Official values: "min_keep: 10" (a block needs more), and tries before one target block may overlap.
_MIN_BLOCK = 11
_TRIES = 20
# The published loop for tubes has no end; a configuration that fails so often has no context to give.
_MAX_TUBE_TRIES = 1000


def published_masks(
    mask: MultiBlockMasking, grid: Grid, batch_size: int, generator: torch.Generator
) -> Masks:
    """Draw masks as the published sampler does, from its description and measured behaviour.

    One draw u for each of the two block sizes gives scale = lo + u (hi - lo) and aspect = lo + u (hi - lo)
    alike; area = floor(scale * h * w), rows = round(sqrt(area * aspect)), columns = round(sqrt(area /
    aspect)), never the full height or width; start positions are uniform in [0, h - rows) and [0, w -
    columns), so the last row and column are never reached. A context of fewer than `min_context` tokens is
    drawn again; after every 20 tries one target block more, the last first, is allowed to overlap it.
    Contexts are then cut to the shortest of the batch, keeping the first ids in row-major order.

    The result depends on `batch_size`: pass the per-device batch of the run to be reproduced (128 for the
    released ViT-H/14). With released settings on 16 x 16 the context has 111 tokens uncut, 82 at batch 16 and
    68 at batch 128.

    Args:
        mask: the configuration.
        grid: the token grid, t = 1.
        batch_size: number of samples.
        generator: source of every draw; its first two give the target and the context block size.

    Raises:
        ValueError: a block of `min_context` tokens has no place on the grid (the published loop never ends).
    """
    least = mask.min_context or _MIN_BLOCK
    rows, columns = _block_size("target", grid, mask.target_scale, mask.target_aspect, least, generator)
    context_size = _block_size("context", grid, mask.context_scale, mask.context_aspect, least, generator)
    top, left = _corners(grid, (rows, columns), (batch_size, mask.num_targets), generator)
    block = (np.arange(rows)[:, None] * grid.w + np.arange(columns)).ravel()
    targets = (top * grid.w + left)[..., None] + block
    visible = _contexts(mask, grid, context_size, targets, least, generator)
    lengths = count(visible)
    shortest = int(lengths.min())
    # The ids of all samples lie one after the other; of each sample's the first are kept.
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    kept = np.flatnonzero(visible)[first[:, None] + np.arange(shortest)]
    context = kept - np.arange(0, visible.size, grid.num_tokens)[:, None]
    return Masks(torch.from_numpy(context), torch.from_numpy(targets))


def _block_size(
    role: str,
    grid: Grid,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    least: int,
    generator: torch.Generator,
) -> tuple[int, int]:
    u = float(torch.rand(1, generator=generator, device=generator.device))
    area = int(grid.h * grid.w * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    rows = min(round(math.sqrt(area * ratio)), grid.h - 1)
    columns = min(round(math.sqrt(area / ratio)), grid.w - 1)
    if rows * columns < least:
        raise ValueError(
            f"MultiBlockMasking(legacy=True): a {role} block of {rows} x {columns} tokens on a "
            f"{grid.h} x {grid.w} grid is below min_context={least}. Lower min_context, use a finer grid, "
            "or legacy=False."
        )
    return rows, columns


def _corners(
    grid: Grid, size: tuple[int, int], shape: tuple[int, ...], generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return integers(grid.h - size[0], shape, generator), integers(grid.w - size[1], shape, generator)


def _contexts(
    mask: MultiBlockMasking,
    grid: Grid,
    size: tuple[int, int],
    targets: NDArray[np.int64],
    least: int,
    generator: torch.Generator,
) -> NDArray[np.bool_]:
    # Every sample tries up to 20 places for its context block, then again with one target fewer kept out.
    visible = np.zeros((targets.shape[0], grid.num_tokens), dtype=bool)
    short = np.arange(targets.shape[0])
    excluded = 0 if mask.allow_overlap else mask.num_targets
    tries = 0
    while short.size:
        kept_out = max(excluded - tries // _TRIES, 0)
        hidden = targets[short, :kept_out].reshape(short.size, -1)
        visible[short] = _context_blocks(grid, size, hidden, generator)
        short = short[count(visible[short]) < least]
        tries += 1
    return visible


def _context_blocks(
    grid: Grid, size: tuple[int, int], hidden: NDArray[np.int64], generator: torch.Generator
) -> NDArray[np.bool_]:
    num = hidden.shape[0]
    top, left = _corners(grid, size, (num, 1), generator)
    row, column = np.arange(grid.h), np.arange(grid.w)
    inside_rows = (row >= top) & (row < top + size[0])
    inside_columns = (column >= left) & (column < left + size[1])
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :]).reshape(num, -1)
    hide(inside, hidden)
    return inside


def published_tubes(
    mask: TubeMasking, grid: Grid, batch_size: int, generator: torch.Generator
) -> NDArray[np.bool_]:
    """Where the context may come from before it is cut, as the published V-JEPA sampler draws it.

    All blocks of a batch share one size from three independent draws u of duration, scale and aspect, each
    lo + u (hi - lo): steps = floor(duration * t), at least 1; area = floor(scale * h * w), rows = round(sqrt(area *
    aspect)), columns = round(sqrt(area / aspect)), at most the height and width. Places are uniform, the last
    included. A sample without context is drawn again.

    Args:
        mask: the configuration.
        grid: the token grid.
        batch_size: number of samples.
        generator: source of every draw; its first three give the block size.

    Returns:
        bool `[b, n]`; what is not context is target.

    Raises:
        ValueError: a sample has no context in 1,000 draws (the published loop hardly ends).
    """
    duration, *size = _tube_size(mask, grid, generator)
    pools = np.empty((batch_size, grid.num_tokens), dtype=bool)
    short = np.arange(batch_size)
    for _ in range(_MAX_TUBE_TRIES):
        blocks = (short.size, mask.num_blocks)
        durations = None if duration == grid.t else np.full(blocks, duration)
        union = random_union(grid.shape, np.broadcast_to(size, (*blocks, 2)), durations, generator)
        pool = np.repeat(union if mask.inverted else ~union, grid.t // union.shape[1], axis=1)
        pool[:, mask.num_context_steps(grid) :] = False
        pools[short] = pool.reshape(short.size, -1)
        lengths = count(pools[short])
        short = short[(lengths == 0) | (lengths == grid.num_tokens)]
        if not short.size:
            return pools
    raise ValueError(
        f"TubeMasking(legacy=True): {mask.num_blocks} blocks of {duration} x {size[0]} x {size[1]} tokens on a "
        f"{grid.t} x {grid.h} x {grid.w} grid left nothing for the context or for the targets in "
        f"{_MAX_TUBE_TRIES} draws. Lower num_blocks={mask.num_blocks} or spatial_scale={mask.spatial_scale}, or "
        "use a finer grid."
    )


def _tube_size(mask: TubeMasking, grid: Grid, generator: torch.Generator) -> tuple[int, int, int]:
    draws = [float(torch.rand(1, generator=generator, device=generator.device)) for _ in range(3)]
    ranges = (mask.temporal_scale, mask.spatial_scale, mask.aspect)
    duration, scale, aspect = (low + u * (high - low) for u, (low, high) in zip(draws, ranges, strict=True))
    area = int(grid.h * grid.w * scale)
    rows = min(round(math.sqrt(area * aspect)), grid.h)
    columns = min(round(math.sqrt(area / aspect)), grid.w)
    return max(int(grid.t * duration), 1), rows, columns
