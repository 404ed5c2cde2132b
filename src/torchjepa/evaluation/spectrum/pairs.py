"""Features against others: prediction and target, two views of one sample, all samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum.matrix import even_rows, finite, matrix

_MAX_SAMPLES = 4096
_BLOCK = 512


def relative_error(prediction: Tensor, target: Tensor) -> float:
    """Prediction error relative to predicting the mean target; 1 means nothing learned, 0 is perfect.

    sum (p - t)^2 / sum (t - mean t)^2, the mean over the n targets. NaN when the targets do not vary.

    Args:
        prediction: `[n, d]`.
        target: `[n, d]`.

    Raises:
        ValueError: the shapes differ or are not `[n, d]` with n at least 2.
    """
    p, t = matrix(prediction, "relative_error"), matrix(target, "relative_error")
    if p.shape != t.shape:
        raise ValueError(
            f"relative_error: prediction {tuple(p.shape)} and target {tuple(t.shape)} must have one shape."
        )
    spread = (t - t.mean(dim=0)).square().sum()
    return ((p - t).square().sum() / spread).item() if spread > 0 else float("nan")


def alignment(z_a: Tensor, z_b: Tensor, power: float = 2) -> float:
    """How near two views of one sample lie on the sphere (Wang and Isola 2020).

    mean_i |u_a,i - u_b,i|^power, u = z / |z|

    Args:
        z_a: one view of each sample, `[n, d]`, n at least 2.
        z_b: another view of each, `[n, d]`.
        power: 2, as in the paper.

    Returns:
        0 when the views agree, to 2^power; smaller is better as long as `uniformity` holds.

    Raises:
        ValueError: the shapes differ or are not `[n, d]`, an integer dtype, or a value is not finite.
    """
    a, b = _directions(z_a, "alignment"), _directions(z_b, "alignment")
    if a.shape != b.shape:
        raise ValueError(f"alignment: z_a {tuple(a.shape)} and z_b {tuple(b.shape)} must have one shape.")
    return (a - b).norm(dim=1).pow(power).mean().item()


def uniformity(z: Tensor, t: float = 2) -> float:
    """How evenly samples cover the sphere (Wang and Isola 2020).

    log mean_{i < j} exp(-t |u_i - u_j|^2), u = z / |z|; over at most 4096 samples, evenly spaced, in blocks of
    512.

    Args:
        z: `[n, d]`, n at least 2.
        t: 2, as in the paper.

    Returns:
        0 when all point the same way, down to about -2 t for directions at right angles (-4 t at the least).

    Raises:
        ValueError: the shape is not `[n, d]`, an integer dtype, or a value is not finite.
    """
    u = even_rows(_directions(z, "uniformity"), _MAX_SAMPLES)
    n = len(u)
    logs = torch.stack([_log_kernel(u, start, t) for start in range(0, n, _BLOCK)])
    return logs.logsumexp(dim=0).item() - math.log(n * (n - 1))


def _log_kernel(u: Tensor, start: int, t: float) -> Tensor:
    """Log of sum exp(-t |u_i - u_j|^2) over a block of rows i and every other j."""
    block = u[start : start + _BLOCK]
    lengths = u.square().sum(dim=1)  # 1, and 0 of a zero vector
    square = (lengths[start : start + _BLOCK, None] + lengths - 2 * block @ u.T).clamp_min(0.0)
    square[torch.arange(len(block)), torch.arange(start, start + len(block))] = math.inf
    return (-t * square).flatten().logsumexp(dim=0)


def _directions(z: Tensor, name: str) -> Tensor:
    return torch.nn.functional.normalize(matrix(finite(z, name), name), dim=1, eps=1e-300)
