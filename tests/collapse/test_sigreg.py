"""SIGReg against its equation, known values, finite differences and the published formula."""

import copy
import pickle

import numpy as np
import pytest
import torch
from benchmarks.peers.collapse import published_sigreg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collapse import oracles, sliced_oracles
from torchjepa.collapse import SIGReg, sigreg
from torchjepa.testing import check_regularizer
from torchjepa.types import NonFiniteError


@pytest.fixture(autouse=True, params=["few samples", "any"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with few samples as they are, and as many would be treated."""
    if request.param == "any":
        monkeypatch.setattr(sigreg, "FEW", 0)


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 7),
    d=st.integers(1, 5),
    num_slices=st.integers(1, 4),
    num_knots=st.integers(2, 40),
    t_max=st.floats(0.5, 6.0),
    seed=st.integers(0, 2**31),
)
def test_equals_the_equation(
    n: int, d: int, num_slices: int, num_knots: int, t_max: float, seed: int
) -> None:
    z = 1.5 * normal(seed, n, d) + 0.3
    regularizer = SIGReg(num_slices, num_knots, t_max, seed)
    expected = sliced_oracles.sigreg(z.numpy(), slices(regularizer, d), num_knots=num_knots, t_max=t_max)
    assert regularizer.loss(z).item() == pytest.approx(expected, rel=1e-9)


def slices(regularizer: SIGReg, d: int) -> np.ndarray:
    return regularizer.slices(d, dtype=torch.float64).numpy()


def test_gradient_equals_finite_differences_of_the_equation() -> None:
    regularizer = SIGReg(num_slices=3).eval()
    views = [oracles.normal_views(1, 5, 3)[i] for i in range(2)]
    leaves = [torch.from_numpy(z).requires_grad_() for z in views]
    grads = torch.autograd.grad(regularizer.loss(*leaves), leaves)
    drawn = slices(regularizer, 3)
    for z, grad in zip(views, grads):
        expected = oracles.slopes(lambda z: sliced_oracles.sigreg(z, drawn) / 2, z)
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", [3, 200, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_published_formula_in_every_number_of_blocks(n: int, dtype: torch.dtype) -> None:
    regularizer = SIGReg(num_slices=300).eval()
    z = (1.2 * normal(2, n, 1100) + 0.1).to(dtype).requires_grad_()
    drawn = torch.from_numpy(slices(regularizer, 1100)).to(dtype)
    expected, value = published_sigreg(z, drawn), regularizer.loss(z)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    grad, expected_grad = (torch.autograd.grad(loss, z)[0] for loss in (value, expected))
    assert (grad - expected_grad).norm() / expected_grad.norm() < (1e-9 if dtype == torch.float64 else 2e-5)


def test_known_values() -> None:
    regularizer = SIGReg()
    assert regularizer.gaussian_value == pytest.approx(1.053, abs=1e-3)
    for n in (64, 1024):
        losses = [regularizer.loss(normal(seed, n, 64).float()).item() for seed in range(12)]
        assert np.mean(losses) == pytest.approx(1.053, rel=0.08)
        assert regularizer.ratio(torch.tensor(np.mean(losses))).item() == pytest.approx(1.0, rel=0.08)
        assert regularizer.loss(torch.zeros(n, 64)).item() == pytest.approx(0.402 * n, rel=1e-3)
        spread = np.mean([regularizer.loss(2 * normal(seed, n, 64)).item() for seed in range(8)])
        assert spread == pytest.approx(0.24 * n, rel=0.15)
        line = np.mean([regularizer.loss(8 * normal(s, n, 1) @ unit(s)).item() for s in range(8)])
        assert line == pytest.approx(0.17 * n, rel=0.15)


def unit(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(normal(seed + 100, 1, 64))


def test_slices_are_normal_of_unit_length_and_fresh() -> None:
    regularizer = SIGReg(num_slices=4096)
    drawn = regularizer.slices(50)
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(4096))
    covariance = drawn @ drawn.T * 50 / 4096
    assert (covariance - torch.eye(50)).abs().max() < 0.12
    assert (drawn * 50**0.5).pow(4).mean() == pytest.approx(3 * 50 / 52, rel=0.02)
    regularizer.compute(torch.zeros(2, 50))
    assert abs(float((drawn * regularizer.slices(50)).sum() / 4096)) < 0.02
    assert torch.equal(regularizer.slices(50, call=0), drawn)
    assert not torch.equal(SIGReg(num_slices=4096, seed=1).slices(50), drawn)


def test_golden_slices() -> None:
    # A run that is resumed by a later version, or on another machine, must draw the same.
    expected = [[0.86857116, -0.26627743], [-0.06453148, -0.96387637], [0.49134499, -0.00622963]]
    drawn = SIGReg(num_slices=2, seed=7).slices(3, call=5)
    torch.testing.assert_close(drawn, torch.tensor(expected), rtol=1e-5, atol=0.0)


def test_state_is_the_number_of_calls_in_training() -> None:
    z = normal(0, 8, 4)
    regularizer = SIGReg(num_slices=4)
    first, second = regularizer.loss(z), regularizer.loss(z)
    assert first != second
    state = regularizer.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {"_extra_state": torch.int64}
    resumed = SIGReg(num_slices=4)
    resumed.load_state_dict(state)
    copies = [resumed, copy.deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))]
    third = regularizer.loss(z)
    assert [each.loss(z) for each in copies] == [third] * 3
    regularizer.eval()
    assert regularizer.loss(z) == regularizer.loss(z)


def test_the_gradient_belongs_to_the_slices_of_its_own_call() -> None:
    regularizer = SIGReg(num_slices=4)
    z = normal(0, 6, 3).requires_grad_()
    alone = torch.autograd.grad(copy.deepcopy(regularizer).loss(z), z)[0]
    loss = regularizer.loss(z)
    regularizer.loss(z)
    assert torch.equal(torch.autograd.grad(loss, z)[0], alone)


def test_views_are_averaged_and_only_those_that_want_it_get_a_gradient() -> None:
    views = [normal(seed, 9, 4) for seed in range(3)]
    regularizer = SIGReg(num_slices=8).eval()
    apart = sum(regularizer.loss(z) for z in views) / 3
    torch.testing.assert_close(regularizer.loss(*views), apart)
    leaf = views[1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(regularizer.loss(views[0], leaf, views[2]), leaf)
    (alone,) = torch.autograd.grad(regularizer.loss(leaf) / 3, leaf)
    torch.testing.assert_close(grad, alone)


def test_over_time_and_batch() -> None:
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 5, 4))).requires_grad_()
    losses, grads = {}, {}
    for over in ("batch", "time", "both"):
        losses[over] = SIGReg(num_slices=8, over=over).loss(z)
        (grads[over],) = torch.autograd.grad(losses[over], z)
    alone = SIGReg(num_slices=8).eval()
    torch.testing.assert_close(losses["batch"], sum(alone.loss(z[:, t]) for t in range(5)) / 5)
    torch.testing.assert_close(losses["time"], sum(alone.loss(z[b]) for b in range(6)) / 6)
    torch.testing.assert_close(losses["both"], (losses["batch"] + losses["time"]) / 2)
    torch.testing.assert_close(grads["both"], (grads["batch"] + grads["time"]) / 2)


def test_keeps_the_contract() -> None:
    check_regularizer(SIGReg(num_slices=16))


def test_refusals() -> None:
    z = torch.zeros(4, 3)
    for name, value in (("num_slices", 0), ("num_knots", 1), ("num_slices", 2.5), ("num_knots", True)):
        with pytest.raises(
            ValueError, match=f"SIGReg: {name} must be an integer of at least .*, got {value}"
        ):
            SIGReg(**{name: value})
    for t_max in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"SIGReg: t_max must be a positive number, got {t_max}"):
            SIGReg(t_max=t_max)
    with pytest.raises(ValueError, match="SIGReg: over must be one of 'batch', 'time', 'both', got 'space'"):
        SIGReg(over="space")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SIGReg: views must have one shape .*\(4, 3\) and \(4, 2\)"):
        SIGReg().loss(z, z[:, :2])
    with pytest.raises(ValueError, match=r"SIGReg: views must be floating-point tensors, got torch.int64"):
        SIGReg().loss(z.long())
    with pytest.raises(ValueError, match=r"SIGReg: takes at least 1 view.* got 0"):
        SIGReg().loss()
    with pytest.raises(ValueError, match="SIGReg: needs at least 2 samples over the batch, got 1"):
        SIGReg().loss(z[:1])
    regularizer = SIGReg()
    with pytest.raises(NonFiniteError, match=r"SIGReg: views must be finite.*the first in row 2"):
        regularizer.loss(z.index_fill(0, torch.tensor([2]), float("nan")))
    assert regularizer.num_calls == 0
