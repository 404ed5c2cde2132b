"""MPPI's weights against float64 NumPy, its limits, and one iteration from the same draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjepa.planning import MPPI, ActionSpace
from torchjepa.planning.mppi import path_weights

SPACE = ActionSpace(1, low=-1, high=1)
COSTS = torch.tensor([[3.0, 1.0, 2.0, 1.5], [10.0, 11.0, 12.0, 13.0]], dtype=torch.float64)


@given(
    costs=st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    temperature=st.floats(0.05, 100),
    shift=st.floats(-1e6, 1e6),
)
def test_weights_equal_numpy_and_do_not_follow_a_constant(costs, temperature, shift):
    plain = np.exp(-np.array(costs) / temperature)
    ours = path_weights(torch.tensor([costs], dtype=torch.float64), temperature)
    np.testing.assert_allclose(ours[0], plain / plain.sum(), rtol=1e-9)
    shifted = path_weights(torch.tensor([costs], dtype=torch.float64) + shift, temperature)
    np.testing.assert_allclose(shifted, ours, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-30, 1e-4])
def test_towards_zero_only_the_cheapest_counts(temperature, dtype):
    assert path_weights(COSTS.to(dtype), temperature).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [math.inf, 1e300])
def test_towards_infinity_all_count_alike(temperature):
    assert path_weights(COSTS, temperature).tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0, math.inf])
def test_costs_that_are_none_weigh_nothing(temperature):
    costs = torch.tensor([[math.nan, 1.0, math.inf, 1.0], [math.inf] * 4, [-math.inf, 1e30, 1e30, math.nan]])
    assert path_weights(costs, temperature).tolist() == [[0, 0.5, 0, 0.5], [0] * 4, [0, 0.5, 0.5, 0]]


@pytest.mark.parametrize("temperature", [0.0, 0.3, math.inf])
def test_an_iteration_equals_numpy_from_the_same_draws(temperature):
    planner = MPPI(SPACE, temperature, num_samples=20, num_iterations=2, init_std=0.5, decay=0.5)

    def cost(trajectory):
        return (trajectory - 0.7).square().sum((1, 2))

    plan = planner.plan(
        lambda x, a: x + a,
        cost,
        torch.zeros(1, 1, dtype=torch.float64),
        horizon=3,
        generator=torch.Generator().manual_seed(0),
    )
    draws, mean = torch.Generator().manual_seed(0), np.zeros((3, 1))
    for std in (0.5, 0.25):
        noise = torch.randn(20, 3, 1, generator=draws).double().numpy()
        candidates = np.clip(mean + std * noise, -1, 1)
        costs = ((candidates.cumsum(1) - 0.7) ** 2).sum((1, 2))
        if temperature == 0:
            mean = candidates[costs.argmin()]
        else:
            weights = np.exp(-(costs - costs.min()) / temperature)
            mean = np.average(candidates, axis=0, weights=weights)
        best = costs.min()
    np.testing.assert_allclose(plan.actions[0], mean)
    np.testing.assert_allclose(plan.info.spread, 0.25)
    assert float(plan.info.best[0, -1]) == pytest.approx(best)


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"decay": 1.5},
        {"num_samples": 0},
        {"init_std": -1.0},
    ],
)
def test_bad_settings_are_refused(changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"MPPI: {name} must be"):
        MPPI(**({"space": SPACE, "temperature": 1.0} | changed))
