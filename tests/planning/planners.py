"""Every planner, small, by name: what tests of all of them run over."""

from torchjepa.planning import CEM, ICEM, MPPI, ActionSpace, GradientPlanner, RandomShooting

ALL = {
    "random": lambda space: RandomShooting(space, num_samples=200),
    "cem": lambda space: CEM(space, num_samples=60, num_iterations=4),
    "cem-best": lambda space: CEM(space, num_samples=60, num_iterations=4, result="best", min_std=0.05),
    "icem": lambda space: ICEM(space, num_samples=40),
    "icem-mean": lambda space: ICEM(space, num_samples=41, result="mean", beta=0.5),
    "mppi": lambda space: MPPI(space, temperature=0.05, num_samples=60, num_iterations=4, decay=0.8),
    "gradient": lambda space: GradientPlanner(space, num_iterations=20, num_starts=6),
}
SPACES = {
    "free": ActionSpace(2),
    "bounded": ActionSpace(3, low=(-1.0, -0.5, 0.0), high=(1.0, 0.5, 0.25)),
    "half-bounded": ActionSpace(2, low=0.125),
    "one": ActionSpace(1, low=-0.1, high=0.1),
    "with-a-fixed-entry": ActionSpace(2, low=(-1.0, 0.25), high=(1.0, 0.25)),
}
