"""Energies against double loops, golden numbers and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchjepa.energy import CosineEnergy, EnergyFn, L2Energy, LpEnergy, SmoothL1Energy

ENERGIES = [
    L2Energy(),
    LpEnergy(),
    LpEnergy(p=1.5),
    LpEnergy(p=3.0),
    SmoothL1Energy(),
    SmoothL1Energy(beta=0.3),
    CosineEnergy(),
]


def one_token(energy: EnergyFn, p: np.ndarray, t: np.ndarray) -> float:
    """The energy of one token, entry by entry."""
    d = len(p)
    if isinstance(energy, CosineEnergy):
        dot, pp, tt = (sum(x[i] * y[i] for i in range(d)) for x, y in ((p, t), (p, p), (t, t)))
        return 1.0 - dot / (math.sqrt(pp) * math.sqrt(tt))
    total = 0.0
    for i in range(d):
        x = abs(p[i] - t[i])
        if isinstance(energy, L2Energy):
            total += x * x
        elif isinstance(energy, LpEnergy):
            total += x**energy.p / energy.p
        elif isinstance(energy, SmoothL1Energy):
            total += x * x / (2 * energy.beta) if x < energy.beta else x - energy.beta / 2
    return total / d


def tokens(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return prediction, target


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
@settings(max_examples=25, deadline=None)
@given(b=st.integers(1, 3), n=st.integers(1, 4), d=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_equals_a_double_loop(energy: EnergyFn, b: int, n: int, d: int, seed: int) -> None:
    prediction, target = tokens(seed, b, n, d)
    expected = np.array(
        [
            [one_token(energy, prediction[i, j].numpy(), target[i, j].numpy()) for j in range(n)]
            for i in range(b)
        ]
    )
    np.testing.assert_allclose(energy.per_token(prediction, target).numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(energy(prediction, target).item(), expected.mean(), rtol=1e-10, atol=1e-12)
    valid = torch.arange(b * n).reshape(b, n) % 2 == 0
    np.testing.assert_allclose(
        energy(prediction, target, valid).item(), expected[valid.numpy()].mean(), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
def test_gradient_equals_finite_differences_of_the_loop(energy: EnergyFn) -> None:
    prediction, target = tokens(3, 2, 3)
    prediction.requires_grad_()
    (grad,) = torch.autograd.grad(energy(prediction, target), prediction)

    def value(p: np.ndarray) -> float:
        return sum(one_token(energy, p[i], target[i].numpy()) for i in range(2)) / 2

    for index in np.ndindex(2, 3):
        step = np.zeros((2, 3))
        step[index] = 1e-6
        at = prediction.detach().numpy()
        slope = (value(at + step) - value(at - step)) / 2e-6
        assert grad[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_golden_numbers() -> None:
    i, j = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
    x, y = torch.sin(0.7 * i + 1.3 * j), torch.sin(0.7 * i + 1.3 * j + 0.2)
    assert SmoothL1Energy()(3 * x, y).item() == pytest.approx(0.819721, abs=1e-6)
    assert LpEnergy()(3 * x, y).item() == pytest.approx(1.267665, abs=1e-6)


def test_any_leading_axes() -> None:
    prediction, target = tokens(0, 2, 3, 4, 5)
    assert L2Energy().per_token(prediction, target).shape == (2, 3, 4)
    assert CosineEnergy().per_token(prediction[0, 0, 0], target[0, 0, 0]).shape == ()


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
def test_what_is_not_valid_reaches_neither_value_nor_gradient(energy: EnergyFn) -> None:
    prediction, target = tokens(0, 2, 3, 4)
    valid = torch.tensor([[True, False, True], [False, False, True]])
    expected = energy(prediction, target, valid)
    for junk in (float("nan"), float("inf"), 1e300):
        spoiled = torch.where(valid[..., None], prediction, junk).requires_grad_()
        value = energy(spoiled, torch.where(valid[..., None], target, junk), valid)
        (grad,) = torch.autograd.grad(value, spoiled)
        torch.testing.assert_close(value.detach(), expected)
        assert grad.isfinite().all()
        assert not grad[~valid].any()
        assert grad[valid].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-12])
def test_cosine_at_vectors_without_direction(dtype: torch.dtype, length: float) -> None:
    target = tokens(0, 3, 4)[1].to(dtype)
    prediction = torch.full((3, 4), length, dtype=dtype).requires_grad_()
    value = CosineEnergy()(prediction, target)
    (grad,) = torch.autograd.grad(value, prediction)
    assert value.item() == 1.0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_cosine_sees_direction_only() -> None:
    prediction, target = tokens(0, 3, 4)
    energy = CosineEnergy()
    torch.testing.assert_close(energy(prediction, target), energy(7 * prediction, 0.01 * target))
    assert energy(prediction, prediction).item() == pytest.approx(0.0, abs=1e-12)
    assert energy(prediction, -prediction).item() == pytest.approx(2.0)


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
def test_low_precision_is_computed_in_float32(energy: EnergyFn) -> None:
    prediction, target = (x.to(torch.bfloat16) for x in tokens(0, 64, 32))
    exact = energy(prediction.double(), target.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = energy(prediction, target)
    for value in (energy(prediction, target), inside, energy(prediction.float(), target)):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert exact.dtype == torch.float64


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
def test_nan_stays_nan(energy: EnergyFn) -> None:
    prediction, target = tokens(0, 3, 4)
    prediction[1, 2] = float("nan")
    assert energy(prediction, target).isnan()
    assert energy.per_token(prediction, target).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("energy", ENERGIES, ids=repr)
def test_refusals(energy: EnergyFn) -> None:
    x = torch.zeros(2, 3, 4)
    for target in (x[:1], x[0], x[..., :1], torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match=r"same shape, got \(2, 3, 4\) and .*nothing is broadcast"):
            energy(x, target)
        with pytest.raises(ValueError, match="same shape"):
            energy.per_token(x, target)
    with pytest.raises(ValueError, match=r"at least one token .* got shape \(2, 0, 4\)"):
        energy(x[:, :0], x[:, :0])
    with pytest.raises(ValueError, match="at least one token"):
        energy(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="valid marks no token"):
        energy(x, x, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"valid must be bool of shape \(2, 3\).*got torch.bool of shape \(1, 3\)"
    ):
        energy(x, x, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid must be bool .* got torch.float32"):
        energy(x, x, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"target must be floating point, got torch.int64"):
        energy(x, x.long())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_constants_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"SmoothL1Energy: beta must be a positive number, got .*LpEnergy"):
        SmoothL1Energy(beta=value)
    with pytest.raises(ValueError, match="CosineEnergy: eps must be a positive number"):
        CosineEnergy(eps=value)
    with pytest.raises(ValueError, match="LpEnergy: p must be a finite number of at least 1"):
        LpEnergy(p=value)


def test_protocol_and_identity() -> None:
    for energy in ENERGIES:
        assert isinstance(energy, EnergyFn)
    assert SmoothL1Energy(beta=1.0) == SmoothL1Energy()
    assert LpEnergy(p=2.0) != LpEnergy()


def test_compiles_into_one_graph() -> None:
    prediction, target = tokens(0, 3, 4)
    valid = torch.tensor([True, False, True])
    for energy in (SmoothL1Energy(), CosineEnergy()):
        compiled = torch.compile(lambda p, t, v, e=energy: e(p, t, v), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(prediction, target, valid), energy(prediction, target, valid))
