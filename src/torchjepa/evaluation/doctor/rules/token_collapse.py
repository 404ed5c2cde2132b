"""Token collapse: all tokens of a sample are alike, though samples differ."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding, Verdict

_ADVICE = (
    "Predict more than one kind of place: several target blocks, each 15 to 20 % of the image, from a context "
    "that is well apart from them.",
    "Normalise targets by token, target_norm=LayerNormTargets(), or take out what all share with "
    "PositionStandardize().",
    'Put the regularizer on tokens, not on their mean: over="time" or "both" with tokens as views.',
    "Lower the depth, or raise the momentum towards 0.996-0.999.",
)


def find(case: Case) -> Finding | None:
    """What varies, varies between samples only."""
    if case.warming_up:
        return None
    least = case.thresholds.token_share
    evidence = case.below("tokens/within_share", least) + case.below("target_tokens/within_share", least)
    if not evidence:
        return None
    return Finding(
        Verdict.TOKEN_COLLAPSE,
        "all tokens of a sample say the same, apart from what their position alone gives.",
        evidence,
        _ADVICE,
    )
