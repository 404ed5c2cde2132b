"""Global statistics against one process on the joined batch."""

import pytest
import torch
from torch import nn

from torchjepa import dist
from torchjepa.nn import GlobalBatchNorm1d, GlobalBatchNorm2d
from torchjepa.testing import run_on_ranks

KINDS = {
    "1d": (GlobalBatchNorm1d, nn.BatchNorm1d, (7, 3)),
    "sequence": (GlobalBatchNorm1d, nn.BatchNorm1d, (7, 3, 4)),
    "2d": (GlobalBatchNorm2d, nn.BatchNorm2d, (7, 3, 2, 5)),
}

CUTS = [(0, 2, 7), (0, 6, 7)]


def joined(shape, offset=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x, weights = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return (x + offset).to(dtype), weights.to(dtype)


def run(norm, x, weights):
    x = x.clone().requires_grad_()
    outs = [norm(x), norm(2 * x + 1)]
    (weights * (outs[0].sin() + outs[1].square())).sum().backward()
    parameters = [p.grad for p in norm.parameters()]
    return outs[0].detach(), x.grad, *parameters, *norm.buffers(), norm.eval()(x).detach()


def run_rows(make, shape, cuts, offset=0.0, dtype=torch.float64):
    x, weights = joined(shape, offset, dtype)
    rows = slice(cuts[dist.rank()], cuts[dist.rank() + 1])
    return run(make(3).to(dtype), x[rows], weights[rows])


def on_a_rank():
    results = {
        (kind, cuts): run_rows(KINDS[kind][0], KINDS[kind][2], cuts) for kind in KINDS for cuts in CUTS
    }
    results["far"] = run_rows(GlobalBatchNorm1d, (7, 3), CUTS[0], 1000.0, torch.float32)
    low = GlobalBatchNorm1d(3)
    results["dtypes"] = low(joined((6, 3), dtype=torch.bfloat16)[0]).dtype, low.running_mean.dtype
    return results


@pytest.fixture(scope="module")
def ranks():
    return run_on_ranks(on_a_rank, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_alone_it_is_torch(kind):
    make, reference, shape = KINDS[kind]
    for ours, theirs in zip(
        run(make(3).double(), *joined(shape)), run(reference(3).double(), *joined(shape))
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", CUTS)
def test_two_ranks_of_unequal_batches_are_one_process(ranks, kind, cuts):
    _, reference, shape = KINDS[kind]
    expected = run(reference(3).double(), *joined(shape))
    results = [rank[kind, cuts] for rank in ranks]
    for index, name in [(0, "output"), (1, "gradient"), (-1, "eval")]:
        ours = torch.cat([result[index] for result in results])
        torch.testing.assert_close(ours, expected[index], msg=lambda text, name=name: f"{name}: {text}")
    for index in (2, 3):
        torch.testing.assert_close(results[0][index] + results[1][index], expected[index])
    for index in (4, 5, 6):
        for result in results:
            torch.testing.assert_close(result[index], expected[index])


def test_float32_keeps_the_variance_of_inputs_far_from_zero(ranks):
    expected = run(nn.BatchNorm1d(3).double(), *joined((7, 3), 1000.0))
    ours = torch.cat([rank["far"][0] for rank in ranks]).double()
    torch.testing.assert_close(ours, expected[0], atol=2e-3, rtol=0)


def test_bfloat16_in_bfloat16_out_with_float32_statistics(ranks):
    assert [rank["dtypes"] for rank in ranks] == [(torch.bfloat16, torch.float32)] * 2


def test_without_affine_part():
    norm = GlobalBatchNorm1d(3, affine=False)
    assert not list(norm.parameters())
    torch.testing.assert_close(norm(joined((7, 3))[0].float()).mean(0), torch.zeros(3), atol=1e-6, rtol=0)


def test_weights_move_between_torch_and_us():
    norm, reference = GlobalBatchNorm2d(4), nn.BatchNorm2d(4)
    assert norm.load_state_dict(reference.state_dict()).missing_keys == []


def test_one_value_a_feature_has_no_variance():
    with pytest.raises(ValueError, match=r"more than one value for each feature, got \(1, 3\); use a batch"):
        GlobalBatchNorm1d(3)(torch.randn(1, 3))
    assert GlobalBatchNorm2d(3)(torch.randn(1, 3, 2, 1)).shape == (1, 3, 2, 1)
    assert GlobalBatchNorm1d(3).eval()(torch.randn(1, 3)).shape == (1, 3)
