"""Tube masking (V-JEPA): predict what blocks of the frame hide, for the length of the clip, from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.masking.draws import (
    ascending_keys,
    check_count,
    count,
    integers,
    other_ids,
    random_keys,
    random_union,
    smallest,
)
from torchjepa.masking.legacy import published_tubes
from torchjepa.masking.shapes import LATTICE, BlockShapes, block_shapes, checked_range, midpoints
from torchjepa.rng import generator as keyed_generator
from torchjepa.types import Grid, Masks

Surplus = Literal["drop", "target", "context"]

# Draws with a context in the middle third of its lengths are used: 6 % of the tokens are then dropped. The middle
# half would drop 10 %, the middle nine tenths 25 %, and coverage would be as flat.
_MIDDLE = (1 / 3, 2 / 3)
# It is found by drawing so many samples, fewer where they are long (a few hundredths of a second).
_CALIBRATION_SAMPLES = 2048
_CALIBRATION_TOKENS = 2**21
# The share of draws that must be of use; and the rounds, each of half as many draws again as should do.
_LEAST_SUCCESS = 0.1
_MAX_ROUNDS = 16


@dataclass(frozen=True, kw_only=True)
class TubeMasking:
    """V-JEPA's masks: blocks of the frame are hidden for the length of the clip, the rest is the context.

    For a grid of t x h x w tokens, with independent uniform draws u of duration, scale and aspect for every block
    of every sample:

        steps = u(temporal_scale) * t,  area = u(spatial_scale) * h * w
        rows = sqrt(area * u(aspect)),  columns = area / rows
        targets = union of the blocks (one target block),  context = everything else

    Sides are rounded so that the area stays in the range (`block_shapes`); places are uniform and include the
    last step, row and column.

    Context and targets have one length each, n_ctx and k, fixed by grid and configuration: a keyed simulation finds
    the middle third of the contexts' lengths, once; draws outside of it are drawn again, and of the others a
    uniformly random subset of the context and of the targets is dropped. With tubes of the clip's length every
    step of the clip is then seen with exactly the same probability. On 8 x 14 x 14 the context has 33 % of the
    tokens, the targets 61 % (long-range 15 % and 80 %); 6 % are neither seen nor predicted, where the published
    sampler leaves out 28 % (24 %; 8 x 16 x 16, batch 24), most of them late. Neither length depends on the batch: one
    `torch.compile` for each mask and grid.

    Args:
        num_blocks: number of blocks. Default 8 (V-JEPA, short-range).
        spatial_scale: least and greatest share of the frame in a block. Default (0.15, 0.15) (short-range).
        temporal_scale: least and greatest share of the clip that a block lasts, at least one step. Default (1, 1):
            tubes through the whole clip.
        aspect: least and greatest rows / columns of a block. Default (0.75, 1.5) (official).
        max_context_time: the context comes from the first steps of the clip only, at most this share of them and at
            least one; what comes later is to be predicted. Default 1 (official; there `max_temporal_keep`).
        max_context: most tokens of a context; the others are surplus. Default `None`: no bound (official; there
            `max_keep`).
        surplus: what becomes of the tokens taken out for equal lengths. Default `"drop"`: neither seen nor predicted.
            `"target"`: those of the context are predicted, so that the targets are everything outside of the
            context (there `full_complement`). `"context"`: those of the targets are seen, so that the context is
            everything outside of the targets (there `pred_full_complement`).
        inverted: the blocks are the context, the rest is to be predicted. Default `False` (there `inv_block`).
        legacy: reproduce the published sampler's distribution instead, defects included: all blocks of a batch
            share one size, context and targets are cut to the shortest of the batch from the end of the clip, so
            that its late frames are hardly ever seen. Its statistics depend on `batch_size`; see `published_tubes`.

    Raises:
        ValueError: a field is out of range, `surplus="context"` meets a bound of the context, or `legacy` a bound of
            an inverted one; when called, a grid and configuration that leave too little context or targets.
    """

    num_blocks: int = 8
    spatial_scale: tuple[float, float] = (0.15, 0.15)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    max_context_time: float = 1.0
    max_context: int | None = None
    surplus: Surplus = "drop"
    inverted: bool = False
    legacy: bool = False

    @classmethod
    def short_range(cls, *, legacy: bool = False) -> TubeMasking:
        """V-JEPA's short-range mask: 8 blocks of 15 % of the frame (as in the paper and the official configuration).

        Args:
            legacy: the published sampler's distribution.
        """
        return cls(num_blocks=8, spatial_scale=(0.15, 0.15), legacy=legacy)

    @classmethod
    def long_range(cls, *, legacy: bool = False) -> TubeMasking:
        """V-JEPA's long-range mask: 2 blocks of 70 % of the frame (as in the paper and the official configuration).

        Args:
            legacy: the published sampler's distribution.
        """
        return cls(num_blocks=2, spatial_scale=(0.7, 0.7), legacy=legacy)

    def __post_init__(self) -> None:
        for name in ("spatial_scale", "temporal_scale", "aspect"):
            greatest = float("inf") if name == "aspect" else 1.0
            # Lists come from configuration files; the plan is cached by value and needs tuples.
            object.__setattr__(self, name, checked_range("TubeMasking", name, getattr(self, name), greatest))
        check_count("TubeMasking", "num_blocks", self.num_blocks)
        if self.max_context is not None:
            check_count("TubeMasking", "max_context", self.max_context)
        if not 0 < self.max_context_time <= 1:
            raise ValueError(
                f"TubeMasking: max_context_time must be a share of the clip in (0, 1], got {self.max_context_time!r}."
            )
        if self.surplus not in get_args(Surplus):
            raise ValueError(
                f"TubeMasking: surplus must be one of {get_args(Surplus)}, got {self.surplus!r}."
            )
        self._check_bounds()

    def _check_bounds(self) -> None:
        if self.max_context is None and self.max_context_time == 1:
            return
        bounds = f"max_context={self.max_context}, max_context_time={self.max_context_time}"
        if self.surplus == "context":
            raise ValueError(
                f'TubeMasking: surplus="context" shows all that is not predicted, which breaks {bounds}. Leave the '
                'bounds out, or use surplus="drop" or "target".'
            )
        if self.legacy and self.inverted:
            raise ValueError(
                f"TubeMasking: the published sampler has no bound for an inverted context ({bounds}). Leave the "
                "bounds out, or set legacy=False."
            )

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks for a batch.

        Args:
            grid: the token grid, any `(t, h, w)`; an image has t = 1.
            batch_size: number of samples.
            generator: source of every draw.

        Returns:
            context int64 `[b, n_ctx]` and targets int64 `[b, 1, k]`, on the CPU.

        Raises:
            ValueError: `batch_size` is below 1, or the grid leaves too little context or targets.
        """
        check_count("TubeMasking", "batch_size", batch_size)
        if self.legacy:
            pools = published_tubes(self, grid, batch_size, generator)
            shortest = int(count(pools).min()), int(count(~pools).min())
            context, targets = _split(self, pools, shortest, ascending_keys(pools.shape))
        else:
            plan = _plan(self, grid)
            pools = plan.draw_enough(batch_size, generator)
            context, targets = _split(self, pools, plan.lengths, random_keys(pools.shape, generator))
        return Masks(torch.from_numpy(context), torch.from_numpy(targets)[:, None])

    def context_length(self, grid: Grid) -> int:
        """The number of context tokens n_ctx that every sample of every batch has.

        Args:
            grid: the token grid.

        Raises:
            ValueError: under `legacy`, where the batch decides; or the grid leaves too little context or targets.
        """
        return self._lengths(grid)[0]

    def target_length(self, grid: Grid) -> int:
        """The number of target tokens k that every sample of every batch has.

        Args:
            grid: the token grid.

        Raises:
            ValueError: under `legacy`, where the batch decides; or the grid leaves too little context or targets.
        """
        return self._lengths(grid)[1]

    def _lengths(self, grid: Grid) -> tuple[int, int]:
        if self.legacy:
            raise ValueError("TubeMasking: under legacy=True the lengths depend on the batch.")
        num_context, num_targets = _plan(self, grid).lengths
        if self.surplus == "context":
            return grid.num_tokens - num_targets, num_targets
        num_context = min(num_context, self.max_context or num_context)
        return num_context, grid.num_tokens - num_context if self.surplus == "target" else num_targets

    def num_context_steps(self, grid: Grid) -> int:
        """How many time steps, the first ones, the context may come from.

        Args:
            grid: the token grid.
        """
        return max(int(grid.t * self.max_context_time + 1e-9), 1)


def vjepa_masks(*, legacy: bool = False) -> tuple[TubeMasking, TubeMasking]:
    """The two masks that V-JEPA and V-JEPA 2 draw for every sample: short-range and long-range.

    Args:
        legacy: the published sampler's distribution.
    """
    return TubeMasking.short_range(legacy=legacy), TubeMasking.long_range(legacy=legacy)


@dataclass(frozen=True, eq=False)
class _Blocks:
    mask: TubeMasking
    grid: Grid
    shapes: BlockShapes
    durations: NDArray[np.int64]

    @property
    def span_the_clip(self) -> bool:
        return bool(self.durations.min() == self.grid.t)

    @property
    def num_context_steps(self) -> int:
        return self.mask.num_context_steps(self.grid)

    def draw_pools(self, num: int, generator: torch.Generator) -> NDArray[np.bool_]:
        # Where the contexts of `num` samples may come from, bool [num, t, h * w]; everything else is target. One
        # map stands for all steps, [num, 1, h * w], where all blocks span the clip.
        blocks = (num, self.mask.num_blocks)
        sizes = self.shapes.draw(num * self.mask.num_blocks, generator).reshape(*blocks, 2)
        durations = None if self.span_the_clip else self.durations[integers(LATTICE, blocks, generator)]
        union = random_union(self.grid.shape, sizes, durations, generator)
        pools = union if self.mask.inverted else ~union
        pools[:, self.num_context_steps :] = False
        return pools

    def count_tokens(self, pools: NDArray[np.bool_]) -> NDArray[np.int64]:
        # One map for all steps counts for those that the context may come from.
        steps = self.num_context_steps if self.span_the_clip else 1
        return count(pools.reshape(len(pools), -1)).astype(np.int64) * steps

    def over_time(self, pools: NDArray[np.bool_]) -> NDArray[np.bool_]:
        # One map for all steps becomes one for each, [num, n].
        maps = np.repeat(pools, self.grid.t // pools.shape[1], axis=1)
        maps[:, self.num_context_steps :] = False
        return maps.reshape(len(pools), -1)


@dataclass(frozen=True, eq=False)
class _Plan:
    # fewest and most: the tokens that a draw of use leaves for the context; success: the share of such draws;
    # spare: one of them.
    blocks: _Blocks
    fewest: int
    most: int
    success: float
    spare: NDArray[np.bool_]

    @property
    def lengths(self) -> tuple[int, int]:
        return self.fewest, self.blocks.grid.num_tokens - self.most

    def draw_enough(self, num: int, generator: torch.Generator) -> NDArray[np.bool_]:
        # The first `num` draws of use, bool [num, n].
        found, missing = [], num
        for _ in range(_MAX_ROUNDS):
            pools = self.blocks.draw_pools(int(1.5 * missing / self.success) + 8, generator)
            lengths = self.blocks.count_tokens(pools)
            found.append(pools[(self.fewest <= lengths) & (lengths <= self.most)][:missing])
            missing -= len(found[-1])
            if missing == 0:
                break
        else:
            # Next to impossible (see _LEAST_SUCCESS), but never without an answer.
            found.append(np.repeat(self.spare[None], missing, axis=0))
        return self.blocks.over_time(np.concatenate(found))


def _split(
    mask: TubeMasking, pools: NDArray[np.bool_], lengths: tuple[int, int], keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num_context, num_targets = lengths
    if mask.surplus == "context":
        targets = smallest(keys, ~pools, num_targets)
        return other_ids(targets, pools.shape[1]), targets
    context = smallest(keys, pools, min(num_context, mask.max_context or num_context))
    if mask.surplus == "target":
        return context, other_ids(context, pools.shape[1])
    return context, smallest(keys, ~pools, num_targets)


@lru_cache(maxsize=128)
def _plan(mask: TubeMasking, grid: Grid) -> _Plan:
    shapes = block_shapes(grid.h, grid.w, mask.spatial_scale, mask.aspect)
    durations = np.rint(midpoints(*mask.temporal_scale) * grid.t).astype(np.int64).clip(1, grid.t)
    blocks = _Blocks(mask, grid, shapes, durations)
    map_size = grid.h * grid.w * (1 if blocks.span_the_clip else grid.t)
    num = min(max(_CALIBRATION_TOKENS // map_size, 256), _CALIBRATION_SAMPLES)
    pools = blocks.draw_pools(num, keyed_generator(0, "tube lengths"))
    lengths = blocks.count_tokens(pools)
    low, high = (int(np.sort(lengths)[int(share * num)]) for share in _MIDDLE)
    fewest, most = max(low, 1), min(high, grid.num_tokens - 1)
    of_use = (fewest <= lengths) & (lengths <= most)
    success = float(of_use.mean())
    _check_success(mask, grid, success, float((lengths / grid.num_tokens).mean()))
    return _Plan(blocks, fewest, most, success, pools[of_use][0])


def _check_success(mask: TubeMasking, grid: Grid, success: float, context: float) -> None:
    if success < _LEAST_SUCCESS:
        raise ValueError(
            f"TubeMasking: on a {grid.t} x {grid.h} x {grid.w} grid {mask.num_blocks} blocks of "
            f"spatial_scale={mask.spatial_scale} leave {context:.0%} of the tokens to the context on average, and "
            f"both a context and targets in only {success:.0%} of the draws; {_LEAST_SUCCESS:.0%} are needed. Change "
            "num_blocks or spatial_scale, or use a finer grid (larger inputs or smaller patches)."
        )
