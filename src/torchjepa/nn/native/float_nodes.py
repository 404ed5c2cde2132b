"""The halves of a transformer block in float32 with kernels of our own, as autograd nodes."""

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
from torchjepa.nn.native import float_layers
from torchjepa.nn.native.joined import rows_of, split_heads
from torchjepa.nn.native.weight_gradients import weight_gradient


def norm_heads(
    x: Float[Tensor, "b n d"], weights: tuple[Tensor, ...], eps: float, num_heads: int, lean: bool
) -> tuple[Tensor, ...]:
    """The tokens and the queries, keys and values of their norm, as `nodes.norm_heads` has it."""
    if torch.is_grad_enabled():
        return _NormHeads.apply(x, *weights, eps, num_heads, lean)  # type: ignore[return-value]
    scale, shift, weight, bias = weights
    joined = float_layers.norm_linear(rows_of(x), (scale, shift, eps), weight, bias, keep=False)[0]
    return x, *split_heads(joined, x.shape, num_heads)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Float[Tensor, "*r o"]:
    """The sum residual + x W^T + b, as `nodes.linear_add` has it."""
    if torch.is_grad_enabled():
        return _LinearAdd.apply(x, weight, bias, residual)  # type: ignore[return-value]
    return float_layers.linear_add(rows_of(x), weight, bias, rows_of(residual)).view(residual.shape)


def norm_mlp_add(x: Float[Tensor, "*r d"], weights: tuple[Tensor, ...], eps: float) -> Float[Tensor, "*r d"]:
    """The sum x + mlp(norm(x)), as `nodes.norm_mlp_add` has it."""
    if torch.is_grad_enabled():
        return _NormMLPAdd.apply(x, *weights, eps)  # type: ignore[return-value]
    scale, shift, *others = weights
    return float_layers.mlp(rows_of(x), (scale, shift, eps), tuple(others), keep=False)[0].view(x.shape)


def _heads_formula(*args: Tensor, num_heads: int, eps: float) -> tuple[Tensor, ...]:
    joined = norm_linear_formula(*args, eps=eps, dtype=torch.float32)
    return args[0], *split_heads(joined, args[0].shape, num_heads)


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        scale, shift, weight, bias, eps, num_heads, lean = args
        joined, (normed, *moments) = float_layers.norm_linear(
            rows_of(x), (scale, shift, eps), weight, bias, keep=True
        )
        ctx.save_for_backward(x, *args[:4], *moments, None if lean else normed)
        ctx.settings = {"eps": eps, "num_heads": num_heads}
        return x, *split_heads(joined, x.shape, num_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, means, rstds, normed = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(_heads_formula, **ctx.settings)
            return *differentiable(formula, (x, scale, shift, weight, bias), *grads), *[None] * 3
        rows, past = rows_of(x), rows_of(grads[0])
        found = float_layers.norm_linear_backward(grads[1:], rows, past, scale, weight, (means, rstds))
        of_x, of_scale, of_shift, of_bias, joined = found
        if normed is None:
            normed = torch.native_layer_norm(rows, scale.shape, scale, shift, ctx.settings["eps"])[0]
        return of_x.view(x.shape), of_scale, of_shift, weight_gradient(joined, normed), of_bias, *[None] * 3


class _LinearAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias, residual = args
        ctx.save_for_backward(*args)
        return float_layers.linear_add(rows_of(x), weight, bias, rows_of(residual)).view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight, bias, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(differentiable(linear_add_formula, (x, weight, bias, residual), grad))
        rows = rows_of(grad)
        of_x, of_bias = float_layers.linear_add_backward(rows, weight)
        return of_x.view(x.shape), weight_gradient(rows, rows_of(x)), of_bias, grad


class _NormMLPAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        scale, shift, *weights, eps = args
        out, kept = float_layers.mlp(rows_of(x), (scale, shift, eps), tuple(weights), keep=True)
        ctx.save_for_backward(x, *args[:6], *kept or ())
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        saved = ctx.saved_tensors  # once: activation checkpointing counts
        (x, scale, shift, *weights), kept = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            formula = partial(norm_mlp_add_formula, eps=ctx.eps, dtype=torch.float32)
            return *differentiable(formula, (x, scale, shift, *weights), grad), None
        stream = rows_of(grad)
        found = float_layers.mlp_backward(stream, rows_of(x), scale, shift, tuple(weights), kept)
        of_x, of_scale, of_shift, of_bias_2, of_bias_1, of_hidden, active, normed = found
        of_linears = weight_gradient(of_hidden, normed), of_bias_1, weight_gradient(stream, active), of_bias_2
        return of_x.view(x.shape), of_scale, of_shift, *of_linears, None
