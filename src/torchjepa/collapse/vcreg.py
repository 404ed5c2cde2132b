"""VCReg: variance and covariance alone, without invariance (Zhu, Shwartz-Ziv, Chen and LeCun 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms
from torchjepa.collapse.samples import Over, Samples, check_eps, check_over, check_weights
from torchjepa.collapse.spread import spread


@dataclass(frozen=True)
class VCRegLoss(WeightedTerms):
    """The two terms of VCReg, each already times its weight.

    Args:
        variance: mu_var * the hinge on the standard deviations, a scalar.
        covariance: nu_cov * the squared off-diagonal covariances, a scalar.
    """

    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


@dataclass(frozen=True)
class VCReg(AbstractCollapseRegularizer):
    """Variance and covariance of each view, the mean over the views: L = mean_v mu_var v(z_v) + nu_cov c(z_v).

    v(z) = mean_d relu(gamma - sqrt(var_d + eps)), c(z) = sum_{j != k} Cov_jk^2 / d, var and Cov divided by n - 1:
    VICReg without its invariance term, for one view or more, beside an energy that brings the views together (a
    predictor's, say).

    Cost, forward and backward, a view: 4 min(n, d) n d FLOPs; memory beside the inputs 2 n d + min(n, d)^2 numbers
    of 4 bytes, the gradient among them.

    Args:
        mu_var: weight of the variance term; 25, VICReg's (Bardes, Ponce and LeCun 2022, section 4.2).
        nu_cov: weight of the covariance term; 1, VICReg's.
        gamma: the standard deviation that the hinge asks for, in units of z; 1 (VICReg, section 4.1).
        eps: added to the variance below the square root; 1e-4 (VICReg, section 4.1).
        over: "batch", "time" or "both": what statistics run over, see `AbstractCollapseRegularizer`.

    Raises:
        ValueError: a weight or gamma is negative or not finite, eps is not positive, or over is none of the three.
    """

    mu_var: float = 25.0
    nu_cov: float = 1.0
    gamma: float = 1.0
    eps: float = 1e-4
    over: Over = "batch"

    num_views: ClassVar[tuple[int, int | None]] = (1, None)

    def __post_init__(self) -> None:
        check_weights("VCReg", mu_var=self.mu_var, nu_cov=self.nu_cov, gamma=self.gamma)
        check_eps("VCReg", self.eps)
        check_over("VCReg", self.over)

    def terms(self, samples: Samples) -> VCRegLoss:
        """The two weighted terms of grouped views.

        Args:
            samples: one view or more, checked and grouped.
        """
        num = len(samples.views)
        weights = (0.0, self.mu_var / num, self.nu_cov / num)
        return VCRegLoss(*spread(samples, self.gamma, self.eps, weights)[1:])
