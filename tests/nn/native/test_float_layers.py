"""The float32 kernels and the nodes around them, against formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.native import oracle
from torchjepa.nn.native import float_nodes

pytestmark = pytest.mark.skipif(not oracle.has_floats(), reason=oracle.NO_FLOATS)

EPS = 1e-6
ROWS = st.one_of(st.sampled_from([1, 2, 15, 16, 191, 192, 193, 300]), st.integers(1, 300))
WIDTHS = st.one_of(st.sampled_from([7, 33, 96]), st.integers(5, 100))
COUNTS = st.integers(5, 100)
SEEDS = st.integers(0, 1000)


def mlp(x: Tensor, *weights: Tensor) -> Tensor:
    return float_nodes.norm_mlp_add(x, weights, EPS)


def torch_mlp(x: Tensor, *weights: Tensor) -> Tensor:
    scale, shift, weight_1, bias_1, weight_2, bias_2 = weights
    normed = F.layer_norm(x, scale.shape, scale, shift, EPS)
    return x + F.linear(F.gelu(F.linear(normed, weight_1, bias_1)), weight_2, bias_2)


def heads(num_heads: int, lean: bool) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, *weights: float_nodes.norm_heads(x, weights, EPS, num_heads, lean)


def torch_heads(num_heads: int) -> Callable[..., tuple[Tensor, ...]]:
    def formula(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        joined = F.linear(F.layer_norm(x, scale.shape, scale, shift, EPS), weight, bias)
        return x * 1, *joined.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)

    return formula


def assert_near(
    ours: Callable, theirs: Callable, exact: Callable, inputs: list[Tensor], limit: float = 2e-5
) -> None:
    found, grads = oracle.derive(ours, inputs)
    true = oracle.derive_exactly(exact, inputs, grads)
    # Rows of two or three channels are ill-conditioned, which shows in torch's own error.
    oracle.assert_as_near(
        found, oracle.derive(theirs, inputs, grads)[0], true, times=3, floor=2e-6, limit=limit
    )


@settings(max_examples=25, derandomize=True)
@given(ROWS, WIDTHS, COUNTS, SEEDS)
def test_the_mlp_half_and_all_its_gradients(rows: int, width: int, hidden: int, seed: int) -> None:
    assert_near(mlp, torch_mlp, oracle.norm_mlp_add, oracle.mlp_inputs(rows, width, hidden, seed))


@settings(max_examples=20, derandomize=True)
@given(ROWS, COUNTS, COUNTS, SEEDS)
def test_a_linear_layer_added_to_the_stream_with_all_gradients(
    rows: int, width: int, outs: int, seed: int
) -> None:
    weight, bias = oracle.mlp_inputs(1, width, outs, seed)[3:5]
    x, stream = oracle.numbers(rows, width, seed=seed), oracle.numbers(rows, outs, seed=seed + 9, spread=2)

    def exact(x: Tensor, weight: Tensor, bias: Tensor, stream: Tensor) -> Tensor:
        return stream + x @ weight.T + bias

    assert_near(float_nodes.linear_add, exact, exact, [x, weight, bias, stream])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_norm_of_few_channels(width: int) -> None:
    # Of one channel nothing is left, and 1 / sqrt(eps) = 1000 times the rounding of what should cancel.
    assert_near(mlp, mlp, oracle.norm_mlp_add, oracle.mlp_inputs(70, width, 5, 0), limit=2e-4)


# One run of rows more than is cut in two; runs of 192 rows and of more.
@pytest.mark.parametrize("rows", [3071, 3072, 3100, 6200])
def test_more_rows_than_one_run_takes(rows: int) -> None:
    assert_near(mlp, torch_mlp, oracle.norm_mlp_add, oracle.mlp_inputs(rows, 6, 11, 0), limit=3e-6)


@settings(max_examples=20, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 100), WIDTHS, st.integers(1, 4), st.integers(1, 9), st.booleans(), SEEDS
)
def test_the_norm_and_its_heads_with_all_gradients(
    batch: int, tokens: int, width: int, num_heads: int, channels: int, lean: bool, seed: int
) -> None:
    inputs = oracle.heads_inputs(batch, tokens, width, 3 * num_heads * channels, seed)
    assert_near(heads(num_heads, lean), torch_heads(num_heads), oracle.norm_heads(num_heads), inputs)


def gelu_and_slope(values: list[float]) -> tuple[Tensor, Tensor]:
    # The hidden layer is its bias, and what goes out and comes back is the GELU and its derivative.
    n = len(values)
    x, bias = torch.zeros(1, n), torch.tensor(values, requires_grad=True)
    out = mlp(x, torch.ones(n), torch.zeros(n), torch.zeros(n, n), bias, torch.eye(n), torch.zeros(n))
    return out.detach()[0], torch.autograd.grad(out.sum(), bias)[0]


def exact_gelu_and_slope(value: float) -> tuple[float, float]:
    cdf = math.erfc(-value / math.sqrt(2)) / 2
    density = math.exp(-min(value * value, 1400) / 2) / math.sqrt(2 * math.pi)
    return value * cdf, cdf + value * density


def test_gelu_keeps_its_digits_far_out() -> None:
    values = torch.linspace(-13, 13, 801).tolist()
    found, slopes = gelu_and_slope(values)
    for value, ours, slope in zip(values, found.tolist(), slopes.tolist(), strict=True):
        true, true_slope = exact_gelu_and_slope(value)
        # Rounding x^2 alone moves the far tail by x^2 / 2 units in the last place.
        slack = 1e-6 + 1e-7 * value * value / 2
        assert abs(ours - true) <= slack * abs(true), value
        # The derivative is 0 near -0.75, where its two parts cancel.
        assert abs(slope - true_slope) <= slack * max(abs(true_slope), 0.1 if -2 < value < 0 else 0), value


def test_gelu_of_numbers_beyond_all_tails() -> None:
    found, slopes = gelu_and_slope([0.0, -0.0, 1e4, 1e30, -1e4, -1e30, 15.0, -15.0, 1e-30, -1e-30])
    expected = [0.0, 0.0, 1e4, 1e30, 0.0, 0.0, 15.0, 0.0, 5e-31, -5e-31]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(
        slopes, torch.tensor([0.5, 0.5, 1, 1, 0, 0, 1, 0, 0.5, 0.5]), rtol=1e-6, atol=1e-37
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_number_spoils_its_row_alone(bad: float) -> None:
    inputs = oracle.mlp_inputs(200, 33, 40, 0)
    (clean, of_x, *_), grads = oracle.derive(mlp, inputs)
    inputs[0][5, 3] = bad
    (out, of_bad, *of_weights), _ = oracle.derive(mlp, inputs, grads)
    theirs = torch_mlp(*inputs)
    assert torch.equal(out.isnan(), theirs.isnan())
    assert torch.equal(out.isnan().any(1).nonzero().flatten(), torch.tensor([5]))
    good = torch.arange(200) != 5
    oracle.assert_same_bits([out[good], of_bad[good]], [clean[good], of_x[good]])
    assert of_bad[5].isnan().any()
    assert of_weights[2].isnan().any(), "the gradient of W1 says that something is wrong"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_number_reaches_the_heads_of_its_token_alone(bad: float) -> None:
    inputs = oracle.heads_inputs(2, 9, 33, 36, 0)
    clean = heads(3, lean=False)(*inputs)
    inputs[0][1, 4, 3] = bad
    for ours, before in zip(heads(3, lean=False)(*inputs)[1:], clean[1:], strict=True):
        assert ours[1, :, 4].isnan().all()
        ours[1, :, 4] = before[1, :, 4]
        torch.testing.assert_close(ours, before)


@pytest.mark.parametrize("rows", [17, 500, 3100])
def test_any_number_of_threads_gives_the_same_bits(rows: int) -> None:
    inputs, parts = oracle.mlp_inputs(rows, 24, 56, 0), oracle.heads_inputs(1, rows, 24, 36, 0)
    linear = [oracle.numbers(rows, 56, seed=7), *inputs[5:], inputs[0]]

    def everything() -> list[Tensor]:
        # Without the gradients of matrices, which are products of torch's.
        of_mlp, of_heads = oracle.derive(mlp, inputs)[0], oracle.derive(heads(3, lean=False), parts)[0]
        of_linear, _ = oracle.derive(float_nodes.linear_add, linear)
        return [
            each
            for each in (*of_mlp, *of_heads, *of_linear)
            if each.shape not in ((56, 24), (24, 56), (36, 24))
        ]

    oracle.assert_same_for_any_threads(everything)


# Hidden widths that put rows at other places in a vector than the workspace of a thread does.
@pytest.mark.parametrize(("width", "hidden"), [(33, 7), (24, 56), (96, 101)])
@pytest.mark.parametrize("rows", [5, 250])
def test_without_a_gradient_the_same_bits(rows: int, width: int, hidden: int) -> None:
    inputs = oracle.mlp_inputs(rows, width, hidden, 0)
    parts = oracle.heads_inputs(1, rows, width, 6 * width, 0)
    training = [mlp(*inputs), *heads(2, lean=True)(*parts)]
    with torch.no_grad():
        oracle.assert_same_bits([mlp(*inputs), *heads(2, lean=True)(*parts)], training)


def test_lean_or_not_the_same_gradients() -> None:
    inputs = oracle.heads_inputs(2, 40, 33, 36, 0)
    kept, again = (oracle.derive(heads(3, lean), inputs)[0] for lean in (False, True))
    for ours, theirs in zip(kept, again, strict=True):
        assert oracle.off(ours, theirs.double()) < 1e-6


@pytest.mark.parametrize("which", [0, 1, 2], ids=["queries", "keys", "values"])
def test_gradients_of_heads_from_anywhere_in_memory(which: int) -> None:
    inputs = oracle.heads_inputs(2, 9, 33, 36, 0)
    _, grads = oracle.derive(heads(3, lean=False), inputs)
    shape = grads[1].shape
    for strange in (
        grads[1 + which].mT.contiguous().mT,
        torch.full((2, 3, 4), 0.5)[:, :, None].expand(shape),
    ):
        given = [*grads]
        given[1 + which] = strange
        exact = oracle.derive_exactly(oracle.norm_heads(3), inputs, given)
        found, _ = oracle.derive(heads(3, lean=False), inputs, given)
        assert all(oracle.off(ours, true) < 1e-6 for ours, true in zip(found, exact, strict=True))
    # A head that nobody uses has no gradient at all.
    leaves = [each.clone().requires_grad_() for each in inputs]
    outs = [out for i, out in enumerate(heads(3, lean=False)(*leaves)) if i != 1 + which]
    given = [grad for i, grad in enumerate(grads) if i != 1 + which]
    found = torch.autograd.grad(outs, leaves, given)
    zeros = [grad if i != 1 + which else torch.zeros_like(grad) for i, grad in enumerate(grads)]
    oracle.assert_same_bits(found, oracle.derive(heads(3, lean=False), inputs, zeros)[0][4:])


def test_rows_in_any_order_in_memory_and_a_gradient_that_is_not_contiguous() -> None:
    x, *weights = oracle.mlp_inputs(12, 9, 20, 0)
    grad = oracle.numbers(9, 4, 3, seed=5).permute(2, 1, 0)
    straight = oracle.derive(mlp, [x.view(3, 4, 9), *weights], [grad.contiguous()])[0]
    turned = x.view(3, 4, 9).transpose(0, 1).contiguous().transpose(0, 1)
    oracle.assert_same_bits(oracle.derive(mlp, [turned, *weights], [grad])[0], straight)


@pytest.mark.parametrize("wanted", [mlp, heads(2, lean=False), heads(2, lean=True)])
def test_second_derivatives(wanted: Callable) -> None:
    is_mlp = wanted is mlp
    inputs = oracle.mlp_inputs(6, 9, 20, 0) if is_mlp else oracle.heads_inputs(2, 3, 9, 24, 0)

    def squared_gradients(function: Callable, *leaves: Tensor) -> Tensor:
        made = function(*leaves)
        outs = [made] if isinstance(made, Tensor) else list(made)
        scalar = sum(out.sin().sum() for out in outs)
        found = torch.autograd.grad(scalar, leaves, create_graph=True)
        return torch.stack([each.cos().sum() for each in found]).sum()

    exact = oracle.norm_mlp_add if is_mlp else oracle.norm_heads(2)
    ours, _ = oracle.derive(lambda *leaves: squared_gradients(wanted, *leaves), inputs, [torch.ones(())])
    doubles = [each.double() for each in inputs]
    true, _ = oracle.derive(lambda *leaves: squared_gradients(exact, *leaves), doubles, [torch.ones(())])
    for our, their in zip(ours, true, strict=True):
        assert oracle.off(our, their) < 1e-5
