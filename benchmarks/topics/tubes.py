"""Tubes: a batch of V-JEPA's masks, beside the published generator's loop over samples and blocks

One process, one thread, as in a data worker. The two cannot give the same masks from one generator: the published one
draws a number at a time. What is checked is the distribution: *apart* is the distance of the shares in which each time
step and each row of the frame is seen and predicted, for `legacy=True`. The default samples another distribution on
purpose (the published one hardly ever shows a late frame), so there is nothing to be apart from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Comparison, Contenders, relative_distance
from benchmarks.peers.tubes import TubeCollator
from torchjepa.masking import Coverage, Grid, MaskSampler, coverage, vjepa_masks

_NUM_CHECKED = 60  # batches of 24
_NAMES = ("short-range", "long-range")


def comparisons() -> Iterator[Comparison]:
    # 16 frames at 224 and 64 frames at 256, with the published batch sizes of a device.
    for grid, batch_size in ((Grid(t=8, h=14, w=14), 24), (Grid(t=32, h=16, w=16), 12)):
        for number, name in enumerate(_NAMES):
            for legacy in (False, True):
                size = f"{grid.t} x {grid.h} x {grid.w}, batch {batch_size}"
                first = (grid.t, number, legacy) == (8, 0, False)
                yield Comparison(
                    f"{name}, {size}, {'legacy=True' if legacy else 'default'}",
                    "official",
                    partial(_build, grid, batch_size, number, legacy),
                    bar=4.0 if first else None,
                    # Over 60 batches the shares have a standard error of 1 to 2 %.
                    tolerance=0.08,
                    threads=1,
                )


def _build(grid: Grid, batch_size: int, number: int, legacy: bool) -> Contenders:
    ours = vjepa_masks(legacy=legacy)[number]
    peer = TubeCollator(ours.num_blocks, ours.spatial_scale[0])
    streams = [torch.Generator().manual_seed(0) for _ in range(2)]
    ours(grid, batch_size, streams[0])  # the plan of a grid is made once
    return Contenders(
        partial(ours, grid, batch_size, streams[0]),
        partial(peer, grid, batch_size, streams[1]),
        deviation=_apart(ours, peer) if legacy else None,
    )


def _apart(ours: MaskSampler, peer: MaskSampler) -> float:
    grid = Grid(t=8, h=14, w=14)
    maps = [
        coverage(sampler, grid, 24 * _NUM_CHECKED, torch.Generator().manual_seed(seed), batch_size=24)
        for seed, sampler in enumerate((ours, peer))
    ]
    return relative_distance(*map(_shares, maps))


def _shares(maps: Coverage) -> list[Tensor]:
    rows = [share.mean((0, 2)) for share in (maps.context, maps.target)]
    return [maps.context_over_time, maps.target_over_time, *rows]
