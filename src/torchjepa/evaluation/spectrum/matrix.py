"""What every figure starts from: a feature matrix in float64, of the right shape."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(features: Tensor, name: str) -> Tensor:
    """Features `[n, d]`, n at least 2, as float64 on the CPU.

    Raises:
        ValueError: another shape.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"{name}: features must be [n, d] with n at least 2, got {tuple(features.shape)}.")
    # float64: squaring in float32 puts a floor of 1e-4 under small singular values, which hides a collapse.
    return features.detach().to("cpu").double()


def finite(features: Tensor, name: str) -> Tensor:
    """Floating-point features without NaN or infinity, as float64 on the CPU.

    Raises:
        ValueError: an integer dtype, or a value that is not finite.
    """
    if not features.is_floating_point():
        raise ValueError(
            f"{name}: features must be floating point, got {features.dtype}; convert with .float()."
        )
    x = features.detach().to("cpu").double()
    bad = x.numel() - int(torch.isfinite(x).sum())
    if bad:
        raise ValueError(
            f"{name}: {bad} of {x.numel()} values are NaN or infinite; leave those samples out, or let "
            "torchjepa.evaluation.diagnose report them."
        )
    return x


def even_rows(features: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spaced."""
    n = features.shape[0]
    if n <= most:
        return features
    return features[torch.arange(most, device=features.device) * n // most]
