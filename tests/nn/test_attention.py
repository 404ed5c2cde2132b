"""Attention against loops over heads in float64."""

import math

import pytest
import torch

from torchjepa.nn.attention import Attention, Block, attend


def slow_attention(layer, x):
    b, _, d = x.shape
    e = d // layer.num_heads
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(d, dim=2)
    out = torch.zeros_like(x)
    for sample in range(b):
        for head in range(layer.num_heads):
            cols = slice(head * e, (head + 1) * e)
            logits = q[sample, :, cols] @ k[sample, :, cols].T / math.sqrt(e)
            weights = logits.exp() / logits.exp().sum(1, keepdim=True)
            out[sample, :, cols] = weights @ v[sample, :, cols]
    return out @ layer.proj.weight.T + layer.proj.bias


def test_equals_a_loop_over_heads():
    layer = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow_attention(layer, x))


@pytest.mark.parametrize("module", [Attention(12, 3).double(), Block(12, 3).double()])
def test_last_queries_alone_equal_the_tail_of_all(module):
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    grads = {}
    for name, out in {"tail": module(x, num_queries=3), "all": module(x)[:, -3:]}.items():
        module.zero_grad()
        (out.sin().sum()).backward()
        grads[name] = [out.detach(), x.grad.clone(), *(p.grad.clone() for p in module.parameters())]
        x.grad = None
    for tail, full in zip(grads["tail"], grads["all"]):
        torch.testing.assert_close(tail, full)


def test_bfloat16_on_a_cpu_takes_plain_products_with_the_same_result():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    low = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attend(q, k, v), atol=0.03, rtol=0.03)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_heads must divide the dimension 12, got 5; choose one"):
        Attention(12, 5)
