"""Rollouts and their costs against a double loop, values and gradients; chunks; states of any form."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchjepa.energy import LpEnergy
from torchjepa.planning import GoalCost, candidate_costs, rollout

NET = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def dynamics(state, action):
    return state + NET(torch.cat([state, action], dim=1))


def cost(trajectory):
    return (trajectory.square() * torch.arange(1.0, 4.0)).mean((1, 2))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(state, candidates):
    """One problem, one candidate, one step at a time."""
    costs = []
    for i in range(len(candidates)):
        for j in range(candidates.shape[1]):
            at, states = state[i : i + 1], []
            for t in range(candidates.shape[2]):
                at = dynamics(at, candidates[i, j, t][None])
                states.append(at)
            costs.append(cost(torch.stack(states, dim=1)))
    return torch.cat(costs).view(len(candidates), -1)


@settings(max_examples=30)
@given(
    b=st.integers(1, 3),
    s=st.integers(1, 5),
    t=st.integers(1, 4),
    chunk_size=st.sampled_from([None, 1, 2, 3, 7, 100]),
)
def test_costs_equal_a_double_loop_with_gradients(b, s, t, chunk_size):
    state, candidates = normal(b, 3).requires_grad_(), normal(b, s, t, 2, seed=1).requires_grad_()
    fast = candidate_costs(dynamics, cost, state, candidates, chunk_size=chunk_size)
    slow = loop(state, candidates)
    torch.testing.assert_close(fast, slow)
    weights = normal(b, s, seed=2)
    wanted = [state, candidates, *NET.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((weights * fast).sum(), wanted),
        torch.autograd.grad((weights * slow).sum(), wanted),
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_rollout_holds_the_states_after_each_action():
    state, actions = torch.zeros(2, 1), torch.tensor([[1.0, 2.0, 3.0], [1.0, -1.0, 0.5]])[:, :, None]
    trajectory = rollout(lambda x, a: 2 * x + a, state, actions)
    assert trajectory[:, :, 0].tolist() == [[1.0, 4.0, 11.0], [1.0, 1.0, 2.5]]


class Pose(NamedTuple):
    place: Tensor
    clock: Tensor


def test_a_state_may_be_a_tree_of_tensors():
    def move(state, action):
        return {"pose": Pose(state["pose"].place + action, state["pose"].clock + 1)}

    start = {"pose": Pose(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))}
    actions = torch.ones(2, 3, 1)
    trajectory = rollout(move, start, actions)
    assert trajectory["pose"].place[0, :, 0].tolist() == [1.0, 2.0, 3.0]
    assert trajectory["pose"].clock.tolist() == [[1, 2, 3]] * 2
    costs = candidate_costs(
        move, lambda x: x["pose"].place.sum((1, 2)), start, torch.ones(2, 4, 3, 1), chunk_size=2
    )
    assert costs.tolist() == [[6.0] * 4] * 2


@pytest.mark.parametrize("chunk_size", [None, 1, 5, 6, 100])
def test_rows_come_problem_by_problem_in_chunks_of_at_most_the_size(chunk_size):
    rows = []

    def watched(state, action):
        rows.append(state[:, 0].tolist())
        return state

    state = torch.arange(3.0)[:, None]
    candidate_costs(watched, lambda x: x[:, -1, 0], state, torch.zeros(3, 4, 1, 2), chunk_size=chunk_size)
    per_problem = {None: 4, 1: 1, 5: 1, 6: 2, 100: 4}[chunk_size]
    assert rows == [[float(i) for i in range(3) for _ in range(per_problem)]] * (4 // per_problem)


def test_one_problem_is_not_copied_for_its_candidates():
    state = torch.zeros(1, 1000)
    seen = []

    def watched(state, action):
        seen.append(state.data_ptr())
        return state + 0

    candidate_costs(watched, lambda x: x[:, -1, 0], state, torch.zeros(1, 8, 1, 1))
    assert seen == [state.data_ptr()]


def test_a_cost_by_steps_keeps_no_trajectory():
    """Where only the last state counts, a state may even change its shape on the way."""

    def longer(state, action):
        return torch.cat([state, state[:, -1:] + action[:, None]], dim=1)

    goal = GoalCost(LpEnergy(), torch.tensor([[2.0]]), tokens=lambda x: x[:, -1])
    costs = candidate_costs(longer, goal, torch.zeros(1, 1, 1), torch.tensor([[[[1.0]] * 3, [[0.0]] * 3]]))
    assert costs.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("state", "dynamics", "cost", "message"),
    [
        (
            torch.zeros(3, 1),
            lambda x, a: x,
            lambda x: x[:, -1, 0],
            r"state must hold tensors \[2, ...\].*got \(3, 1\)",
        ),
        ([torch.zeros(2), 1.0], lambda x, a: x, lambda x: x[0], r"state must hold tensors .*got float"),
        ((), lambda x, a: x, lambda x: x[0], "state must hold at least one tensor"),
        (
            torch.zeros(2, 1),
            lambda x, a: x[:1],
            lambda x: x[:, -1, 0],
            r"next state must hold tensors \[6, ...\]",
        ),
        (torch.zeros(2, 1), lambda x, a: x, lambda x: x[:, -1], r"one number for each of 6 .*got \(6, 1\)"),
        (torch.zeros(2, 1), lambda x, a: x, lambda x: 0.0, r"one number for each of 6 .*got float"),
    ],
)
def test_rows_that_do_not_fit_are_refused(state, dynamics, cost, message):
    with pytest.raises(ValueError, match=message):
        candidate_costs(dynamics, cost, state, torch.zeros(2, 3, 1, 2))


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, True])
def test_chunk_size_must_be_a_positive_integer(chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1"):
        candidate_costs(dynamics, cost, torch.zeros(1, 3), torch.zeros(1, 1, 1, 2), chunk_size=chunk_size)
