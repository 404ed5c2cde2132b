from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchjepa.nn import ConvEncoder, Predictor, ViT, recompute_activations
from torchjepa.nn.attention import Block
from torchjepa.types import Grid

SIZES = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "image_size": 16}


def vit(x: Tensor) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    ids = torch.tensor([[0, 3, 5, 8, 15]]).expand(len(x), -1)
    return ViT(**SIZES), lambda network: network(x, ids)


def predictor(x: Tensor) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    context_ids = torch.tensor([[0, 3, 5, 8, 15]]).expand(len(x), -1)
    target_ids = torch.tensor([[[1, 2], [6, 7]]]).expand(len(x), -1, -1)
    tokens = x.flatten(1)[:, : 5 * 16].unflatten(1, (5, 16))
    network = Predictor(encoder_dim=16, embed_dim=8, depth=3, num_heads=2)
    return network, lambda network: network(tokens, context_ids, target_ids, Grid(h=4, w=4))


def gradients(
    network: nn.Module, call: Callable[[nn.Module], Tensor], dtype: torch.dtype | None
) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = call(network).square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in network.parameters())]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [vit, predictor])
def test_loss_and_gradients_are_the_same_bit_for_bit(make: Callable, dtype: torch.dtype | None) -> None:
    network, call = make(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    kept = gradients(network, call, dtype)
    recompute_activations(network)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(network, call, dtype), kept))


def test_a_block_keeps_its_input_alone() -> None:
    x = torch.randn(2, 5, 16)
    block = Block(16, 2)
    recompute_activations(block)
    assert [tensor.data_ptr() for tensor in kept_by(block, x)] == [x.data_ptr()]
    recompute_activations(block, False)
    assert len(kept_by(block, x)) > 1


def kept_by(network: nn.Module, x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        network(x)
    return saved


def test_nothing_is_recomputed_where_there_is_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward pass without gradient was checkpointed")

    block = Block(16, 2)
    recompute_activations(block)
    monkeypatch.setattr("torchjepa.nn.recompute.checkpoint", refuse)
    with torch.no_grad():
        block(torch.randn(2, 5, 16))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="ConvEncoder has no transformer block"):
        recompute_activations(ConvEncoder(widths=(4,), depths=(1,), strides=(2,)))
