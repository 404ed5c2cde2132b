"""The contract check passes a user's sound planner and names what is broken in a broken one."""

import dataclasses
import math

import pytest
import torch

from torchjepa.planning import CEM, ActionSpace, Plan
from torchjepa.testing import check_planner

GOOD = CEM(ActionSpace(2, -1, 1), num_samples=60, num_iterations=4)


class Sound:
    """A user's own planner without our base; each class below breaks it in one place."""

    def plan(self, dynamics, cost, state, *, horizon, generator):
        return self.changed(GOOD.plan(dynamics, cost, state, horizon=horizon, generator=generator))

    def changed(self, plan):
        return plan


class NoPlan(Sound):
    def changed(self, plan):
        return plan.actions


class TransposedActions(Sound):
    def changed(self, plan):
        return dataclasses.replace(plan, actions=plan.actions.transpose(1, 2))


class OtherDtype(Sound):
    def changed(self, plan):
        return dataclasses.replace(plan, actions=plan.actions.half())


class WideActions(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        def widened(state, action):
            return dynamics(state, action.double())

        return super().plan(widened, cost, state, horizon=horizon, generator=generator)


class NarrowCost(Sound):
    def changed(self, plan):
        return dataclasses.replace(plan, cost=plan.cost.bfloat16())


class OutOfBounds(Sound):
    def changed(self, plan):
        return dataclasses.replace(plan, actions=plan.actions * 3)


class OtherCost(Sound):
    def changed(self, plan):
        return dataclasses.replace(plan, cost=plan.cost + 0.1)


class GlobalDraws(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        torch.rand(1)
        return super().plan(dynamics, cost, state, horizon=horizon, generator=generator)


class Unseeded(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        generator = torch.Generator()
        generator.seed()
        return super().plan(dynamics, cost, state, horizon=horizon, generator=generator)


class Backwards(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        plan = super().plan(dynamics, lambda x: -cost(x), state, horizon=horizon, generator=generator)
        return dataclasses.replace(plan, cost=-plan.cost)


class OwnDraws(Sound):
    """Draws for each problem in turn, so that the second gets others when alone."""

    def plan(self, dynamics, cost, state, *, horizon, generator):
        plans = [
            GOOD.plan(dynamics, cost, row[None], horizon=horizon, generator=generator)
            for row in state.unbind(0)
        ]
        return Plan(torch.cat([plan.actions for plan in plans]), torch.cat([plan.cost for plan in plans]))


class Graph(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        plan = super().plan(dynamics, cost, state, horizon=horizon, generator=generator)
        trajectory = torch.zeros(len(state), 1, *state.shape[1:], dtype=state.dtype)
        return dataclasses.replace(plan, cost=plan.cost + 0 * cost(trajectory))


class LeavesGradients(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        found = cost(torch.zeros(len(state), 1, *state.shape[1:], dtype=state.dtype))
        if found.requires_grad:
            found.sum().backward()
        return super().plan(dynamics, cost, state, horizon=horizon, generator=generator)


class TakesNan(Sound):
    """NaN is less than anything to this one's eye."""

    def plan(self, dynamics, cost, state, *, horizon, generator):
        def eager(trajectory):
            found = cost(trajectory)
            return found.nan_to_num(-1e9)

        plan = super().plan(dynamics, eager, state, horizon=horizon, generator=generator)
        bad = plan.cost < -1e8
        return dataclasses.replace(plan, cost=plan.cost.masked_fill(bad, math.nan))


class AnyHorizon(Sound):
    def plan(self, dynamics, cost, state, *, horizon, generator):
        return super().plan(dynamics, cost, state, horizon=max(int(horizon), 1), generator=generator)


def test_a_sound_planner_passes():
    check_planner(Sound(), 2, low=-1, high=1)
    check_planner(Sound(), 2, low=(-1, -1), high=(1, 1), horizon=2)


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (NoPlan, "plan must give a Plan, got Tensor"),
        (TransposedActions, r"actions must be \(3, 4, 2\), got \(3, 2, 4\)"),
        (OtherDtype, "actions must be torch.float32 on cpu as the state, got torch.float16"),
        (
            WideActions,
            r"actions \[b, 2\] on the state's device and in its dtype, torch.float32, got .*float64",
        ),
        (NarrowCost, "cost must be float32 or wider, got torch.bfloat16"),
        (OutOfBounds, r"actions must lie within \[-1.0, -1.0\] and \[1.0, 1.0\]"),
        (OtherCost, "cost must be that of the actions"),
        (GlobalDraws, "planning moved a global random state"),
        (Unseeded, "two plans from equally seeded generators differ"),
        (Backwards, "on average with random actions; is a sign wrong?"),
        (OwnDraws, "problem 1 has another plan alone than beside others"),
        (Graph, "must be detached from the graph"),
        (LeavesGradients, "planning left a gradient in a parameter"),
        (TakesNan, "where some candidates cost NaN the plan must be one that does not"),
        (AnyHorizon, "a horizon of 0 must be a ValueError, but it was accepted"),
    ],
)
def test_what_is_broken_is_named(planner, message):
    with pytest.raises(AssertionError, match=f"{planner.__name__}: .*{message}"):
        check_planner(planner(), 2, low=-1, high=1)
