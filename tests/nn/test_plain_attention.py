"""Attention by products, and its written-out gradient, against loops in float64 NumPy and finite differences."""

import numpy as np
import pytest
import torch

from torchjepa.nn.attention import attend
from torchjepa.nn.native import attention as kernels
from torchjepa.nn.plain_attention import attend_by_products

# Filled up by 6 and by 16; left alone, too far off; a multiple of 32; fewer queries than keys, filled up by 2.
LENGTHS = [(26, 26), (48, 48), (36, 36), (5, 5), (32, 32), (7, 30)]


def tensors(num_queries, num_keys, dtype=torch.float64, e=4):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, length, e) for length in (num_queries, num_keys, num_keys))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def by_hand(q, k, v, grad):
    """Out and gradients of queries, keys and values, query by query."""
    out, of_q, of_k, of_v = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    scale = 1 / np.sqrt(q.shape[-1])
    for place in np.ndindex(*q.shape[:3]):
        head, query = place[:2], q[place]
        weights = np.exp(scale * k[head] @ query)
        weights /= weights.sum()
        out[place] = weights @ v[head]
        of_weights = v[head] @ grad[place]
        of_scores = weights * (of_weights - weights @ of_weights)
        of_q[place] = scale * of_scores @ k[head]
        of_k[head] += scale * np.outer(of_scores, query)
        of_v[head] += np.outer(weights, grad[place])
    return out, of_q, of_k, of_v


@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_a_loop(num_queries, num_keys, dtype, tolerance):
    inputs = tensors(num_queries, num_keys, dtype)
    out = attend_by_products(*inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    expected = by_hand(*(each.detach().double().numpy() for each in (*inputs, grad)))
    for ours, theirs in zip(found, expected):
        assert ours.dtype == dtype
        assert np.abs(ours.detach().double().numpy() - theirs).max() < tolerance * np.abs(theirs).max()


def test_its_gradient_has_a_gradient():
    inputs = tensors(2, 26, e=2)
    assert torch.autograd.gradgradcheck(attend_by_products, inputs)


def test_training_in_bfloat16_on_a_cpu_without_kernels_takes_it(monkeypatch):
    monkeypatch.setattr(kernels, "packed_bytes", lambda _: 0)
    q, k, v = tensors(7, 30, torch.bfloat16)
    assert torch.equal(attend(q, k, v), attend_by_products(q, k, v))


def test_function_transforms_see_torch_operations():
    q, k, v = (each.detach() for each in tensors(7, 30))
    each = torch.vmap(attend_by_products)(*(x[:, None] for x in (q, k, v)))
    torch.testing.assert_close(each[:, 0], attend_by_products(q, k, v))


def test_equal_inputs_give_equal_bits():
    def run():
        inputs = tensors(26, 26, torch.bfloat16)
        out = attend_by_products(*inputs)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    for first, second in zip(run(), run()):
        assert torch.equal(first, second)
