"""Float32 products of our own, of whole numbers or their parts: numbers of any size, results that are known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.nn.native import oracle
from torchjepa.nn.native import float_layers
from torchjepa.nn.native.weight_gradients import weight_gradient

pytestmark = pytest.mark.skipif(
    not (oracle.has_floats() and oracle.has_products()), reason=f"{oracle.NO_FLOATS}; or {oracle.NO_PRODUCTS}"
)

SMALLEST = 2.0**-126  # of normal numbers


def by_layer(a: Tensor, b: Tensor) -> Tensor:
    zeros = torch.zeros(len(a), len(b))
    return float_layers.linear_add(a, b, zeros[0].clone(), zeros)


def by_gradient_of_layer(a: Tensor, b: Tensor) -> Tensor:
    return float_layers.linear_add_backward(a, b.T.contiguous())[0]


def by_gradient_of_weight(a: Tensor, b: Tensor) -> Tensor:
    return weight_gradient(a.T.contiguous(), b.T.contiguous())


# A B^T of A and B, by other ways of packing them.
every_product = pytest.mark.parametrize("product", [by_layer, by_gradient_of_layer, by_gradient_of_weight])
Product = Callable[[Tensor, Tensor], Tensor]


def uniform(*shape: int, low: float, high: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


def of_any_size(*shape: int, low: float, high: float, seed: int) -> Tensor:
    """Powers of ten between two of them with all 24 digits and either sign."""
    signs = uniform(*shape, low=-1, high=1, seed=seed + 1).sign()
    return (10 ** uniform(*shape, low=low, high=high, seed=seed) * signs).float()


def whole(*shape: int, most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).float()


# B has fewer rows than A, and more: the wider factor of the gradient of a weight is gone through once.
@every_product
@pytest.mark.parametrize("n", [32, 160])
def test_every_product_of_two_numbers_has_its_digits(product: Product, n: int) -> None:
    sizes = uniform(96, low=-25, high=25, seed=0)
    a = torch.sign(uniform(96, low=-1, high=1, seed=1)) * 10**sizes
    # Products between 1e-28 and 1e37, which neither vanish nor overflow.
    share = uniform(n, 96, low=0, high=1, seed=2)
    low, high = (-28 - sizes).clamp(min=-25), (37 - sizes).clamp(max=25)
    a, b = a.float(), (10 ** (low + share * (high - low))).float()
    exact = a.double()[:, None] * b.double().T
    found = product(torch.diag(a), b)
    assert ((found - exact).abs() <= 2**-22 * exact.abs()).all()


@every_product
def test_sums_of_products_of_very_different_sizes(product: Product) -> None:
    a, b = of_any_size(64, 96, low=-12, high=12, seed=0), of_any_size(160, 96, low=-12, high=12, seed=5)
    sizes = a.abs().double() @ b.abs().double().T
    assert ((product(a, b) - a.double() @ b.double().T).abs() <= 2**-21 * sizes).all()


@every_product
@pytest.mark.parametrize("n", [32, 160])
def test_whole_numbers_are_exact(product: Product, n: int) -> None:
    large, signs = whole(n, 96, most=1 << 24, seed=0), whole(96, most=1, seed=1)
    assert torch.equal(product(torch.diag(signs), large), (large * signs).T)
    assert torch.equal(product(large, torch.diag(signs)), large * signs)
    # Sums below 2^24 of factors of more digits than one part has.
    a, b = whole(64, 32, most=1 << 12, seed=2), whole(n, 32, most=1 << 7, seed=3)
    assert torch.equal(product(a, b), a @ b.T)
    assert torch.equal(product(b, a), b @ a.T)


@every_product
@pytest.mark.parametrize("n", [32, 160])
def test_numbers_of_any_size_times_one_are_themselves(product: Product, n: int) -> None:
    for x in (of_any_size(n, 96, low=-30, high=38, seed=0), oracle.numbers(n, 96, seed=1)):
        assert torch.equal(product(x, torch.eye(96)), x)
        assert torch.equal(product(torch.eye(96), x), x.T)


@every_product
def test_of_the_smallest_numbers_what_is_left_out_is_smaller_still(product: Product) -> None:
    x = of_any_size(160, 96, low=-45, high=-31, seed=0)
    assert (x.abs() < SMALLEST).any()
    one = torch.eye(96)
    assert ((product(x, one) - x).abs() <= 2 * SMALLEST).all()
    assert ((product(one, x) - x.T).abs() <= 2 * SMALLEST).all()


@every_product
def test_zeros_of_either_sign(product: Product) -> None:
    x = oracle.numbers(64, 96, seed=0)
    x[:, ::3], x[::5] = -0.0, 0.0
    found = product(x, torch.eye(96))
    assert torch.equal(found, x)
    assert torch.equal(product(x, torch.zeros(32, 96)), torch.zeros(64, 32))
