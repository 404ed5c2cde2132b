"""The halves of a transformer block in bfloat16, everything but attention and the gradients of weights in `layers`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.hand_written import (
    differentiable,
    linear_add_formula,
    norm_linear_formula,
    norm_mlp_add_formula,
)
from torchjepa.nn.native import bf16_layers as layers
from torchjepa.nn.native.joined import join_heads, rows_of, split_heads
from torchjepa.nn.native.weight_gradients import weight_gradient

_BFLOAT16 = torch.bfloat16


def norm_heads(
    x: Float[Tensor, "b n d"], weights: tuple[Tensor, ...], eps: float, num_heads: int, lean: bool
) -> tuple[Tensor, ...]:
    """The tokens and the queries, keys and values of their norm, as `nodes.norm_heads` has it."""
    if torch.is_grad_enabled():
        return _NormHeads.apply(x, *weights, eps, num_heads, lean)  # type: ignore[return-value]
    scale, shift, weight, bias = weights
    joined = layers.norm_linear(rows_of(x), (scale, shift, eps), weight, bias, keep=False)[0]
    return x, *split_heads(joined, x.shape, num_heads)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Float[Tensor, "*r o"]:
    """The sum residual + x W^T + b, as `nodes.linear_add` has it."""
    if torch.is_grad_enabled():
        return _LinearAdd.apply(x, weight, bias, residual)  # type: ignore[return-value]
    return layers.linear_add(rows_of(x), weight, bias, rows_of(residual)).view(residual.shape)


def norm_mlp_add(
    x: Float[Tensor, "*r d"], weights: tuple[Tensor, ...], eps: float, lean: bool
) -> Float[Tensor, "*r d"]:
    """The sum x + mlp(norm(x)), as `nodes.norm_mlp_add` has it."""
    if torch.is_grad_enabled():
        return _NormMLPAdd.apply(x, *weights, eps, lean)  # type: ignore[return-value]
    scale, shift, *others = weights
    return layers.mlp(rows_of(x), (scale, shift, eps), tuple(others), keep=False)[0].view(x.shape)


def _heads_formula(*args: Tensor, num_heads: int, eps: float) -> tuple[Tensor, ...]:
    joined = norm_linear_formula(*args, eps=eps, dtype=_BFLOAT16)
    return args[0], *split_heads(joined, args[0].shape, num_heads)


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        scale, shift, weight, bias, eps, num_heads, lean = args
        joined, kept = layers.norm_linear(rows_of(x), (scale, shift, eps), weight, bias, keep=True)
        assert kept is not None
        ctx.save_for_backward(x, *args[:4], None if lean else kept.normed, *kept[1:])
        ctx.settings = {"eps": eps, "num_heads": num_heads}
        return x, *split_heads(joined, x.shape, num_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, normed, means, rstds = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(_heads_formula, **ctx.settings)
            return *differentiable(formula, (x, scale, shift, weight, bias), *grads), *[None] * 3
        rows, past = rows_of(x), rows_of(grads[0])
        if normed is None:
            normed = layers.normalize_again(rows, (scale, shift, ctx.settings["eps"]))
        flat = join_heads(*grads[1:]).view(len(rows), -1)
        kept = layers.Kept(normed, means, rstds)
        of_x, *others, of_bias = layers.norm_linear_backward(flat, rows, past, kept, scale, weight)
        return of_x.view(x.shape), *others, weight_gradient(flat, normed), of_bias, *[None] * 3


class _LinearAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias, residual = args
        ctx.save_for_backward(*args)
        return layers.linear_add(rows_of(x), weight, bias, rows_of(residual)).view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight, bias, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(differentiable(linear_add_formula, (x, weight, bias, residual), grad))
        rounded, of_x, of_bias = layers.linear_add_backward(rows_of(grad), weight)
        return of_x.view(x.shape), weight_gradient(rounded, rows_of(x)), of_bias, grad


class _NormMLPAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        scale, shift, *weights, eps, lean = args
        out, kept = layers.mlp(rows_of(x), (scale, shift, eps), tuple(weights), keep=not lean)
        flat = () if kept is None else (*kept.norm, kept.active, kept.slope)
        ctx.save_for_backward(x, *args[:6], *flat)
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        saved = ctx.saved_tensors  # once: activation checkpointing counts
        (x, scale, shift, *weights), flat = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            formula = partial(norm_mlp_add_formula, eps=ctx.eps, dtype=_BFLOAT16)
            return *differentiable(formula, (x, scale, shift, *weights), grad), None, None
        rows = rows_of(x)
        if flat:
            kept = layers.KeptByMLP(layers.Kept(*flat[:3]), *flat[3:])
        else:
            kept = layers.mlp_again(rows, (scale, shift, ctx.eps), tuple(weights))
        found = layers.mlp_backward(rows_of(grad), rows, scale, tuple(weights), kept)
        of_x, of_scale, of_shift, of_bias_2, of_bias_1, rounded, of_hidden = found
        assert kept.norm.normed is not None
        of_weight_1 = weight_gradient(of_hidden, kept.norm.normed)
        of_linears = of_weight_1, of_bias_1, weight_gradient(rounded, kept.active), of_bias_2
        return of_x.view(x.shape), of_scale, of_shift, *of_linears, None, None
