"""How many directions a representation uses: the covariance spectrum and the ranks taken from it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum.matrix import finite, matrix


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
    x = matrix(features, "covariance_spectrum")
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


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023): the effective rank of features that are not centred.

    exp(-sum_k p_k log p_k), p_k = sigma_k / ||sigma||_1 + eps, sigma the min(n, d) singular values of X. The
    common mean counts as one large direction, so features that are constant but for noise come near 1.

    Args:
        features: `[n, d]`, n at least 2; the paper uses 25,600 samples.
        eps: 1e-7 as in the paper.

    Returns:
        1 to min(n, d) (plus what eps adds, 1e-7 log 1e7 for a direction); 0 when all features are 0.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, an integer dtype, or a value is not finite.
    """
    x = matrix(finite(features, "rankme"), "rankme")
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    total = sigma.sum()
    return torch.special.entr(sigma / total + eps).sum().exp().item() if total > 0 else 0.0


def participation_ratio(features: Tensor) -> float:
    """Participation ratio of the centred spectrum: a rank in which small directions hardly count.

    (sum_i l_i)^2 / sum_i l_i^2, l the eigenvalues of the covariance.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        1 to `attainable_rank(n, d)`; 0 when nothing varies.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, or a value is not finite.
    """
    values = covariance_spectrum(finite(features, "participation_ratio"))
    power = values.square().sum()
    return (values.sum().square() / power).item() if power > 0 else 0.0


def top_share(features: Tensor) -> float:
    """Share of the variance that lies along the strongest direction.

    l_1 / sum_i l_i, l the eigenvalues of the covariance, largest first.

    Args:
        features: `[n, d]`, n at least 2.

    Returns:
        1 / `attainable_rank(n, d)` to 1; 0 when nothing varies.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, or a value is not finite.
    """
    values = covariance_spectrum(finite(features, "top_share"))
    total = values.sum()
    return (values[0] / total).item() if total > 0 else 0.0
