import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from torchjepa.engine.ledger import Ledger
from torchjepa.nn import ViT

KB = 1024


class Chain(nn.Module):
    """[64, 64] floats are 16 KB: three of them in the forward pass, one let go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)


def test_memory_is_counted_from_the_first_to_the_last_tensor_that_shares_it() -> None:
    ledger = Ledger(Chain())
    with torch.no_grad(), ledger.watching():
        a = torch.zeros(64, 64)
        b = a.view(-1)[:64]  # the same memory
        c = a + 1
        assert ledger.live["activations"] == 32 * KB
        del a, c
        assert ledger.live["activations"] == 16 * KB
        del b
        assert ledger.live["activations"] == 0
        torch.zeros(32, 64)
    assert ledger.peak == {"activations": 32 * KB}


def test_gradients_and_assigned_kinds_are_told_apart() -> None:
    chain = Chain()
    ledger = Ledger(chain)
    ledger.assign("weights", chain.parameters())
    with ledger.watching():
        chain.second(chain.first(torch.ones(64, 64))).sum().backward()
        assert ledger.live["gradients"] == 32 * KB
        assert ledger.live["weights"] == 32 * KB
        chain.zero_grad()
        assert ledger.live["gradients"] == 0


def test_operations_are_booked_by_child_and_backward_apart() -> None:
    chain = Chain()
    ledger = Ledger(chain)
    with ledger.watching():
        chain.second(chain.first(torch.ones(8, 64))).sum().backward()
    # 2 * 8 * 64 * 64 for each product; backward: both weights, and the input of the second.
    product = 2 * 8 * 64 * 64
    assert ledger.flops == {"first": product, "second": product, "backward": 3 * product}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flops_are_those_of_torchs_own_counter(dtype: torch.dtype) -> None:
    network = ViT(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2).to(dtype)
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    ledger = Ledger(network)
    with ledger.watching():
        network(x).square().sum().backward()
    with FlopCounterMode(display=False) as counter:
        network(x).square().sum().backward()
    # Torch's counter leaves out the CPU's fused attention: 2 products of 2 n^2 d forward, 5 backward, 2 blocks, 2
    # samples.
    attention = (2 + 5) * 2 * 16**2 * 16 * 2 * 2 if dtype == torch.float32 else 0
    assert sum(ledger.flops.values()) == counter.get_total_flops() + attention


def test_a_fake_value_that_is_asked_for_is_zero() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.ones(3)
    with Ledger(Chain()).watching():
        assert not (x > 0).any()
        assert x.sum().item() == 0
