"""The doctor's section: its verdict, its figures with their ranges, its pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.report.material import make_material, make_run
from tests.report.test_page import Page
from torchjepa.evaluation import Features, diagnose
from torchjepa.report import ReportMaterial, load_material, write_report
from torchjepa.report.doctor import doctor_pictures, figure_rows, tell_checks, tell_verdict
from torchjepa.types import Grid

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(300, 8, generator=DRAWS)
LINE = torch.randn(300, 1, generator=DRAWS) * torch.randn(1, 8, generator=DRAWS) + 1e-4 * X
LABELS = torch.arange(300) % 3 - 1


def features(x: torch.Tensor) -> Features:
    return Features(x, LABELS[: len(x)], torch.arange(len(x)))


def page(path: Path, material: ReportMaterial | None = None) -> Page:
    return Page(write_report(path, material).read_text(encoding="utf-8"))


def test_figures_come_with_their_ranges_the_bad_ones_first() -> None:
    rows = figure_rows(diagnose(LINE).to_json())
    bad = [row.figure for row in rows if row.bad]
    assert "encoder/effective_rank" in bad
    assert [row.bad for row in rows] == sorted((row.bad for row in rows), reverse=True)
    healthy = {row.figure: row for row in figure_rows(diagnose(X).to_json())}
    assert not any(row.bad for row in healthy.values())
    row = healthy["encoder/effective_rank"]
    assert (row.words, row.expected[:9]) == ("effective rank, encoder", "at least ")
    assert float(row.value) == pytest.approx(8, abs=0.5)
    assert not any(name.startswith("tokens/") for name in healthy), "what was not measured is not shown"


def test_the_verdict_is_a_sentence_with_a_tone() -> None:
    text, tone = tell_verdict(diagnose(X).to_json())
    assert (text, tone) == ("Healthy: no figure is out of its range. Measured on 300 samples.", "good")
    text, tone = tell_verdict(diagnose(LINE).to_json())
    assert (text[:22], tone) == ("Dimensional collapse: ", "bad")
    assert tell_verdict(diagnose(X[:3]).to_json())[1] == "open"


def test_checks_are_told_stretch_by_stretch() -> None:
    verdicts = ["still warming up", "healthy", "healthy", "healthy", "token collapse"]
    checks = [{"step": 10 * i + 9, "verdict": verdict} for i, verdict in enumerate(verdicts)]
    assert tell_checks(checks) == (
        "Checks during the training: still warming up at step 9; healthy from step 19 to 39; token collapse at "
        "step 49."
    )
    assert tell_checks([]) == ""


def test_pictures_are_the_numbers_of_the_features() -> None:
    tokens = torch.randn(64, 6, 8, generator=DRAWS).double()
    tokens[:, 2] = 1.0
    pictures = doctor_pictures(features(X), tokens, Grid(h=2, w=3), ["a", "b"])
    assert pictures is not None
    x = X.double().numpy()
    np.testing.assert_allclose(
        pictures.deviations, np.sort(x.std(0) / np.sqrt((x**2).mean()))[::-1], rtol=1e-5
    )
    assert (pictures.density * np.diff(pictures.bins)).sum() == pytest.approx(1, abs=0.01)
    assert list(pictures.labels) == sorted(pictures.labels)
    assert set(pictures.labels) == {"", "a", "b"}
    assert pictures.angles.shape == (64, 64)
    np.testing.assert_allclose(np.diag(pictures.angles), 0, atol=0.1)
    assert 80 < np.median(pictures.angles) < 100
    assert pictures.token_spread.shape == (1, 2, 3)
    assert pictures.token_spread[0, 0, 2] == 0
    assert pictures.token_spread.ravel()[[0, 1, 3, 4, 5]].min() > 0.5


def test_collapsed_and_broken_features_have_pictures_too() -> None:
    pictures = doctor_pictures(features(torch.ones(300, 8)), torch.ones(4, 1, 8), Grid(), ["a", "b"])
    assert pictures is not None
    assert (pictures.deviations.max(), pictures.density.max(), pictures.token_spread.max()) == (0, 0, 0)
    assert pictures.angles.max() < 0.1
    broken = X.clone()
    broken[:299] = torch.nan
    assert doctor_pictures(features(broken), torch.ones(4, 1, 8), Grid(), []) is None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_run(tmp_path / "run")
    diagnosis = {**diagnose({"encoder": LINE}).to_json(), "notes": ["Encoder <only>."]}
    (path / "diagnosis.json").write_text(json.dumps(diagnosis))
    (path / "doctor.jsonl").write_text(json.dumps({"step": 9, "verdict": "healthy"}) + '\n{"step"')
    return path


@pytest.mark.parametrize(
    ("grid", "titles"),
    [
        (Grid(h=4, w=4), ["Spread at each token"]),
        (Grid(t=4, h=2, w=2), ["Spread at each time", "Spread at each token"]),
        (Grid(w=16), ["Spread at each token"]),
        (Grid(t=16), ["Spread at each time"]),
    ],
)
def test_the_section_shows_verdict_knobs_and_pictures(run: Path, grid: Grid, titles: list[str]) -> None:
    tokens = torch.randn(20, 16, 8, generator=DRAWS)
    material = replace(make_material(), doctor=doctor_pictures(features(X), tokens, grid, ["a", "b"]))
    shown = page(run, material)
    assert shown.disorder == []
    assert len(shown.ids) == len(set(shown.ids))
    text = " ".join(shown.text.split())
    for part in (
        "Dimensional collapse: the features vary along a few directions only",
        "Dimensional collapse: what to change",
        "encoder/effective_rank",
        "Encoder <only>.",
        "Checks during the training: healthy at step 9.",
        "Spread of each dimension",
        "Feature histogram",
        "Similarity of samples",
        *titles,
    ):
        assert part in text
    assert ("Spread at each time" in text) == ("Spread at each time" in titles)
    assert any(attrs.get("class") == "verdict bad" for attrs in shown.all("p"))
    kept = load_material(run)
    assert kept is not None
    assert material.doctor is not None
    for name, wanted in vars(material.doctor).items():
        np.testing.assert_array_equal(getattr(kept.doctor, name), wanted)


def test_a_run_that_still_trains_shows_its_last_check(run: Path) -> None:
    (run / "diagnosis.json").unlink()
    check = {"step": 199, **diagnose({"encoder": X}).to_json()}
    (run / "doctor.jsonl").write_text(json.dumps(check) + "\n")
    text = " ".join(page(run).text.split())
    assert "Step 199: Healthy: no figure is out of its range." in text
    (run / "doctor.jsonl").unlink()
    assert "The doctor has not looked at this run" in page(run).text


@pytest.mark.parametrize("content", ["{torn", "[]", '{"verdict": "healthy"}'])
def test_a_damaged_diagnosis_is_named(run: Path, content: str) -> None:
    (run / "diagnosis.json").write_text(content)
    with pytest.raises(ValueError, match=r"diagnosis\.json: damaged"):
        write_report(run)
