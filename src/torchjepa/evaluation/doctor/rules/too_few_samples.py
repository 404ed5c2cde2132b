"""Too few samples: the rank that so few can have says nothing."""

from __future__ import annotations

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding, Verdict


def find(case: Case) -> Finding | None:
    """Fewer samples than a verdict on the rank needs."""
    if not case.too_few:
        return None
    needed = case.samples_needed
    return Finding(
        Verdict.TOO_FEW_SAMPLES,
        f"so few samples cannot show whether the features use their dimensions; {needed} or more can.",
        (
            case.evidence("encoder/num_samples", f"at least {needed}"),
            case.evidence("encoder/attainable_rank", f"at least {needed - 1}"),
        ),
        (f"Measure at least {needed} samples; four for each dimension show the whole spectrum.",),
    )
