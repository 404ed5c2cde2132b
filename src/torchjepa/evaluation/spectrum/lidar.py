"""LiDAR: the rank of what tells samples apart, measured against what tells their views apart."""

from __future__ import annotations

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum.matrix import finite


def lidar(embeddings: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (Thilak et al. 2023): effective rank of the linear discriminant between surrogate classes.

    Each sample is a class and its views (masks of a JEPA, augmentations of a joint embedding) its members:
    S_b = 1/(n - 1) sum_i (m_i - m)(m_i - m)^T, S_w = 1/(n (q - 1)) sum_ij (z_ij - m_i)(z_ij - m_i)^T + delta I,
    l = eig(S_w^-1/2 S_b S_w^-1/2), LiDAR = exp(-sum_k p_k log p_k), p_k = l_k / sum l + eps.

    Args:
        embeddings: `[n, q, d]`, q views of each of n samples, both at least 2; the paper has n 1000, q 50.
        delta: ridge of the within-class covariance, 1e-4 as in the paper; in squared units of the embedding.
        eps: 1e-8 as in the paper.

    Returns:
        1 to min(n - 1, d) (plus what eps adds); 0 when the samples' means do not differ.

    Raises:
        ValueError: the shape is not `[n, q, d]` with n and q at least 2, an integer dtype, a value is not
            finite, or delta is not positive.
    """
    if embeddings.ndim != 3 or embeddings.shape[0] < 2 or embeddings.shape[1] < 2:
        raise ValueError(
            "lidar: embeddings must be [n, q, d], q views of each of n samples, n and q at least 2; "
            f"got {tuple(embeddings.shape)}."
        )
    if delta <= 0:
        raise ValueError(f"lidar: delta must be positive, got {delta}.")
    z = finite(embeddings, "lidar")
    n, q, d = z.shape
    means = z.mean(dim=1)
    within = (z - means[:, None]).flatten(0, 1)
    scatter = within.T @ within / (n * (q - 1)) + delta * torch.eye(d, dtype=z.dtype)
    between = (means - means.mean(dim=0)) / (n - 1) ** 0.5
    # With S_w = L L^T, the eigenvalues of S_w^-1/2 S_b S_w^-1/2 are those of (L^-1 B)(L^-1 B)^T.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), between.T, upper=False)
    gram = whitened.T @ whitened if n < d else whitened @ whitened.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0)
    values = torch.nn.functional.pad(values, (0, d - len(values)))
    total = values.sum()
    return torch.special.entr(values / total + eps).sum().exp().item() if total > 0 else 0.0
