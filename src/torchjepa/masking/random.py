"""Random masking: hide a fixed share of the tokens, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torchjepa.masking.draws import check_count, random_order
from torchjepa.types import Grid, Masks


@dataclass(frozen=True)
class RandomMasking:
    """A uniformly random share of the tokens is to be predicted, the rest is the context.

    k = round(ratio * n / m), n_ctx = n - m * k: the target blocks are disjoint random sets of tokens and
    every token is either context or target. Works on any grid, time included.

    Args:
        ratio: share of the tokens to be predicted, in (0, 1).
        num_targets: number of disjoint target blocks, m. Default 1.

    Raises:
        ValueError: `ratio` is outside (0, 1) or `num_targets` is below 1; when called, a grid with too few
            tokens for at least one in every target block and one in the context.
    """

    ratio: float
    num_targets: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(
                f"RandomMasking: ratio must lie strictly between 0 and 1, got {self.ratio!r}; "
                "it is the share of the tokens to be predicted."
            )
        check_count("RandomMasking", "num_targets", self.num_targets)

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks for a batch.

        Args:
            grid: the token grid, any `(t, h, w)`.
            batch_size: number of samples.
            generator: source of every draw.

        Returns:
            context int64 `[b, n - m * k]` and targets int64 `[b, m, k]`, on the CPU.

        Raises:
            ValueError: the grid is too small for the ratio, or `batch_size` is below 1.
        """
        check_count("RandomMasking", "batch_size", batch_size)
        block_length = self._block_length(grid)
        num_hidden = self.num_targets * block_length
        order = random_order(batch_size, grid.num_tokens, generator)
        targets = order[:, :num_hidden].reshape(batch_size, self.num_targets, block_length)
        return Masks(
            torch.from_numpy(np.sort(order[:, num_hidden:], axis=1)),
            torch.from_numpy(np.sort(targets, axis=2)),
        )

    def _block_length(self, grid: Grid) -> int:
        block_length = round(self.ratio * grid.num_tokens / self.num_targets)
        if block_length < 1 or self.num_targets * block_length >= grid.num_tokens:
            raise ValueError(
                f"RandomMasking: ratio={self.ratio} with num_targets={self.num_targets} gives target "
                f"blocks of {block_length} tokens on a grid of {grid.num_tokens}; every block and the "
                "context need at least one. Change ratio or num_targets, or use a finer grid."
            )
        return block_length
