"""The halves of a transformer block with kernels of our own, for training and without gradient.

Beside torch's operations one by one: what a norm or a GELU gives is in the cache when its product is computed, biases
are added where rows are written anyway, gradients of biases come from the passes that read those rows, and the two
gradients of the residual stream meet in the norm's.

Axis letters of this file: `r` rows, all axes but the last; `o` channels that come out; `e` channels of one head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.hand_written import are_plain, product_dtype
from torchjepa.nn.native import float_layers, float_nodes, tile_layers, tile_nodes
from torchjepa.nn.native.structures import may_run_on


def serve(x: Tensor, norm: nn.LayerNorm | None, *linears: nn.Linear) -> bool:
    """Whether the kernels may do the work of these layers.

    Args:
        x: the residual stream.
        norm: the layer norm in front, if there is one.
        linears: the linear layers.
    """
    if not may_run_on(x):  # asked first: who traces must not meet a question about sizes
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel():
        return False
    dtype, widths = product_dtype(x), (size for linear in linears for size in linear.weight.shape)
    if not float_layers.serves(dtype) and not tile_layers.serves(dtype, *widths):
        return False
    parts = linears if norm is None else (norm, *linears)
    return are_plain(norm, *linears) and all(_is_dense_float32(part.weight) for part in parts)


def _is_dense_float32(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.is_contiguous()


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
    half = float_nodes if product_dtype(x) == torch.float32 else tile_nodes
    return half.norm_heads(x, weights, norm.eps, num_heads, lean)


def linear_add(
    x: Float[Tensor, "*r d"], linear: nn.Linear, residual: Float[Tensor, "*r o"]
) -> Float[Tensor, "*r o"]:
    """Residual + linear(x), the product in bfloat16 and the sum in float32.

    Args:
        x: what is mapped.
        linear: the layer.
        residual: what it is added to.
    """
    dtype = product_dtype(residual)
    half = float_nodes if dtype == torch.float32 else tile_nodes
    return half.linear_add(x.to(dtype), linear.weight, linear.bias, residual)


def norm_mlp_add(
    x: Float[Tensor, "*r d"], norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, lean: bool
) -> Float[Tensor, "*r d"]:
    """X + fc2(gelu(fc1(norm(x)))).

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
    return tile_nodes.norm_mlp_add(x, weights, norm.eps, lean)
