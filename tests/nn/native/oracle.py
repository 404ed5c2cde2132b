"""What the kernels compute, written out in float64, and how far a result is from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from torchjepa.nn.native import float_layers
from torchjepa.nn.native.library import packed_bytes

NO_FLOATS = (
    "no compiled kernels for float32 here (no compiler, another OpenMP or BLAS, or TORCHJEPA_NATIVE=0)"
)
NO_PRODUCTS = "no products of our own on this processor, or no kernels were compiled for it"


def has_floats() -> bool:
    return float_layers.serves(torch.float32)


def has_products() -> bool:
    return packed_bytes(torch.float32) > 0 and packed_bytes(torch.bfloat16) > 0


def splits() -> bool:
    """Whether a float32 is split into three parts, which are nearer to it than the products of its kind are."""
    return packed_bytes(torch.float32) == 6


def numbers(*shape: int, seed: int, mean: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * spread + mean


def mlp_inputs(rows: int, width: int, hidden: int, seed: int) -> list[Tensor]:
    """Rows, scale, shift, W1, b1, W2, b2; the hidden layer is of the size of one."""
    return [
        numbers(rows, width, seed=seed, mean=0.3, spread=2),
        numbers(width, seed=seed + 1, mean=1, spread=0.3),
        numbers(width, seed=seed + 2, spread=0.3),
        numbers(hidden, width, seed=seed + 3, spread=width**-0.5),
        numbers(hidden, seed=seed + 4, spread=0.5),
        numbers(width, hidden, seed=seed + 5, spread=hidden**-0.5),
        numbers(width, seed=seed + 6, spread=0.5),
    ]


def heads_inputs(batch: int, tokens: int, width: int, outs: int, seed: int) -> list[Tensor]:
    """Tokens, scale, shift, and the weight and bias of queries, keys and values."""
    x, scale, shift, weight, bias, *_ = mlp_inputs(batch * tokens, width, outs, seed)
    return [x.view(batch, tokens, width), scale, shift, weight, bias]


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    off = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (off * off).sum(-1, keepdim=True) / x.shape[-1]
    return off / (variance + eps).sqrt() * scale + shift


def gelu(x: Tensor) -> Tensor:
    return x * torch.special.erfc(-x * 0.5**0.5) / 2


def norm_mlp_add(x: Tensor, *weights: Tensor) -> Tensor:
    scale, shift, weight_1, bias_1, weight_2, bias_2 = weights
    return x + gelu(norm(x, scale, shift) @ weight_1.T + bias_1) @ weight_2.T + bias_2


def norm_heads(num_heads: int) -> Callable[..., tuple[Tensor, ...]]:
    """The tokens and their queries, keys and values, cut out head by head."""

    def formula(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        joined = norm(x, scale, shift) @ weight.T + bias
        e = len(weight) // (3 * num_heads)
        heads = [joined[..., i * e : (i + 1) * e] for i in range(3 * num_heads)]
        return x * 1, *(torch.stack(heads[i * num_heads : (i + 1) * num_heads], dim=1) for i in range(3))

    return formula


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def derive(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """What a function gives with the gradients of all inputs, and what gradients it was given, random unless named."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    made = function(*leaves)
    outs = [made] if isinstance(made, Tensor) else list(made)
    if not grads:
        grads = [numbers(*out.shape, seed=99 + i).to(out.dtype) for i, out in enumerate(outs)]
    found = torch.autograd.grad(outs, leaves, [grad.to(out.dtype) for grad, out in zip(grads, outs)])
    return [*(out.detach() for out in outs), *found], list(grads)


def derive_exactly(function: Callable, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    return derive(function, [each.double() for each in inputs], [each.double() for each in grads])[0]


def off(got: Tensor, exact: Tensor) -> float:
    """Distance over length, and over that of numbers of size one half where the length is less by chance."""
    assert got.shape == exact.shape
    return float((got.double() - exact).norm() / exact.norm().clamp(min=0.5 * exact.numel() ** 0.5))


def assert_as_near(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    exact: Sequence[Tensor],
    *,
    times: float,
    floor: float,
    limit: float,
) -> None:
    """Ours is at most so many times as far from the exact result as torch's own, or nearer than the floor."""
    for place, (our, their, true) in enumerate(zip(ours, theirs, exact, strict=True)):
        mine, yours = off(our, true), off(their, true)
        assert mine <= max(times * yours, floor), f"result {place}: off by {mine:.1e}, torch by {yours:.1e}"
        assert mine <= limit, f"result {place}: off by {mine:.1e}"


def assert_same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    for place, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), f"result {place} differs by {(one - other).abs().max():.1e}"


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_for_any_threads(
    function: Callable[[], Sequence[Tensor]], numbers_of_threads: Sequence[int] = (1, 1, 2, 3)
) -> None:
    expected = function()
    for number in numbers_of_threads:
        with threads(number):
            assert_same_bits(function(), expected)
