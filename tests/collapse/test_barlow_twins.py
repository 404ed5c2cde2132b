"""Barlow Twins against its equation, the published code's numbers and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.collapse import oracles
from torchjepa.collapse import BarlowTwins, BarlowTwinsLoss
from torchjepa.types import NonFiniteError


def numbers(loss: BarlowTwinsLoss) -> list[float]:
    return [loss.on_diagonal.item(), loss.off_diagonal.item()]


def views(seed: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    z_a, z_b = oracles.normal_views(seed, n, d)
    return torch.from_numpy(z_a), torch.from_numpy(z_b)


def test_golden_numbers_of_the_paper_and_of_the_published_code() -> None:
    x, y = (torch.from_numpy(z) for z in oracles.golden())
    assert numbers(BarlowTwins().compute(x, y)) == pytest.approx([0.143367, 0.015760], abs=1e-6)
    assert numbers(BarlowTwins.official().compute(x, y)) == pytest.approx([0.004102, 0.023149], abs=1e-6)


def test_official_is_batch_norm_and_a_product() -> None:
    x, y = views(0, 16, 8)
    c = F.batch_norm(x, None, None, training=True).T @ F.batch_norm(y, None, None, training=True) / 16
    on = (c.diagonal() - 1).square().sum().item()
    off = 0.0051 * (c.square().sum() - c.diagonal().square().sum()).item()
    assert numbers(BarlowTwins.official().compute(x, y)) == pytest.approx([on, off])
    assert BarlowTwins.official() == BarlowTwins(lambda_bt=0.0051, unbiased=False)


@pytest.mark.parametrize("unbiased", [True, False])
@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 6), d=st.integers(1, 4), seed=st.integers(0, 2**31), scale=st.floats(0.01, 5.0))
def test_equals_the_equation(unbiased: bool, n: int, d: int, seed: int, scale: float) -> None:
    z_a, z_b = (scale * z for z in oracles.normal_views(seed, n, d))
    regularizer = BarlowTwins(lambda_bt=0.3, eps=1e-3, unbiased=unbiased)
    terms = regularizer.compute(torch.from_numpy(z_a), torch.from_numpy(z_b))
    on, off = oracles.barlow_twins(z_a, z_b, unbiased=unbiased, eps=1e-3)
    np.testing.assert_allclose(numbers(terms), [on, 0.3 * off], rtol=1e-9, atol=1e-12)
    assert terms.total().item() == pytest.approx(sum(numbers(terms)))
    assert regularizer.loss(torch.from_numpy(z_a), torch.from_numpy(z_b)) == terms.total()


@pytest.mark.parametrize("regularizer", [BarlowTwins(), BarlowTwins.official()], ids=["paper", "official"])
def test_gradient_equals_finite_differences_of_the_equation(regularizer: BarlowTwins) -> None:
    z_a, z_b = oracles.normal_views(1, 5, 3)

    def value(a: np.ndarray, b: np.ndarray) -> float:
        on, off = oracles.barlow_twins(a, b, unbiased=regularizer.unbiased)
        return on + regularizer.lambda_bt * off

    leaves = [torch.from_numpy(z).requires_grad_() for z in (z_a, z_b)]
    grads = torch.autograd.grad(regularizer.loss(*leaves), leaves)
    np.testing.assert_allclose(grads[0], oracles.slopes(lambda a: value(a, z_b), z_a), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(grads[1], oracles.slopes(lambda b: value(z_a, b), z_b), rtol=1e-6, atol=1e-8)


def test_the_floor_of_the_unbiased_variance() -> None:
    z = views(0, 16, 512)[0]
    assert BarlowTwins(eps=1e-12).compute(z, z).on_diagonal.item() == pytest.approx(512 / 16**2)
    assert BarlowTwins(eps=1e-12, unbiased=False).compute(z, z).on_diagonal.item() == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize("regularizer", [BarlowTwins(), BarlowTwins.official()], ids=["paper", "official"])
@pytest.mark.parametrize("case", ["constant", "zero"])
def test_finite_where_there_is_no_variance(regularizer: BarlowTwins, case: str) -> None:
    z = {"constant": torch.full((6, 4), 3.0), "zero": torch.zeros(6, 4)}[case]
    leaf = z.double().requires_grad_()
    terms = regularizer.compute(leaf, z.double())
    (grad,) = torch.autograd.grad(terms.total(), leaf)
    assert numbers(terms) == pytest.approx([4.0, 0.0], abs=1e-12)
    assert grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("d", [1, 3])
def test_nan_and_inf_are_refused(value: float, d: int) -> None:
    z_a, z_b = views(0, 5, d)
    z_a[2, 0] = value
    for first, second, index in ((z_a, z_b, 0), (z_b, z_a, 1)):
        with pytest.raises(
            NonFiniteError,
            match=rf"BarlowTwins: views must be finite.*view {index} holds 1 of {5 * d}.*in row 2",
        ):
            BarlowTwins().loss(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z_a, z_b = (z.to(dtype).requires_grad_() for z in views(0, 64, 32))
    exact = numbers(BarlowTwins().compute(z_a.double(), z_b.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = BarlowTwins().compute(z_a, z_b)
    for terms in (inside, BarlowTwins().compute(z_a, z_b)):
        assert terms.off_diagonal.dtype == torch.float32
        assert numbers(terms) == pytest.approx(exact, rel=1e-5)
    inside.total().backward()
    assert z_a.grad is not None
    assert z_a.grad.dtype == dtype


def test_refusals() -> None:
    z = torch.zeros(4, 3)
    for z_a, z_b in ((z, z[:2]), (z, z[:, :1]), (z[0], z[0]), (z[None, None], z[None, None])):
        with pytest.raises(
            ValueError, match=r"BarlowTwins: views must have one shape \[n, d\] or \[b, t, d\].*got \("
        ):
            BarlowTwins().loss(z_a, z_b)
    for few in (z[:1], z[:0]):
        with pytest.raises(
            ValueError, match=rf"BarlowTwins: needs at least 2 samples over the batch, got {len(few)}"
        ):
            BarlowTwins().loss(few, few)
    with pytest.raises(ValueError, match=r"BarlowTwins: takes 2 view\(s\) of each sample, got 1"):
        BarlowTwins().loss(z)
    with pytest.raises(ValueError, match=r"BarlowTwins: over='time' needs views \[b, t, d\], got \(4, 3\)"):
        BarlowTwins(over="time").loss(z, z)
    with pytest.raises(ValueError, match="over must be one of 'batch', 'time', 'both', got 'space'"):
        BarlowTwins(over="space")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"BarlowTwins: views must be floating-point tensors, got .*int64"):
        BarlowTwins().compute(z, z.long())
    with pytest.raises(
        ValueError, match="BarlowTwins: lambda_bt must be a finite number of at least 0, got -1"
    ):
        BarlowTwins(lambda_bt=-1.0)
    with pytest.raises(ValueError, match="BarlowTwins: eps must be a positive number, got 0"):
        BarlowTwins(eps=0.0)


def test_compiles_into_one_graph() -> None:
    z_a, z_b = views(0, 8, 4)
    compiled = torch.compile(BarlowTwins().loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z_a, z_b), BarlowTwins().loss(z_a, z_b))
