"""Complete collapse: every sample gives the same features, or features that are not numbers."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding, Verdict

_ADVICE = (
    "Give the run something that forbids a constant: raise the collapse regularizer's weight 2 to 4 times "
    "(VICReg's variance weight --regularizer.mu-var 25 -> 50; SIGReg's lambda to 0.05), or add one.",
    "With an EMA target raise its momentum towards 0.996-0.999 (video above 0.999; 0 is no target network).",
    "Lower --lr by 3 to 10 and lengthen the warm-up.",
    "Lower --weight-decay, to 0.04 say, if it is above 0.4.",
)
_DIVERGED = (
    "Lower --lr by 3 to 10, lengthen the warm-up, set --clip-grad 1.",
    "Look for NaN and constant samples in the data, and train in float32 or bfloat16 rather than float16.",
)

_ROUNDING = 1e-6  # of float32, with room


def find(case: Case) -> Finding | None:
    """All samples alike (by direction, by content of their tokens), spread gone, or values not finite."""
    if diverged := _diverged(case):
        return diverged
    limits = case.thresholds
    evidence = ()
    if not case.warming_up:
        evidence += case.below("encoder/relative_std", limits.relative_std)
        evidence += case.below("projector/relative_std", limits.projector_std)
        for name in ("tokens", "target_tokens"):
            evidence += case.below(f"{name}/content_share", limits.content_share)
        evidence += case.below("history/std_ratio", limits.std_drop)
    else:  # a fresh network's features are nearly alike, but not to the last digit
        evidence += case.below("encoder/relative_std", _ROUNDING)
    if not evidence:
        return None
    return Finding(
        Verdict.COMPLETE_COLLAPSE,
        "the features are nearly the same whatever the encoder sees. A high rank of the centred features does "
        "not speak against it: what is left of them is noise.",
        # The rank of the features as they are, with their mean, falls to 1 where the centred one rises.
        evidence
        + case.above("encoder/mean_cosine", 0.99)
        + case.below("encoder/rankme", case.thresholds.min_rank),
        _ADVICE,
    )


def _diverged(case: Case) -> Finding | None:
    names = [name for name, share in case.figures.items() if name.endswith("/non_finite_share") and share > 0]
    if not names:
        return None
    return Finding(
        Verdict.COMPLETE_COLLAPSE,
        "some features are NaN or infinite: the run diverged, or its data hold such values.",
        tuple(case.evidence(name, "0") for name in names),
        _DIVERGED,
    )
