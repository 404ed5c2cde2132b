"""How far features spread: standard deviations, likeness, dead and repeated dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum.matrix import finite, matrix

_MAX_DIMENSIONS = 4096


def feature_std(features: Tensor) -> float:
    """Mean over the dimensions of the standard deviation over the samples (unbiased).

    Args:
        features: `[n, d]`, n at least 2.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    return matrix(features, "feature_std").std(dim=0).mean().item()


def mean_cosine(features: Tensor) -> float:
    """Mean cosine similarity between two different samples; 1 when all point the same way.

    (|sum_i u_i|^2 - sum_i |u_i|^2) / (n (n - 1)) with u_i = x_i / |x_i|, so no n x n matrix is made. A zero
    vector has similarity 0 to everything.

    Args:
        features: `[n, d]`, n at least 2.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    units = torch.nn.functional.normalize(matrix(features, "mean_cosine"), dim=1, eps=1e-12)
    n = len(units)
    together = units.sum(dim=0).square().sum() - units.square().sum()
    return (together / (n * (n - 1))).item()


def normalized_std(features: Tensor) -> float:
    """Spread of the features' directions, 1 for directions all over the sphere and 0 for one direction.

    sqrt(d) * sqrt(mean_j var(u_j)), u_i = x_i / |x_i|; Chen and He (2021, section 4.1) take the mean of the
    standard deviations instead of the root of the mean variance, which depends on the axes.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        0 to sqrt(n / (n - 1)); NaN when a feature is not finite.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    units = torch.nn.functional.normalize(matrix(features, "normalized_std"), dim=1, eps=1e-300)
    return units.var(dim=0).sum().sqrt().item()


def dead_dimensions(features: Tensor, threshold: float = 0.01) -> int:
    """Number of dimensions that hardly vary.

    #{j : std_j <= threshold * sqrt(mean_k var_k)}

    Args:
        features: `[n, d]`, n at least 2.
        threshold: relative to the root mean square of all standard deviations; 0.01 by default.

    Returns:
        0 to d; d when nothing varies.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, an integer dtype, or a value is not finite.
    """
    std = matrix(finite(features, "dead_dimensions"), "dead_dimensions").std(dim=0)
    return int((std <= threshold * std.square().mean().sqrt()).sum())


def mean_off_diagonal_correlation(features: Tensor) -> float:
    """Mean absolute correlation between two different dimensions: what Barlow Twins and VICReg push to 0.

    mean_{i != j} |corr(x_i, x_j)|, over dimensions that vary; about sqrt(2 / (pi n)) for independent Gaussian
    ones. Taken from at most 4096 dimensions, evenly spaced, in blocks of 512 rows of the matrix.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        0 to 1; NaN when fewer than two dimensions vary.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, an integer dtype, or a value is not finite.
    """
    name = "mean_off_diagonal_correlation"
    x = matrix(finite(features, name), name)
    x = x[:, x.std(dim=0) > 0]
    d = x.shape[1]
    if d > _MAX_DIMENSIONS:
        x, d = x[:, torch.arange(_MAX_DIMENSIONS) * d // _MAX_DIMENSIONS], _MAX_DIMENSIONS
    if d < 2:
        return float("nan")
    units = torch.nn.functional.normalize(x - x.mean(dim=0), dim=0, eps=1e-300)
    total = sum(float((block.T @ units).abs().sum()) for block in units.split(512, dim=1))
    return (total - d) / (d * (d - 1))
