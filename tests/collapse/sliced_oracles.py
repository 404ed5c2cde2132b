"""SIGReg, W-MSE and LeJEPA from their equations, sample by sample in float64."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def sigreg(z: Matrix, slices: Matrix, *, num_knots: int = 17, t_max: float = 3.0) -> float:
    n, dt = len(z), t_max / (num_knots - 1)
    total = 0.0
    for column in slices.T:
        x = [sum(z[i, j] * column[j] for j in range(z.shape[1])) for i in range(n)]
        for k in range(num_knots):
            t = k * dt
            phi = math.exp(-t * t / 2)
            weight = phi * (dt if k in (0, num_knots - 1) else 2 * dt)
            real = sum(math.cos(t * value) for value in x) / n
            imaginary = sum(math.sin(t * value) for value in x) / n
            total += n * weight * ((real - phi) ** 2 + imaginary**2)
    return total / slices.shape[1]


def whitened(z: Matrix, eps: float) -> Matrix:
    n, d = z.shape
    mean = [sum(z[:, j]) / n for j in range(d)]
    covariance = np.zeros((d, d))
    for j in range(d):
        for k in range(d):
            covariance[j, k] = sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(n)) / (n - 1)
    factor = np.linalg.cholesky((1 - eps) * covariance + eps * np.eye(d))
    return np.stack([np.linalg.solve(factor, row - mean) for row in z])


def wmse(views: Sequence[Matrix], eps: float = 1e-6) -> float:
    """The samples whitened together, all pairs of views."""
    units = [[row / math.sqrt(row @ row) for row in whitened(z, eps)] for z in views]
    distances = [
        sum((a - b) @ (a - b) for a, b in zip(units[i], units[j])) / len(views[0])
        for i in range(len(views))
        for j in range(i)
    ]
    return sum(distances) / len(distances)


def invariance(views: Sequence[Matrix], num_global: int) -> float:
    n, d = views[0].shape
    total = 0.0
    for z in views:
        for i in range(n):
            for j in range(d):
                centre = sum(view[i, j] for view in views[:num_global]) / num_global
                total += (z[i, j] - centre) ** 2
    return total / (len(views) * n * d)
