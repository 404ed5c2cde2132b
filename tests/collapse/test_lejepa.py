"""LeJEPA against its equation; views, weights, state and refusals."""

import numpy as np
import pytest
import torch

from tests.collapse import oracles, sliced_oracles
from torchjepa.collapse import LeJEPA, SIGReg, VCReg
from torchjepa.testing import check_regularizer
from torchjepa.types import NonFiniteError


def views(num: int, n: int = 6, d: int = 3) -> list[np.ndarray]:
    return [oracles.normal_views(seed, n, d)[seed % 2] for seed in range(num)]


@pytest.mark.parametrize(("num_views", "num_global"), [(2, 2), (4, 2), (3, 1), (3, 3)])
def test_equals_the_equation(num_views: int, num_global: int) -> None:
    arrays = views(num_views)
    regularizer = SIGReg(num_slices=5)
    drawn = regularizer.slices(3).double().numpy()
    terms = LeJEPA(0.2, num_global, regularizer).compute(*map(torch.from_numpy, arrays))
    expected = 0.8 * sliced_oracles.invariance(arrays, num_global)
    assert terms.invariance.item() == pytest.approx(expected, rel=1e-10)
    statistic = sum(sliced_oracles.sigreg(z, drawn) for z in arrays) / num_views
    assert terms.sigreg.item() == pytest.approx(0.2 * statistic, rel=1e-5)
    assert terms.total().item() == pytest.approx(terms.invariance.item() + terms.sigreg.item())


def test_gradient_of_the_invariance_flows_through_the_centre() -> None:
    arrays = views(3)
    leaves = [torch.from_numpy(z).requires_grad_() for z in arrays]
    grads = torch.autograd.grad(LeJEPA(weight=0.0).loss(*leaves), leaves)
    for i, grad in enumerate(grads):
        expected = oracles.slopes(
            lambda z, i=i: sliced_oracles.invariance([*arrays[:i], z, *arrays[i + 1 :]], 2), arrays[i]
        )
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-9)


def test_the_paper_is_the_default() -> None:
    lejepa = LeJEPA()
    assert (lejepa.weight, lejepa.num_global_views) == (0.05, 2)
    assert (lejepa.regularizer.num_slices, lejepa.regularizer.num_knots) == (256, 17)
    assert LeJEPA().regularizer is not lejepa.regularizer


def test_the_state_of_the_regularizer_is_in_the_state_dict() -> None:
    z = torch.from_numpy(views(1)[0])
    lejepa = LeJEPA(regularizer=SIGReg(num_slices=4))
    lejepa.loss(z, z)
    state = lejepa.state_dict()
    assert list(state) == ["regularizer._extra_state"]
    resumed = LeJEPA(regularizer=SIGReg(num_slices=4))
    resumed.load_state_dict(state)
    assert resumed.loss(z, z) == lejepa.loss(z, z)


def test_sequences_and_a_regularizer_over_time() -> None:
    z_a, z_b = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 5, 3)))
    over_time = SIGReg(num_slices=4, over="time")
    terms = LeJEPA(regularizer=over_time).compute(z_a, z_b)
    expected = 0.95 * sliced_oracles.invariance([z.flatten(0, 1).numpy() for z in (z_a, z_b)], 2)
    assert terms.invariance.item() == pytest.approx(expected)
    assert terms.sigreg == 0.05 * SIGReg(num_slices=4, over="time").loss(z_a, z_b)


def test_another_regularizer_takes_the_place_of_sigreg() -> None:
    z_a, z_b = (torch.from_numpy(z) for z in views(2))
    terms = LeJEPA(weight=0.5, regularizer=VCReg()).compute(z_a, z_b)
    torch.testing.assert_close(terms.sigreg, 0.5 * VCReg().loss(z_a, z_b))


def test_keeps_the_contract() -> None:
    check_regularizer(LeJEPA(regularizer=SIGReg(num_slices=8)))


def test_refusals() -> None:
    z = torch.zeros(4, 3)
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"LeJEPA: weight must be from 0 .* to 1 .*, got {weight}"):
            LeJEPA(weight=weight)
    with pytest.raises(ValueError, match="LeJEPA: num_global_views must be an integer of at least 1, got 0"):
        LeJEPA(num_global_views=0)
    with pytest.raises(ValueError, match=r"LeJEPA: takes at least 2 view.* got 1"):
        LeJEPA().loss(z)
    with pytest.raises(ValueError, match=r"LeJEPA: views must have one shape .*\(4, 3\) and \(2, 3\)"):
        LeJEPA().loss(z, z[:2])
    with pytest.raises(NonFiniteError, match=r"LeJEPA: views must be finite.*view 1"):
        LeJEPA().loss(z, z * float("nan"))
