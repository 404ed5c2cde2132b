"""What the regularizers share: the protocol, the terms by name, and that a user's own needs no base."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from torchjepa.collapse import BarlowTwins, CollapseRegularizer, VICReg, named_terms


@dataclass(frozen=True)
class OwnTerms:
    spread: Tensor

    def total(self) -> Tensor:
        return self.spread


class OwnRegularizer:
    """A regularizer that knows nothing of ours."""

    def compute(self, z_a: Tensor, z_b: Tensor) -> OwnTerms:
        return OwnTerms(-(z_a.var() + z_b.var()))

    def loss(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return self.compute(z_a, z_b).total()


def test_a_users_own_needs_no_base() -> None:
    assert isinstance(OwnRegularizer(), CollapseRegularizer)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert list(named_terms(OwnRegularizer().compute(z, z))) == ["spread"]


@pytest.mark.parametrize(
    ("regularizer", "names"),
    [
        (VICReg(), ["invariance", "variance", "covariance"]),
        (BarlowTwins(), ["on_diagonal", "off_diagonal"]),
    ],
)
def test_terms_by_name_are_detached_and_add_up(regularizer: CollapseRegularizer, names: list[str]) -> None:
    z_a, z_b = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    terms = regularizer.compute(z_a, z_b)
    by_name = named_terms(terms)
    assert isinstance(regularizer, CollapseRegularizer)
    assert list(by_name) == names
    assert not any(value.requires_grad for value in by_name.values())
    assert terms.total().requires_grad
    torch.testing.assert_close(terms.total().detach(), torch.stack(list(by_name.values())).sum())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(terms, names[0], torch.tensor(0.0))
