"""V-JEPA's published mask generator as it works: a sample at a time, a block at a time, on maps of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchjepa.types import Grid, Masks


@dataclass(frozen=True)
class TubeCollator:
    """One of the released generators: tubes through the whole clip, the least context of one token."""

    num_blocks: int
    spatial_scale: float
    aspect: tuple[float, float] = (0.75, 1.5)

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        rows, columns = self._block_size(grid, generator)
        contexts: list[Tensor] = []
        targets: list[Tensor] = []
        while len(contexts) < batch_size:
            outside = torch.ones(grid.shape, dtype=torch.int32)
            for _ in range(self.num_blocks):
                outside *= _outside_one_block(grid, rows, columns, generator)
            flat = outside.flatten()
            hidden = torch.argwhere(flat == 0).squeeze()
            seen = torch.nonzero(flat).squeeze()
            if seen.numel():
                contexts.append(seen)
                targets.append(hidden)
        fewest_context, fewest_target = (min(map(len, ids)) for ids in (contexts, targets))
        return Masks(
            torch.stack([ids[:fewest_context] for ids in contexts]),
            torch.stack([ids[:fewest_target] for ids in targets])[:, None],
        )

    def _block_size(self, grid: Grid, generator: torch.Generator) -> tuple[int, int]:
        # Of the duration, the scale and the aspect; the first two have no range in the released configurations.
        draws = [float(torch.rand(1, generator=generator)) for _ in range(3)]
        area = int(grid.h * grid.w * self.spatial_scale)
        ratio = self.aspect[0] + draws[2] * (self.aspect[1] - self.aspect[0])
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(rows, grid.h), min(columns, grid.w)


def _outside_one_block(grid: Grid, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    # Places stay tensors of one number, as published: slicing by them is a part of what it costs.
    top = torch.randint(0, grid.h - rows + 1, (1,), generator=generator)
    left = torch.randint(0, grid.w - columns + 1, (1,), generator=generator)
    start = torch.randint(0, 1, (1,), generator=generator)
    outside = torch.ones(grid.shape, dtype=torch.int32)
    outside[start : start + grid.t, top : top + rows, left : left + columns] = 0
    return outside
