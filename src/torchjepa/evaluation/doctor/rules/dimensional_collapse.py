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
    """A rank that is small against the attainable one, most dimensions dead, or a projector too narrow."""
    if case.too_few or case.warming_up:
        return None
    evidence = _encoder(case) + _projector(case)
    if not evidence:
        return None
    return Finding(
        Verdict.DIMENSIONAL_COLLAPSE,
        "the features vary along a few directions only; the other dimensions repeat them or are dead. Where "
        "only the projector's do so, the encoder is kept from it by nothing in the loss.",
        evidence,
        _ADVICE,
    )


def _encoder(case: Case) -> tuple[Evidence, ...]:
    limits, attainable = case.thresholds, case["encoder/attainable_rank"]
    if attainable <= 2 * limits.min_rank:
        return ()
    holding = min(limits.max_rank_95, max(limits.min_rank, limits.rank_95_share * attainable))
    return (
        *case.below("encoder/effective_rank", max(limits.min_rank, limits.rank_share * attainable)),
        *case.below("encoder/rank_95", holding),
        *case.above("encoder/top_share", limits.top_share),
        *case.above("encoder/dead_share", limits.dead_share),
    )


def _projector(case: Case) -> tuple[Evidence, ...]:
    limits, attainable = case.thresholds, case["projector/attainable_rank"]
    narrow = case.below("projector/dim", min(limits.projector_dim, case["encoder/dim"] / 4))
    if narrow or attainable <= 2 * limits.min_rank:
        return narrow
    # Not as a share: healthy runs on ten classes live in 7 of 128 directions, or hold 95 % in three.
    return (
        *case.below("projector/effective_rank", min(limits.projector_rank, attainable / 2)),
        *case.below("projector/rank_95", limits.min_rank),
    )
