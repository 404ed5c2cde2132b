"""The doctor's figures of a run's history, the rows of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

Rows = Sequence[Mapping[str, float | None]]


def measure_history(rows: Rows) -> dict[str, float]:
    """Trends as `history/<figure>`; what the rows do not hold is left out.

    `steps` updates made, `lr_rising` 1 in the warm-up; `std_ratio` and `rank_ratio`, now against the highest;
    `loss_ratio`, now against the lowest; `target_std_ratio`, now against the middle of the run, where there are
    targets; `relative_error`, now. "Now" is the median of the last three rows.

    Args:
        rows: dictionaries as logged, oldest first; `None` and NaN are gaps.
    """
    if not rows:
        return {}
    figures = {"steps": float(rows[-1].get("step") or len(rows) - 1) + 1}
    rates = _series(rows, "lr")
    if len(rates) > 1:
        figures["lr_rising"] = float(rates[-1] > rates[-2])
    for name, key in (("std", "health/std"), ("rank", "health/effective_rank")):
        if values := _series(rows, key):
            figures[f"{name}_ratio"] = _ratio(_now(values), max(values))
    if values := _series(rows, "loss"):
        figures["loss_ratio"] = _ratio(_now(values), min(values))
    if values := _series(rows, "health/target_std"):
        figures["target_std_ratio"] = _ratio(_now(values), values[len(values) // 2])
    if values := _series(rows, "health/relative_error"):
        figures["relative_error"] = _now(values)
    return {f"history/{name}": value for name, value in figures.items()}


def _series(rows: Rows, name: str) -> list[float]:
    values = (row.get(name) for row in rows)
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _now(values: Sequence[float]) -> float:
    return median(values[-3:])


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
