"""What a transformer block does around its residual stream, with fewer passes over memory and less to keep.

Of an MLP half, x + W_2 gelu(W_1 norm(x) + b_1) + b_2, autograd keeps what went into every operation: of d channels a
token, x, the norm's output, the hidden layer before and after the GELU, 10 d numbers. Here, where layers are large, x
and the hidden layer before the GELU are kept, 5 d; norm and GELU are computed again, for 1 to 5 % of a training step,
and so is the norm in front of queries, keys and values. Of a whole block's 16 d that saves more than a third.

Axis letters of this file: `r` rows, all axes but the last; `o` channels that come out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.hand_written import (
    are_plain,
    differentiable,
    is_autocast,
    is_plain,
    norm_linear_formula,
    norm_mlp_add_formula,
    product_dtype,
    sees_plain_tensors,
)
from torchjepa.nn.native import nodes

# Below, memory is not short, and autograd, which keeps all, is a little faster.
_LEAN_BYTES = 10 << 20


class MLP(nn.Module):
    """y = W_2 gelu(W_1 x + b_1) + b_2 with the exact GELU.

    Args:
        dim: embedding dimension d.
        hidden_dim: width between the two layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*r d"]) -> Float[Tensor, "*r d"]:
        """Map every token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


def norm_mlp_add(x: Float[Tensor, "*r d"], norm: nn.LayerNorm, mlp: MLP) -> Float[Tensor, "*r d"]:
    """The sum x + mlp(norm(x)).

    Under autocast the products are done in its dtype, as autocast does; the sum has the dtype of x. Where somebody
    looks at the parts (hooks, compilers, tracers, function transforms) or has replaced one, they are called one by one.

    Args:
        x: tokens.
        norm: the layer norm in front.
        mlp: the two layers.
    """
    if not is_plain(mlp, MLP):
        return x + mlp(norm(x))
    fc1, fc2 = mlp.fc1, mlp.fc2
    if fc2.weight.shape[0] == x.shape[-1] and nodes.serve(x, norm, fc1, fc2):
        return nodes.norm_mlp_add(x, norm, fc1, fc2, is_large(x, fc1))
    if not (_is_plain_training(x, norm, fc1, fc2) and is_large(x, fc1)):
        return linear_add(F.gelu(fc1(norm(x))), fc2, x)
    weights = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return _NormMLPAdd.apply(x, *weights, norm.eps, product_dtype(x))  # type: ignore[return-value]


def norm_linear(x: Float[Tensor, "*r d"], norm: nn.LayerNorm, linear: nn.Linear) -> Float[Tensor, "*r o"]:
    """The layer of the norm, linear(norm(x)).

    Where what comes out is large, x alone is kept for the backward, and the norm is computed again. Autocast and parts
    that somebody looks at as in `norm_mlp_add`.

    Args:
        x: tokens.
        norm: the layer norm in front.
        linear: the layer.
    """
    if not (_is_plain_training(x, norm, linear) and is_large(x, linear)):
        return linear(norm(x))
    weights = (norm.weight, norm.bias, linear.weight, linear.bias)
    return _NormLinear.apply(x, *weights, norm.eps, product_dtype(x))  # type: ignore[return-value]


def linear_add(
    x: Float[Tensor, "*r d"], linear: nn.Linear, residual: Float[Tensor, "*r o"]
) -> Float[Tensor, "*r o"]:
    """The sum residual + linear(x).

    Where all have one dtype, the product is added in place to the sum of the other two, a pass over memory less.

    Args:
        x: what is mapped.
        linear: the layer.
        residual: what it is added to.
    """
    if nodes.serve_sum(x, linear, residual):
        return nodes.linear_add(x, linear, residual)
    plain = sees_plain_tensors(x) and not is_autocast(x.device.type) and residual.dtype == x.dtype
    if not plain or not is_plain(linear, nn.Linear) or linear.bias is None or linear.bias.dtype != x.dtype:
        return residual + linear(x)
    if residual.shape != (*x.shape[:-1], linear.out_features):
        return residual + linear(x)
    if not torch.is_grad_enabled():
        return _add_product(residual, x, linear.weight, linear.bias)
    return _LinearAdd.apply(x, linear.weight, linear.bias, residual)  # type: ignore[return-value]


def is_large(x: Tensor, linear: nn.Linear) -> bool:
    """Whether what a layer gives is worth to be computed again; not to be asked of an exporter's open axes.

    Args:
        x: what it maps.
        linear: the layer.
    """
    return x.shape[:-1].numel() * linear.out_features * product_dtype(x).itemsize >= _LEAN_BYTES


def _is_plain_training(x: Tensor, norm: nn.LayerNorm, *linears: nn.Linear) -> bool:
    if not torch.is_grad_enabled() or not sees_plain_tensors(x) or x.dtype != norm.weight.dtype:
        return False
    return are_plain(norm, *linears)


def _add_product(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    rows = out.view(-1, len(bias))
    torch.add(residual.reshape(rows.shape), bias, out=rows)
    torch.addmm(rows, x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    return out


class _LinearAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _add_product(residual, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        # Products and sums alone: with create_graph autograd follows them.
        return grad @ weight, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0), grad


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        scale, shift, weight, bias, eps, dtype = args
        rows, low = x.reshape(-1, x.shape[-1]), weight.to(dtype)
        normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], scale, shift, eps)
        ctx.save_for_backward(x, *args[:4], mean, rstd, low)
        ctx.eps, ctx.dtype = eps, dtype
        return torch.addmm(bias.to(dtype), normed.to(dtype), low.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            formula = partial(norm_linear_formula, eps=ctx.eps, dtype=ctx.dtype)
            return *differentiable(formula, ctx.saved_tensors[:5], grad), None, None
        x, scale, shift, _, _, mean, rstd, low = ctx.saved_tensors
        rows, flat = (each.reshape(-1, each.shape[-1]) for each in (x, grad))
        of_weight = flat.t() @ _normalized(rows, mean, rstd, scale, shift).to(low.dtype)
        of_rows, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            (flat @ low).to(rows.dtype), rows, rows.shape[-1:], mean, rstd, scale, shift, [True] * 3
        )
        weights = [each.to(scale.dtype) for each in (of_weight, flat.sum(0))]
        return of_rows.view(x.shape), of_scale, of_shift, *weights, None, None


class _NormMLPAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        scale, shift, weight_1, bias_1, weight_2, bias_2, eps, dtype = args
        rows = x.reshape(-1, x.shape[-1])
        normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], scale, shift, eps)
        low_1, low_2 = weight_1.to(dtype), weight_2.to(dtype)
        hidden = torch.addmm(bias_1.to(dtype), normed.to(dtype), low_1.t())
        active = F.gelu(hidden)
        ctx.save_for_backward(x, *args[:6], mean, rstd, low_1, low_2, hidden)
        ctx.eps, ctx.dtype = eps, dtype
        if dtype == rows.dtype:
            return _add_product(x, active, low_2, bias_2)
        return x + torch.addmm(bias_2.to(dtype), active, low_2.t()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        if torch.is_grad_enabled():
            formula = partial(norm_mlp_add_formula, eps=ctx.eps, dtype=ctx.dtype)
            return *differentiable(formula, ctx.saved_tensors[:7], grad), None, None
        x, scale, shift, *_, mean, rstd, low_1, low_2, hidden = ctx.saved_tensors
        rows, flat = (each.reshape(-1, each.shape[-1]) for each in (x, grad))
        low = flat.to(hidden.dtype)
        of_weight_2 = low.t() @ F.gelu(hidden)
        of_hidden = torch.ops.aten.gelu_backward(low @ low_2, hidden)
        of_weight_1 = of_hidden.t() @ _normalized(rows, mean, rstd, scale, shift).to(hidden.dtype)
        of_rows, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            (of_hidden @ low_1).to(rows.dtype), rows, rows.shape[-1:], mean, rstd, scale, shift, [True] * 3
        )
        weights = [each.to(scale.dtype) for each in (of_weight_1, of_hidden.sum(0), of_weight_2, flat.sum(0))]
        return of_rows.add_(flat).view(grad.shape), of_scale, of_shift, *weights, None, None


def _normalized(rows: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, (rows - mean).mul_(rstd), scale)
