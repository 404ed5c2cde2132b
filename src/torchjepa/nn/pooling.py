"""From the tokens of a sample to one vector."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MeanPool:
    """The mean over tokens: `[b, n, d]` -> `[b, d]`."""

    name: ClassVar[str] = "mean"

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool `[b, n, d]` to `[b, d]`."""
        return tokens.mean(dim=1)

    def out_dim(self, dim: int) -> int:
        """Length of the pooled vector of tokens of dimension `dim`."""
        return dim


@dataclass(frozen=True)
class MeanMaxPool:
    """Mean and maximum over tokens side by side, for small objects: `[b, n, d]` -> `[b, 2d]`."""

    name: ClassVar[str] = "mean_max"

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d_out"]:
        """Pool `[b, n, d]` to `[b, 2d]`, means first."""
        return torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1)

    def out_dim(self, dim: int) -> int:
        """Length of the pooled vector of tokens of dimension `dim`."""
        return 2 * dim


def pool_by_name(name: str) -> MeanPool | MeanMaxPool:
    """The pooling of that name, as a run or a saved encoder writes it down.

    Args:
        name: `"mean"` or `"mean_max"`.

    Raises:
        ValueError: an unknown name.
    """
    pools = {pool.name: pool for pool in (MeanPool(), MeanMaxPool())}
    if name not in pools:
        nearest = difflib.get_close_matches(name, pools, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"pool_by_name: no pooling {name!r}, there are {', '.join(pools)}{hint}")
    return pools[name]
