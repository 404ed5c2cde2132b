"""Planning as V-JEPA 2-AC does: a predictor of frames for dynamics, the tokens of a picture for a goal, and CEM.

    python examples/plan_with_action_predictor.py

The network here is small and its weights are random, so that it runs in seconds: what is shown is the wiring. With the
released weights, `torchjepa.load` gives the predictor of 24 blocks and the encoder, whose tokens of the present and the
wanted frame go where random ones are now. The goal is what the network itself predicts for hidden actions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchjepa.energy import LpEnergy
from torchjepa.nn import ActionPredictor
from torchjepa.planning import CEM, ActionSpace, GoalCost
from torchjepa.types import Grid

SIDE, DIM, HORIZON = 4, 64, 2
# Of 7 entries, V-JEPA 2-AC plans translation and gripper; rotations stay 0.
SPACE = ActionSpace(7, low=(-0.05,) * 3 + (0.0,) * 3 + (-0.75,), high=(0.05,) * 3 + (0.0,) * 3 + (0.75,))


class Robot(NamedTuple):
    """The frames so far `[b, t*n, d]`, where the arm was at each `[b, t, 7]`, what was done between `[b, t-1, 7]`."""

    tokens: Tensor
    poses: Tensor
    actions: Tensor


class PredictFrame:
    """The dynamics: all frames so far and one more action in, the next frame and pose out."""

    def __init__(self, net: ActionPredictor) -> None:
        self.net = net

    def __call__(self, state: Robot, action: Tensor) -> Robot:
        """The state `[b, ...]` after an action `[b, 7]`."""
        actions = torch.cat([state.actions, action[:, None]], dim=1)
        grid = Grid(t=actions.shape[1], h=SIDE, w=SIDE)
        frame = self.net(state.tokens, actions, state.poses, grid)[:, -(SIDE**2) :]
        tokens = torch.cat([state.tokens, F.layer_norm(frame, (DIM,))], dim=1)
        # Rotations are not planned, so that poses add up; the gripper is open at 0 and closed at 1.
        pose = state.poses[:, -1] + action
        pose = torch.cat([pose[:, :6], pose[:, 6:].clamp(0, 1)], dim=1)
        return Robot(tokens, torch.cat([state.poses, pose[:, None]], dim=1), actions)


def last_frame(state: Robot) -> Tensor:
    """The tokens of the newest frame `[b, n, d]`."""
    return state.tokens[:, -(SIDE**2) :]


@torch.no_grad()
def main() -> None:
    """Plan to a goal that is known to be reachable."""
    net = ActionPredictor(
        encoder_dim=DIM, extrinsics_dim=None, embed_dim=64, depth=2, num_heads=2, init_std=0.3
    ).eval()
    dynamics = PredictFrame(net)
    generator = torch.Generator().manual_seed(0)
    frame = F.layer_norm(torch.randn(1, SIDE**2, DIM, generator=generator), (DIM,))
    state = Robot(frame, torch.zeros(1, 1, 7), torch.zeros(1, 0, 7))

    hidden = SPACE.clamp(0.04 * torch.randn(1, HORIZON, 7, generator=generator))
    goal, resting = state, state
    for action in hidden.unbind(1):
        goal, resting = dynamics(goal, action), dynamics(resting, torch.zeros(1, 7))

    # The mean absolute difference of the last frame's tokens: the energy that V-JEPA 2-AC is trained with.
    cost = GoalCost(LpEnergy(p=1.0), last_frame(goal), tokens=last_frame)
    # `WorldModel`'s numbers: 400 samples, 10 elites, 10 iterations, momenta 0.15; the gripper starts with std 1.
    planner = CEM(SPACE, init_std=(0.05,) * 3 + (0.0,) * 3 + (1.0,), chunk_size=200)
    plan = planner.plan(dynamics, cost, state, horizon=HORIZON, generator=generator)

    print(f"energy to the goal without moving {float(cost.step_cost(resting, 0, 1)):.4f}")
    for iteration, (best, mean) in enumerate(zip(plan.info.best[0], plan.info.mean[0])):
        print(f"iteration {iteration}: best {float(best):.4f}, mean {float(mean):.4f}")
    print(f"energy to the goal as planned {float(plan.cost):.4f}")
    for name, actions in (("hidden", hidden), ("planned", plan.actions)):
        rows = [", ".join(f"{x:.3f}" for x in row) for row in actions[0][:, [0, 1, 2, 6]].tolist()]
        print(f"{name} actions (x, y, z, gripper): {'; '.join(rows)}")


if __name__ == "__main__":
    main()
