"""Pools by formula and by name."""

import pytest
import torch

from torchjepa.nn import MeanMaxPool, MeanPool, pool_by_name


def test_formulas():
    tokens = torch.tensor([[[1.0, -2.0], [3.0, -6.0]]])
    assert MeanPool()(tokens).tolist() == [[2.0, -4.0]]
    assert MeanMaxPool()(tokens).tolist() == [[2.0, -4.0, 3.0, -2.0]]


@pytest.mark.parametrize("pool", [MeanPool(), MeanMaxPool()])
def test_a_name_gives_its_pool(pool):
    assert pool_by_name(pool.name) == pool
    assert pool(torch.randn(2, 3, 5)).shape == (2, pool.out_dim(5))


def test_unknown_name():
    with pytest.raises(ValueError, match=r"no pooling 'meanmax', there are mean, mean_max; did you mean"):
        pool_by_name("meanmax")
