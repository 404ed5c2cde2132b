"""Masks: a batch of I-JEPA's masks, beside the published collator's loop over samples and blocks

One process, one thread, as in a data worker. The two cannot give the same masks from one generator: the collator draws
a number at a time. What is checked is the distribution. `legacy=True` must give the same block sizes for every seed and
context lengths with the same mean; *apart* is the distance of these means and of the shares in which each row of the
grid is seen. The default samples another distribution on purpose (the collator never reaches the last row and column,
and cuts contexts to the batch's shortest, from the end), so there is nothing to be apart from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.harness import Comparison, Contenders, relative_distance
from benchmarks.peers.masks import Collator
from torchjepa.masking import Grid, MaskSampler, MultiBlockMasking, coverage

_NUM_CHECKED = 60  # batches of 16


def comparisons() -> Iterator[Comparison]:
    for side, batch_size in ((14, 256), (14, 16), (16, 2048), (32, 256)):
        for legacy in (False, True):
            first = (side, batch_size) == (14, 256)
            yield Comparison(
                f"{side} x {side}, batch {batch_size}, {'legacy=True' if legacy else 'default'}",
                "official",
                partial(_build, side, batch_size, legacy),
                goal=50.0 if first else None,
                bar=40.0 if first and not legacy else None,
                # Over 960 samples and 60 block sizes the means have a standard error of 1 to 2 %.
                tolerance=0.08,
                pairs=15 if batch_size <= 256 else 5,
                threads=1,
            )


def _build(side: int, batch_size: int, legacy: bool) -> Contenders:
    grid, ours, peer = Grid(h=side, w=side), MultiBlockMasking(legacy=legacy), Collator()
    streams = [torch.Generator().manual_seed(0) for _ in range(2)]
    ours(grid, batch_size, streams[0])  # the plan of a grid is made once
    return Contenders(
        partial(ours, grid, batch_size, streams[0]),
        partial(peer, grid, batch_size, streams[1]),
        deviation=_apart(ours, peer, grid) if legacy else None,
    )


def _apart(ours: MaskSampler, peer: MaskSampler, grid: Grid) -> float:
    for seed in range(20):
        first, second = (
            sampler(grid, 2, torch.Generator().manual_seed(seed)).targets[0, 0] for sampler in (ours, peer)
        )
        if not torch.equal(first - first[0], second - second[0]):
            raise RuntimeError(f"seed {seed} gives target blocks of another shape on {grid}.")
    figures = []
    for sampler in (ours, peer):
        stream = torch.Generator().manual_seed(1)
        maps = coverage(sampler, grid, 16 * _NUM_CHECKED, stream, batch_size=16)
        rows = torch.cat([maps.context[0].mean(1), maps.target[0].mean(1)])
        figures.append([maps.context.sum()[None] / grid.num_tokens, rows])
    return relative_distance(*figures)
