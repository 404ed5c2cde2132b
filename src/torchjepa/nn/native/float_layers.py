"""The float32 kernels as functions of tensors: the layer norm, sums over rows, the MLP half of a transformer block.

Rows are contiguous and everything float32; `serves` asks. Axis letters: `r` rows, `h` channels of the hidden layer.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.native.library import library
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


def normalize(
    x: Float[Tensor, "r d"], scale: Float[Tensor, " d"], shift: Float[Tensor, " d"], eps: float
) -> tuple[Float[Tensor, "r d"], Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Layer norm of each row, with the means and inverse deviations."""
    out, means, rstds = torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x))
    call("float_normalize", _Normalize, x, scale, shift, eps, out, means, rstds, *x.shape)
    return out, means, rstds


def normalize_backward(
    grad: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    scale: Tensor,
    means: Tensor,
    rstds: Tensor,
    residual: Float[Tensor, "r d"],
) -> tuple[Float[Tensor, "r d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Gradients of x, scale and shift; to that of x `residual`, what comes past the norm, is added."""
    of_x, sums = torch.empty_like(x), x.new_empty(2 * x.shape[1])
    places = grad, x, scale, means, rstds, residual, of_x, scratch(sums), sums
    call("float_normalize_backward", _NormalizeBackward, *places, *x.shape)
    of_scale, of_shift = sums.chunk(2)
    return of_x, of_scale, of_shift


def sum_rows(x: Float[Tensor, "r d"]) -> Float[Tensor, " d"]:
    """The sum over rows."""
    sums = x.new_empty(x.shape[1])
    call("float_sum_rows", _SumRows, x, scratch(sums), sums, *x.shape)
    return sums


def mlp(
    x: Float[Tensor, "r d"], norm: tuple[Tensor, Tensor, float], weights: tuple[Tensor, ...], keep: bool
) -> tuple[Float[Tensor, "r d"], tuple[Tensor, ...] | None]:
    """The residual stream x after its MLP half; `norm` is scale, shift, epsilon, weights are W1, b1, W2, b2.

    With `keep` also what a gradient needs: the hidden layer without its bias, means and inverse deviations.
    """
    inner, width = weights[0].shape
    out = torch.empty_like(x)
    kept = (x.new_empty(len(x), inner), x.new_empty(len(x)), x.new_empty(len(x))) if keep else None
    call("float_mlp", _MLP, sgemm(), x, *norm, *weights, out, *(kept or [None] * 3), len(x), width, inner)
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
    made = of_hidden, active, normed, of_x, sums, scratch(sums)
    call("float_mlp_backward", _MLPBackward, sgemm(), *inputs, *made, len(x), width, inner)
    return of_x, *sums.split([width, width, width, inner]), of_hidden, active, normed


class _Normalize(ctypes.Structure):
    _fields_ = fields("x scale shift eps. out means rstds rows* width*")


class _NormalizeBackward(ctypes.Structure):
    _fields_ = fields("grad x scale means rstds residual of_x scratch sums rows* width*")


class _SumRows(ctypes.Structure):
    _fields_ = fields("x scratch sums rows* width*")


class _MLP(ctypes.Structure):
    _fields_ = fields(
        "sgemm x scale shift eps. weight1 bias1 weight2 bias2 out hidden means rstds rows* width* inner*"
    )


class _MLPBackward(ctypes.Structure):
    _fields_ = fields(
        "sgemm grad x scale shift means rstds weight1 bias1 weight2 hidden of_hidden active normed of_x sums scratch "
        "rows* width* inner*"
    )
