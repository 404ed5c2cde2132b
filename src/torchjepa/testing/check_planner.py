"""The planner contract as a check that any planner can be put through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchjepa import rng
from torchjepa.testing.contract import global_random_states, require, require_value_error
from torchjepa.types import Cost, Plan, Planner

_STARTS = (0.0, 0.6, -0.4)  # of three problems
_GOAL = 0.5


def check_planner(
    planner: Planner,
    action_dim: int,
    *,
    low: float | Sequence[float] = -math.inf,
    high: float | Sequence[float] = math.inf,
    horizon: int = 4,
) -> None:
    """Check that an object keeps the contract of a planner, on small linear-quadratic problems.

    The contract: `plan(dynamics, cost, state, horizon=t, generator=g)` gives a `Plan` with finite actions `[b, t, a]`
    within the bounds, on the state's device and in its dtype, as are those that the dynamics is given, and the cost of
    exactly these actions; the plan is a function of its arguments alone (global random state is neither read nor
    moved); that of several problems is the plans of each; it costs less than random actions do on average; no
    candidate that costs NaN is chosen, and where all do it is a `ValueError`, as are a horizon below 1 and a state
    without a batch axis; no gradient is left behind.

    Args:
        planner: the planner to judge.
        action_dim: length of its actions.
        low: its least action, a number or one for each entry; none by default.
        high: its greatest action, likewise.
        horizon: number of actions to plan. Default 4.

    Raises:
        AssertionError: a requirement is broken; the message says which.
    """
    bounds = tuple(torch.tensor(bound, dtype=torch.float64).expand(action_dim) for bound in (low, high))
    trial = _Trial(planner, action_dim, horizon, bounds)
    _check_form(trial)
    _check_only_the_arguments(trial)
    _check_cost(trial)
    _check_gradients(trial)
    _check_problems_are_independent(trial)
    _check_nan(trial)
    _check_refusals(trial)


@dataclass(frozen=True)
class _Trial:
    planner: Planner
    action_dim: int
    horizon: int
    bounds: tuple[Tensor, ...]

    def states(self, dtype: torch.dtype = torch.float64) -> Tensor:
        starts = torch.tensor(_STARTS, dtype=dtype)
        return starts[:, None, None].expand(-1, 2, self.action_dim).contiguous()

    def plan(self, state: Tensor, cost: Cost | None = None) -> Plan:
        generator, given = rng.generator(0, "check_planner"), set()

        def dynamics(state: Tensor, action: Tensor) -> Tensor:
            given.add((action.dtype, action.device, action.shape[1:]))
            return _drift(state, action)

        plan = self.planner.plan(
            dynamics, cost or _distance, state, horizon=self.horizon, generator=generator
        )
        right = {(state.dtype, state.device, torch.Size([self.action_dim]))}
        require(
            given == right,
            self.planner,
            f"the dynamics must be given actions [b, {self.action_dim}] on the state's device and in its dtype, "
            f"{state.dtype}, got {given}.",
        )
        require(isinstance(plan, Plan), self.planner, f"plan must give a Plan, got {type(plan).__name__}.")
        return plan

    def random_actions(self, num: int) -> Tensor:
        """Uniform within the bounds, within 1 of 0 or of the only bound where there are not two."""
        low, high = self.bounds
        low, high = (
            low.where(low.isfinite(), high.clamp(max=1) - 2),
            high.where(high.isfinite(), low.clamp(min=-1) + 2),
        )
        shape = (num, self.horizon, self.action_dim)
        unit = torch.rand(shape, generator=rng.generator(0, "check_planner", "random"), dtype=torch.float64)
        return low + (high - low) * unit


def _drift(state: Tensor, action: Tensor) -> Tensor:
    # Entry by entry, so that a row's numbers do not depend on how many others there are.
    return 0.9 * state + 0.5 * action[:, None]


def _distance(trajectory: Tensor) -> Tensor:
    return (trajectory - _GOAL).square().flatten(1).mean(1)


def _cost_of(state: Tensor, actions: Tensor) -> Tensor:
    states = []
    for action in actions.unbind(1):
        state = _drift(state, action)
        states.append(state)
    return _distance(torch.stack(states, dim=1))


def _check_form(trial: _Trial) -> None:
    form = (len(_STARTS), trial.horizon, trial.action_dim)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        state = trial.states(dtype)
        before = state.clone()
        plan = trial.plan(state)
        actions, cost = plan.actions, plan.cost
        require(torch.equal(state, before), trial.planner, "the state was changed in place.")
        require(actions.shape == form, trial.planner, f"actions must be {form}, got {tuple(actions.shape)}.")
        require(cost.shape == form[:1], trial.planner, f"cost must be {form[:1]}, got {tuple(cost.shape)}.")
        require(
            actions.dtype == dtype and actions.device == state.device,
            trial.planner,
            f"actions must be {dtype} on {state.device} as the state, got {actions.dtype} on {actions.device}.",
        )
        require(
            torch.finfo(cost.dtype).bits >= 32,
            trial.planner,
            f"cost must be float32 or wider, got {cost.dtype}.",
        )
        require(
            bool(actions.isfinite().all() and cost.isfinite().all()),
            trial.planner,
            "actions or cost are not finite.",
        )
        low, high = (bound.to(dtype) for bound in trial.bounds)
        require(
            bool(((actions >= low) & (actions <= high)).all()),
            trial.planner,
            f"actions must lie within {trial.bounds[0].tolist()} and {trial.bounds[1].tolist()}, got "
            f"{float(actions.min()):.4g} to {float(actions.max()):.4g}.",
        )


def _check_only_the_arguments(trial: _Trial) -> None:
    first = trial.plan(trial.states())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = global_random_states()
        again = trial.plan(trial.states())
        still = global_random_states() == before
    require(still, trial.planner, "planning moved a global random state (torch, numpy or random).")
    require(
        torch.equal(first.actions, again.actions) and torch.equal(first.cost, again.cost),
        trial.planner,
        "two plans from equally seeded generators differ, so something else than the arguments is used: a global "
        "random state, or state kept from call to call.",
    )


def _check_cost(trial: _Trial) -> None:
    state = trial.states()
    plan = trial.plan(state)
    cost = _cost_of(state, plan.actions)
    require(
        torch.allclose(plan.cost.double(), cost, rtol=1e-6, atol=1e-9),
        trial.planner,
        f"cost must be that of the actions, {cost.tolist()}, got {plan.cost.tolist()}.",
    )
    actions = trial.random_actions(1000)
    for index, start in enumerate(state):
        usual = float(_cost_of(start.expand(len(actions), -1, -1), actions).mean())
        require(
            float(cost[index]) < usual,
            trial.planner,
            f"problem {index} costs {float(cost[index]):.4g} as planned, and {usual:.4g} on average with random "
            "actions; is a sign wrong?",
        )


def _check_problems_are_independent(trial: _Trial) -> None:
    state = trial.states()
    together = trial.plan(state)
    for index in range(len(state)):
        alone = trial.plan(state[index : index + 1])
        same = torch.allclose(alone.actions[0], together.actions[index], rtol=1e-6, atol=1e-9)
        require(
            same,
            trial.planner,
            f"problem {index} has another plan alone than beside others: let all problems share the draws, and "
            "nothing else.",
        )


def _check_gradients(trial: _Trial) -> None:
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    plan = trial.plan(trial.states(), cost=lambda trajectory: weight * _distance(trajectory))
    require(weight.grad is None, trial.planner, "planning left a gradient in a parameter.")
    require(
        not (plan.actions.requires_grad or plan.cost.requires_grad),
        trial.planner,
        "actions and cost must be detached from the graph.",
    )


def _check_nan(trial: _Trial) -> None:
    # NaN for four in ten sequences, by where their first action leads.
    state = torch.zeros_like(trial.states())
    edge = float(_drift(state[:1], trial.random_actions(1000)[:, 0])[:, 0, 0].quantile(0.6))

    def partly(trajectory: Tensor) -> Tensor:
        return _distance(trajectory).masked_fill(trajectory[:, 0, 0, 0] > edge, math.nan)

    plan = trial.plan(state, partly)
    require(
        bool(plan.cost.isfinite().all()) and bool(plan.actions.isfinite().all()),
        trial.planner,
        "where some candidates cost NaN the plan must be one that does not.",
    )
    never = lambda trajectory: _distance(trajectory) * math.nan  # noqa: E731
    require_value_error(trial.planner, "a cost that is always NaN", lambda: trial.plan(state, never))


def _check_refusals(trial: _Trial) -> None:
    for horizon in (0, -1, 1.5, True):
        other = replace(trial, horizon=horizon)  # type: ignore[arg-type]
        require_value_error(trial.planner, f"a horizon of {horizon!r}", lambda: other.plan(trial.states()))  # noqa: B023
    single = torch.tensor(0.0)
    require_value_error(trial.planner, "a state without a batch axis", lambda: trial.plan(single))
