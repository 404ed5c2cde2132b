"""A block with kernels: its values, its gradients and theirs, whatever is kept, frozen or wanted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nn.native import oracle
from tests.nn.native.blocks import (
    DTYPES,
    HEADS,
    LOW,
    autocast,
    derive,
    derive_exactly,
    exact_block,
    make_block,
    needs_products,
    tokens,
    without_kernels,
)
from torchjepa.nn import attention, residual
from torchjepa.nn.native import nodes
from torchjepa.nn.recompute import recompute_activations
from torchjepa.nn.residual import norm_mlp_add

pytestmark = pytest.mark.skipif(not oracle.has_floats(), reason=oracle.NO_FLOATS)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_and_all_its_gradients(
    called: list[str], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lean: bool
) -> None:
    monkeypatch.setattr(residual, "_LEAN_BYTES", 0 if lean else 1 << 40)
    block, x = make_block(), tokens()
    ours = derive(block, x, dtype)
    assert set(called) == {"norm_heads", "linear_add", "norm_mlp_add", *(["attend"] * oracle.has_products())}
    theirs, exact = without_kernels(monkeypatch, block, x, dtype), derive_exactly(block, x)
    bounds = (3, 1e-6, 2e-6) if dtype == torch.float32 else (1.5, 8e-3, 2e-2)
    oracle.assert_as_near(ours, theirs, exact, times=bounds[0], floor=bounds[1], limit=bounds[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_again_without_gradient_and_recomputed_the_same_bits(dtype: torch.dtype) -> None:
    block, x = make_block(), tokens()
    first = derive(block, x, dtype)
    oracle.assert_same_bits(derive(block, x, dtype), first)
    with torch.no_grad(), autocast(dtype):
        assert torch.equal(block(x), first[0])
    with torch.inference_mode(), autocast(dtype):
        assert torch.equal(block(x), first[0])
    recompute_activations(block)
    oracle.assert_same_bits(derive(block, x, dtype), first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_that_is_kept_gives_its_gradients_twice(dtype: torch.dtype) -> None:
    block, x = make_block(), tokens()
    with autocast(dtype):
        loss = block(x).square().mean()
    wanted = [x, *block.parameters()]
    oracle.assert_same_bits(*(torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(2)))


@pytest.mark.parametrize(
    "frozen", ["x", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", "attn"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_parts_change_no_other_gradient(dtype: torch.dtype, frozen: str) -> None:
    block, x = make_block(), tokens()
    of_all = dict(zip(["out", "x", *dict(block.named_parameters())], derive(block, x, dtype), strict=True))
    if frozen == "x":
        x = x.detach()
    else:
        block.get_submodule(frozen).requires_grad_(False)
    thawed = {"x": x, **dict(block.named_parameters())}
    names = ["out", *(name for name, each in thawed.items() if each.requires_grad)]
    oracle.assert_same_bits(derive(block, x, dtype), [of_all[name] for name in names])


@pytest.mark.parametrize("wants", ["x", "weights", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_second_derivatives_of_a_half(dtype: torch.dtype, wants: str) -> None:
    # Of the MLP and of the heads; of torch's own attention on a CPU there is no second derivative.
    block, x = make_block(), tokens(1, 5)
    x.requires_grad_(wants != "weights")
    block.requires_grad_(wants != "x")

    def penalty(own: bool) -> list[Tensor]:
        with autocast(dtype):
            stream, *heads = (nodes.norm_heads if own else plain_heads)(
                x, block.norm1, block.attn.qkv, HEADS, False
            )
            out = (
                norm_mlp_add(stream, block.norm2, block.mlp)
                if own
                else stream + block.mlp(block.norm2(stream))
            )
        scalar = out.sin().sum() + torch.stack([part.float().cos().sum() for part in heads]).sum()
        used = [x, *block.norm1.parameters(), *block.attn.qkv.parameters(), *block.mlp.parameters()]
        used = [each for each in used if each.requires_grad]
        found = torch.autograd.grad(scalar, used, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in found), used))

    for ours, theirs in zip(penalty(True), penalty(False), strict=True):
        assert oracle.off(ours, theirs.double()) < (1e-5 if dtype == torch.float32 else 4e-2)


def plain_heads(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, *_: object) -> tuple[Tensor, ...]:
    return x, *linear(norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)


@needs_products
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (LOW, 5e-2)])
def test_second_derivatives_of_a_block(dtype: torch.dtype, bound: float) -> None:
    block, x = make_block(), tokens(1, 5)
    with autocast(dtype):
        out = block(x)
    (found,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(found.square().sum(), x)
    exact_x, weights = x.detach().double().requires_grad_(), [each.double() for each in block.parameters()]
    (true,) = torch.autograd.grad(exact_block(exact_x, *weights).square().sum(), exact_x, create_graph=True)
    assert oracle.off(second, torch.autograd.grad(true.square().sum(), exact_x)[0]) < bound


@needs_products
def test_training_in_turns_with_torchs_own_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both set up the tile registers of a thread.
    block, x = make_block(), tokens()
    alone = [derive(block, x, LOW), without_kernels(monkeypatch, block, x, LOW)]
    for _ in range(3):
        oracle.assert_same_bits(derive(block, x, LOW), alone[0])
        oracle.assert_same_bits(without_kernels(monkeypatch, block, x, LOW), alone[1])
    assert all(oracle.off(ours, theirs.double()) < 3e-2 for ours, theirs in zip(*alone, strict=True))


def test_attention_of_ones_own_pattern_gets_heads_that_a_node_made(called: list[str]) -> None:
    block, x = make_block(), tokens()
    lengths = [7, 12]
    together = block(x, pattern=lambda *parts: attention.attend_within(*parts, lengths))
    assert "norm_heads" in called
    apart = torch.cat([block(run) for run in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
