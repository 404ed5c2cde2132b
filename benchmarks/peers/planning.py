"""Planning as it is written down first: one candidate after another, one step after another; and CEM around it.

Beside it the same with all candidates in a batch, as V-JEPA 2-AC's planner has them: the start repeated for each, every
state kept until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Dynamics = Callable[[Any, Tensor], Any]
CostOfStates = Callable[[list[Any]], Tensor]


class Rollouts(Protocol):
    """Costs `[s]` of the candidates `[s, t, a]` of one start."""

    def __call__(self, dynamics: Dynamics, cost: CostOfStates, start: Any, candidates: Tensor) -> Tensor: ...


def one_by_one(dynamics: Dynamics, cost: CostOfStates, start: Any, candidates: Tensor) -> Tensor:
    costs = []
    for candidate in candidates:
        state, states = start, []
        for action in candidate:
            state = dynamics(state, action[None])
            states.append(state)
        costs.append(cost(states))
    return torch.cat(costs)


def all_at_once(dynamics: Dynamics, cost: CostOfStates, start: Any, candidates: Tensor) -> Tensor:
    num = len(candidates)
    state = pytree.tree_map(lambda x: x.repeat(num, *[1] * (x.ndim - 1)), start)
    states = []
    for step in range(candidates.shape[1]):
        state = dynamics(state, candidates[:, step])
        states.append(state)
    return cost(states)


@dataclass(frozen=True)
class CrossEntropy:
    """The published planner of V-JEPA 2-AC, for one start."""

    rollouts: Rollouts
    num_samples: int
    num_elites: int
    num_iterations: int
    max_norm: float
    momentum_mean: float = 0.15
    momentum_std: float = 0.15

    @torch.no_grad()
    def __call__(
        self,
        dynamics: Dynamics,
        cost: CostOfStates,
        start: Any,
        horizon: int,
        dim: int,
        draws: torch.Generator,
    ) -> Tensor:
        mean, std = torch.zeros(horizon, dim), torch.full((horizon, dim), self.max_norm)
        for _ in range(self.num_iterations):
            noise = torch.randn(self.num_samples, horizon, dim, generator=draws)
            candidates = torch.clip(mean + std * noise, -self.max_norm, self.max_norm)
            costs = self.rollouts(dynamics, cost, start, candidates)
            elites = candidates[torch.topk(costs, self.num_elites, largest=False).indices]
            mean = (1 - self.momentum_mean) * elites.mean(0) + self.momentum_mean * mean
            std = (1 - self.momentum_std) * elites.std(0) + self.momentum_std * std
        return mean
