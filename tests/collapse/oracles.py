"""VICReg and Barlow Twins from their equations, entry by entry in float64."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def mean(z: Matrix, j: int) -> float:
    return sum(z[i, j] for i in range(len(z))) / len(z)


def second_moment(z: Matrix, j: int, k: int) -> float:
    """The sum over samples of the product of two centered dimensions."""
    return sum((z[i, j] - mean(z, j)) * (z[i, k] - mean(z, k)) for i in range(len(z)))


def vicreg(z_a: Matrix, z_b: Matrix, *, gamma: float = 1.0, eps: float = 1e-4) -> tuple[float, float, float]:
    """Invariance, variance (summed over the views) and covariance, without weights."""
    n, d = z_a.shape
    invariance = sum((z_a[i, j] - z_b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = 0.0
    for z in (z_a, z_b):
        for j in range(d):
            variance += max(0.0, gamma - math.sqrt(second_moment(z, j, j) / max(n - 1, 1) + eps)) / d
            for k in range(d):
                if j != k:
                    covariance += (second_moment(z, j, k) / max(n - 1, 1)) ** 2 / d
    return invariance, variance, covariance


def barlow_twins(z_a: Matrix, z_b: Matrix, *, unbiased: bool, eps: float = 1e-5) -> tuple[float, float]:
    """On-diagonal and off-diagonal term, without weight."""
    n, d = z_a.shape
    divisor = max(n - 1, 1) if unbiased else n
    standard = []
    for z in (z_a, z_b):
        scale = [math.sqrt(second_moment(z, j, j) / divisor + eps) for j in range(d)]
        standard.append([[(z[i, j] - mean(z, j)) / scale[j] for j in range(d)] for i in range(n)])
    on = off = 0.0
    for j in range(d):
        for k in range(d):
            c = sum(standard[0][i][j] * standard[1][i][k] for i in range(n)) / n
            if j == k:
                on += (1 - c) ** 2
            else:
                off += c**2
    return on, off


def slopes(value: Callable[[Matrix], float], at: Matrix, step: float = 1e-6) -> Matrix:
    """The gradient by central differences."""
    grad = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        grad[index] = (value(up) - value(down)) / (2 * step)
    return grad


def golden() -> tuple[Matrix, Matrix]:
    """The published-code comparison's inputs, 6 x 4."""
    i, j = np.meshgrid(np.arange(6.0), np.arange(4.0), indexing="ij")
    return np.sin(0.7 * i + 1.3 * j), np.sin(0.7 * i + 1.3 * j + 0.2)


def normal_views(seed: int, n: int, d: int) -> tuple[Matrix, Matrix]:
    z_a, z_b = np.random.default_rng(seed).normal(size=(2, n, d))
    return z_a, 0.7 * z_a + 0.5 * z_b + 0.3
