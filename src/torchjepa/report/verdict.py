"""What the scores say, in a sentence and in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchjepa.evaluation import Score, best_baseline

PROBE_NAMES = {"knn": "kNN", "linear": "Linear probe"}
FEATURE_NAMES = {
    "encoder": "Encoder",
    "untrained": "Untrained encoder",
    "pixels": "Raw pixels",
    "majority": "Most frequent label",
}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run.

    Args:
        text: one or two sentences.
        tone: `good`, `bad` or `open`.
    """

    text: str
    tone: str


def write_verdict(scores: Sequence[Score]) -> Verdict:
    """Encoder against the best baseline under each probe, and whether the difference exceeds sampling noise.

    A difference counts when it exceeds two standard errors, 2 sqrt(p (1 - p) / n + q (1 - q) / n) for
    accuracies p and q on n test samples.

    Args:
        scores: what `judge` gave.
    """
    sentences, signs = [], []
    for probe, name in PROBE_NAMES.items():
        ours = next((s for s in scores if (s.probe, s.features) == (probe, "encoder")), None)
        rival = best_baseline(scores, probe)
        if ours is None or rival is None:
            continue
        sentence, sign = _compare(name, ours, rival)
        sentences.append(sentence)
        signs.append(sign)
    if not signs:
        return Verdict("The encoder was not judged.", "open")
    tone = "good" if min(signs) > 0 else "bad" if max(signs) < 0 else "open"
    return Verdict(" ".join(sentences), tone)


def _compare(name: str, ours: Score, rival: Score) -> tuple[str, int]:
    gap = ours.score - rival.score
    noise = 2 * math.sqrt(sum(s.score * (1 - s.score) / s.n_test for s in (ours, rival)))
    against = f"the best baseline ({FEATURE_NAMES.get(rival.features, rival.features).lower()})"
    stated = f"{name}: {100 * ours.score:.1f} %, "
    if abs(gap) <= noise:
        return f"{stated}no different from {against} at {100 * rival.score:.1f} % beyond sampling noise.", 0
    side = "above" if gap > 0 else "below"
    text = f"{stated}{100 * abs(gap):.1f} points {side} {against} at {100 * rival.score:.1f} %."
    return text, 1 if gap > 0 else -1


def score_rows(scores: Sequence[Score]) -> dict[str, Any] | None:
    """The score table as the template wants it; `None` without scores.

    Args:
        scores: what `judge` gave.
    """
    probes = [probe for probe in PROBE_NAMES if any(score.probe == probe for score in scores)]
    if not probes:
        return None
    names = list(dict.fromkeys(score.features for score in scores))
    value = {(score.features, score.probe): score.score for score in scores}
    rows = [
        {
            "name": FEATURE_NAMES.get(name, name),
            "encoder": name == "encoder",
            "cells": [_cell(value.get((name, probe))) for probe in probes],
        }
        for name in names
    ]
    n_train, n_test = scores[0].n_train, scores[0].n_test
    return {
        "probes": [f"{PROBE_NAMES[probe]}, %" for probe in probes],
        "rows": rows,
        "lead": [_lead(scores, probe) for probe in probes] if "encoder" in names else None,
        "caption": (
            f"Share of {n_test:,} test samples whose label is named correctly from frozen features, with "
            f"{n_train:,} labelled training samples. kNN: vote of the 20 nearest training samples by cosine "
            "similarity. Linear probe: logistic regression on standardised features. The untrained encoder "
            "has the same architecture and pooling as the trained one. Labels were used for judging only."
        ),
    }


def _cell(score: float | None) -> dict[str, str]:
    return (
        {"text": "", "width": "0"}
        if score is None
        else {
            "text": f"{100 * score:.1f}",
            "width": f"{100 * score:.1f}",
        }
    )


def _lead(scores: Sequence[Score], probe: str) -> dict[str, str]:
    ours = next((s for s in scores if (s.probe, s.features) == (probe, "encoder")), None)
    rival = best_baseline(scores, probe)
    if ours is None or rival is None:
        return {"text": "", "against": ""}
    points = f"{100 * (ours.score - rival.score):+.1f}".replace("-", "\N{MINUS SIGN}")
    return {"text": points, "against": f"vs {FEATURE_NAMES.get(rival.features, rival.features).lower()}"}
