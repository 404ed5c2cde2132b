"""Nearest neighbours by cosine similarity, a chunk of queries at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SIMILARITIES_HELD = 1 << 24  # entries of one chunk's similarity matrix: 64 MiB in float32


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` most similar to each query, s(q, x) = q.x / (|q| |x|), most similar first.

    A zero vector has similarity 0 to everything. The n_q x n similarity matrix is never held whole.

    Args:
        queries: `[n_q, d]`.
        bank: `[n, d]`.
        k: number of neighbours, 1 to n.

    Returns:
        Similarities, float32 `[n_q, k]`, and row numbers of `bank`, int64 `[n_q, k]`.

    Raises:
        ValueError: the shapes do not match, k is out of range, or a feature is not finite.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"nearest: queries and bank must be [n_q, d] and [n, d] with one d, "
            f"got {tuple(queries.shape)} and {tuple(bank.shape)}."
        )
    if not 1 <= k <= bank.shape[0]:
        raise ValueError(
            f"nearest: k must be from 1 to {bank.shape[0]}, the samples to choose from, got {k}."
        )
    require_finite(queries, "queries")
    require_finite(bank, "bank")
    columns = F.normalize(bank.float(), dim=1).T
    chunk = max(1, _SIMILARITIES_HELD // bank.shape[0])
    parts = [(F.normalize(rows.float(), dim=1) @ columns).topk(k, dim=1) for rows in queries.split(chunk)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def require_finite(features: Tensor, name: str) -> None:
    """Refuse features `[n, d]` that hold NaN or Inf, and count them.

    Args:
        features: `[n, d]`.
        name: what to call them in the message.

    Raises:
        ValueError: some are not finite.
    """
    bad = ~torch.isfinite(features)
    if bool(bad.any()):
        raise ValueError(
            f"{name}: {int(bad.sum())} of {bad.numel()} values in {int(bad.any(dim=1).sum())} of "
            f"{bad.shape[0]} samples are NaN or Inf; the encoder has diverged: judge an earlier checkpoint."
        )
