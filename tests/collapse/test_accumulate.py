"""Micro-batches of other sizes and other means give the gradient of the joined batch, for every regularizer."""

import copy

import pytest
import torch
from torch import Tensor, nn

from torchjepa import dist
from torchjepa.collapse import (
    WMSE,
    BarlowTwins,
    CollapseRegularizer,
    LeJEPA,
    SIGReg,
    Sum,
    VCReg,
    VICReg,
    accumulate_gradients,
    named_terms,
)
from torchjepa.testing import run_on_ranks

REGULARIZERS: dict[str, CollapseRegularizer] = {
    "vicreg": VICReg(),
    "vicreg_official": VICReg.official(),
    "barlow_twins": BarlowTwins(),
    "barlow_twins_official": BarlowTwins.official(),
    "vcreg": VCReg(),
    "sigreg": SIGReg(num_slices=16),
    "wmse": WMSE(),
    "sum": Sum((VICReg(), SIGReg(num_slices=16)), (1.0, 0.5)),
    "lejepa": LeJEPA(regularizer=SIGReg(num_slices=16)),
}
SIZES = [5, 2, 9]


def network(dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 4, bias=False))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) / 2
    return net


def micro_batches(dtype: torch.dtype, sizes: list[int], seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple((torch.randn(2, size, 5, generator=generator, dtype=torch.float64) + place - seed).to(dtype))
        for place, size in enumerate(sizes)
    ]


def both(net: nn.Module):
    return lambda x: (net(x[0]), net(x[1]))


def gradients(net: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    return found


def joined(regularizer: CollapseRegularizer, net: nn.Module, batches: list) -> tuple[dict, list[Tensor]]:
    terms = copy.deepcopy(regularizer).compute(*(net(torch.cat(view)) for view in zip(*batches)))
    terms.total().backward()
    return named_terms(terms), gradients(net)


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(ours, expected, strict=True):
        assert (mine - other).norm() < tolerance * max(each.norm() for each in expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_unequal_micro_batches_give_the_gradient_of_the_joined_batch(name, dtype, tolerance):
    regularizer, net, batches = REGULARIZERS[name], network(dtype), micro_batches(dtype, SIZES)
    expected_terms, expected = joined(regularizer, net, batches)
    terms = accumulate_gradients(copy.deepcopy(regularizer), both(net), batches)
    assert not terms.total().requires_grad
    assert type(terms) is type(copy.deepcopy(regularizer).compute(*both(net)(batches[0])))
    for key, value in named_terms(terms).items():
        torch.testing.assert_close(value, expected_terms[key], rtol=10 * tolerance, atol=tolerance)
    assert_near(gradients(net), expected, tolerance)
    # Micro-batch by micro-batch it is another gradient altogether.
    for batch in batches[::2]:
        (copy.deepcopy(regularizer).loss(*both(net)(batch)) / 2).backward()
    assert max((a - b).norm() / b.norm() for a, b in zip(gradients(net), expected)) > 1e-2


def on_rank(name: str) -> list[Tensor]:
    regularizer, net, batches = (
        REGULARIZERS[name],
        network(torch.float64),
        micro_batches(torch.float64, SIZES),
    )
    mine = batches[:2] if dist.rank() == 0 else batches[2:]
    accumulate_gradients(copy.deepcopy(regularizer), both(net), mine)
    found = gradients(net)
    for gradient in found:
        gradient /= dist.world_size()
        torch.distributed.all_reduce(gradient)
    return found


def on_rank_all() -> dict[str, list[Tensor]]:
    return {name: on_rank(name) for name in REGULARIZERS}


def test_two_ranks_with_other_numbers_of_micro_batches_give_it_too():
    batches = micro_batches(torch.float64, SIZES)
    for found in run_on_ranks(on_rank_all, 2):
        for name, gradient in found.items():
            expected = joined(REGULARIZERS[name], network(torch.float64), batches)[1]
            assert_near(gradient, expected, 1e-10)


def test_both_passes_drop_the_same():
    net, batches = network(torch.float64, dropout=0.5), micro_batches(torch.float64, SIZES)
    torch.manual_seed(3)
    views = [both(net)(batch) for batch in batches]
    VICReg().loss(*(torch.cat(view) for view in zip(*views))).backward()
    after, expected = torch.rand(()), gradients(net)
    torch.manual_seed(3)
    accumulate_gradients(VICReg(), both(net), batches)
    assert_near(gradients(net), expected, 1e-10)
    assert torch.equal(torch.rand(()), after)


def test_gradients_are_added_and_a_scaled_loss_scales_them_once():
    net, batches = network(torch.float64), micro_batches(torch.float64, SIZES)
    _, expected = joined(VICReg(), net, batches)
    accumulate_gradients(VICReg(), both(net), batches)
    accumulate_gradients(VICReg(), both(net), iter(batches), backward=lambda loss: (1024 * loss).backward())
    assert_near(gradients(net), [1025 * gradient for gradient in expected], 1e-10)


def test_one_view_of_tokens():
    net, x = network(torch.float64), torch.randn(3, 4, 7, 5, dtype=torch.float64)
    accumulate_gradients(VCReg(), net, list(x))
    ours = gradients(net)
    VCReg().loss(net(x.flatten(0, 1))).backward()
    assert_near(ours, gradients(net), 1e-10)


def test_mistakes_are_named():
    net, batches = network(torch.float64), micro_batches(torch.float64, [4, 4])
    with pytest.raises(ValueError, match="there are no micro-batches"):
        accumulate_gradients(VICReg(), both(net), [])
    with pytest.raises(ValueError, match=r"as many embeddings, got \[2, 1\]"):
        accumulate_gradients(VICReg(), lambda x: tuple(x[:1]) if x is batches[1] else tuple(x), batches)
    with pytest.raises(ValueError, match=r"VICReg: takes 2 view\(s\)"):
        accumulate_gradients(VICReg(), net, [x for x, _ in batches])
