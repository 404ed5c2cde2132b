"""The halves of a transformer block in float32 with kernels of our own, as autograd nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.hand_written import differentiable, norm_linear_formula, norm_mlp_add_formula
from torchjepa.nn.native import float_layers
from torchjepa.nn.native.joined import join_heads, split_heads


def norm_heads(
    x: Float[Tensor, "b n d"], weights: tuple[Tensor, ...], eps: float, num_heads: int, lean: bool
) -> tuple[Tensor, ...]:
    """The tokens and the queries, keys and values of their norm, as `nodes.norm_heads` has it."""
    if torch.is_grad_enabled():
        return _NormHeads.apply(x, *weights, eps, num_heads, lean)  # type: ignore[return-value]
    scale, shift, weight, bias = weights
    normed = float_layers.normalize(_rows(x), scale, shift, eps)[0]
    return x, *split_heads(torch.addmm(bias, normed, weight.t()), x.shape, num_heads)


def norm_mlp_add(x: Float[Tensor, "*r d"], weights: tuple[Tensor, ...], eps: float) -> Float[Tensor, "*r d"]:
    """X + mlp(norm(x)), as `nodes.norm_mlp_add` has it."""
    if torch.is_grad_enabled():
        return _NormMLPAdd.apply(x, *weights, eps)  # type: ignore[return-value]
    scale, shift, *others = weights
    return float_layers.mlp(_rows(x), (scale, shift, eps), tuple(others), keep=False)[0].view(x.shape)


def _rows(x: Tensor) -> Float[Tensor, "r d"]:
    return x.contiguous().view(-1, x.shape[-1])


def _heads_formula(*args: Tensor, num_heads: int, eps: float) -> tuple[Tensor, ...]:
    joined = norm_linear_formula(*args, eps=eps, dtype=torch.float32)
    return args[0], *split_heads(joined, args[0].shape, num_heads)


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        scale, shift, weight, bias, eps, num_heads, lean = args
        normed, means, rstds = float_layers.normalize(_rows(x), scale, shift, eps)
        ctx.save_for_backward(x, *args[:4], means, rstds, None if lean else normed)
        ctx.settings = {"eps": eps, "num_heads": num_heads}
        return x, *split_heads(torch.addmm(bias, normed, weight.t()), x.shape, num_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, means, rstds, normed = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(_heads_formula, **ctx.settings)
            return *differentiable(formula, (x, scale, shift, weight, bias), *grads), *[None] * 3
        rows, past = _rows(x), _rows(grads[0])
        if normed is None:
            normed = float_layers.normalize(rows, scale, shift, ctx.settings["eps"])[0]
        flat = join_heads(*grads[1:]).view(len(rows), -1)
        found = float_layers.normalize_backward(flat @ weight, rows, scale, means, rstds, past)
        of_weight, of_bias = flat.t() @ normed, float_layers.sum_rows(flat)
        return found[0].view(x.shape), *found[1:], of_weight, of_bias, *[None] * 3


class _NormMLPAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        scale, shift, *weights, eps = args
        out, kept = float_layers.mlp(_rows(x), (scale, shift, eps), tuple(weights), keep=True)
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
        stream = _rows(grad)
        found = float_layers.mlp_backward(stream, _rows(x), scale, shift, tuple(weights), kept)
        of_x, of_scale, of_shift, of_bias_2, of_bias_1, of_hidden, active, normed = found
        of_linears = of_hidden.t() @ normed, of_bias_1, stream.t() @ active, of_bias_2
        return of_x.view(x.shape), of_scale, of_shift, *of_linears, None
