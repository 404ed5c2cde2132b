"""Several processes with other data, another mean and another batch size on each equal one on all of it.

Gradients of a shared weight, not only values, for every regularizer there is, on both sides of every choice that
depends on sizes.
"""

import copy
import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torchjepa import collapse, dist
from torchjepa.collapse import (
    WMSE,
    BarlowTwins,
    CollapseRegularizer,
    LeJEPA,
    SIGReg,
    Sum,
    VCReg,
    VICReg,
    named_terms,
)
from torchjepa.testing import run_on_ranks

REGULARIZERS: dict[str, CollapseRegularizer] = {
    "vicreg": VICReg(),
    "vicreg-official": VICReg.official(),
    "barlow": BarlowTwins(),
    "barlow-official": BarlowTwins.official(),
    "vcreg": VCReg(),
    "sigreg": SIGReg(num_slices=16),
    "wmse": WMSE(),
    "wmse-parts": WMSE(sub_batch_size=8, num_shuffles=2),
    "lejepa": LeJEPA(regularizer=SIGReg(num_slices=16)),
    "sum": Sum((VICReg(), SIGReg(num_slices=16)), weights=(1.0, 0.1)),
}
TIMED: dict[str, CollapseRegularizer] = {
    f"{name}-{over}": type(part)(over=over)
    for name, part in REGULARIZERS.items()
    if name in ("vicreg", "barlow", "vcreg", "sigreg")
    for over in ("time", "both")
}
Outcome = dict[str, tuple[dict[str, Tensor], list[Tensor]]]


def test_every_regularizer_is_here() -> None:
    classes = {
        value for _, value in inspect.getmembers(collapse, inspect.isclass) if hasattr(value, "compute")
    }
    abstract = {value for value in classes if inspect.isabstract(value)} | {CollapseRegularizer}
    assert {type(part) for part in REGULARIZERS.values()} == classes - abstract


def network(width: int, dtype: torch.dtype) -> torch.nn.Module:
    net = torch.nn.Linear(5, width, dtype=dtype)
    with torch.no_grad():
        net.weight.copy_(torch.randn(width, 5, generator=torch.Generator().manual_seed(0)) / 2)
        net.bias.zero_()
    return net


def data(sizes: list[int], steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (2, sum(sizes), steps, 5) if steps else (2, sum(sizes), 5)
    x_a, x_b = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rank = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    mean = 2.0 * rank.view(-1, *[1] * (x_a.ndim - 1))
    return (x_a + mean).to(dtype), (x_a + 0.3 * x_b + mean).to(dtype)


def chosen(steps: int, width: int) -> dict[str, CollapseRegularizer]:
    if steps:
        return TIMED
    # Whitening needs more samples than dimensions.
    return {name: part for name, part in REGULARIZERS.items() if width < 8 or not name.startswith("wmse")}


def terms_and_gradients(net: torch.nn.Module, x_a: Tensor, x_b: Tensor, parts: dict) -> Outcome:
    outcomes = {}
    for name, part in parts.items():
        net.zero_grad()
        terms = copy.deepcopy(part).compute(net(x_a), net(x_b))
        terms.total().backward()
        outcomes[name] = named_terms(terms), [p.grad.clone() for p in net.parameters()]
    return outcomes


def on_rank(sizes: list[int], width: int, steps: int, dtype: torch.dtype, under_ddp: bool) -> Outcome:
    x_a, x_b = (x.split(sizes)[dist.rank()] for x in data(sizes, steps, dtype))
    net = network(width, dtype)
    parts = chosen(steps, width)
    if under_ddp:
        return terms_and_gradients(DistributedDataParallel(net), x_a, x_b, parts)
    outcomes = terms_and_gradients(net, x_a, x_b, parts)
    for _, grads in outcomes.values():
        for grad in grads:
            torch.distributed.all_reduce(grad)
            grad /= len(sizes)
    return outcomes


def compare(
    sizes: list[int], width: int, *, steps: int = 0, single: bool = False, under_ddp: bool = False
) -> None:
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-10)
    parts = chosen(steps, width)
    expected = terms_and_gradients(network(width, dtype), *data(sizes, steps, dtype), parts)
    for outcome in run_on_ranks(on_rank, len(sizes), sizes, width, steps, dtype, under_ddp):
        assert outcome.keys() == expected.keys() == parts.keys()
        for name, (terms, grads) in outcome.items():
            expected_terms, expected_grads = expected[name]
            for term, value in expected_terms.items():
                torch.testing.assert_close(
                    terms[term], value, rtol=tolerance, atol=tolerance, msg=f"{name}.{term}"
                )
            # A bias moves all samples alike, which few terms see: its gradient may be rounding error, and all are
            # measured against the norm of the weight's.
            for grad, expected_grad in zip(grads, expected_grads, strict=True):
                error = (grad - expected_grad).norm() / expected_grads[0].norm()
                assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_two_unequal_ranks_equal_one_process(single: bool) -> None:
    compare([6, 13], 4, single=single)


def test_two_ranks_of_fewer_samples_than_dimensions() -> None:
    compare([6, 13], 300)


def test_a_rank_without_samples() -> None:
    compare([17, 0], 4)


def test_statistics_over_time_on_two_ranks() -> None:
    compare([3, 5], 4, steps=6)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_three_unequal_ranks_under_ddp_equal_one_process(single: bool) -> None:
    compare([4, 11, 7], 4, single=single, under_ddp=True)


@pytest.mark.slow
@pytest.mark.parametrize("width", [4, 300])
def test_three_ranks_over_time_and_of_more_dimensions(width: int) -> None:
    compare([4, 11, 7], width, single=width == 300)
    compare([4, 1, 3], width, steps=5, under_ddp=True)
