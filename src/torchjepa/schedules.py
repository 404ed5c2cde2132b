"""Learning rate and weight decay as pure functions of the 0-based optimizer update.

The official I-JEPA and V-JEPA code advances its schedules before the update, so that its first update uses
k = 1; these are indexed by `step` = k - 1 and give its numbers. Past the last step they stay at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine: the learning rate of I-JEPA and V-JEPA.

    With k = step + 1, W warm-up steps and T steps in all:
    k < W: start + (base - start) k / W; after: final + (base - final) (1 + cos(pi (k - W) / (T - W))) / 2.

    Args:
        base: the value at the end of the warm-up (I-JEPA: 1e-3 for a global batch of 2048).
        start: the value that the warm-up starts from (I-JEPA: 2e-4).
        final: the value at the last step (I-JEPA: 1e-6).
        warmup_steps: W, in optimizer updates (I-JEPA: 40 of 300 epochs).
        total_steps: T, in optimizer updates.

    Raises:
        ValueError: a value is negative or not finite, or the steps are not 0 <= W <= T with T at least 1.
    """

    base: float
    start: float
    final: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        for name in ("base", "start", "final"):
            _check_value(f"WarmupCosine: {name}", getattr(self, name))
        _check_total("WarmupCosine", self.total_steps)
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(
                f"WarmupCosine: warmup_steps must lie between 0 and total_steps = {self.total_steps}, got "
                f"{self.warmup_steps!r}; a run that ends inside its warm-up never reaches its learning rate."
            )

    def __call__(self, step: int) -> float:
        """The value for the update `step`, counted from 0."""
        k = _update_number("WarmupCosine", step, self.total_steps)
        if k < self.warmup_steps:
            return self.start + (self.base - self.start) * k / self.warmup_steps
        progress = (k - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return _half_cosine(self.base, self.final, progress)


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine from `start` to `final`: the weight decay of I-JEPA and V-JEPA.

    With k = step + 1: final + (start - final) (1 + cos(pi k / T)) / 2.

    Args:
        start: the value before the first update (I-JEPA: 0.04).
        final: the value at the last step (I-JEPA: 0.4).
        total_steps: T, in optimizer updates.

    Raises:
        ValueError: a value is negative or not finite, or T is below 1.
    """

    start: float
    final: float
    total_steps: int

    def __post_init__(self) -> None:
        for name in ("start", "final"):
            _check_value(f"CosineSchedule: {name}", getattr(self, name))
        _check_total("CosineSchedule", self.total_steps)

    def __call__(self, step: int) -> float:
        """The value for the update `step`, counted from 0."""
        k = _update_number("CosineSchedule", step, self.total_steps)
        return _half_cosine(self.start, self.final, k / self.total_steps)


def _half_cosine(start: float, final: float, progress: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _update_number(name: str, step: int, total_steps: int) -> int:
    if step < 0:
        raise ValueError(
            f"{name}: step must be at least 0, got {step!r}; steps count optimizer updates from 0."
        )
    return min(step + 1, total_steps)


def _check_value(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")


def _check_total(name: str, total_steps: int) -> None:
    if not total_steps >= 1:
        raise ValueError(f"{name}: total_steps must be at least 1, got {total_steps!r}.")
