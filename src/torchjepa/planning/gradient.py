"""Gradient descent on the actions, through the dynamics."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.elites import Found, Priced, cheaper, choose_elites, priced
from torchjepa.planning.problem import Problem, Record
from torchjepa.planning.rollout import candidate_costs, chunks
from torchjepa.planning.space import ActionSpace, check_chunk_size, check_count, check_range
from torchjepa.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class GradientPlanner:
    """Adam on the actions, from several starts at once, projected onto the bounds after each step.

    a <- clip(a - lr * adam(d cost / d a)), the rate falling to 0 along half a cosine; the cheapest actions that any
    start has met. Dynamics and cost must be differentiable in the actions. Parameters of a network get no gradients.

    Args:
        space: the actions.
        num_iterations: number of steps; 100.
        num_starts: starts of each problem; 8. The first is the middle of the space, or `start`, the others normal
            around it.
        learning_rate: in units of the action; a twentieth of the narrowest entry's range by default, 0.1 where
            there is none.
        init_std: standard deviation of the starts, one number or one for each entry; half of the entry's range by
            default, 1 where it has none.
        chunk_size: the most rows (problems x starts) in one call of the dynamics, each with its own way back; all by
            default.

    Raises:
        ValueError: a setting outside of its range.
    """

    space: ActionSpace
    num_iterations: int = 100
    num_starts: int = 8
    learning_rate: float | None = None
    init_std: float | Sequence[float] | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_iterations", "num_starts"):
            check_count("GradientPlanner", name, getattr(self, name))
        if self.learning_rate is not None:
            check_range("GradientPlanner", "learning_rate", self.learning_rate, 0.0, sys.float_info.max)
        check_chunk_size("GradientPlanner", self.chunk_size)
        self.space.std("GradientPlanner", self.init_std)

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        state: Any,
        *,
        horizon: int,
        generator: torch.Generator,
        start: Float[Tensor, "b k t a"] | None = None,
    ) -> Plan:
        """Plan `horizon` actions from each state.

        Args:
            dynamics: `(state[b, ...], action[b, a]) -> state[b, ...]`, differentiable.
            cost: `(trajectory[b, t, ...]) -> [b]`, differentiable.
            state: where each problem starts, `[b, ...]`.
            horizon: number of actions t.
            generator: source of the starts, which all problems share.
            start: the first of these sequences is the first start; the middle of the space by default.

        Returns:
            The plan, its info a `PlanInfo` of `num_iterations` + 1 looks at the starts' costs.

        Raises:
            ValueError: arguments that do not fit each other, or a cost without gradient; `NonFiniteError` where
                nothing met has a finite cost.
        """
        problem = Problem(
            "GradientPlanner", dynamics, cost, state, self.space, horizon, generator, self.chunk_size
        )
        first = problem.starts(start)[:, :1]
        std = problem.entries("init_std", self.space.std("GradientPlanner", self.init_std))[:, None]
        others = first + std * problem.draw(self.num_starts - 1)
        actions = self.space.clamp(torch.cat([first, others], dim=1))
        adam, record, best = _Adam(actions), Record(), None
        for iteration in range(self.num_iterations):
            tried, gradient = _costs_and_gradient(problem, actions)
            best = _note(record, tried, actions, best)
            share = (1 + math.cos(math.pi * iteration / self.num_iterations)) / 2
            actions = self.space.clamp(actions - share * self._rate() * adam.direction(gradient))
        best = _note(record, problem.costs(actions), actions, best)
        spread = actions.std(1, correction=0)
        return problem.plan(best, record.info(best.actions, spread, best.actions[:, None]))

    def _rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.1 * min((width for width in self.space.spread() if width > 0), default=1.0)


def _costs_and_gradient(problem: Problem, actions: Float[Tensor, "b s t a"]) -> tuple[Priced, Tensor]:
    """Costs and their gradients, which are 0 for a start whose cost or gradient is not finite."""
    costs, gradients = [], []
    for part in chunks(actions, problem.chunk_size):
        leaf = part.detach().to(problem.dtype).requires_grad_()
        with torch.enable_grad():
            cost = candidate_costs(problem.dynamics, problem.cost, problem.state, leaf)
            if not cost.requires_grad:
                raise ValueError(
                    "GradientPlanner: the cost does not depend on the actions by a differentiable way; look for "
                    "no_grad, detach or rounding in dynamics and cost, or plan with CEM, which needs no gradient."
                )
            (gradient,) = torch.autograd.grad(cost.sum(), leaf)
        costs.append(cost.detach())
        gradients.append(gradient)
    tried, gradient = (
        priced(problem.place(torch.cat(costs, dim=1))),
        problem.place(torch.cat(gradients, dim=1)),
    )
    sound = tried.costs.isfinite() & gradient.isfinite().flatten(2).all(2)
    return Priced(tried.costs, tried.invalid | ~sound), gradient.where(sound[:, :, None, None], 0.0)


def _note(record: Record, tried: Priced, actions: Tensor, best: Found | None) -> Found:
    record.add(tried, torch.ones_like(tried.costs))
    return cheaper(best, choose_elites(actions, tried, 1).best)


class _Adam:
    # Kingma and Ba 2015 with their defaults. torch's own class would add a second of imports to the first plan.
    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.num = torch.zeros_like(like), torch.zeros_like(like), 0

    def direction(self, gradient: Tensor) -> Tensor:
        self.num += 1
        self.first = self.first.lerp(gradient, 0.1)
        self.second = self.second.lerp(gradient.square(), 0.001)
        scale = (self.second / (1 - 0.999**self.num)).sqrt() + 1e-8
        return self.first / (1 - 0.9**self.num) / scale
