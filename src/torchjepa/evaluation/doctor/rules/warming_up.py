"""Still warming up: the history is too short, or the figures still move fast."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding, Verdict


def find(case: Case) -> Finding | None:
    """A short history, or a learning rate that still rises."""
    if not case.warming_up:
        return None
    evidence = case.below("history/steps", case.thresholds.warm_up_steps) + case.above("history/lr_rising", 0)
    return Finding(
        Verdict.WARMING_UP,
        "the run has hardly begun; features of a fresh network are nearly alike and say nothing of its end.",
        evidence,
        ("Go on, and ask again when the learning rate has reached its peak.",),
    )
