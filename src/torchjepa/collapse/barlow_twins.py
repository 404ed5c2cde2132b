"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun and Deny 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms
from torchjepa.collapse.correlation import correlation
from torchjepa.collapse.samples import Over, Samples, check_eps, check_over, check_weights


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

    With the unbiased variance (divided by n - 1, our default) C_ii of identical views is (n - 1) / n:
    a floor of d / n^2 that cannot be trained away. The published code standardises by batch norm, whose
    variance is biased (divided by n), and takes lambda = 0.0051: `BarlowTwins.official()`. The gradient is
    that of the whole batch, where the published code's is divided by the number of processes.

    In constant dimensions the variance is 0 and z standardises to 0; such a dimension adds 1 on the diagonal and
    nothing off it, with finite gradients.

    Cost, forward and backward: min(8 n, 6 d) n d FLOPs, against 6 n d^2 of the published code; memory beside the
    inputs 4 n d + 2 n^2 numbers of 4 bytes where 4 n < 3 d (from d = 257 on), else 4 n d + d^2, the gradient's 2 n d
    among them.

    Args:
        lambda_bt: weight of the off-diagonal term; 0.005 (paper, section 3).
        eps: added to the variance below the square root; 1e-5 (torch's batch norm).
        unbiased: whether the variance is divided by n - 1 rather than by n.
        over: "batch" (paper), "time" or "both": what statistics run over, see `AbstractCollapseRegularizer`.

    Raises:
        ValueError: lambda_bt is negative or not finite, eps is not positive, or over is none of the three.
    """

    lambda_bt: float = 0.005
    eps: float = 1e-5
    unbiased: bool = True
    over: Over = "batch"

    def __post_init__(self) -> None:
        check_weights("BarlowTwins", lambda_bt=self.lambda_bt)
        check_eps("BarlowTwins", self.eps)
        check_over("BarlowTwins", self.over)

    @classmethod
    def official(cls) -> BarlowTwins:
        """The published code: biased variance as in batch norm, lambda 0.0051."""
        return cls(lambda_bt=0.0051, unbiased=False)

    def terms(self, samples: Samples) -> BarlowTwinsLoss:
        """The two terms of grouped views, the second already weighted.

        Args:
            samples: two views, checked and grouped.
        """
        divisor = samples.count - 1 if self.unbiased else samples.count
        weights = (1.0, self.lambda_bt)
        return BarlowTwinsLoss(*correlation(samples, divisor, self.eps, weights))
