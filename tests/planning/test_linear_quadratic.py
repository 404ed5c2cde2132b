"""Planners against the exact optimum of linear-quadratic problems."""

import numpy as np
import pytest
import torch

from tests.planning import linear_quadratic as lq
from torchjepa.planning import CEM, ICEM, MPPI, ActionSpace, GradientPlanner, RandomShooting
from torchjepa.planning.mpc import MPC

SPACE = ActionSpace(2, low=-3, high=3)


def excess(plan):
    """By what share each plan costs more than the least that is possible."""
    best = np.array([lq.optimum(start)[0] for start in lq.STARTS])
    return plan.cost.double().numpy() / best - 1


def plan_with(planner, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return planner.plan(lq.dynamics, lq.cost, lq.states(), horizon=lq.HORIZON, generator=generator)


def test_the_oracle_is_the_least_of_its_neighbourhood():
    value, actions = lq.optimum(lq.STARTS[0])

    def price(actions):
        x, total = lq.STARTS[0], 0.0
        for action in actions:
            x = lq.A @ x + lq.B @ action
            total += x @ lq.Q @ x + action @ lq.R @ action
        return total

    assert price(actions) == pytest.approx(value)
    random = np.random.default_rng(0)
    assert min(price(actions + 1e-3 * random.normal(size=actions.shape)) for _ in range(50)) > value


def test_gradient_descent_finds_the_optimum():
    plan = plan_with(GradientPlanner(SPACE, num_iterations=400, num_starts=2))
    assert np.abs(excess(plan)).max() < 1e-4
    exact = np.stack([lq.optimum(start)[1] for start in lq.STARTS])
    np.testing.assert_allclose(plan.actions.numpy(), exact, atol=1e-2)


@pytest.mark.parametrize(
    ("planner", "bound"),
    [
        (CEM(SPACE, num_iterations=20, num_elites=20), 0.01),
        (CEM(SPACE, num_iterations=20, num_elites=20, result="best"), 0.01),
        (ICEM(SPACE, num_samples=400, num_iterations=20, num_elites=20, beta=0.5, decay=1.0), 0.01),
        (MPPI(SPACE, temperature=0.05, num_samples=1000, num_iterations=30, decay=0.9), 0.02),
    ],
    ids=["cem", "cem-best", "icem", "mppi"],
)
def test_sampling_planners_approach_the_optimum(planner, bound):
    for seed in range(3):
        found = excess(plan_with(planner, seed))
        assert found.min() > -1e-6
        assert found.max() < bound


def test_random_shooting_is_the_best_of_what_it_drew():
    small, large = (excess(plan_with(RandomShooting(SPACE, num_samples=num))) for num in (100, 20_000))
    assert (large > 0).all()
    assert (large < small).all()


def test_bounds_are_reached_where_the_optimum_lies_beyond():
    tight = ActionSpace(2, low=-0.2, high=0.2)
    plan = plan_with(GradientPlanner(tight, num_iterations=400, num_starts=2))
    cem = plan_with(CEM(tight, num_iterations=30, num_elites=20))
    assert float(plan.actions.abs().max()) == pytest.approx(0.2)
    assert (plan.cost <= cem.cost + 1e-6).all()
    assert (cem.cost < 1.01 * plan.cost).all()


def test_receding_horizon_with_warm_start_beats_one_without():
    def drive(warm_start):
        controller = MPC(
            ICEM(SPACE, num_samples=30, num_iterations=2, num_elites=5),
            lq.dynamics,
            lq.cost,
            horizon=lq.HORIZON,
            generator=torch.Generator().manual_seed(0),
            warm_start=warm_start,
        )
        state = lq.states()
        for _ in range(8):
            state = lq.dynamics(state, controller.step(state))
        return float(state[:, :2].square().sum() + state[:, 2].sum())

    assert drive(True) < drive(False)
