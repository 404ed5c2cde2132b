"""The linear layers of a transformer block in bfloat16, with all around them, by products of our own.

Rows are contiguous, the residual stream and the weights float32, widths multiples of 32; `serves` asks. Axis letters:
`r` rows, `h` channels of the hidden layer, `o` channels that come out.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.native.attention import DEPTH
from torchjepa.nn.native.library import packed_bytes
from torchjepa.nn.native.structures import call, fields, scratch


def serves(dtype: torch.dtype, *widths: int) -> bool:
    """Whether there are kernels for products in this dtype and layers of these widths.

    Args:
        dtype: what products are computed in.
        widths: channels that go in and come out.
    """
    fit = not any(width % DEPTH for width in widths)
    return dtype == torch.bfloat16 and fit and packed_bytes(dtype) > 0


class Kept(NamedTuple):
    """What a norm leaves for its gradient: its output, unless that is computed again, means, inverse deviations."""

    normed: Float[Tensor, "r d"] | None
    means: Float[Tensor, " r"]
    rstds: Float[Tensor, " r"]


def norm_linear(
    x: Float[Tensor, "r d"],
    norm: tuple[Tensor, Tensor, float],
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, " o"],
    keep: bool,
) -> tuple[Float[Tensor, "r o"], Kept | None]:
    """norm(x) W^T + b in bfloat16; `norm` is scale, shift and epsilon."""
    outs, width = weight.shape
    out = x.new_empty(len(x), outs, dtype=torch.bfloat16)
    kept = _room(x) if keep else None
    call(
        "bf16_norm_linear",
        _NormLinear,
        x,
        *norm,
        weight,
        bias,
        out,
        *_places(kept),
        _packed(weight),
        len(x),
        width,
        outs,
    )
    return out, kept


def normalize_again(x: Float[Tensor, "r d"], norm: tuple[Tensor, Tensor, float]) -> Float[Tensor, "r d"]:
    """What went into the product of `norm_linear`."""
    kept, width = _room(x), x.shape[1]
    call("bf16_norm_linear", _NormLinear, x, *norm, None, None, None, *kept, None, len(x), width, width)
    assert kept.normed is not None
    return kept.normed


def norm_linear_backward(
    grad: Float[Tensor, "r o"],
    x: Float[Tensor, "r d"],
    residual: Float[Tensor, "r d"],
    kept: Kept,
    scale: Float[Tensor, " d"],
    weight: Float[Tensor, "o d"],
) -> tuple[Float[Tensor, "r d"], Tensor, Tensor, Tensor]:
    """Gradients of x, with `residual` added, of scale, shift and bias."""
    outs, width = weight.shape
    of_x, sums = torch.empty_like(x), x.new_empty(2 * width + outs)
    room = scratch(sums), _packed(weight)
    arguments = grad, x, residual, kept.means, kept.rstds, scale, weight, of_x, sums, *room
    call("bf16_norm_linear_backward", _NormLinearBackward, *arguments, len(x), width, outs)
    of_scale, of_shift, of_bias = sums.split([width, width, outs])
    return of_x, of_scale, of_shift, of_bias


def linear_add(
    x: Float[Tensor, "r d"],
    weight: Float[Tensor, "o d"],
    bias: Float[Tensor, " o"],
    residual: Float[Tensor, "r o"],
) -> Float[Tensor, "r o"]:
    """The sum residual + x W^T + b."""
    outs, width = weight.shape
    out = torch.empty_like(residual)
    call("bf16_linear_add", _LinearAdd, x, weight, bias, residual, out, _packed(weight), len(x), width, outs)
    return out


def linear_add_backward(
    grad: Float[Tensor, "r o"], weight: Float[Tensor, "o d"]
) -> tuple[Float[Tensor, "r o"], Float[Tensor, "r d"], Float[Tensor, " o"]]:
    """The gradient rounded to bfloat16, that of x, and that of the bias."""
    outs, width = weight.shape
    rounded = torch.empty_like(grad, dtype=torch.bfloat16)
    of_x, sums = grad.new_empty(len(grad), width, dtype=torch.bfloat16), grad.new_empty(outs)
    arguments = grad, weight, rounded, of_x, sums, scratch(sums), _packed(weight)
    call("bf16_linear_add_backward", _LinearAddBackward, *arguments, len(grad), width, outs)
    return rounded, of_x, sums


class KeptByMLP(NamedTuple):
    """What an MLP leaves for its gradient besides its input: norm, hidden layer after the GELU, GELU's derivative."""

    norm: Kept
    active: Float[Tensor, "r h"]
    slope: Float[Tensor, "r h"]


def mlp(
    x: Float[Tensor, "r d"], norm: tuple[Tensor, Tensor, float], weights: tuple[Tensor, ...], keep: bool
) -> tuple[Float[Tensor, "r d"], KeptByMLP | None]:
    """The residual stream x after its MLP half; `norm` is scale, shift, epsilon, weights are W1, b1, W2, b2."""
    out = torch.empty_like(x)
    kept = _room_of_mlp(x, weights[0]) if keep else None
    _mlp(x, norm, weights, out, kept)
    return out, kept


def mlp_again(
    x: Float[Tensor, "r d"], norm: tuple[Tensor, Tensor, float], weights: tuple[Tensor, ...]
) -> KeptByMLP:
    """What `mlp` would have kept."""
    kept = _room_of_mlp(x, weights[0])
    _mlp(x, norm, weights, None, kept)
    return kept


def mlp_backward(
    grad: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    scale: Float[Tensor, " d"],
    weights: tuple[Tensor, ...],
    kept: KeptByMLP,
) -> tuple[Tensor, ...]:
    """Gradients of x, scale, shift, b2, b1; the gradient rounded to bfloat16, and that of the hidden layer."""
    hidden, width = weights[0].shape
    rounded, of_hidden = torch.empty_like(grad, dtype=torch.bfloat16), torch.empty_like(kept.active)
    of_x, sums = torch.empty_like(x), x.new_empty(3 * width + hidden)
    norm = kept.norm
    inputs = grad, x, norm.means, norm.rstds, scale, weights[0], weights[2], kept.slope
    room = scratch(sums), _packed(*weights[::2])
    call(
        "bf16_mlp_backward",
        _MLPBackward,
        *inputs,
        rounded,
        of_hidden,
        of_x,
        sums,
        *room,
        len(x),
        width,
        hidden,
    )
    return of_x, *sums.split([width, width, width, hidden]), rounded, of_hidden


def _mlp(
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    weights: tuple[Tensor, ...],
    out: Tensor | None,
    kept: KeptByMLP | None,
) -> None:
    hidden, width = weights[0].shape
    of_norm, active, slope = kept or (None, None, None)
    normed, means, rstds = _places(of_norm)
    room = normed, active, slope, means, rstds, _packed(*weights[::2])
    call("bf16_mlp", _MLP, x, *norm, *weights, out, *room, len(x), width, hidden)


def _room(x: Tensor) -> Kept:
    return Kept(torch.empty_like(x, dtype=torch.bfloat16), x.new_empty(len(x)), x.new_empty(len(x)))


def _room_of_mlp(x: Tensor, weight: Tensor) -> KeptByMLP:
    active = x.new_empty(len(x), len(weight), dtype=torch.bfloat16)
    return KeptByMLP(_room(x), active, torch.empty_like(active))


def _places(kept: Kept | None) -> tuple[Tensor | None, ...]:
    return kept or (None, None, None)


def _packed(*weights: Tensor) -> Tensor:
    return weights[0].new_empty(sum(map(torch.numel, weights)), dtype=torch.bfloat16)


class _NormLinear(ctypes.Structure):
    _fields_ = fields("x scale shift eps. weight bias out normed means rstds packed rows* in* outs*")


class _NormLinearBackward(ctypes.Structure):
    _fields_ = fields("grad x residual means rstds scale weight of_x sums scratch packed rows* in* outs*")


class _LinearAdd(ctypes.Structure):
    _fields_ = fields("x weight bias residual out packed rows* in* outs*")


class _LinearAddBackward(ctypes.Structure):
    _fields_ = fields("grad weight rounded of_x sums scratch packed rows* in* outs*")


class _MLP(ctypes.Structure):
    _fields_ = fields(
        "x scale shift eps. weight1 bias1 weight2 bias2 out normed active slope means rstds packed rows* width* hidden*"
    )


class _MLPBackward(ctypes.Structure):
    _fields_ = fields(
        "grad x means rstds scale weight1 weight2 slope rounded of_hidden of_x sums scratch packed "
        "rows* width* hidden*"
    )
