"""Attention by products of our own, against a formula in float64 and torch's own kernel."""

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
from torchjepa.nn import attention as choice
from torchjepa.nn.native import attention
from torchjepa.nn.native.joined import split_heads

pytestmark = pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
DTYPES = [BFLOAT16, FLOAT32]
BOUNDS = {
    BFLOAT16: {"times": 1.5, "floor": 8e-3, "limit": 1.5e-2},
    FLOAT32: {"times": 1.5, "floor": 1e-6, "limit": 5e-6},
}
LAYOUTS = ["dense", "split", "channels apart"]


def tensors(dtype: torch.dtype, *sizes: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values, and the gradient of what comes out."""
    batch, heads, queries, keys, channels = sizes
    lengths = queries, keys, keys, queries
    return [
        oracle.numbers(batch, heads, length, channels, seed=seed + i, spread=1.5 if i < 2 else 1).to(dtype)
        for i, length in enumerate(lengths)
    ]


def assert_near(inputs: list[Tensor], given: list[Tensor], grad: Tensor, given_grad: Tensor) -> None:
    """Of what is given, which are the inputs in any layout, the values and gradients."""
    ours, _ = oracle.derive(attention.attend, given, [given_grad])
    theirs, _ = oracle.derive(F.scaled_dot_product_attention, inputs, [grad])
    exact = oracle.derive_exactly(oracle.attend, inputs, [grad])
    assert all(each.dtype == grad.dtype for each in ours)
    bounds = BOUNDS[grad.dtype]
    if grad.dtype == FLOAT32 and inputs[1].shape[2] < 4:
        # Gradients of few keys are sums over all queries that cancel, of one key to nothing: their roundings are left.
        widen = max(3, inputs[0].shape[2] ** 0.5)
        unit = 5e-7 if oracle.splits() else 1e-6
        bounds = {"times": 1.5, "floor": unit * widen, "limit": 2 * unit * widen}
    oracle.assert_as_near(ours, theirs, exact, **bounds)


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
    st.one_of(st.sampled_from([1, 16, 31, 32, 33, 128, 129, 256, 257]), st.integers(1, 300)),
    st.one_of(st.sampled_from([1, 15, 16, 32, 33, 600]), st.integers(1, 300)),
    st.one_of(st.sampled_from([8, 16, 32, 33, 64, 80, 100]), st.integers(8, 100)),
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, derandomize=True)
@given(SIZES, st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4), st.integers(0, 1000))
def test_values_and_gradients(
    dtype: torch.dtype, sizes: tuple[int, int, int, int, int], layouts: list[str], seed: int
) -> None:
    *inputs, grad = tensors(dtype, *sizes, seed=seed)
    *given, given_grad = (
        laid_out(each, layout) for each, layout in zip((*inputs, grad), layouts, strict=True)
    )
    assert_near(inputs, given, grad, given_grad)


# Queries are worked on 32 at a time and, backwards, 256 or, in float32, 128; keys and values of a head stay cached.
@pytest.mark.parametrize(
    ("queries", "keys"),
    [(600, 5), (7, 2048), (513, 96), (64, 64), (127, 40), (128, 33), (129, 64), (256, 31), (257, 20)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_queries_or_keys(dtype: torch.dtype, queries: int, keys: int) -> None:
    *inputs, grad = tensors(dtype, 1, 2, queries, keys, 24)
    assert_near(inputs, inputs, grad, grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_is_copied(dtype: torch.dtype) -> None:
    q, k, v, _ = tensors(dtype, 2, 2, 9, 1, 40)
    assert torch.equal(attention.attend(q, k, v), v.expand(2, 2, 9, 40))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_choose_one_value(dtype: torch.dtype) -> None:
    q, k, v, _ = tensors(dtype, 1, 1, 1, 40, 32)
    k[:, :, 7] = q[:, :, 0]
    for spread in (1e2, 1e4, 1e6):
        found = attention.attend((q * spread).to(dtype), (k * spread).to(dtype), v)
        scores = q.double() @ k.double().mT
        rtol = 1e-2 if dtype == BFLOAT16 else 1e-6
        torch.testing.assert_close(found[0, 0, 0], v[0, 0, scores.argmax()], rtol=rtol, atol=0)


def test_large_scores_in_float32() -> None:
    # Up to 200: the gradients take up the rounding of the logarithm of a sum of that size.
    q, k, v, grad = tensors(FLOAT32, 1, 2, 60, 70, 64)
    ours, _ = oracle.derive(attention.attend, [q * 20, k, v], [grad])
    theirs, _ = oracle.derive(F.scaled_dot_product_attention, [q * 20, k, v], [grad])
    exact = oracle.derive_exactly(oracle.attend, [q * 20, k, v], [grad])
    oracle.assert_as_near(
        ours[:1], theirs[:1], exact[:1], times=1 if oracle.splits() else 1.1, floor=1e-6, limit=5e-6
    )
    oracle.assert_as_near(ours, theirs, exact, times=3, floor=1e-5, limit=2e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dtype", "bound"), [(BFLOAT16, 2e-2), (FLOAT32, 5e-5)])
def test_scores_all_of_which_are_far_from_zero(dtype: torch.dtype, bound: float, sign: int) -> None:
    # What fills up tiles has scores of 0: beside -300 that would be an infinite weight.
    *inputs, grad = tensors(dtype, 1, 2, 37, 45, 16)
    inputs[0][..., 0], inputs[1][..., 0] = 20, sign * 60
    ours, _ = oracle.derive(attention.attend, inputs, [grad])
    out, *_, of_v = oracle.derive_exactly(oracle.attend, inputs, [grad])
    assert all(each.isfinite().all() for each in ours)
    assert oracle.off(ours[0], out) < bound
    assert oracle.off(ours[3], of_v) < bound


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("keys", [32, 45])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_number_spoils_what_torch_has_it_spoil(
    dtype: torch.dtype, bad: float, which: int, keys: int
) -> None:
    *inputs, grad = tensors(dtype, 2, 3, 37, keys, 24)
    clean, _ = oracle.derive(attention.attend, inputs, [grad])
    inputs[which][1, 2, 11, 3] = bad
    ours, _ = oracle.derive(attention.attend, inputs, [grad])
    exact = oracle.attend(*(each.double() for each in inputs))
    if dtype == FLOAT32 and which == 1 and math.isinf(bad) and oracle.splits():
        # A score of -infinity gives no weight; of an infinite factor's parts some are NaN.
        assert not ours[0][1, 2].isfinite().any()
    else:
        assert torch.equal(ours[0].isfinite(), exact.isfinite())
    assert not ours[0][1, 2].isfinite().all()
    for found, before in zip(ours, clean, strict=True):
        found[1, 2] = before[1, 2]  # the other heads and sequences know nothing of it
        assert torch.equal(found, before)


@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (300, 45)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_larger_head_has_left_behind_does_no_harm(dtype: torch.dtype, queries: int, keys: int) -> None:
    *inputs, grad = tensors(dtype, 1, 1, queries, keys, 24)
    clean, _ = oracle.derive(attention.attend, inputs, [grad])
    *spoilt, spoilt_grad = (each * math.nan for each in tensors(dtype, 1, 8, 400, 400, 100))
    oracle.derive(attention.attend, spoilt, [spoilt_grad])
    oracle.assert_same_bits(oracle.derive(attention.attend, inputs, [grad])[0], clean)


@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (300, 45)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, queries: int, keys: int) -> None:
    *inputs, grad = tensors(dtype, 2, 3, queries, keys, 24)
    oracle.assert_same_for_any_threads(
        lambda: oracle.derive(attention.attend, inputs, [grad])[0], (1, 1, 2, 3, 6)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_gradient_the_same_bits(dtype: torch.dtype) -> None:
    q, k, v, _ = tensors(dtype, 2, 3, 50, 45, 24)
    training = attention.attend(q.clone().requires_grad_(), k, v)
    assert training.requires_grad
    assert torch.equal(attention.attend(q, k, v), training)
    with torch.no_grad():
        assert torch.equal(attention.attend(q.clone().requires_grad_(), k, v), training)


@pytest.mark.parametrize("wanted", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_one_of_them_alone(dtype: torch.dtype, wanted: int) -> None:
    *inputs, grad = tensors(dtype, 1, 2, 20, 33, 24)
    of_all = oracle.derive(attention.attend, inputs, [grad])[0][1:]
    inputs[wanted].requires_grad_()
    (found,) = torch.autograd.grad(attention.attend(*inputs), inputs[wanted], grad)
    assert torch.equal(found, of_all[wanted])


@pytest.mark.parametrize(("dtype", "bound"), [(BFLOAT16, 2e-2), (FLOAT32, 1e-6)])
def test_gradients_of_expanded_keys_and_of_a_sum(dtype: torch.dtype, bound: float) -> None:
    q, k, v, _ = tensors(dtype, 3, 2, 20, 33, 24)
    k, v = k[:1].clone().requires_grad_(), v[:1].clone().requires_grad_()
    out = attention.attend(q, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1))
    found = torch.autograd.grad(out.sum(), [k, v])  # the gradient of a sum is one number, seen everywhere
    leaves = [each.detach().double().requires_grad_() for each in (k, v)]
    exact = oracle.attend(q.double(), *leaves)
    for ours, true in zip(found, torch.autograd.grad(exact.sum(), leaves), strict=True):
        assert oracle.off(ours, true) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(BFLOAT16, 5e-2), (FLOAT32, 1e-5)])
def test_second_derivatives(dtype: torch.dtype, bound: float) -> None:
    *inputs, _ = tensors(dtype, 1, 2, 6, 9, 8)

    def squared_gradients(function: object, *leaves: Tensor) -> Tensor:
        out = function(*leaves)  # type: ignore[operator]
        found = torch.autograd.grad(out.double().sin().sum(), leaves, create_graph=True)
        return torch.stack([each.double().square().sum() for each in found]).sum()

    one = [torch.ones((), dtype=torch.float64)]
    ours, _ = oracle.derive(lambda *x: squared_gradients(attention.attend, *x), inputs, one)
    doubles = [each.double() for each in inputs]
    true, _ = oracle.derive(lambda *x: squared_gradients(oracle.attend, *x), doubles, one)
    for our, their in zip(ours, true, strict=True):
        assert oracle.off(our, their) < bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_served(dtype: torch.dtype) -> None:
    q, k, v, *_ = tensors(dtype, 1, 1, 3, 5, 16)
    assert attention.serves(q, k, v)
    for other in (torch.float64, torch.float16, *(each for each in DTYPES if each != dtype)):
        assert not attention.serves(q, k.to(other), v.to(other))
        assert not attention.serves(q, k, v.to(other))
        assert attention.serves(q.to(other), k.to(other), v.to(other)) == (other in DTYPES)
    many = k.repeat(1, 1, 500, 1)
    assert not attention.serves(q, many, many)
    wide = torch.zeros(1, 1, 3, 512, dtype=dtype)
    assert not attention.serves(wide, wide, wide)


EMPTY = [(0, 2, 5, 5, 16), (1, 2, 0, 5, 16)]
LARGE = [(1, 1, 3, 2500, 16), (1, 1, 3, 40, 300)]


@pytest.mark.parametrize("sizes", [*EMPTY, *LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_that_are_left_to_torch(dtype: torch.dtype, sizes: tuple[int, int, int, int, int]) -> None:
    q, k, v, _ = tensors(dtype, *sizes)
    assert not attention.serves(q, k, v)
    torch.testing.assert_close(choice.attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


UNFIT = {
    "keys of one sequence for queries of two": lambda q, k, v: (q, k[:1], v[:1]),
    "keys of one head": lambda q, k, v: (q, k[:, :1], v[:, :1]),
    "fewer values than keys": lambda q, k, v: (q, k, v[:, :, :-1]),
    "more channels in values": lambda q, k, v: (q, k, torch.cat([v, v], -1)),
    "fewer channels in keys": lambda q, k, v: (q, k[..., :-8], v),
    "keys in another dtype": lambda q, k, v: (q, *(each.to(ANOTHER[q.dtype]) for each in (k, v))),
}
ANOTHER = {BFLOAT16: FLOAT32, FLOAT32: BFLOAT16}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_do_not_fit_together_never_reach_the_kernel(
    dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        pytest.fail("the kernel would read or write beyond its tensors")

    monkeypatch.setattr(attention, "_call", refuse)
    *inputs, _ = tensors(dtype, 2, 2, 6, 9, 16)
    q, k, v = UNFIT[name](*inputs)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which checks shapes in tests alone
    try:
        expected = F.scaled_dot_product_attention(q, k, v)
    except RuntimeError:
        with pytest.raises((RuntimeError, ValueError)):
            choice.attend(q, k, v)
    else:
        torch.testing.assert_close(choice.attend(q, k, v), expected)
