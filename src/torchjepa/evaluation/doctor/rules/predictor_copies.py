"""Predictor copies: the prediction is the context again, or the mean target."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Evidence, Finding, Verdict

_ADVICE = (
    "Take away the short way: no skip from the context to the prediction, targets that do not overlap with the "
    "context, frames further apart.",
    "Make the task need the predictor: larger or more distant target blocks, a longer horizon.",
    "Give the predictor room: more blocks (--predictor-depth 6), a wider --predictor-dim.",
    "Raise --lr by 2 to 3, or train longer, if the error relative to the mean target still falls.",
)


def find(case: Case) -> Finding | None:
    """Prediction next to the context, or no better than the mean target."""
    if case.warming_up:
        return None
    evidence = _copied(case) or _mean(case)
    if not evidence:
        return None
    return Finding(
        Verdict.PREDICTOR_COPIES,
        "the predictor adds nothing: it repeats what it was given, or says the mean of all targets.",
        evidence,
        _ADVICE,
    )


def _copied(case: Case) -> tuple[Evidence, ...]:
    # A small step in the right direction is no copy: it must also gain next to nothing.
    moves = case.below("predictor/motion", case.thresholds.motion)
    gains = case.above("predictor/error_against_copy", case.thresholds.copy_error)
    return moves + gains if moves and gains else ()


def _mean(case: Case) -> tuple[Evidence, ...]:
    # A predictor starts by finding the mean: a healthy I-JEPA on digits stood at 1.00 until step 80.
    if case.unsettled or case.left_behind:
        return ()
    return case.above("predictor/relative_error", case.thresholds.relative_error)
