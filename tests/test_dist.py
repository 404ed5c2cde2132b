"""Sums across processes and their gradients; the identity when alone."""

import torch
from torch import Tensor

from torchjepa import dist
from torchjepa.testing import run_on_ranks


def test_alone_everything_is_the_identity() -> None:
    x = torch.ones(2, requires_grad=True)
    assert dist.all_reduce_sum(x) is x
    assert not dist.is_distributed()
    assert (dist.rank(), dist.world_size()) == (0, 1)
    count = dist.global_count(5, like=torch.zeros(1, dtype=torch.float64))
    assert count.dtype == torch.float64
    assert count.item() == 5.0


def sums_on_rank() -> dict[str, Tensor]:
    rank = dist.rank()
    assert dist.is_distributed()
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).mul(rank + 1).requires_grad_()
    # Every rank weighs the sum differently, so that a backward that forgets the other ranks shows.
    y = dist.all_reduce_sum(x.square())
    (grad,) = torch.autograd.grad((y * (10.0 if rank else 1.0)).sum(), x)
    transposed = torch.arange(6.0).reshape(2, 3).T
    return {
        "rank": torch.tensor(rank),
        "world": torch.tensor(dist.world_size()),
        "sum": y.detach(),
        "grad": grad,
        "not contiguous": dist.all_reduce_sum(transposed),
        "input": transposed,
        "count": dist.global_count(3 + rank, like=y),
    }


def test_two_ranks() -> None:
    outcomes = run_on_ranks(sums_on_rank, 2)
    for rank, outcome in enumerate(outcomes):
        assert outcome["rank"].item() == rank
        assert outcome["world"].item() == 2
        # sum_r ((r + 1) * [1, 2])^2
        assert outcome["sum"].tolist() == [5.0, 20.0]
        # d/dx_r of (1 + 10) sum_q x_q^2
        assert outcome["grad"].tolist() == [11 * 2 * (rank + 1), 11 * 4 * (rank + 1)]
        assert torch.equal(outcome["not contiguous"], 2 * torch.arange(6.0).reshape(2, 3).T)
        assert torch.equal(outcome["input"], torch.arange(6.0).reshape(2, 3).T)
        assert outcome["count"].item() == 7.0
