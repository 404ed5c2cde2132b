"""What a dynamics makes of many action sequences, all of them in one call a step.

Axis letters of this file: `s` candidate sequences of one problem. Rows are problem by problem: candidate j of
problem i is row i * s + j.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from torchjepa import _vector_math as _vector_math
from torchjepa.planning.space import check_chunk_size
from torchjepa.types import Cost, Dynamics


@runtime_checkable
class StepCost(Protocol):
    """A cost that is a sum over steps: with it a rollout keeps one state of each candidate, and no trajectory."""

    def __call__(self, trajectory: Any, /) -> Float[Tensor, " b"]:
        """The cost of a trajectory, the sum of its steps'."""
        ...

    def step_cost(self, state: Any, step: int, horizon: int) -> Float[Tensor, " b"] | None:
        """What the states `[b, ...]` after action `step` of `horizon` add; `None` for nothing."""
        ...


def rollout(dynamics: Dynamics, state: Any, actions: Float[Tensor, "b t a"]) -> Any:
    """The states that a sequence of actions leads through, x_{t+1} = f(x_t, a_t).

    Args:
        dynamics: f, called t times with all rows.
        state: where each row starts, `[b, ...]`: a tensor, or a tuple, dict or other pytree of tensors.
        actions: what is done, `[b, t, a]`.

    Returns:
        The states after each action, `[b, t, ...]` in the form of `state`; the start is not among them.

    Raises:
        ValueError: state and actions have not the same number of rows, or the dynamics changes it.
    """
    _check_rows(state, len(actions), "state")
    states = []
    for action in actions.unbind(1):
        state = _step(dynamics, state, action)
        states.append(state)
    return pytree.tree_map(lambda *steps: torch.stack(steps, dim=1), *states)


def candidate_costs(
    dynamics: Dynamics,
    cost: Cost,
    state: Any,
    candidates: Float[Tensor, "b s t a"],
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "b s"]:
    """The costs of s action sequences for each of b problems.

    c_{ij} = cost(rollout(dynamics, state_i, candidates_{ij})), differentiable where both functions are. Each step is
    one call of the dynamics for all of them. A `StepCost` is summed on the way, and no trajectory is kept.

    Args:
        dynamics: called with rows problem by problem, s of each.
        cost: called likewise.
        state: where each problem starts, `[b, ...]`, as for `rollout`; its candidates share it.
        candidates: action sequences `[b, s, t, a]`.
        chunk_size: the most rows in one call, which bounds the memory; all at once by default. A call holds at least
            one candidate of each problem.

    Returns:
        `[b, s]`, as the cost function computed them, NaN included.

    Raises:
        ValueError: a chunk_size below 1, or rows that do not fit each other.
    """
    _check_rows(state, len(candidates), "state")
    parts = chunks(candidates, chunk_size)
    return torch.cat([_costs(dynamics, cost, state, part) for part in parts], dim=1)


def chunks(
    candidates: Float[Tensor, "b s t a"], chunk_size: int | None
) -> tuple[Float[Tensor, "b _ t a"], ...]:
    """Candidates in parts of at most `chunk_size` rows, but at least one candidate of each problem."""
    check_chunk_size("candidate_costs", chunk_size)
    b, s = candidates.shape[:2]
    return candidates.split(s if chunk_size is None else max(1, chunk_size // b), dim=1)


def _costs(dynamics: Dynamics, cost: Cost, state: Any, candidates: Tensor) -> Tensor:
    b, s, horizon, _ = candidates.shape
    actions = candidates.flatten(0, 1)
    # For one problem a view: the state is not copied for its candidates.
    state = pytree.tree_map(lambda x: x.unsqueeze(1).expand(b, s, *x.shape[1:]).flatten(0, 1), state)
    if isinstance(cost, StepCost):
        total = _running_cost(dynamics, cost, state, actions, horizon)
    else:
        total = cost(rollout(dynamics, state, actions))
    if not isinstance(total, Tensor) or total.shape != (b * s,):
        got = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
        raise ValueError(
            f"candidate_costs: the cost must give one number for each of {b * s} trajectories, [{b * s}], got {got}; "
            "take its mean over all other axes."
        )
    return total.unflatten(0, (b, s))


def _running_cost(dynamics: Dynamics, cost: StepCost, state: Any, actions: Tensor, horizon: int) -> Tensor:
    total: Tensor | None = None
    for step, action in enumerate(actions.unbind(1)):
        state = _step(dynamics, state, action)
        part = cost.step_cost(state, step, horizon)
        if part is not None:
            total = part if total is None else total + part
    if total is None:
        raise ValueError(
            f"candidate_costs: {type(cost).__name__}.step_cost gave None at each of {horizon} steps."
        )
    return total


def _step(dynamics: Dynamics, state: Any, action: Tensor) -> Any:
    state = dynamics(state, action)
    _check_rows(state, len(action), "the dynamics' next state")
    return state


def _check_rows(state: Any, num_rows: int, name: str) -> None:
    leaves = pytree.tree_leaves(state)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != num_rows:
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"rollout: {name} must hold tensors [{num_rows}, ...], one row for each action sequence, got {got}; "
                "give a single state an axis of length 1 in front."
            )
    if not leaves:
        raise ValueError(f"rollout: {name} must hold at least one tensor, got {state!r}.")
