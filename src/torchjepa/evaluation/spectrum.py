"""How many directions a representation uses: spectrum, effective rank, spread and likeness of features."""

from __future__ import annotations

import torch
from torch import Tensor


def covariance_spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the feature covariance, largest first.

    eig((X - mean)^T (X - mean) / (n - 1)), computed on the smaller side in float64.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        float64 `[d]` on the CPU, no value below 0; NaN throughout when a feature is not finite.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    x = _matrix(features, "covariance_spectrum")
    n, d = x.shape
    if not bool(torch.isfinite(x).all()):
        return torch.full((d,), torch.nan, dtype=torch.float64)
    x = x - x.mean(dim=0)
    gram = x @ x.T if n < d else x.T @ x
    values = torch.linalg.eigvalsh(gram / (n - 1)).flip(0).clamp_min(0.0)
    return torch.nn.functional.pad(values, (0, d - len(values)))


def effective_rank(features: Tensor) -> float:
    """Effective rank of centred features (Roy and Vetterli 2007): how many directions carry them.

    exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j, sigma the singular values of X - mean. 1 when all
    lie on a line, d when all directions are alike, 0 when nothing varies.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        0, or 1 to `attainable_rank(n, d)`; NaN when a feature is not finite.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    return rank_of_spectrum(covariance_spectrum(features))


def rank_of_spectrum(eigenvalues: Tensor) -> float:
    """Effective rank from the eigenvalues of the covariance `[d]`, whose square roots stand for sigma."""
    sigma = eigenvalues.double().clamp_min(0.0).sqrt()
    total = sigma.sum()
    if total == 0:
        return 0.0
    p = sigma / total
    return torch.special.entr(p).sum().exp().item()


def attainable_rank(n: int, d: int) -> int:
    """The largest rank that n centred samples in d dimensions can have, min(n - 1, d)."""
    return max(0, min(n - 1, d))


def feature_std(features: Tensor) -> float:
    """Mean over the dimensions of the standard deviation over the samples (unbiased).

    Args:
        features: `[n, d]`, n at least 2.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    return _matrix(features, "feature_std").std(dim=0).mean().item()


def mean_cosine(features: Tensor) -> float:
    """Mean cosine similarity between two different samples; 1 when all point the same way.

    (|sum_i u_i|^2 - sum_i |u_i|^2) / (n (n - 1)) with u_i = x_i / |x_i|, so no n x n matrix is made. A zero
    vector has similarity 0 to everything.

    Args:
        features: `[n, d]`, n at least 2.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2.
    """
    units = torch.nn.functional.normalize(_matrix(features, "mean_cosine"), dim=1, eps=1e-12)
    n = len(units)
    together = units.sum(dim=0).square().sum() - units.square().sum()
    return (together / (n * (n - 1))).item()


def relative_error(prediction: Tensor, target: Tensor) -> float:
    """Prediction error relative to predicting the mean target; 1 means nothing learned, 0 is perfect.

    sum (p - t)^2 / sum (t - mean t)^2, the mean over the n targets. NaN when the targets do not vary.

    Args:
        prediction: `[n, d]`.
        target: `[n, d]`.

    Raises:
        ValueError: the shapes differ or are not `[n, d]` with n at least 2.
    """
    p, t = _matrix(prediction, "relative_error"), _matrix(target, "relative_error")
    if p.shape != t.shape:
        raise ValueError(
            f"relative_error: prediction {tuple(p.shape)} and target {tuple(t.shape)} must have one shape."
        )
    spread = (t - t.mean(dim=0)).square().sum()
    return ((p - t).square().sum() / spread).item() if spread > 0 else float("nan")


def _matrix(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"{name}: features must be [n, d] with n at least 2, got {tuple(features.shape)}.")
    # float64: squaring in float32 puts a floor of 1e-4 under small singular values, which hides a collapse.
    return features.detach().to("cpu").double()
