"""Model-predictive control: when it plans, from where, and with any planner."""

import pytest
import torch

from tests.planning.planners import ALL
from torchjepa.planning import CEM, MPC, ActionSpace, Plan
from torchjepa.planning.mpc import shifted

SPACE = ActionSpace(2, low=-0.3, high=0.3)


def dynamics(state, action):
    return state + action


def cost(trajectory):
    return (trajectory - 1.0).square().sum((1, 2))


def controller(planner, **options):
    options = {"horizon": 4, "generator": torch.Generator().manual_seed(0)} | options
    return MPC(planner, dynamics, cost, **options)


@pytest.mark.parametrize("name", ALL)
def test_any_planner_drives_there_and_repeats(name):
    ends = []
    for _ in range(2):
        mpc, state = controller(ALL[name](SPACE)), torch.zeros(2, 2)
        for _ in range(8):
            state = dynamics(state, mpc.step(state))
        ends.append(state)
    assert torch.equal(*ends)
    assert float((ends[0] - 1.0).abs().max()) < 0.25


class Watched:
    """Notes what it was asked."""

    def __init__(self):
        self.starts = []

    def plan(self, dynamics, cost, state, *, horizon, generator, start=None):
        self.starts.append(start)
        return CEM(SPACE, num_samples=10, num_elites=3).plan(
            dynamics, cost, state, horizon=horizon, generator=generator, start=start
        )


def test_plans_start_from_the_rest_of_the_last():
    watched = Watched()
    mpc = controller(watched, replan_every=2)
    state, plans = torch.zeros(1, 2), []
    for step in range(6):
        action = mpc.step(state)
        assert torch.equal(action, mpc.plan.actions[:, step % 2])
        plans.append(mpc.plan)
        state = dynamics(state, action)
    assert len(watched.starts) == 3
    assert watched.starts[0] is None
    assert torch.equal(watched.starts[1], shifted(plans[0].info.sequences, 2))
    assert torch.equal(watched.starts[2], shifted(plans[2].info.sequences, 2))
    mpc.reset()
    assert mpc.plan is None
    mpc.step(state)
    assert watched.starts[3] is None


def test_shifting_repeats_the_last_action():
    sequence = torch.arange(4.0)[:, None]
    assert shifted(sequence, 1)[:, 0].tolist() == [1, 2, 3, 3]
    assert shifted(sequence[None], 3)[0, :, 0].tolist() == [3, 3, 3, 3]


class Plain:
    """A planner that can start somewhere and tells nothing but its actions."""

    def __init__(self):
        self.starts = []

    def plan(self, dynamics, cost, state, *, horizon, generator, start=None):
        self.starts.append(start)
        actions = torch.arange(float(horizon))[:, None].expand(len(state), horizon, 2)
        return Plan(actions, torch.zeros(len(state)))


def test_without_sequences_a_plan_starts_from_the_last_actions():
    plain = Plain()
    mpc = controller(plain)
    for _ in range(2):
        mpc.step(torch.zeros(1, 2))
    assert plain.starts[1][0, 0, :, 0].tolist() == [1, 2, 3, 3]


class Bare:
    """A planner of the contract and no more."""

    def plan(self, dynamics, cost, state, *, horizon, generator):
        return Plan(torch.zeros(len(state), horizon, 2), torch.zeros(len(state)))


def test_a_planner_without_start_works_without_warm_start():
    with pytest.raises(ValueError, match=r"takes `start`, got Bare; pass warm_start=False"):
        controller(Bare())
    mpc = controller(Bare(), warm_start=False)
    for _ in range(2):
        assert mpc.step(torch.zeros(3, 2)).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"horizon": 0}, "horizon must be an integer of at least 1"),
        ({"replan_every": 0}, "replan_every must be an integer of at least 1"),
        ({"replan_every": 5}, "replan_every must be at most the horizon 4, got 5"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=f"MPC: {message}"):
        controller(CEM(SPACE), **changed)
