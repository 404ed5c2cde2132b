"""The contract check passes every built-in regularizer and names what is broken in a broken one."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from torchjepa.collapse import BarlowTwins, CollapseRegularizer, VCReg, VICReg, VICRegLoss
from torchjepa.testing import check_regularizer


@pytest.mark.parametrize(
    "regularizer",
    [VICReg(), VICReg.official(), BarlowTwins(), BarlowTwins.official(), VCReg()],
    ids=["vicreg", "vicreg-official", "barlow", "barlow-official", "vcreg"],
)
def test_built_in_regularizers_keep_the_contract(regularizer: CollapseRegularizer) -> None:
    check_regularizer(regularizer, ranks=2)


class Sound:
    """A user's own regularizer without our base; each class below breaks it in one place."""

    def compute(self, z_a: Tensor, z_b: Tensor) -> VICRegLoss:
        return VICReg().compute(z_a, z_b)

    def loss(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return self.compute(z_a, z_b).total()


class NoTerms(Sound):
    def compute(self, z_a, z_b):
        return {"loss": VICReg().loss(z_a, z_b)}


class VectorTerm(Sound):
    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        return VICRegLoss(terms.invariance, terms.variance, terms.covariance.expand(2))


@dataclass(frozen=True)
class UnweightedTerms(VICRegLoss):
    def total(self) -> Tensor:
        return 25 * self.invariance + self.variance + self.covariance


class UnweightedTotal(Sound):
    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        return UnweightedTerms(terms.invariance, terms.variance, terms.covariance)


class OtherLoss(Sound):
    def loss(self, z_a, z_b):
        return 2 * super().loss(z_a, z_b)


class Random(Sound):
    def loss(self, z_a, z_b):
        return super().loss(z_a, z_b) * (1 + 1e-9 * torch.rand((), dtype=torch.float64))


class InPlace(Sound):
    def loss(self, z_a, z_b):
        value = super().loss(z_a, z_b)
        z_a.data.mul_(1.0 + 1e-12)
        return value


class InvarianceOnly(Sound):
    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        return VICRegLoss(terms.invariance, terms.variance * 0, terms.covariance * 0)


class OrderMatters(Sound):
    def compute(self, z_a, z_b):
        weights = torch.linspace(0.9, 1.1, len(z_a), dtype=z_a.dtype).unsqueeze(1)
        return super().compute(z_a * weights, z_b * weights)


class OneView(Sound):
    def compute(self, z_a, z_b):
        return super().compute(z_a, z_b.detach())


class Detached(Sound):
    def loss(self, z_a, z_b):
        return super().loss(z_a, z_b).detach()


class HalfTheGradient(Sound):
    def loss(self, z_a, z_b):
        value = super().loss(z_a, z_b)
        return (value + value.detach()) / 2


class InfiniteAtZeroVariance(Sound):
    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        root = z_a.to(terms.variance.dtype).var(0, correction=0).sum().sqrt()
        return VICRegLoss(terms.invariance, terms.variance, terms.covariance + 1e-6 * root)


class NoVarianceOfOne(Sound):
    def compute(self, z_a, z_b):
        if len(z_a) == 1:
            wide = torch.promote_types(z_a.dtype, torch.float32)
            return VICRegLoss(*z_a.to(wide).var(0).mean().expand(3))
        return super().compute(z_a, z_b)


class HidesNaN(Sound):
    def loss(self, z_a, z_b):
        return super().loss(z_a.nan_to_num(), z_b.nan_to_num())


class LowPrecision(Sound):
    def loss(self, z_a, z_b):
        return super().loss(z_a, z_b).to(z_a.dtype)


class Autocast(Sound):
    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        wide = torch.promote_types(z_a.dtype, torch.float32)
        gram = z_a.to(wide).T @ z_a.to(wide)
        return VICRegLoss(terms.invariance, terms.variance, gram.square().mean().to(wide))


class Broadcasts(Sound):
    def compute(self, z_a, z_b):
        return super().compute(z_a, z_b.expand_as(z_a))


class LocalStatistics(Sound):
    """What most published losses do on several devices."""

    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        wide = terms.invariance.dtype
        local = (z_a.to(wide) - z_b.to(wide)).square().mean()
        return VICRegLoss(25 * local, terms.variance, terms.covariance)


class LocalGradient(Sound):
    """The value of the joined batch, the gradient of this process: an all-reduce without autograd."""

    def compute(self, z_a, z_b):
        terms = super().compute(z_a, z_b)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shrunk = terms.invariance / world
        return VICRegLoss(shrunk + (terms.invariance - shrunk).detach(), terms.variance, terms.covariance)


def test_a_users_own_regularizer_passes() -> None:
    check_regularizer(Sound())


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NoTerms, "compute must give a dataclass of named terms with total"),
        (VectorTerm, "the term covariance must be a finite scalar"),
        (UnweightedTotal, "must be the sum of the terms, weights included"),
        (OtherLoss, "loss must be the total of compute"),
        (Random, "two calls from one state give two values"),
        (InPlace, "the inputs were changed in place"),
        (InvarianceOnly, "nothing keeps the representation from collapsing"),
        (OrderMatters, "must not depend on the order of the samples"),
        (OneView, "no gradient reaches z_b; both views must be trained"),
        (Detached, "no gradient reaches the views"),
        (HalfTheGradient, "the gradient is not the derivative of the loss"),
        (InfiniteAtZeroVariance, "value and gradient of a constant batch must be finite"),
        (NoVarianceOfOne, "one sample must be a ValueError, or finite; got nan"),
        (HidesNaN, "NaN in the first view must be a ValueError, or stay NaN"),
        (LowPrecision, "torch.float16 inputs must give torch.float32, got torch.float16"),
        (Autocast, "under autocast must be computed in float32 or wider"),
        (Broadcasts, "another number of samples in z_b must be a ValueError, but it was accepted"),
    ],
)
def test_what_is_broken_is_named(broken: type[Sound], message: str) -> None:
    with pytest.raises(AssertionError, match=f"{broken.__name__}: .*{message}"):
        check_regularizer(broken())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LocalStatistics, "rank 0 of 2 has loss .* one process on the joined batch"),
        (LocalGradient, "averaged over 2 ranks the gradient of a shared weight is off by"),
    ],
)
def test_what_is_broken_across_ranks_is_named(broken: type[Sound], message: str) -> None:
    check_regularizer(broken())
    with pytest.raises(AssertionError, match=f"{broken.__name__}: .*{message}"):
        check_regularizer(broken(), ranks=2)
