"""What is done to targets: values against loops in float64, gradients, and two ranks as one process."""

import numpy as np
import pytest
import torch
from torch import Tensor

from torchjepa import dist
from torchjepa.models import LayerNormTargets, PositionStandardize, TargetNorm
from torchjepa.testing import run_on_ranks


def tokens(b: int = 5, n: int = 3, d: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    place = 3.0 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return place + torch.randn(b, n, d, generator=generator, dtype=torch.float64)


def slow_position_standardize(h: np.ndarray, eps: float) -> np.ndarray:
    b, n, d = h.shape
    out = np.zeros_like(h)
    for c in range(d):
        rest = np.array([[h[i, p, c] - sum(h[:, p, c]) / b for p in range(n)] for i in range(b)])
        out[:, :, c] = rest / np.sqrt((rest**2).sum() / (b * n) + eps)
    return out


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_position_standardize_equals_a_loop(eps):
    h = tokens()
    expected = slow_position_standardize(h.numpy(), eps)
    torch.testing.assert_close(PositionStandardize(eps)(h), torch.from_numpy(expected))


def test_what_all_samples_share_is_gone_and_channels_have_unit_variance():
    t = PositionStandardize(eps=0.0)(tokens())
    torch.testing.assert_close(t.mean(0), torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(t.square().mean((0, 1)), torch.ones(4, dtype=torch.float64))


def test_constant_tokens_are_zero_and_finite():
    h = torch.full((4, 3, 2), 7.0, requires_grad=True)
    t = PositionStandardize()(h)
    assert not t.any()
    t.sum().backward()
    assert torch.isfinite(h.grad).all()


def test_far_from_zero_the_variance_survives():
    h = tokens().float()
    torch.testing.assert_close(PositionStandardize()(h + 1e3), PositionStandardize()(h), atol=1e-3, rtol=1e-3)


def test_half_precision_is_standardised_in_float32():
    assert PositionStandardize()(tokens().bfloat16()).dtype == torch.float32


def test_gradient_reaches_through_the_statistics():
    h = tokens(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(PositionStandardize(), h)


def test_layer_norm_equals_a_loop():
    h = tokens()
    t = LayerNormTargets(eps=0.1)(h)
    for i in range(5):
        for p in range(3):
            row = h[i, p].numpy()
            expected = (row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean() + 0.1)
            assert t[i, p].tolist() == pytest.approx(expected.tolist())


def test_one_sample_leaves_nothing():
    with pytest.raises(ValueError, match=r"at least 2 samples, got 1.*larger \(micro-\)batches or LayerNorm"):
        PositionStandardize()(tokens(1))


def test_both_are_target_norms():
    assert isinstance(PositionStandardize(), TargetNorm)
    assert isinstance(LayerNormTargets(), TargetNorm)


def value_and_gradient(h: Tensor) -> tuple[Tensor, Tensor]:
    h = h.clone().requires_grad_()
    t = PositionStandardize(0.1)(h)
    (gradient,) = torch.autograd.grad(t.pow(3).sum(), h)
    return t.detach(), gradient


SIZES = ([1, 4], [5, 0])


def of_my_rows() -> list[tuple[Tensor, Tensor]]:
    return [value_and_gradient(tokens().split(sizes)[dist.rank()]) for sizes in SIZES]


def test_two_unequal_ranks_are_one_process():
    for first, second in zip(*run_on_ranks(of_my_rows, 2)):
        for mine, yours, expected in zip(first, second, value_and_gradient(tokens())):
            torch.testing.assert_close(torch.cat([mine, yours]), expected)
