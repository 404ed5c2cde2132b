"""Model-predictive control: plan, do the first of the actions, look where they led, plan again."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.space import check_count
from torchjepa.types import Cost, Dynamics, Plan, Planner


class MPC:
    """A controller that plans again as it goes, each plan starting from what is left of the one before.

    Args:
        planner: any planner.
        dynamics: `(state[b, ...], action[b, a]) -> state[b, ...]`.
        cost: `(trajectory[b, t, ...]) -> [b]`; may be set anew between steps, when the goal moves.
        horizon: number of actions that are planned.
        generator: source of all draws, one plan after the other.
        replan_every: how many actions of a plan are carried out; 1 by default, at most `horizon`.
        warm_start: hand `info.sequences` of the last plan, or its actions if its info has none, shifted, to the
            planner's argument `start`; the default. A planner without that argument needs `False`.

    Attributes:
        plan: the plan being carried out; `None` before the first step.

    Raises:
        ValueError: counts outside of their range, or `warm_start` with a planner that takes no `start`.
    """

    def __init__(
        self,
        planner: Planner,
        dynamics: Dynamics,
        cost: Cost,
        *,
        horizon: int,
        generator: torch.Generator,
        replan_every: int = 1,
        warm_start: bool = True,
    ) -> None:
        check_count("MPC", "horizon", horizon)
        check_count("MPC", "replan_every", replan_every)
        if replan_every > horizon:
            raise ValueError(f"MPC: replan_every must be at most the horizon {horizon}, got {replan_every}.")
        if warm_start and "start" not in inspect.signature(planner.plan).parameters:
            raise ValueError(
                f"MPC: warm_start needs a planner whose plan() takes `start`, got {type(planner).__name__}; pass "
                "warm_start=False."
            )
        self.planner, self.dynamics, self.cost = planner, dynamics, cost
        self.horizon, self.generator = horizon, generator
        self.replan_every, self.warm_start = replan_every, warm_start
        self.plan: Plan | None = None
        self._num_done = 0

    def step(self, state: Any) -> Float[Tensor, "b a"]:
        """The next action.

        Args:
            state: where each of b problems is now, `[b, ...]`.

        Raises:
            ValueError: what the planner refuses.
        """
        if self.plan is None or self._num_done == self.replan_every:
            self.plan = self._plan_from(state, self.plan)
            self._num_done = 0
        action = self.plan.actions[:, self._num_done]
        self._num_done += 1
        return action

    def reset(self) -> None:
        """Forget the plan, as at the start of an episode; the generator goes on."""
        self.plan = None
        self._num_done = 0

    def _plan_from(self, state: Any, last: Plan | None) -> Plan:
        start = {}
        if self.warm_start and last is not None:
            sequences = getattr(last.info, "sequences", last.actions[:, None])
            start["start"] = shifted(sequences, self.replan_every)
        return self.planner.plan(
            self.dynamics, self.cost, state, horizon=self.horizon, generator=self.generator, **start
        )


def shifted(sequences: Float[Tensor, "*rest t a"], num_steps: int) -> Float[Tensor, "*rest t a"]:
    """What is left of action sequences after some steps, at the same length: the last action is repeated.

    Args:
        sequences: action sequences.
        num_steps: how many of them were carried out.
    """
    index = torch.arange(sequences.shape[-2], device=sequences.device) + num_steps
    return sequences[..., index.clamp(max=sequences.shape[-2] - 1), :]
