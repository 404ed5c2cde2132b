"""A point mass driven to a goal by each planner, on an open floor and through the door between two rooms.

    python examples/plan_point_mass.py

The dynamics are ten lines of arithmetic, and know no planner. Every planner drives eight starts at once and plans again
after every three steps from what is left of its last plan. Printed: the mean distance to the goal at the end, the share
that came through the door, and seconds.
"""

import time
from functools import partial

import torch
from torch import Tensor

from torchjepa.energy import L2Energy
from torchjepa.planning import (
    CEM,
    ICEM,
    MPC,
    MPPI,
    ActionSpace,
    GoalCost,
    GradientPlanner,
    Planner,
    RandomShooting,
)

SPACE = ActionSpace(2, low=-1.0, high=1.0)
GOAL = torch.tensor([[0.8, -0.6]])
DOOR = (0.2, 0.6)  # the wall stands at x = 0; its door reaches from and to these y


def move(state: Tensor, action: Tensor, *, wall: bool) -> Tensor:
    """Where a push `[b, 2]` takes a mass at `[b, (x, y, speed of x, speed of y)]`."""
    place, speed = state.split(2, dim=1)
    speed = 0.8 * speed + 0.1 * action
    there = place + speed
    if wall:
        crosses = (place[:, :1] < 0) != (there[:, :1] < 0)
        at_door = (there[:, 1:] > DOOR[0]) & (there[:, 1:] < DOOR[1])
        blocked = crosses & ~at_door
        there, speed = there.where(~blocked, place), speed.where(~blocked, 0.0)
    return torch.cat([there, speed], dim=1)


def starts(num: int) -> Tensor:
    """Masses at rest in the left room."""
    places = torch.rand(num, 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([places * torch.tensor([0.6, 1.6]) - 0.8, torch.zeros(num, 2)], dim=1)


def drive(planner: Planner, *, wall: bool, num_steps: int = 45) -> tuple[float, float]:
    """The mean distance to the goal in the end, and the share of the masses that are in its room."""
    dynamics = partial(move, wall=wall)
    cost = GoalCost(L2Energy(), GOAL, over="sum", tokens=lambda state: state[:, :2])
    generator = torch.Generator().manual_seed(0)
    controller = MPC(planner, dynamics, cost, horizon=24, generator=generator, replan_every=3)
    state = starts(8)
    for _ in range(num_steps):
        state = dynamics(state, controller.step(state))
    return float((state[:, :2] - GOAL).norm(dim=1).mean()), float((state[:, 0] > 0).float().mean())


def main() -> None:
    """Drive with each planner."""
    planners = {
        "random shooting, 1000": RandomShooting(SPACE, num_samples=1000),
        "CEM, 5 x 200": CEM(SPACE, num_samples=200, num_elites=20, num_iterations=5),
        "iCEM, 5 x 300 to 123": ICEM(SPACE, num_samples=300, num_elites=20, num_iterations=5),
        "MPPI, 5 x 200": MPPI(SPACE, temperature=0.02, num_samples=200, num_iterations=5, decay=0.6),
        "gradient, 8 starts x 20": GradientPlanner(SPACE, num_iterations=20, num_starts=8),
    }
    print(f"{'planner':25s} {'open floor':>10s} {'two rooms':>10s} {'through':>8s} {'seconds':>8s}")
    for name, planner in planners.items():
        start = time.perf_counter()
        (floor, _), (rooms, through) = (drive(planner, wall=wall) for wall in (False, True))
        print(f"{name:25s} {floor:10.3f} {rooms:10.3f} {through:8.0%} {time.perf_counter() - start:8.1f}")


if __name__ == "__main__":
    main()
