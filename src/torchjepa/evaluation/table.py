"""The scores of a judgement as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchjepa.evaluation.judge import PROBES, Score, best_baseline, tasks_in

if TYPE_CHECKING:
    from rich.table import Table

_NAMES = {"knn": "kNN"}
_TITLE = "Accuracy on the test samples, %"


def score_table(scores: Sequence[Score]) -> Table:
    """The scores as a table for the terminal: percent, and the encoder's lead over the best baseline.

    Of one task a row for each kind of features and a column for each probe; of several a row for each task and probe
    and a column for each kind of features, less than 80 characters wide.

    Args:
        scores: what `judge` gave.
    """
    return _of_one(scores) if len(tasks_in(scores)) < 2 else _of_several(scores)


def _of_one(scores: Sequence[Score]) -> Table:
    from rich.table import Table

    probes, names = _probes(scores), _features(scores)
    value = {(score.features, score.probe): score.score for score in scores}
    table = Table(title=_TITLE)
    table.add_column("features")
    for probe in probes:
        table.add_column(_NAMES.get(probe, probe), justify="right")
    for name in names:
        table.add_row(
            name,
            *(_percent(value.get((name, probe))) for probe in probes),
            style="bold" if name == "encoder" else None,
            end_section=name == names[-1],
        )
    if "encoder" in names:
        table.add_row(
            "encoder - best baseline",
            *(f"{_lead(scores, probe, None)}{_rival(scores, probe)}" for probe in probes),
        )
    return table


def _of_several(scores: Sequence[Score]) -> Table:
    from rich import box
    from rich.table import Table

    probes, names = _probes(scores), _features(scores)
    value = {(score.task, score.probe, score.features): score.score for score in scores}
    table = Table(title=_TITLE, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task")
    table.add_column("probe")
    for name in names:
        table.add_column(name, justify="right", style="bold" if name == "encoder" else None)
    if "encoder" in names:
        table.add_column("lead", justify="right")  # over the best of the columns before it
    for task in tasks_in(scores):
        for probe in probes:
            cells = [_percent(value.get((task, probe, name))) for name in names]
            lead = [_lead(scores, probe, task)] if "encoder" in names else []
            first, last = probe == probes[0], probe == probes[-1] != probes[0]
            table.add_row(task if first else "", _NAMES.get(probe, probe), *cells, *lead, end_section=last)
    return table


def _probes(scores: Sequence[Score]) -> list[str]:
    return [probe for probe in PROBES if any(score.probe == probe for score in scores)]


def _features(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(score.features for score in scores))


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _lead(scores: Sequence[Score], probe: str, task: str | None) -> str:
    rival = best_baseline(scores, probe, task)
    own = [
        score.score
        for score in scores
        if (score.probe, score.features) == (probe, "encoder") and task in (None, score.task)
    ]
    return f"{100 * (own[0] - rival.score):+.1f}" if rival and own else ""


def _rival(scores: Sequence[Score], probe: str) -> str:
    rival = best_baseline(scores, probe)
    return f" ({rival.features})" if rival else ""
