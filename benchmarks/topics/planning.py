"""Planning: costs of candidate action sequences and whole CEM plans, beside rollouts one by one and a plain batch

*latent*: an MLP of 192-512-512-192 with actions of 10 numbers and 300 candidates of 5 steps, the sizes of LeWM's
planner. *frames*: V-JEPA 2-AC's predictor, small (128 x 4, 4 x 4 tokens a frame), 200 candidates of 2 frames, each
predicted from all frames before it. Same draws for all; *apart* is of the costs, or of the planned actions; *x of
limit* is over the matrix products of ours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Comparison, Contenders, Peak, count_products, products, relative_distance
from benchmarks.peers.planning import CrossEntropy, Rollouts, all_at_once, one_by_one
from torchjepa.energy import L2Energy, LpEnergy
from torchjepa.nn import ActionPredictor
from torchjepa.planning import CEM, ActionSpace, GoalCost, candidate_costs
from torchjepa.types import Grid

_PEERS: dict[str, Rollouts] = {"one by one": one_by_one, "plain batch": all_at_once}


class Task(NamedTuple):
    """What is planned: one start, its dynamics and cost, and sizes."""

    dynamics: Callable[[Any, Tensor], Any]
    cost: GoalCost
    start: Any
    num_candidates: int
    horizon: int
    action_dim: int


def latent() -> Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(202, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 192))
    start, goal = torch.randn(2, 1, 192).unbind(0)
    return Task(lambda z, a: net(torch.cat([z, a], dim=1)), GoalCost(L2Energy(), goal), start, 300, 5, 10)


class Robot(NamedTuple):
    """The frames so far, where the arm was at each, and what was done between them."""

    tokens: Tensor
    poses: Tensor
    actions: Tensor


class PredictFrame:
    """V-JEPA 2-AC's predictor as dynamics: all frames so far in, the next one out, layer-normalised."""

    def __init__(self, side: int, dim: int) -> None:
        self.side, self.dim = side, dim
        self.net = ActionPredictor(
            encoder_dim=dim, extrinsics_dim=None, embed_dim=128, depth=4, num_heads=4, init_std=0.1
        )

    def __call__(self, state: Robot, action: Tensor) -> Robot:
        actions = torch.cat([state.actions, action[:, None]], dim=1)
        grid = Grid(t=actions.shape[1], h=self.side, w=self.side)
        frame = self.net(state.tokens, actions, state.poses, grid)[:, -(self.side**2) :]
        pose = state.poses[:, -1:] + action[:, None]
        tokens = torch.cat([state.tokens, F.layer_norm(frame, (self.dim,))], dim=1)
        return Robot(tokens, torch.cat([state.poses, pose], dim=1), actions)


def frames() -> Task:
    torch.manual_seed(0)
    side, dim = 4, 128
    tokens, goal = F.layer_norm(torch.randn(2, 1, side**2, dim), (dim,)).unbind(0)
    start = Robot(tokens, torch.zeros(1, 1, 7), torch.zeros(1, 0, 7))
    cost = GoalCost(LpEnergy(), goal, tokens=lambda state: state.tokens[:, -(side**2) :])
    return Task(PredictFrame(side, dim), cost, start, 200, 2, 7)


def _cost_of_last(cost: GoalCost, states: list[Any]) -> Tensor:
    found = states[-1] if cost.tokens is None else cost.tokens(states[-1])
    difference = found - cost.goal
    # LeWM: mean square; V-JEPA 2-AC: mean absolute value.
    difference = difference.square() if isinstance(cost.energy, L2Energy) else difference.abs()
    return difference.flatten(1).mean(1)


def _build_rollouts(make: Callable[[], Task], rollouts: Rollouts) -> Contenders:
    task = make()
    noise = torch.randn(task.num_candidates, task.horizon, task.action_dim)
    ours = torch.no_grad()(partial(candidate_costs, task.dynamics, task.cost, task.start, noise[None]))
    peer = torch.no_grad()(
        partial(rollouts, task.dynamics, partial(_cost_of_last, task.cost), task.start, noise)
    )
    return Contenders(ours, peer, products(count_products(ours)), relative_distance([ours()[0]], [peer()]))


def _build_plan(make: Callable[[], Task], rollouts: Rollouts, num_iterations: int) -> Contenders:
    task = make()
    space = ActionSpace(task.action_dim, low=-0.5, high=0.5)
    cem = CEM(space, num_samples=task.num_candidates, num_elites=10, num_iterations=num_iterations)
    loop = CrossEntropy(rollouts, task.num_candidates, 10, num_iterations, max_norm=0.5)

    def ours() -> Tensor:
        draws = torch.Generator().manual_seed(0)
        return cem.plan(task.dynamics, task.cost, task.start, horizon=task.horizon, generator=draws).actions[
            0
        ]

    def peer() -> Tensor:
        draws = torch.Generator().manual_seed(0)
        cost = partial(_cost_of_last, task.cost)
        return loop(task.dynamics, cost, task.start, task.horizon, task.action_dim, draws)

    return Contenders(ours, peer, products(count_products(ours)), relative_distance([ours()], [peer()]))


def _many_tokens() -> tuple[Any, GoalCost, Tensor, Tensor]:
    start, candidates = torch.zeros(1, 64, 192), torch.randn(1, 200, 16, 1)
    return lambda z, a: z + a[:, None], GoalCost(L2Energy(), torch.ones(1, 64, 192)), start, candidates


def memory_ours() -> Callable[[], object]:
    return partial(candidate_costs, *_many_tokens())


def memory_theirs() -> Callable[[], object]:
    dynamics, cost, start, candidates = _many_tokens()
    return partial(all_at_once, dynamics, partial(_cost_of_last, cost), start, candidates[0])


def comparisons() -> Iterator[Comparison | Peak]:
    for name, make, num_iterations in (("latent", latent, 10), ("frames", frames, 3)):
        task = make()
        what = f"{task.num_candidates} candidates of {task.horizon} steps"
        for peer, rollouts in _PEERS.items():
            yield Comparison(
                f"{name}, costs of {what}",
                peer,
                partial(_build_rollouts, make, rollouts),
                bar=5.0 if (name, peer) == ("latent", "one by one") else None,
                tolerance=1e-5,
            )
            yield Comparison(
                f"{name}, CEM plan of {num_iterations} x {what}",
                peer,
                partial(_build_plan, make, rollouts, num_iterations),
                tolerance=1e-4,
                pairs=7,
            )
    module = "benchmarks.topics.planning"
    yield Peak(
        "memory of 200 candidates of 16 steps, 64 x 192 tokens each",
        "plain batch",
        f"{module}:memory_ours",
        f"{module}:memory_theirs",
    )
