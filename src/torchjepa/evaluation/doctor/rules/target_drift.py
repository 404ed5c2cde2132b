"""Target drift: the target network runs away from the online one, in scale or in place."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Evidence, Finding, Verdict

_ADVICE = (
    "Normalise targets: target_norm=LayerNormTargets().",
    "Lower the momentum if the target lags far behind (0.996 rather than 0.9999 in short runs; 1 never moves), "
    "raise it towards 0.996-0.999 if both run away together.",
    "Lower --lr by 3 to 10, set --clip-grad 1.",
)


def find(case: Case) -> Finding | None:
    """Scales that differ, or a spread that changes by a multiple, or a predictor left behind."""
    if case.warming_up:
        return None
    evidence = _apart(case) + _moving(case)
    if not evidence:
        return None
    return Finding(
        Verdict.TARGET_DRIFT,
        "the targets do not stay where the predictor can follow: their scale changes, or differs from the "
        "online encoder's. A loss that rises after its first drop is normal, one that rises with its targets "
        "is not.",
        evidence,
        _ADVICE,
    )


def _apart(case: Case) -> tuple[Evidence, ...]:
    most = case.thresholds.scale_ratio
    return case.above("target/scale_ratio", most) + case.below("target/scale_ratio", 1 / most)


def _moving(case: Case) -> tuple[Evidence, ...]:
    if case.unsettled:
        return ()
    most = case.thresholds.target_change
    changed = case.above("history/target_std_ratio", most) + case.below("history/target_std_ratio", 1 / most)
    if case.left_behind:
        changed += case.above("predictor/relative_error", case.thresholds.left_behind)
    return changed and changed + case.above("history/loss_ratio", 2.0)
