"""What the scores say, in a sentence or two and in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchjepa.evaluation import Score, best_baseline, tasks_in

# The strongest probe last: of several tasks the verdict states what it found.
PROBE_NAMES = {"knn": "kNN", "linear": "Linear probe", "attentive": "Attentive probe"}
FEATURE_NAMES = {
    "encoder": "Encoder",
    "frame": "Single frame",
    "untrained": "Untrained encoder",
    "pixels": "Raw pixels",
    "majority": "Most frequent label",
}
_PROBE_WORDS = {
    "knn": "kNN: vote of the 20 nearest training samples by cosine similarity.",
    "linear": "Linear probe: logistic regression on standardised features.",
    "attentive": "Attentive probe: a learned query attends to all tokens, a linear layer reads the result.",
}
_FRAME_WORDS = (
    "Single frame: the trained encoder, shown nothing but the middle frame of each clip, held still."
)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run.

    Args:
        text: one or two sentences, of several tasks a line for each.
        tone: `good`, `bad` or `open`.
    """

    text: str
    tone: str


@dataclass(frozen=True)
class _Comparison:
    # The encoder against the best baseline; sign 0 where noise could be the reason.
    task: str
    probe: str
    sentence: str
    sign: int


def write_verdict(scores: Sequence[Score]) -> Verdict:
    """Encoder against the best baseline under each probe, and whether the difference exceeds sampling noise.

    A difference counts when it exceeds two standard errors, 2 sqrt(p (1 - p) / n + q (1 - q) / n) for
    accuracies p and q on n test samples. Of several tasks each is told by its strongest probe, and the other probes
    only where they find less; the tone looks at all.

    Args:
        scores: what `judge` gave.
    """
    tasks = tasks_in(scores)
    found = [
        each
        for task in tasks
        for probe in PROBE_NAMES
        if (each := _compare(_of(scores, task), task, probe)) is not None
    ]
    if not found:
        return Verdict("The encoder was not judged.", "open")
    signs = [each.sign for each in found]
    tone = "good" if min(signs) > 0 else "bad" if max(signs) < 0 else "open"
    if len(tasks) > 1:
        return Verdict("\n".join(_lines(found)), tone)
    return Verdict(" ".join(f"{PROBE_NAMES[each.probe]}: {each.sentence}" for each in found), tone)


def _lines(found: Sequence[_Comparison]) -> list[str]:
    strongest = {each.task: each for each in found}
    lines = [f"{_title(each.task)}, {_name(each.probe)}: {each.sentence}" for each in strongest.values()]
    worse = [each for each in found if each.sign < strongest[each.task].sign]
    if worse:
        named = ", ".join(f"{_title(each.task).lower()} by {_name(each.probe)}" for each in worse)
        lines.append(f"Other probes find less: {named}.")
    return lines


def _compare(scores: Sequence[Score], task: str, probe: str) -> _Comparison | None:
    pair = _rivals(scores, probe)
    if pair is None:
        return None
    ours, rival = pair
    gap = ours.score - rival.score
    noise = 2 * math.sqrt(sum(s.score * (1 - s.score) / s.n_test for s in pair))
    against = f"the best baseline ({_feature(rival).lower()})"
    stated = f"{100 * ours.score:.1f} %, "
    if abs(gap) <= noise:
        text = f"{stated}no different from {against} at {100 * rival.score:.1f} % beyond sampling noise."
        return _Comparison(task, probe, text, 0)
    side = "above" if gap > 0 else "below"
    text = f"{stated}{100 * abs(gap):.1f} points {side} {against} at {100 * rival.score:.1f} %."
    return _Comparison(task, probe, text, 1 if gap > 0 else -1)


def score_rows(scores: Sequence[Score]) -> dict[str, Any] | None:
    """The score table as the template wants it, a group of rows for each task; `None` without scores.

    Args:
        scores: what `judge` gave.
    """
    probes = [probe for probe in PROBE_NAMES if any(score.probe == probe for score in scores)]
    if not probes:
        return None
    tasks = tasks_in(scores)
    sizes = {(score.n_train, score.n_test) for score in scores}
    groups = [_group(_of(scores, task), task if len(tasks) > 1 else "", probes) for task in tasks]
    if len(sizes) == 1:
        groups = [{**group, "note": ""} for group in groups]
    return {
        "probes": [f"{PROBE_NAMES[probe]}, %" for probe in probes],
        "groups": groups,
        "caption": _caption(probes, {score.features for score in scores}, sizes),
    }


def _group(scores: Sequence[Score], task: str, probes: Sequence[str]) -> dict[str, Any]:
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
    return {
        "name": _title(task),
        "note": f"{scores[0].n_train:,} training and {scores[0].n_test:,} test samples",
        "rows": rows,
        "lead": [_lead(scores, probe) for probe in probes] if "encoder" in names else None,
    }


def _caption(probes: Sequence[str], features: set[str], sizes: set[tuple[int, int]]) -> str:
    share = "Share of the test samples whose label is named correctly from frozen features."
    if len(sizes) == 1:
        n_train, n_test = next(iter(sizes))
        share = (
            f"Share of {n_test:,} test samples whose label is named correctly from frozen features, with "
            f"{n_train:,} labelled training samples."
        )
    parts = [share, *(_PROBE_WORDS[probe] for probe in probes)]
    if "frame" in features:
        parts.append(_FRAME_WORDS)
    parts.append("The untrained encoder has the same architecture and pooling as the trained one.")
    return " ".join([*parts, "Labels were used for judging only."])


def _cell(score: float | None) -> Mapping[str, str]:
    if score is None:
        return {"text": "", "width": "0"}
    return {"text": f"{100 * score:.1f}", "width": f"{100 * score:.1f}"}


def _lead(scores: Sequence[Score], probe: str) -> dict[str, str]:
    pair = _rivals(scores, probe)
    if pair is None:
        return {"text": "", "against": ""}
    ours, rival = pair
    points = f"{100 * (ours.score - rival.score):+.1f}".replace("-", "\N{MINUS SIGN}")
    return {"text": points, "against": f"vs {_feature(rival).lower()}"}


def _rivals(scores: Sequence[Score], probe: str) -> tuple[Score, Score] | None:
    # The encoder's score of one task and that of the best baseline.
    ours = next((s for s in scores if (s.probe, s.features) == (probe, "encoder")), None)
    rival = best_baseline(scores, probe)
    return None if ours is None or rival is None else (ours, rival)


def _of(scores: Sequence[Score], task: str) -> list[Score]:
    return [score for score in scores if score.task == task]


def _feature(score: Score) -> str:
    return FEATURE_NAMES.get(score.features, score.features)


def _name(probe: str) -> str:
    return "kNN" if probe == "knn" else PROBE_NAMES[probe].lower()


def _title(task: str) -> str:
    return task[:1].upper() + task[1:].replace("_", " ")
