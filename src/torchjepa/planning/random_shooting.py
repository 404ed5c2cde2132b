"""Random shooting: try many action sequences, keep the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.elites import choose_elites
from torchjepa.planning.problem import Problem, Record
from torchjepa.planning.space import ActionSpace, check_chunk_size, check_count
from torchjepa.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class RandomShooting:
    """The cheapest of many action sequences drawn at random.

    actions = argmin_s cost(a_s), a_s uniform within the bounds; in [-1, 1] where there are none. The baseline.

    Args:
        space: the actions.
        num_samples: sequences tried for each problem; 4,000 by default, what `CEM()` tries in all.
        chunk_size: the most rows (problems x sequences) in one call of the dynamics; all by default.

    Raises:
        ValueError: a count below 1.
    """

    space: ActionSpace
    num_samples: int = 4000
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_count("RandomShooting", "num_samples", self.num_samples)
        check_chunk_size("RandomShooting", self.chunk_size)

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
            start: sequences tried beside the drawn ones.

        Returns:
            The plan, its info a `PlanInfo` of one iteration.

        Raises:
            ValueError: arguments that do not fit each other; `NonFiniteError` where nothing tried has a finite cost.
        """
        problem = Problem(
            "RandomShooting", dynamics, cost, state, self.space, horizon, generator, self.chunk_size
        )
        drawn = self.space.from_uniform(problem.draw(self.num_samples, uniform=True))
        candidates = drawn.expand(problem.batch_size, -1, -1, -1)
        if start is not None:
            candidates = torch.cat([problem.starts(start), candidates], dim=1)
        priced = problem.costs(candidates)
        elites, record = choose_elites(candidates, priced, 1), Record()
        record.add(priced, elites.weights)
        spread = problem.entries("spread", self.space.spread()) / 3**0.5  # of a uniform variable
        return problem.plan(elites.best, record.info(elites.best.actions, spread, elites.sequences))
