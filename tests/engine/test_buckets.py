"""Averaging gradients and spreading buffers over processes, against torch's DDP and by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchjepa import dist
from torchjepa.engine import buckets
from torchjepa.engine.buckets import average_gradients, broadcast_from_first
from torchjepa.testing import run_on_ranks


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2)).double()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net.to(memory_format=torch.channels_last)  # whose gradients are not contiguous


def loss(net: nn.Module) -> torch.Tensor:
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(dist.rank()), dtype=torch.float64)
    return net(x).square().sum()


def distance_from_ddp() -> float:
    wrapped, distances = DistributedDataParallel(network()), []
    loss(wrapped).backward()
    for buckets._BUCKET_BYTES in (2**20, 100):
        net = network()
        loss(net).backward()
        average_gradients(net.parameters())
        pairs = zip(net.parameters(), wrapped.parameters(), strict=True)
        distances += [float((ours.grad - theirs.grad).abs().max()) for ours, theirs in pairs]
    return max(distances)


def test_gradients_are_those_of_ddp_in_one_message_or_in_several() -> None:
    assert max(run_on_ranks(distance_from_ddp, 2)) < 1e-12


def with_gaps() -> list[float | None]:
    """Of four parameters the first has a gradient here and there, the second on rank 1, the third nowhere."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    parameters[3].requires_grad_(False)
    parameters[0].grad = torch.full((2,), 1.0 + dist.rank())
    if dist.rank() == 1:
        parameters[1].grad = torch.full((2,), 6.0)
    average_gradients(parameters)
    return [None if parameter.grad is None else float(parameter.grad[0]) for parameter in parameters]


def test_a_missing_gradient_counts_as_zero_and_one_that_all_miss_stays_missing() -> None:
    assert run_on_ranks(with_gaps, 2) == [[1.5, 3.0, None, None]] * 2


def buffers_of_the_first() -> list[torch.Tensor]:
    tensors = [torch.full((2, 3), dist.rank() + 0.5).t(), torch.tensor(dist.rank()), torch.empty(0)]
    broadcast_from_first(tensors)
    return tensors


def test_buffers_of_any_dtype_come_from_the_first() -> None:
    for floats, count, _ in run_on_ranks(buffers_of_the_first, 2):
        assert torch.equal(floats, torch.full((3, 2), 0.5))
        assert count == 0


def test_alone_nothing_happens() -> None:
    parameter = nn.Parameter(torch.ones(2))
    average_gradients([parameter])
    broadcast_from_first([parameter])
    assert parameter.grad is None
