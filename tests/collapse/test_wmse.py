"""W-MSE against its equation and finite differences; whitening; sub-batches; refusals."""

import numpy as np
import pytest
import torch

from tests.collapse import oracles, sliced_oracles
from torchjepa.collapse import WMSE
from torchjepa.collapse.samples import group_samples
from torchjepa.collapse.wmse import _whitened
from torchjepa.testing import check_regularizer
from torchjepa.types import NonFiniteError


def three_views(n: int, d: int) -> list[np.ndarray]:
    z_a, z_b = oracles.normal_views(3, n, d)
    return [z_a, z_b, z_a + 0.5 * oracles.normal_views(4, n, d)[0]]


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.2])
def test_equals_the_equation(num_views: int, eps: float) -> None:
    views = three_views(9, 4)[:num_views]
    loss = WMSE(eps=eps).loss(*map(torch.from_numpy, views))
    assert loss.item() == pytest.approx(sliced_oracles.wmse(views, eps), rel=1e-10)


def test_gradient_equals_finite_differences_of_the_equation() -> None:
    views = three_views(7, 3)
    leaves = [torch.from_numpy(z).requires_grad_() for z in views]
    grads = torch.autograd.grad(WMSE().loss(*leaves), leaves)
    for i, grad in enumerate(grads):
        expected = oracles.slopes(
            lambda z, i=i: sliced_oracles.wmse([*views[:i], z, *views[i + 1 :]]), views[i]
        )
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)


def test_whitened_views_have_mean_zero_and_covariance_one() -> None:
    z = torch.from_numpy(three_views(20, 5)[2])
    (samples,) = group_samples("test", (z,), "batch", num_views=(1, 1), min_samples=2)
    white = _whitened(samples.views[0], samples, 20, 0.0)[0]
    torch.testing.assert_close(white.mean(0), torch.zeros(5, dtype=z.dtype), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(white.T @ white / 19, torch.eye(5, dtype=z.dtype))


def test_invariant_under_affine_maps_of_a_view_that_keep_the_order_of_dimensions() -> None:
    z_a, z_b = map(torch.from_numpy, oracles.normal_views(5, 12, 4))
    triangular = torch.eye(4, dtype=z_a.dtype).mul(3.0) + torch.ones(4, 4, dtype=z_a.dtype).tril(-1)
    regularizer = WMSE(eps=0.0)
    torch.testing.assert_close(regularizer.loss(z_a @ triangular.T + 7.0, z_b), regularizer.loss(z_a, z_b))


def test_sub_batches_are_whitened_apart() -> None:
    views = three_views(21, 3)[:2]
    regularizer = WMSE(sub_batch_size=10, num_shuffles=3)
    tensors = [torch.from_numpy(z) for z in views]
    (samples,) = group_samples("test", tensors, "batch", num_views=(2, None), min_samples=2)
    expected = 0.0
    for shuffle in range(3):
        parts = regularizer._parts(samples, 2, shuffle)
        assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(21))
        assert [count for _, count in parts] == [11, 10]
        for rows, count in parts:
            expected += count / 21 * sliced_oracles.wmse([z[rows.numpy()] for z in views]) / 3
    assert regularizer.loss(*tensors).item() == pytest.approx(expected, rel=1e-9)


def test_sub_batches_are_shuffled_anew_and_continue_from_the_state() -> None:
    views = [torch.from_numpy(z) for z in three_views(24, 3)[:2]]
    regularizer = WMSE(sub_batch_size=8)
    first, state, second = regularizer.loss(*views), regularizer.state_dict(), regularizer.loss(*views)
    assert first != second
    resumed = WMSE(sub_batch_size=8)
    resumed.load_state_dict(state)
    assert resumed.loss(*views) == second


def test_a_collapsed_batch_costs_as_much_as_unrelated_views() -> None:
    z = torch.ones(8, 4, requires_grad=True)
    loss = WMSE().loss(z, z.detach())
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(2.0)
    assert grad.isfinite().all()


def test_keeps_the_contract() -> None:
    check_regularizer(WMSE())


def test_refusals() -> None:
    z = torch.from_numpy(oracles.normal_views(0, 8, 4)[0])
    with pytest.raises(
        ValueError, match="got 4 samples of 4 dimensions; give it a narrower projector, a larger"
    ):
        WMSE().loss(z[:4], z[:4])
    with pytest.raises(
        ValueError, match=r"got 4 samples of 4 dimensions in each of 2 sub-batches.*sub_batch_size"
    ):
        WMSE(sub_batch_size=4).loss(z, z)
    with pytest.raises(
        ValueError, match=r"covariance over 8 samples is singular, and eps = 0.0 .* raise eps"
    ):
        WMSE(eps=0.0).loss(z * torch.tensor([1.0, 1.0, 0.0, 1.0]), z)
    with pytest.raises(ValueError, match=r"WMSE: takes at least 2 view.* got 1"):
        WMSE().loss(z)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match=r"WMSE: views must be finite.*view 1 holds 1 of 32"):
            WMSE().loss(z, z.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(bad).double()))
    for kwargs, message in (
        ({"sub_batch_size": 1}, "sub_batch_size must be an integer of at least 2, got 1"),
        ({"num_shuffles": 0}, "num_shuffles must be an integer of at least 1, got 0"),
        ({"num_shuffles": 4}, "num_shuffles = 4 does nothing without sub_batch_size"),
        ({"eps": -0.1}, "eps must be from 0 to 1, got -0.1"),
        ({"over": "space"}, "over must be one of"),
    ):
        with pytest.raises(ValueError, match=f"WMSE: {message}"):
            WMSE(**kwargs)
