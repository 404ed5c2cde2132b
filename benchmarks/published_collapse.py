"""Plain restatements of published regularizers, in our own words: what the fast ones are measured against."""

from __future__ import annotations

import torch
from torch import Tensor


def published_sigreg(z: Tensor, slices: Tensor | None = None, *, num_slices: int = 256) -> Tensor:
    """SIGReg as LeJEPA's minimal code writes it: every knot of every slice of every sample at once, by autograd.

    z is `[n, d]`; `slices` `[d, s]` with unit columns, drawn here unless given.
    """
    if slices is None:
        slices = torch.randn(z.shape[1], num_slices, device=z.device)
        slices = slices / slices.norm(dim=0)
    t = torch.linspace(0, 3, 17, device=z.device, dtype=z.dtype)
    dt = 3 / 16
    trapezoid = torch.full_like(t, 2 * dt)
    trapezoid[[0, -1]] = dt
    phi = (-t.square() / 2).exp()
    angles = (z @ slices).unsqueeze(-1) * t  # [n, s, 17]
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return (error @ (trapezoid * phi)).mean() * len(z)
