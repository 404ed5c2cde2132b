"""Temporal collapse: features do not change over time, though clips differ."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding, Verdict

_ADVICE = (
    'Regularise over time as well: over="both" (VICReg, SIGReg), which asks for spread within a clip.',
    "Look at the clips: frozen or repeated frames, a stride that is too small; sample frames further apart.",
    "Predict further ahead, and give the predictor the action or an inverse-dynamics loss where there is one.",
    "With an EMA target raise its momentum above 0.999, as video recipes have it.",
)


def find(case: Case) -> Finding | None:
    """What varies, varies between clips only."""
    if case.warming_up:
        return None
    evidence = case.below("time/within_share", case.thresholds.time_share)
    if not evidence:
        return None
    return Finding(
        Verdict.TEMPORAL_COLLAPSE,
        "a clip's features stay the same from its first frame to its last.",
        evidence,
        _ADVICE,
    )
