"""Multi-block masking (I-JEPA): predict several rectangular blocks from one large block around them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.masking.draws import check_count, count, hide, integers, random_intervals, random_subset
from torchjepa.masking.legacy import published_masks
from torchjepa.masking.shapes import BlockShapes, block_shapes, checked_range
from torchjepa.rng import generator as keyed_generator
from torchjepa.types import Grid, Masks

# How often a sample with too small a context is drawn again, and the share of draws that must be large enough
# for a configuration to be accepted: all draws of a sample fail with probability 2^-32 at worst.
_MAX_REDRAWS = 32
_LEAST_SUCCESS = 0.5
# The context length is this quantile of the untrimmed length under the least favourable block size: lower and
# more context is thrown away, higher and more samples are redrawn, which thins out far-apart target blocks.
_QUANTILE = 0.05
# It is measured on the largest target sizes, drawing about this many tokens (a few hundredths of a second).
_CALIBRATION_SIZES = 16
_CALIBRATION_TOKENS = 2**21


@dataclass(frozen=True, kw_only=True)
class MultiBlockMasking:
    """I-JEPA's masks: `num_targets` blocks to be predicted, and a large context block less those blocks.

    For a grid of n = h * w tokens, with independent uniform draws u of scale and aspect:

        area = u(target_scale) * n,  rows = sqrt(area * u(target_aspect)),  columns = area / rows
        context = block(context_scale, context_aspect) minus the union of the targets

    Sides are rounded so that the area stays in the range (`block_shapes`); start positions are uniform and
    include the last row and column.

    Every context has the same length n_ctx, fixed by grid and configuration: the 5 % quantile of the length
    before trimming, found once by a keyed simulation. A longer context loses a uniformly random subset; a
    sample that falls short is drawn again. On 14 x 14 a target block covers 15 to 18 %, the union of four
    47 % (48 % if rounding could leave the scale range), the context 41 % before and 28 % after trimming: 32 %
    of it is dropped at random, where the published sampler drops 39 % at batch 128 from the bottom rows.

    All target blocks of a call share one size, so that each is a whole rectangle and `[b, m, k]` is dense.
    The size is drawn by the generator alone, so a sample's distribution is the same in a batch of 1 and of
    1,000. One n_ctx and few values of k occur: 3 on 14 x 14, 4 on 16 x 16, 14 on 32 x 32, 36 on 56 x 56.
    `torch.compile` with fixed shapes compiles once for each: bound them with `max_target_lengths`. A size for
    each sample would need one k for all, and blocks with random holes.

    Args:
        num_targets: number of target blocks, m. Default 4 (paper section 3; official configuration).
        target_scale: least and greatest share of the grid in a target block. Default (0.15, 0.2) (official).
        target_aspect: least and greatest rows / columns of a target block. Default (0.75, 1.5) (official).
        context_scale: the same share for the context block. Default (0.85, 1.0) (official).
        context_aspect: rows / columns of the context block. Default (1, 1) (official).
        min_context: fewest tokens that a context may have; above the 5 % quantile it trades more redraws for
            longer contexts. Default `None`: 1, and under `legacy` 11 (the official "min_keep: 10" wants more
            than 10, of target blocks too).
        allow_overlap: leave target tokens in the context. Default `False` (official).
        max_target_lengths: how many values k may have on a grid, at most. Each drawn scale and aspect then gets
            the nearest of the sizes with these areas, chosen so that the distances are least: with 6 on
            32 x 32 and on 56 x 56 the mean share of a block stays 0.174 and 0.175, its standard deviation
            0.013 (of 0.014), that of log aspect 0.19 and 0.20 (of 0.20). Default `None`: no bound.
        legacy: reproduce the published sampler's distribution instead, defects included: scale and aspect
            share a draw, positions leave out the last row and column, contexts are cut to the shortest of the
            batch from the end of the grid. Its statistics depend on `batch_size`; see `published_masks`.

    Raises:
        ValueError: a field is out of range, or `max_target_lengths` is given for `legacy`; when called, a grid
            with t > 1, or a grid and configuration that leave too little context.
    """

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_aspect: tuple[float, float] = (1.0, 1.0)
    min_context: int | None = None
    allow_overlap: bool = False
    max_target_lengths: int | None = None
    legacy: bool = False

    def __post_init__(self) -> None:
        for name in ("target_scale", "target_aspect", "context_scale", "context_aspect"):
            greatest = 1.0 if name.endswith("scale") else float("inf")
            # Lists come from configuration files; the plan is cached by value and needs tuples.
            object.__setattr__(
                self, name, checked_range("MultiBlockMasking", name, getattr(self, name), greatest)
            )
        for name in ("num_targets", "min_context", "max_target_lengths"):
            if name == "num_targets" or getattr(self, name) is not None:
                check_count("MultiBlockMasking", name, getattr(self, name))
        if self.legacy and self.max_target_lengths is not None:
            raise ValueError(
                f"MultiBlockMasking: max_target_lengths={self.max_target_lengths} would change the published "
                "distribution; leave it out, or set legacy=False."
            )

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks for a batch.

        Args:
            grid: the token grid of an image `(h, w)` or of a sequence (one axis of length 1); t must be 1.
            batch_size: number of samples.
            generator: source of every draw.

        Returns:
            context int64 `[b, n_ctx]` and targets int64 `[b, m, k]`, on the CPU.

        Raises:
            ValueError: t > 1, `batch_size` is below 1, or the grid leaves too little context.
        """
        check_count("MultiBlockMasking", "batch_size", batch_size)
        if grid.t != 1:
            raise ValueError(
                f"MultiBlockMasking is for images and sequences, t = 1, got a grid with t={grid.t}. "
                "Use TubeMasking, which is for video, or give the sequence as Grid(h=1, w=length)."
            )
        if self.legacy:
            return published_masks(self, grid, batch_size, generator)
        plan = _plan(self, grid)
        size = plan.target_shapes.draw(1, generator)[0]
        targets, visible = _draw_enough(plan, size, batch_size, generator)
        context = random_subset(visible, plan.context_length, generator)
        return Masks(torch.from_numpy(context), torch.from_numpy(targets))

    def context_length(self, grid: Grid) -> int:
        """The number of context tokens n_ctx that every sample of every batch has.

        Args:
            grid: the token grid, t = 1.

        Raises:
            ValueError: under `legacy`, where the batch decides; or the grid leaves too little context.
        """
        if self.legacy:
            raise ValueError("MultiBlockMasking: under legacy=True the context length depends on the batch.")
        return _plan(self, grid).context_length


@dataclass(frozen=True, eq=False)
class _Plan:
    mask: MultiBlockMasking
    grid: Grid
    target_shapes: BlockShapes
    context_shapes: BlockShapes
    context_length: int


def draw_blocks(
    plan: _Plan, size: NDArray[np.int64], num: int, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Target blocks of one size and the untrimmed context of `num` samples.

    Args:
        plan: block sizes for the grid.
        size: rows and columns of the target blocks.
        num: number of samples.
        generator: source of the draws.

    Returns:
        target ids `[num, m, k]` and which tokens the context sees before trimming, bool `[num, n]`.
    """
    height, width = plan.grid.h, plan.grid.w
    rows, columns = int(size[0]), int(size[1])
    num_targets = plan.mask.num_targets
    top = integers(height - rows + 1, (num, num_targets), generator)
    left = integers(width - columns + 1, (num, num_targets), generator)
    block = (np.arange(rows)[:, None] * width + np.arange(columns)).ravel()
    targets = (top * width + left)[..., None] + block
    visible = _context_blocks(plan, num, generator)
    if not plan.mask.allow_overlap:
        hide(visible, targets)
    return targets, visible


def _context_blocks(plan: _Plan, num: int, generator: torch.Generator) -> NDArray[np.bool_]:
    sizes = plan.context_shapes.draw(num, generator)
    rows = random_intervals(plan.grid.h, sizes[:, 0], generator)
    columns = random_intervals(plan.grid.w, sizes[:, 1], generator)
    return (rows[:, :, None] & columns[:, None, :]).reshape(num, -1)


def _draw_enough(
    plan: _Plan, size: NDArray[np.int64], num: int, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    targets, visible = draw_blocks(plan, size, num, generator)
    for _ in range(_MAX_REDRAWS):
        short = _fall_short(visible, plan.context_length)
        if short.size == 0:
            return targets, visible
        targets[short], visible[short] = draw_blocks(plan, size, short.size, generator)
    # Next to impossible (see _LEAST_SUCCESS), but never without an answer: all blocks in the place of the
    # first, and everything else seen, which is at least as much as any draw leaves.
    short = _fall_short(visible, plan.context_length)
    targets[short] = targets[short, :1]
    visible[short] = True
    if not plan.mask.allow_overlap:
        visible[short[:, None], targets[short, 0]] = False
    return targets, visible


def _fall_short(visible: NDArray[np.bool_], num: int) -> NDArray[np.int64]:
    return np.flatnonzero(count(visible) < num)


@lru_cache(maxsize=128)
def _plan(mask: MultiBlockMasking, grid: Grid) -> _Plan:
    target_shapes = block_shapes(
        grid.h, grid.w, mask.target_scale, mask.target_aspect, mask.max_target_lengths
    )
    context_shapes = block_shapes(grid.h, grid.w, mask.context_scale, mask.context_aspect)
    plan = _Plan(mask, grid, target_shapes, context_shapes, 0)
    largest = np.argsort(target_shapes.sizes.prod(axis=1), kind="stable")[-_CALIBRATION_SIZES:]
    sizes = target_shapes.sizes[largest]
    num = min(max(_CALIBRATION_TOKENS // (grid.num_tokens * len(sizes)), 128), 2048)
    generator = keyed_generator(0, "context length")
    lengths = [count(draw_blocks(plan, size, num, generator)[1]) for size in sizes]
    quantile = min(int(np.sort(length)[int(_QUANTILE * num)]) for length in lengths)
    wanted = max(quantile, mask.min_context or 1)
    for size, length in zip(sizes, lengths, strict=True):
        _check_success(mask, grid, size, wanted, float((length >= wanted).mean()))
    return _Plan(mask, grid, target_shapes, context_shapes, wanted)


def _check_success(
    mask: MultiBlockMasking, grid: Grid, size: NDArray[np.int64], wanted: int, success: float
) -> None:
    if success < _LEAST_SUCCESS:
        raise ValueError(
            f"MultiBlockMasking: on a {grid.h} x {grid.w} grid {mask.num_targets} target blocks of "
            f"{size[0]} x {size[1]} tokens leave {wanted} or more context tokens in only {success:.0%} of "
            f"the draws; {_LEAST_SUCCESS:.0%} are needed. Lower num_targets={mask.num_targets}, "
            f"target_scale={mask.target_scale} or min_context={mask.min_context}, raise "
            f"context_scale={mask.context_scale}, or use a finer grid (larger images or smaller patches)."
        )
