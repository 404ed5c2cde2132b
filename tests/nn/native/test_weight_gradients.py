"""Gradients of weights by products of our own, against products in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nn.native import oracle
from torchjepa.nn.native import weight_gradients
from torchjepa.nn.native.weight_gradients import weight_gradient

DTYPES = [torch.float32, torch.bfloat16]
# Of what comes out and what goes in, packed 128 columns at a time; the wider one is gone through once.
SHAPES = [(32, 32), (32, 96), (96, 32), (160, 160), (160, 288), (288, 160), (128, 384)]

needs_products = pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)


def factors(rows: int, outs: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What went in has a mean, so that its sums grow."""
    grad, x = oracle.numbers(rows, outs, seed=0), oracle.numbers(rows, width, seed=1, mean=0.5)
    return grad.to(dtype), x.to(dtype)


def exact_product(grad: Tensor, x: Tensor) -> Tensor:
    return grad.double().T @ x.double()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are called."""
    names: list[str] = []
    original = weight_gradients.call

    def note(name: str, *args: Any) -> None:
        names.append(name)
        original(name, *args)

    monkeypatch.setattr(weight_gradients, "call", note)
    return names


# Chunks are of 256 rows in float32, of 1024 in bfloat16.
@needs_products
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 255, 256, 257, 513, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_exact_as_float32_whatever_the_factors(
    kernels: list[str], dtype: torch.dtype, rows: int, shape: tuple[int, int]
) -> None:
    grad, x = factors(rows, *shape, dtype)
    found = weight_gradient(grad, x)
    assert kernels == ["float_weight_gradient" if dtype == torch.float32 else "bf16_weight_gradient"]
    assert found.dtype == torch.float32
    theirs = grad.float().T @ x.float()
    oracle.assert_as_near([found], [theirs], [exact_product(grad, x)], times=1, floor=1e-7, limit=4e-7)


@needs_products
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_many_rows_keep_their_digits(dtype: torch.dtype) -> None:
    # Ones and a number that is never rounded: after 2^15 rows every digit of the sum is known.
    grad = torch.ones(1 << 15, 32, dtype=dtype)
    x = torch.full((1 << 15, 32), 1 + 2**-7, dtype=dtype)
    assert torch.equal(weight_gradient(grad, x), torch.full((32, 32), 2.0**15 + 2**8))


@pytest.mark.parametrize("shape", [(33, 64), (64, 40), (48, 48), (1, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_widths_are_left_to_torch(
    kernels: list[str], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    grad, x = factors(50, *shape, dtype)
    found = weight_gradient(grad, x)
    assert kernels == []
    assert torch.equal(found, (grad.t() @ x).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_products_of_our_own_torch_does_it(
    kernels: list[str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weight_gradients, "packed_bytes", lambda _: 0)
    grad, x = factors(50, 64, 32, dtype)
    assert torch.equal(weight_gradient(grad, x), (grad.t() @ x).float())
    assert kernels == []


@needs_products
@pytest.mark.parametrize("shape", [(32, 32), (96, 288), (288, 96), (160, 160), (32, 512)])
@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 257), (torch.bfloat16, 1025)])
def test_any_number_of_threads_gives_the_same_bits(
    dtype: torch.dtype, rows: int, shape: tuple[int, int]
) -> None:
    grad, x = factors(rows, *shape, dtype)
    oracle.assert_same_for_any_threads(lambda: [weight_gradient(grad, x)], (1, 1, 2, 3, 4, 5, 6, 8))


@needs_products
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 255, 299])
@pytest.mark.parametrize("shape", [(64, 160), (160, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_number_spoils_its_row_or_column_alone(
    dtype: torch.dtype, shape: tuple[int, int], row: int, bad: float
) -> None:
    grad, x = factors(300, *shape, dtype)
    clean = weight_gradient(grad, x)
    grad[row, 45], x[row, 7] = bad, bad
    found = weight_gradient(grad, x)
    spoilt = torch.zeros(shape, dtype=torch.bool)
    spoilt[45], spoilt[:, 7] = True, True
    # Infinity in float32 has no parts: it gives NaN.
    assert torch.equal(found.isfinite(), ~spoilt)
    assert torch.equal(found[~spoilt], clean[~spoilt])
    if math.isnan(bad):
        assert found[spoilt].isnan().all()


@needs_products
@pytest.mark.parametrize("rows", [5, 270, 1030])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_larger_product_has_left_behind_does_no_harm(dtype: torch.dtype, rows: int) -> None:
    grad, x = factors(rows, 96, 64, dtype)
    clean = weight_gradient(grad, x)
    large = torch.full((2048, 256), math.nan, dtype=dtype)
    assert weight_gradient(large, large).isnan().all()
    oracle.assert_same_bits([weight_gradient(grad, x)], [clean])
