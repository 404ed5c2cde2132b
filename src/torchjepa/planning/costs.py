"""Costs of trajectories: the distance to a goal by any energy, and a price on the actions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from torchjepa import _vector_math as _vector_math
from torchjepa.energy import EnergyFn
from torchjepa.planning.rollout import StepCost
from torchjepa.planning.space import check_range
from torchjepa.types import Dynamics


@dataclass(frozen=True, eq=False)
class GoalCost:
    """The energy between where a trajectory is and where it should be.

    cost = sum_t mean_n e(x_t, goal) over the last state only, or over all, with e the energy of a token. The object
    that trained the representation says how far two of them are: V-JEPA 2-AC plans by `LpEnergy(p=1.0)`, LeWM by
    `L2Energy()`, both on the last state.

    Args:
        energy: the energy; its `per_token` is used.
        goal: what is wanted `[b, ..., d]`, for each of b problems, or `[1, ..., d]` for all.
        over: `"last"`, the default (V-JEPA 2-AC, LeWM), or `"sum"` over all steps, which gets there sooner and stays.
        tokens: what of a state is compared, a function of the state `[b, ...]`; all of it by default.

    Raises:
        ValueError: another word for `over`; when called, states whose shape is not the goal's.
    """

    energy: EnergyFn
    goal: Float[Tensor, "b *n d"]
    over: Literal["last", "sum"] = "last"
    tokens: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.over not in ("last", "sum"):
            raise ValueError(f"GoalCost: over must be 'last' or 'sum', got {self.over!r}.")

    def __call__(self, trajectory: Any) -> Float[Tensor, " b"]:
        """The cost of the states `[b, t, ...]` after each action."""
        return _sum_of_steps(self, trajectory)

    def step_cost(self, state: Any, step: int, horizon: int) -> Float[Tensor, " b"] | None:
        """What the states `[b, ...]` after action `step` add; `None` where only the last counts."""
        if self.over == "last" and step < horizon - 1:
            return None
        found = state if self.tokens is None else self.tokens(state)
        num_problems = len(self.goal)
        if found.shape[1:] != self.goal.shape[1:] or len(found) % num_problems:
            raise ValueError(
                f"GoalCost: states must have shape [{num_problems} x candidates, *{tuple(self.goal.shape[1:])}], the "
                f"goal's, got {tuple(found.shape)}; say by `tokens` which part of a state is compared."
            )
        rows = found.unflatten(0, (num_problems, -1))
        goal = self.goal.to(found).unsqueeze(1).expand_as(rows)
        return self.energy.per_token(rows, goal).reshape(len(found), -1).mean(1)


class Acted(NamedTuple):
    """A state, and the action that led to it `[b, a]`; what `remember_actions` makes a dynamics of.

    Args:
        state: the state.
        action: the action; of the first state, that which was carried out last, or zeros.
    """

    state: Any
    action: Tensor


def remember_actions(dynamics: Dynamics) -> Dynamics:
    """The same dynamics on `Acted` states, so that a cost, which sees states alone, can price actions.

    Args:
        dynamics: `(state, action) -> state`.
    """

    def remembering(state: Acted, action: Tensor) -> Acted:
        return Acted(dynamics(state.state, action), action)

    return remembering


@dataclass(frozen=True)
class ActionPenalty:
    """A cost and a price on the size of the actions, cost(x) + weight * sum_t |a_t|^2; for `remember_actions`.

    Args:
        cost: the cost of the states alone, one that is a sum over steps, as `GoalCost` is.
        weight: price of a squared unit of action, at least 0.

    Raises:
        ValueError: a cost without `step_cost`, or a weight that is negative or infinite.
    """

    cost: StepCost
    weight: float

    def __post_init__(self) -> None:
        check_range("ActionPenalty", "weight", self.weight, 0.0, sys.float_info.max)
        if not isinstance(self.cost, StepCost):
            raise ValueError(
                f"ActionPenalty: cost must have a method step_cost(state, step, horizon), got {self.cost!r}; a plain "
                "function of the trajectory can add the price itself: it is given an `Acted` of states and actions."
            )

    def __call__(self, trajectory: Acted) -> Float[Tensor, " b"]:
        """The cost of the states and actions `[b, t, ...]`."""
        return _sum_of_steps(self, trajectory)

    def step_cost(self, state: Acted, step: int, horizon: int) -> Float[Tensor, " b"]:
        """What the states `[b, ...]` after action `step`, and that action, add."""
        price = self.weight * state.action.square().sum(-1)
        part = self.cost.step_cost(state.state, step, horizon)
        return price if part is None else part + price


def _sum_of_steps(cost: StepCost, trajectory: Any) -> Tensor:
    steps = [leaf.unbind(1) for leaf in pytree.tree_leaves(trajectory)]
    form = pytree.tree_structure(trajectory)
    horizon = len(steps[0])
    parts = [
        cost.step_cost(pytree.tree_unflatten(leaves, form), step, horizon)
        for step, leaves in enumerate(zip(*steps))
    ]
    return torch.stack([part for part in parts if part is not None]).sum(0)
