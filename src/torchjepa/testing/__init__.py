"""Contract checks that users run on their own parts, and a harness for several processes."""

from torchjepa.testing.check_energy import check_energy
from torchjepa.testing.check_mask import check_mask
from torchjepa.testing.check_planner import check_planner
from torchjepa.testing.check_regularizer import check_regularizer
from torchjepa.testing.ranks import run_on_ranks

__all__ = ["check_energy", "check_mask", "check_planner", "check_regularizer", "run_on_ranks"]
