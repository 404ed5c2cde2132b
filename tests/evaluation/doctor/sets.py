"""Feature sets whose state is known by construction."""

from __future__ import annotations

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def power_law(n: int, d: int, alpha: float = 1.0, seed: int = 0) -> Tensor:
    basis, _ = torch.linalg.qr(randn(d, d, seed=seed + 1))
    return randn(n, d, seed=seed) * torch.arange(1, d + 1).pow(-alpha / 2) @ basis


def relu_pooled(n: int = 256, d: int = 64) -> Tensor:
    """Rectified and averaged over 16 places: a large common mean, cosines of about 0.93."""
    weights = randn(16, d, seed=3)
    return (
        (randn(n, 1, 16, seed=1) + randn(n, 16, 16, seed=2) @ torch.eye(16))
        .matmul(weights)
        .relu()
        .mean(dim=1)
    )


def tokens(
    b: int = 64, k: int = 16, d: int = 32, sample: float = 1, place: float = 1, rest: float = 1
) -> Tensor:
    """x_ik = mean + sample_i + place_k + rest_ik, each with its own deviation."""
    parts = randn(b, 1, d, seed=1) * sample, randn(1, k, d, seed=2) * place, randn(b, k, d, seed=3) * rest
    return randn(1, 1, d, seed=4) + sum(parts)


def history(
    steps: int = 400, every: int = 20, warmup: int = 20, **series: float
) -> list[dict[str, float | None]]:
    """Rows of a cosine run; `health_std=0.1` goes geometrically from 1 to 0.1."""
    rows: list[dict[str, float | None]] = []
    for step in range(0, steps, every):
        share = step / max(every, steps - every)
        rate = (step + 1) / warmup if step < warmup else 1 - 0.9 * share
        row: dict[str, float | None] = {
            "step": step,
            "lr": rate,
        }
        rows.append(row | {name.replace("_", "/", 1): end**share for name, end in series.items()})
    return rows
