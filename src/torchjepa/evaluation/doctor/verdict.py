"""What the doctor says: verdicts, and the findings and figures behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What is the matter with a representation; the graver comes first."""

    COMPLETE_COLLAPSE = "complete collapse"
    DIMENSIONAL_COLLAPSE = "dimensional collapse"
    TOKEN_COLLAPSE = "token collapse"
    TEMPORAL_COLLAPSE = "temporal collapse"
    PREDICTOR_COPIES = "predictor copies"
    TARGET_DRIFT = "target drift"
    TOO_FEW_SAMPLES = "too few samples to tell"
    WARMING_UP = "still warming up"
    HEALTHY = "healthy"

    @property
    def gravity(self) -> int:
        """Its place in the order, 0 for the gravest."""
        return list(Verdict).index(self)

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 unhealthy, 2 cannot tell."""
        if self is Verdict.HEALTHY:
            return 0
        return 2 if self in (Verdict.TOO_FEW_SAMPLES, Verdict.WARMING_UP) else 1


@dataclass(frozen=True)
class Evidence:
    """A figure that speaks for a finding.

    Args:
        figure: its name in `Diagnosis.figures`.
        value: what was measured.
        expected: what a healthy run has, in words: "at least 0.05".
        where: what it was measured on: "encoder", "history".
    """

    figure: str
    value: float
    expected: str
    where: str

    def text(self) -> str:
        """One line: the figure, its value, what was expected."""
        return f"{self.figure} is {_number(self.value)} (expected {self.expected})"


@dataclass(frozen=True)
class Finding:
    """Something that is the matter.

    Args:
        verdict: what.
        summary: what it means, a sentence in plain words.
        evidence: the figures that led to it.
        advice: which knob to turn in which direction, the likeliest remedy first.
    """

    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        verdict: the gravest finding's, or healthy.
        findings: all that is the matter, the gravest first.
        figures: everything that was measured, by name: "encoder/effective_rank".
        num_samples: how many samples that rests on.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    num_samples: int

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 unhealthy, 2 cannot tell."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dictionaries and lists; figures that are not finite are `None`."""
        return {
            "verdict": self.verdict.value,
            "exit_code": self.exit_code,
            "num_samples": self.num_samples,
            "findings": [
                {
                    "verdict": finding.verdict.value,
                    "summary": finding.summary,
                    "evidence": [{**vars(each), "value": _plain(each.value)} for each in finding.evidence],
                    "advice": list(finding.advice),
                }
                for finding in self.findings
            ],
            "figures": {name: _plain(value) for name, value in self.figures.items()},
        }

    def text(self) -> str:
        """The verdict in plain words: what was found, on what grounds, what to change."""
        lines = [f"Verdict: {self.verdict.value} ({self.num_samples} samples)."]
        if not self.findings:
            lines.append(_all_is_well(self.figures))
        for finding in self.findings:
            lines += ["", f"{finding.verdict.value.capitalize()}: {finding.summary}"]
            lines += [f"  - {each.text()}" for each in finding.evidence]
            lines += ["  What to change, the likeliest first:"] if finding.advice else []
            lines += [f"  {number}. {advice}" for number, advice in enumerate(finding.advice, 1)]
        return "\n".join(lines)


def _all_is_well(figures: Mapping[str, float]) -> str:
    if "encoder/effective_rank" not in figures:
        return "Nothing is the matter: no figure is out of its range."
    spread, rank, most = (
        _number(figures[f"encoder/{name}"])
        for name in ("normalized_std", "effective_rank", "attainable_rank")
    )
    return (
        f"Nothing is the matter: the features' directions spread by {spread} of 1, and they use {rank} of {most} "
        "attainable directions."
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
