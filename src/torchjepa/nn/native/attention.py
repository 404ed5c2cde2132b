"""Attention by products of our own, in bfloat16 and float32; scores and weights stay in a core's cache.

Axis letters of this file: `j` keys, `e` channels of one head.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.hand_written import attention_formula, differentiable, is_fake
from torchjepa.nn.native.library import library, packed_bytes

DEPTH = 32  # of which the kernels take multiples

# Keys, values and two rows of scores for each of a chunk of queries have to fit into a core's cache.
_MAX_KEYS = 2048
_MAX_CHANNELS = 256


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these.

    Args:
        q: queries `[b, heads, n, e]`.
        k: keys `[b, heads, j, e]`.
        v: values `[b, heads, j, e]`.
    """
    kinds = {(each.device.type, each.dtype) for each in (q, k, v)}
    if (
        kinds not in ({("cpu", torch.bfloat16)}, {("cpu", torch.float32)})
        or k.shape != (*q.shape[:2], k.shape[2], q.shape[3])
        or v.shape != k.shape
    ):
        return False
    return (
        k.shape[2] <= _MAX_KEYS
        and q.shape[3] <= _MAX_CHANNELS
        and min(*q.shape, k.shape[2]) > 0
        and packed_bytes(q.dtype) > 0
    )


def attend(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads j e"], v: Float[Tensor, "b heads j e"]
) -> Float[Tensor, "b heads n e"]:
    """softmax(q k^T / sqrt(e)) v.

    Args:
        q: queries `[b, heads, n, e]`, bfloat16 or float32.
        k: keys `[b, heads, j, e]`, of the same dtype.
        v: values `[b, heads, j, e]`, of the same dtype.

    Returns:
        `[b, heads, n, e]`, of the same dtype, the heads of a token neighbours in memory.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attend.apply(q, k, v)  # type: ignore[return-value]
    return _forward(q, k, v, with_gradient=False)[0]


class _Heads(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("batch", "head", "token"))]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, _Heads) for name in ("q", "k", "v", "out")),
        ("log_sums", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("batch", "heads", "queries", "keys", "channels")),
        ("scale", ctypes.c_float),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, _Heads) for name in ("of_out", "of_q", "of_k", "of_v")]


def _heads(x: Tensor) -> _Heads:
    return _Heads(x.data_ptr(), *x.stride()[:3])


def _dense_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _describe(q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor | None) -> _Attention:
    batch, heads, queries, channels = q.shape
    place = None if log_sums is None else log_sums.data_ptr()
    sizes = batch, heads, queries, k.shape[2], channels
    return _Attention(*map(_heads, (q, k, v, out)), place, *sizes, channels**-0.5)


def _forward(q: Tensor, k: Tensor, v: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = map(_dense_channels, (q, k, v))
    batch, heads, queries, channels = q.shape
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    log_sums = q.new_empty(batch, heads, queries, dtype=torch.float32) if with_gradient else None
    if not is_fake(q):
        _call("attend", q.dtype, _describe(q, k, v, out, log_sums))
    return out, log_sums


def _call(name: str, dtype: torch.dtype, *arguments: ctypes.Structure) -> None:
    kind = "bf16" if dtype == torch.bfloat16 else "float"
    getattr(library(), f"{kind}_{name}")(*map(ctypes.byref, arguments))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = _forward(q, k, v, with_gradient=True)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, out, log_sums = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(differentiable(attention_formula, (q, k, v), grad))
        of_q, of_k, of_v = _room_for_gradients(q, k)
        q, k, v, grad = map(_dense_channels, (q, k, v, grad))
        if not is_fake(q):
            gradients = _Gradients(*map(_heads, (grad, of_q, of_k, of_v)))
            _call("attend_backward", q.dtype, _describe(q, k, v, out, log_sums), gradients)
        return of_q, of_k, of_v


def _room_for_gradients(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    batch, heads, queries, channels = q.shape
    if k.shape[2] == queries:
        # Side by side for each token, as the layer in front wants them.
        return tuple(q.new_empty(batch, queries, 3, heads, channels).transpose(1, 3).unbind(2))
    of_q = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    of_k, of_v = k.new_empty(2, batch, k.shape[2], heads, channels).transpose(2, 3).unbind(0)
    return of_q, of_k, of_v
