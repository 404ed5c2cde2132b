"""Second moments: both sides of every product, groups, one dominant dimension, against float64 loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchjepa.collapse import Samples, moments
from torchjepa.collapse.correlation import correlation
from torchjepa.collapse.moments import gram
from torchjepa.collapse.spread import spread


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


@pytest.fixture(autouse=True, params=["few dimensions", "any"])
def sides(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with few dimensions as they are, and with both sides of the products and no small sizes."""
    if request.param == "any":
        monkeypatch.setattr(moments, "_FEW_DIMENSIONS", 0)
        monkeypatch.setattr(moments, "_BLOCK", 8)
        monkeypatch.setattr(moments, "SMALL", 0)


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
def test_spread_equals_loops(g: int, n: int, d: int, seed: int) -> None:
    views = 3.0 + cube(seed, g, n, d), 0.3 * cube(seed + 1, g, n, d)
    hinge = covariance = 0.0
    for z in (view[group] for view in views for group in range(g)):
        diagonal, off = loops(*2 * [((z - z.mean(0)) / (n - 1) ** 0.5).numpy()])
        hinge += sum(max(0.0, 0.8 - (each + 1e-3) ** 0.5) for each in diagonal) / d
        covariance += off / d
    distance = float(((views[0] - views[1]) ** 2).sum()) / (n * d)
    got = spread(alone(*views), 0.8, 1e-3, (2.0, 3.0, 5.0))
    wanted = [2.0 * distance / g, 3.0 * hinge / g, 5.0 * covariance / g]
    np.testing.assert_allclose(torch.stack(got), wanted, rtol=1e-9, atol=1e-9)


@given(**SHAPES)
def test_correlation_equals_loops(g: int, n: int, d: int, seed: int) -> None:
    a, b = 3.0 + cube(seed, g, n, d), cube(seed + 1, g, n, d) - 1.0
    on = off = 0.0
    for group in range(g):
        diagonal, energy = loops(*(standard(z, n - 0.5, 1e-2)[group].numpy() / n**0.5 for z in (a, b)))
        on, off = on + sum((1 - each) ** 2 for each in diagonal), off + energy
    got = correlation(alone(a, b), n - 0.5, 1e-2, (2.0, 3.0))
    np.testing.assert_allclose(torch.stack(got), [2.0 * on / g, 3.0 * off / g], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(4, 11), (9, 3), (3, 2), (2, 1)])
def test_gradients_are_the_derivatives_on_both_sides(n: int, d: int) -> None:
    a, b = 1.0 + cube(0, 2, n, d).requires_grad_(), cube(1, 2, n, d).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: spread(alone(x, y), 1.5, 1e-3, (2.0, 3.0, 5.0)), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: correlation(alone(x, y), n - 0.5, 1e-2, (2.0, 3.0)), (a, b))


def test_dominant_dimensions_do_not_drown_the_others_in_float32() -> None:
    z = cube(0, 1, 64, 256)
    z[..., :4] *= 1e3
    exact = spread(alone(z), 1.0, 1e-4, (0.0, 0.0, 1.0))[2].item()
    leaf = z.float().requires_grad_()
    energy = spread(alone(leaf), 1.0, 1e-4, (0.0, 0.0, 1.0))[2]
    assert energy.item() == pytest.approx(exact, rel=1e-5)
    (grad,) = torch.autograd.grad(energy, leaf)
    wide = z.clone().requires_grad_()
    (exact_grad,) = torch.autograd.grad(spread(alone(wide), 1.0, 1e-4, (0.0, 0.0, 1.0))[2], wide)
    assert (grad - exact_grad).norm() < 1e-5 * exact_grad.norm()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_symmetric_product_in_blocks_is_the_product(transposed: bool) -> None:
    x = cube(0, 2, 259, 7)
    wide = x.mT.contiguous().mT if transposed else x
    torch.testing.assert_close(gram(wide), x @ x.mT)


def test_nothing_of_size_d_by_d_is_made_where_samples_are_fewer() -> None:
    a, b = (cube(seed, 1, 8, 600).requires_grad_() for seed in (0, 1))
    with _Largest() as largest:
        energies = (
            spread(alone(a), 1.0, 1e-4, (0.0, 0.0, 1.0))[2] + correlation(alone(a, b), 7, 1e-5, (1.0, 1.0))[1]
        )
        energies.backward()
    assert largest.numel == 2 * 8 * 600


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out
