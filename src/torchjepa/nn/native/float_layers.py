"""The float32 kernels as functions of tensors: the halves of a transformer block around attention.

Products are our own where `packed` gives room (`factors.h` says how), as exact as any in float32, elsewhere those of
torch's own BLAS. Rows are contiguous and everything float32; `serves` asks. Axis letters: `r` rows, `h` channels of
the hidden layer.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.native.attention import DEPTH
from torchjepa.nn.native.library import library, packed_bytes
from torchjepa.nn.native.structures import call, fields, scratch


@functools.cache
def sgemm() -> int | None:
    """Where the float32 product of torch's own BLAS is in memory, if torch shows it (the wheels for x86 do)."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).sgemm_
    except (OSError, AttributeError):
        return None
    return ctypes.cast(found, ctypes.c_void_p).value


def serves(dtype: torch.dtype) -> bool:
    """Whether there are kernels for layers in this dtype.

    Args:
        dtype: of the tokens, the weights and the products.
    """
    return dtype == torch.float32 and library() is not None and sgemm() is not None


def packed(*weights: Tensor) -> Tensor | None:
    """Room for weights as our own products want them, where this processor has those; else nothing.

    Args:
        weights: of one layer after the other.
    """
    size = packed_bytes(torch.float32)
    if not size or any(width % DEPTH for weight in weights for width in weight.shape):
        return None
    return weights[0].new_empty(size // 2 * sum(map(torch.numel, weights)), dtype=torch.bfloat16)


def norm_linear(
    x: Float[Tensor, "r d"],
    norm: tuple[Tensor, Tensor, float],
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, " o"],
    keep: bool,
) -> tuple[Float[Tensor, "r o"], tuple[Tensor, ...]]:
    """norm(x) W^T + b; `norm` is scale, shift and epsilon.

    With `keep` also what a gradient needs: the norm's output, means and inverse deviations.
    """
    outs, width = weight.shape
    out = x.new_empty(len(x), outs)
    kept = (torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x))) if keep else ()
    room = out, *(kept or [None] * 3)
    sizes = packed(weight), len(x), width, outs
    call("float_norm_linear", _NormLinear, sgemm(), x, *norm, weight, bias, *room, *sizes)
    return out, kept


def norm_linear_backward(
    grads: Sequence[Float[Tensor, "b heads n e"]],
    x: Float[Tensor, "r d"],
    residual: Float[Tensor, "r d"],
    scale: Float[Tensor, " d"],
    weight: Float[Tensor, "o d"],
    moments: tuple[Tensor, Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of x, with `residual` added, of scale, shift and bias; those of queries, keys, values side by side.

    `grads` are of queries, keys and values, `moments` means and inverse deviations.
    """
    outs, width = weight.shape
    grads = [each if each.stride(-1) == 1 else each.contiguous() for each in grads]
    strides = (ctypes.c_long * 9)(*(stride for each in grads for stride in each.stride()[:3]))
    joined, of_x, sums = x.new_empty(len(x), outs), torch.empty_like(x), x.new_empty(2 * width + outs)
    _, heads, tokens, channels = grads[0].shape
    inputs = *grads, ctypes.addressof(strides), x, scale, *moments, residual, weight
    made = joined, of_x, sums, scratch(sums), packed(weight)
    sizes = len(x), width, tokens, heads, channels
    call("float_norm_linear_backward", _NormLinearBackward, sgemm(), *inputs, *made, *sizes)
    return of_x, *sums.split([width, width, outs]), joined


def linear_add(
    x: Float[Tensor, "r d"],
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, " o"],
    residual: Float[Tensor, "r o"],
) -> Float[Tensor, "r o"]:
    """The sum residual + x W^T + b."""
    outs, width = weight.shape
    out = torch.empty_like(residual)
    inputs = x, weight, bias, residual
    call("float_linear_add", _LinearAdd, sgemm(), *inputs, out, packed(weight), len(x), width, outs)
    return out


def linear_add_backward(
    grad: Float[Tensor, "r o"], weight: Float[Tensor, "o d"]
) -> tuple[Float[Tensor, "r d"], Float[Tensor, " o"]]:
    """Gradients of x and of the bias."""
    outs, width = weight.shape
    of_x, sums = grad.new_empty(len(grad), width), grad.new_empty(outs)
    made = of_x, sums, scratch(sums), packed(weight)
    sizes = len(grad), width, outs
    call("float_linear_add_backward", _LinearAddBackward, sgemm(), grad, weight, *made, *sizes)
    return of_x, sums


def mlp(
    x: Float[Tensor, "r d"], norm: tuple[Tensor, Tensor, float], weights: tuple[Tensor, ...], keep: bool
) -> tuple[Float[Tensor, "r d"], tuple[Tensor, ...] | None]:
    """The residual stream x after its MLP half; `norm` is scale, shift, epsilon, weights are W1, b1, W2, b2.

    With `keep` also what a gradient needs: the hidden layer without its bias, means and inverse deviations.
    """
    inner, width = weights[0].shape
    out = torch.empty_like(x)
    kept = (x.new_empty(len(x), inner), x.new_empty(len(x)), x.new_empty(len(x))) if keep else None
    made = out, *(kept or [None] * 3), packed(*weights[::2])
    call("float_mlp", _MLP, sgemm(), x, *norm, *weights, *made, len(x), width, inner)
    return out, kept


def mlp_backward(
    grad: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    scale: Tensor,
    shift: Tensor,
    weights: tuple[Tensor, ...],
    kept: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Gradients of x, scale, shift, b2 and b1; the gradient of the hidden layer, that layer and the norm's output."""
    hidden, means, rstds = kept
    inner, width = weights[0].shape
    of_hidden, active, normed = torch.empty_like(hidden), torch.empty_like(hidden), torch.empty_like(x)
    of_x, sums = torch.empty_like(x), x.new_empty(3 * width + inner)
    inputs = grad, x, scale, shift, means, rstds, *weights[:3], hidden
    made = of_hidden, active, normed, of_x, sums, scratch(sums), packed(*weights[::2])
    call("float_mlp_backward", _MLPBackward, sgemm(), *inputs, *made, len(x), width, inner)
    return of_x, *sums.split([width, width, width, inner]), of_hidden, active, normed


class _NormLinear(ctypes.Structure):
    _fields_ = fields("sgemm x scale shift eps. weight bias out normed means rstds packed rows* width* outs*")


class _NormLinearBackward(ctypes.Structure):
    _fields_ = fields(
        "sgemm of_q of_k of_v strides x scale means rstds residual weight joined of_x sums scratch packed "
        "rows* width* tokens* heads* channels*"
    )


class _LinearAdd(ctypes.Structure):
    _fields_ = fields("sgemm x weight bias residual out packed rows* width* outs*")


class _LinearAddBackward(ctypes.Structure):
    _fields_ = fields("sgemm grad weight of_x sums scratch packed rows* width* outs*")


class _MLP(ctypes.Structure):
    _fields_ = fields(
        "sgemm x scale shift eps. weight1 bias1 weight2 bias2 out hidden means rstds packed rows* width* inner*"
    )


class _MLPBackward(ctypes.Structure):
    _fields_ = fields(
        "sgemm grad x scale shift means rstds weight1 bias1 weight2 hidden of_hidden active normed of_x "
        "sums scratch packed rows* width* inner*"
    )
