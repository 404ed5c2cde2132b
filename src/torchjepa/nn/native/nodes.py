"""The halves of a transformer block with kernels of our own, for training and without gradient.

Beside torch's operations one by one: what a norm or a GELU gives is in the cache when its product is computed, biases
are added where rows are written anyway, gradients of biases come from the passes that read those rows, and the two
gradients of the residual stream meet in the norm's.

Axis letters of this file: `r` rows, all axes but the last; `o` channels that come out; `e` channels of one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.hand_written import are_plain, product_dtype
from torchjepa.nn.native import bf16_layers, bf16_nodes, float_layers, float_nodes
from torchjepa.nn.native.structures import may_run_on


def serve(x: Tensor, norm: nn.LayerNorm, *linears: nn.Linear) -> bool:
    """Whether the kernels may do the work of these layers, one after the other.

    Args:
        x: the residual stream.
        norm: the layer norm in front.
        linears: the linear layers.
    """
    # Asked first: who traces must not meet a question about sizes.
    if not may_run_on(x) or x.shape[-1:] != norm.normalized_shape:
        return False
    return (
        _serve_products(x, x.shape[-1], linears) and are_plain(norm, *linears) and _are_dense(norm, *linears)
    )


def serve_sum(x: Tensor, linear: nn.Linear, residual: Tensor) -> bool:
    """Whether the kernels may compute residual + linear(x).

    Args:
        x: what is mapped.
        linear: the layer.
        residual: what it is added to.
    """
    if (
        not may_run_on(x)
        or x.shape[:-1] != residual.shape[:-1]
        or linear.weight.shape[0] != residual.shape[-1]
    ):
        return False
    known = (torch.float32, product_dtype(residual))
    if x.dtype not in known or not _serve_products(residual, x.shape[-1], (linear,)):
        return False
    return are_plain(None, linear) and _are_dense(linear)


def _serve_products(stream: Tensor, width: int, linears: Sequence[nn.Linear]) -> bool:
    if stream.device.type != "cpu" or stream.dtype != torch.float32 or not stream.numel():
        return False
    widths = [width]
    for linear in linears:
        outs, inner = linear.weight.shape
        if inner != widths[-1]:  # torch says what is wrong
            return False
        widths.append(outs)
    dtype = product_dtype(stream)
    return float_layers.serves(dtype) or bf16_layers.serves(dtype, *widths)


def _are_dense(*parts: nn.Module) -> bool:
    tensors = (tensor for part in parts for tensor in (part.weight, part.bias))
    return all(each.dtype == torch.float32 and each.is_contiguous() for each in tensors)  # type: ignore[union-attr]


def norm_heads(
    x: Float[Tensor, "b n d"], norm: nn.LayerNorm, linear: nn.Linear, num_heads: int, lean: bool
) -> tuple[Tensor, ...]:
    """The tokens, for the residual stream, and the queries, keys and values `[b, heads, n, e]` of their norm.

    Args:
        x: tokens.
        norm: the layer norm in front.
        linear: the layer of queries, keys and values.
        num_heads: number of heads.
        lean: keep less for the backward and compute the norm again.
    """
    weights = (norm.weight, norm.bias, linear.weight, linear.bias)
    half = float_nodes if product_dtype(x) == torch.float32 else bf16_nodes
    return half.norm_heads(x, weights, norm.eps, num_heads, lean)


def linear_add(
    x: Float[Tensor, "*r d"], linear: nn.Linear, residual: Float[Tensor, "*r o"]
) -> Float[Tensor, "*r o"]:
    """The sum residual + linear(x), in float32, the product in autocast's dtype.

    Args:
        x: what is mapped.
        linear: the layer.
        residual: what it is added to.
    """
    dtype = product_dtype(residual)
    half = float_nodes if dtype == torch.float32 else bf16_nodes
    return half.linear_add(x.to(dtype), linear.weight, linear.bias, residual)


def norm_mlp_add(
    x: Float[Tensor, "*r d"], norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, lean: bool
) -> Float[Tensor, "*r d"]:
    """The sum x + fc2(gelu(fc1(norm(x)))).

    Args:
        x: tokens.
        norm: the layer norm in front.
        fc1: the layer before the GELU.
        fc2: the layer after it.
        lean: keep less for the backward and compute the hidden layer again.
    """
    weights = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    if product_dtype(x) == torch.float32:
        return float_nodes.norm_mlp_add(x, weights, norm.eps)
    return bf16_nodes.norm_mlp_add(x, weights, norm.eps, lean)
