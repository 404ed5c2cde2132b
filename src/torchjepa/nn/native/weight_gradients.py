"""The gradient of a layer's weight, by products of our own where this processor has some.

Axis letters of this file: `r` rows; `o` channels that come out; `d` channels that go in.
"""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.native.attention import DEPTH
from torchjepa.nn.native.library import packed_bytes
from torchjepa.nn.native.structures import call, fields


def weight_gradient(grad: Float[Tensor, "r o"], x: Float[Tensor, "r d"]) -> Float[Tensor, "o d"]:
    """grad^T x in float32.

    Args:
        grad: gradient of what came out, float32 or bfloat16.
        x: what went in, of the same dtype.
    """
    outs, width = grad.shape[1], x.shape[1]
    if outs % DEPTH or width % DEPTH or not len(x) or not packed_bytes(x.dtype):
        return (grad.t() @ x).float()
    kind = "bf16" if x.dtype == torch.bfloat16 else "float"
    out = x.new_empty(outs, width, dtype=torch.float32)
    call(f"{kind}_weight_gradient", _WeightGradient, grad, x, out, len(x), outs, width)
    return out


class _WeightGradient(ctypes.Structure):
    _fields_ = fields("left right out rows* m* n*")
