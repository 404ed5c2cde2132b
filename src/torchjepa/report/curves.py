"""The curves of a run, from the lines of its `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchjepa.report.plots import Line, draw_lines


@dataclass(frozen=True)
class Curve:
    """A figure of the report's training section.

    Args:
        title: what it shows.
        svg: the figure, an inline SVG element.
        caption: how to read it.
    """

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class _Plan:
    name: str
    title: str
    keys: tuple[str, ...]
    y_label: str
    caption: str
    prefix: str = ""
    log_y: bool = False
    dashed: tuple[str, ...] = ()
    from_zero: bool = False
    at_least: int = 1
    if_varying: bool = False

    def covers(self, name: str) -> bool:
        return name in self.keys or bool(self.prefix and name.startswith(self.prefix))


_PLANS = (
    _Plan(
        "loss",
        "Loss",
        ("loss",),
        "loss",
        "What is minimised, one point for each logged step.",
    ),
    _Plan(
        "terms",
        "Terms of the loss",
        (),
        "weighted term",
        "The named parts of the loss. One that stops moving early is either solved or ignored.",
        prefix="loss/",
        log_y=True,
        at_least=2,
    ),
    _Plan(
        "rank",
        "Effective rank",
        ("health/effective_rank", "health/max_rank"),
        "directions",
        "How many directions the pooled features use, beside the most that a batch of this size can show. "
        "A fall towards 1 is a collapse to a line.",
        dashed=("health/max_rank",),
        from_zero=True,
    ),
    _Plan(
        "spread",
        "Spread of the features",
        ("health/std",),
        "standard deviation",
        "Standard deviation over the samples, averaged over the dimensions. A fall to 0 is a collapse to "
        "a point.",
        from_zero=True,
    ),
    _Plan(
        "likeness",
        "Likeness of samples",
        ("health/mean_cosine",),
        "mean cosine",
        "Mean cosine similarity between the features of two different samples. At 1 all samples look "
        "alike to the encoder.",
    ),
    _Plan(
        "directions",
        "Spread of directions",
        ("health/normalized_std", "health/top_share"),
        "share",
        "Spread of the features' directions, 1 at most, and the share of their variance along the strongest one. A "
        "spread of 0 is a collapse to a point, a share of 1 one to a line.",
        from_zero=True,
    ),
    _Plan(
        "tokens",
        "Spread of the tokens",
        ("health/token_share",),
        "share within a sample",
        "Share of the tokens' variance that lies within a sample and not between samples. At 0 all tokens of a "
        "sample say the same.",
        from_zero=True,
    ),
    _Plan(
        "prediction",
        "Prediction error",
        ("health/relative_error",),
        "relative to the mean target",
        "Squared error of the predictor relative to always predicting the mean target: 1 is no better "
        "than that, 0 is perfect.",
        from_zero=True,
    ),
    _Plan(
        "target",
        "Targets",
        ("health/target_std", "health/target_distance"),
        "features, or share",
        "Standard deviation of the targets over the samples, and how far the target network's tokens are from the "
        "encoder's, relative to their size. A steady rise or fall of either is a target that drifts.",
        from_zero=True,
    ),
    _Plan(
        "probe",
        "kNN probe",
        ("probe/knn",),
        "accuracy",
        "Accuracy of a kNN probe on a sample of the labelled data while the encoder trains.",
    ),
    _Plan(
        "lr",
        "Learning rate",
        ("lr",),
        "learning rate",
        "Warm-up, then cosine decay.",
    ),
    _Plan(
        "decay",
        "Weight decay",
        ("weight_decay",),
        "weight decay",
        "Not applied to biases and one-dimensional parameters.",
        if_varying=True,
    ),
    _Plan(
        "momentum",
        "Momentum of the target",
        ("momentum",),
        "momentum",
        "The share of itself that the target encoder keeps at every step.",
        if_varying=True,
    ),
)
_LABELS = {
    "health/effective_rank": "features",
    "health/max_rank": "attainable with the batch",
    "health/normalized_std": "spread of directions",
    "health/top_share": "strongest direction",
    "health/target_std": "standard deviation",
    "health/target_distance": "distance from the encoder",
}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line torn by a killed run is left out.

    Args:
        path: the file; no rows where there is none.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from None
            break
        if isinstance(row, dict):
            rows.append(row)
    return rows


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Every figure that the rows have something for.

    Args:
        rows: rows with a `step` and named numbers.
    """
    columns = _columns(rows)
    drawn = [(plan, _lines(plan, columns)) for plan in _PLANS]
    return [Curve(plan.title, _figure(plan, lines), plan.caption) for plan, lines in drawn if lines]


def _lines(plan: _Plan, columns: Mapping[str, tuple[list[float], list[float]]]) -> list[Line]:
    names = [name for name in columns if plan.covers(name)]
    if len(names) < plan.at_least or (plan.if_varying and all(len(set(columns[n][1])) == 1 for n in names)):
        return []
    return [Line(_label(name), *columns[name], dashed=name in plan.dashed) for name in names]


def _figure(plan: _Plan, lines: Sequence[Line]) -> str:
    # A term that goes through zero (or below) has no place on a logarithmic axis.
    log_y = plan.log_y and all(min(line.y) > 0 for line in lines)
    return draw_lines(
        plan.name, lines, x_label="step", y_label=plan.y_label, log_y=log_y, from_zero=plan.from_zero
    )


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(float(row.get("step", len(steps))))
                values.append(float(value))
    return columns


def _label(name: str) -> str:
    return _LABELS.get(name, name.rsplit("/", 1)[-1].replace("_", " "))
