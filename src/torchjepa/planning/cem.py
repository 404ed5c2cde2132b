"""The cross-entropy method: fit a Gaussian to the best of its own draws, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.cross_entropy import Gaussian, check_settings, search
from torchjepa.planning.elites import Elites
from torchjepa.planning.problem import Problem
from torchjepa.planning.space import ActionSpace, check_range
from torchjepa.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method as V-JEPA 2-AC plans with it.

    Each iteration draws a_s = clip(mean + std * noise), takes the cheapest as elites, and sets
    mean <- (1 - m) mean_elite + m mean, std <- (1 - n) std_elite + n std (unbiased). Entry by entry, step by step.
    LeWM plans with 300 samples, 30 elites and 30 iterations.

    Args:
        space: the actions.
        num_samples: sequences drawn for each problem in an iteration; 400.
        num_elites: how many of them are fitted; 10.
        num_iterations: 10. (These three, and the momenta, are V-JEPA 2-AC's `WorldModel`; the paper takes 800 samples.)
        momentum_mean: m, in [0, 1]; 0.15.
        momentum_std: n, in [0, 1]; 0.15.
        init_std: standard deviation of the first draws, one number or one for each entry; half of the entry's range by
            default, 1 where it has none (V-JEPA 2-AC: the greatest step; 1 for the gripper).
        min_std: least standard deviation; 0 by default.
        result: `"mean"` of the last distribution (V-JEPA 2-AC), whose errors average out, or the `"best"` sequence ever
            tried, the mean included.
        chunk_size: the most rows (problems x samples) in one call of the dynamics; all by default.

    Raises:
        ValueError: a setting outside of its range, or more elites than samples.
    """

    space: ActionSpace
    num_samples: int = 400
    num_elites: int = 10
    num_iterations: int = 10
    momentum_mean: float = 0.15
    momentum_std: float = 0.15
    init_std: float | Sequence[float] | None = None
    min_std: float = 0.0
    result: Literal["mean", "best"] = "mean"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_settings("CEM", self)
        for name in ("momentum_mean", "momentum_std"):
            check_range("CEM", name, getattr(self, name), 0.0, 1.0)

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
            The plan, its info a `PlanInfo`; its sequences are the mean and the last elites.

        Raises:
            ValueError: arguments that do not fit each other; `NonFiniteError` where the result has no finite cost.
        """
        problem = Problem("CEM", dynamics, cost, state, self.space, horizon, generator, self.chunk_size)

        def population(iteration: int, believed: Gaussian, elites: Elites | None) -> Tensor:
            return believed.sample(problem.draw(self.num_samples))

        return search(
            problem, self, problem.starts(start)[:, 0], (self.momentum_mean, self.momentum_std), population
        )
