"""Why rank alone lies: figures of a healthy run, its collapsed twin and two synthetic sets, side by side."""

from __future__ import annotations

from torch import Tensor

from benchmarks.doctor_zoo.case import Case
from benchmarks.doctor_zoo.store import Store
from benchmarks.doctor_zoo.table import Outcome, markdown
from torchjepa.evaluation.doctor import diagnose
from torchjepa.evaluation.spectrum import attainable_rank, effective_rank, rankme

NAMES = ("vicreg-conv", "invariance-conv", "gaussian", "noise-floor")


def control_table(store: Store, outcomes: list[Outcome]) -> str:
    """Ranks and spread of the embedding that the loss sees (the projector's output where there is one)."""
    rows = [["case", "kNN", "centred rank", "RankMe", "attainable", "spread / length", "is"]]
    for outcome in outcomes:
        if outcome.case.name in NAMES:
            rows.append(_row(store, outcome.case, outcome.label["scores"]))
    return markdown(rows, "lrrrrrl")


def _row(store: Store, case: Case, scores: dict[str, float] | None) -> list[str]:
    features, history = store.material(case)
    name = "projector" if "projector" in features else "encoder"
    x: Tensor = features[name]
    spread = diagnose(features, history=history).figures[f"{name}/relative_std"]
    return [
        f"`{case.name}`",
        f"{100 * scores['knn']:.0f}" if scores else "",
        f"{effective_rank(x):.1f}",
        f"{rankme(x):.1f}",
        str(attainable_rank(*x.shape)),
        f"{spread:.2g}",
        case.expected,
    ]
