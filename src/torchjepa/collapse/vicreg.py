"""VICReg: variance, invariance and covariance (Bardes, Ponce and LeCun 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms
from torchjepa.collapse.samples import Over, Samples, check_eps, check_over, check_weights
from torchjepa.collapse.spread import spread


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
    V = v(z_a) + v(z_b), v(z) = mean_d relu(gamma - sqrt(var_d + eps)), var_d divided by n - 1;
    c(z) = sum_{j != k} Cov_jk^2 / d, Cov divided by n - 1.

    The paper (section 4.1) sums v over the two views, and so does this class; the published code halves the
    sum, so that at the same weights its variance term is half of ours: `VICReg.official()`. The paper's
    invariance is the sum over d; its code, and this class, take the mean.

    For constant inputs the variance is 0, v is relu(gamma - sqrt(eps)) and c is 0, with finite gradients.

    Cost, forward and backward: 8 min(n, d) n d FLOPs, against 12 n d^2 of the published code; memory beside the
    inputs 4 n d + 2 min(n, d)^2 numbers of 4 bytes, the gradient's 2 n d among them: nothing of size d x d where
    n < d (from d = 257 on).

    Args:
        lambda_inv: weight of the invariance term; 25 (paper, section 4.2).
        mu_var: weight of the variance term; 25 (paper, section 4.2).
        nu_cov: weight of the covariance term; 1 (paper, section 4.2).
        gamma: the standard deviation that the hinge asks for, in units of z; 1 (paper, section 4.1).
        eps: added to the variance below the square root; 1e-4 (paper, section 4.1, and published code).
        variance_reduction: "sum" adds the hinges of the two views (paper); "mean" averages them (published
            code).
        over: "batch" (paper), "time" or "both": what statistics run over, see `AbstractCollapseRegularizer`.

    Raises:
        ValueError: a weight or gamma is negative or not finite, eps is not positive, the reduction is
            neither "sum" nor "mean", or over is none of the three.
    """

    lambda_inv: float = 25.0
    mu_var: float = 25.0
    nu_cov: float = 1.0
    gamma: float = 1.0
    eps: float = 1e-4
    variance_reduction: Literal["sum", "mean"] = "sum"
    over: Over = "batch"

    def __post_init__(self) -> None:
        check_weights(
            "VICReg", lambda_inv=self.lambda_inv, mu_var=self.mu_var, nu_cov=self.nu_cov, gamma=self.gamma
        )
        check_eps("VICReg", self.eps)
        check_over("VICReg", self.over)
        if self.variance_reduction not in ("sum", "mean"):
            raise ValueError(
                f"VICReg: variance_reduction must be 'sum' (paper) or 'mean' (published code), got "
                f"{self.variance_reduction!r}."
            )

    @classmethod
    def official(cls) -> VICReg:
        """The published code: its variance term is the mean of the views' hinges, half the paper's sum."""
        return cls(variance_reduction="mean")

    def terms(self, samples: Samples) -> VICRegLoss:
        """The three weighted terms of grouped views.

        Args:
            samples: two views, checked and grouped.
        """
        hinge_weight = self.mu_var / (2.0 if self.variance_reduction == "mean" else 1.0)
        weights = (self.lambda_inv, hinge_weight, self.nu_cov)
        return VICRegLoss(*spread(samples, self.gamma, self.eps, weights))
