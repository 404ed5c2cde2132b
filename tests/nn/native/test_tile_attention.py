"""Attention by tile registers, against a formula in float64 and torch's own kernel."""

from __future__ import annotations

import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.native import oracle
from torchjepa.nn import attention
from torchjepa.nn.native import tile_attention
from torchjepa.nn.native.joined import split_heads

pytestmark = pytest.mark.skipif(not oracle.has_tiles(), reason=oracle.NO_TILES)

BFLOAT16 = torch.bfloat16
LAYOUTS = ["dense", "split", "channels apart"]


def tensors(batch: int, heads: int, queries: int, keys: int, channels: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values, and the gradient of what comes out."""
    lengths = queries, keys, keys, queries
    return [
        oracle.numbers(batch, heads, length, channels, seed=seed + i, spread=1.5 if i < 2 else 1).to(BFLOAT16)
        for i, length in enumerate(lengths)
    ]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "split":  # as one product gives queries, keys and values of all heads side by side
        batch, heads, tokens, channels = x.shape
        joined = torch.full((batch, tokens, 3, heads, channels), math.nan, dtype=x.dtype)
        joined[:, :, 1] = x.transpose(1, 2)
        return split_heads(joined.flatten(2), torch.Size((batch, tokens, heads * channels)), heads)[1]
    if layout == "channels apart":
        return x.mT.contiguous().mT
    return x


SIZES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 4),
    st.one_of(st.sampled_from([1, 16, 31, 32, 33, 256, 257]), st.integers(1, 300)),
    st.one_of(st.sampled_from([1, 15, 16, 32, 33, 600]), st.integers(1, 300)),
    st.one_of(st.sampled_from([8, 16, 32, 33, 64, 80, 100]), st.integers(8, 100)),
)


@settings(max_examples=25, derandomize=True)
@given(SIZES, st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4), st.integers(0, 1000))
def test_values_and_gradients(sizes: tuple[int, int, int, int, int], layouts: list[str], seed: int) -> None:
    *inputs, grad = tensors(*sizes, seed=seed)
    exact = oracle.derive_exactly(oracle.attend, inputs, [grad])
    theirs, _ = oracle.derive(F.scaled_dot_product_attention, inputs, [grad])
    *inputs, grad = (laid_out(each, layout) for each, layout in zip((*inputs, grad), layouts, strict=True))
    ours, _ = oracle.derive(tile_attention.attend, inputs, [grad])
    assert all(each.dtype == BFLOAT16 for each in ours)
    oracle.assert_as_near(ours, theirs, exact, times=1.5, floor=8e-3, limit=1.5e-2)


# Queries are worked on 32 at a time and, backwards, 256; keys and values of a head stay in a core's cache.
@pytest.mark.parametrize(("queries", "keys"), [(600, 5), (7, 2048), (513, 96), (64, 64)])
def test_many_queries_or_keys(queries: int, keys: int) -> None:
    *inputs, grad = tensors(1, 2, queries, keys, 24)
    ours, _ = oracle.derive(tile_attention.attend, inputs, [grad])
    theirs, _ = oracle.derive(F.scaled_dot_product_attention, inputs, [grad])
    exact = oracle.derive_exactly(oracle.attend, inputs, [grad])
    oracle.assert_as_near(ours, theirs, exact, times=1.5, floor=8e-3, limit=1.5e-2)


def test_one_key_is_copied() -> None:
    q, k, v, _ = tensors(2, 2, 9, 1, 40)
    assert torch.equal(tile_attention.attend(q, k, v), v.expand(2, 2, 9, 40))


def test_scores_far_apart_choose_one_value() -> None:
    q, k, v, _ = tensors(1, 1, 1, 40, 32)
    k[:, :, 7] = q[:, :, 0]
    for spread in (1e2, 1e4, 1e6):
        found = tile_attention.attend((q * spread).to(BFLOAT16), (k * spread).to(BFLOAT16), v)
        scores = q.double() @ k.double().mT
        torch.testing.assert_close(found[0, 0, 0], v[0, 0, scores.argmax()], rtol=1e-2, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("keys", [32, 45])
def test_a_bad_number_spoils_what_torch_has_it_spoil(bad: float, which: int, keys: int) -> None:
    *inputs, grad = tensors(2, 3, 37, keys, 24)
    clean, _ = oracle.derive(tile_attention.attend, inputs, [grad])
    inputs[which][1, 2, 11, 3] = bad
    ours, _ = oracle.derive(tile_attention.attend, inputs, [grad])
    exact = oracle.attend(*(each.double() for each in inputs))
    assert torch.equal(ours[0].isfinite(), exact.isfinite())
    assert not ours[0][1, 2].isfinite().all()
    for found, before in zip(ours, clean, strict=True):
        found[1, 2] = before[1, 2]  # the other heads and sequences know nothing of it
        assert torch.equal(found, before)


@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (300, 45)])
def test_any_number_of_threads_gives_the_same_bits(queries: int, keys: int) -> None:
    *inputs, grad = tensors(2, 3, queries, keys, 24)
    oracle.assert_same_for_any_threads(lambda: oracle.derive(tile_attention.attend, inputs, [grad])[0])


def test_without_a_gradient_the_same_bits() -> None:
    q, k, v, _ = tensors(2, 3, 50, 45, 24)
    training = tile_attention.attend(q.clone().requires_grad_(), k, v)
    assert training.requires_grad
    assert torch.equal(tile_attention.attend(q, k, v), training)
    with torch.no_grad():
        assert torch.equal(tile_attention.attend(q.clone().requires_grad_(), k, v), training)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_gradient_of_one_of_them_alone(wanted: int) -> None:
    *inputs, grad = tensors(1, 2, 20, 33, 24)
    of_all = oracle.derive(tile_attention.attend, inputs, [grad])[0][1:]
    inputs[wanted].requires_grad_()
    (found,) = torch.autograd.grad(tile_attention.attend(*inputs), inputs[wanted], grad)
    assert torch.equal(found, of_all[wanted])


def test_gradients_of_expanded_keys_and_of_a_sum() -> None:
    q, k, v, _ = tensors(3, 2, 20, 33, 24)
    k, v = k[:1].clone().requires_grad_(), v[:1].clone().requires_grad_()
    out = tile_attention.attend(q, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1))
    found = torch.autograd.grad(out.sum(), [k, v])  # the gradient of a sum is one number, seen everywhere
    leaves = [each.detach().double().requires_grad_() for each in (k, v)]
    exact = oracle.attend(q.double(), *leaves)
    for ours, true in zip(found, torch.autograd.grad(exact.sum(), leaves), strict=True):
        assert oracle.off(ours, true) < 2e-2


def test_second_derivatives() -> None:
    *inputs, _ = tensors(1, 2, 6, 9, 8)

    def squared_gradients(function: object, *leaves: Tensor) -> Tensor:
        out = function(*leaves)  # type: ignore[operator]
        found = torch.autograd.grad(out.double().sin().sum(), leaves, create_graph=True)
        return torch.stack([each.double().square().sum() for each in found]).sum()

    one = [torch.ones((), dtype=torch.float64)]
    ours, _ = oracle.derive(lambda *x: squared_gradients(tile_attention.attend, *x), inputs, one)
    doubles = [each.double() for each in inputs]
    true, _ = oracle.derive(lambda *x: squared_gradients(oracle.attend, *x), doubles, one)
    for our, their in zip(ours, true, strict=True):
        assert oracle.off(our, their) < 5e-2


def test_what_is_served() -> None:
    q, k, v, *_ = tensors(1, 1, 3, 5, 16)
    assert tile_attention.serves(q, k, v)
    assert not tile_attention.serves(q.float(), k.float(), v.float())
    many = k.repeat(1, 1, 500, 1)
    assert not tile_attention.serves(q, many, many)
    wide = torch.zeros(1, 1, 3, 512, dtype=BFLOAT16)
    assert not tile_attention.serves(wide, wide, wide)


EMPTY = [(0, 2, 5, 5, 16), (1, 2, 0, 5, 16)]
LARGE = [(1, 1, 3, 2500, 16), (1, 1, 3, 40, 300)]


@pytest.mark.parametrize("sizes", [*EMPTY, *LARGE])
def test_sizes_that_are_left_to_torch(sizes: tuple[int, int, int, int, int]) -> None:
    q, k, v, _ = tensors(*sizes)
    torch.testing.assert_close(attention.attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


UNFIT = {
    "keys of one sequence for queries of two": lambda q, k, v: (q, k[:1], v[:1]),
    "keys of one head": lambda q, k, v: (q, k[:, :1], v[:, :1]),
    "fewer values than keys": lambda q, k, v: (q, k, v[:, :, :-1]),
    "more channels in values": lambda q, k, v: (q, k, torch.cat([v, v], -1)),
    "fewer channels in keys": lambda q, k, v: (q, k[..., :-8], v),
    "keys in float32": lambda q, k, v: (q, k.float(), v.float()),
}


@pytest.mark.parametrize("name", UNFIT)
def test_tensors_that_do_not_fit_together_never_reach_the_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        pytest.fail("the kernel would read or write beyond its tensors")

    monkeypatch.setattr(tile_attention, "_call", refuse)
    *inputs, _ = tensors(2, 2, 6, 9, 16)
    q, k, v = UNFIT[name](*inputs)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which checks shapes in tests alone
    try:
        expected = F.scaled_dot_product_attention(q, k, v)
    except RuntimeError:
        with pytest.raises((RuntimeError, ValueError)):
            attention.attend(q, k, v)
    else:
        torch.testing.assert_close(attention.attend(q, k, v), expected)
