"""Gradient planning: Adam as torch's, chunks, no gradients left, starts that fail."""

import math

import pytest
import torch

from torchjepa.planning import ActionSpace, GradientPlanner
from torchjepa.planning.gradient import _Adam

SPACE = ActionSpace(2, low=-1, high=1)


def dynamics(state, action):
    return torch.tanh(state + action)


def cost(trajectory):
    return (trajectory - 0.6).square().sum((1, 2))


def plan_with(planner, cost=cost, b=2, dynamics=dynamics, **options):
    state = torch.linspace(-0.5, 0.5, b, dtype=torch.float64)[:, None].expand(b, 2)
    return planner.plan(
        dynamics, cost, state, horizon=3, generator=torch.Generator().manual_seed(0), **options
    )


def test_adam_steps_as_torchs_does():
    theirs = torch.zeros(3, 4, dtype=torch.float64)
    ours, optimizer, adam = theirs.clone(), torch.optim.Adam([theirs], lr=0.1), _Adam(theirs)
    for step in range(20):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        theirs.grad = gradient
        optimizer.step()
        ours = ours - 0.1 * adam.direction(gradient)
        torch.testing.assert_close(ours, theirs)


def test_chunks_change_nothing():
    whole, parts = (
        plan_with(GradientPlanner(SPACE, 20, num_starts=5, chunk_size=size)) for size in (None, 3)
    )
    torch.testing.assert_close(whole.actions, parts.actions)
    torch.testing.assert_close(whole.cost, parts.cost)


def test_the_plan_is_the_cheapest_that_any_start_has_met():
    plan = plan_with(GradientPlanner(SPACE, num_iterations=15, learning_rate=0.5))
    torch.testing.assert_close(plan.cost, plan.info.best.amin(1))
    assert plan.info.best.shape == (2, 16)


def test_more_starts_escape_a_poor_valley():
    def two_valleys(trajectory):
        x = trajectory[:, -1, 0]
        return (x.square() - 0.25).square() - 0.1 * x

    start = torch.full((1, 1, 3, 2), -0.2, dtype=torch.float64)
    costs = [
        float(
            plan_with(
                GradientPlanner(SPACE, num_starts=num, learning_rate=0.02), two_valleys, b=1, start=start
            ).cost
        )
        for num in (1, 8)
    ]
    assert costs[1] < -0.04 < 0.04 < costs[0]


def test_a_start_without_a_sound_gradient_stands_still_and_is_counted():
    def rooted(trajectory):
        # The derivative of a root is infinite at 0, where the first start is.
        return cost(trajectory) + trajectory[:, 0, 0].abs().sqrt()

    state = torch.zeros(1, 2)
    plan = GradientPlanner(SPACE, num_starts=4, num_iterations=5).plan(
        dynamics, rooted, state, horizon=2, generator=torch.Generator().manual_seed(0)
    )
    # The last look is at the cost alone, which is sound where a start stands still.
    assert plan.info.num_invalid[0].tolist() == [1] * 5 + [0]
    assert bool(plan.actions.isfinite().all())


def test_no_gradient_is_left_in_a_network_and_none_is_needed_outside():
    net = torch.nn.Linear(4, 2).double()

    def learned(state, action):
        return net(torch.cat([state, action], dim=1))

    with torch.no_grad():
        plan = plan_with(GradientPlanner(SPACE, 5), dynamics=learned)
    assert all(weight.grad is None for weight in net.parameters())
    assert not plan.actions.requires_grad


def test_a_cost_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="does not depend on the actions by a differentiable way"):
        plan_with(GradientPlanner(SPACE), dynamics=lambda x, a: dynamics(x, a).detach())


@pytest.mark.parametrize(
    "changed",
    [{"num_starts": 0}, {"num_iterations": -1}, {"learning_rate": -1.0}, {"learning_rate": math.nan}],
)
def test_bad_settings_are_refused(changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"GradientPlanner: {name} must be"):
        GradientPlanner(SPACE, **changed)
