"""Collapse regularizers as published: the formulas of the released codes, by autograd."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """The off-diagonal entries as the published codes pick them: flattened, the diagonal becomes a column."""
    d = matrix.shape[0]
    return matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def published_vicreg(z_a: Tensor, z_b: Tensor) -> Tensor:
    n, d = z_a.shape
    total = 25.0 * F.mse_loss(z_a, z_b)
    for z in (z_a - z_a.mean(0), z_b - z_b.mean(0)):
        deviation = torch.sqrt(z.var(0) + 1e-4)
        total = total + 25.0 * torch.relu(1.0 - deviation).mean() / 2.0
        total = total + off_diagonal(z.T @ z / (n - 1)).pow(2).sum() / d
    return total


@lru_cache
def batch_norm(d: int, dtype: torch.dtype) -> torch.nn.BatchNorm1d:
    """A part of the published model, with running statistics that nothing reads."""
    return torch.nn.BatchNorm1d(d, affine=False, dtype=dtype)


def published_barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    standard_a, standard_b = map(batch_norm(z_a.shape[1], z_a.dtype), (z_a, z_b))
    correlation = standard_a.T @ standard_b / len(z_a)
    on = (correlation.diagonal() - 1.0).pow(2).sum()
    return on + 0.0051 * off_diagonal(correlation).pow(2).sum()


def published_sigreg(z: Tensor, slices: Tensor | None = None, *, num_slices: int = 256) -> Tensor:
    """As LeJEPA's minimal code has it: every knot of every slice of every sample at once, by autograd."""
    if slices is None:
        slices = torch.randn(z.shape[1], num_slices, device=z.device)
        slices = slices / slices.norm(dim=0)
    t = torch.linspace(0, 3, 17, device=z.device, dtype=z.dtype)
    trapezoid = torch.full_like(t, 2 * 3 / 16)
    trapezoid[[0, -1]] = 3 / 16
    phi = (-t.square() / 2).exp()
    angles = (z @ slices).unsqueeze(-1) * t  # [n, s, 17]
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return (error @ (trapezoid * phi)).mean() * len(z)
