"""Planning: actions of least cost under a dynamics, both of them plain functions.

A planner is any object with `plan(dynamics, cost, state, *, horizon, generator) -> Plan`;
`torchjepa.testing.check_planner` judges one.
"""

from torchjepa.planning.cem import CEM
from torchjepa.planning.costs import Acted, ActionPenalty, GoalCost, remember_actions
from torchjepa.planning.gradient import GradientPlanner
from torchjepa.planning.icem import ICEM
from torchjepa.planning.mpc import MPC
from torchjepa.planning.mppi import MPPI
from torchjepa.planning.problem import PlanInfo
from torchjepa.planning.random_shooting import RandomShooting
from torchjepa.planning.rollout import StepCost, candidate_costs, rollout
from torchjepa.planning.space import ActionSpace
from torchjepa.types import Cost, Dynamics, Plan, Planner

__all__ = [
    "Acted",
    "ActionPenalty",
    "ActionSpace",
    "CEM",
    "Cost",
    "Dynamics",
    "GoalCost",
    "GradientPlanner",
    "ICEM",
    "MPC",
    "MPPI",
    "Plan",
    "PlanInfo",
    "Planner",
    "RandomShooting",
    "StepCost",
    "candidate_costs",
    "remember_actions",
    "rollout",
]
