"""MPPI: the mean of all candidates, each weighed by how little it costs (Williams et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.elites import Found, priced
from torchjepa.planning.problem import Problem, Record
from torchjepa.planning.space import ActionSpace, check_chunk_size, check_count, check_range
from torchjepa.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral control.

    Each iteration draws a_s = clip(mean + std * noise) and sets mean <- sum_s w_s a_s,
    w_s = exp(-c_s / temperature) / sum_r exp(-c_r / temperature). The standard deviation stays, times `decay`.
    The paper's price of control (its term u' Sigma^-1 noise) is left out; price actions in the cost.

    Args:
        space: the actions.
        temperature: in units of the cost, from 0 (the cheapest candidate alone) to infinity (the mean of all). There is
            no default: it says how much dearer a candidate may be and still count.
        num_samples: sequences drawn for each problem in an iteration; 400.
        num_iterations: 10, from nothing; with the last plan to start from, 1 (the paper) to 3 do.
        init_std: standard deviation of the draws, one number or one for each entry; half of the entry's range by
            default, 1 where it has none.
        decay: factor on the standard deviation after each iteration, in (0, 1]; 1 (the paper).
        chunk_size: the most rows (problems x samples) in one call of the dynamics; all by default.

    Raises:
        ValueError: a setting outside of its range.
    """

    space: ActionSpace
    temperature: float
    num_samples: int = 400
    num_iterations: int = 10
    init_std: float | Sequence[float] | None = None
    decay: float = 1.0
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_iterations"):
            check_count("MPPI", name, getattr(self, name))
        check_range("MPPI", "temperature", self.temperature, 0.0, math.inf)
        check_range("MPPI", "decay", self.decay, 0.0, 1.0)
        check_chunk_size("MPPI", self.chunk_size)
        self.space.std("MPPI", self.init_std)

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
            dynamics: `(state[b, ...], action[b, a]) -> state[b, ...]`.
            cost: `(trajectory[b, t, ...]) -> [b]`.
            state: where each problem starts, `[b, ...]`.
            horizon: number of actions t.
            generator: source of the draws, which all problems share.
            start: the first of these sequences is the first mean; the middle of the space by default.

        Returns:
            The plan, the last mean; its info a `PlanInfo`.

        Raises:
            ValueError: arguments that do not fit each other; `NonFiniteError` where the result has no finite cost.
        """
        problem = Problem("MPPI", dynamics, cost, state, self.space, horizon, generator, self.chunk_size)
        mean = problem.starts(start)[:, 0]
        std = problem.entries("init_std", self.space.std("MPPI", self.init_std))
        record = Record()
        for iteration in range(self.num_iterations):
            noise = self.decay**iteration * std[:, None] * problem.draw(self.num_samples)
            candidates = self.space.clamp(mean[:, None] + noise)
            tried = problem.costs(candidates)
            weights = path_weights(tried.costs, self.temperature)
            # Where all weights are 0 nothing has been learned, and the mean stays.
            learned = weights.sum(1)[:, None, None] > 0
            mean = torch.where(learned, torch.einsum("bs,bsta->bta", weights, candidates), mean)
            mean = self.space.clamp(mean)  # rounding can leave the bounds
            record.add(tried, weights)
        cost_of_mean = problem.costs(mean[:, None]).costs[:, 0]
        spread = self.decay ** (self.num_iterations - 1) * std
        return problem.plan(Found(mean, cost_of_mean), record.info(mean, spread, mean[:, None]))


def path_weights(costs: Float[Tensor, "b s"], temperature: float) -> Float[Tensor, "b s"]:
    """Weights exp(-c / temperature), of sum 1, without overflow at any temperature.

    Args:
        costs: of the candidates; NaN and infinite ones weigh nothing.
        temperature: from 0, where the cheapest share all weight, to infinity, where all are equal.

    Returns:
        `[b, s]`; zeros in a row without a finite cost.
    """
    costs = priced(costs).costs
    finite = costs.isfinite()
    gap = costs.where(finite, 0.0) - costs.amin(1, keepdim=True)
    # A gap of 0 has exponent 0 at temperature 0 too, where 0 / 0 would be NaN.
    exponent = (-gap / temperature).masked_fill(gap <= 0, 0.0)
    weights = exponent.exp() * finite
    return weights / weights.sum(1, keepdim=True).clamp(min=1.0)
