"""Contract checks that users run on their own parts, and a harness for several processes."""

from torchjepa.testing.ranks import run_on_ranks

__all__ = ["run_on_ranks"]
