"""The zoo that the doctor is proven on: its cases, its split, a run of each kind cut to two steps, its tables."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.doctor_zoo import proofs
from benchmarks.doctor_zoo.case import BROKEN, HEALTHY, UNCLEAR, Case, Material, Scores
from benchmarks.doctor_zoo.cases import CASES
from benchmarks.doctor_zoo.store import Store
from benchmarks.doctor_zoo.table import Outcome, matrix, page, summary, write

from torchjepa.evaluation.doctor import Verdict, diagnose

BY_NAME = {case.name: case for case in CASES}


def test_the_zoo_is_large_enough_and_half_of_it_broken() -> None:
    assert len(BY_NAME) == len(CASES) >= 32
    groups = Counter(case.group for case in CASES)
    assert groups["healthy"] >= 24
    assert groups["broken"] >= 24
    assert sum(case.trained for case in CASES) >= 24


def test_both_parts_hold_healthy_and_every_way_to_break() -> None:
    for part in ("dev", "heldout"):
        inside = [case for case in CASES if case.part == part]
        assert {case.expected for case in inside} == {HEALTHY, *BROKEN, *UNCLEAR}
        assert {case.trained for case in inside if case.group == "healthy"} == {True, False}
    share = sum(case.part == "dev" for case in CASES) / len(CASES)
    assert 0.5 < share < 0.7


def test_expected_verdicts_are_the_doctors_own_words() -> None:
    assert {HEALTHY, *BROKEN, *UNCLEAR} == {verdict.value for verdict in Verdict}


@pytest.mark.parametrize("name", ["vicreg-conv", "token-mean-conv", "ijepa-vicreg", "skip-copies"])
def test_a_run_of_two_steps_goes_through(name: str) -> None:
    run = BY_NAME[name].make
    short = replace(run, training=replace(run.training, steps=2, batch_size=16))  # type: ignore[type-var, attr-defined]
    material = short()  # type: ignore[operator]
    assert material.history[-1]["step"] == 1
    assert 0 <= material.scores.knn <= 1
    assert diagnose(material.features, history=material.history).verdict is Verdict.WARMING_UP


def test_synthetic_sets_are_what_they_are_called() -> None:
    drawn = [case for case in CASES if not case.trained]
    assert len(drawn) > 24
    for case in drawn:
        material = case.make()
        assert case.proof(material).holds, case.name
        assert material.scores is None


def test_proofs_can_fail() -> None:
    gaussian = Material({"encoder": torch.randn(200, 16), "tokens": torch.randn(20, 4, 8)})
    assert not proofs.constant("encoder")(gaussian).holds
    assert not proofs.narrow("encoder")(gaussian).holds
    assert not proofs.alike("tokens")(gaussian).holds
    scores = Scores(knn=0.5, linear=0.5, untrained_knn=0.45, untrained_linear=0.45)
    between = replace(gaussian, scores=scores)
    assert not proofs.learned(between).holds
    assert not proofs.unlearned(between).holds


def test_the_store_gives_back_what_was_made(tmp_path: Path) -> None:
    case = BY_NAME["growing-targets"]
    label = Store(tmp_path).label(case)
    features, history = Store(tmp_path).material(case)
    made = case.make()
    assert label["holds"]
    assert history == [dict(row) for row in made.history]
    assert all(torch.equal(features[name], made.features[name]) for name in made.features)
    kept = (tmp_path / case.part / f"{case.name}.npz").stat().st_mtime_ns
    Store(tmp_path).label(case)
    assert (tmp_path / case.part / f"{case.name}.npz").stat().st_mtime_ns == kept


def _outcome(name: str, got: str) -> Outcome:
    label = {"scores": None, "proof": "by construction", "holds": True}
    return Outcome(BY_NAME[name], label, got)


def test_the_summary_counts_alarms_and_right_names() -> None:
    outcomes = [
        _outcome("gaussian", HEALTHY),
        _outcome("power-law-1", "dimensional collapse"),
        _outcome("point", "complete collapse"),
        _outcome("line", HEALTHY),
        _outcome("eight-samples", "too few samples to tell"),
    ]
    text = summary(outcomes)
    assert "Healthy called unhealthy: 1 of 2." in text
    assert "Broken named rightly: 1 of 2 (50 %)." in text
    assert "said so: 1 of 1" in text
    rows = matrix(outcomes).splitlines()
    assert rows[0].startswith("| is \\ said | healthy | complete collapse | dimensional collapse |")
    assert rows[2].startswith("| healthy | 1 |  | **1** |")


def test_the_page_is_written_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "doctor.md"
    path.write_text("before\n<!-- zoo: begin -->\nold\n<!-- zoo: end -->\nafter\n")
    text = page([_outcome("gaussian", HEALTHY), _outcome("line", "dimensional collapse")])
    write(path, "zoo", text)
    written = path.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert "| `gaussian` | dev |" in written
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines <!-- zoo: begin"):
        write(tmp_path / "bare.md", "zoo", text)


def test_every_case_has_a_part_of_its_name_alone() -> None:
    case = BY_NAME["gaussian"]
    assert Case("gaussian", HEALTHY, "", case.make, case.proof, True).part == case.part
