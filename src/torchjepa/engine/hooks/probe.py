"""A judge that looks in while the run trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from torchjepa.engine.run import Run
from torchjepa.types import Loss


class Probe:
    """Adds `probe/<figure>` to the row of every `every`-th step and of the last.

    Args:
        every: steps between two looks.
        probe: from the learner, in evaluation mode and without gradients, to named figures; runs on the main
            process while the others wait.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, every: int, probe: Callable[[nn.Module], Mapping[str, float]]) -> None:
        if every < 1:
            raise ValueError(f"Probe: every must be at least 1, got {every}.")
        self.every = every
        self._probe = probe

    def needs_weights(self, run: Run, step: int) -> bool:
        """Whether this step is one to look at."""
        return run.settings.last_or_every(step, self.every)

    def on_step(self, run: Run, step: int, loss: Loss) -> Mapping[str, float]:
        """The figures, where they are due."""
        if not self.needs_weights(run, step):
            return {}
        run.learner.eval()
        try:
            with torch.no_grad():
                figures = self._probe(run.learner)
        finally:
            run.learner.train()
        return {f"probe/{name}": value for name, value in figures.items()}
