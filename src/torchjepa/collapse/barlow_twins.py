"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun and Deny 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse import moments
from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms


@dataclass(frozen=True)
class BarlowTwinsLoss(WeightedTerms):
    """The two terms of Barlow Twins, as they are added up.

    Args:
        on_diagonal: sum_i (1 - C_ii)^2, a scalar.
        off_diagonal: lambda_bt * sum_{i != j} C_ij^2, a scalar.
    """

    on_diagonal: Float[Tensor, ""]
    off_diagonal: Float[Tensor, ""]


@dataclass(frozen=True)
class BarlowTwins(AbstractCollapseRegularizer):
    """Barlow Twins over the global batch: L = sum_i (1 - C_ii)^2 + lambda_bt * sum_{i != j} C_ij^2.

    C = Z_a^T Z_b / n, with each view standardised by its mean and sqrt(var + eps) over the batch.

    With the unbiased variance (divided by max(n - 1, 1), our default) C_ii of identical views is (n - 1) / n:
    a floor of d / n^2 that cannot be trained away. The published code standardises by batch norm, whose
    variance is biased (divided by n), and takes lambda = 0.0051: `BarlowTwins.official()`. The gradient is
    that of the whole batch, where the published code's is divided by the number of processes.

    Where it is finite: with n = 1, and in constant dimensions, the variance is 0 and z standardises to 0;
    such a dimension adds 1 on the diagonal and nothing off it, with finite gradients. NaN stays NaN.

    Args:
        lambda_bt: weight of the off-diagonal term; 0.005 (paper, section 3).
        eps: added to the variance below the square root; 1e-5 (torch's batch norm).
        unbiased: whether the variance is divided by max(n - 1, 1) rather than by n.

    Raises:
        ValueError: lambda_bt is negative or not finite, or eps is not positive.
    """

    lambda_bt: float = 0.005
    eps: float = 1e-5
    unbiased: bool = True

    def __post_init__(self) -> None:
        moments.check_weights("BarlowTwins", lambda_bt=self.lambda_bt)
        moments.check_eps("BarlowTwins", self.eps)

    @classmethod
    def official(cls) -> BarlowTwins:
        """The published code: biased variance as in batch norm, lambda 0.0051."""
        return cls(lambda_bt=0.0051, unbiased=False)

    def compute(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> BarlowTwinsLoss:
        """The two terms, the second already weighted.

        Args:
            z_a: embeddings of the first view, `[n, d]`, any floating dtype; computed in float32 or wider.
            z_b: embeddings of the second view, `[n, d]`; row i is another view of the sample of z_a's row i.

        Raises:
            ValueError: the shapes differ or are not `[n, d]`, there is no row, or a dtype is not floating.
        """
        z_a, z_b = moments.check_views("BarlowTwins", z_a, z_b)
        with moments.autocast_off(z_a.device):
            standard_a, count = self._standardised(z_a)
            standard_b, _ = self._standardised(z_b)
            correlation = moments.cross_moments(standard_a, standard_b) / count
            return BarlowTwinsLoss(
                on_diagonal=(1.0 - correlation.diagonal()).square().sum(),
                off_diagonal=self.lambda_bt * moments.off_diagonal_energy(correlation),
            )

    def _standardised(self, z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, ""]]:
        z, count = moments.centered(z)
        divisor = moments.degrees_of_freedom(count) if self.unbiased else count
        return z / (moments.sum_of_squares(z) / divisor + self.eps).sqrt(), count
