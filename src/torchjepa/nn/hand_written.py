"""What hand-written autograd nodes share: when they may take the place of a layer, and how they are derived twice.

Axis letters of this file: `r` rows, all axes but the last; `o` channels that come out; `s` sequences, `j` keys, `e`
channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def sees_plain_tensors(x: Tensor, or_fake: bool = False) -> bool:
    """Whether a hand-written node may take this tensor: no compiler, tracer, subclass or function transform looks on.

    Args:
        x: any of its inputs.
        or_fake: fake tensors may too, of one who follows a step without computing it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) is not Tensor and not (or_fake and is_fake(x)):
        return False
    return not torch._C._are_functorch_transforms_active()


def is_fake(x: Tensor) -> bool:
    """Whether a tensor has a shape and no numbers.

    Args:
        x: any tensor.
    """
    if type(x) in (Tensor, nn.Parameter):
        return False
    from torch._subclasses.fake_tensor import FakeTensor  # late: it takes long to import

    return isinstance(x, FakeTensor)


def is_plain(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a part is of this very class and nobody has hooked it.

    Args:
        part: the module.
        kind: its class.
    """
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return type(part) is kind and not any(hooks)


def are_plain(norm: nn.LayerNorm | None, *linears: nn.Linear) -> bool:
    """Whether these layers are plain, as `is_plain` has it, and have their biases.

    Args:
        norm: a layer norm, or none.
        linears: linear layers.
    """
    parts: dict[nn.Module, type[nn.Module]] = dict.fromkeys(linears, nn.Linear)
    if norm is not None:
        parts[norm] = nn.LayerNorm
    return all(is_plain(part, kind) and part.bias is not None for part, kind in parts.items())


def is_autocast(kind: str) -> bool:
    """Whether products on this kind of device are computed in a dtype of their own now.

    Args:
        kind: "cpu", "cuda" and so on.
    """
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def product_dtype(x: Tensor) -> torch.dtype:
    """What a product with this tensor is computed in: autocast's dtype or its own.

    Args:
        x: what is mapped.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if is_autocast(kind) else x.dtype


def differentiable(
    formula: Callable[..., Any], inputs: Sequence[Tensor], *grads: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated once more, from autograd's own way through the formula.

    Args:
        formula: what a hand-written node computes, in torch's operations, a tensor or several.
        inputs: its arguments; those that require no gradient get none.
        grads: gradient of each tensor that comes out.
    """
    wanted = [each for each in inputs if each.requires_grad]
    made = formula(*inputs)
    pairs = zip([made] if isinstance(made, Tensor) else made, grads)
    outputs, known = zip(*(pair for pair in pairs if pair[0].requires_grad))  # an input may come out as it is
    found = iter(torch.autograd.grad(outputs, wanted, known, create_graph=True))
    return [next(found) if each.requires_grad else None for each in inputs]


def attention_formula(
    q: Float[Tensor, "*s n e"], k: Float[Tensor, "*s j e"], v: Float[Tensor, "*s j e"]
) -> Float[Tensor, "*s n e"]:
    """softmax(q k^T / sqrt(e)) v by products, which can be derived as often as one likes."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def norm_linear_formula(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype
) -> Float[Tensor, "*r o"]:
    """linear(norm(x)), the product in `dtype`."""
    normed = F.layer_norm(x, scale.shape, scale, shift, eps).to(dtype)
    return F.linear(normed, weight.to(dtype), bias.to(dtype))


def linear_add_formula(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Float[Tensor, "*r o"]:
    """The sum residual + linear(x), the product in the dtype of x."""
    return residual + F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def norm_mlp_add_formula(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> Float[Tensor, "*r d"]:
    """The sum x + mlp(norm(x)), the products in `dtype`."""
    hidden = norm_linear_formula(x, scale, shift, weight_1, bias_1, eps=eps, dtype=dtype)
    return x + F.linear(F.gelu(hidden), weight_2.to(dtype), bias_2.to(dtype))
