"""A transformer block with and without kernels, and written out in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.nn.native import oracle
from torchjepa.nn.attention import Block
from torchjepa.nn.native import attention, nodes

needs_products = pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)

DIM, HEADS = 64, 4
LOW = torch.bfloat16
DTYPES = [pytest.param(torch.float32), pytest.param(LOW, marks=needs_products)]


def make_block() -> Block:
    torch.manual_seed(0)
    block = Block(DIM, HEADS, mlp_ratio=2.5)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else DIM**-0.5))
            if name.startswith("norm") and name.endswith("weight"):
                parameter.add_(1)
    return block


def tokens(batch: int = 2, number: int = 19) -> Tensor:
    return oracle.numbers(batch, number, DIM, seed=1, spread=1.5).requires_grad_()


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def derive(block: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Out and the gradients of x and of all parameters that want one."""
    with autocast(dtype):
        out = block(x)
    parameters = block.parameters() if isinstance(block, nn.Module) else ()
    wanted = [each for each in (x, *parameters) if each.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * oracle.numbers(*out.shape, seed=2)).sum(), wanted)]


def exact_block(x: Tensor, *parameters: Tensor) -> Tensor:
    scale, shift, *of_attention = parameters[:6]
    weight, bias, weight_out, bias_out = of_attention
    _, *parts = oracle.norm_heads(HEADS)(x, scale, shift, weight, bias)
    x = x + oracle.attend(*parts).transpose(1, 2).flatten(2) @ weight_out.T + bias_out
    return oracle.norm_mlp_add(x, *parameters[6:])


def derive_exactly(block: Block, x: Tensor) -> list[Tensor]:
    grad = oracle.numbers(*x.shape, seed=2)
    return oracle.derive_exactly(exact_block, [x, *block.parameters()], [grad])


def without_kernels(
    monkeypatch: pytest.MonkeyPatch, block: Block, x: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(nodes, "serve", lambda *_: False)
        patch.setattr(attention, "serves", lambda *_: False)
        return derive(block, x, dtype)
