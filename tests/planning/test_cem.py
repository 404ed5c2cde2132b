"""CEM and iCEM against float64 NumPy from the same draws; the noise's spectrum; costs that are none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.planning import CEM, ICEM, ActionSpace
from torchjepa.planning.icem import coloured
from torchjepa.types import NonFiniteError

SPACE = ActionSpace(2, low=(-1.0, -0.5), high=(1.0, 1.5))
TARGET = np.array([0.4, 0.9])


def dynamics(state, action):
    return state + action


def cost(trajectory):
    return (trajectory - torch.from_numpy(TARGET)).square().sum((1, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_cost(start, candidates):
    return ((start + candidates.cumsum(1) - TARGET) ** 2).sum((1, 2))


def slow_cem(start, horizon, num_samples, num_elites, num_iterations, momentum, min_std):
    draws, low, high = generator(), np.array(SPACE.low), np.array(SPACE.high)
    mean, std = np.tile((low + high) / 2, (horizon, 1)), np.tile((high - low) / 2, (horizon, 1))
    best, figures = [], []
    for _ in range(num_iterations):
        noise = torch.randn(num_samples, horizon, 2, generator=draws).double().numpy()
        candidates = np.clip(mean + std * noise, low, high)
        costs = slow_cost(start, candidates)
        order = np.argsort(costs)[:num_elites]
        mean = (1 - momentum[0]) * candidates[order].mean(0) + momentum[0] * mean
        std = (1 - momentum[1]) * candidates[order].std(0, ddof=1) + momentum[1] * std
        std = np.maximum(std, min_std)
        best.append(candidates[order[0]])
        figures.append([costs.min(), costs.mean(), costs[order].mean(), costs[order].std()])
    return mean, std, min(best, key=lambda one: slow_cost(start, one[None])[0]), np.array(figures).T


@pytest.mark.parametrize("momentum", [(0.15, 0.15), (0.0, 0.0), (0.25, 0.95)])
@pytest.mark.parametrize("min_std", [0.0, 0.3])
def test_cem_equals_numpy_from_the_same_draws(momentum, min_std):
    starts = torch.tensor([[0.0, 0.0], [0.5, -0.5]], dtype=torch.float64)
    numbers = {"num_samples": 30, "num_elites": 6, "num_iterations": 5}
    planner = CEM(SPACE, **numbers, momentum_mean=momentum[0], momentum_std=momentum[1], min_std=min_std)
    plan = planner.plan(dynamics, cost, starts, horizon=3, generator=generator())
    for index, start in enumerate(starts.numpy()):
        mean, std, _, figures = slow_cem(start, 3, **numbers, momentum=momentum, min_std=min_std)
        np.testing.assert_allclose(plan.actions[index], mean)
        np.testing.assert_allclose(plan.info.center[index], mean)
        np.testing.assert_allclose(plan.info.spread[index], std)
        np.testing.assert_allclose(plan.cost[index], slow_cost(start, mean[None])[0])
        ours = (plan.info.best, plan.info.mean, plan.info.elite_mean, plan.info.elite_std)
        np.testing.assert_allclose(np.stack([figure[index] for figure in ours]), figures, atol=1e-12)
    assert not plan.info.num_invalid.any()
    assert torch.equal(plan.info.sequences[:, 0], plan.actions)


def test_the_best_is_the_cheapest_of_all_iterations_or_the_mean():
    numbers = {"num_samples": 30, "num_elites": 6, "num_iterations": 5}
    planner = CEM(SPACE, **numbers, momentum_mean=0.0, momentum_std=0.0, min_std=1.0, result="best")
    plan = planner.plan(
        dynamics, cost, torch.zeros(1, 2, dtype=torch.float64), horizon=3, generator=generator()
    )
    mean, _, best, _ = slow_cem(np.zeros(2), 3, **numbers, momentum=(0.0, 0.0), min_std=1.0)
    expected = min((best, mean), key=lambda one: slow_cost(np.zeros(2), one[None])[0])
    np.testing.assert_allclose(plan.actions[0], expected)


def test_cem_starts_where_it_is_told():
    start = torch.tensor([0.9, 1.4]).expand(1, 1, 3, 2)
    planner = CEM(SPACE, init_std=0.0)
    plan = planner.plan(dynamics, cost, torch.zeros(1, 2), horizon=3, generator=generator(), start=start)
    torch.testing.assert_close(plan.actions, start[:, 0])
    with pytest.raises(
        ValueError, match=r"start must be action sequences .* = \(1, 4, 2\), got \(1, 1, 3, 2\)"
    ):
        planner.plan(dynamics, cost, torch.zeros(1, 2), horizon=4, generator=generator(), start=start)


@pytest.mark.parametrize("planner", [CEM(SPACE, num_samples=40), ICEM(SPACE, num_samples=40)])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_candidates_without_a_cost_are_counted_and_never_fitted(planner, bad):
    def partly(trajectory):
        return cost(trajectory).masked_fill(trajectory[:, 0, 0] > 0.2, bad)

    plan = planner.plan(dynamics, partly, torch.zeros(2, 2), horizon=3, generator=generator())
    assert bool((plan.info.sequences[..., 0, 0] <= 0.2 + 1e-6).all())
    assert bool(plan.info.num_invalid.any()) == (bad != float("inf"))
    assert bool(plan.info.best.isfinite().all())


def test_fewer_sound_candidates_than_elites_are_fitted_alone():
    def lonely(trajectory):
        # All but the cheapest fifth of the space is forbidden.
        return cost(trajectory).masked_fill(trajectory[:, 0, 0] < 0.8, float("inf"))

    planner = CEM(SPACE, num_samples=20, num_elites=20, num_iterations=1, momentum_mean=0.0)
    plan = planner.plan(dynamics, lonely, torch.zeros(1, 2), horizon=1, generator=generator())
    assert float(plan.actions[0, 0, 0]) >= 0.8


def test_an_iteration_without_any_cost_teaches_nothing_and_at_the_end_is_an_error():
    calls = iter(range(100))

    def late(trajectory):
        return cost(trajectory) * (float("nan") if next(calls) == 0 else 1.0)

    planner = CEM(SPACE, num_samples=200, num_elites=20, num_iterations=10)
    plan = planner.plan(dynamics, late, torch.zeros(1, 2), horizon=1, generator=generator())
    np.testing.assert_allclose(plan.actions[0, 0], TARGET, atol=0.05)
    assert plan.info.num_invalid[0].tolist() == [200] + [0] * 9
    with pytest.raises(
        NonFiniteError, match=r"CEM: the plan of 2 of 2 problems .* where 2000 candidates cost NaN"
    ):
        planner.plan(
            dynamics, lambda x: cost(x) * float("nan"), torch.zeros(2, 2), horizon=1, generator=generator()
        )


def test_icem_shrinks_its_population_and_lets_elites_and_mean_compete():
    sizes = []

    def watched(trajectory):
        sizes.append(len(trajectory))
        return cost(trajectory)

    planner = ICEM(SPACE, num_samples=50, num_elites=10, num_iterations=8, kept_elites=0.3)
    plan = planner.plan(dynamics, watched, torch.zeros(1, 2), horizon=4, generator=generator())
    drawn = [max(round(50 / 1.25**i), 20) for i in range(8)]
    # From the second iteration on three elites compete, in the last one the mean too; then the mean is priced.
    assert sizes == [num + 3 * (i > 0) + (i == 7) for i, num in enumerate(drawn)] + [1]
    best = plan.info.best[0]
    assert bool((best.diff() <= 1e-6).all())  # an elite that stays cannot be lost
    assert float(plan.cost[0]) <= float(best.min()) + 1e-6


def test_icem_tries_the_sequences_it_starts_from():
    target = torch.tensor([[0.4, 0.9], [0.0, 0.0], [0.0, 0.0]])
    start = torch.stack([torch.zeros(3, 2), target])[None]
    planner = ICEM(SPACE, num_samples=20)
    plan = planner.plan(dynamics, cost, torch.zeros(1, 2), horizon=3, generator=generator(), start=start)
    torch.testing.assert_close(plan.actions[0], target)


def slow_coloured(draws, beta):
    """The sum of cosines that an inverse DFT is, a step at a time, divided by its standard deviation."""
    num_steps = draws.shape[2]
    result = np.zeros(draws.shape[1:])
    variance = 0.0
    for f in range(num_steps // 2 + 1):
        strength = max(f, 1) ** (-beta / 2)
        single = f == 0 or 2 * f == num_steps
        for t in range(num_steps):
            angle = 2 * np.pi * f * t / num_steps
            if single:
                result[:, t] += strength * np.sqrt(2) * np.cos(angle) * draws[0, :, f]
            else:
                result[:, t] += (
                    2 * strength * (np.cos(angle) * draws[0, :, f] - np.sin(angle) * draws[1, :, f])
                )
        variance += strength**2 * (2 if single else 4)
    return result / np.sqrt(variance)


@settings(max_examples=25)
@given(num_steps=st.integers(1, 12), beta=st.sampled_from([0.0, 0.5, 2.0, 4.0]))
def test_coloured_noise_equals_a_sum_of_cosines(num_steps, beta):
    draws = torch.randn(2, 3, num_steps, 2, generator=generator(), dtype=torch.float64)
    np.testing.assert_allclose(coloured(draws, beta), slow_coloured(draws.numpy(), beta), atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_coloured_noise_has_the_slope_and_unit_variance_at_every_step(beta):
    noise = coloured(torch.randn(2, 4000, 64, 1, generator=generator(), dtype=torch.float64), beta)[..., 0]
    assert (noise.var(0) - 1).abs().max() < 0.15
    power = torch.fft.rfft(noise, dim=1).abs().square().mean(0)[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 32)), np.log(power.numpy()), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.05)


@pytest.mark.parametrize("who", [CEM, ICEM])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_iterations": 1.5}, "num_iterations must be an integer"),
        ({"num_elites": 500}, "num_elites must be at most num_samples"),
        ({"min_std": -1.0}, "min_std must be a number from 0"),
        ({"init_std": (1.0, 2.0, 3.0)}, "init_std must be a number, or one for each of the 2"),
        ({"init_std": -1.0}, "init_std must be a number from 0"),
        ({"result": "median"}, "result must be 'mean' or 'best', got 'median'"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1"),
    ],
)
def test_bad_settings_are_refused(who, changed, message):
    with pytest.raises(ValueError, match=f"{who.__name__}: {message}"):
        who(SPACE, **changed)


@pytest.mark.parametrize(
    ("who", "changed"),
    [
        (CEM, {"momentum_mean": 1.5}),
        (CEM, {"momentum_std": -0.1}),
        (ICEM, {"momentum": 2.0}),
        (ICEM, {"beta": -1.0}),
        (ICEM, {"decay": 0.5}),
        (ICEM, {"kept_elites": 1.5}),
    ],
)
def test_bad_settings_of_each_are_refused(who, changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"{who.__name__}: {name} must be a number from"):
        who(SPACE, **changed)
