"""Attention as plain matrix products, for processors that have fast ones in bfloat16 and no fused kernel that trains.

Axis letters of this file: `j` keys, padding included; `e` channels of one head; `s` sequences, one for each head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.hand_written import attention_formula, differentiable, sees_plain_tensors

# What a vector register holds of bfloat16; torch's softmax takes what is left of a row number by number.
_LANES = 32


def attend_by_products(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads j e"], v: Float[Tensor, "b heads j e"]
) -> Float[Tensor, "b heads n e"]:
    """softmax(q k^T / sqrt(e)) v by two products and a softmax, with a gradient written out.

    The scale is part of the product, operands are brought in order once for forward and backward together, and a
    number of keys well off a multiple of 32 is filled up with keys of weight 0.

    Args:
        q: queries `[b, heads, n, e]`.
        k: keys `[b, heads, j, e]`.
        v: values `[b, heads, j, e]`.

    Returns:
        `[b, heads, n, e]`.
    """
    num_keys = k.shape[2]
    if not sees_plain_tensors(q, or_fake=True):
        return _weighted_sum(q, k, v, num_keys)
    missing = -num_keys % _LANES
    if missing > _LANES // 2:  # more products than a faster softmax is worth
        missing = 0
    out = _Products.apply(q.flatten(0, 1), _fill_up(k, missing), _fill_up(v, missing), num_keys)
    return out.unflatten(0, q.shape[:2])  # type: ignore[union-attr]


def _fill_up(x: Tensor, missing: int) -> Tensor:
    if missing:
        b, heads, _, e = x.shape
        x = torch.cat([x, x.new_zeros(b, heads, missing, e)], dim=2)
    return x.flatten(0, 1)


def _weighted_sum(q: Tensor, k: Tensor, v: Tensor, num_keys: int) -> Tensor:
    return attention_formula(q, k[..., :num_keys, :], v[..., :num_keys, :])


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, num_keys: int) -> Tensor:
        scores = _scaled(q, k.transpose(1, 2), q.shape[-1] ** -0.5)
        scores[..., num_keys:] = -torch.inf
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.num_keys = num_keys
        return weights @ v

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(_weighted_sum, num_keys=ctx.num_keys)
            return *differentiable(formula, (q, k, v), grad), None
        scale = q.shape[-1] ** -0.5
        # Where a weight is 0, so is what comes out here: keys that fill up get no gradient.
        of_scores = torch.ops.aten._softmax_backward_data(
            grad @ v.transpose(1, 2), weights, -1, weights.dtype
        )
        of_keys = _scaled(of_scores.transpose(1, 2), q, scale)
        return _scaled(of_scores, k, scale), of_keys, weights.transpose(1, 2) @ grad, None


def _scaled(left: Tensor, right: Tensor, scale: float) -> Float[Tensor, "s n j"]:
    return torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=scale)
