"""Planners keep to the state's device and dtype, with a CPU generator, and read nothing back while they search."""

import pytest
import torch

from tests.planning.planners import ALL
from torchjepa.energy import L2Energy
from torchjepa.planning import ActionSpace, GoalCost
from torchjepa.planning.problem import Problem

SPACE = ActionSpace(2, low=-1, high=1)


def plan_on(name, device, dtype=torch.float32):
    goal = GoalCost(L2Energy(), torch.full((2, 2), 0.5, device=device, dtype=dtype), over="sum")
    return ALL[name](SPACE).plan(
        lambda state, action: state + action,
        goal,
        torch.zeros(2, 2, device=device, dtype=dtype),
        horizon=3,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("name", ALL)
def test_a_search_reads_nothing_from_the_device(name, monkeypatch):
    # The meta device has no numbers: whatever asks for one fails. The end of a plan looks once whether it is finite.
    monkeypatch.setattr(
        Problem, "plan", lambda self, found, info: (found.actions.to(self.dtype), found.cost, info)
    )
    actions, cost, info = plan_on(name, "meta", torch.bfloat16)
    assert (actions.device.type, actions.dtype, actions.shape) == ("meta", torch.bfloat16, (2, 3, 2))
    assert {x.device.type for x in (cost, *vars(info).values())} == {"meta"}
    assert cost.dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_draws_do_not_follow_the_dtype(name):
    single, double = (plan_on(name, "cpu", dtype).actions for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, atol=2e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_cuda_plans_as_the_cpu_does(name):
    there, here = (plan_on(name, device).actions for device in ("cuda", "cpu"))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=0)
