"""LeJEPA: views brought to their centre, and SIGReg against collapse (Balestriero and LeCun 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.base import CollapseRegularizer, WeightedTerms
from torchjepa.collapse.samples import autocast_off, check_finite, group_samples
from torchjepa.collapse.sigreg import SIGReg
from torchjepa.collapse.stateful import ModuleDataclass


@dataclass(frozen=True)
class LeJEPALoss(WeightedTerms):
    """The two terms of LeJEPA, each already times its weight.

    Args:
        invariance: (1 - weight) * the mean squared distance of the views to their centre, a scalar.
        sigreg: weight * the regularizer's loss, a scalar.
    """

    invariance: Float[Tensor, ""]
    sigreg: Float[Tensor, ""]


@dataclass(eq=False)
class LeJEPA(ModuleDataclass):
    """The LeJEPA objective over the global batch: L = (1 - weight) invariance + weight SIGReg(z_1, ..., z_v).

    invariance = mean over views, samples and dimensions of (z_v - c)^2, c = the mean of the first
    num_global_views views of the same sample; the gradient flows through c as well. No EMA, no stop-gradient.

    With two views, both global, the invariance is a quarter of the mean squared difference of the views, VICReg's.

    Cost: that of the regularizer, and 6 v n d FLOPs.

    Args:
        weight: lambda, from 0 to 1, of the regularizer; 0.05 (LeJEPA; its minimal code has 0.02, and it reports 0.01
            to 0.1 as a safe range).
        num_global_views: how many of the first views make the centre; 2 (LeJEPA, beside 6 local views).
        regularizer: of all views; `SIGReg()`. What its statistics run over (batch, time) is its own field.

    Raises:
        ValueError: weight is not from 0 to 1, or num_global_views is not a positive integer.
    """

    weight: float = 0.05
    num_global_views: int = 2
    regularizer: CollapseRegularizer = field(default_factory=SIGReg)

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(
                f"LeJEPA: weight must be from 0 (invariance alone) to 1 (regularizer alone), got {self.weight!r}."
            )
        if not isinstance(self.num_global_views, int) or self.num_global_views < 1:
            raise ValueError(
                f"LeJEPA: num_global_views must be an integer of at least 1, got {self.num_global_views!r}."
            )

    @property
    def num_views(self) -> tuple[int, int | None]:
        """The smallest and the largest number of views: the global ones, and no limit."""
        return self.num_global_views, None

    def compute(self, *views: Float[Tensor, "*axes d"]) -> LeJEPALoss:
        """The two weighted terms.

        Args:
            views: embeddings of the samples, global views first, `[n, d]` or `[b, t, d]`, any floating dtype;
                computed in float32 or wider. Row i of every view belongs to the same sample.

        Raises:
            ValueError: fewer views than the global ones; otherwise as the regularizer.
        """
        (samples,) = group_samples("LeJEPA", views, "batch", num_views=self.num_views, min_samples=1)
        with autocast_off(views[0].device):
            centre = sum(samples.views[: self.num_global_views]) / self.num_global_views
            squares = torch.stack([(z - centre).square().sum((1, 2)) for z in samples.views]).sum(0)
            entries = len(views) * samples.count * views[0].shape[-1]
            invariance = samples.mean_over_groups(samples.sum(squares)) / entries
            check_finite("LeJEPA", [invariance], views)
        terms = self.regularizer.compute(*views)
        return LeJEPALoss(invariance=(1.0 - self.weight) * invariance, sigreg=self.weight * terms.total())

    def loss(self, *views: Float[Tensor, "*axes d"]) -> Float[Tensor, ""]:
        """The sum of the weighted terms, a scalar with its graph.

        Args:
            views: as for `compute`.

        Raises:
            ValueError: as `compute`.
        """
        return self.compute(*views).total()
