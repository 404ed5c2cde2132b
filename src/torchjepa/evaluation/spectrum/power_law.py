"""The exponent with which a spectrum decays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum.matrix import finite
from torchjepa.evaluation.spectrum.rank import attainable_rank, covariance_spectrum

# Eigenvalues below this share of the largest are rounding of float64 Gram products, not spectrum.
_FLOOR = 1e-13


class AlphaReQ(NamedTuple):
    """A power law fitted to a spectrum.

    Args:
        alpha: the exponent; about 1 is good, well above collapses, well below is noise.
        r_squared: how much of log l the line explains, at most 1.
        first: index of the first eigenvalue of the fit, from 1.
        last: index of the last.
    """

    alpha: float
    r_squared: float
    first: int
    last: int


def alpha_req(features: Tensor, fit_range: tuple[int, int] | None = None) -> AlphaReQ:
    """Exponent of the power law that the covariance spectrum follows (alpha-ReQ, Agrawal et al. 2022).

    l_j ~ j^-alpha; alpha is minus the slope of the least-squares line through (log j, log l_j), j = first..last.

    Args:
        features: `[n, d]`, n at least 2.
        fit_range: `(first, last)`, counted from 1, both included. By default the middle of the spectrum: from
            4 (from 1 in fewer than 16 attainable directions) to half of `attainable_rank(n, d)`, at most 100
            (the head is set by the data's mean factors, the tail by the number of samples).

    Returns:
        The exponent, R^2 and the range, which ends at the last eigenvalue above rounding; NaN where fewer than
        two are left.

    Raises:
        ValueError: the shape is not `[n, d]` with n at least 2, a value is not finite, or the range is not
            inside 1..d with two eigenvalues or more.
    """
    values = covariance_spectrum(finite(features, "alpha_req"))
    n, d = features.shape
    if fit_range is not None and not 1 <= fit_range[0] < fit_range[1] <= d:
        raise ValueError(
            f"alpha_req: fit_range must be (first, last) with 1 <= first < last <= {d}, got {fit_range}."
        )
    return power_law_of_spectrum(values, attainable_rank(n, d), fit_range)


def power_law_of_spectrum(
    eigenvalues: Tensor, attainable: int, fit_range: tuple[int, int] | None = None
) -> AlphaReQ:
    """`alpha_req` from the eigenvalues of the covariance `[d]`, largest first, and the attainable rank."""
    first, last = fit_range or _middle(attainable)
    last = min(last, int((eigenvalues > _FLOOR * eigenvalues[0]).sum()))
    if last <= first:
        return AlphaReQ(float("nan"), float("nan"), first, last)
    x = torch.arange(first, last + 1, dtype=torch.float64).log()
    y = eigenvalues[first - 1 : last].log()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    spread = y.square().sum()
    r_squared = 1 - (y - slope * x).square().sum() / spread if spread > 0 else torch.ones(())
    return AlphaReQ(-slope.item(), r_squared.item(), first, last)


def _middle(rank: int) -> tuple[int, int]:
    return (1, max(2, rank // 2)) if rank < 16 else (4, min(100, rank // 2))
