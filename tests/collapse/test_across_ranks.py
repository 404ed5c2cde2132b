"""Several processes with other data, another mean and another batch size on each equal one on all of it."""

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torchjepa import dist
from torchjepa.collapse import BarlowTwins, CollapseRegularizer, VICReg, named_terms
from torchjepa.testing import run_on_ranks

REGULARIZERS: tuple[CollapseRegularizer, ...] = (
    VICReg(),
    VICReg.official(),
    BarlowTwins(),
    BarlowTwins.official(),
)
Outcome = list[tuple[dict[str, Tensor], list[Tensor]]]


def network() -> torch.nn.Module:
    net = torch.nn.Linear(5, 4, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) / 2)
        net.bias.zero_()
    return net


def data(sizes: list[int]) -> tuple[Tensor, Tensor]:
    x_a, x_b = torch.randn(2, sum(sizes), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rank = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).unsqueeze(1)
    return x_a + 2.0 * rank, x_a + 0.3 * x_b + 2.0 * rank


def terms_and_gradients(net: torch.nn.Module, x_a: Tensor, x_b: Tensor) -> Outcome:
    outcomes = []
    for regularizer in REGULARIZERS:
        net.zero_grad()
        terms = regularizer.compute(net(x_a), net(x_b))
        terms.total().backward()
        outcomes.append((named_terms(terms), [p.grad.clone() for p in net.parameters()]))
    return outcomes


def on_rank(sizes: list[int], under_ddp: bool) -> Outcome:
    x_a, x_b = (x.split(sizes)[dist.rank()] for x in data(sizes))
    if under_ddp:
        return terms_and_gradients(DistributedDataParallel(network()), x_a, x_b)
    outcome = terms_and_gradients(network(), x_a, x_b)
    for _, grads in outcome:
        for grad in grads:
            torch.distributed.all_reduce(grad)
            grad /= len(sizes)
    return outcome


def compare(sizes: list[int], *, under_ddp: bool = False) -> None:
    expected = terms_and_gradients(network(), *data(sizes))
    for outcome in run_on_ranks(on_rank, len(sizes), sizes, under_ddp):
        for (terms, grads), (expected_terms, expected_grads) in zip(outcome, expected, strict=True):
            for name, value in expected_terms.items():
                torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=1e-14)
            # A bias moves all samples alike, which no term sees: its gradient is rounding error, and both are
            # measured against the norm of the weight's.
            for grad, expected_grad in zip(grads, expected_grads, strict=True):
                assert (grad - expected_grad).norm() / expected_grads[0].norm() < 1e-10


def test_two_unequal_ranks_equal_one_process() -> None:
    compare([4, 9])


def test_a_rank_without_samples() -> None:
    compare([7, 0])


@pytest.mark.slow
def test_three_unequal_ranks_under_ddp_equal_one_process() -> None:
    compare([3, 8, 5], under_ddp=True)
