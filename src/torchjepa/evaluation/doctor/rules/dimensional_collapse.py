"""Dimensional collapse: features vary, but along a few directions only (Jing et al. 2022)."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Evidence, Finding, Verdict

_ADVICE = (
    "Raise the weight that decorrelates: --regularizer.nu-cov of VICReg 1 -> 2 to 10, Barlow Twins' "
    "off-diagonal weight, or SIGReg's lambda to 0.05.",
    "Widen the projector (--projector-dim 4 times the encoder's width), or let the regularizer see the "
    "encoder's features.",
    "Lower --weight-decay and --lr by 3.",
    "Make the task need more: stronger augmentation, larger masked blocks.",
)


def find(case: Case) -> Finding | None:
    """A rank that is small against the attainable one, or most dimensions dead."""
    if case.too_few or case.warming_up:
        return None
    evidence = _low_rank(case) + case.above("encoder/dead_share", case.thresholds.dead_share)
    if not evidence:
        return None
    return Finding(
        Verdict.DIMENSIONAL_COLLAPSE,
        "the features vary along a few directions only; the other dimensions repeat them or are dead.",
        (*evidence, case.evidence("encoder/top_share", "below 0.5")),
        _ADVICE,
    )


def _low_rank(case: Case) -> tuple[Evidence, ...]:
    limits = case.thresholds
    least = max(limits.min_rank, limits.rank_share * case["encoder/attainable_rank"])
    if case["encoder/attainable_rank"] <= 2 * limits.min_rank:
        return ()
    return case.below("encoder/effective_rank", least)
