"""Second moments: both sides of every product, groups, one dominant dimension, against float64 loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjepa.collapse import Samples
from torchjepa.collapse.moments import correlations, second_moments


def cube(seed: int, g: int, n: int, d: int) -> Tensor:
    return torch.randn(g, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(*views: Tensor) -> Samples:
    return Samples(views, (views[0].shape[1],), len(views[0]), across=False)


def loops(a: np.ndarray, b: np.ndarray) -> tuple[list[float], float]:
    """The diagonal of a^T b and the sum of its squared off-diagonal entries."""
    d = a.shape[1]
    entry = [[sum(a[i, j] * b[i, k] for i in range(len(a))) for k in range(d)] for j in range(d)]
    return [entry[j][j] for j in range(d)], sum(
        entry[j][k] ** 2 for j in range(d) for k in range(d) if j != k
    )


SHAPES = {
    "g": st.integers(1, 3),
    "n": st.integers(2, 7),
    "d": st.integers(1, 12),
    "seed": st.integers(0, 999),
}


def standard(z: Tensor, divisor: float, eps: float) -> Tensor:
    z = z - z.mean(1, keepdim=True)
    return z / (z.square().sum(1, keepdim=True) / divisor + eps).sqrt()


@given(**SHAPES)
def test_second_moments_equal_loops(g: int, n: int, d: int, seed: int) -> None:
    z = 3.0 + cube(seed, g, n, d)
    squares, energy = second_moments(z, alone(z))
    for group in range(g):
        x = (z[group] - z[group].mean(0)).numpy()
        diagonal, off = loops(x, x)
        np.testing.assert_allclose(squares[group], diagonal, rtol=1e-9)
        assert energy[group].item() == pytest.approx(off, rel=1e-9, abs=1e-9)


@given(**SHAPES)
def test_correlations_equal_loops(g: int, n: int, d: int, seed: int) -> None:
    a, b = 3.0 + cube(seed, g, n, d), cube(seed + 1, g, n, d) - 1.0
    on, energy = correlations(a, b, alone(a, b), n - 0.5, 1e-2)
    for group in range(g):
        units = [standard(z, n - 0.5, 1e-2)[group].numpy() / n**0.5 for z in (a, b)]
        diagonal, off = loops(*units)
        np.testing.assert_allclose(on[group], diagonal, rtol=1e-9, atol=1e-9)
        assert energy[group].item() == pytest.approx(off, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(4, 11), (9, 3), (3, 2), (2, 1)])
def test_gradients_are_the_derivatives_on_both_sides(n: int, d: int) -> None:
    a, b = 1.0 + cube(0, 2, n, d).requires_grad_(), cube(1, 2, n, d).requires_grad_()
    samples = alone(a, b)
    assert torch.autograd.gradcheck(lambda z: second_moments(z, samples), (a,))
    assert torch.autograd.gradcheck(lambda x, y: correlations(x, y, samples, n - 0.5, 1e-2), (a, b))


def test_dominant_dimensions_do_not_drown_the_others_in_float32() -> None:
    z = cube(0, 1, 64, 256)
    z[..., :4] *= 1e3
    exact = second_moments(z, alone(z))[1].item()
    leaf = z.float().requires_grad_()
    energy = second_moments(leaf, alone(leaf))[1]
    assert energy.item() == pytest.approx(exact, rel=1e-5)
    (grad,) = torch.autograd.grad(energy, leaf)
    wide = z.clone().requires_grad_()
    (exact_grad,) = torch.autograd.grad(second_moments(wide, alone(wide))[1], wide)
    assert (grad - exact_grad).norm() < 1e-5 * exact_grad.norm()


def test_nothing_of_size_d_by_d_is_made_where_samples_are_fewer() -> None:
    a, b = (cube(seed, 1, 8, 600).requires_grad_() for seed in (0, 1))
    with _Largest() as largest:
        energies = second_moments(a, alone(a))[1] + correlations(a, b, alone(a, b), 7, 1e-5)[1]
        energies.sum().backward()
    assert largest.numel == 8 * 600


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out
