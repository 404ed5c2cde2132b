"""What the planners share: the problem they search, its draws and costs, and the record of a search.

Axis letters of this file: `s` candidate sequences of one problem, `i` iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils import _pytree as pytree

from torchjepa.planning.elites import Found, Priced, priced
from torchjepa.planning.rollout import candidate_costs
from torchjepa.planning.space import ActionSpace, check_count, per_entry
from torchjepa.types import Cost, Dynamics, NonFiniteError, Plan


@dataclass(frozen=True)
class PlanInfo:
    """How a search went, for each of b problems and i iterations, and where it ended.

    Args:
        best: least cost among an iteration's candidates `[b, i]`, infinite where none was finite.
        mean: mean cost of its candidates with a finite one `[b, i]`, NaN where there was none.
        elite_mean: mean cost of the candidates that the planner learned from, in its own weights `[b, i]`.
        elite_std: standard deviation of the same `[b, i]`.
        num_invalid: how many candidates cost NaN or minus infinity `[b, i]`; they count as infinitely dear.
        center: mean of the last distribution of actions `[b, t, a]`.
        spread: its standard deviation `[b, t, a]`.
        sequences: what a next plan may start from `[b, k, t, a]`: the center, then other good sequences, best first.
    """

    best: Float[Tensor, "b i"]
    mean: Float[Tensor, "b i"]
    elite_mean: Float[Tensor, "b i"]
    elite_std: Float[Tensor, "b i"]
    num_invalid: Int64[Tensor, "b i"]
    center: Float[Tensor, "b t a"]
    spread: Float[Tensor, "b t a"]
    sequences: Float[Tensor, "b k t a"]


@dataclass(frozen=True)
class Problem:
    """b problems with one dynamics and cost, as a planner sees them.

    Arithmetic on actions is in float32 or wider; the dynamics gets them in the state's dtype. All problems share
    the draws, so that a plan does not depend on what it is batched with.

    Args:
        planner: who searches, for messages.
        dynamics: the dynamics.
        cost: the cost.
        state: where each problem starts, `[b, ...]`.
        space: the actions.
        horizon: number of actions.
        generator: source of every draw.
        chunk_size: the most rows in one call of the dynamics.

    Raises:
        ValueError: a horizon below 1, or a state that does not hold tensors of one batch size.
    """

    planner: str
    dynamics: Dynamics
    cost: Cost
    state: Any
    space: ActionSpace
    horizon: int
    generator: torch.Generator
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_count(self.planner, "horizon", self.horizon)
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        if not shapes or any(
            not isinstance(s, tuple) or s[:1] in ((), (0,)) or s[0] != shapes[0][0] for s in shapes
        ):
            raise ValueError(
                f"{self.planner}: state must be a tensor [b, ...] with at least one row, or a tuple or dict of such "
                f"tensors of one b, got {shapes}; give a single state an axis of length 1 in front."
            )

    @cached_property
    def _leaves(self) -> list[Any]:
        return pytree.tree_leaves(self.state)

    @property
    def batch_size(self) -> int:
        """Number of problems b."""
        return len(self._leaves[0])

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of actions: that of the state's first floating tensor, float32 where there is none."""
        return next((leaf.dtype for leaf in self._leaves if leaf.is_floating_point()), torch.float32)

    def draw(self, *num: int, uniform: bool = False) -> Float[Tensor, "*num t a"]:
        """Normal or, in [0, 1), uniform numbers for so many candidates, the same on every device and in every dtype."""
        draw = torch.rand if uniform else torch.randn
        shape = (*num, self.horizon, self.space.dim)
        return self.place(
            draw(shape, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        )

    def place(self, x: Tensor) -> Tensor:
        """A tensor on the state's device, in the dtype of the arithmetic."""
        return x.to(self._leaves[0].device, torch.promote_types(self.dtype, torch.float32))

    def entries(self, name: str, value: float | Sequence[float]) -> Float[Tensor, "b t a"]:
        """A setting for each entry of an action, for each problem and step."""
        values = self.place(
            torch.tensor(per_entry(self.planner, name, value, self.space.dim), dtype=torch.float64)
        )
        return values.expand(self.batch_size, self.horizon, -1)

    def starts(self, start: Tensor | None) -> Float[Tensor, "b k t a"]:
        """The sequences to start from within the bounds; the middle of the space where none are given."""
        if start is None:
            return self.entries("center", self.space.center())[:, None]
        form = (self.batch_size, self.horizon, self.space.dim)
        if start.ndim != 4 or (start.shape[0], *start.shape[2:]) != form or start.shape[1] == 0:
            raise ValueError(
                f"{self.planner}: start must be action sequences [b, k, t, a] with (b, t, a) = {form}, got "
                f"{tuple(start.shape)}; `plan.info.sequences` of a plan of this length are such."
            )
        return self.space.clamp(self.place(start))

    def costs(self, candidates: Float[Tensor, "b s t a"]) -> Priced:
        """What candidates cost, with NaN and minus infinity made infinite."""
        found = candidate_costs(
            self.dynamics, self.cost, self.state, candidates.to(self.dtype), chunk_size=self.chunk_size
        )
        return priced(self.place(found))

    def plan(self, found: Found, info: PlanInfo) -> Plan:
        """The plan of these actions.

        Raises:
            NonFiniteError: some problem's actions have no finite cost.
        """
        failed = (~found.cost.isfinite()).nonzero()[:, 0].tolist()
        if failed:
            num_invalid = int(info.num_invalid[failed[0]].sum())
            raise NonFiniteError(
                f"{self.planner}: the plan of {len(failed)} of {self.batch_size} problems has no finite cost, first "
                f"that of problem {failed[0]}, where {num_invalid} candidates cost NaN or minus infinity. Look at "
                f"dynamics and cost over {self.horizon} steps, or bound the actions; where sequences have a finite "
                "cost and only their mean has none, ask for result='best'."
            )
        return Plan(found.actions.to(self.dtype), found.cost, info)


class Record:
    """Gathers the figures of a search, iteration by iteration, without reading them from the device."""

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, ...]] = []

    def add(self, priced: Priced, weights: Float[Tensor, "b s"]) -> None:
        """Note one iteration: the costs of its candidates, and the weights by which the planner learned from them."""
        costs, finite = priced.costs, priced.costs.isfinite()
        known = costs.where(finite, 0.0)
        mean = known.sum(1) / finite.sum(1)
        weights = weights.where(finite, 0.0)
        total = weights.sum(1)
        elite_mean = (weights * known).sum(1) / total
        elite_std = ((weights * (known - elite_mean[:, None]).square()).sum(1) / total).sqrt()
        self._rows.append((costs.amin(1), mean, elite_mean, elite_std, priced.invalid.sum(1)))

    def info(self, center: Tensor, spread: Tensor, sequences: Tensor) -> PlanInfo:
        """All figures, with the last distribution and what a next plan may start from."""
        figures = [torch.stack(column, dim=1) for column in zip(*self._rows)]
        return PlanInfo(*figures, center=center, spread=spread, sequences=sequences)
