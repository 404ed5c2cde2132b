"""The doctor's part of the page: the verdict in words, the figures behind it, and pictures of the features."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.evaluation import Evidence, Features, Thresholds
from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.rules import RULES
from torchjepa.report.material import DoctorPictures
from torchjepa.rng import generator
from torchjepa.types import Grid

_MOST, _SHOWN = 2048, 64
_BINS = np.linspace(-4.0, 4.0, 41, dtype=np.float32)
_TONES = {0: "good", 1: "bad"}
_WORDS = {
    "encoder/relative_std": "spread over length, encoder",
    "encoder/effective_rank": "effective rank, encoder",
    "encoder/rank_95": "directions for 95 %, encoder",
    "encoder/dead_share": "share of dead dimensions",
    "encoder/mean_cosine": "cosine between samples",
    "encoder/rankme": "RankMe (rank with the mean), encoder",
    "encoder/non_finite_share": "share of values not finite",
    "encoder/top_share": "share of the first direction",
    "encoder/num_samples": "number of samples",
    "encoder/attainable_rank": "attainable rank",
    "projector/relative_std": "spread over length, projector",
    "projector/effective_rank": "effective rank, projector",
    "projector/rank_95": "directions for 95 %, projector",
    "projector/dim": "dimensions of the projector",
    "tokens/content_share": "tokens: what tells samples apart",
    "tokens/within_share": "tokens: spread within a sample",
    "target_tokens/content_share": "target tokens: what tells samples apart",
    "target_tokens/within_share": "target tokens: spread within a sample",
    "time/within_share": "spread within a clip",
    "predictor/relative_error": "prediction error (mean target: 1)",
    "target/scale_ratio": "scale of target over encoder",
    "history/steps": "steps trained",
    "predictor/motion": "prediction's way from the context",
    "predictor/error_against_copy": "prediction error (copying: 1)",
    "history/loss_ratio": "loss now, of its lowest",
    "history/target_std_ratio": "spread of targets since mid-run",
    "history/std_ratio": "spread now, of its highest",
}


@dataclass(frozen=True)
class FigureRow:
    """A figure in words.

    Args:
        words: what it is.
        figure: its name in `Diagnosis.figures`.
        value: as text.
        expected: what a healthy run has.
        bad: whether it speaks for a finding.
    """

    words: str
    figure: str
    value: str
    expected: str
    bad: bool


def figure_rows(diagnosis: Mapping[str, Any]) -> list[FigureRow]:
    """The figures that a verdict rests on: evidence first, then the others that the rules looked at.

    Args:
        diagnosis: what `Diagnosis.to_json` gave.
    """
    rows: dict[str, FigureRow] = {}
    for finding in diagnosis["findings"]:
        for each in finding["evidence"]:
            rows.setdefault(each["figure"], _row(each["figure"], each["value"], each["expected"], True))
    figures: Mapping[str, float | None] = diagnosis["figures"]
    for name, expected in _expectations(figures).items():
        if figures.get(name) is not None:
            rows.setdefault(name, _row(name, figures[name], expected, False))
    return list(rows.values())


def _row(figure: str, value: float | None, expected: str, bad: bool) -> FigureRow:
    where, _, name = figure.partition("/")
    words = _WORDS.get(figure) or f"{where.replace('_', ' ')}: {name.replace('_', ' ')}"
    return FigureRow(words, figure, format_figure(value), expected, bad)


@dataclass(frozen=True)
class _Listening(Case):
    """A case that remembers what the rules ask about, so that a healthy figure can be shown with its range."""

    asked: dict[str, str] = field(default_factory=dict)

    def below(self, figure: str, least: float) -> tuple[Evidence, ...]:
        self.asked[figure] = f"at least {least:.3g}"
        return super().below(figure, least)

    def above(self, figure: str, most: float) -> tuple[Evidence, ...]:
        self.asked[figure] = f"at most {most:.3g}"
        return super().above(figure, most)


def _expectations(figures: Mapping[str, float | None]) -> dict[str, str]:
    known = {name: math.nan if value is None else value for name, value in figures.items()}
    case = _Listening(known, Thresholds())
    for rule in RULES:
        rule(case)
    return case.asked


def format_figure(value: float | None) -> str:
    """Three digits; a dash for what is not finite."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def read_checks(path: Path) -> list[dict[str, Any]]:
    """The checks during the training, from doctor.jsonl; a torn last line is left out.

    Args:
        path: the file; no checks where there is none.
    """
    checks = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            checks.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return checks


def read_diagnosis(path: Path) -> dict[str, Any] | None:
    """The verdict at the end, from diagnosis.json; `None` where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        diagnosis = dict(json.loads(path.read_text(encoding="utf-8")))
        figure_rows(diagnosis)
        return diagnosis
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged, it does not hold a diagnosis ({error}).") from None


def tell_verdict(diagnosis: Mapping[str, Any]) -> tuple[str, str]:
    """A verdict as a sentence or two, and its tone: `good`, `bad` or `open`.

    Args:
        diagnosis: what `Diagnosis.to_json` gave.
    """
    verdict = str(diagnosis["verdict"]).capitalize()
    tone = _TONES.get(diagnosis["exit_code"], "open")
    rests = f"Measured on {diagnosis['num_samples']:,} samples."
    if not diagnosis["findings"]:
        return f"{verdict}: no figure is out of its range. {rests}", tone
    return f"{verdict}: {diagnosis['findings'][0]['summary']} {rests}", tone


def tell_checks(checks: Sequence[Mapping[str, Any]]) -> str:
    """What the checks during the training said, stretch by stretch.

    Args:
        checks: what `read_checks` gave.
    """
    stretches: list[list[Any]] = []
    for check in checks:
        if stretches and stretches[-1][0] == check.get("verdict"):
            stretches[-1][2] = check.get("step")
        else:
            stretches.append([check.get("verdict"), check.get("step"), check.get("step")])
    parts = [
        f"{verdict} at step {first}" if first == last else f"{verdict} from step {first} to {last}"
        for verdict, first, last in stretches
    ]
    return f"Checks during the training: {'; '.join(parts)}." if parts else ""


def doctor_pictures(
    pooled: Features, tokens: Tensor, grid: Grid, classes: Sequence[str]
) -> DoctorPictures | None:
    """The numbers behind the section's pictures; `None` for fewer than two samples that are finite.

    Args:
        pooled: features of clean samples.
        tokens: tokens of clean samples, `[b, n, d]`, n on the grid.
        grid: their grid.
        classes: names of the labels.
    """
    keep = pooled.features.isfinite().all(dim=1)
    pooled = pooled[keep]
    if len(pooled) < 2:
        return None
    # Shuffled, so that of a data set sorted by class every class is shown.
    order = torch.randperm(len(pooled), generator=generator(0, "doctor-pictures"))
    pooled = pooled[order[:_MOST]]
    x = pooled.features.numpy().astype(np.float64)
    deviations = x.std(axis=0)
    size = max(float(np.sqrt(np.square(x).mean())), 1e-30)
    alive = deviations > 1e-6 * size
    standard = (x - x.mean(axis=0))[:, alive] / deviations[alive]
    counts, _ = np.histogram(standard, _BINS)
    shown = pooled[:_SHOWN]
    shown = shown[shown.labels.argsort(stable=True)]
    unit = shown.features / shown.features.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return DoctorPictures(
        deviations=np.sort(deviations / size)[::-1].astype(np.float32),
        density=(counts / max(1, standard.size) / np.diff(_BINS)).astype(np.float32),
        bins=_BINS,
        angles=(unit @ unit.T).clamp(-1.0, 1.0).arccos().rad2deg().numpy().astype(np.float32),
        labels=np.array([classes[i] if i >= 0 else "" for i in shown.labels.tolist()], np.str_),
        token_spread=_token_spread(tokens, grid),
    )


def _token_spread(tokens: Tensor, grid: Grid) -> NDArray[np.float32]:
    tokens = tokens[tokens.flatten(1).isfinite().all(dim=1)].double()
    if len(tokens) < 2:
        return np.zeros((0, 0, 0), np.float32)
    size = tokens.square().mean().sqrt().clamp_min(1e-30)
    spread = tokens.std(dim=0, correction=0).mean(-1) / size
    return spread.reshape(grid.shape).numpy().astype(np.float32)
