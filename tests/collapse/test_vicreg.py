"""VICReg against its equation, the published code's numbers and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collapse import oracles
from torchjepa.collapse import VICReg, VICRegLoss
from torchjepa.types import NonFiniteError


def numbers(loss: VICRegLoss) -> list[float]:
    return [loss.invariance.item(), loss.variance.item(), loss.covariance.item()]


def views(seed: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    z_a, z_b = oracles.normal_views(seed, n, d)
    return torch.from_numpy(z_a), torch.from_numpy(z_b)


def test_golden_numbers_of_the_paper_and_of_the_published_code() -> None:
    x, y = (torch.from_numpy(z) for z in oracles.golden())
    assert numbers(VICReg().compute(x, y)) == pytest.approx([0.504807, 16.068764, 0.605063], rel=1e-6)
    assert numbers(VICReg.official().compute(x, y)) == pytest.approx([0.504807, 8.034383, 0.605063], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 6), d=st.integers(1, 4), seed=st.integers(0, 2**31), scale=st.floats(0.01, 5.0))
def test_equals_the_equation(n: int, d: int, seed: int, scale: float) -> None:
    z_a, z_b = (scale * z for z in oracles.normal_views(seed, n, d))
    regularizer = VICReg(lambda_inv=3.0, mu_var=5.0, nu_cov=7.0, gamma=1.2, eps=1e-3)
    terms = regularizer.compute(torch.from_numpy(z_a), torch.from_numpy(z_b))
    invariance, variance, covariance = oracles.vicreg(z_a, z_b, gamma=1.2, eps=1e-3)
    np.testing.assert_allclose(
        numbers(terms), [3 * invariance, 5 * variance, 7 * covariance], rtol=1e-9, atol=1e-12
    )
    assert terms.total().item() == pytest.approx(sum(numbers(terms)))
    assert regularizer.loss(torch.from_numpy(z_a), torch.from_numpy(z_b)) == terms.total()


@pytest.mark.parametrize("regularizer", [VICReg(), VICReg.official()], ids=["paper", "official"])
def test_gradient_equals_finite_differences_of_the_equation(regularizer: VICReg) -> None:
    z_a, z_b = (0.4 * z for z in oracles.normal_views(1, 5, 3))
    hinges = 0.5 if regularizer.variance_reduction == "mean" else 1.0

    def value(a: np.ndarray, b: np.ndarray) -> float:
        invariance, variance, covariance = oracles.vicreg(a, b)
        return 25 * invariance + 25 * hinges * variance + covariance

    leaves = [torch.from_numpy(z).requires_grad_() for z in (z_a, z_b)]
    grads = torch.autograd.grad(regularizer.loss(*leaves), leaves)
    np.testing.assert_allclose(grads[0], oracles.slopes(lambda a: value(a, z_b), z_a), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grads[1], oracles.slopes(lambda b: value(z_a, b), z_b), rtol=1e-6, atol=1e-7)


def test_official_halves_the_variance_term_and_nothing_else() -> None:
    z_a, z_b = views(0, 16, 8)
    ours, official = VICReg().compute(z_a, z_b), VICReg.official().compute(z_a, z_b)
    assert official.variance.item() == pytest.approx(ours.variance.item() / 2)
    assert official.invariance == ours.invariance
    assert official.covariance == ours.covariance
    assert VICReg.official() == VICReg(variance_reduction="mean")


@pytest.mark.parametrize("case", ["constant", "zero"])
def test_finite_where_there_is_no_variance(case: str) -> None:
    z = {"constant": torch.full((6, 4), 3.0), "zero": torch.zeros(6, 4)}[case]
    leaf = z.double().requires_grad_()
    terms = VICReg().compute(leaf, z.double())
    (grad,) = torch.autograd.grad(terms.total(), leaf)
    assert numbers(terms) == pytest.approx([0.0, 25 * 2 * (1 - 0.01), 0.0])
    assert grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("d", [1, 3])
def test_nan_and_inf_are_refused(value: float, d: int) -> None:
    z_a, z_b = views(0, 5, d)
    z_a[2, 0] = value
    for first, second, index in ((z_a, z_b, 0), (z_b, z_a, 1)):
        with pytest.raises(
            NonFiniteError, match=rf"VICReg: views must be finite.*view {index} holds 1 of {5 * d}.*in row 2"
        ):
            VICReg().loss(first, second)


def test_a_loss_that_overflows_is_no_error() -> None:
    z_a, z_b = (1e30 * z.float() for z in views(0, 5, 3))
    assert not VICReg().loss(z_a, z_b).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z_a, z_b = (z.to(dtype).requires_grad_() for z in views(0, 64, 32))
    exact = numbers(VICReg().compute(z_a.double(), z_b.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = VICReg().compute(z_a, z_b)
    for terms in (inside, VICReg().compute(z_a, z_b)):
        assert terms.covariance.dtype == torch.float32
        assert numbers(terms) == pytest.approx(exact, rel=1e-5)
    inside.total().backward()
    assert z_a.grad is not None
    assert z_a.grad.dtype == dtype


def test_float32_far_from_zero_and_with_one_dominant_dimension() -> None:
    z_a, z_b = (z.float() for z in views(0, 32, 128))
    for scale, shift in ((1.0, 1e3), (1e3, 0.0)):
        a, b = z_a.clone(), z_b.clone()
        a[:, 0] = scale * a[:, 0] + shift
        b[:, 0] = scale * b[:, 0] + shift
        exact = numbers(VICReg().compute(a.double(), b.double()))
        assert numbers(VICReg().compute(a, b)) == pytest.approx(exact, rel=1e-4)


def test_refusals() -> None:
    z = torch.zeros(4, 3)
    for z_a, z_b in ((z, z[:2]), (z, z[:, :1]), (z[0], z[0]), (z[None, None], z[None, None])):
        with pytest.raises(
            ValueError, match=r"VICReg: views must have one shape \[n, d\] or \[b, t, d\].*got \("
        ):
            VICReg().loss(z_a, z_b)
    for few in (z[:1], z[:0]):
        with pytest.raises(
            ValueError, match=rf"VICReg: needs at least 2 samples over the batch, got {len(few)}"
        ):
            VICReg().loss(few, few)
    with pytest.raises(ValueError, match=r"VICReg: takes 2 view\(s\) of each sample, got 1"):
        VICReg().loss(z)
    with pytest.raises(ValueError, match=r"VICReg: over='time' needs views \[b, t, d\], got \(4, 3\)"):
        VICReg(over="time").loss(z, z)
    with pytest.raises(ValueError, match="over must be one of 'batch', 'time', 'both', got 'space'"):
        VICReg(over="space")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"VICReg: views must be floating-point tensors, got .*int64"):
        VICReg().compute(z, z.long())
    for name in ("lambda_inv", "mu_var", "nu_cov", "gamma"):
        with pytest.raises(
            ValueError, match=rf"VICReg: {name} must be a finite number of at least 0, got -1"
        ):
            VICReg(**{name: -1.0})
    with pytest.raises(ValueError, match="VICReg: eps must be a positive number, got 0"):
        VICReg(eps=0.0)
    with pytest.raises(ValueError, match=r"variance_reduction must be 'sum' .* or 'mean' .*got 'max'"):
        VICReg(variance_reduction="max")  # type: ignore[arg-type]


def test_compiles_into_one_graph() -> None:
    z_a, z_b = views(0, 8, 4)
    compiled = torch.compile(VICReg().loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z_a, z_b), VICReg().loss(z_a, z_b))
