"""The moving average against its formula, on numbers, tensors, pairs and modules."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchjepa.ema import EMA, CosineMomentumSchedule, LinearMomentumSchedule


def modules() -> tuple[nn.Module, nn.Module]:
    """A target and an online network with parameters, running statistics, a counter and a mask."""
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float64))
    target.register_buffer("seen", torch.tensor([True, False]))
    target.register_buffer("table", torch.randn(3), persistent=False)
    online = copy.deepcopy(target)
    online[1](torch.randn(8, 4))
    with torch.no_grad():
        for tensor in (*online.parameters(), online.table):
            tensor.add_(torch.randn_like(tensor))
        online.seen.logical_not_()
    return target, online


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@given(m=st.floats(0, 1), target=st.floats(-1e6, 1e6), online=st.floats(-1e6, 1e6))
def test_step_on_numbers(m: float, target: float, online: float) -> None:
    assert EMA(m).step(target, online, 0) == m * target + (1 - m) * online


@settings(deadline=None, max_examples=50)
@given(m=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_update_tensor_equals_the_formula(m: float, seed: int) -> None:
    target, online = np.random.default_rng(seed).normal(size=(2, 3, 2))
    before = torch.from_numpy(target.copy())
    new = EMA(m).update_tensor(before, torch.from_numpy(online), 0)
    np.testing.assert_allclose(new.numpy(), m * target + (1 - m) * online, rtol=1e-12, atol=1e-14)
    assert new.data_ptr() != before.data_ptr()
    np.testing.assert_array_equal(before.numpy(), target)


def test_update_tensor_carries_no_graph_and_copies_integers() -> None:
    online = torch.ones(2, requires_grad=True)
    assert not EMA(0.5).update_tensor(torch.zeros(2), online, 0).requires_grad
    for dtype in (torch.int64, torch.bool):
        new = EMA(0.9).update_tensor(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype), 0)
        assert torch.equal(new, torch.ones(2, dtype=dtype))


def test_update_tensor_pairs_keeps_the_order_of_mixed_dtypes() -> None:
    pairs = [
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)),
        (torch.tensor(3), torch.tensor(7)),
        (torch.ones(1), torch.zeros(1)),
        (torch.zeros(1, dtype=torch.complex64), torch.ones(1, dtype=torch.complex64)),
    ]
    new = EMA(0.75).update_tensor_pairs(iter(pairs), 0)
    assert [tensor.tolist() for tensor in new] == [[0.25] * 2, [0.25] * 3, 7, [0.75], [0.25 + 0j]]
    assert EMA(0.5).update_tensor_pairs([], 0) == []


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_update_moves_every_tensor_in_place(momentum: float) -> None:
    target, online = modules()
    before = {name: tensor.detach().clone() for name, tensor in tensors(target).items()}
    identity = {name: tensor.data_ptr() for name, tensor in tensors(target).items()}
    frozen = copy.deepcopy(online)
    EMA(momentum).update_(target, online, 0)
    assert len(before) == 11
    for name, tensor in tensors(target).items():
        source = tensors(online)[name]
        if tensor.is_floating_point():
            expected = momentum * before[name].double() + (1 - momentum) * source.detach().double()
            torch.testing.assert_close(tensor.detach().double(), expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, source)
        assert tensor.data_ptr() == identity[name]
        assert torch.equal(source, tensors(frozen)[name])
    assert target[1].num_batches_tracked.item() == 1
    assert target.seen.tolist() == [False, True]


def test_the_extremes_are_exact() -> None:
    target, online = modules()
    start = copy.deepcopy(target)
    EMA(1.0).update_(target, online, 0)
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, start.get_parameter(name))
    EMA(0.0).update_(target, online, 0)
    for name, tensor in tensors(target).items():
        assert torch.equal(tensor, tensors(online)[name])


def test_update_uses_the_schedule_of_the_step() -> None:
    target, online = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = EMA(0.1, schedule=lambda step: 0.5 if step == 3 else 1.0)
    before = target.weight.detach().clone()
    ema.update_(target, online, 2)
    assert torch.equal(target.weight, before)
    ema.update_(target, online, 3)
    torch.testing.assert_close(target.weight.detach(), (before + online.weight.detach()) / 2)


def test_update_leaves_autograd_alone() -> None:
    target, online = modules()
    target.requires_grad_(False)
    loss = online[0](torch.ones(1, 3)).sum()
    EMA(0.5).update_(target, online, 0)
    loss.backward()
    assert online[0].weight.grad is not None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target.parameters())


def test_tied_parameters_move_once() -> None:
    online = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    online[1].weight = online[0].weight
    target = copy.deepcopy(online)
    with torch.no_grad():
        online[0].weight.add_(1.0)
    before = target[0].weight.detach().clone()
    EMA(0.75).update_(target, online, 0)
    torch.testing.assert_close(target[1].weight.detach(), before + 0.25)


def test_tensors_are_those_of_the_moment() -> None:
    # Replaced, converted and reloaded tensors between two updates: nothing may be remembered from the first.
    target, online = modules()
    EMA(0.5).update_(target, online, 0)
    for module in (target, online):
        module.double()
        module[0].weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)
        module.append(nn.Linear(1, 1, dtype=torch.float64))
    before = {name: tensor.detach().clone() for name, tensor in tensors(target).items()}
    EMA(0.75).update_(target, online, 1)
    assert len(before) == 13
    for name, tensor in tensors(target).items():
        if tensor.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * tensors(online)[name]
            torch.testing.assert_close(tensor.detach(), expected.detach(), rtol=1e-12, atol=1e-14)


def with_a_missing_bias(module: nn.Sequential) -> None:
    module[0].register_parameter("extra", None)


def with_another_order(module: nn.Sequential) -> None:
    module[0]._parameters = dict(reversed(module[0]._parameters.items()))
    module._modules = dict(reversed(module._modules.items()))


def with_itself_inside(module: nn.Sequential) -> None:
    module[0].whole = module


@pytest.mark.parametrize("change", [with_a_missing_bias, with_another_order, with_itself_inside])
@pytest.mark.parametrize("which", ["target", "online", "both"])
def test_modules_that_differ_in_what_holds_no_tensor(change, which: str) -> None:
    target, online = modules()
    for name, module in (("target", target), ("online", online)):
        if which in (name, "both"):
            change(module)
    expected = {name: tensor.detach().clone() for name, tensor in tensors(target).items()}
    for name, tensor in tensors(online).items():
        expected[name] = expected[name].lerp(tensor.detach(), 0.25) if tensor.is_floating_point() else tensor
    EMA(0.75).update_(target, online, 0)
    for name, tensor in tensors(target).items():
        torch.testing.assert_close(tensor.detach(), expected[name])


def test_tensors_tied_on_one_side_only_are_refused() -> None:
    free = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied = copy.deepcopy(free)
    tied[1].weight = tied[0].weight
    for target, online in ((free, tied), (tied, free)):
        with pytest.raises(ValueError, match=r"only the (target|online module) has \['1.weight'\]"):
            EMA(0.5).update_(target, online, 0)


def test_modules_that_do_not_match_are_refused_and_left_alone() -> None:
    target, online = modules()
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=r"same module; make the target with copy.deepcopy"):
        EMA(0.5).update_(target, target, 0)
    with pytest.raises(
        ValueError, match=r"only the online module has \['module.0.bias'.*pass the bare modules"
    ):
        EMA(0.5).update_(target, nn.ModuleDict({"module": online}), 0)
    online[2] = nn.Linear(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"shapes of '2.weight' differ, \(2, 4\) in the target and \(3, 4\)"):
        EMA(0.5).update_(target, online, 0)
    online[2] = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"dtypes of '2.weight' differ, torch.float64 .* torch.float32"):
        EMA(0.5).update_(target, online, 0)
    with pytest.raises(ValueError, match=r"devices of '0.weight' differ, cpu in the target and meta"):
        EMA(0.5).update_(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2, device="meta")), 0)
    for name, tensor in tensors(target).items():
        assert torch.equal(tensor, tensors(before)[name])


def test_pairs_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes of pair 1 differ, \(1,\) in the target and \(3,\) online"):
        EMA(0.5).update_tensor_pairs([(torch.ones(1), torch.ones(1)), (torch.ones(1), torch.ones(3))], 0)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_the_unit_interval(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"EMA: momentum must lie in \[0, 1\], got"):
        EMA(momentum)
    with pytest.raises(ValueError, match=r"EMA: momentum at step 7 must lie in \[0, 1\], got"):
        EMA(0.5, schedule=lambda step: momentum).get_momentum(7)
    with pytest.raises(ValueError, match=r"LinearMomentumSchedule: base_momentum must lie in \[0, 1\]"):
        LinearMomentumSchedule(momentum, total_steps=10)
    with pytest.raises(ValueError, match=r"CosineMomentumSchedule: final_momentum must lie in \[0, 1\]"):
        CosineMomentumSchedule(0.5, momentum, total_steps=10)


def test_steps_out_of_range() -> None:
    for get in (
        EMA(0.5).get_momentum,
        CosineMomentumSchedule(0.5, 1.0, 10),
        LinearMomentumSchedule(0.5, 1.0, 10),
    ):
        with pytest.raises(ValueError, match="step must be at least 0, got -1"):
            get(-1)
    for schedule in (CosineMomentumSchedule, LinearMomentumSchedule):
        with pytest.raises(ValueError, match="total_steps must be given and at least 0"):
            schedule(0.5)


def test_golden_momentum() -> None:
    cosine = EMA.with_cosine_schedule(0.996, 10_000)
    assert cosine.get_momentum(0) == pytest.approx(0.996, abs=1e-15)
    assert cosine.get_momentum(5_000) == pytest.approx(0.998, abs=1e-12)
    assert 0.997 < cosine.get_momentum(5_000) < 0.999
    assert 1.0 - 1e-3 < cosine.get_momentum(9_999) < 1.0
    assert cosine.get_momentum(10**6) == cosine.get_momentum(9_999)
    linear = LinearMomentumSchedule(0.996, total_steps=187_500)
    assert linear(0) == 0.996
    assert linear(187_499) == pytest.approx(0.99999997867, abs=5e-12)
    assert linear(187_500) == linear(10**6) == 1.0
    stretched = LinearMomentumSchedule(
        0.998, total_steps=112_500
    )  # V-JEPA: 90,000 steps of 1.25 times as many
    assert stretched(89_999) == pytest.approx(0.9996, abs=1e-7)
    assert EMA(0.99925).get_momentum(10**9) == 0.99925


def test_no_steps_at_all_give_the_final_momentum() -> None:
    assert CosineMomentumSchedule(0.9, 0.99, 0)(0) == 0.99
    assert LinearMomentumSchedule(0.9, 0.99, 0)(0) == 0.99


@given(base=st.floats(0, 1), final=st.floats(0, 1), total=st.integers(1, 1000), step=st.integers(0, 2000))
def test_schedules_stay_between_their_ends(base: float, final: float, total: int, step: int) -> None:
    low, high = min(base, final) - 1e-12, max(base, final) + 1e-12
    for schedule in (CosineMomentumSchedule(base, final, total), LinearMomentumSchedule(base, final, total)):
        assert low <= schedule(step) <= high
        assert schedule(0) == pytest.approx(base)
        ahead = schedule(step + 1) - schedule(step)
        assert ahead * (final - base) >= -1e-12
