"""A layer norm and the linear layer behind it as one node, against both called one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchjepa.nn import residual
from torchjepa.nn.attention import Attention, Block
from torchjepa.nn.residual import norm_linear


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "_LEAN_BYTES", 0)


def parts(
    dtype: torch.dtype = torch.float64, dim: int = 6, num_out: int = 9
) -> tuple[nn.LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, num_out)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *linear.parameters()):
            parameter.normal_(0.3, 0.7)
    return norm.to(dtype), linear.to(dtype)


def tokens(dtype: torch.dtype = torch.float64, dim: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def gradients(out: Tensor, x: Tensor, norm: nn.Module, linear: nn.Module) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), [x, *norm.parameters(), *linear.parameters()])


def test_values_and_all_gradients_are_those_of_the_parts() -> None:
    x, (norm, linear) = tokens(), parts()
    ours, theirs = norm_linear(x, norm, linear), linear(norm(x))
    assert type(ours.grad_fn).__name__ == "_NormLinearBackward"
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, expected in zip(
        gradients(ours, x, norm, linear), gradients(theirs, x, norm, linear), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives_agree_with_finite_differences() -> None:
    norm, linear = parts(dim=3, num_out=2)
    x = tokens(dim=3)[:1, :2].detach().requires_grad_()
    inputs = (x, *norm.parameters(), *linear.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: norm_linear(x, norm, linear), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: norm_linear(x, norm, linear), inputs)


def test_any_layout_and_a_gradient_that_is_not_contiguous() -> None:
    norm, linear = parts()
    x = tokens().detach().transpose(0, 1).requires_grad_()
    got, expected = (
        torch.autograd.grad(function(x).transpose(0, 2)[1].square().sum(), x)[0]
        for function in (lambda x: norm_linear(x, norm, linear), lambda x: linear(norm(x)))
    )
    torch.testing.assert_close(got, expected)


def test_under_autocast_the_product_alone_is_in_bfloat16() -> None:
    x, (norm, linear) = tokens(torch.float32), parts(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = norm_linear(x, norm, linear), linear(norm(x))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        gradients(ours, x, norm, linear), gradients(theirs, x, norm, linear), strict=True
    ):
        assert got.dtype == expected.dtype == torch.float32
        assert (got - expected).norm() <= 1e-2 * expected.norm()


def test_it_keeps_the_tokens_and_not_what_is_normalised() -> None:
    x, (norm, linear) = tokens(torch.float32), parts(torch.float32)
    own = {each.data_ptr() for each in (x, *norm.parameters(), *linear.parameters())}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_linear(x, norm, linear)
    assert kept == [(15, 1), (15, 1)]  # mean and 1 / std of each token


@pytest.mark.parametrize("num_queries", [None, 2])
def test_a_block_is_the_same_whatever_it_keeps(
    monkeypatch: pytest.MonkeyPatch, num_queries: int | None
) -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2).double(), tokens(dim=8)
    results = []
    for threshold in (0, 1 << 30):
        monkeypatch.setattr(residual, "_LEAN_BYTES", threshold)
        out = block(x, num_queries)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_hooks_see_what_they_always_saw() -> None:
    block, x = Block(8, 2).double(), tokens(dim=8)
    seen: list[Tensor] = []
    for part in (block.norm1, block.attn.qkv, block.attn):
        handle = part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        block(x)
        handle.remove()
    normed = block.norm1(x)
    for got, expected in zip(seen, (x, normed, normed), strict=True):
        torch.testing.assert_close(got, expected)


def test_an_attention_of_ones_own_is_given_what_is_normalised() -> None:
    class Noted(Attention):
        def forward(self, x: Tensor, *rest: object, **more: object) -> Tensor:
            self.given = x
            return super().forward(x, *rest, **more)  # type: ignore[arg-type]

    block, x = Block(8, 2).double(), tokens(dim=8)
    block.attn = Noted(8, 2).double()
    block(x)
    torch.testing.assert_close(block.attn.given, block.norm1(x))
