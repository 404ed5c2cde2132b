"""The figures that tell a collapsing run from a healthy one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from torchjepa.engine.run import Run
from torchjepa.types import Loss


class Health:
    """Adds `health/<figure>` to every row.

    Args:
        measure: from a loss' detached features (of the last micro-batch on the main process) to named
            figures, `evaluation.spectrum.measure_health` for instance; called for steps with a row only.
    """

    def __init__(self, measure: Callable[[Mapping[str, Tensor]], Mapping[str, float]]) -> None:
        self._measure = measure

    def on_step(self, run: Run, step: int, loss: Loss) -> Mapping[str, float]:
        """The figures, on steps with a row."""
        if not run.logs(step):
            return {}
        return {f"health/{name}": value for name, value in self._measure(loss.features).items()}
