"""VICReg: variance, invariance and covariance (Bardes, Ponce and LeCun 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist
from torchjepa.collapse import moments
from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms


@dataclass(frozen=True)
class VICRegLoss(WeightedTerms):
    """The three terms of VICReg, each already times its weight.

    Args:
        invariance: lambda_inv * the mean squared difference between the views, a scalar.
        variance: mu_var * the hinge on the standard deviations, a scalar.
        covariance: nu_cov * the squared off-diagonal covariances, a scalar.
    """

    invariance: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


@dataclass(frozen=True)
class VICReg(AbstractCollapseRegularizer):
    """VICReg over the global batch: L = lambda_inv s(z_a, z_b) + mu_var V + nu_cov (c(z_a) + c(z_b)).

    s = mean over n and d of (z_a - z_b)^2;
    V = v(z_a) + v(z_b), v(z) = mean_d relu(gamma - sqrt(var_d + eps)), var_d divided by max(n - 1, 1);
    c(z) = sum_{j != k} Cov_jk^2 / d, Cov divided by max(n - 1, 1).

    The paper (section 4.1) sums v over the two views, and so does this class; the published code halves the
    sum, so that at the same weights its variance term is half of ours: `VICReg.official()`. The paper's
    invariance is the sum over d; its code, and this class, take the mean.

    Where it is finite: with n = 1, and for constant inputs, the variance is 0, v is relu(gamma - sqrt(eps))
    and c is 0, with finite gradients. NaN stays NaN.

    Args:
        lambda_inv: weight of the invariance term; 25 (paper, section 4.2).
        mu_var: weight of the variance term; 25 (paper, section 4.2).
        nu_cov: weight of the covariance term; 1 (paper, section 4.2).
        gamma: the standard deviation that the hinge asks for, in units of z; 1 (paper, section 4.1).
        eps: added to the variance below the square root; 1e-4 (paper, section 4.1, and published code).
        variance_reduction: "sum" adds the hinges of the two views (paper); "mean" averages them (published
            code).

    Raises:
        ValueError: a weight or gamma is negative or not finite, eps is not positive, or the reduction is
            neither "sum" nor "mean".
    """

    lambda_inv: float = 25.0
    mu_var: float = 25.0
    nu_cov: float = 1.0
    gamma: float = 1.0
    eps: float = 1e-4
    variance_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        moments.check_weights(
            "VICReg", lambda_inv=self.lambda_inv, mu_var=self.mu_var, nu_cov=self.nu_cov, gamma=self.gamma
        )
        moments.check_eps("VICReg", self.eps)
        if self.variance_reduction not in ("sum", "mean"):
            raise ValueError(
                f"VICReg: variance_reduction must be 'sum' (paper) or 'mean' (published code), got "
                f"{self.variance_reduction!r}."
            )

    @classmethod
    def official(cls) -> VICReg:
        """The published code: its variance term is the mean of the views' hinges, half the paper's sum."""
        return cls(variance_reduction="mean")

    def compute(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> VICRegLoss:
        """The three weighted terms.

        Args:
            z_a: embeddings of the first view, `[n, d]`, any floating dtype; computed in float32 or wider.
            z_b: embeddings of the second view, `[n, d]`; row i is another view of the sample of z_a's row i.

        Raises:
            ValueError: the shapes differ or are not `[n, d]`, there is no row, or a dtype is not floating.
        """
        z_a, z_b = moments.check_views("VICReg", z_a, z_b)
        with moments.autocast_off(z_a.device):
            centered_a, count = moments.centered(z_a)
            centered_b, _ = moments.centered(z_b)
            squares = dist.all_reduce_sum((z_a - z_b).square().sum())
            hinges = self._hinge(centered_a, count) + self._hinge(centered_b, count)
            if self.variance_reduction == "mean":
                hinges = hinges / 2.0
            return VICRegLoss(
                invariance=self.lambda_inv * squares / (count * z_a.shape[1]),
                variance=self.mu_var * hinges,
                covariance=self.nu_cov * (_covariance(centered_a, count) + _covariance(centered_b, count)),
            )

    def _hinge(self, z: Float[Tensor, "n d"], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
        variance = moments.sum_of_squares(z) / moments.degrees_of_freedom(count)
        return torch.relu(self.gamma - (variance + self.eps).sqrt()).mean()


def _covariance(z: Float[Tensor, "n d"], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    covariance = moments.cross_moments(z, z) / moments.degrees_of_freedom(count)
    return moments.off_diagonal_energy(covariance) / z.shape[1]
