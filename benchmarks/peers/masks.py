"""I-JEPA's published mask collator as it works: a sample at a time, a block at a time, on maps of the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchjepa.types import Grid, Masks

_TRIES = 20


@dataclass(frozen=True)
class Collator:
    """The released configuration: four targets of 15 to 20 %, a context of 85 to 100 %, more than 10 tokens each."""

    context_scale: tuple[float, float] = (0.85, 1.0)
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    num_targets: int = 4
    min_keep: int = 10

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        target_size = _block_size(grid, self.target_scale, self.target_aspect, generator)
        context_size = _block_size(grid, self.context_scale, (1.0, 1.0), generator)
        contexts: list[Tensor] = []
        targets: list[list[Tensor]] = []
        fewest_context = fewest_target = grid.num_tokens
        for _ in range(batch_size):
            blocks, outsides = [], []
            for _ in range(self.num_targets):
                ids, outside = self._block(grid, target_size, [], generator)
                blocks.append(ids)
                outsides.append(outside)
                fewest_target = min(fewest_target, len(ids))
            context, _ = self._block(grid, context_size, outsides, generator)
            fewest_context = min(fewest_context, len(context))
            contexts.append(context)
            targets.append(blocks)
        cut_targets = [torch.stack([ids[:fewest_target] for ids in blocks]) for blocks in targets]
        return Masks(torch.stack([ids[:fewest_context] for ids in contexts]), torch.stack(cut_targets))

    def _block(
        self, grid: Grid, size: tuple[int, int], regions: list[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        # Tokens of a block inside all of the regions, and the map of what lies outside of the block.
        rows, columns = size
        given_up, left = 0, _TRIES
        while True:
            # Corners stay tensors of one number, as published: slicing by them is a part of what it costs.
            top = torch.randint(0, grid.h - rows, (1,), generator=generator)
            start = torch.randint(0, grid.w - columns, (1,), generator=generator)
            block = torch.zeros((grid.h, grid.w), dtype=torch.int32)
            block[top : top + rows, start : start + columns] = 1
            for region in regions[: max(len(regions) - given_up, 0)]:
                block *= region
            ids = torch.nonzero(block.flatten()).squeeze(1)
            if len(ids) > self.min_keep:
                break
            left -= 1
            if left == 0:
                given_up, left = given_up + 1, _TRIES
        outside = torch.ones((grid.h, grid.w), dtype=torch.int32)
        outside[top : top + rows, start : start + columns] = 0
        return ids, outside


def _block_size(
    grid: Grid, scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[int, int]:
    # One draw for scale and aspect alike.
    u = float(torch.rand(1, generator=generator))
    area = int(grid.num_tokens * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(rows, grid.h - 1), min(columns, grid.w - 1)
