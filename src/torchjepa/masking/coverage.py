"""Coverage maps: how often each position of the grid is seen and how often it is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from torchjepa.types import Grid, MaskSampler


@dataclass(frozen=True)
class Coverage:
    """How often each position is in a mask, as shares of the samples in [0, 1].

    Args:
        context: share of the samples whose context holds the position, float64 `[t, h, w]`.
        target: share of the samples with the position in at least one target block, float64 `[t, h, w]`.
    """

    context: Float64[Tensor, "t h w"]
    target: Float64[Tensor, "t h w"]

    @property
    def context_over_time(self) -> Float64[Tensor, " t"]:
        """Share of each time step that the contexts hold, float64 `[t]`."""
        return self.context.mean((1, 2))

    @property
    def target_over_time(self) -> Float64[Tensor, " t"]:
        """Share of each time step that is in at least one target block, float64 `[t]`."""
        return self.target.mean((1, 2))


def coverage(
    mask: MaskSampler, grid: Grid, num_samples: int, generator: torch.Generator, *, batch_size: int = 16
) -> Coverage:
    """Measure how often a mask shows and asks for each position of the grid.

    context[p] = mean over samples of [p in context], target[p] = mean over samples of [p in some block].
    What a mask draws once for a batch (a block size, say) varies between batches only, so many small batches
    tell more than one large one.

    Args:
        mask: any mask sampler.
        grid: the token grid.
        num_samples: number of samples to draw, rounded up to whole batches.
        generator: source of the draws.
        batch_size: samples of a single call; a mask that depends on it (the published one) shows it here.

    Raises:
        ValueError: `num_samples` or `batch_size` is below 1, or the mask refuses the grid.
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(
            f"coverage: num_samples and batch_size must be at least 1, got {num_samples} and {batch_size}."
        )
    num_batches = -(-num_samples // batch_size)
    seen = torch.zeros(grid.num_tokens, dtype=torch.float64)
    asked = torch.zeros(grid.num_tokens, dtype=torch.float64)
    for _ in range(num_batches):
        masks = mask(grid, batch_size, generator)
        seen += _membership(masks.context, grid).sum(0)
        asked += _membership(masks.targets.flatten(1), grid).sum(0)
    total = num_batches * batch_size
    return Coverage((seen / total).view(grid.shape), (asked / total).view(grid.shape))


def _membership(ids: Tensor, grid: Grid) -> Tensor:
    ids = ids.cpu()
    return torch.zeros(ids.shape[0], grid.num_tokens, dtype=torch.float64).scatter_(1, ids, 1.0)
