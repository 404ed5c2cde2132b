"""The bfloat16 layers by products of our own and the nodes around them, against formulas in float64."""

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
from torchjepa.nn.native import bf16_nodes

pytestmark = pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)

EPS = 1e-6
BFLOAT16 = torch.bfloat16
ROWS = st.one_of(st.sampled_from([1, 15, 16, 17, 63, 64, 65, 192, 193]), st.integers(1, 300))
WIDTHS = st.sampled_from([32, 64, 96, 160, 224])  # columns are worked on 128 at a time
SEEDS = st.integers(0, 1000)


def mlp(lean: bool) -> Callable[..., Tensor]:
    return lambda x, *weights: bf16_nodes.norm_mlp_add(x, weights, EPS, lean)


def heads(num_heads: int, lean: bool) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, *weights: bf16_nodes.norm_heads(x, weights, EPS, num_heads, lean)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return bf16_nodes.linear_add(x, weight, bias, residual)


@torch.autocast("cpu", BFLOAT16)
def torch_mlp(x: Tensor, *weights: Tensor) -> Tensor:
    scale, shift, weight_1, bias_1, weight_2, bias_2 = weights
    normed = F.layer_norm(x, scale.shape, scale, shift, EPS)
    return x + F.linear(F.gelu(F.linear(normed, weight_1, bias_1)), weight_2, bias_2)


def torch_heads(num_heads: int) -> Callable[..., tuple[Tensor, ...]]:
    @torch.autocast("cpu", BFLOAT16)
    def formula(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        joined = F.linear(F.layer_norm(x, scale.shape, scale, shift, EPS), weight, bias)
        return x * 1, *joined.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)

    return formula


@torch.autocast("cpu", BFLOAT16)
def torch_linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + F.linear(x, weight, bias)


def exact_linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + x @ weight.T + bias


def linear_inputs(rows: int, width: int, outs: int, seed: int) -> list[Tensor]:
    """Rows in bfloat16, weight, bias, residual."""
    weight, bias = oracle.mlp_inputs(1, width, outs, seed)[3:5]
    x = oracle.numbers(rows, width, seed=seed).to(BFLOAT16)
    return [x, weight, bias, oracle.numbers(rows, outs, seed=seed + 9, spread=2)]


def assert_near(ours: Callable, theirs: Callable, exact: Callable, inputs: list[Tensor]) -> None:
    found, grads = oracle.derive(ours, inputs)
    true = oracle.derive_exactly(exact, inputs, grads)
    theirs_found, _ = oracle.derive(theirs, inputs, grads)
    assert [each.dtype for each in found] == [each.dtype for each in theirs_found]
    # Half a unit in the last place of bfloat16 is 2e-3; a hidden layer rounded twice has some more.
    oracle.assert_as_near(found, theirs_found, true, times=1.5, floor=8e-3, limit=1.2e-2)


@settings(max_examples=25, derandomize=True)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), SEEDS)
def test_the_mlp_half_and_all_its_gradients(
    rows: int, width: int, hidden: int, lean: bool, seed: int
) -> None:
    assert_near(mlp(lean), torch_mlp, oracle.norm_mlp_add, oracle.mlp_inputs(rows, width, hidden, seed))


@settings(max_examples=20, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 100),
    WIDTHS,
    st.sampled_from([(1, 32), (4, 8), (3, 32), (8, 20)]),
    st.booleans(),
    SEEDS,
)
def test_the_norm_and_its_heads_with_all_gradients(
    batch: int, tokens: int, width: int, parts: tuple[int, int], lean: bool, seed: int
) -> None:
    num_heads, channels = parts
    inputs = oracle.heads_inputs(batch, tokens, width, 3 * num_heads * channels, seed)
    assert_near(heads(num_heads, lean), torch_heads(num_heads), oracle.norm_heads(num_heads), inputs)


@settings(max_examples=20, derandomize=True)
@given(ROWS, WIDTHS, WIDTHS, SEEDS)
def test_a_linear_layer_added_to_the_stream_with_all_gradients(
    rows: int, width: int, outs: int, seed: int
) -> None:
    assert_near(linear_add, torch_linear_add, exact_linear_add, linear_inputs(rows, width, outs, seed))


# Runs of 64 rows and, from 2049 rows on, of 128.
@pytest.mark.parametrize("rows", [2047, 2048, 2049, 4200])
def test_more_rows_than_short_runs_take(rows: int) -> None:
    assert_near(mlp(False), torch_mlp, oracle.norm_mlp_add, oracle.mlp_inputs(rows, 32, 64, 0))
    assert_near(linear_add, torch_linear_add, exact_linear_add, linear_inputs(rows, 32, 64, 0))
    inputs = oracle.heads_inputs(1, rows, 32, 96, 0)
    assert_near(heads(1, True), torch_heads(1), oracle.norm_heads(1), inputs)


def test_sums_over_rows_are_not_rounded_to_bfloat16() -> None:
    inputs = linear_inputs(300, 32, 64, 0)
    grad = oracle.numbers(300, 64, seed=1, mean=0.5)
    (_, _, _, of_bias, of_residual), _ = oracle.derive(linear_add, inputs, [grad])
    torch.testing.assert_close(of_bias.double(), grad.double().sum(0), rtol=1e-6, atol=1e-4)
    assert torch.equal(of_residual, grad)
    (_, *_, of_bias_2), _ = oracle.derive(mlp(True), oracle.mlp_inputs(300, 64, 32, 0), [grad])
    torch.testing.assert_close(of_bias_2.double(), grad.double().sum(0), rtol=1e-6, atol=1e-4)


def gelu_and_slope(values: list[float]) -> tuple[Tensor, Tensor]:
    # The hidden layer is its bias, and what goes out and comes back is the GELU and its derivative.
    n = len(values)
    x, bias = torch.zeros(1, n), torch.tensor(values, requires_grad=True)
    weights = torch.ones(n), torch.zeros(n), torch.zeros(n, n), bias, torch.eye(n), torch.zeros(n)
    out = mlp(False)(x, *weights)
    return out.detach()[0], torch.autograd.grad(out.sum(), bias)[0]


def test_gelu_to_what_bfloat16_resolves() -> None:
    values = torch.linspace(-13, 13, 1024).double()
    found, slopes = gelu_and_slope(values.tolist())
    values = values.float().double().requires_grad_()
    true = oracle.gelu(values)
    (true_slopes,) = torch.autograd.grad(true.sum(), values)
    # Half a unit in the last place, and 2e-5 of the function itself.
    assert ((found - true).abs() <= 2**-8 * true.abs() + 1e-5).all()
    assert ((slopes - true_slopes).abs() <= 2**-8 * true_slopes.abs() + 4e-5).all()
    tail = values < -5
    assert ((found - true)[tail].abs() <= 5e-2 * true[tail].abs()).all()


def test_gelu_of_numbers_beyond_all_tails() -> None:
    given = [0.0, -0.0, 1e4, 1e30, -1e4, -1e30, 15.0, -15.0, *[0.0] * 24]
    found, slopes = gelu_and_slope(given)
    expected = torch.tensor([0.0, 0.0, 1e4, 1e30, 0.0, 0.0, 15.0, 0.0, *[0.0] * 24])
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-37)
    expected = torch.tensor([0.5, 0.5, 1, 1, 0, 0, 1, 0, *[0.5] * 24])
    torch.testing.assert_close(slopes, expected, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [5, 67])  # in a full block of rows, and in one that is filled up
def test_a_bad_number_spoils_its_row_alone(bad: float, row: int) -> None:
    inputs = oracle.mlp_inputs(70, 32, 64, 0)
    (clean, of_x, *_), grads = oracle.derive(mlp(False), inputs)
    inputs[0][row, 3] = bad
    (out, of_bad, *of_weights), _ = oracle.derive(mlp(False), inputs, grads)
    assert torch.equal(out.isnan(), torch_mlp(*inputs).isnan())
    assert torch.equal(out.isnan().any(1).nonzero().flatten(), torch.tensor([row]))
    good = torch.arange(70) != row
    oracle.assert_same_bits([out[good], of_bad[good]], [clean[good], of_x[good]])
    assert of_bad[row].isnan().any()
    assert of_weights[2].isnan().any(), "the gradient of W1 says that something is wrong"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_number_reaches_the_heads_of_its_token_alone(bad: float) -> None:
    inputs = oracle.heads_inputs(2, 9, 32, 96, 0)
    clean = heads(4, lean=False)(*inputs)
    inputs[0][1, 4, 3] = bad
    for ours, before in zip(heads(4, lean=False)(*inputs)[1:], clean[1:], strict=True):
        assert ours[1, :, 4].isnan().all()
        ours[1, :, 4] = before[1, :, 4]
        assert torch.equal(ours, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_number_of_an_added_row_as_torch_has_it(bad: float) -> None:
    inputs = linear_inputs(20, 32, 64, 0)
    clean = linear_add(*inputs)
    inputs[0][7, 3] = bad
    inputs[3][11, 5] = bad
    ours, theirs = linear_add(*inputs), torch_linear_add(*inputs)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())
    good = ours.isfinite()
    assert torch.equal(ours[good], clean[good])


@pytest.mark.parametrize("rows", [17, 500, 2100])
def test_any_number_of_threads_gives_the_same_bits(rows: int) -> None:
    inputs, parts = oracle.mlp_inputs(rows, 64, 160, 0), oracle.heads_inputs(1, rows, 64, 96, 0)
    linear = linear_inputs(rows, 64, 96, 0)

    def everything() -> list[Tensor]:
        found = [oracle.derive(mlp(lean), inputs)[0] for lean in (False, True)]
        found += [oracle.derive(heads(4, lean=True), parts)[0], oracle.derive(linear_add, linear)[0]]
        return [each for part in found for each in part]

    oracle.assert_same_for_any_threads(everything, (1, 1, 2, 3, 6))


@pytest.mark.parametrize("rows", [5, 250])
def test_without_a_gradient_the_same_bits(rows: int) -> None:
    inputs, parts = oracle.mlp_inputs(rows, 64, 160, 0), oracle.heads_inputs(1, rows, 64, 96, 0)
    linear = linear_inputs(rows, 64, 96, 0)

    def everything() -> list[Tensor]:
        return [mlp(False)(*inputs), *heads(2, True)(*parts), linear_add(*linear)]

    training = everything()
    with torch.no_grad():
        oracle.assert_same_bits(everything(), training)


@pytest.mark.parametrize("rows", [5, 16, 150])
def test_lean_or_not_the_same_bits(rows: int) -> None:
    inputs, parts = oracle.mlp_inputs(rows, 64, 160, 0), oracle.heads_inputs(1, rows, 64, 96, 0)
    oracle.assert_same_bits(*(oracle.derive(mlp(lean), inputs)[0] for lean in (False, True)))
    oracle.assert_same_bits(*(oracle.derive(heads(4, lean), parts)[0] for lean in (False, True)))


def test_rows_in_any_order_in_memory_and_a_gradient_that_is_not_contiguous() -> None:
    x, *weights = oracle.mlp_inputs(12, 32, 64, 0)
    grad = oracle.numbers(32, 4, 3, seed=5).permute(2, 1, 0)
    straight = oracle.derive(mlp(False), [x.view(3, 4, 32), *weights], [grad.contiguous()])[0]
    turned = x.view(3, 4, 32).transpose(0, 1).contiguous().transpose(0, 1)
    oracle.assert_same_bits(oracle.derive(mlp(False), [turned, *weights], [grad])[0], straight)
    low, weight, bias, residual = linear_inputs(12, 64, 32, 0)
    low, residual = low.view(3, 4, 64), residual.view(3, 4, 32)
    straight = oracle.derive(linear_add, [low, weight, bias, residual], [grad.contiguous()])[0]
    turned = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (low, residual)]
    found = oracle.derive(linear_add, [turned[0], weight, bias, turned[1]], [grad])[0]
    oracle.assert_same_bits(found, straight)


NODES = {
    "mlp": (mlp(False), oracle.norm_mlp_add, oracle.mlp_inputs(6, 32, 64, 0)),
    "lean mlp": (mlp(True), oracle.norm_mlp_add, oracle.mlp_inputs(6, 32, 64, 0)),
    "heads": (heads(2, False), oracle.norm_heads(2), oracle.heads_inputs(2, 3, 32, 96, 0)),
    "linear_add": (linear_add, exact_linear_add, linear_inputs(6, 32, 64, 0)),
}


@pytest.mark.parametrize("name", NODES)
def test_second_derivatives(name: str) -> None:
    wanted, exact, inputs = NODES[name]

    def squared_gradients(function: Callable, *leaves: Tensor) -> Tensor:
        made = function(*leaves)
        outs = [made] if isinstance(made, Tensor) else list(made)
        scalar = torch.stack([out.to(leaves[1].dtype).sin().sum() for out in outs]).sum()
        found = torch.autograd.grad(scalar, leaves, create_graph=True)
        return torch.stack([each.to(leaves[1].dtype).square().sum() for each in found]).sum()

    doubles = [each.double() for each in inputs]
    ours, _ = oracle.derive(lambda *leaves: squared_gradients(wanted, *leaves), inputs, [torch.ones(())])
    true, _ = oracle.derive(lambda *leaves: squared_gradients(exact, *leaves), doubles, [torch.ones(())])
    for our, their in zip(ours, true, strict=True):
        assert oracle.off(our, their) < 5e-2
