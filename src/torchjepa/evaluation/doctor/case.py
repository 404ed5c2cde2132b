"""What a rule looks at: the figures, the thresholds, and how to cite them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torchjepa.evaluation.doctor.thresholds import Thresholds
from torchjepa.evaluation.doctor.verdict import Evidence


@dataclass(frozen=True)
class Case:
    """One patient.

    Args:
        figures: what was measured of features and history, by name.
        thresholds: where the lines are drawn.
    """

    figures: Mapping[str, float]
    thresholds: Thresholds

    def __getitem__(self, figure: str) -> float:
        """A figure; NaN, which is neither above nor below anything, where it was not measured."""
        return self.figures.get(figure, float("nan"))

    def evidence(self, figure: str, expected: str) -> Evidence:
        """A figure as evidence."""
        return Evidence(figure, self[figure], expected, figure.partition("/")[0])

    def below(self, figure: str, least: float) -> tuple[Evidence, ...]:
        """Evidence when the figure is below `least`, else nothing."""
        return (self.evidence(figure, f"at least {least:g}"),) if self[figure] < least else ()

    def above(self, figure: str, most: float) -> tuple[Evidence, ...]:
        """Evidence when the figure is above `most`, else nothing."""
        return (self.evidence(figure, f"at most {most:g}"),) if self[figure] > most else ()

    @property
    def samples_needed(self) -> int:
        """How many samples a verdict on the rank needs: a quarter of the dimensions, 32 to 256 of them.

        So that a healthy spectrum can show itself; four for each dimension do where those are fewer.
        """
        limits, dim = self.thresholds, self["encoder/dim"]
        if not dim > 0:
            return limits.min_samples
        wanted = min(max(limits.min_samples, math.ceil(dim / 4)), limits.max_samples)
        return int(min(wanted, 4 * dim))

    @property
    def too_few(self) -> bool:
        """Whether there are too few samples for a verdict on the rank."""
        return self["encoder/num_samples"] < self.samples_needed

    @property
    def warming_up(self) -> bool:
        """Whether the history is too short, or the learning rate still rising."""
        return self["history/steps"] < self.thresholds.warm_up_steps or self["history/lr_rising"] > 0

    @property
    def unsettled(self) -> bool:
        """Whether the history is too short for a trend, or for a predictor to have learned anything."""
        return self["history/steps"] < self.thresholds.settled_steps

    @property
    def left_behind(self) -> bool:
        """Whether a predictor that does not copy does worse than a constant could: its targets have moved on."""
        limits = self.thresholds
        copies = self["predictor/motion"] < limits.motion
        return not copies and self["predictor/relative_error"] > limits.left_behind
