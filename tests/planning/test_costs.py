"""Goal costs against loops with every energy; a price on actions; the running sum equals the whole."""

import numpy as np
import pytest
import torch

from torchjepa.energy import CosineEnergy, L2Energy, LpEnergy, SmoothL1Energy
from torchjepa.planning import (
    CEM,
    Acted,
    ActionPenalty,
    ActionSpace,
    GoalCost,
    candidate_costs,
    remember_actions,
    rollout,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("over", ["last", "sum"])
@pytest.mark.parametrize("energy", [L2Energy(), LpEnergy(), SmoothL1Energy(0.5), CosineEnergy()])
@pytest.mark.parametrize("tokens", [(), (3,), (2, 3)])
def test_equals_a_loop_over_problems_candidates_and_steps(over, energy, tokens):
    goal, trajectory = normal(2, *tokens, 4), normal(6, 5, *tokens, 4, seed=1)
    cost = GoalCost(energy, goal, over=over)
    expected = []
    for row in range(6):
        steps = trajectory[row, -1:] if over == "last" else trajectory[row]
        # Rows 0 to 2 are of the first problem.
        expected.append(
            sum(float(energy(state.reshape(-1, 4), goal[row // 3].reshape(-1, 4))) for state in steps)
        )
    np.testing.assert_allclose(cost(trajectory), expected)


def test_one_goal_may_be_everybodys():
    goal, trajectory = normal(1, 4), normal(6, 5, 4, seed=1)
    one, many = (GoalCost(L2Energy(), x)(trajectory) for x in (goal, goal.expand(3, -1)))
    assert torch.equal(one, many)


@pytest.mark.parametrize("over", ["last", "sum"])
def test_the_running_sum_is_the_cost_of_the_trajectory(over):
    def dynamics(state, action):
        return torch.tanh(state + action)

    goal = GoalCost(L2Energy(), normal(2, 3), over=over)
    priced = ActionPenalty(goal, weight=0.3)
    state, candidates = normal(2, 3, seed=1), normal(2, 4, 5, 3, seed=2)
    start = Acted(state, torch.zeros(2, 3))
    running = candidate_costs(remember_actions(dynamics), priced, start, candidates)
    plain = lambda trajectory: priced(trajectory)  # noqa: E731, a function has no step_cost
    whole = candidate_costs(remember_actions(dynamics), plain, start, candidates)
    torch.testing.assert_close(running, whole)
    price = 0.3 * candidates.square().sum((2, 3))
    torch.testing.assert_close(running, candidate_costs(dynamics, goal, state, candidates) + price)


def test_remembered_actions_stand_beside_the_states_they_led_to():
    actions = normal(2, 3, 1).float()
    trajectory = rollout(
        remember_actions(lambda x, a: x + a), Acted(torch.zeros(2, 1), torch.zeros(2, 1)), actions
    )
    assert torch.equal(trajectory.action, actions)
    torch.testing.assert_close(trajectory.state, actions.cumsum(1))


def test_a_dearer_action_is_a_smaller_one():
    goal = GoalCost(L2Energy(), torch.ones(1, 1))
    sizes = []
    for weight in (0.5, 1.0, 10.0):
        plan = CEM(ActionSpace(1, -1, 1)).plan(
            remember_actions(lambda x, a: x + a),
            ActionPenalty(goal, weight),
            Acted(torch.zeros(1, 1), torch.zeros(1, 1)),
            horizon=2,
            generator=torch.Generator().manual_seed(0),
        )
        # (1 - 2a)^2 + 2 w a^2 is least at a = 1 / (2 + w).
        torch.testing.assert_close(plan.actions, torch.full((1, 2, 1), 1 / (2 + weight)), atol=0.03, rtol=0)
        sizes.append(float(plan.actions.abs().sum()))
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("shape", [(6, 5, 3), (5, 5, 4), (6, 5, 2, 4)])
def test_states_of_another_shape_than_the_goal_are_refused(shape):
    with pytest.raises(ValueError, match=r"GoalCost: states must have shape \[2 x candidates, \*\(4,\)\]"):
        GoalCost(L2Energy(), torch.zeros(2, 4))(torch.zeros(shape))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="over must be 'last' or 'sum', got 'mean'"):
        GoalCost(L2Energy(), torch.zeros(2, 4), over="mean")
    with pytest.raises(ValueError, match="weight must be a number from 0 to"):
        ActionPenalty(GoalCost(L2Energy(), torch.zeros(2, 4)), -1.0)
    with pytest.raises(ValueError, match=r"cost must have a method step_cost\(state, step, horizon\)"):
        ActionPenalty(lambda trajectory: trajectory.sum((1, 2)), 1.0)
